"""Where credentials are read, and what tells one that was written down from another.

What a wrong source says is in tests/config as well.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.credentials.fakes import entry, until
from tests.patience import PATIENCE_S

import account_pool.credentials.command
from account_pool.core.credential import Secret
from account_pool.credentials import files
from account_pool.credentials.command import CommandSource
from account_pool.credentials.files import FileSource
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.sources import (
    CredentialError,
    EnvSource,
    OwnThread,
    Reading,
    ValueSource,
    expand,
    usable,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${A}", "one"),
        ("x${A}-${B}y", "xone-twoy"),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("$$${A}", "$one"),
        ("$A $", "$A $"),
        ("${C}", "${A}"),  # what a variable holds is not expanded again
    ],
)
def test_expansion(text: str, expected: str) -> None:
    assert expand(text, {"A": "one", "B": "two", "C": "${A}"}) == expected


@given(st.text())
def test_a_text_with_doubled_dollars_is_itself(text: str) -> None:
    assert expand(text.replace("$", "$$"), {}) == text


@given(st.text(min_size=1))
def test_a_usable_credential_can_stand_in_a_header(text: str) -> None:
    try:
        secret = usable(text, "it")
    except CredentialError:
        return
    assert (
        secret.reveal().isascii() and secret.reveal().isprintable() and " " not in secret.reveal()
    )


async def test_values_and_variables_follow_the_environment() -> None:
    environ = {"KEY": "one"}
    sources = (ValueSource(Secret("${KEY}"), environ), EnvSource("KEY", environ))
    for value in ("one", "two"):
        environ["KEY"] = value
        for source in sources:
            assert source.read_now().secret == Secret(value)
            assert await source.read() == source.read_now()
    assert [source.describe() for source in sources] == ["accounts.yaml", "env KEY"]


async def test_a_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "token"
    source = FileSource(path, written="~/token")
    for text in ("one", " two\n", "\ufeffthree"):
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        assert (
            (await source.read()).secret
            == source.read_now().secret
            == Secret(text.strip(" \n\ufeff"))
        )
    assert source.describe() == "file ~/token"


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"x" * (1024 * 1024 + 1))
    path.chmod(0o600)
    with pytest.raises(CredentialError, match="it is larger than 1 MiB"):
        FileSource(path).read_now()


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
async def test_what_is_no_path_is_told(name: str) -> None:
    """Python raises a ValueError for it, which would be a mistake of ours."""
    assert FileSource(Path(name)).stamp() is None
    with pytest.raises(CredentialError, match="a character that no name can have"):
        FileSource(Path(name)).read_now()
    with pytest.raises(CredentialError, match="a character that no name can have"):
        await CommandSource(f"echo {name}", {}).read()


async def test_files_on_a_share_that_hangs_hold_up_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read, answers = tmp_path / "token", files.read_private, threading.Event()
    path.write_text("sk-fake")
    path.chmod(0o600)

    def hanging(*where: Any) -> str:
        answers.wait(PATIENCE_S)
        return read(*where)

    monkeypatch.setattr(files, "read_private", hanging)
    sources = [FileSource(path, written="~/token", timeout_s=0.05) for _ in range(50)]
    hung = await asyncio.gather(*(one.read() for one in sources), return_exceptions=True)
    assert {str(error).partition(";")[0] for error in hung} == {
        "the file ~/token was not read within 0.05 s"
    }
    # The event loop's own threads are free.
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "looked up"), PATIENCE_S)
    one = sources[0]
    assert one.read_now() is None
    with pytest.raises(CredentialError, match="the file ~/token is still being read"):
        await one.read()
    answers.set()
    await one._thread.rest(PATIENCE_S)
    assert one.read_now() == Reading(secret=Secret("sk-fake"))


async def test_at_the_start_a_share_that_hangs_keeps_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of many is waited for, and not for long; those that can be read are read beside it."""
    path, read, answers = tmp_path / "token", files.read_private, threading.Event()
    path.write_text("sk-fake")
    path.chmod(0o600)

    def hanging(where: Path, *more: Any) -> str:
        if where != path:
            answers.wait(PATIENCE_S)
        return read(path, *more)

    monkeypatch.setattr(files, "read_private", hanging)
    monkeypatch.setattr(files, "AT_ONCE_S", 0.01)
    away = FileSource(tmp_path / "away" / "token", timeout_s=PATIENCE_S)
    assert away.read_now() is None
    monkeypatch.setattr(files, "AT_ONCE_S", 10 * PATIENCE_S)
    others = [FileSource(tmp_path / "away" / str(n)) for n in range(3)]
    assert [other.read_now() for other in others] == [None] * 3
    here = FileSource(path)
    found = here.read_now() or await here.read()
    assert found == Reading(secret=Secret("sk-fake"))
    # What was begun at the start is waited for, and not asked again.
    reading = asyncio.create_task(away.read())
    await asyncio.sleep(0)
    answers.set()
    assert await reading == found
    for other in others:
        assert (other.read_now() or await other.read()) == found
    await until(lambda: not OwnThread._late)
    assert FileSource(path).read_now() == found


