"""The addresses of the API, one function each: its name and docstring are published.

Each change is a line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from account_pool import __version__
from account_pool.admin import requests, views
from account_pool.admin.actions import Actions, PoolService
from account_pool.admin.auth import CODE_S, REDEEM_PATH, REVEAL_PATH, OneTimeCodes, TokenGuard
from account_pool.admin.http import AdminRequest, ApiError
from account_pool.admin.models import (
    AccountName,
    DecisionsQuery,
    LinkCode,
    NewAccount,
    Nothing,
    PinnedSession,
    ProviderName,
    Refresh,
    RequestsQuery,
    SeriesQuery,
    SessionKey,
    SessionsQuery,
    UsageQuery,
)
from account_pool.admin.requests import AskStore, Known
from account_pool.admin.views import Clocks, Json, Sums, iso
from account_pool.core.accounts import occupancy
from account_pool.core.instruments import DecisionCounter
from account_pool.core.state import AccountState
from account_pool.store.store import StoreError
from account_pool.supervision import tasks
from account_pool.workers.worker import Link

#: How long accounts are not shown because the state database takes its time, seconds: whoever asks
#: (`account-pool status`) waits 3.
USAGE_S = 1.0
#: How long the store is waited for with decisions of other proxies, seconds: as above.
DECIDED_S = 1.0


@dataclass(slots=True, eq=False, kw_only=True)
class AdminContext:
    """The pool, and what the proxy knows besides.

    Attributes:
        counted: returns the sums of a counter: "usage" by (day, account, model), "resets" by
            (day, account, window).
        ask_store: returns what the state database answers.
        known: returns what knows some of it without that; None while nothing is kept.
        started_at: when this process was started, monotonic seconds.
        ready: returns whether the proxy serves requests.
        accounts_file: returns the accounts file in use; None if there is none.
        link: the launcher, where this is one of several workers.
    """

    service: PoolService
    actions: Actions
    decision_counter: DecisionCounter
    counted: Callable[[str], Awaitable[Sums]]
    ask_store: AskStore
    known: Callable[[], Known | None]
    started_at: float
    ready: Callable[[], bool]
    accounts_file: Callable[[], Path | None]
    guard: TokenGuard
    codes: OneTimeCodes = field(default_factory=OneTimeCodes)
    link: Link | None = None
    _ahead: float = 0.0

    def source(self) -> Json:
        """Return the accounts file in use; null if the accounts come from the environment."""
        path = self.accounts_file()
        return {"accounts_file": None if path is None else str(path)}

    def store(self) -> Json:
        """Return what keeps the state, and how it is."""
        fleet, problem = self.service.fleet, self.service.state_problem()
        return {
            "kind": fleet.kind,
            "server": fleet.server or None,
            "problem": problem,
            "is_known": fleet.is_known,
        }

    def clocks(self) -> Clocks:
        """Return now, on both clocks.

        What the one is ahead of the other is measured again when it has changed: an instant in
        the future stays the same to the millisecond, however often it is read.
        """
        now, wall_now = self.service.now(), self.service.wall_now()
        if abs(wall_now - now - self._ahead) > CLOCKS_DIFFER_S:
            self._ahead = wall_now - now
        return Clocks(now, now + self._ahead)

    async def extras(self) -> views.AccountExtras:
        """Return sessions and usage by account."""
        # What accounts can do is known without it: no state database keeps that from anybody.
        try:
            async with asyncio.timeout(USAGE_S):
                sums = await self.counted("usage")
        except (StoreError, TimeoutError):
            known = self.known()
            sums = known.counts("usage") if known else {}
        clocks = self.clocks()
        return views.AccountExtras(
            sessions=views.sessions_by_account(self.service.sessions, clocks.now),
            usage=views.usage_of_day(sums, views.day_of(clocks.wall_now)),
            look_ups=self.service.look_ups.views(),
        )

    async def account(self, state: AccountState) -> Json:
        """Return one account as JSON."""
        extras = await self.extras()
        return views.account_view(state, self.clocks(), extras)


logger = logging.getLogger(__name__)

#: By how much the two clocks may have gone apart, seconds.
CLOCKS_DIFFER_S = 0.1

Handler = Callable[..., Awaitable[Json]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address and what it does.

    Attributes:
        path: with `{provider}` where the name of one stands.
        name: unique; the operation id of the description.
        handler: called with the context and what was asked: the parsed body or query, the
            provider in the path, or None.
        returns: name of the schema of a good answer, which has the *status*.
        query, body: the shape of what is asked.
        refusals: statuses of its own refusals.
        open: needs no token.
        sender: the handler is also given the request itself, behind what was asked.
    """

    path: str
    name: str
    handler: Handler
    returns: str
    summary: str
    _: KW_ONLY
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    status: int = 200
    refusals: tuple[int, ...] = ()
    open: bool = False
    sender: bool = False

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"


