"""What all requests of one proxy share: the pool, what recognises requests, which of them run.

It also carries out what paused streams wait for, and notices that the machine has slept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary, WeakSet

from mitmproxy import http
from mitmproxy.connection import Client, Connection
from mitmproxy.proxy import commands
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers.http import HttpStream
from msgspec import Struct

from account_pool.admin.http import CLOSED, AdminRequest, AdminResponse
from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential
from account_pool.core.decision_text import duration
from account_pool.core.headroom import Window
from account_pool.core.instruments import (
    Ended,
    HeadroomHistory,
    Mark,
    Measured,
    RequestLog,
    Running,
)
from account_pool.core.lease import Lease, RequestFacts
from account_pool.core.pool import Pool
from account_pool.core.sessions import Pins, Sessions
from account_pool.core.state import AccountState
from account_pool.core.steps import Refresh, Wait
from account_pool.core.usage import Counts, Resets, Usages
from account_pool.providers.base import LocalResponse, Provider
from account_pool.proxy.counted_streams import CountedStreams
from account_pool.proxy.credential_swap import Swaps
from account_pool.proxy.decision_log import DecisionLog, SharedDecisions
from account_pool.proxy.events import Chunks, Pause
from account_pool.proxy.fleet import Fleet
from account_pool.proxy.options import Settings
from account_pool.proxy.pooled_request import Recognizer
from account_pool.proxy.response_reader import Refusals, ResponseObserver
from account_pool.supervision import log_and_continue, tasks

if TYPE_CHECKING:
    from account_pool.admin.actions import LookUpService
    from account_pool.core.prices import Prices

logger = logging.getLogger(__name__)

#: Longest time a request waits for its account's credential to be renewed.
REFRESH_TIMEOUT_S = 20.0
#: How long a client of a stream of ours may leave it unread, and how often that is looked at.
UNREAD_S, UNREAD_LOOK_S = 60.0, 0.1
#: Looks that are so far apart had a gap between them, seconds: more than a busy machine
#: delays the look that is due every five, less than it takes until connections are
#: forgotten on their way.
GAP_S = 30.0


async def _closed(_visit: AdminRequest) -> AdminResponse:
    """The proxy has no accounts yet, and nothing to show."""
    return CLOSED


def no_prices() -> Prices:
    """Return the prices of an owner who has named none."""
    from account_pool.core.prices import Prices  # noqa: PLC0415 - no visitor, no need

    return Prices()


class LookUpsOff:
    """Asks nobody."""

    is_on = False

    def views(self) -> Mapping[AccountKey, Mapping[str, object]]:
        return {}

    async def refresh(self, _states: Iterable[AccountState]) -> list[AccountKey]:
        return []


class Service:
    """Shared by every connection of one proxy.

    Attributes:
        pool: who may serve.
        settings: replaced as a whole when options change.
        sessions: where each conversation lives.
        pins: which account made what only it knows.
        counters: what is counted and kept, by name: "usage", and "resets" of windows.
        usages: what each account has served.
        measured: how long it took, and what became of requests.
        ended: requests that are over, until a row is written of each.
        running: those that are not.
        rows_written: called when rows were written.
        decided: what all proxies on the store have decided.
        counted_streams: asks chat streams for their usage.
        prices: returns the owner's own prices.
        providers: by name, those of the user included.
        recognizer: tells which requests are the pool's business.
        swaps: how the credentials of accounts go on the wire.
        observer: learns what responses say of accounts.
        refusals: the last of each account.
        refresh: renews the credential of an account after a 401; says if it changed, None: that
            goes on.
        local: answers a client's own token exchange, by provider name.
        passed: hosts of APIs that cannot be pooled, of which the log has said why.
        show: shows the flow of a refused attempt; None where only comments are wanted.
        is_looked_at: says whether anybody shows, keeps or uses flows.
        unseen_until: until when nobody does, as far as is known, monotonic seconds.
        later: calls something once the current event is handled; at once without a loop.
        warnings: returns what looks wrong with the accounts and stops nothing, for people.
        look_ups: ask providers what accounts have left, where their owner wants it.
        notify_targets: returns where notifications go, as it may be shown.
        state_problem: returns why what is learnt is kept in memory only; None if it is not.
        fleet: the proxies that share the state.
        unsent: says whether something waits to be sent behind a client, to a server.
        connected: told of a client, behind which a connection to a server is used.
        suspends: has nothing go out on connections that were kept over one.
        visited: answers a request to the proxy itself.
        layers: one for each client connection that speaks HTTP.
        users: accounts that a client has named as its user name at this proxy, comma-separated.
        headroom_history: what accounts had left over the day.
        stopping: the proxy shuts down: what is under way finishes, nothing begins.
        at_stop: called when it begins to.
        turns_away: no request is held for an account any more.
    """

    def __init__(self, pool: Pool, settings: Settings, providers: Mapping[str, Provider]) -> None:
        self.now = time.monotonic
        self.wall_now = time.time
        self.settings = settings
        self.sessions = Sessions()
        self.pins = Pins()
        self.counters = {"usage": Counts(), "resets": Counts()}
        self.usages = Usages(self.counters["usage"].add)
        self.resets = Resets(self.counters["resets"].add)
        self.measured = Measured()
        self.ended = RequestLog()
        self.running = Running(self.ended, self.measured, log_and_continue.log)
        self.counted_streams = CountedStreams()
        self.rows_written: Callable[[], object] = lambda: None
        self.prices: Callable[[], Prices] = no_prices
        self.recognizer, self.swaps = Recognizer(self.pins), Swaps(self.pins)
        self.observer = ResponseObserver(pool, self.pins, self.usages, self)
        self.refusals = Refusals()
        self.decided = SharedDecisions(
            lambda: self.wall_now(),  # noqa: PLW0108 - it may be replaced
            lambda: self.fleet.process_name,
        )
        self.set_pool(pool)
        self.refresh: Callable[[AccountKey, Credential], Awaitable[bool | None]] | None = None
        self.local: dict[str, Callable[[], Awaitable[LocalResponse]]] = {}
        self.passed: set[str] = set()
        self.show: Callable[[Callable[[], http.HTTPFlow]], None] | None = None
        self.is_looked_at: Callable[[], bool] = lambda: True
        self.unseen_until = -inf
        self.later: Callable[[Callable[[], None]], object] = lambda act: act()
        self.warnings: Callable[[], list[str]] = list
        self.state_problem: Callable[[], str | None] = lambda: None
        self.look_ups: LookUpService = LookUpsOff()
        self.notify_targets: Callable[[], list[dict[str, str | None]]] = list
        self.connected: Callable[[Client], None] = lambda _client: None
        self.unsent: Callable[[Client, Connection], bool] = lambda _client, _server: False
        self.suspends = Suspends(self)
        self.visited: Callable[[AdminRequest], Awaitable[AdminResponse]] = _closed
        self.layers: WeakSet[ClientLayer] = WeakSet()
        self.users: WeakKeyDictionary[Client, str] = WeakKeyDictionary()
        self.stopping = self.turns_away = False
        self.at_stop: list[Callable[[], object]] = []
        self.headroom_history = HeadroomHistory()
        self.fleet = Fleet(self)
        #: what is held for an account, and when it looks again
        self._held: dict[asyncio.Event, float] = {}
        self.chance = random.random
        self.set_providers(providers)

    def set_pool(self, pool: Pool) -> None:
        """Serve from *pool*, and tell the log what is decided there."""
        self.pool = self.observer.pool = pool
        pool.decisions.clocks = self
        pool.decisions.failed = log_and_continue.log
        pool.decisions.subscribe(DecisionLog())
        self.decided.follow(pool.decisions)
        pool.accounts.on_reset = self._note_reset

    def _note_reset(self, key: AccountKey, window: Window) -> None:
        """Count what was left of a window when it was reset: that is lost."""
        with log_and_continue:
            name = window.name if window.model is None else f"{window.name} {window.model}"
            self.resets.count(key, name, window.share, self.wall_now())

    def set_providers(self, providers: Mapping[str, Provider]) -> None:
        """Take in other providers; hosts of those without an account are not ours."""
        self.providers = providers
        self.swaps.forget()
        active = set(self.pool.accounts.providers())
        self.recognizer.set_providers([providers[name] for name in providers if name in active])
        self.observer.hosts = self.recognizer.hosts

    # -- serving

    def look(self) -> None:
        """Let requests that run notice how long they have waited; note what accounts have left."""
        now, wall_now = self.now(), self.wall_now()
        self.headroom_history.note(self.pool.accounts, now, wall_now)
        self.running.look(now, wall_now)

    def refused_at_once(self, facts: RequestFacts, status: int) -> None:
        """A request was refused that no account may serve."""
        now = self.now()
        marks = [(Mark.BEGAN, now)]
        self.ended.add(Ended(facts, (), marks, now, self.wall_now(), status, whole=True))

    def client_gone(self, client: Client) -> None:
        """A safety net: whatever *client* still holds comes back."""
        self.running.client_gone(client.id, self.now())

    async def carry_out(self, pause: Pause) -> None:
        """Carry out what a stream waits for."""
        match pause.step:
            case Wait() as wait:
                await self._wait(wait, pause.woken)
            case Refresh(lease):
                pause.refreshed = await self._refreshed(lease)
            case str() as provider:
                pause.response = await self.local[provider]()
            case Chunks() as chunks:
                pause.chunk = await self._next_chunk(chunks, pause.woken)
            case visit:
                pause.reply = await self.visited(visit)

    async def _wait(self, wait: Wait, woken: asyncio.Event) -> None:
        if wait.ticket is not None:
            wait.ticket.when_called(woken.set)
            self._held[woken] = wait.until
            if self.turns_away:
                woken.set()
        # Rounded up, so that the deadline has really come when we look again.
        timeout = max(wait.until - self.now(), 0.0) + 0.002
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await woken.wait()
        finally:
            self._held.pop(woken, None)

    async def _next_chunk(self, chunks: Chunks, left: asyncio.Event) -> bytes:
        """Return the next of *chunks*; nothing once there is none, or nobody reads."""
        taking = tasks.once("a stream of the admin pages", lambda: self._chunk(chunks))
        leaving = tasks.once("a client that leaves", left.wait)
        try:
            await asyncio.wait((taking, leaving), return_when=asyncio.FIRST_COMPLETED)
            chunk = (taking.result() if taking.done() else None) or b""
        finally:
            leaving.cancel()
            taking.cancel()
            await asyncio.wait((taking,))
        if not chunk:
            await chunks.source.aclose()
        return chunk

    async def _chunk(self, chunks: Chunks) -> bytes:
        give_up_at = self.now() + UNREAD_S
        while chunks.unread():
            if self.stopping or self.now() >= give_up_at:
                return b""
            await asyncio.sleep(UNREAD_LOOK_S)
        return await anext(chunks.source, b"")

    def stop(self) -> None:
        """Begin nothing any more; what is under way goes on, and what is held is held."""
        self.stopping = True
        for tell in self.at_stop:
            with log_and_continue:
                tell()

    def held(self) -> tuple[int, float]:
        """Return how many requests are held for an account, and when the first looks again.

        Monotonic seconds; infinity if there is none.
        """
        return len(self._held), min(self._held.values(), default=inf)

    def turn_away(self) -> bool:
        """Hold no request any more, and tell those that are; say whether there is any."""
        self.turns_away = True
        for woken in self._held:
            woken.set()
        return bool(self._held)

    async def _refreshed(self, lease: Lease) -> bool | None:
        if self.refresh is None:
            return False
        # Shielded: the renewal serves every request that waits for it, not this one only.
        refresh = self.refresh
        name = f"renewing the credential of {lease.key}"

        async def renew() -> bool | None:
            return await refresh(lease.key, lease.credential)

        try:
            renewal = asyncio.shield(tasks.once(name, renew))
            async with asyncio.timeout(REFRESH_TIMEOUT_S):
                return await renewal
        except TimeoutError:
            logger.warning(f"{lease.key}: renewing its credential takes too long")
            return None

    def forget(self, key: AccountKey) -> None:
        """*key* is gone: nothing of it is kept."""
        self.refusals.forget(key)
        self.swaps.forget(key)
        self.observer.forget(key)
        self.pins.forget(key)

    def learn_holder(self, key: AccountKey, credentials: Mapping[str, Credential]) -> None:
        """Learn whose limits *key* shares from its credentials, where they say it."""
        provider = self.providers.get(key.provider)
        if provider is None:
            return
        for credential in credentials.values():
            if owner := provider.holder(credential):
                self.pool.health.learn_owner(key, owner)


# -- suspends


class Gap(Struct, frozen=True):
    """A time in which nothing ran.

    Attributes:
        seconds: how long it was.
        slept: false where only the wall clock has it, which may have been set.
    """

    seconds: float
    slept: bool


class Watch:
    """Compares each look with the one before, to notice that the proxy did not run for a while.

    The machine slept, or the process was stopped. No system tells a process of it in time, and
    which clocks go on meanwhile differs from one to the next. But somebody looks every few
    seconds, and before each request that would use a connection again: where two looks are far
    apart, nothing ran in between. Two clocks are compared, because each has its blind spot. One
    goes on in a suspend and cannot be set, but stands still with a virtual machine that is
    paused; the wall clock is put right afterwards, but may be set by anybody. What is done about
    it is harmless where it was only set, so that either will do.

    Args:
        up: a clock that goes on in a suspend, seconds.
        wall: the wall clock, seconds.
    """

    def __init__(self, up: float, wall: float) -> None:
        self._up, self._wall = up, wall

    def look(self, up: float, wall: float) -> Gap | None:
        """Return the gap since the last look; None: there was none."""
        slept, ahead = up - self._up, wall - self._wall
        self._up, self._wall = up, wall
        if slept >= GAP_S:
            return Gap(slept, slept=True)
        return Gap(ahead, slept=False) if ahead >= GAP_S else None


class ClientLayer(Protocol):
    """The HTTP layer of one client: see `http_layer.PoolHttpLayer`.

    Attributes:
        streams: its requests by their ids, and by those of their attempts, which are negative.
        connections: its own, and those to servers, each with the outermost of its layers.
        timer: what wakes it next, if anything does.
    """

    context: Context
    streams: dict[int, HttpStream]
    connections: dict[Connection, Layer]

    @property
    def timer(self) -> commands.RequestWakeup | None: ...

    def woke(self) -> Collection[Connection]:
        """Stop using all of its connections; return those to be closed."""


def _running_clock() -> Callable[[], float]:
    """Return the clock that runs during a suspend."""
    name = "CLOCK_MONOTONIC_RAW" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
    number: int | None = getattr(time, name, None)
    if number is not None:
        with contextlib.suppress(OSError):
            time.clock_gettime(number)
            return partial(time.clock_gettime, number)
    return time.monotonic  # it does on Windows; elsewhere the wall clock has to do


#: What `Watch` compares: a clock that runs during a suspend, and the wall clock.
CLOCKS: tuple[Callable[[], float], Callable[[], float]] = (_running_clock(), time.time)


class Suspends:
    """Has nothing go out on connections that were kept over a suspend.

    NATs and providers forget a connection that is silent for minutes without a notice: what is
    sent there vanishes. A suspend is noticed here; `PoolHttpLayer.woke` decides, at once, which
    connections take no more requests; `client_handler.attend` acts on their sockets.

    Attributes:
        clocks: those by which one is noticed.
        overdue: what they show when a look has come too late: there was a gap before it.
        woke_at: when one was noticed last, seconds since the epoch.
        attend: told of a layer after one, and of its connections that shall be closed.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.clocks = CLOCKS
        self._watch = Watch(*[clock() for clock in self.clocks])
        self.overdue = (-inf, -inf)
        self.woke_at = -inf
        self.attend: Callable[[ClientLayer, Collection[Connection]], None] = lambda *_: None

    def look(self) -> None:
        """Notice a suspend, if there was one since the last look."""
        up, wall = [clock() for clock in self.clocks]
        self.overdue = up + GAP_S, wall + GAP_S
        gap = self._watch.look(up, wall)
        if gap is None:
            return
        self.woke_at = self._service.wall_now()
        closed = sum([self.renew(layer) for layer in list(self._service.layers)])
        what = "woke up after" if gap.slept else "the clock went ahead, as after a suspend, by"
        kept = "1 kept connection" if closed == 1 else f"{closed} kept connections"
        logger.info(f"account-pool: {what} {duration(gap.seconds)}: {kept} closed")

    def renew(self, layer: ClientLayer) -> int:
        """Have nothing go out on connections that *layer* has kept; return how many are closed."""
        idle: Collection[Connection] = ()
        with log_and_continue:
            idle = layer.woke()
            # Not while a layer handles an event, which we may be called in.
            self._service.later(lambda: self.attend(layer, idle))
        return len(idle)