def test_no_source_shows_its_secret() -> None:
    environ = {"KEY": "secret-in-env"}
    sources = (ValueSource(Secret("secret-written"), environ), EnvSource("KEY", environ))
    for source in sources:
        assert "secret" not in f"{source!r} {source} {source.describe()}".replace("[secret]", "")


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")


def script(directory: Path, text: str) -> str:
    """Write a shell script and return the command that runs it."""
    path = directory / "print token"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return f"'{path}' first 'second argument'"


async def test_a_command_is_run_once_until_it_is_refused(tmp_path: Path) -> None:
    command = script(tmp_path, f'echo run >> {tmp_path}/runs; echo " token-$#-$KEY "')
    source = CommandSource(command, {"KEY": "x", **os.environ})
    assert source.read_now() is None
    assert await source.read() == await source.read() == Reading(secret=Secret("token-2-x"))
    source.refused(Secret("another"))
    await source.read()
    assert (tmp_path / "runs").read_text() == "run\n"
    source.refused(Secret("token-2-x"))
    assert (await source.read()).secret == Secret("token-2-x")
    assert (tmp_path / "runs").read_text() == "run\nrun\n"
    assert source.describe() == f"command {command}"
    assert "token-2" not in repr(source)


async def test_nothing_is_expanded_by_a_shell() -> None:
    source = CommandSource("echo $HOME;ls", dict(os.environ))
    assert (await source.read()).secret == Secret("$HOME;ls")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "echo secret-out; echo one >&2; echo 'not logged in' >&2; exit 3",
            "the command COMMAND exited with status 3: not logged in; run it by hand and "
            "fix what it reports",
        ),
        (
            "echo secret-out; echo 'bad token secret-out' >&2; exit 1",
            "the command COMMAND exited with status 1: bad token [secret]; run it by hand and "
            "fix what it reports",
        ),
        (
            "exit 4",
            "the command COMMAND exited with status 4; run it by hand and fix what it reports",
        ),
        ("true", "the command COMMAND printed nothing; run it by hand: it must print the token"),
        (
            "echo secret-out; echo secret-out",
            "what the command COMMAND printed has a space, a line break or a character outside "
            "ASCII in it; put the token there alone, on one line",
        ),
    ],
)
async def test_a_failing_command_shows_its_last_error_line_and_no_output(
    tmp_path: Path, text: str, expected: str
) -> None:
    command = script(tmp_path, text)
    with pytest.raises(CredentialError) as caught:
        await CommandSource(command, dict(os.environ)).read()
    assert str(caught.value) == expected.replace("COMMAND", command)
    assert "secret-out" not in str(caught.value)


async def test_a_missing_command_says_so() -> None:
    with pytest.raises(CredentialError) as caught:
        await CommandSource("/nonexistent/program x", {}).read()
    assert str(caught.value) == (
        "the command /nonexistent/program x cannot be started (no such file or directory); "
        "install it, or write its full path"
    )


