"""When no garbage is collected: while much is made that stays."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

#: So many objects that were made at once are worth to be spared: 1,000 accounts have them.
MANY_OBJECTS = 20_000


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage while many objects are made that stay, nor among them later.

    A collection stops everything: with 10,000 accounts for 100 ms, several times while they
    are read, and again and again later.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_count()[0] > MANY_OBJECTS:
            gc.freeze()
        if collects:
            gc.enable()
