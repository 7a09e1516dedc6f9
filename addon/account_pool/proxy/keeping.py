"""Keeps what the pool has learnt, in the way of nobody's request.

A thread writes what has changed, at most every `WRITE_S` seconds and at once after a
pause; whoever kills the proxy takes what is younger. Every `LOOK_S` seconds it looks for
what other proxies on the same store have learnt. A store that fails is tried again later:
the proxy serves on from memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mitmproxy.log import ALERT

from account_pool.core.account import AccountKey
from account_pool.core.affinity import Sessions
from account_pool.core.pins import Pins
from account_pool.core.saved import Saved, forgiven, merge
from account_pool.core.state import AccountState
from account_pool.proxy.service import Service
from account_pool.store.errors import StoreError
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.state import Row, StateStore

logger = logging.getLogger(__name__)

#: Least time between two writes, seconds: what a killed proxy may have lost.
WRITE_S = 0.2
#: How often is looked what others have written, seconds.
LOOK_S = 1.0
#: How often is written when sessions were used last, seconds.
USED_S = 60.0
#: How often old rows are swept, seconds.
SWEEP_S = 3600.0
#: How long a store that failed is left alone, seconds.
PAUSE_S = 5.0
#: A wall clock that moved by more than this against the monotonic one was set, or the
#: machine slept: monotonic time stands still then, and the limits of a vendor do not.
CLOCK_STEP_S = 2.0
#: How long the end of the proxy waits for a write under way, seconds.
STOP_TIMEOUT_S = 5.0
#: A line of a book is written again when it was used so much later, seconds.
_BOOK_STEP_S = 1.0

_IN_MEMORY = "cooldowns and sessions are kept in memory only"
_TOO_LONG = "the state database takes too long to write; look at the disk"

Value = TypeVar("Value")


@dataclass(slots=True, eq=False)
class _Book:
    """What is kept beside the accounts: lines by key.

    Attributes:
        row: one line of it, None when it is gone.
        rows: all of them.
        changed: keys of the lines to be written.
        written: lines as they were written last.
    """

    row: Callable[[str], Row | None]
    rows: Callable[[], list[Row]]
    changed: set[str] = field(default_factory=set)
    written: dict[str, Row] = field(default_factory=dict)

    def note_used(self) -> None:
        """Have the lines written that were used since, which nobody tells us."""
        for key, account, used_at in self.rows():
            known = self.written.get(key)
            if known is None or known[1] != account or used_at - known[2] > _BOOK_STEP_S:
                self.changed.add(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What is being written.

    Attributes:
        mine: accounts as they were.
        gone: accounts that are no longer here.
        lines: by book and key; None for one that is gone.
        saved: the answer of the store.
    """

    mine: Saved
    gone: tuple[AccountKey, ...]
    lines: Mapping[str, Mapping[str, Row | None]]
    saved: Future[Saved]


