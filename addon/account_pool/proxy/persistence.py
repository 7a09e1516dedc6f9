"""Keeps what the pool has learnt in the store, without delaying a request.

A thread writes what has changed: what must not be lost at once, counts at most every
`WRITE_S` seconds; a killed proxy loses what is younger. Every `LOOK_S` seconds it reads what
other proxies on the same store have learnt. A store that fails is tried again later: the
proxy serves on from memory. What is written is in `pending_writes`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

from mitmproxy.log import ALERT

from account_pool.core import snapshot
from account_pool.core.account import AccountKey
from account_pool.core.decisions import By
from account_pool.core.shares import Ask, Shares
from account_pool.core.snapshot import PoolSnapshot, forgiven, merge
from account_pool.core.usage_totals import Counted, add_to
from account_pool.proxy.pending_writes import TABLES, Batch, PendingWrites
from account_pool.proxy.service import Service
from account_pool.store.machine import is_gone
from account_pool.store.store import (
    BEAT_S,
    DamagedError,
    MovedError,
    News,
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
URGENT_S = 0.05
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


def begin(source: Store, service: Service) -> Persistence:
    """Restore *service* from *source* and return what keeps it there.

    A source that cannot be used is no reason not to serve: the log says so, and it is
    tried again.
    """
    persistence = Persistence(source, service)
    persistence.restore()
    for state in service.pool.accounts:
        if state.disabled is not None:
            logger.log(
                ALERT,
                f"account-pool: {state.key} has been disabled since an earlier run: "
                f"{state.disabled.signal}; pool.clear {state.key} enables it",
            )
    return persistence


class Persistence:
    """Writes what a pool learns into a store, and takes over what others learn.

    Attributes:
        others: ids of the other proxies on the store.
        announce: called when something was written that others should know at once.
        push: called with rows, by table, that others should know before they are written;
            None where there is nobody who could be told.
    """

    def __init__(self, source: Store, service: Service) -> None:
        self.others: Collection[str] = ()
        self.announce: Callable[[], object] = lambda: None
        self.push: Callable[[Mapping[str, list[Row]]], object] | None = None
        self._pushing = False
        self._source = source
        #: None while it cannot be opened
        self._store: StateStore | None = None
        self._service = service
        self._accounts = service.pool.accounts
        self._now = now = service.now
        #: what the wall clock is ahead of the monotonic one: measured once, so that a
        #: deadline is the same instant each time it is written
        self._clock: Callable[[], float] = service.wall_now
        self._ahead = self._clock() - now()
        self._dirty = asyncio.Event()
        self._urgent = asyncio.Event()
        #: others have written
        self._news = asyncio.Event()
        self._reap_due = False
        self._shares = Shares(service.pool.accounts)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="account-pool-store")
        #: what is being written, and the result
        self._work: tuple[Batch, Future[tuple[PoolSnapshot, Mapping[str, str]]]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._reported = ""
        #: kinds of rows that do not fit into the store, with what is wrong, as reported
        self._unfit: set[tuple[str, str]] = set()
        self._asides = 0
        self._stopped = False
        #: callers of `write`
        self._waiting: list[asyncio.Future[None]] = []
        self._used_at = now() + USED_S
        self._sweep_at = self._beat_at = now()
        self._pending = PendingWrites(service, self._wall, self._note_change, self._note_urgent)

    @property
    def problem(self) -> str | None:
        """Why what is learnt, or a part of it, is kept in memory only; None where it is not."""
        if self._reported or not self._unfit:
            return self._reported or None
        return f"cannot be written: something of {', '.join(sorted({k for k, _ in self._unfit}))}"

    # -- start and end

    def restore(self) -> None:
        """Put pool, sessions and pins into the state the store has kept, if it can be used."""
        with self._reporting("restored"):
            try:
                self._restore()
            except DamagedError as e:
                self._put_aside(e)
                self._restore()

    def _restore(self) -> None:
        self._take_up(*_open(self._source, self._wall()))
        self._begin_write()
        self._finish_write(at_start=True)
        if self._store is not None and (asks := self._asks()):
            # What a proxy holds goes with its heartbeat.
            self._store.beat({}, wall_now=self._wall())
            self._shares.granted(self._store.share(asks, wall_now=self._wall()), now=self._now())

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
        self._pending.unsubscribe()
        if self._task is not None:
            self._task.cancel()
        with self._reporting("written"):
            self._finish_write(by=by)
            self._pending.note_used()
            # Counts whose first write was not answered are written alone, others after them.
            for _ in range(2):
                self._begin_write()
                self._finish_write(by=by)
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._store is not None:
            self._store.close()

    async def write(self) -> None:
        """Have all that is known now written, and return then; waits as `stop` does."""
        if self._task is None or self._task.done():
            return
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(written)
        self._pending.note_used()
        self._note_urgent()
        with suppress(TimeoutError):
            await asyncio.wait_for(written, STOP_TIMEOUT_S)

    def look(self, *, died: bool = False) -> None:
        """Look at once for what others have written; *died*: one of them may have."""
        self._reap_due = self._reap_due or died
        self._news.set()
        self._dirty.set()

    async def read_counts(self, name: str) -> Counted:
        """Return the sums of *name*: of all proxies, and what is not written yet."""
        store, waiting = self._store, self._service.counters[name].waiting
        waiting = {key: dict(amounts) for key, amounts in waiting.items()}
        # Its thread does one thing after the other: what is being written will be in the result.
        if self._work is None:
            add_to(waiting, self._pending.uncertain(name))
        sums = await self._in_thread(lambda: store.read_counts(name)) if store else {}
        add_to(sums, waiting)
        return sums

    def _note_change(self) -> None:
        self._dirty.set()
        if self._accounts.urgent:
            self._urgent.set()

    def take_rows(self, tables: Mapping[str, list[Row]]) -> None:
        """Take over what another proxy has pushed."""
        for name, rows in tables.items():
            self._pending.tables[name].adopt(rows)

    def _push_rows(self) -> None:
        self._pushing = False
        found = {name: table.fresh_rows() for name, table in self._pending.tables.items()}
        tables = {name: rows for name, rows in found.items() if rows}
        if tables and self.push is not None:
            self.push(tables)

    def _note_urgent(self) -> None:
        if self.push is not None and not self._pushing:
            # All that one event of the loop changes goes at once.
            self._pushing = True
            asyncio.get_running_loop().call_soon(self._push_rows)
        self._dirty.set()
        self._urgent.set()

    # -- while it runs

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._dirty.wait(), LOOK_S)
            self._dirty.clear()
            self._check_clock()
            waiting, self._waiting = self._waiting, []
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
        # What others have learnt does not wait for what is to be written.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), URGENT_S)
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._urgent.wait(), WRITE_S - URGENT_S)

    async def _round(self) -> None:
        """Read and write once. Raises StoreError."""
        wall = self._wall()
        self._news.clear()
        if self._store is None:
            self._take_up(*await self._in_thread(lambda: _open(self._source, wall)))
        store = self._store
        assert store is not None
        await self._do_what_is_due(store, self._now(), wall)
        self._take_over(await self._in_thread(lambda: store.changed(wall_now=wall)))
        await self._divide(store, wall)
        urgent = self._urgent.is_set()
        self._begin_write()
        if self._work is not None:
            # `_finish_write` raises what went wrong.
            with suppress(Exception):
                await asyncio.wrap_future(self._work[1])
        self._finish_write()
        if urgent:
            self.announce()
        if self._failures:
            self._failures, self._reported = 0, ""
            logger.log(ALERT, "account-pool: the state database can be written again")

    async def _do_what_is_due(self, store: StateStore, now: float, wall: float) -> None:
        if self._reap_due:
            self._reap_due = False
            dead = [proxy for proxy in self.others if is_gone(proxy)]
            await self._in_thread(lambda: store.reap(dead))
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            present = [state.key for state in self._accounts]
            await self._in_thread(lambda: store.sweep(present, wall_now=wall))
        if now >= self._used_at:
            self._used_at = now + USED_S
            self._pending.note_used()
        if now >= self._beat_at:
            self._beat_at = now + BEAT_S
            in_flight = {s.key: s.in_flight for s in self._accounts if s.in_flight}
            await self._in_thread(lambda: store.beat(in_flight, wall_now=wall))

    async def _divide(self, store: StateStore, wall: float) -> None:
        """Hold what this proxy needs of the accounts that take so many requests only."""
        if asks := self._asks():
            shares = await self._in_thread(lambda: store.share(asks, wall_now=wall))
            self._shares.granted(shares, now=self._now())
            self.announce()

    def _asks(self) -> dict[AccountKey, Ask]:
        return self._shares.asks(1 + len(self.others), self._now())

    async def _in_thread(self, ask: Callable[[], Value]) -> Value:
        return await asyncio.wrap_future(self._thread.submit(ask))

    # -- reading

    def _take_up(
        self, store: StateStore, tables: Mapping[str, list[Row]], others: Collection[str]
    ) -> None:
        """Begin with *store*: take over its tables, and have all that we know written."""
        self._store, self.others = store, others
        if store.now() is not None:
            # Nobody can set that clock, and it is the same for all proxies.
            self._clock = lambda: store.now() or 0.0
            self._ahead = self._clock() - self._now()
        self._beat_at = self._now()
        self._shares.forget()
        self._pending.begin(tables)

    def _take_over(self, news: News) -> None:
        """Take over what others have done; accounts are exchanged by the next write."""
        self._accounts.dirty.update(news.accounts)
        for name, table in self._pending.tables.items():
            if rows := news.lines.get(name):
                table.adopt(rows)
            if gone := news.gone.get(name):
                table.drop(gone)
        if news.in_flight_remote is not None:
            self._accounts.set_in_flight_remote(news.in_flight_remote, now=self._now())
        if news.proxies is not None:
            self._shares.heard(news.shares or {})
            if not self.others and news.proxies:
                self._beat_at = self._now()  # they do not know of us
            self.others = news.proxies

    def _adopt(self, batch: Batch, saved: PoolSnapshot, by: By) -> None:
        """Let the pool know what others have learnt; what it has learnt meanwhile stays."""
        before = {account.key: account for account in batch.accounts}
        news = {a.key: a for a in saved.accounts if a != before[a.key]}
        if not news:
            return
        wall = self._wall()
        present = snapshot.take(self._accounts, news, now=self._now(), wall_now=wall)
        merged = tuple(merge(before[a.key], a, news[a.key]) for a in present.accounts)
        merged_at = PoolSnapshot(accounts=merged, wall_at=saved.wall_at)
        snapshot.restore(self._accounts, merged_at, now=self._now(), wall_now=wall, by=by)

    # -- writing

    def _begin_write(self) -> None:
        """Hand what has changed to the thread, if anything has."""
        store = self._store
        if store is None:
            return
        batch = self._pending.take(in_flight=bool(self.others))
        if batch is None:
            return
        self._urgent.clear()
        self._work = batch, self._thread.submit(batch.write, store)

    def _finish_write(self, *, at_start: bool = False, by: float = math.inf) -> None:
        """Take over what the store returned, or keep what is still to be written.

        Raises StoreError.
        """
        if self._work is None:
            return
        (batch, result), self._work = self._work, None
        try:
            saved, unfit = result.result(max(0.0, min(STOP_TIMEOUT_S, by - self._now())))
        except (Exception, CancelledError) as e:
            self._pending.put_back(batch)
            self._beat_at = self._now()  # others are told all of it
            if isinstance(e, TimeoutError):
                raise StoreError(_TOO_LONG) from None  # it may be written yet
            if isinstance(e, CancelledError):
                return
            raise
        self._report_unfit(unfit)
        self._pending.wrote(batch, saved.replaced)
        if at_start:
            self._adopt(batch, forgiven(saved, self._wall()), By.RESTART)
        else:
            self._adopt(batch, saved, By.PROXY)

    # -- the clock

    def _check_clock(self) -> None:
        """Keep deadlines where they were on the wall clock after the machine has slept."""
        ahead = self._clock() - self._now()
        if abs(ahead - self._ahead) < CLOCK_STEP_S:
            return
        now = self._now()
        saved = snapshot.take(self._accounts, now=now, wall_now=now + self._ahead)
        self._ahead = ahead
        snapshot.restore(self._accounts, saved, now=now, wall_now=now + ahead, by=By.CLOCK)

    def _wall(self) -> float:
        return self._now() + self._ahead

    # -- a store that cannot be used

    async def _failed(self, error: StoreError) -> None:
        self._shares.forget()
        # What others have in flight is not known any more.
        self._accounts.set_in_flight_remote({}, now=self._now())
        if isinstance(error, DamagedError):
            try:
                await self._in_thread(lambda: self._put_aside(error))
            except StoreError as e:
                self._report(e)
        elif isinstance(error, MovedError):
            # No reason to wait: a proxy that starts now must find what we know.
            self._forget_store()
            logger.warning("account-pool: %s", error)
        else:
            self._report(error)

    def _put_aside(self, error: DamagedError) -> None:
        """Have the next store begin empty. Raises StoreError."""
        self._forget_store()
        if self._asides == MAX_ASIDES:
            raise error
        self._asides += 1
        aside = self._source.put_aside()
        kept = f"it was kept as {aside}" if aside else "another proxy moved it aside"
        logger.log(ALERT, f"account-pool: {error.wrong}: {kept}, and a new one was created")

    def _forget_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    @contextmanager
    def _reporting(self, done: str) -> Iterator[None]:
        """Report an error, also one of our own: the proxy goes on without the store."""
        try:
            yield
        except StoreError as e:
            self._report(e)
        except Exception as e:
            self._report(StoreError(f"the state cannot be {done}: {where(e)}"))

    def _report(self, error: StoreError) -> None:
        """Log *error*, once while it is the same: the store is tried again and again."""
        self._failures += 1
        if str(error) != self._reported:
            self._reported = str(error)
            logger.warning("account-pool: %s", error)
            logger.log(ALERT, f"account-pool: {_IN_MEMORY} until it can be written again")

    def _report_unfit(self, unfit: Mapping[str, str]) -> None:
        """Log what is not kept, once for each kind: it would be the same with the next."""
        for kind, wrong in unfit.items():
            if (kind, wrong) not in self._unfit:
                self._unfit.add((kind, wrong))
                logger.warning(
                    f"account-pool: of {kind} something cannot be written ({wrong}) and is kept in "
                    "memory only; all else is written"
                )


def _open(source: Store, wall: float) -> tuple[StateStore, dict[str, list[Row]], Collection[str]]:
    """Open *source*, and read its tables and who else uses it. Blocks. Raises StoreError.

    What proxies have left that are known to be dead is removed.
    """
    store = source.state()
    try:
        # What is there already is not news.
        news = store.changed(wall_now=store.now() or wall)
        if dead := [proxy for proxy in news.proxies or () if is_gone(proxy)]:
            store.reap(dead)
        tables = {name: store.read_table(name) for name in TABLES}
    except StoreError:
        store.close()
        raise
    return store, tables, [proxy for proxy in news.proxies or () if proxy not in dead]
