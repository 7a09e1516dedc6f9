"""Which `./accounts.yaml` their owner has confirmed, by path and by a hash of the content.

Kept in the user's own place, readable by its owner only. A confirmation covers the file,
not what it refers to: neither the program of a `command:` nor a token's file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from account_pool.config.replace import make_private, sync, write_beside
from account_pool.config.search import Confirmed

FILE_NAME = "confirmed.json"


def confirmed(path: Path, store: Path) -> Confirmed:
    """Return whether *path* was confirmed as it is now. Blocks, raises nothing."""
    known = _read(store).get(str(path))
    if known is None:
        return Confirmed.NO
    try:
        return Confirmed.YES if known == _hash(path) else Confirmed.CHANGED
    except OSError:
        return Confirmed.CHANGED


def confirm(path: Path, store: Path) -> None:
    """Keep *path* (absolute) as it is now as confirmed. Raises OSError, CannotEdit."""
    make_private(store.parent)
    text = json.dumps({**_read(store), str(path): _hash(path)}, indent=2)
    write_beside(store, text + "\n", 0o600).replace(store)
    sync(store.parent)


@contextmanager
def kept(path: Path, store: Path) -> Iterator[None]:
    """Confirm *path* again after a change of our own, if it was confirmed before."""
    before = confirmed(path, store)
    yield
    if before is Confirmed.YES:
        confirm(path, store)


def _read(store: Path) -> dict[str, str]:
    """Return hashes by path; nothing where the file says nothing."""
    try:
        value = json.loads(store.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    pairs = value.items() if isinstance(value, dict) else ()
    return {path: known for path, known in pairs if isinstance(known, str)}


def _hash(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