async def test_a_token_in_a_command_is_not_shown(tmp_path: Path) -> None:
    failing = script(tmp_path, 'echo "no such item: $3" >&2; exit 1') + " sk-fake-pasted-0001"
    said = []
    for command in ("sk-fake-pasted-0001", failing, "/bin/true sk-fake-pasted-0001"):
        source = CommandSource(command, dict(os.environ))
        with pytest.raises(CredentialError) as caught:
            await source.read()
        said.append(f"{source.describe()}: {caught.value}")
    assert "fake" not in "".join(said)
    assert "; a token seems to be pasted there: " in said[0]
    assert "no such item: [not shown]" in said[1]
    assert said[2].startswith("command /bin/true [not shown]: ")


@needs_proc
async def test_a_command_that_hangs_is_ended_with_its_helpers(tmp_path: Path) -> None:
    command = script(tmp_path, f"sleep 300 & echo $! > {tmp_path}/helper; wait")
    helper = tmp_path / "helper"
    for timeout_s in (0.5, PATIENCE_S):
        with pytest.raises(CredentialError) as caught:
            await CommandSource(command, dict(os.environ), timeout_s=timeout_s).read()
        assert f"did not finish within {timeout_s:g} s; run it by hand" in str(caught.value)
        if helper.exists() and helper.read_text():  # else the machine was too busy to begin it
            break
    await until(lambda: is_gone(int(helper.read_text())))


@needs_proc
@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("echo token", "token"),
        ("echo 'not logged in' >&2; exit 3", "exited with status 3: not logged in"),
        ("{ while kill -0 $$; do :; done 2>/dev/null; echo token; } &", "token"),
    ],
    ids=["printed", "failed", "prints later"],
)
async def test_what_a_command_leaves_behind_is_not_waited_for(
    tmp_path: Path, end: str, expected: str
) -> None:
    """An agent that was started with it has its pipes open, for days."""
    command = script(tmp_path, f"sleep 300 & echo $! > {tmp_path}/agent\n{end}")
    try:
        secret = (await CommandSource(command, dict(os.environ)).read()).secret.reveal()
    except CredentialError as error:
        secret = str(error)
    agent = int((tmp_path / "agent").read_text())
    left = not is_gone(agent)
    os.kill(agent, signal.SIGKILL)
    assert expected in secret and "did not finish" not in secret
    assert left


@needs_proc
async def test_a_cancelled_command_is_ended(tmp_path: Path) -> None:
    command = script(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 300")
    reading = asyncio.create_task(CommandSource(command, dict(os.environ)).read())
    await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: is_gone(int((tmp_path / "pid").read_text())))


@needs_proc
async def test_who_is_cancelled_while_a_command_starts_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = script(tmp_path, f"sleep 300 & echo $! > {tmp_path}/helper; wait")
    start = asyncio.create_subprocess_exec
    go_on = asyncio.Event()

    async def start_slowly(*args: Any, **named: Any) -> asyncio.subprocess.Process:
        process = await start(*args, **named)
        await go_on.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_slowly)
    reading = asyncio.create_task(CommandSource(command, dict(os.environ)).read())
    helper = tmp_path / "helper"
    await until(lambda: helper.exists() and helper.read_text() != "")
    reading.cancel()
    asyncio.get_running_loop().call_soon(go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: is_gone(int(helper.read_text())))


@needs_proc
async def test_what_has_left_the_group_of_a_command_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account_pool.credentials.command, "KILLED_S", 0.1)
    command = script(tmp_path, f"setsid sleep 300 & echo $! > {tmp_path}/helper; wait")
    reading = asyncio.create_task(CommandSource(command, dict(os.environ)).read())
    helper = tmp_path / "helper"
    await until(lambda: helper.exists() and helper.read_text() != "")
    pid = int(helper.read_text())
    await until(lambda: os.getsid(pid) == pid)
    reading.cancel()
    try:
        with pytest.raises(asyncio.CancelledError):
            await reading
    finally:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: is_gone(pid))