#: In the order of the description.
ENDPOINTS: list[Endpoint] = []


def _at(path: str, returns: str, *, name: str = "", **how: Any) -> Callable[[Handler], Handler]:
    """Register a function as the handler of *path*; *how* are further fields of its `Endpoint`."""

    def register(handler: Handler) -> Handler:
        summary = " ".join((handler.__doc__ or "").split())
        ENDPOINTS.append(Endpoint(path, name or handler.__name__, handler, returns, summary, **how))
        return handler

    return register


# -- accounts


@_at("/account-pool", "Pool")
async def accounts(context: AdminContext, _asked: None) -> Json:
    """Every account with its state, the cause and the end of its cooldowns, and a summary."""
    extras = await context.extras()
    view = views.pool_view(context.service.pool, context.clocks(), extras)
    return {
        **context.source(),
        **view,
        "warnings": context.service.warnings(),
        "state_problem": context.service.state_problem(),
    }


@_at("/account-pool/{provider}", "OneProvider", refusals=(404,))
async def accounts_of_provider(context: AdminContext, name: str) -> Json:
    """The accounts of one provider."""
    extras = await context.extras()
    known = context.actions.provider(name)
    return views.provider_view(context.service.pool, known, context.clocks(), extras)


@_at("/account-pool/add", "Added", body=NewAccount, status=201, refusals=(409,))
async def add(context: AdminContext, asked: NewAccount) -> Json:
    """Add an account. It is written to accounts.yaml, or to the store where that is read-only
    or absent."""
    state, where = await context.actions.add(asked.entry())
    _note(f"added {state.key} ({where})")
    return {"account": await context.account(state), "written_to": where}


@_at("/account-pool/remove", "Removed", body=AccountName, refusals=(404, 409))
async def remove(context: AdminContext, asked: AccountName) -> Json:
    """Remove an account, also from its file or store. Its running requests finish."""
    key, where = await context.actions.remove(asked.provider, asked.label)
    _note(f"removed {key}")
    return {"removed": str(key), "written_to": where}


@_at("/account-pool/next", "Next", name="next", body=ProviderName, refusals=(404,))
async def next_account(context: AdminContext, asked: ProviderName) -> Json:
    """Skip the account whose turn it is."""
    chosen = context.actions.next(asked.provider)
    _note(f"next of {asked.provider.strip().lower()}: {chosen or 'nobody'}")
    return {"next": None if chosen is None else str(chosen)}


@_at("/account-pool/clear-cooldown", "Cleared", body=AccountName, refusals=(404,))
async def clear_cooldown(context: AdminContext, asked: AccountName) -> Json:
    """End every cooldown of an account, and enable it if it is disabled."""
    clocks = context.clocks()
    state, ended = context.actions.clear_cooldown(asked.provider, asked.label)
    _note(f"cleared {state.key}")
    return {
        "cleared": [views.cooldown_view(cooldown, clocks) for cooldown in ended],
        "account": await context.account(state),
    }


@_at("/account-pool/enable", "OneAccount", body=AccountName, refusals=(404, 409))
async def enable(context: AdminContext, asked: AccountName) -> Json:
    """Enable a disabled account; its cooldowns stay."""
    state = context.actions.enable(asked.provider, asked.label)
    _note(f"enabled {state.key}")
    return {"account": await context.account(state)}


@_at("/account-pool/disable", "OneAccount", body=AccountName, refusals=(404,))
async def disable(context: AdminContext, asked: AccountName) -> Json:
    """Disable an account until it is enabled again, across restarts too."""
    state = context.actions.disable(asked.provider, asked.label)
    _note(f"disabled {state.key}")
    return {"account": await context.account(state)}


