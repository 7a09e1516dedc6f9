"""Paths that begin with `~`, what is read where somebody named a path, and what is written."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import sys
import threading
from pathlib import Path

import pytest

from account_pool import filesystem
from account_pool.cli import certificates
from account_pool.cli.add import AddOptions
from account_pool.cli.main import run
from account_pool.cli.processes import Places
from account_pool.cli.run import own_home
from account_pool.config import accounts_file, options
from account_pool.core.wrong import Wrong
from account_pool.credentials.vendor_logins import find_login_file
from account_pool.filesystem import (
    NotAFile,
    TooLarge,
    expanded,
    named_path,
    printable,
    read_file,
    require_file,
    write_beside,
    write_new,
    write_whole,
)
from account_pool.store.fleet.fleet_store import unsaved_folder

NEEDS_PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
PACKAGE = Path(__file__).parents[1] / "addon" / "account_pool"
#: Which no system has.
NOBODY = "~no-such-user/file"
WHY = "there is no such home directory"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in an empty directory, which is the user's home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(filesystem, "WRITER_S", 0.0)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def test_the_home_of_a_user(here):
    assert expanded("~/file") == named_path(Path("~/file")) == here / "file"
    assert named_path("a/~b") == Path("a/~b")
    assert named_path("") == Path()


def test_the_home_of_nobody():
    """As in mitmproxy it stays; what a user has named is an error that says which it is."""
    assert expanded(NOBODY) == Path(NOBODY)
    assert unsaved_folder(NOBODY).parent == Path(NOBODY)
    with pytest.raises(FileNotFoundError, match=WHY) as raised:
        named_path(NOBODY)
    assert raised.value.filename == NOBODY
    with pytest.raises(Wrong, match=WHY):
        options.BY_NAME["state"].read(NOBODY)
    with pytest.raises(FileNotFoundError, match=WHY):
        AddOptions(file=Path(NOBODY)).source()


@pytest.mark.parametrize(
    "words",
    [
        ["add", "openai", "--file", NOBODY],
        ["import", NOBODY],
        ["check", "--trust", "--accounts-file", NOBODY],
        ["serve", "--port", "0", "--accounts-file", NOBODY],
        ["service", "status", "--accounts-file", NOBODY],
    ],
)
def test_a_command_says_so_in_one_line(words, here, capsys):
    assert run(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{NOBODY}: {WHY}")
    assert not (here / "~no-such-user").exists()


def test_a_variable_that_names_one_is_no_more_than_a_missing_file(here):
    found = certificates.stores(here / "ca.pem", {"SSL_CERT_FILE": NOBODY})
    assert [one.holds for one in found if one.name.startswith("SSL_CERT_FILE")] == [False]


def test_the_doctor_says_what_pool_state_names(here, capsys):
    confdir = Places.usual(0).confdir
    confdir.mkdir()
    (confdir / "config.yaml").write_text(f"pool_state: {NOBODY}\n")
    assert run(["doctor", "--port", "1"]) == 1
    assert f'pool_state: "{NOBODY}": {WHY}' in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(sys.platform == "win32", reason="homes are in a variable there")
def test_a_user_without_a_home(monkeypatch):
    """As in a container that runs with a number that has no name."""
    import pwd

    def unknown(_number):
        raise KeyError("no name of this number")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("USERPROFILE")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert accounts_file.shown(Path("/a/b")) == "/a/b"
    assert own_home({}) == Path("~/.codex")
    assert find_login_file("codex", {}) == Path("~/.codex/auth.json")
    with pytest.raises(FileNotFoundError, match=WHY):
        named_path("~/file")


def test_nothing_else_asks_for_one():
    """`Path.expanduser` and `Path.home` raise RuntimeError, which nobody expects of a path."""
    asks = re.compile(r"expanduser|Path\.home\(")
    using = [path.name for path in PACKAGE.rglob("*.py") if asks.search(path.read_text("utf-8"))]
    assert using == ["filesystem.py"]


def test_a_path_is_one_line_whatever_is_in_its_name():
    assert printable(Path("/a/b c/\u00e9.yaml")) == "/a/b c/\u00e9.yaml"
    assert printable("/a\nb\x1b[2J\udcff") == "/a\\nb\\x1b[2J\\udcff"


# -- what somebody has named


def test_a_file_is_read_up_to_its_bound() -> None:
    Path("file").write_bytes(b"12345")
    assert read_file("file", 5) == b"12345"
    with pytest.raises(TooLarge, match="it is larger than 0 KiB"):
        read_file("file", 4)
    with pytest.raises(FileNotFoundError):
        read_file("nowhere", 5)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="each file says its size")
def test_a_file_that_does_not_say_its_size_is_bounded_too() -> None:
    assert read_file("/proc/self/status", 1024 * 1024)
    with pytest.raises(TooLarge):
        read_file("/proc/self/status", 10)


@NEEDS_PIPES
@pytest.mark.parametrize("pipe", [False, True])
def test_what_is_not_a_file_is_not_opened(monkeypatch: pytest.MonkeyPatch, pipe: bool) -> None:
    def opened(*_: object) -> int:
        pytest.fail("it was opened")

    monkeypatch.setattr(filesystem.os, "open", opened)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    for path, kind in (("socket", "a socket"), (".", "a directory"), (os.devnull, "a device")):
        with pytest.raises(NotAFile, match=f"it is {kind}, not a file"):
            read_file(path, 5, pipe=pipe)
    for path in ("a\0b", "a\ud800"):
        with pytest.raises(NotAFile, match="it has a character that no name can have"):
            require_file(path)


@NEEDS_PIPES
def test_a_pipe_is_not_waited_for_unless_it_may_be_one() -> None:
    os.mkfifo("pipe")
    with pytest.raises(NotAFile, match="it is a pipe, not a file"):
        read_file("pipe", 5)
    with pytest.raises(NotAFile, match="it is a pipe that nobody writes to"):
        read_file("pipe", 5, pipe=True)


@NEEDS_PIPES
def test_a_pipe_whose_writer_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "PIPE_S", 0.0)
    os.mkfifo("pipe")
    both = os.open("pipe", os.O_RDWR)
    with pytest.raises(NotAFile, match="it is a pipe that nobody writes to"):
        read_file("pipe", 5, pipe=True)
    os.close(both)


@NEEDS_PIPES
def test_a_pipe_is_read_until_its_writers_have_closed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "WRITER_S", 60.0)
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(b"x" * 200_000))
    writer.start()
    assert len(read_file("pipe", 1024 * 1024, pipe=True)) == 200_000
    writer.join()


@NEEDS_PIPES
def test_a_pipe_that_says_nothing_or_too_much() -> None:
    ours, theirs = os.pipe()
    os.close(theirs)
    path = f"/dev/fd/{ours}"
    if not Path(path).exists():
        pytest.skip("pipes have no names")
    assert read_file(path, 5, pipe=True) == b""
    os.close(ours)
    ours, theirs = os.pipe()
    os.write(theirs, b"123456")
    with pytest.raises(TooLarge):
        read_file(f"/dev/fd/{ours}", 5, pipe=True)
    os.close(ours)
    os.close(theirs)


# -- what is written

#: Which make a file of their own beside `filesystem.py`, and why.
MAKING = {
    "cli/shared.py": "a log, which is appended to",
    "store/database.py": "the file that SQLite opens",
}


def test_no_other_file_makes_files_by_itself() -> None:
    makes = re.compile(r"O_CREAT|mkstemp|NamedTemporaryFile")
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if makes.search(path.read_text("utf-8"))
    }
    assert found == {"filesystem.py", *MAKING}


def modes() -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path().iterdir()}


@pytest.mark.skipif(os.name != "posix", reason="other modes")
@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_private_from_its_first_byte_and_whole(
    monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """Whatever the umask, also while it is written; and on the disk where that was wanted."""
    seen: list[tuple[list[int], str]] = []
    synced: list[int] = []
    real, fsync = filesystem.os.fdopen, filesystem.os.fsync

    def opened(number, *args, **how):
        seen.append((list(modes().values()), Path("file").read_text("utf-8")))
        return real(number, *args, **how)

    Path("file").write_text("old")
    Path("file").chmod(0o600)
    monkeypatch.setattr(filesystem.os, "fdopen", opened)
    monkeypatch.setattr(filesystem.os, "fsync", lambda n: (synced.append(n), fsync(n)))
    before = os.umask(0)
    try:
        write_whole(Path("file"), "new\n", durable=durable)
    finally:
        os.umask(before)
    assert seen == [([0o600, 0o600], "old")]
    assert (modes(), Path("file").read_bytes()) == ({"file": 0o600}, b"new\n")
    assert len(synced) == (2 if durable else 0)


@pytest.mark.parametrize("write", [write_new, write_beside, write_whole])
def test_a_full_disk_leaves_no_part_of_a_file(write, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filesystem.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        write(Path("file"), "secret")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "file")
    assert list(Path().iterdir()) == []


def test_a_file_that_cannot_be_replaced_stays_and_nothing_beside_it() -> None:
    Path("file").mkdir()
    with pytest.raises(OSError, match="file"):
        write_whole(Path("file"), "new")
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_a_new_file_takes_no_place_of_another() -> None:
    Path("file").write_text("old")
    with pytest.raises(FileExistsError):
        write_new(Path("file"), "new")
    assert Path("file").read_text() == "old"
