"""Puts a new file in the place of one, so that a crash leaves the old or the new one whole."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from account_pool.named_file import opened_file


class CannotEdit(Exception):
    """The file cannot be changed; the text says why and what to do."""


def write_beside(path: Path, text: str, mode: int) -> Path:
    """Write *text* to a new file in the same directory, on the disk when this returns."""
    new = None
    try:
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        new = Path(name)
        with os.fdopen(number, "w", encoding="utf-8", newline="") as file:
            # Never readable by others, not even for a moment.
            new.chmod(mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if new is not None:
            new.unlink(missing_ok=True)
        raise CannotEdit(f"cannot write in {path.parent} ({error.strerror})") from None
    return new


def put_in_place(new: Path, path: Path) -> Path | None:
    """Let *new* take the place of *path*; return the copy that is kept of the old file.

    Raises CannotEdit.
    """
    try:
        backup = back_up(path)
        new.replace(path)
        sync(path.parent)
    except OSError as error:
        # A file that is a mount point of its own, as in a container, cannot be replaced.
        busy = "; mount its directory, not the file" if error.errno == errno.EBUSY else ""
        raise CannotEdit(f"{path} cannot be replaced ({error.strerror}){busy}") from None
    return backup


def back_up(path: Path) -> Path | None:
    """Copy *path* to its name with .bak, for its owner's eyes only; None if it is not there."""
    if not path.exists():
        return None
    backup = path.with_name(path.name + ".bak")
    # It may be a pipe by now.
    with opened_file(path) as file:
        backup.unlink(missing_ok=True)
        backup.touch(mode=0o600)
        with backup.open("wb") as copy:
            shutil.copyfileobj(file, copy)
    return backup


def sync(directory: Path) -> None:
    """Make the new name durable. Not every system can (Windows)."""
    try:
        number = os.open(directory, os.O_RDONLY)
    except OSError:
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