@_at(REVEAL_PATH, "Revealed", body=AccountName, refusals=(404,))
async def reveal(context: AdminContext, asked: AccountName) -> Json:
    """Show the credentials of an account, by kind; on this machine, and only while
    pool_show_tokens is set."""
    state = context.actions.get(asked.provider, asked.label)
    _note(f"showed the credential of {state.key}")
    shown = {kind: one.secret.reveal() for kind, one in state.credentials.items()}
    return {"key": str(state.key), "credentials": shown}


# -- a link to the dashboard that logs in


@_at("/link", "Link", body=Nothing, status=201, sender=True)
async def link(context: AdminContext, _asked: Nothing, sent: AdminRequest) -> Json:
    """Make a link that opens the dashboard logged in: once, and for a minute."""
    code = context.codes.make(context.service.now())
    _note("made a link to the dashboard")
    # The name by which we were asked, which is one of our own, leads back here.
    host = sent.authority or sent.values(b"host")[0]
    url = f"{'https' if sent.tls else 'http'}://{host}/#code={code}"
    return {"url": url, "expires_in_s": CODE_S}


@_at(REDEEM_PATH, "Token", body=LinkCode, open=True, sender=True)
async def redeem_link(context: AdminContext, asked: LinkCode, sent: AdminRequest) -> Json:
    """Exchange the code of a link for the admin token. It is valid once."""
    now = context.service.now()
    if not sent.of_worker:
        context.guard.check_failures(sent.peer, now)
    good = context.codes.redeem(asked.code, now)
    if not good and context.link is not None and not sent.of_worker:
        # The worker that has made it is the only one that knows it.
        said = await context.link.ask(sent.for_workers())
        good = any("token" in one for one in said.values())
    if not good:
        if not sent.of_worker:
            context.guard.note_failure(sent.peer, now)
        raise ApiError(401, "wrong_code", "this link was used, or is too old; make a new one")
    return {"token": context.guard.token.reveal()}


# -- what happened


@_at("/decisions", "Decisions", query=DecisionsQuery)
async def decisions(context: AdminContext, asked: DecisionsQuery) -> Json:
    """The latest decisions and their causes, newest first."""
    known = None
    # What is known here is shown without it, and soon.
    with suppress(StoreError, TimeoutError):
        async with asyncio.timeout(DECIDED_S):
            known = await context.ask_store(context.service.decided.sync)
    rows, upto = known or context.service.decided.own()
    # A log that has begun anew has smaller numbers.
    since = asked.since if asked.since <= upto else 0
    wanted = (row for row in reversed(rows) if row["number"] > since and _is_wanted(row, asked))
    shown = [_decision_view(row) for row in islice(wanted, asked.limit)]
    # Without an account nothing is kept yet: no state is missing.
    alone = known is None and context.service.fleet.kind is not None
    return {"decisions": shown, "next": upto, "alone": alone}


def _is_wanted(row: Mapping[str, Any], asked: DecisionsQuery) -> bool:
    if asked.kind not in (None, row["kind"]):
        return False
    return asked.account in (None, row["account"], row["to"])


def _decision_view(row: Mapping[str, Any]) -> Json:
    """Return it with instants."""
    instants = {
        name: None if row[name] is None else iso(row[name]) for name in ("at", "until", "ended_at")
    }
    return {**row, **instants}


@_at("/headroom", "HeadroomDay")
async def headroom(context: AdminContext, _asked: None) -> Json:
    """What the accounts of each provider had left over the last 24 hours, since the start."""
    return views.headroom_day_view(context.service.headroom_history.samples)


@_at("/providers", "Providers")
async def providers(context: AdminContext, _asked: None) -> Json:
    """What an account can be of, those of accounts.yaml included."""
    known = context.actions.known()
    # The first time they are compiled, which takes a while.
    return {"providers": await asyncio.to_thread(views.providers_view, known)}


