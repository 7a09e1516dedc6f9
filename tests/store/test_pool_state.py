"""What `pool_state` says of an engine, and where its secrets are read."""

from __future__ import annotations

import os
import shlex
import signal
import sys

import pytest

from account_pool.config.options import BY_NAME
from account_pool.core.credential import Secret
from account_pool.core.wrong import Wrong
from account_pool.store import pool_state
from account_pool.store.pool_state import Address, Host, Lookup, Reference, is_url, parse
from account_pool.store.store import StoreError

STATE = BY_NAME["state"]
HIDDEN = "fake-secret-hunter2"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "rediss://proxy@db.example:6380/2?pool=team&password=env:PW&sealing_key=file:/k",
            Address(
                tls=True,
                hosts=(Host("db.example", 6380),),
                database=2,
                pool="team",
                user="proxy",
                references={
                    "password": Reference("env", "PW"),
                    "sealing_key": Reference("file", "/k"),
                },
            ),
        ),
        ("redis://localhost", Address(hosts=(Host("localhost", 6379),))),
        ("redis://[::1]:7000/", Address(hosts=(Host("::1", 7000),))),
        (
            "rediss+sentinel://a.example,b.example:5000?master=main&timeout=1.5",
            Address(
                kind="sentinel",
                tls=True,
                hosts=(Host("a.example", 26379), Host("b.example", 5000)),
                master="main",
                timeout_s=1.5,
            ),
        ),
        (
            "redis+cluster://127.0.0.1:7000,127.0.0.1:7001?password=command:pass%20show%20redis",
            Address(
                kind="cluster",
                hosts=(Host("127.0.0.1", 7000), Host("127.0.0.1", 7001)),
                references={"password": Reference("command", "pass show redis")},
            ),
        ),
    ],
)
def test_a_url_is_read(url: str, expected: Address) -> None:
    assert parse(url) == expected
    assert STATE.read(url) == url


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        (f"rediss://u:{HIDDEN}@db.example", "password=env:VARIABLE, or file:PATH, or command:"),
        (f"rediss://:{HIDDEN}@db.example", "the URL holds a password"),
        (f"rediss://u@db.example?password={HIDDEN}", "password is not a reference; write env:"),
        (f"rediss://u@db.example?password=plain:{HIDDEN}", "never the secret itself"),
        ("redis://db.example", "db.example:6379 is another machine.*write rediss://"),
        ("redis+cluster://127.0.0.1,db.example", "another machine.*write rediss.cluster://"),
        ("redis://127.0.0.1.db.example", "is another machine"),
        ("redis://db.localhost", "is another machine"),
        ("rediss://a.example,b.example", r"write rediss\+sentinel:// or rediss\+cluster://"),
        ("rediss+sentinel://a.example", "add .master=NAME"),
        ("rediss://a.example/x", "number of a database"),
        ("rediss+cluster://a.example/1", "a cluster has database 0 only"),
        ("rediss://a.example?pool=a b", "the name of a pool"),
        ("rediss://a.example?pool=a}b", "the name of a pool"),
        (f"rediss://a.example?passwd={HIDDEN}", "unknown parameter; known are ca, cert"),
        ("rediss://a.example?pool=a&pool=b", "pool is in the URL twice"),
        ("rediss://a.example,a.example?master=m", "a host is in the URL twice"),
        ("rediss://a.example:x", "a host of the URL cannot be read"),
        ("rediss://", "a host of the URL cannot be read"),
        ("rediss://[::1", "the URL cannot be read; write rediss://"),
        (f"rediss://u:{HIDDEN}\u2100@a.example", "the URL cannot be read; write rediss://"),
        ("rediss://a.example?ca=/a#b&password=env:A", "write %23 for it"),
        ("rediss://a.example?timeout=0", "timeout is not a number of seconds"),
        ("rediss://a.example?timeout=nan", "timeout is not a number of seconds"),
        ("postgres://a.example", "this is not the URL of an engine; write rediss://USER@HOST"),
        ("rediss:/a.example", "this is not the URL of an engine; write rediss://USER@HOST"),
        (f"redis:u:{HIDDEN}@a.example", "this is not the URL of an engine"),
        ("valkey:a.example/0", "this is not the URL of an engine"),
        ("a.example:6379", "this is not the URL of an engine"),
        ("localhost:6379/0?pool=a", "this is not the URL of an engine"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_its_secrets(url: str, wrong: str) -> None:
    with pytest.raises(Wrong, match=wrong) as error:
        STATE.read(url)
    assert HIDDEN not in str(error.value)


@pytest.mark.parametrize(
    "path",
    ["", "memory:", "state.sqlite", "redis", "./redis:1", r"C:\1", "/a:1", "~/rediss.sqlite"],
)
def test_a_file_is_none(path: str) -> None:
    assert not is_url(path)
    assert STATE.read(path) == path


def test_a_file_may_write_it_as_a_mapping() -> None:
    url = STATE.check(
        {
            "url": "rediss://u@db.example/1?pool=team",
            "password": {"command": "pass show redis & co"},
            "sealing_key": {"file": "/run/secrets/key"},
        }
    )
    assert parse(str(url)).references == {
        "password": Reference("command", "pass show redis & co"),
        "sealing_key": Reference("file", "/run/secrets/key"),
    }
    assert STATE.check({"url": "redis://localhost"}) == "redis://localhost"


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ({"url": "rediss://db.example", "password": HIDDEN}, "password is not a reference"),
        ({"url": "rediss://db.example", "password": {"plain": HIDDEN}}, "is not a reference"),
        ({"url": "rediss://db.example", "passwort": {"env": "A"}}, "did you mean password"),
        ({"url": "state.sqlite"}, "no url of an engine"),
        ({"password": {"env": "A"}}, "no url of an engine"),
        (
            {"url": "rediss://db.example?password=env:A", "password": {"env": "A"}},
            "password is in the URL twice",
        ),
        ([HIDDEN], "it is a list"),
    ],
)
def test_what_is_wrong_with_a_mapping_is_said_without_its_secrets(value, wrong: str) -> None:
    with pytest.raises(Wrong, match=wrong) as error:
        STATE.check(value)
    assert HIDDEN not in str(error.value)


