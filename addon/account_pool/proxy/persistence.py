"""Keeps what the pool has learnt in the store, without delaying a request.

A thread writes what has changed: what must not be lost at once, counts at most every
`WRITE_S` seconds; a killed proxy loses what is younger. It reads what other proxies on the same
store have learnt when the store says that there is something, and every `LOOK_S` seconds in any
case. A store that fails is tried again later: the proxy serves on from memory. What is written
is in `pending_writes`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from functools import partial
from typing import TypeVar

from mitmproxy.log import ALERT

from account_pool.core import snapshot
from account_pool.core.account import AccountKey
from account_pool.core.decisions import By
from account_pool.core.permits import Permit
from account_pool.core.shares import Share, Shares
from account_pool.core.snapshot import PoolSnapshot, forgiven, merge
from account_pool.core.usage import Counted, add_to
from account_pool.proxy.fleet import SharedNotices, beat
from account_pool.proxy.pending_writes import Batch, KnownHistory, PendingWrites, Written
from account_pool.proxy.service import Service
from account_pool.proxy.store_access import StoreAccess, StoreClock, Wake
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
from account_pool.supervision import DaemonThreads, tasks

logger = logging.getLogger(__name__)

#: Least time between two writes, seconds: what a killed proxy may have lost of counts,
#: and of what the next request would be refused or misled without.
WRITE_S = 0.2
URGENT_S = 0.05
#: Least time between two rounds, seconds, while others write, or are to know of a cooldown: a
#: storm of those is read and written together.
GAP_S = 0.005
#: How often is looked what others have written, seconds.
LOOK_S = 1.0
#: How often is written when sessions were used last, seconds.
USED_S = 60.0
#: How often old rows are swept, seconds.
SWEEP_S = 3600.0
#: How often rows about requests are looked through for old ones, seconds.
PRUNE_S = 300.0
DAY_S = 86_400.0
#: A wall clock that moved by more than this against the monotonic one was set, or the
#: machine slept: monotonic time stands still then, and the limits of a vendor do not.
CLOCK_STEP_S = 2.0
#: How long a question to the store may take, seconds: those of a page are asked again.
ASK_S = 15.0
#: How long a round may take before it is told that the store hangs, seconds.
LATE_S = 15.0
#: Questions of pages that are asked at once.
QUESTIONS = 2
#: How long the start and the end of the proxy wait for a write, seconds.
STOP_TIMEOUT_S = 5.0
#: How long the end waits at least until it is closed, seconds.
CLOSE_S = 1.0
#: How long the start waits for the store: longer than SQLite for others that write to it, seconds.
START_S = 15.0

Value = TypeVar("Value")


def begin(source: Store, service: Service, *, workers: int = 1) -> Persistence:
    """Restore *service* from *source* and return what keeps it there.

    A source that cannot be used does not stop the proxy: that is logged, and it is tried again.

    *workers* is the number of proxies that are certain to use it, this one too.
    """
    persistence = Persistence(source, service, workers)
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
        pending: what is not written yet.
        access: the store, and why it cannot be used.
        notices: what the proxies on it have told their owner of.
        known: what this proxy can say of requests without it.
    """

    def __init__(self, source: Store, service: Service, workers: int = 1) -> None:
        self.others: Collection[str] = ()
        self._workers = workers
        self.announce: Callable[[], object] = lambda: None
        self.access = StoreAccess(source, now=service.now, chance=service.chance)
        self._service = service
        self._accounts = service.pool.accounts
        self._accounts.proxies = workers
        self._fleet = service.fleet
        self._fleet.kind, self._fleet.server = source.kind, source.server
        self._fleet.pool = source.pool
        self._now = now = service.now
        self._clock = StoreClock(now, service.wall_now)
        self.notices = SharedNotices(self.access, self._clock, self._in_turn)
        self._dirty = asyncio.Event()
        self._urgent = asyncio.Event()
        #: others have written, or are to know what is to be written
        self._at_once = asyncio.Event()
        #: the pause has lasted for as long as what is urgent has to wait
        self._is_rested = False
        #: that wakes us when others have written
        self._heard: StateStore | None = None
        self._reap_due = False
        self._shares = Shares(service.pool.accounts)
        self._thread = DaemonThreads(1, "account-pool-store")
        #: what is being written, and the result
        self._work: tuple[Batch, Future[Written]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        service.ended.full = self.access.report_full
        service.decided.changed = self._dirty.set
        #: so many questions at once; threads of their own, since those of the event loop look
        #: up names, and a disk that hangs keeps each thread that asks it
        self._asking = asyncio.Semaphore(QUESTIONS)
        self._questions = DaemonThreads(QUESTIONS, "account-pool-question")
        #: callers of `write`
        self._waiting: list[asyncio.Future[None]] = []
        self._used_at = now() + USED_S
        self._sweep_at = self._beat_at = self._prune_at = now()
        self.pending = PendingWrites(service, self._clock, self._dirty.set, self._note_urgent)
        self.known = KnownHistory(service, self.access, self.pending)

        def refused() -> None:
            self._note_urgent()
            if self.others:  # they would be refused as well, or wait, until they know
                self._at_once.set()

        self._accounts.on_urgent = self._accounts.permits.on_ask = refused
        self._accounts.on_short = self._note_urgent

    # -- start and end

    def restore(self) -> None:
        """Put pool, sessions and pins into the state the store has kept, if it can be used."""
        with self.access.reporting("restored"):
            try:
                self._restore()
            except DamagedError as error:
                _waited(self._thread.submit(self.access.put_aside, error), self.access)
                self._restore()
        if not self._accounts.sharing:
            # An even part, until the store can be asked.
            self._shares.use_without_store(self._proxies(), self._now())

    def _restore(self) -> None:
        wall = self._clock.wall()
        asked = self._thread.submit(self.access.read, wall)
        self._take_up(*_waited(asked, self.access, lambda read: read[0].close()))
        self._begin_write()
        self._finish_write(at_start=True)
        store, wall = self.access.store, self._clock.wall()
        if store is not None and (asks := self._shares.asks(self._proxies(), self._now())):
            # What a proxy holds goes with its heartbeat.
            about = self._fleet.about()

            def ask() -> Mapping[AccountKey, Share]:
                store.beat({}, wall_now=wall, about=about)
                return store.share(asks, wall_now=wall)

            shares = _waited(self._thread.submit(ask), self.access)
            self._shares.granted(shares, now=self._now())

    def start(self) -> None:
        """Begin to write. Needs a running event loop."""
        self._dirty.set()  # it hears of others, and they of it, from its first round on
        self._task = tasks.supervised("keeping the state", self._run)

    def stop(self, by: float = math.inf) -> None:
        """Write what is left, and close the store. Waits for the disk; once.

        Until *by*, monotonic seconds, at most; each write for `STOP_TIMEOUT_S` at most.
        """
        if self._stopped:
            return
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
        with self.access.reporting("written"):
            self._finish_write(by=by)
            self.pending.note_used()
            # Counts of writes with an unknown result go one by one; newer ones follow.
            for _ in range(self.pending.writes):
                self._begin_write()
                self._finish_write(by=by)
            if (store := self.access.store) is not None and self._service.decided.waiting:
                left_s = max(0.0, min(STOP_TIMEOUT_S, by - self._now()))
                self._thread.submit(self._service.decided.write, store).result(left_s)
        # Its connection may be held by a write that hangs.
        closed = self._thread.submit(self.access.close)
        wait([closed], max(CLOSE_S, min(STOP_TIMEOUT_S, by - self._now())))
        for threads in (self._thread, self._questions):
            threads.shutdown(wait=False, cancel_futures=True)

    async def write(self) -> None:
        """Have all that is known now written, and return then; waits as `stop` does."""
        if self._task is None or self._task.done():
            return
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(written)
        self.pending.note_used()
        self._note_urgent()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await written

    def look(self, *, died: bool = False) -> None:
        """Look at once for what others have written; *died*: one of them may have."""
        self._reap_due = self._reap_due or died
        self._at_once.set()
        self._dirty.set()

    async def read_counts(self, name: str) -> Counted:
        """Return the sums of *name*: of all proxies, and what is not written yet.

        Raises StoreError.
        """
        store = self.access.store
        if store is None:
            raise StoreError(self.access.problem or "the state is being opened")
        waiting = self._service.counters[name].waiting
        waiting = {key: dict(amounts) for key, amounts in waiting.items()}
        # Its thread does one thing after the other: what is being written will be in the result.
        if self._work is None:
            add_to(waiting, self.pending.uncertain(name))
        sums = await self._in_turn(lambda: store.read_counts(name))
        self.known.note(name, sums)
        add_to(sums, waiting)
        return sums

    async def ask(self, question: Callable[[StateStore], Value]) -> Value | None:
        """Return what the store answers to *question*, beside what is written.

        None: it cannot be used. Raises StoreError, also where that takes too long.
        """
        store = self.access.store
        if store is None:
            return None
        async with self._asking:
            return await _in_time(self._questions.submit(question, store), self.access)

    def _note_urgent(self) -> None:
        self._dirty.set()
        self._urgent.set()
        if self._is_rested:
            self._at_once.set()

    # -- while it runs

    async def _run(self) -> None:
        slow = partial(self._failed, self.access.too_long, lasted_s=LATE_S)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._dirty.wait()
            self._dirty.clear()
            self._check_clock()
            waiting, self._waiting = self._waiting, []
            # A disk that hangs raises nothing: it is told, and the round goes on once it can.
            late = asyncio.get_running_loop().call_later(LATE_S, tasks.once, "a slow disk", slow)
            try:
                await self._round()
            except StoreError as e:
                await self._failed(e)
            except Exception:
                # What was read and not taken over is read again.
                await self._in_thread(self.access.close)
                raise
            finally:
                late.cancel()
            for written in waiting:
                if not written.done():
                    written.set_result(None)
            await self._pause()

    async def _pause(self) -> None:
        if self.access.failures:
            await asyncio.sleep(self.access.pause_s)
            return
        await asyncio.sleep(GAP_S)
        # What others have learnt, or have to know, does not wait for what is to be written.
        with suppress(TimeoutError):
            async with asyncio.timeout(URGENT_S - GAP_S):
                await self._at_once.wait()
            return
        self._is_rested = True
        try:
            if not self._urgent.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(WRITE_S - URGENT_S):
                        await self._at_once.wait()
        finally:
            self._is_rested = False

    async def _round(self) -> None:
        """Read and write once. Raises StoreError."""
        self._at_once.clear()
        if self.access.store is None:
            at = self._clock.wall()
            self._take_up(*await self._in_thread(lambda: self.access.read(at)))
        store = self.access.store
        assert store is not None
        if store is not self._heard:
            # Before it is read: what is written in between would not be heard of.
            wake = Wake(asyncio.get_running_loop(), self.look)
            await self._in_thread(lambda: store.listen(wake))
            self._heard = store
        now, wall = self._clock.both()
        await self._do_what_is_due(store, now, wall)
        self._take_over(await self._in_thread(lambda: store.changed(wall_now=wall)))
        await self._divide(store, wall)
        self._begin_write()
        urgent = self._work is not None and self._work[0].urgent
        if self._work is not None:
            # `_finish_write` raises what went wrong.
            with suppress(Exception):
                await asyncio.wrap_future(self._work[1])
        self._finish_write()
        if urgent:
            self.announce()
        permits = self._accounts.permits
        # Once all is exchanged: who gets to probe an account knows of the probes before.
        if wanted := permits.asks(self._now()):
            at = self._clock.wall()
            granted, failed = await self._in_thread(lambda: _granted(store, wanted, at))
            permits.granted({permit: wanted[permit] for permit in granted}, self._now())
            if failed is not None:
                raise failed
        if self._service.decided.waiting:
            await self._in_thread(lambda: self._service.decided.write(store))
        self.access.used()
        ended = self._service.ended
        lost, ended.lost = ended.lost, 0
        self.access.report_lost(lost)

    async def _do_what_is_due(self, store: StateStore, now: float, wall: float) -> None:
        if self._reap_due:
            self._reap_due = False
            dead = [proxy for proxy in self.others if is_gone(proxy)]
            await self._in_thread(lambda: store.reap(dead))
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            present = [state.key for state in self._accounts]
            await self._in_thread(lambda: store.sweep(present, wall_now=wall))
            self._prune_at = now
        if now >= self._prune_at:
            kept_s = self._service.ended.kept_days * DAY_S
            more = await self._in_thread(lambda: store.requests.prune(kept_s, wall_now=wall))
            self._prune_at = now + (LOOK_S if more else PRUNE_S)
        if now >= self._used_at:
            self._used_at = now + USED_S
            self.pending.note_used()
        if now >= self._beat_at or self._fleet.has_news:
            self._beat_at = now + BEAT_S
            about = self._fleet.about(now)
            in_flight = {s.key: s.in_flight for s in self._accounts if s.in_flight}
            did_run, rows = await self._in_thread(lambda: beat(store, in_flight, about, wall))
            if not did_run:
                # It hung, and others may have what it held, or all have lost the store.
                self._shares.forget(self._proxies(), self._now())
            self._fleet.said(about)
            self._fleet.heard(rows, now)

    async def _divide(self, store: StateStore, wall: float) -> None:
        """Hold what this proxy needs of the accounts that take so many requests only."""
        if asks := self._shares.asks(self._proxies(), self._now()):
            shares = await self._in_thread(lambda: store.share(asks, wall_now=wall))
            if self._shares.granted(shares, now=self._now()):
                self.announce()
        self._accounts.permits.share(1 + len(self.others))

    async def _in_thread(self, ask: Callable[[], Value]) -> Value:
        return await asyncio.wrap_future(self._thread.submit(ask))

    async def _in_turn(self, ask: Callable[[], Value]) -> Value:
        """As `_in_thread`, for who must go on without an answer. Raises StoreError."""
        return await _in_time(self._thread.submit(ask), self.access)

    # -- reading

    def _take_up(
        self, store: StateStore, tables: Mapping[str, list[Row]], others: Collection[str]
    ) -> None:
        """Begin with *store*: take over its tables, and have all that we know written."""
        self._shares.forget(self._proxies(), self._now())
        self.access.store, self.others = store, others
        self._clock.follow(store)
        self._beat_at = self._now()
        self._service.decided.begin()
        self.pending.begin(tables)

    def _take_over(self, news: News) -> None:
        """Take over what others have done; accounts are exchanged by the next write."""
        self._accounts.dirty.update(news.accounts)
        if news.wrote_at is not None:
            self._service.measured.lag.observe(max(self._clock.wall() - news.wrote_at, 0.0))
        for name, table in self.pending.tables.items():
            if rows := news.lines.get(name):
                table.adopt(rows)
            if gone := news.gone.get(name):
                table.drop(gone)
        if news.in_flight_remote is not None:
            self._accounts.set_in_flight_remote(news.in_flight_remote, now=self._now())
        if news.proxies is not None:
            self._shares.heard(news.shares or {})
            if set(news.proxies) != set(self.others):
                self._beat_at = self._now()  # they do not know of us, nor we what they are
            self.others = news.proxies
            self._accounts.proxies = self._proxies()

    def _adopt(self, batch: Batch, saved: PoolSnapshot, by: By) -> None:
        """Let the pool know what others have learnt; what it has learnt meanwhile stays."""
        before = {account.key: account for account in batch.accounts}
        news = {a.key: a for a in saved.accounts if a != before[a.key]}
        if not news:
            return
        self.pending.adopt_left(before, news)
        # Times that move would look as changed by us, and what others do then would be undone.
        now, wall = self._clock.both()
        present = snapshot.take(self._accounts, news, wall_now=wall, ahead=self._clock.ahead)
        merged = tuple(merge(before[a.key], a, news[a.key]) for a in present.accounts)
        merged_at = PoolSnapshot(accounts=merged, wall_at=saved.wall_at)
        snapshot.restore(self._accounts, merged_at, now=now, wall_now=wall, by=by)

    # -- writing

    def _begin_write(self) -> None:
        """Hand what has changed to the thread, if anything has."""
        store = self.access.store
        if store is None:
            return
        urgent = self._urgent.is_set()
        self._urgent.clear()
        batch = self.pending.take(in_flight=bool(self.others), urgent=urgent)
        if batch is None:
            return
        self._work = batch, self._thread.submit(batch.write, store)

    def _finish_write(self, *, at_start: bool = False, by: float = math.inf) -> None:
        """Take over what the store returned, or keep what is still to be written.

        Raises StoreError.
        """
        if self._work is None:
            return
        (batch, result), self._work = self._work, None
        try:
            saved, unfit, failed = result.result(max(0.0, min(STOP_TIMEOUT_S, by - self._now())))
        except (Exception, CancelledError) as e:
            self.pending.put_back(batch)
            self._beat_at = self._now()  # a heartbeat reports all that is in flight
            if isinstance(e, TimeoutError):
                raise self.access.too_long from None  # it may be written yet
            if isinstance(e, CancelledError):
                return
            raise
        self.access.report_unfit(unfit)
        if failed is None:
            self.pending.wrote(batch, saved.replaced)
        else:
            self.pending.put_back(batch, saved.replaced)
        # Of a part as well: what we do not take over would look as if we had ended it.
        if at_start:
            self._adopt(batch, forgiven(saved, self._clock.wall()), By.RESTART)
        else:
            self._adopt(batch, saved, By.PROXY)
        if failed is not None:
            self._beat_at = self._now()
            raise failed

    # -- the clock

    def _check_clock(self) -> None:
        """Keep deadlines where they were on the wall clock after the machine has slept."""
        ahead, clock = self._clock.measured(), self._clock
        if abs(ahead - clock.ahead) < CLOCK_STEP_S:
            return
        now, wall = clock.both()
        saved = snapshot.take(self._accounts, wall_now=wall, ahead=clock.ahead)
        clock.ahead = ahead
        snapshot.restore(self._accounts, saved, now=now, wall_now=now + ahead, by=By.CLOCK)

    # -- a store that cannot be used

    def _proxies(self) -> int:
        return max(1 + len(self.others), self._workers)

    async def _failed(self, error: StoreError, *, lasted_s: float = 0.0) -> None:
        # An even part of what was not granted; all is asked for once the store can be used.
        self._shares.use_without_store(self._proxies(), self._now())
        # Nobody can be asked, nor waited for.
        self._accounts.permits.share(1)
        # What others have in flight is not known any more, nor what they do.
        self._fleet.lost()
        self._accounts.set_in_flight_remote({}, now=self._now())
        if isinstance(error, DamagedError):
            try:
                await self._in_thread(lambda: self.access.put_aside(error))
            except StoreError as e:
                self.access.failed(e)
        elif isinstance(error, MovedError):
            await self._in_thread(self.access.close)
            self.access.report_moved(error)
        else:
            self.access.failed(error, lasted_s=lasted_s)


def _granted(
    store: StateStore, wanted: Iterable[Permit], wall: float
) -> tuple[list[Permit], StoreError | None]:
    """Return those of *wanted* that the store gives this proxy, until it fails. Blocks.

    No other proxy gets what it has given: that counts, whatever becomes of the rest.
    """
    granted: list[Permit] = []
    try:
        for permit in wanted:
            if store.notices.take_turn(permit.name, permit.lasts_s, wall_now=wall):
                granted.append(permit)  # noqa: PERF401 - what came before a failure stays
    except StoreError as error:
        return granted, error
    return granted, None


def _waited(
    asked: Future[Value],
    access: StoreAccess,
    drop: Callable[[Value], object] = lambda _value: None,
) -> Value:
    """Return what was *asked* at the start. Raises StoreError after `START_S`.

    *drop* gets what comes later: the store is opened anew then.
    """
    wait([asked], START_S)
    if asked.done():
        return asked.result()
    asked.add_done_callback(partial(_drop, drop))
    raise access.too_long


def _drop(drop: Callable[[Value], object], asked: Future[Value]) -> None:
    if not asked.cancelled() and asked.exception() is None:
        with suppress(StoreError):
            drop(asked.result())


async def _in_time(answer: Future[Value], access: StoreAccess) -> Value:
    """Return *answer*. Raises StoreError after `ASK_S`; what has not begun then never does."""
    try:
        async with asyncio.timeout(ASK_S):
            return await asyncio.wrap_future(answer)
    except TimeoutError:
        raise access.too_long from None