@_at("/sessions", "Sessions", query=SessionsQuery)
async def sessions(context: AdminContext, asked: SessionsQuery) -> Json:
    """The conversations bound to an account, most recently used first."""
    return views.sessions_view(
        context.service.sessions, context.service.pins, context.clocks(), asked.limit
    )


@_at("/sessions/pin", "Pinned", body=PinnedSession, refusals=(404,))
async def pin_session(context: AdminContext, asked: PinnedSession) -> Json:
    """Have one account alone serve a conversation, until that is closed."""
    state, key = context.actions.pin_session(
        asked.provider, asked.label, key=asked.key, session=asked.session
    )
    _note(f"pinned a session to {state.key}")
    return {"key": key, "account": str(state.key)}


@_at("/sessions/close", "Closed", body=SessionKey, refusals=(404,))
async def close_session(context: AdminContext, asked: SessionKey) -> Json:
    """Forget a conversation; its next request goes where the strategy says."""
    context.actions.close_session(asked.key)
    _note("closed a session")
    return {"closed": asked.key}


@_at("/usage", "Usage", query=UsageQuery)
async def usage(context: AdminContext, asked: UsageQuery) -> Json:
    """Requests and tokens by day (UTC), account and model, newest day first; with `group` also
    summed up by that."""
    return await requests.usage(context, asked)


@_at("/usage/refresh", "Refreshed", name="refresh", body=Refresh, refusals=(404, 409))
async def refresh(context: AdminContext, asked: Refresh) -> Json:
    """Ask providers what accounts have left, if `pool_look_up` is on: those that the vendor's own
    addresses tell, each at most every five minutes."""
    states = context.actions.some(asked.provider, asked.label)
    if not context.service.look_ups.is_on:
        text = "look-ups are off; pool_look_up=true switches them on (docs/accounts.md)"
        raise ApiError(409, "off", text)
    keys = await context.service.look_ups.refresh(states)
    _note(f"looked up {len(keys)} of {len(states)} accounts")
    extras = await context.extras()
    views_of = [views.account_view(state, context.clocks(), extras) for state in states]
    fields = ("key", "headroom", "tightest", "look_up")
    return {"accounts": [{name: view[name] for name in fields} for view in views_of]}


@_at("/requests", "Requests", query=RequestsQuery, name="requests")
async def ended_requests(context: AdminContext, asked: RequestsQuery) -> Json:
    """Requests that have ended, newest first. No prompt, answer or header is kept."""
    return await requests.page(context, asked)


@_at("/requests/series", "Series", query=SeriesQuery, name="series")
async def requests_series(context: AdminContext, asked: SeriesQuery) -> Json:
    """What requests were like in each step of time: the last 24 hours unless others are named."""
    return await requests.series(context, asked)


@_at("/proxies", "Proxies")
async def proxies(context: AdminContext, _asked: None) -> Json:
    """The proxies that share the state: this one first, those that have gone last."""
    return views.fleet_view(context.service.fleet.views(), context.clocks(), context.store())


@_at("/health", "Health")
async def health(context: AdminContext, _asked: None) -> Json:
    """Whether the proxy serves. Cheap, and never needs the token."""
    link, pid = context.link, os.getpid()
    uptime_s = round(context.service.now() - context.started_at, 3)
    of_workers: Json = {"workers": []}
    if link is not None:
        busy = [str(state.key) for state in context.service.pool.accounts if state.in_flight]
        worker = {"number": link.number, "pid": pid, "uptime_s": uptime_s, "busy": len(busy)}
        of_workers = {"worker": worker, "busy_accounts": busy}
        pid, uptime_s = link.launcher, round(context.service.now() - link.started_at, 3)
    return {
        "status": "ok",
        "version": __version__,
        "uptime_s": uptime_s,
        **occupancy(context.service.pool.accounts),
        "pid": pid,
        "instance": context.service.fleet.instance,
        "ready": context.ready(),
        "stopping": context.service.stopping,
        "failed_tasks": [
            {"name": name, "failures": f.failures, "error": f.error, "running": f.running}
            for name, f in tasks.failed.items()
        ],
        "state_problem": context.service.state_problem(),
        "notify": context.service.notify_targets(),
        **context.source(),
        **of_workers,
    }


def _note(what: str) -> None:
    logger.info(f"account-pool: by hand (admin API): {what}")
