"""What all requests of one proxy share: the pool, its hosts, its credentials.

The stream asks it three things: is this request ours (`open`), how does an account's
credential go on the wire (`swap`), and what do we say when nobody can serve (`refusal`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from weakref import WeakSet

from mitmproxy import http
from mitmproxy.connection import Client, Connection

from account_pool.admin.http import CLOSED, AdminRequest, AdminResponse
from account_pool.core import headroom_parsing, reset_hints
from account_pool.core.account import AccountKey
from account_pool.core.attempts import Attempts, Limits
from account_pool.core.browser import Allowed
from account_pool.core.credential import Credential
from account_pool.core.decision_text import duration
from account_pool.core.headroom import Window
from account_pool.core.headroom_parsing import Asked
from account_pool.core.instruments import Mark, Marks, Measured
from account_pool.core.lease import Lease
from account_pool.core.pins import Pins
from account_pool.core.pool import Pool
from account_pool.core.sessions import Sessions, session_lease_of
from account_pool.core.steps import Refresh, Wait
from account_pool.core.suspend import Gap, Watch
from account_pool.core.usage import Usage
from account_pool.core.usage_totals import Counts, Resets, Usages
from account_pool.providers.base import HTTPS_PORT, LocalAnswer, Origin, Provider, Route, Swap
from account_pool.providers.registry import HostIndex
from account_pool.providers.request_head import RequestHead, is_websocket
from account_pool.proxy import redaction, waking
from account_pool.proxy.credential_swap import Places, mask
from account_pool.proxy.decision_log import DecisionLog
from account_pool.proxy.events import Pause
from account_pool.proxy.pages import Pages, has_credential, is_reverse
from account_pool.proxy.pooled_request import (
    Destination,
    PooledRequest,
    fields_by_name,
    is_loopback,
    read_head,
)
from account_pool.proxy.redaction import Secrets
from account_pool.proxy.response_reader import ResponseReader
from account_pool.proxy.waking import ClientLayer
from account_pool.supervision import log_and_continue, tasks

logger = logging.getLogger(__name__)

#: Longest time a request waits for its account's credential to be renewed.
REFRESH_TIMEOUT_S = 20.0
#: How often an answer's `date` is compared with our clock, and how far they may differ: what
#: is further apart is a clock that was never set, not a slow answer. Seconds.
CHECK_CLOCK_S, CLOCK_TOLERANCE_S = 60.0, 120.0
_HTTP_PORT = 80
#: Address and port of one end of a connection.
End = tuple[str, int]
_NO_SOCKET = "the account pool serves this over HTTP, where a limited request can be replayed"
_NO_TLS = "the pool sends no credential over plain HTTP; use https"
INSECURE = "the pool sends no credential while ssl_insecure is set; trust the CA instead"
_REMOTE = (
    "the pool serves this machine only; set pool_allow_remote or proxyauth to let other hosts in"
)

#: Longest refusal that is told again to requests its account cannot serve.
MAX_REMEMBERED_BYTES = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options a request is served by; names as in design.md section 5.

    Attributes:
        limits: bounds on one request.
        gate_s: longest time the head of an answer is held back.
        intercept_all: decrypt every host, as mitmproxy does by itself.
        remote: clients of other machines may be given an account.
        insecure: upstream certificates are not verified (mitmproxy's ssl_insecure).
        body_limits: mitmproxy's stream_large_bodies or body_size_limit is set.
        websockets: "refuse", "pin", or "" for what suits the provider.
        manual_approve: hold each request of the pool until a person resumes it.
        allowed: pages that may be given an account, and names of this proxy in reverse mode
            beside its usual ones.
        view_kept: flows of the pool that a front end's view keeps; 0: all.
        fast: shorter ways through mitmproxy to use, of `config.options.FAST_STEPS`.
        drain_s: longest time requests under way go on once the proxy shuts down.
    """

    limits: Limits = field(default_factory=Limits)
    gate_s: float = 5.0
    intercept_all: bool = False
    remote: bool = False
    insecure: bool = False
    body_limits: bool = True
    websockets: str = ""
    manual_approve: bool = False
    allowed: Allowed = field(default_factory=Allowed)
    fast: frozenset[str] = frozenset()
    drain_s: float = 10.0
    view_kept: int = 500