def is_gone(pid: int) -> bool:
    """Say whether the process has ended; one that waits for its parent to notice has."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "XZ"


async def test_of_much_output_the_beginning_is_no_token(tmp_path: Path) -> None:
    command = script(tmp_path, "head -c 3000000 /dev/zero | tr '\\0' x")
    with pytest.raises(CredentialError, match="printed has more than 32768 characters"):
        await CommandSource(command, dict(os.environ)).read()


async def test_endless_output_ends_like_any_command_that_does_not(tmp_path: Path) -> None:
    command = script(tmp_path, "exec yes sk-fake")
    with pytest.raises(CredentialError, match=r"did not finish within 0\.3 s"):
        await CommandSource(command, dict(os.environ), timeout_s=0.3).read()


@pytest.mark.parametrize("content", [b"x" * 40_000, b'{"a": "%s"}' % (b"x" * 40_000)])
def test_what_no_server_would_accept_is_no_token(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(CredentialError, match="has more than 32768 characters"):
        FileSource(path, "/a" if content[:1] == b"{" else None).read_now()


KEY = "sk-fake-000"


def oauth(refresh: str, access: str = "fake-access") -> OAuthSource:
    written = {"refresh_token": refresh, "access_token": access}
    return OAuthSource.from_written("codex", "me", written, {})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ValueSource(Secret(KEY), {}), ValueSource(Secret("sk-fake-111"), {})),
        (EnvSource("KEY", {"KEY": KEY}), EnvSource("KEY", {"KEY": "sk-fake-111"})),
        (ValueSource(Secret("${KEY}"), {"KEY": KEY}), ValueSource(Secret("${KEY}"), {"KEY": "x"})),
        (oauth("rt-1"), oauth("rt-2")),
        (FileSource(Path("a")), FileSource(Path("b"))),
        (CommandSource("one", {}), CommandSource("other", {})),
        (EnvSource("KEY", {}), EnvSource("OTHER", {})),
    ],
    ids=["value", "env", "reference", "login", "file", "command", "unset"],
)
def test_another_credential_has_another_mark(one, other) -> None:
    assert entry(source=one).fingerprint() == entry(source=one).fingerprint()
    assert entry(source=one).fingerprint() != entry(source=other).fingerprint()


def test_the_same_credential_has_the_same_mark_wherever_it_stands() -> None:
    value = ValueSource(Secret(KEY), {})
    assert (
        entry(source=value).fingerprint()
        == entry(source=EnvSource("KEY", {"KEY": KEY})).fingerprint()
    )
    assert (
        entry(source=oauth("rt")).fingerprint()
        == entry(source=oauth("rt", "newer-access")).fingerprint()
    )


def test_what_moves_with_it_is_a_part_of_it() -> None:
    value = ValueSource(Secret(KEY), {})
    fingerprints = {
        entry(source=value).fingerprint(),
        entry(source=value, account_type="business").fingerprint(),
        entry(source=value, companions={"account_id": "1"}).fingerprint(),
    }
    assert len(fingerprints) == 3
    assert (
        entry(source=value).fingerprint() == entry(source=value, weight=3, priority=2).fingerprint()
    )


def test_it_does_not_tell_the_secret() -> None:
    assert KEY not in entry(source=ValueSource(Secret(KEY), {})).fingerprint()


@given(st.text(st.characters(max_codepoint=0x100), max_size=6))
def test_a_value_is_a_token_where_each_character_may_stand_in_one(text: str) -> None:
    """As RFC 9110, section 5.5, has it; and then it is the object that was written."""
    secret = Secret(text)
    try:
        read = ValueSource(secret, {}).read_now().secret
    except CredentialError:
        assert "$" in text or not re.fullmatch(r"\s*[\x21-\x7e]+\s*", text)
        return
    token = text.strip().replace("$$", "$")
    assert read.reveal() == token and re.fullmatch(r"[\x21-\x7e]+", token)
    assert (read is secret) == (text == token and "$" not in text)


def test_a_secret_tells_its_digest_only_and_always_the_same() -> None:
    one, other = Secret("sk-fake-1"), Secret("sk-fake-2")
    assert one.digest() == one.digest() == Secret("sk-fake-1").digest() != other.digest()
    assert "sk-fake" not in one.digest()
