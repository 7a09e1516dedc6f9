"""Keeps what the pool has learnt, in the way of nobody's request.

A thread writes what has changed: what must not be lost at once, counts at most every
`WRITE_S` seconds; whoever kills the proxy takes what is younger. Every `LOOK_S` seconds it
looks for what other proxies on the same store have learnt. A store that fails is tried
again later: the proxy serves on from memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeVar

from mitmproxy.log import ALERT

from account_pool.core.account import AccountKey
from account_pool.core.decisions import By
from account_pool.core.snapshot import PoolSnapshot, forgiven, merge
from account_pool.core.usage_totals import Counted, add_to
from account_pool.proxy.opening import opened, out_of_use
from account_pool.proxy.service import Service
from account_pool.proxy.unwritten import Batch, Unwritten, Written
from account_pool.store.store import (
    BEAT_S,
    DamagedError,
    MovedError,
    News,
    OtherProxy,
    Row,
    StateStore,
    Store,
    StoreError,
)
from account_pool.supervision import tasks, where

logger = logging.getLogger(__name__)

#: Least time between two writes, seconds: what a killed proxy may have lost of counts,
#: and of what the next request would be refused or misled without.
WRITE_S = 0.2
PRESSING_S = 0.05
#: How often is looked what others have written, seconds.
LOOK_S = 1.0
#: How often is written when sessions were used last, seconds.
USED_S = 60.0
#: How often old rows are swept, seconds.
SWEEP_S = 3600.0
#: How long a store that failed is left alone at first, and at most, seconds.
PAUSE_S = 5.0
MAX_PAUSE_S = 60.0
#: How many damaged files are put aside by one proxy: a disk, or a mistake of ours, may
#: damage each new one.
MAX_ASIDES = 3
#: A wall clock that moved by more than this against the monotonic one was set, or the
#: machine slept: monotonic time stands still then, and the limits of a vendor do not.
CLOCK_STEP_S = 2.0
#: How long the start and the end of the proxy wait for a write, seconds.
STOP_TIMEOUT_S = 5.0

_IN_MEMORY = "cooldowns and sessions are kept in memory only"
_TOO_LONG = "the state database takes too long to write; check the disk"

Value = TypeVar("Value")


class Keeping:
    """Writes what a pool learns into a store, and takes over what others learn.

    Attributes:
        others: the other proxies on the store.
    """

    def __init__(self, source: Store, service: Service) -> None:
        self.others: Collection[OtherProxy] = ()
        self._source = source
        #: None while it cannot be opened
        self._store: StateStore | None = None
        self._service = service
        self._pool = service.pool
        self._now = now = service.now
        #: what the wall clock is ahead of the monotonic one: measured once, so that a
        #: deadline is the same instant each time it is written
        self._clock: Callable[[], float] = service.wall_now
        self._ahead = self._clock() - now()
        self._to_read: set[AccountKey] = set()
        self._dirty = asyncio.Event()
        self._pressing = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="account-pool-store")
        #: what is being written, and the answer of the store
        self._work: tuple[Batch, Future[Written]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._said = ""
        #: what was said not to fit into the store
        self._unfit: set[tuple[str, str]] = set()
        self._asides = 0
        self._stopped = False
        #: who waits for what is known to be written
        self._to_tell: list[asyncio.Future[None]] = []
        self._used_at = now() + USED_S
        self._sweep_at = self._beat_at = now()
        self._unwritten = Unwritten(service, self._wall, self._changed, self._urgent)

    @property
    def problem(self) -> str | None:
        """Why what is learnt, or a part of it, is kept in memory only; None where it is not."""
        if self._said or not self._unfit:
            return self._said or None
        return f"cannot be written: something of {', '.join(sorted({w for w, _ in self._unfit}))}"

    # -- the life of it

    def restore(self) -> None:
        """Put pool, sessions and pins into the state the store has kept, if it can be used."""
        try:
            try:
                self._restore()
            except DamagedError as e:
                self._put_aside(e)
                self._restore()
        except StoreError as e:
            self._say(e)
        except Exception as e:
            # A mistake of ours: the proxy serves all the same.
            self._say(StoreError(f"the state cannot be restored: {where(e)}"))

    def _restore(self) -> None:
        self._meet(*opened(self._source, self._wall()))
        self._begin()
        self._finish(at_start=True)

    def start(self) -> None:
        """Begin to write. Needs a running event loop."""
        self._task = tasks.supervised("keeping the state", self._run)

    def stop(self, by: float = math.inf) -> None:
        """Write what is left, and close the store. Waits for the disk; once.

        Until *by*, monotonic seconds, at most; each write for `STOP_TIMEOUT_S` at most.
        """
        if self._stopped:
            return
        self._stopped = True
        self._unwritten.unsubscribe()
        if self._task is not None:
            self._task.cancel()
        try:
            self._finish(by=by)
            self._unwritten.note_used()
            # Counts that come again go alone.
            for _ in range(2):
                self._begin()
                self._finish(by=by)
        except StoreError as e:
            self._say(e)
        except Exception as e:
            self._say(StoreError(f"the state cannot be written: {where(e)}"))
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._store is not None:
            self._store.close()

    async def write(self) -> None:
        """Have all that is known now written, and return then; waits as `stop` does."""
        if self._task is None or self._task.done():
            return
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._to_tell.append(written)
        self._unwritten.note_used()
        self._urgent()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(written, STOP_TIMEOUT_S)

    async def read_counts(self, name: str) -> Counted:
        """Return the sums of *name*: of all proxies, and what is not written yet."""
        store, waiting = self._store, self._service.counters[name].waiting
        waiting = {key: dict(amounts) for key, amounts in waiting.items()}
        # Its thread does one thing after the other: what is being written is in the answer.
        if self._work is None:
            add_to(waiting, self._unwritten.uncertain(name))
        sums = await self._in_thread(lambda: store.read_counts(name)) if store else {}
        add_to(sums, waiting)
        return sums

    def _changed(self) -> None:
        self._dirty.set()
        if self._pool.urgent:
            self._pressing.set()

    def _urgent(self) -> None:
        self._dirty.set()
        self._pressing.set()

    # -- while it runs

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._dirty.wait(), LOOK_S)
            self._dirty.clear()
            self._mind_the_clock()
            waiting, self._to_tell = self._to_tell, []
            try:
                await self._round()
            except StoreError as e:
                await self._failed(e)
            except Exception:
                self._forget_store()  # what was read and not taken over is read again
                raise
            for written in waiting:
                if not written.done():
                    written.set_result(None)
            await self._pause()

    async def _pause(self) -> None:
        if self._failures:
            await asyncio.sleep(min(PAUSE_S * 2 ** (self._failures - 1), MAX_PAUSE_S))
            return
        await asyncio.sleep(PRESSING_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._pressing.wait(), WRITE_S - PRESSING_S)

    async def _round(self) -> None:
        """Read and write once. Raises StoreError."""
        wall = self._wall()
        if self._store is None:
            self._meet(*await self._in_thread(lambda: opened(self._source, wall)))
        store = self._store
        assert store is not None
        await self._by_the_clock(store, self._now(), wall)
        self._heed(await self._in_thread(lambda: store.changed(wall_now=wall)))
        self._begin()
        if self._work is not None:
            # What is wrong is for `_finish` to say.
            with contextlib.suppress(Exception):
                await asyncio.wrap_future(self._work[1])
        self._finish()
        if self._failures:
            self._failures, self._said = 0, ""
            logger.log(ALERT, "account-pool: the state database can be written again")

    async def _by_the_clock(self, store: StateStore, now: float, wall: float) -> None:
        """Do what is due. Raises StoreError."""
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            present = [state.key for state in self._pool.accounts()]
            await self._in_thread(lambda: store.sweep(present, wall_now=wall))
        if now >= self._used_at:
            self._used_at = now + USED_S
            self._unwritten.note_used()
        if now >= self._beat_at:
            self._beat_at = now + BEAT_S
            in_flight = self._unwritten.in_flight()
            await self._in_thread(lambda: store.beat(in_flight, wall_now=wall))

    def _meet(self, store: StateStore, books: Mapping[str, list[Row]]) -> None:
        """Begin with *store*: take over its books, and have all that we know written."""
        self._store = store
        if store.now() is not None:
            # Nobody can set it, and it is the same for all: ours is not asked any more.
            self._clock = lambda: store.now() or 0.0
            self._ahead = self._clock() - self._now()
        self._beat_at = self._now()
        self._unwritten.meet(books)

    def _heed(self, news: News) -> None:
        """Take over what others have done, but for accounts: those are exchanged."""
        self._to_read.update(news.accounts)
        for name, rows in news.lines.items():
            if name in self._unwritten.books:
                self._unwritten.books[name].adopt(rows)
        for name, gone in news.gone.items():
            if name in self._unwritten.books:
                self._unwritten.books[name].drop(gone)
        if news.in_flight_remote is not None:
            self._pool.set_in_flight_remote(news.in_flight_remote, now=self._now())
        if news.proxies is not None:
            if not self.others and news.proxies:
                self._beat_at = self._now()  # they do not know of us
            self.others = news.proxies

    async def _in_thread(self, ask: Callable[[], Value]) -> Value:
        return await asyncio.wrap_future(self._thread.submit(ask))

    def _begin(self) -> None:
        """Hand what has changed to the thread, if anything has."""
        store = self._store
        if store is None:
            return
        batch = self._unwritten.take(self._to_read, tell=bool(self.others))
        if batch is None:
            return
        self._to_read.clear()
        self._pressing.clear()
        self._work = batch, self._thread.submit(batch.write, store)

    def _finish(self, *, at_start: bool = False, by: float = math.inf) -> None:
        """Take over what the store answered, or keep in mind what is still to be written.

        Raises StoreError.
        """
        if self._work is None:
            return
        (batch, answer), self._work = self._work, None
        try:
            written = answer.result(max(0.0, min(STOP_TIMEOUT_S, by - self._now())))
        except (StoreError, CancelledError) as e:
            self._unwritten.put_back(batch)
            self._beat_at = self._now()  # others are told all of it
            if isinstance(e, StoreError):
                raise
            return
        except TimeoutError:
            # It may be written yet.
            self._unwritten.put_back(batch)
            raise StoreError(_TOO_LONG) from None
        except Exception:
            self._unwritten.put_back(batch)
            raise
        saved = written.saved
        self._say_unfit(written.unfit)
        self._unwritten.wrote(batch, saved.replaced)
        if at_start:
            self._adopt(batch.mine, forgiven(saved, self._wall()), By.RESTART)
        else:
            self._adopt(batch.mine, saved, By.PROXY)

    def _adopt(self, mine: PoolSnapshot, saved: PoolSnapshot, by: By) -> None:
        """Let the pool know what others have learnt; what it has learnt meanwhile stays."""
        before = {account.key: account for account in mine.accounts}
        news = {a.key: a for a in saved.accounts if a != before[a.key]}
        if not news:
            return
        wall = self._wall()
        present = self._pool.snapshot(news, now=self._now(), wall_now=wall)
        merged = tuple(merge(before[a.key], a, news[a.key]) for a in present.accounts)
        merged_at = PoolSnapshot(accounts=merged, wall_at=saved.wall_at)
        self._pool.restore(merged_at, now=self._now(), wall_now=wall, by=by)

    def _mind_the_clock(self) -> None:
        """Let deadlines be where they were on the wall clock after the machine has slept."""
        ahead = self._clock() - self._now()
        if abs(ahead - self._ahead) < CLOCK_STEP_S:
            return
        now = self._now()
        saved = self._pool.snapshot(now=now, wall_now=now + self._ahead)
        self._ahead = ahead
        self._pool.restore(saved, now=now, wall_now=now + ahead, by=By.CLOCK)

    def _wall(self) -> float:
        return self._now() + self._ahead

    # -- when it cannot be kept

    async def _failed(self, error: StoreError) -> None:
        # Nobody knows any more what others do.
        self._pool.set_in_flight_remote({}, now=self._now())
        if isinstance(error, DamagedError):
            try:
                await self._in_thread(lambda: self._put_aside(error))
            except StoreError as e:
                self._say(e)
        elif isinstance(error, MovedError):
            # No reason to wait: whoever restarts us now must find what we know.
            self._forget_store()
            logger.warning("account-pool: %s", error)
        else:
            self._say(error)

    def _put_aside(self, error: DamagedError) -> None:
        """Have the next store begin empty. Raises StoreError."""
        self._forget_store()
        if self._asides == MAX_ASIDES:
            raise error
        self._asides += 1
        where = self._source.put_aside()
        kept = f"it was kept as {where}" if where else "another proxy moved it aside"
        logger.log(ALERT, f"account-pool: {error.wrong}: {kept}, and a new one was created")

    def _forget_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _say_unfit(self, unfit: Mapping[str, str]) -> None:
        """Tell once of each kind what is not kept: it would be the same with the next."""
        for what, wrong in unfit.items():
            if (what, wrong) not in self._unfit:
                self._unfit.add((what, wrong))
                logger.warning(
                    f"account-pool: of {what} something cannot be written ({wrong}) and is kept in "
                    "memory only; all else is written"
                )

    def _say(self, error: StoreError) -> None:
        """Tell it once: the same is tried again and again."""
        self._failures += 1
        if str(error) != self._said:
            self._said = str(error)
            logger.warning("account-pool: %s", error)
            logger.log(ALERT, f"account-pool: {_IN_MEMORY} until it can be written again")


def begin(source: Store, service: Service) -> Keeping:
    """Restore *service* from *source* and return what keeps it there.

    A source that cannot be used is no reason not to serve: the log says so, and it is
    tried again.
    """
    keeping = Keeping(source, service)
    keeping.restore()
    for line in out_of_use(service.pool.accounts()):
        logger.log(ALERT, f"account-pool: {line}")
    return keeping
