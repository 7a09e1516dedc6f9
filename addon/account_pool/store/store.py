"""A store as a whole, and the two there are.

A store has two halves, because they are used in two ways. The tokens of logins are asked
for by any thread and are safe on the disk when they are saved; only pools with such
logins need them. The state of the pool is written by one thread, in nobody's way. A store
over the network, for several machines, implements `Store` (docs/state.md says how).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from account_pool.store.clock import Clock
from account_pool.store.database import number_of, put_aside
from account_pool.store.memory import MemoryState, MemoryTokens
from account_pool.store.sqlite import SqliteTokens
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.state import StateStore
from account_pool.store.tokens import TokenStore


class Store(Protocol):
    """What `pool_state` names.

    Attributes:
        durable: it is there after the end of the process.
    """

    durable: bool

    def tokens(self) -> TokenStore:
        """Open the half that keeps logins. Raises StoreError."""
        ...

    def state(self) -> StateStore:
        """Open the half that keeps what the pool has learnt. Raises StoreError."""
        ...

    def put_aside(self) -> str | None:
        """Move what is damaged out of the way, so that `state` begins anew.

        Return where it is now; None: another proxy has done it. Raises StoreError when it
        has to stay.
        """
        ...


class SqliteStore:
    """A `Store` in one file."""

    durable = True

    def __init__(self, path: Path, *, clock: Clock | None = None) -> None:
        """Name *path*; nothing is opened. *clock* is for tests."""
        self._path = path
        self._clock = clock
        self._tokens: SqliteTokens | None = None
        self._number: int | None = None

    def tokens(self) -> TokenStore:
        self._tokens = SqliteTokens(self._path, clock=self._clock)
        return self._tokens

    def state(self) -> StateStore:
        if self._tokens is not None:
            # A file that was taken away is made anew with the newest logins in it.
            self._tokens.keep()
        # Known also when it cannot be opened.
        self._number = number_of(self._path)
        opened = SqliteState(self._path, clock=self._clock)
        self._number = number_of(self._path)
        return opened

    def put_aside(self) -> str | None:
        if number_of(self._path) != self._number:
            return None
        if self._tokens is not None:
            aside = self._tokens.put_aside()
            return None if aside is None else str(aside)
        return str(put_aside(self._path))


class MemoryStore:
    """A `Store` for `pool_state=memory:`. It is the same however often it is opened."""

    durable = False

    def __init__(self) -> None:
        self._tokens = MemoryTokens()
        self._state = MemoryState()

    def tokens(self) -> TokenStore:
        return self._tokens

    def state(self) -> StateStore:
        return self._state

    def put_aside(self) -> str | None:
        raise AssertionError("memory is not damaged")
