"""Opens a store: for the first time, and after it could not be used."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from account_pool.core.state import AccountState
from account_pool.proxy.unwritten import BOOKS
from account_pool.store.store import OtherProxy, Row, StateStore, Store, StoreError


def opened(source: Store, wall: float) -> tuple[StateStore, dict[str, list[Row]]]:
    """Open *source*, and read what is kept beside the accounts. Blocks. Raises StoreError.

    What dead proxies have left is taken away, where it is known that they are dead.
    """
    store = source.state()
    try:
        # What there is before is not news.
        news = store.changed(wall_now=store.now() or wall)
        if dead := [other.id for other in news.proxies or () if _is_dead(other)]:
            store.reap(dead)
        books = {name: store.read_table(name) for name in BOOKS}
    except StoreError:
        store.close()
        raise
    return store, books


def _is_dead(other: OtherProxy) -> bool:
    """Say whether the process of *other* is gone. Elsewhere than here nobody knows."""
    if os.name != "posix" or other.host != socket.gethostname():
        return False
    try:
        os.kill(other.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def out_of_use(states: Iterable[AccountState]) -> list[str]:
    """Say which accounts begin disabled, and how to use them again."""
    return [
        f"{state.key} has been disabled since an earlier run: {state.disabled.signal}; "
        f"pool.clear {state.key} enables it"
        for state in states
        if state.disabled is not None
    ]
