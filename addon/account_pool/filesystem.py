"""Paths as users write them, files that they name, and files of ours.

What is named may lead to anything. A pipe that nobody writes to and a terminal keep whoever reads
them, and to open a device may do something. So what is not a file is not opened, except for a
pipe where one is expected, for as long as somebody writes to it. A share that is gone keeps its
reader in any case: what the proxy reads is read in a thread.

What is written is written to a new file beside, for its owner only, and takes the place of what
was there once it is whole: nobody reads a part, and a full disk leaves none.
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


# -- paths with a `~` or `~name` in front


def expanded(path: Path | str) -> Path:
    """Return *path* as mitmproxy and shells read it: a `~` that has no meaning stays."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of Path raises RuntimeError


def printable(path: Path | str) -> str:
    """Return *path* on one line: a folder of a stranger may have any characters in its name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def is_file(path: Path | str) -> bool:
    """Say whether *path* is a file. `Path.is_file` raises where its folder may not be read."""
    return os.path.isfile(path)  # noqa: PTH113


def reason_of(error: Exception) -> str:
    """Return in a few words why the system does not take a path or a command.

    A ValueError: it is none, with a null character or half a character in it.
    """
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    return "it has a character that no name can have"


def named_path(path: Path | str) -> Path:
    """Return *path*, which a user has named. Raises OSError where its `~` has no meaning.

    Else a folder called `~name` could be made in the working directory.
    """
    found = expanded(path)
    if found.parts[:1] and found.parts[0].startswith("~"):
        raise FileNotFoundError(errno.ENOENT, "there is no such home directory", str(path))
    return found


# -- files that somebody has named


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
    except ValueError as error:
        raise NotAFile(errno.EINVAL, reason_of(error)) from None
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


# -- files of ours


def write_new(
    path: Path,
    content: str | bytes,
    *,
    mode: int = 0o600,
    durable: bool = True,
    shown: Path | None = None,
) -> Path:
    """Write the new file *path*, and return it. Raises OSError, about *shown*; none is left then.

    *mode* is who may read it from its first byte on, less what the umask takes; *durable*: it is
    on the disk when this returns.
    """
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                if durable:
                    os.fsync(number)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(shown or path)) from None
    return path


def write_beside(
    path: Path, content: str | bytes, *, mode: int = 0o600, durable: bool = True
) -> Path:
    """Write a new file in the folder of *path* as `write_new` does, and return it."""
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    return write_new(beside, content, mode=mode, durable=durable, shown=path)


def write_whole(
    path: Path, content: str | bytes, *, mode: int = 0o600, durable: bool = True
) -> None:
    """Write *path* so that a reader sees the old text or the new one. Raises OSError."""
    new = write_beside(path, content, mode=mode, durable=durable)
    try:
        new.replace(path)
        if durable:
            sync(path.parent)
    except OSError as error:
        # The user knows the file, not the one beside it.
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        new.unlink(missing_ok=True)


def sync(directory: Path) -> None:
    """Make a new name in *directory* durable, where the system can. Raises OSError."""
    try:
        number = os.open(directory, os.O_RDONLY)
    except PermissionError:  # Windows opens none; one may be written and not read
        return
    try:
        os.fsync(number)
    finally:
        os.close(number)


def make_private(directory: Path) -> None:
    """Make *directory* where it is not there, it and what is above it for its owner only.

    Raises OSError.
    """
    if not directory.exists():
        make_private(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
