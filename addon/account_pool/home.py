"""Paths with a `~` or `~name` in front, as users write them."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def expanded(path: Path | str) -> Path:
    """Return *path* as mitmproxy and shells read it: a `~` that has no meaning stays."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of Path raises RuntimeError


def printable(path: Path | str) -> str:
    """Return *path* on one line: a folder of a stranger may have any characters in its name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def named_path(path: Path | str) -> Path:
    """Return *path*, which a user has named. Raises OSError where its `~` has no meaning.

    Else a folder called `~name` could be made in the working directory.
    """
    found = expanded(path)
    if found.parts[:1] and found.parts[0].startswith("~"):
        raise FileNotFoundError(errno.ENOENT, "there is no such home directory", str(path))
    return found
