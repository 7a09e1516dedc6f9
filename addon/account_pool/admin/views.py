"""The pool as JSON. Pure: values in, plain values out; no secret can come this far.

Instants are ISO 8601 in UTC (`..._at`), durations seconds (`..._s`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from msgspec import Struct, field

from account_pool.core.account import AccountKey
from account_pool.core.accounts import summary
from account_pool.core.cooldown import AccountVerdict, Cooldown
from account_pool.core.decisions import session_hash
from account_pool.core.fleet import ProxyState, ProxyView, versions
from account_pool.core.headroom import Window, tightest_window
from account_pool.core.instruments import EVERY_S, Sample
from account_pool.core.outcome import Cause
from account_pool.core.pool import Pool
from account_pool.core.sessions import Pins, Sessions, session_of
from account_pool.core.state import AccountState
from account_pool.credentials.vendor_logins import VENDORS
from account_pool.providers.base import Provider

Json = dict[str, Any]
#: Amounts by name, by (day, account, model), as the store counts them.
Sums = Mapping[tuple[str, ...], Mapping[str, float]]

#: What is counted of a request.
AMOUNTS = (
    "requests",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cache_write_tokens",
)
#: What it cost: money, money that a subscription saved, Copilot's premium requests.
COSTS = ("cost_usd", "saved_usd", "premium_requests")
#: Of an account that has served nothing.
NOTHING: Mapping[str, int] = dict.fromkeys(AMOUNTS, 0)


class Clocks(Struct, frozen=True):
    """Now, on both clocks, in seconds."""

    now: float
    wall_now: float

    def iso(self, at: float) -> str | None:
        """Return the monotonic instant *at* in UTC; None where it is no date."""
        return iso(self.wall_now + at - self.now)


def iso(wall_at: float) -> str | None:
    """Return *wall_at* (seconds since the epoch) as ISO 8601 in UTC, to milliseconds."""
    try:
        at = datetime.fromtimestamp(wall_at, UTC)
    except (OverflowError, ValueError, OSError):
        return None  # never, or beyond the calendar
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class AccountExtras(Struct, frozen=True):
    """Figures about accounts that are kept outside the pool.

    Attributes:
        sessions: number of sessions on each account.
        usage: what each account has served today (UTC), by name of amount.
        look_ups: what came of asking its provider what it has left, of those that were asked.
    """

    sessions: Mapping[AccountKey, int] = field(default_factory=dict)
    usage: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    look_ups: Mapping[AccountKey, Mapping[str, object]] = field(default_factory=dict)


# -- accounts


def pool_view(pool: Pool, clocks: Clocks, extras: AccountExtras) -> Json:
    """Return all accounts, and what they are altogether and by provider."""
    return {
        "accounts": [account_view(state, clocks, extras) for state in pool.accounts],
        "summary": summary(pool.accounts, now=clocks.now),
        "providers": {
            name: summary(pool.accounts.of(name), now=clocks.now)
            for name in pool.accounts.providers()
        },
    }


def provider_view(pool: Pool, provider: str, clocks: Clocks, extras: AccountExtras) -> Json:
    """Return the accounts of one provider."""
    states = pool.accounts.of(provider)
    return {
        "provider": provider,
        "accounts": [account_view(state, clocks, extras) for state in states],
        "summary": summary(pool.accounts.of(provider), now=clocks.now),
    }


def account_view(state: AccountState, clocks: Clocks, extras: AccountExtras) -> Json:
    """Return one account: what its owner wrote, but for the token, and how it is."""
    account = state.account
    verdict, reason = verdict_of(state, clocks.now)
    return {
        "key": str(state.key),
        "provider": account.provider,
        "label": account.label,
        "state": verdict,
        "reason": reason,
        "in_flight": state.in_flight,
        "oldest_s": _seconds(clocks.now - min(state.running.values())) if state.running else None,
        "departures": state.departures,
        "broken": state.broken,
        "served": state.served,
        "sessions": extras.sessions.get(state.key, 0),
        "priority": account.priority,
        "weight": account.weight,
        "models": list(account.models.globs),
        "reserve": dict(account.reserve),
        "max_concurrent": account.max_concurrent,
        "min_interval_s": account.min_interval_s,
        "placeholder": f"pool:{state.key}",
        "cooldowns": [cooldown_view(c, clocks) for c in _active(state, clocks.now)],
        # Refusals that may be its own fault: all others are asked before it.
        "asked_last": [
            _span_view(verdict.covered, verdict, clocks)
            for verdict in state.verdicts.values()
            if verdict.active(clocks.now)
        ],
        "disabled": _disabling_view(state, clocks),
        "problem": state.problem,
        "headroom": headroom_view(state, clocks),
        "tightest": _tightest_view(state, clocks),
        "look_up": extras.look_ups.get(state.key),
        "usage": {**NOTHING, **extras.usage.get(str(state.key), {})},
    }


def verdict_of(state: AccountState, now: float) -> tuple[str, str]:
    """Return what an account does now, in a word, and why; "" when it is available."""
    if not state.account.enabled:
        return "off", "enabled: false"
    if state.disabled is not None:
        return "disabled", state.disabled.signal or str(state.disabled.cls)
    if not state.credentials:
        return "no_credential", state.problem or "being fetched"
    whole = [c for c in _active(state, now) if c.model is None]
    if whole:
        cause = max(whole, key=lambda c: c.until).cause
        return "cooling", cause.signal or str(cause.cls)
    if state.full:
        return "full", f"max_concurrent: {state.account.max_concurrent}"
    return "available", ""


def cooldown_view(cooldown: Cooldown, clocks: Clocks) -> Json:
    """Return one cooldown: what it covers, why, since when and until when."""
    return {**_span_view(cooldown.model, cooldown, clocks), "streak": cooldown.streak}


def _span_view(model: str | None, held: Cooldown | AccountVerdict, clocks: Clocks) -> Json:
    return {
        "model": model,
        **_cause_view(held.cause),
        "since_at": clocks.iso(held.since),
        "until_at": clocks.iso(held.until),
        "remaining_s": _seconds(held.until - clocks.now),
    }


def headroom_view(state: AccountState, clocks: Clocks) -> list[Json]:
    """Return what is left of each allowance that is known."""
    return [_window_view(window, clocks) for window in _windows(state, clocks)]


def _tightest_view(state: AccountState, clocks: Clocks) -> Json | None:
    """Return the allowance with the least left: the one figure of an account in a list."""
    tightest = tightest_window(_windows(state, clocks), clocks.now)
    return None if tightest is None else _window_view(tightest, clocks)


def _windows(state: AccountState, clocks: Clocks) -> Collection[Window]:
    return state.headroom.at(clocks.now).windows.values()


def _window_view(window: Window, clocks: Clocks) -> Json:
    return {
        "window": window.name,
        "model": window.model,
        "remaining": round(window.share, 4),
        "resets_at": clocks.iso(window.reset_at),
        "resets_s": _seconds(window.reset_at - clocks.now) if isfinite(window.reset_at) else None,
    }


def _disabling_view(state: AccountState, clocks: Clocks) -> Json | None:
    if state.disabled is None:
        return None
    return {**_cause_view(state.disabled), "since_at": clocks.iso(state.disabled_at)}


def _cause_view(cause: Cause) -> Json:
    return {
        "class": cause.cls.value,
        "signal": cause.signal,
        "evidence": dict(cause.evidence),
    }


def _active(state: AccountState, now: float) -> list[Cooldown]:
    return [c for c in state.holds() if c.active(now)]


def _seconds(duration: float) -> float:
    return round(max(duration, 0.0), 3)


def headroom_day_view(samples: Iterable[Sample]) -> Json:
    """Return what each provider had left over the day, oldest first."""
    rows = [
        {"at": iso(sample.wall_at), "left": {p: round(s, 4) for p, s in sample.left.items()}}
        for sample in samples
    ]
    return {"every_s": EVERY_S, "samples": rows}


# -- proxies


def fleet_view(proxies: Sequence[ProxyView], clocks: Clocks, store: Json) -> Json:
    """Return the proxies that share the state, and what keeps that."""
    counts = Counter(proxy.state for proxy in proxies)
    return {
        "proxies": [_proxy_view(proxy, clocks) for proxy in proxies],
        "summary": {
            **{state.value: counts[state] for state in ProxyState},
            "in_flight": sum(proxy.in_flight for proxy in proxies),
        },
        "versions": versions(proxies),
        "store": store,
    }


def _proxy_view(proxy: ProxyView, clocks: Clocks) -> Json:
    started_s, seen_s = proxy.started_s, proxy.seen_s
    return {
        "key": proxy.key,
        "name": proxy.name,
        "this": proxy.is_this,
        "state": proxy.state.value,
        "version": proxy.version,
        "mitmproxy": proxy.mitmproxy,
        # To the second: both are reckoned from durations, anew each time.
        "started_at": None if started_s is None else iso(round(clocks.wall_now - started_s)),
        "started_s": None if started_s is None else _seconds(started_s),
        "seen_at": None if seen_s is None else iso(round(clocks.wall_now - seen_s)),
        "seen_s": None if seen_s is None else _seconds(seen_s),
        "in_flight": proxy.in_flight,
        "workers": proxy.workers,
        "problem": proxy.problem,
        "same_accounts": proxy.same_accounts,
    }


# -- providers


def providers_view(known: Mapping[str, Provider]) -> list[Json]:
    """Return what an account can be of, by name. Compiles those that were not used yet."""
    return [
        {
            "name": name,
            "hosts": [("*." if rule.subdomains else "") + rule.host for rule in provider.hosts],
            "env": list(provider.env),
            "companions": sorted(
                {*provider.companions, *(("account_type",) if name == "copilot" else ())}
            ),
            "login": name in VENDORS,
        }
        for name, provider in sorted(known.items())
    ]


# -- sessions


def sessions_view(sessions: Sessions, pins: Pins, clocks: Clocks, limit: int) -> Json:
    """Return the sessions used last, the newest first, *limit* at most, and how many there are."""
    keys = list(sessions)[::-1][:limit]
    known = [(key, sessions.peek(key, clocks.now)) for key in keys]
    rows = [
        {
            "key": key,
            # One key of a pinned conversation may still name where another model of it was served.
            "account": str(owner or session.account),
            "used_at": clocks.iso(session.used_at),
            "idle_s": _seconds(clocks.now - session.used_at),
            "turns": session.in_flight,
            "pinned": owner is not None,
            "session": session_hash(session_of(key, session.account.provider)),
        }
        for key, session in known
        if session is not None
        for owner in [_pinned_to(key, session.account.provider, pins)]
    ]
    return {"sessions": rows, "total": len(sessions)}


def _pinned_to(key: str, provider: str, pins: Pins) -> AccountKey | None:
    session = session_of(key, provider) if pins.has_sessions else None
    return None if session is None else pins.pinned_to(provider, session)


def sessions_by_account(sessions: Sessions, now: float) -> Mapping[AccountKey, int]:
    """Return how many sessions live on each account."""
    found = (sessions.peek(key, now) for key in sessions)
    return Counter(session.account for session in found if session is not None)


# -- usage


def usage_view(sums: Sums, resets: Sums) -> Json:
    """Return what was served, by day, account and model, the newest day first.

    And what was left of long windows when they were reset, on average, as reported last.
    """
    windows = [
        {
            "day": day,
            "account": account,
            "window": window,
            "resets": int(count),
            "left": round(amounts.get("left", 0.0) / count, 4),
        }
        for day, account, window in _newest_first(resets)
        if (count := (amounts := resets[day, account, window]).get("resets", 0.0))
    ]
    days = [
        {"day": day, "account": account, "model": model, **with_costs(sums[day, account, model])}
        for day, account, model in _newest_first(sums)
    ]
    return {"days": days, "windows": windows}


def _newest_first(sums: Sums) -> list[tuple[str, ...]]:
    keys = sorted(sums, key=lambda key: key[1:])
    keys.sort(key=lambda key: key[0], reverse=True)
    return keys


def usage_of_day(sums: Sums, day: str) -> Mapping[str, Mapping[str, int]]:
    """Return what each account has served on *day* (2026-08-01, UTC), over all models."""
    totals: dict[str, Counter[str]] = {}
    for key, amounts in sums.items():
        if key[0] == day:
            totals.setdefault(key[1], Counter()).update(whole(amounts))
    return totals


def day_of(wall_at: float) -> str:
    """Return the day of *wall_at* in UTC, as usage is counted."""
    return datetime.fromtimestamp(wall_at, UTC).date().isoformat()


def whole(amounts: Mapping[str, float]) -> dict[str, int]:
    """Return every amount that is counted, as whole numbers."""
    return {name: int(amounts.get(name, 0)) for name in AMOUNTS}


def with_costs(amounts: Mapping[str, float]) -> Json:
    """Return what is counted, and what it cost: None where no price is known, which is no 0."""
    counted, priced = whole(amounts), int(amounts.get("priced_requests", 0))
    unpriced = max(counted["requests"] - priced, 0)
    known = priced > 0 or not unpriced
    costs = {name: round(float(amounts.get(name, 0)), 9) if known else None for name in COSTS}
    return {**counted, **costs, "unpriced_requests": unpriced}