@dataclass(frozen=True, slots=True)
class StoredRefusal:
    """The last refusal of an account, for requests that arrive while it cools."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


async def _closed(_visit: AdminRequest) -> AdminResponse:
    """The proxy has no accounts yet, and nothing to show."""
    return CLOSED


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
        providers: by name, those of the user included.
        refresh: renews the credential of an account after a 401; says if it changed, None: that
            goes on.
        local: answers a client's own token exchange, by provider name.
        seen: told the headers of each request, by provider name (editor versions).
        passed: hosts of APIs that cannot be pooled, of which the log has said why.
        show: shows the flow of a refused attempt; None where nobody looks.
        later: calls something once the current event is handled; at once without a loop.
        warnings: returns what looks wrong with the accounts and stops nothing, for people.
        wrong_clock: what is wrong with this machine's clock, for people; "" if nothing is.
        state_problem: returns why what is learnt is kept in memory only; None if it is not.
        unsent: says whether something waits to be sent behind a client, to a server.
        connected: told of a client, behind which a connection to a server is used.
        clocks: those by which a suspend is noticed.
        woke_at: when one was noticed last, seconds since the epoch.
        attend: told of a layer after a suspend, and of its connections that shall be closed.
        visited: answers a request to the proxy itself.
        own_ends: of the connections the proxy has to servers now: address and port it is
            connected from, and to.
        layers: one for each client connection that speaks HTTP.
        stopping: the proxy shuts down: what is under way finishes, nothing begins.
        turns_away: no request is held for an account any more.
    """

    def __init__(
        self,
        pool: Pool,
        settings: Settings,
        providers: Mapping[str, Provider],
        refresh: Callable[[AccountKey, Credential], Awaitable[bool | None]] | None = None,
    ) -> None:
        self.now = time.monotonic
        self.wall_now = time.time
        self.set_pool(pool)
        self.settings = settings
        self.sessions = Sessions()
        self.pins = Pins()
        self.counters = {"usage": Counts(), "resets": Counts()}
        self.usages = Usages(self.counters["usage"].add)
        self.resets = Resets(self.counters["resets"].add)
        self.measured = Measured()
        self.pages = Pages()
        self._check_clock_at = -inf
        self.wrong_clock, self._clock_said = "", False
        self.refresh = refresh
        self.local: dict[str, Callable[[], Awaitable[LocalAnswer]]] = {}
        self.seen: dict[str, Callable[[Mapping[str, str]], None]] = {}
        self.passed: set[str] = set()
        self.show: Callable[[Callable[[], http.HTTPFlow]], None] | None = None
        self.later: Callable[[Callable[[], None]], object] = lambda act: act()
        self.warnings: Callable[[], list[str]] = list
        self.state_problem: Callable[[], str | None] = lambda: None
        self.connected: Callable[[Client], None] = lambda _client: None
        self.unsent: Callable[[Client, Connection], bool] = lambda _client, _server: False
        self.clocks = waking.CLOCKS
        self._watch = Watch(*[clock() for clock in self.clocks])
        self.woke_at = -inf
        self.attend: Callable[[ClientLayer, Collection[Connection]], None] = lambda *_: None
        self.visited: Callable[[AdminRequest], Awaitable[AdminResponse]] = _closed
        self.own_ends: set[tuple[End, End]] = set()
        self.layers: WeakSet[ClientLayer] = WeakSet()
        self.stopping = self.turns_away = False
        #: what is held for an account, and when it looks again
        self._held: dict[asyncio.Event, float] = {}
        self._swaps: dict[AccountKey, tuple[Credential, Swap]] = {}
        #: where credentials may stand, by the names of the providers that share a host
        self._shared: dict[tuple[str, ...], Places] = {}
        #: by account, limits and what was its own fault apart
        self._refusals: dict[tuple[AccountKey, bool], StoredRefusal] = {}
        #: the credential with which an account's answers have named its owner, or not
        self._owned: dict[AccountKey, Credential] = {}
        #: attempts under way by client connection, so that none outlives it
        self._under_way: dict[str, dict[Attempts, Marks]] = {}
        self.chance = random.random
        self.set_providers(providers)

    def set_pool(self, pool: Pool) -> None:
        """Serve from *pool*, and tell the log what is decided there."""
        self.pool = pool
        pool.decisions.ahead = lambda: self.wall_now() - self.now()
        pool.decisions.failed = log_and_continue.log
        pool.decisions.subscribe(DecisionLog())
        pool.accounts.on_reset = self._note_reset

    def _note_reset(self, key: AccountKey, window: Window) -> None:
        """Count what was left of a window when it was reset: that is lost."""
        with log_and_continue:
            name = window.name if window.model is None else f"{window.name} {window.model}"
            self.resets.count(key, name, window.share, self.wall_now())

    def set_providers(self, providers: Mapping[str, Provider]) -> None:
        """Take in other providers; hosts of those without an account are not ours."""
        self.providers = providers
        self._swaps.clear()
        self._shared.clear()
        active = set(self.pool.accounts.providers())
        self.hosts = HostIndex([providers[name] for name in providers if name in active])

    # -- is it ours?

    def claims(self, name: str, port: int) -> bool:
        """Say whether connections to this host are the pool's business."""
        return bool(self.hosts.find(name, port))

    def open(
        self, request: http.Request, destination: Destination, client: Client
    ) -> PooledRequest | None:
        """Return the call *request* is, with its credentials masked; None if not ours."""
        providers = self.hosts.find(destination.name, destination.port)
        if not providers and destination.port == _HTTP_PORT and not destination.tls:
            # A slip: refused in words rather than sent on in the clear.
            providers = self.hosts.find(destination.name, HTTPS_PORT)
        if not providers:
            return None
        head = read_head(request, destination)
        provider, route = self._whose(providers, head)
        places = providers[0] if len(providers) == 1 else self._places(providers)
        of_page = self.pages.refused(request, head, client, self.settings.allowed)
        if of_page is None and (seen := self.seen.get(provider.name)):
            seen(head.headers)
        masked = mask(request, places, provider.name)
        denied = None
        if of_page is not None:
            if is_reverse(client):
                route = Route.POOL  # nothing of it passes, not even to be refused there
            elif has_credential(request, masked):
                route = Route.PASS
            denied = provider.refusal(of_page.status, of_page.why, None)
        elif route is not Route.PASS:
            denied = self._denied(provider, destination, client)
            is_socket = "upgrade" in head.headers and is_websocket(head)
            if denied is None and is_socket and self._refuses_socket(provider, head):
                denied = provider.refusal(426, _NO_SOCKET, None)
        return PooledRequest(
            provider=provider,
            hosts=self.hosts,
            destination=destination,
            address=(request.host, request.port),
            route=route,
            masked=masked,
            head=head,
            denied=denied,
        )

    def mask(self, request: http.Request, destination: Destination) -> None:
        """Mask *request*, which is recorded, as `open` does one that comes."""
        if providers := self.hosts.find(destination.name, destination.port):
            provider, _ = self._whose(providers, read_head(request, destination))
            places = providers[0] if len(providers) == 1 else self._places(providers)
            mask(request, places, provider.name)

    def _whose(self, providers: tuple[Provider, ...], head: RequestHead) -> tuple[Provider, Route]:
        """Return which of *providers*, who share a host, a request is for: the first to want it."""
        for candidate in providers:
            wanted = self._route(candidate, head)
            if wanted is not Route.PASS:
                return candidate, wanted
        return providers[0], Route.PASS

    def _places(self, sharing: tuple[Provider, ...]) -> Places:
        """Return where credentials may stand on a request to a host of all in *sharing*."""
        names = tuple([p.name for p in sharing])
        known = self._shared.get(names)
        if known is None:
            known = self._shared[names] = Places.of(sharing)
        return known

    def _denied(
        self, provider: Provider, destination: Destination, client: Client
    ) -> LocalAnswer | None:
        if not (destination.tls or destination.local):
            return provider.refusal(400, _NO_TLS, None)
        if self.settings.insecure and not destination.local:
            return provider.refusal(400, INSECURE, None)
        if not self.settings.remote and not self.is_local(client):
            return provider.refusal(403, _REMOTE, None)
        return None

    def is_local(self, client: Client) -> bool:
        """Say whether *client* is a program of this machine, and not the proxy itself.

        A client of another machine may have the proxy connect to its own port: what comes
        in there has an address of this machine.
        """
        return not self.is_own(client) and is_loopback(client.peername[0])

    def is_own(self, client: Client) -> bool:
        """Say whether *client* is the proxy itself, connected to its own port.

        Both ends tell: a client may come from a port that the proxy uses to a server as well.
        """
        return (client.peername[:2], client.sockname[:2]) in self.own_ends

    def _refuses_socket(self, provider: Provider, head: RequestHead) -> bool:
        if self.settings.websockets:
            return self.settings.websockets == "refuse"
        return provider.avoids_websocket(head)

    def current(self, call: PooledRequest) -> Provider | None:
        """Return the provider of *call* as accounts.yaml describes it now.

        None when its host is not that provider's any more: the file was edited while the
        request waited.
        """
        if call.hosts is self.hosts:
            return call.provider
        name = call.provider.name
        found = self.hosts.find(call.destination.name, call.destination.port)
        return next((provider for provider in found if provider.name == name), None)

    # -- serving

    def begin(
        self, call: PooledRequest, request: http.Request, client: Client
    ) -> tuple[Attempts, Marks]:
        """Return the attempts of one request of *client*, and its marks: it is under way."""
        now = self.now()
        facts = call.facts(request)
        attempts = Attempts(
            pool=self.pool,
            facts=facts,
            session=session_lease_of(facts, self.sessions, self.pins, now),
            limits=self.settings.limits,
            chance=self.chance,
            replayable=not request.stream,
        )
        marks = self._under_way.setdefault(client.id, {})[attempts] = [(Mark.BEGAN, now)]
        return attempts, marks

    def look(self) -> None:
        """Let requests under way notice how long they have waited."""
        now = self.now()
        for under_way in list(self._under_way.values()):
            for attempts in list(under_way):
                attempts.look(now)

    def mind_suspend(self) -> None:
        """Have nothing go out on connections that were kept over a suspend."""
        up, wall = self.clocks
        gap = self._watch.look(up(), wall())
        if gap is not None:
            self._woke(gap)

    def _woke(self, gap: Gap) -> None:
        self.woke_at = self.wall_now()
        closed = sum([self.renew(layer) for layer in list(self.layers)])
        what = "woke up after" if gap.slept else "the clock went ahead, as after a suspend, by"
        kept = "1 kept connection" if closed == 1 else f"{closed} kept connections"
        logger.info(f"account-pool: {what} {duration(gap.seconds)}: {kept} closed")

    def renew(self, layer: ClientLayer) -> int:
        """Have nothing go out on connections that *layer* has kept; return how many are closed."""
        idle: Collection[Connection] = ()
        with log_and_continue:
            idle = layer.woke()
            # Not while a layer handles an event, which we may be called in.
            self.later(lambda: self.attend(layer, idle))
        return len(idle)

    def end(self, client: Client, attempts: Attempts, *, left: bool = False) -> None:
        """They have ended; *left*: because their client did not wait for it."""
        under_way = self._under_way.get(client.id)
        if under_way is None or attempts not in under_way:
            return
        marks = under_way.pop(attempts)
        if not under_way:
            del self._under_way[client.id]
        try:
            self.measured.ended(attempts, marks, left=left)
        except Exception as e:
            log_and_continue.log(e)

    def client_gone(self, client: Client) -> None:
        """A safety net: whatever *client* still holds comes back."""
        for attempts, marks in self._under_way.pop(client.id, {}).items():
            attempts.left(self.now())
            with log_and_continue:
                self.measured.ended(attempts, marks, left=True)

    def served(
        self, attempts: Attempts, model: str | None, usage: Usage | None, *, requests: int = 1
    ) -> None:
        """Count what the account of the committed attempt has served."""
        key = attempts.history[-1].key
        self.usages.count(key, model, usage, self.wall_now(), requests=requests)

    def refuses_origin(self, origin: Origin) -> bool:
        """Say whether a credential must not go to *origin*, which no certificate proves."""
        return self.settings.insecure and not is_loopback(origin.host)

    def swap(self, provider: Provider, lease: Lease) -> Swap:
        """Return how the credential of *lease* goes on the wire, made once per credential."""
        known = self._swaps.get(lease.key)
        if known is not None and known[0] is lease.credential:
            return known[1]
        swap = provider.swap(lease.account, lease.credential)
        if swap.origin is None and (host := lease.account.companions.get("host")):
            swap = replace(swap, origin=Origin.parse(host))
        self._swaps[lease.key] = (lease.credential, swap)
        return swap

    # -- what only its account knows

    def _route(self, provider: Provider, head: RequestHead) -> Route:
        """Say whose business a request is: ours too when it returns a token of an account."""
        route = provider.route(head)
        if route is Route.PASS and provider.issued and self._owned_tokens(provider, head):
            kept = {n: value for n, value in head.headers.items() if n not in provider.issued}
            return provider.route(replace(head, headers=kept))
        return route

    def _owned_tokens(self, provider: Provider, head: RequestHead) -> dict[str, AccountKey]:
        """Return who issued the tokens *head* returns, by header; only those that are known."""
        return {
            name: owner
            for name in provider.issued
            if (token := head.headers.get(name))
            and (owner := self.pins.owner(provider.name, token)) is not None
        }

    def returned(self, call: PooledRequest, lease: Lease) -> dict[bytes, bytes]:
        """Return the tokens of *call* that the account of *lease* issued, by header."""
        owners = self._owned_tokens(call.provider, call.head) if call.provider.issued else {}
        return {
            name.encode(): call.head.headers[name].encode("latin-1")
            for name, owner in owners.items()
            if owner == lease.key
        }

    def learn_head(self, provider: Provider, lease: Lease, response: http.Response) -> None:
        """Learn what the head of an answer says of the account of *lease*. Raises nothing."""
        try:
            self.check_clock(provider, response)
            self.learn_owner(provider, lease, response)
            self.learn_tokens(provider, lease, response)
            self.observe(lease, response)
        except Exception as e:
            log_and_continue.log(e)

    def learn_beginning(self, call: PooledRequest, lease: Lease, reader: ResponseReader) -> None:
        """Learn what a good answer says at its beginning. Raises nothing."""
        try:
            self.observe_opening(call.provider, lease, reader)
            self.learn_ids(call, lease, reader)
        except Exception as e:
            log_and_continue.log(e)

    def learn_tokens(self, provider: Provider, lease: Lease, response: http.Response) -> None:
        """Learn from the head of an answer which tokens the account of *lease* issued."""
        if not provider.issued:
            return
        # Mostly none of them is there: that much is seen without a look at every value.
        names = {name.lower() for name, _ in response.headers.fields}
        if not names.isdisjoint([name.encode() for name in provider.issued]):
            headers = fields_by_name(response.headers.fields)
            for name in provider.issued:
                if token := headers.get(name):
                    self.pins.remember(lease.key, token, self.wall_now())

    def learn_ids(self, call: PooledRequest, lease: Lease, reader: ResponseReader) -> None:
        """Learn from the beginning of a good answer what it made on the account of *lease*."""
        for thing in call.provider.made(call.head, reader.opening, reader.response.headers):
            self.pins.remember(lease.key, thing, self.wall_now())

    async def carry_out(self, pause: Pause) -> None:
        """Carry out what a stream waits for."""
        match pause.step:
            case Wait() as wait:
                await self._wait(wait, pause.woken)
            case Refresh(lease):
                pause.refreshed = await self._refreshed(lease)
            case str() as provider:
                pause.answer = await self.local[provider]()
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
                await asyncio.wait_for(woken.wait(), timeout)
        finally:
            self._held.pop(woken, None)

    def stop(self) -> None:
        """Begin nothing any more; what is under way goes on, and what is held is held."""
        self.stopping = True

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
            return await asyncio.wait_for(renewal, REFRESH_TIMEOUT_S)
        except TimeoutError:
            logger.warning(f"{lease.key}: renewing its credential takes too long")
            return None

    def check_clock(self, provider: Provider, response: http.Response) -> None:
        """Note whether this machine's clock is minutes away from the providers'; say so once."""
        now = self.now()
        if now < self._check_clock_at:
            return
        self._check_clock_at = now + CHECK_CLOCK_S
        told = reset_hints.http_date(response.headers.get("date", ""))
        if told is None:
            return
        ahead_s = self.wall_now() - told
        if abs(ahead_s) <= CLOCK_TOLERANCE_S:
            self.wrong_clock = ""
            return
        side = "ahead of" if ahead_s > 0 else "behind"
        self.wrong_clock = (
            f"this machine's clock is {duration(abs(ahead_s))} {side} that of {provider.name}; "
            "synchronise it: until then resets and logins end at the wrong time"
        )
        if not self._clock_said:
            self._clock_said = True
            logger.warning(self.wrong_clock)

    def observe(self, lease: Lease, response: http.Response) -> None:
        """Learn from the headers of an answer what the account of *lease* has left."""
        asked = Asked(lease.facts.model, self.now(), self.wall_now())
        if windows := headroom_parsing.from_headers(response.headers.fields, asked):
            self.pool.health.observe_headroom(lease.key, windows, now=asked.now, lease=lease)

    def observe_events(
        self, provider: Provider, lease: Lease, content: bytes, model: str | None
    ) -> None:
        """Learn the same from *content*, a frame or some events, of a turn with *model*."""
        marks = provider.headroom_marks
        if any(mark in content for mark in marks):
            asked = Asked(model, self.now(), self.wall_now())
            if windows := headroom_parsing.from_events(content, marks, asked):
                self.pool.health.observe_headroom(lease.key, windows, now=asked.now, lease=lease)

    def observe_opening(self, provider: Provider, lease: Lease, reader: ResponseReader) -> None:
        """Learn it from the events that an answer begins with."""
        if provider.headroom_marks:
            self.observe_events(provider, lease, reader.opening(), lease.facts.model)

    def learn_owner(self, provider: Provider, lease: Lease, response: http.Response) -> None:
        """Learn from the head of an answer whose limits the account of *lease* shares."""
        if self._owned.get(lease.key) is lease.credential:
            return
        if response.status_code < 400:
            self._owned[lease.key] = lease.credential
        if host := lease.account.companions.get("host"):
            # Sent elsewhere than the client sent it: perhaps to a gateway.
            origin = Origin.parse(host)
            found = self.hosts.find(origin.host, origin.port)
            provider = next((p for p in found if p.name == provider.name), provider)
        if owner := provider.owner(fields_by_name(response.headers.fields)):
            self.pool.health.learn_owner(lease.key, owner)

    def learn_holder(self, key: AccountKey, credentials: Mapping[str, Credential]) -> None:
        """Learn the same from the credentials of *key*, where they say it."""
        provider = self.providers.get(key.provider)
        if provider is None:
            return
        for credential in credentials.values():
            if owner := provider.holder(credential):
                self.pool.health.learn_owner(key, owner)

    # -- when nobody can serve

    def remember(
        self, key: AccountKey, reader: ResponseReader, secrets: Secrets, *, blamed: bool = False
    ) -> None:
        """Keep a refusal, to be told again to requests that *key* cannot serve.

        *blamed*: it was its own fault, and no limit.
        """
        try:
            text = redaction.body(reader.plain(), secrets)
        except ValueError:
            return
        if len(text) > MAX_REMEMBERED_BYTES or not (reader.complete or reader.in_stream):
            return
        head = reader.response
        fields = redaction.masked(head.headers.fields, secrets)
        self._refusals[key, blamed] = StoredRefusal(head.status_code, fields, text)

    def forget(self, key: AccountKey) -> None:
        """*key* is gone: nothing of it is kept."""
        for blamed in (False, True):
            self._refusals.pop((key, blamed), None)
        self._swaps.pop(key, None)
        self._owned.pop(key, None)
        self.pins.forget(key)

    def remembered(self, key: AccountKey | None, *, blamed: bool = False) -> StoredRefusal | None:
        """Return the last refusal of *key*: a limit, or one that was its own fault."""
        return self._refusals.get((key, blamed)) if key is not None else None
