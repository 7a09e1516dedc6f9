"""Reads files whose paths somebody has named: such a path may lead to anything.

A pipe that nobody writes to and a terminal keep whoever reads them, and to open a device may do
something. So what is not a file is not opened, except for a pipe where one is expected, for as
long as somebody writes to it. A share that is gone keeps its reader in any case: what the proxy
reads is read in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

#: Opening a pipe that has no writer would block for ever; a terminal must not become ours.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
#: How long a pipe that nobody has opened yet is waited for, and one that was opened, seconds: as
#: long as for a command that prints a credential.
WRITER_S, PIPE_S = 2.0, 30.0
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a directory"),
)


class NotAFile(OSError):
    """The path leads to something that is read otherwise, or not at all; `strerror` says what."""


class TooLarge(OSError):
    """The file is larger than one that belongs there; `strerror` says so."""


def require_file(path: Path | str, *, pipe: bool = False) -> os.stat_result:
    """Return what the system says of the file *path*; *pipe*: it may be a pipe.

    Raises OSError: FileNotFoundError, or NotAFile where it is something else, or no path at all.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - also of a text
    except ValueError:
        raise NotAFile(errno.EINVAL, "it has a character that no name can have") from None
    _require(found, pipe=pipe)
    return found


@contextlib.contextmanager
def opened_file(path: Path | str, *, pipe: bool = False) -> Iterator[BufferedReader]:
    """Open the file *path* for reading. Raises OSError as `require_file` does."""
    require_file(path, pipe=pipe)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _FLAGS)) as file:
        _require(os.fstat(file.fileno()), pipe=pipe)
        yield file


def read_file(path: Path | str, max_bytes: int, *, pipe: bool = False) -> bytes:
    """Return what is in the file *path*. Raises OSError as `require_file` does, and TooLarge.

    *pipe*: it may be a pipe, which is read to its end; that takes up to PIPE_S.
    """
    with opened_file(path, pipe=pipe) as file:
        return read_opened(file, max_bytes)


def read_opened(file: BufferedReader, max_bytes: int) -> bytes:
    """Do the same with a *file* of `opened_file`."""
    found = os.fstat(file.fileno())
    if stat.S_ISFIFO(found.st_mode):
        content = _read_pipe(file.fileno(), max_bytes)
    else:
        content = b"" if found.st_size > max_bytes else file.read(max_bytes + 1)
    if max(found.st_size, len(content)) > max_bytes:
        raise TooLarge(errno.EFBIG, f"it is larger than {_size(max_bytes)}")
    return content


def _require(found: os.stat_result, *, pipe: bool) -> None:
    if not (stat.S_ISREG(found.st_mode) or (pipe and stat.S_ISFIFO(found.st_mode))):
        kind = next((name for is_it, name in _KINDS if is_it(found.st_mode)), "a device")
        raise NotAFile(errno.EINVAL, f"it is {kind}, not a file")


def _read_pipe(number: int, max_bytes: int) -> bytes:
    """Return what is written to a pipe until its writers have closed it, of *max_bytes* and more.

    Raises NotAFile where that takes too long.
    """
    content = bytearray()
    began_at = time.monotonic()
    looker = select.poll()
    looker.register(number, select.POLLIN)
    while len(content) <= max_bytes:
        has_writer = True
        try:
            if chunk := os.read(number, 64 * 1024):
                content += chunk
                continue
            has_writer = False
        except BlockingIOError:
            pass
        left_s = began_at + (PIPE_S if has_writer else WRITER_S) - time.monotonic()
        seen = looker.poll(max(left_s, 0.0) * 1000)
        if not seen:
            raise NotAFile(errno.ETIMEDOUT, "it is a pipe that nobody writes to")
        if not has_writer and all(event & select.POLLHUP for _, event in seen):
            break
    return bytes(content)


def _size(size: int) -> str:
    return f"{size // 1024**2} MiB" if size >= 1024**2 else f"{size // 1024} KiB"
