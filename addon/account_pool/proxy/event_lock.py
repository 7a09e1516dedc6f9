"""No event of a connection is lost because the wait to deliver it was cancelled.

mitmproxy hands one event at a time to the layers of a client, under a lock. Where hooks
run as eager tasks (Python 3.12 and later) whoever reads a connection may have to wait for
it, with the news in hand that the peer has gone. When a write to the same peer fails
meanwhile, mitmproxy cancels the reader: the news is lost, and requests on the connection
wait for ever. Here that wait outlasts a cancellation, which takes effect right after it,
where mitmproxy expects one. Stands on a private part of mitmproxy; where that is not as
it was known, `proxy.sweep` finds such requests a little later.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Literal

logger = logging.getLogger(__name__)

_NAME = "_server_event_lock"


class EventLock(asyncio.Lock):
    """A lock whose holder is cancelled after it has let go, and not while it waits."""

    def __init__(self) -> None:
        super().__init__()
        self._owed: asyncio.CancelledError | None = None

    async def acquire(self) -> Literal[True]:
        owed = None
        while True:
            try:
                await super().acquire()
            except asyncio.CancelledError as cancelled:
                owed = cancelled
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
            else:
                break
        self._owed = owed
        return True

    def release(self) -> None:
        owed, self._owed = self._owed, None
        super().release()
        if owed is not None and (task := asyncio.current_task()) is not None:
            task.cancel(*owed.args)


def put_into(handler: object) -> bool:
    """Give *handler*, of one client, a lock of ours before it handles its first event.

    Returns whether that is done; where mitmproxy has no such lock, nothing is changed.
    """
    lock = getattr(handler, _NAME, None)
    if type(lock) is not asyncio.Lock or lock.locked():
        return False
    setattr(handler, _NAME, EventLock())
    return True
