"""Puts a new file in the place of one, so that a crash leaves the old or the new one whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


class CannotEdit(Exception):
    """The file cannot be changed; the text says why and what to do."""


def write_beside(path: Path, text: str, mode: int) -> Path:
    """Write *text* to a new file in the same directory, on the disk when this returns."""
    try:
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(number, "w", encoding="utf-8", newline="") as file:
            # Never readable by others, not even for a moment.
            Path(name).chmod(mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CannotEdit(f"cannot write in {path.parent} ({error.strerror})") from None
    return Path(name)


def back_up(path: Path) -> Path | None:
    """Copy *path* to its name with .bak, for its owner's eyes only; None if it is not there."""
    if not path.exists():
        return None
    backup = path.with_name(path.name + ".bak")
    backup.unlink(missing_ok=True)
    backup.touch(mode=0o600)
    shutil.copyfile(path, backup)
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
