"""Keeps the addon over a reload of pool.py, with all it knows and all that is under way.

mitmproxy watches pool.py and runs it anew when it was written: it ends the addons it had
(`done`), asks the file for others and starts those, all before anything else happens. So
an addon that ends waits for a moment whether it is wanted again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mitmproxy import ctx

if TYPE_CHECKING:
    from mitmproxy.master import Master

Addon = TypeVar("Addon")

#: Whoever waits: the addon, whose it was, and how it ends.
_waiting: list[tuple[object, Master, Callable[[], None]]] = []


def leave(addon: object, end: Callable[[], None]) -> None:
    """*addon* was dropped: call *end*, unless `taken_up` asks for it before."""
    if ctx.master.should_exit.is_set():
        end()
        return
    left = (addon, ctx.master, end)
    _waiting.append(left)
    asyncio.get_running_loop().call_soon(_end, left)


def taken_up(kind: type[Addon]) -> Addon | None:
    """Return the addon of *kind* that waits, which goes on then; None if there is none."""
    for left in _waiting:
        addon, master, _ = left
        if master is ctx.master and isinstance(addon, kind):
            _waiting.remove(left)
            return addon
    return None


def _end(left: tuple[object, Master, Callable[[], None]]) -> None:
    if left in _waiting:
        _waiting.remove(left)
        left[2]()
