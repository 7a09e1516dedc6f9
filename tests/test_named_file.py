"""What is read where somebody named a path, and what is left alone."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from account_pool import named_file
from account_pool.named_file import NotAFile, TooLarge, read_file, require_file

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(named_file, "WRITER_S", 0.0)


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


@pytest.mark.parametrize("pipe", [False, True])
def test_what_is_not_a_file_is_not_opened(monkeypatch: pytest.MonkeyPatch, pipe: bool) -> None:
    def opened(*_: object) -> int:
        pytest.fail("it was opened")

    monkeypatch.setattr(named_file.os, "open", opened)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    for path, kind in (("socket", "a socket"), (".", "a directory"), (os.devnull, "a device")):
        with pytest.raises(NotAFile, match=f"it is {kind}, not a file"):
            read_file(path, 5, pipe=pipe)
    for path in ("a\0b", "a\ud800"):
        with pytest.raises(NotAFile, match="it has a character that no name can have"):
            require_file(path)


def test_a_pipe_is_not_waited_for_unless_it_may_be_one() -> None:
    os.mkfifo("pipe")
    with pytest.raises(NotAFile, match="it is a pipe, not a file"):
        read_file("pipe", 5)
    with pytest.raises(NotAFile, match="it is a pipe that nobody writes to"):
        read_file("pipe", 5, pipe=True)


def test_a_pipe_whose_writer_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_file, "PIPE_S", 0.0)
    os.mkfifo("pipe")
    both = os.open("pipe", os.O_RDWR)
    with pytest.raises(NotAFile, match="it is a pipe that nobody writes to"):
        read_file("pipe", 5, pipe=True)
    os.close(both)


def test_a_pipe_is_read_until_its_writers_have_closed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_file, "WRITER_S", 60.0)
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(b"x" * 200_000))
    writer.start()
    assert len(read_file("pipe", 1024 * 1024, pipe=True)) == 200_000
    writer.join()


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