def test_a_secret_is_read_from_where_it_is_written_down(tmp_path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{HIDDEN}\n")
    command = f"{sys.executable} -c \"print('{HIDDEN}')\""
    for reference in (
        Reference("env", "PW"),
        Reference("file", str(file)),
        Reference("command", command),
    ):
        assert Lookup("password", reference, {"PW": HIDDEN})() == Secret(HIDDEN)
    assert Lookup("password", None)() is None


def test_a_secret_that_was_refused_is_read_anew() -> None:
    environ = {"PW": "old-fake"}
    lookup = Lookup("password", Reference("env", "PW"), environ)
    assert lookup() == Secret("old-fake")
    environ["PW"] = "new-fake"
    assert lookup() == Secret("old-fake")
    lookup.refused()
    assert lookup() == Secret("new-fake")


@pytest.mark.parametrize(
    ("kind", "value", "wrong"),
    [
        ("env", "PW", "the variable PW is empty"),
        ("file", "/nowhere/at/all", r"cannot be read \(no such file or directory\)"),
        ("command", f"/nowhere/program {HIDDEN}", r"program cannot be started \(no such file"),
        ("command", f'"{HIDDEN}', "cannot be started"),
        ("command", f"{sys.executable} -c \"print('{HIDDEN}'); exit(3)\"", "exited with 3"),
        ("command", f"{sys.executable} -c \"print('{HIDDEN}\\na')\"", "not one line"),
        ("command", f"{sys.executable} -c \"print('{HIDDEN}' * 9999)\"", "prints too much"),
    ],
)
def test_why_a_secret_cannot_be_read_is_said_without_it(kind, value, wrong) -> None:
    with pytest.raises(StoreError, match=f"password: .*{wrong}") as error:
        Lookup("password", Reference(kind, value), {})()
    assert HIDDEN not in str(error.value)


def test_a_command_that_prints_for_ever_is_ended_once_that_is_no_secret() -> None:
    endless = "import sys\nwhile True: sys.stdout.write('fake' * 9999)"
    command = shlex.join([sys.executable, "-c", endless])
    with pytest.raises(StoreError, match="prints too much for a secret; run it by hand"):
        Lookup("password", Reference("command", command), {})()


def test_a_command_that_does_not_end_is_ended_with_what_it_has_started(monkeypatch) -> None:
    monkeypatch.setattr(pool_state, "COMMAND_TIMEOUT_S", 0.0)
    ended, kill_group = list[int](), os.killpg

    def kill(group: int, number: int) -> None:
        ended.append(group)
        kill_group(group, number)

    monkeypatch.setattr(os, "killpg", kill)
    command = shlex.join([sys.executable, "-c", "import threading; threading.Event().wait()"])
    with pytest.raises(StoreError, match="did not end within 0 s"):
        Lookup("password", Reference("command", command), {})()
    assert len(ended) == 1


def test_what_a_command_leaves_behind_is_not_waited_for(tmp_path) -> None:
    """An agent that was started with it has its output open, for days."""
    line = f"sleep 300 & echo $! > {shlex.quote(str(tmp_path))}/agent; echo {HIDDEN}"
    try:
        command = shlex.join(["sh", "-c", line])
        assert Lookup("password", Reference("command", command), os.environ)() == Secret(HIDDEN)
    finally:
        os.kill(int((tmp_path / "agent").read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [(HIDDEN.encode() * 9999, "too long for a secret"), (b"\xff", "is not text; name another")],
)
def test_a_file_that_is_too_long_or_no_text_is_no_secret(tmp_path, content, wrong) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(StoreError, match=wrong):
        Lookup("password", Reference("file", str(tmp_path / "key")), {})()