class Keeping:
    """Writes what a pool learns into a store, and takes over what others learn."""

    def __init__(self, store: StateStore, service: Service) -> None:
        self._store = store
        self._service = service
        self._pool = service.pool
        self._now = now = service.now
        #: what the wall clock is ahead of the monotonic one: measured once, so that a
        #: deadline is the same instant each time it is written
        self._ahead = service.wall_now() - now()
        self._books: dict[str, _Book] = {}
        self._to_read: set[AccountKey] = set()
        self._dirty = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="account-pool-store")
        self._work: _Work | None = None
        self._task: asyncio.Task[None] | None = None
        self._failed = False
        self._stopped = False
        self._used_at = now() + USED_S
        self._sweep_at = now()
        self._unsubscribe = self._pool.subscribe(self._dirty.set)

    # -- the life of it

    def restore(self) -> None:
        """Put pool, sessions and pins into the state the store has kept. Raises StoreError."""
        wall = self._wall()
        self._store.changed()
        self._keep_sessions(self._service.sessions)
        self._keep_pins(self._service.pins)
        mine = self._pool.snapshot(now=self._now(), wall_now=wall)
        saved = self._store.exchange(mine.accounts, (), wall_now=wall)
        self._pool.restore(forgiven(saved, wall), now=self._now(), wall_now=wall)

    def start(self) -> None:
        """Begin to write. Needs a running event loop."""
        self._task = asyncio.create_task(self._run(), name="account-pool keeps its state")

    def stop(self) -> None:
        """Write what is left, and close the store. Waits for the disk; once."""
        if self._stopped:
            return
        self._stopped = True
        self._unsubscribe()
        if self._task is not None:
            self._task.cancel()
        if self._work is not None:
            self._finish()
        for book in self._books.values():
            book.note_used()
        self._begin()
        if self._work is not None:
            self._finish()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._store.close()

    def _keep_sessions(self, sessions: Sessions) -> None:
        sessions.restore(self._store.read_book("sessions"), self._now(), self._wall())
        sessions.changed = self._keep(
            "sessions",
            _Book(
                lambda key: sessions.row(key, self._now(), self._wall()),
                lambda: sessions.snapshot(self._now(), self._wall()),
            ),
        )

    def _keep_pins(self, pins: Pins) -> None:
        pins.restore(self._store.read_book("pins"))
        pins.changed = self._keep("pins", _Book(pins.row, pins.snapshot))

    def _keep(self, name: str, book: _Book) -> Callable[[str], None]:
        """Keep *book*; return what is to be told the keys of its changes."""
        book.written = {row[0]: row for row in book.rows()}
        self._books[name] = book

        def changed(key: str) -> None:
            book.changed.add(key)
            self._dirty.set()

        return changed

    # -- while it runs

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._dirty.wait(), LOOK_S)
            self._dirty.clear()
            self._mind_the_clock()
            try:
                await self._round()
            except StoreError as e:
                self._say(e)
            await asyncio.sleep(PAUSE_S if self._failed else WRITE_S)

    async def _round(self) -> None:
        """Read and write once. Raises StoreError."""
        now = self._now()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            present, wall = [state.key for state in self._pool.accounts()], self._wall()
            await self._in_thread(lambda: self._store.sweep(present, wall_now=wall))
        if now >= self._used_at:
            self._used_at = now + USED_S
            for book in self._books.values():
                book.note_used()
        self._to_read.update(await self._in_thread(self._store.changed))
        self._begin()
        if self._work is not None:
            with contextlib.suppress(StoreError):
                await asyncio.wrap_future(self._work.saved)
            self._finish()

    async def _in_thread(self, ask: Callable[[], Value]) -> Value:
        return await asyncio.wrap_future(self._thread.submit(ask))

    def _begin(self) -> None:
        """Hand what has changed to the thread, if anything has."""
        pool, wall = self._pool, self._wall()
        touched = frozenset(pool.touched)
        keys = touched | self._to_read
        lines = {
            name: {key: book.row(key) for key in book.changed}
            for name, book in self._books.items()
            if book.changed
        }
        if not keys and not lines:
            return
        pool.touched.clear()
        self._to_read.clear()
        for book in self._books.values():
            book.changed.clear()
        mine = pool.snapshot(keys, now=self._now(), wall_now=wall)
        # Not those that only others have: what they keep is theirs.
        gone = tuple(touched.difference(account.key for account in mine.accounts))

        def write() -> Saved:
            for name, of_book in lines.items():
                rows = [row for row in of_book.values() if row is not None]
                self._store.write_book(name, rows, [k for k, r in of_book.items() if r is None])
            return self._store.exchange(mine.accounts, gone, wall_now=wall)

        saved = self._thread.submit(write)
        self._work = _Work(mine=mine, gone=gone, lines=lines, saved=saved)

    def _finish(self) -> None:
        """Take over what the store answered, or keep in mind what is still to be written."""
        work, self._work = self._work, None
        assert work is not None
        try:
            saved = work.saved.result(STOP_TIMEOUT_S)
        except (StoreError, TimeoutError, CancelledError) as e:
            self._pool.touched.update(work.gone, (account.key for account in work.mine.accounts))
            for name, of_book in work.lines.items():
                self._books[name].changed.update(of_book)
            if not isinstance(e, CancelledError):
                self._say(e if isinstance(e, StoreError) else StoreError(_TOO_LONG))
            return
        for name, of_book in work.lines.items():
            _note_written(self._books[name], of_book)
        self._adopt(work.mine, saved)
        if self._failed:
            self._failed = False
            logger.log(ALERT, "account-pool: the state is kept again")

    def _adopt(self, mine: Saved, saved: Saved) -> None:
        """Let the pool know what others have learnt; what it has learnt meanwhile stays."""
        before = {account.key: account for account in mine.accounts}
        news = {a.key: a for a in saved.accounts if a != before[a.key]}
        if not news:
            return
        wall = self._wall()
        present = self._pool.snapshot(news, now=self._now(), wall_now=wall)
        merged = tuple(merge(before[a.key], a, news[a.key]) for a in present.accounts)
        self._pool.restore(
            Saved(accounts=merged, wall_at=saved.wall_at), now=self._now(), wall_now=wall
        )

    def _mind_the_clock(self) -> None:
        """Let deadlines be where they were on the wall clock after the machine has slept."""
        ahead = self._service.wall_now() - self._now()
        if abs(ahead - self._ahead) < CLOCK_STEP_S:
            return
        now = self._now()
        saved = self._pool.snapshot(now=now, wall_now=now + self._ahead)
        self._ahead = ahead
        self._pool.restore(saved, now=now, wall_now=now + ahead)

    def _wall(self) -> float:
        return self._now() + self._ahead

    def _say(self, error: StoreError) -> None:
        """Tell it once: the same is tried again every few seconds."""
        if not self._failed:
            logger.warning("account-pool: %s", error)
            logger.log(ALERT, f"account-pool: {_IN_MEMORY} until it can be written again")
        self._failed = True


def begin(path: Path, service: Service) -> Keeping | None:
    """Restore *service* from the database *path* and return what keeps it there.

    None, and a line in the log, when that file cannot be used: no reason not to serve.
    """
    store = None
    try:
        store = SqliteState(path)
        keeping = Keeping(store, service)
        keeping.restore()
    except StoreError as e:
        if store is not None:
            store.close()
        logger.log(ALERT, f"account-pool: {e}. Until then {_IN_MEMORY}")
        return None
    for line in _restored(service.pool.accounts()):
        logger.log(ALERT, f"account-pool: {line}")
    return keeping


def _restored(states: Iterable[AccountState]) -> list[str]:
    """Say which accounts begin out of use, and how to use them again."""
    return [
        f"{state.key} is disabled since an earlier run: {state.disabled.signal}; "
        f"pool.clear {state.key} uses it again"
        for state in states
        if state.disabled is not None
    ]


def _note_written(book: _Book, lines: Mapping[str, Row | None]) -> None:
    for key, row in lines.items():
        if row is None:
            book.written.pop(key, None)
        else:
            book.written[key] = row
