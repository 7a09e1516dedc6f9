"""Choosing an account out of 10,000, and 100,000 sessions: called directly, no proxy around it."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from benchmarks.bench import Bench
from benchmarks.figures import Figure, Target

NAME = "acquire at 10,000 accounts"
_ACCOUNTS = 10_000
#: leases held while others are taken, as a busy proxy would
_HELD = 200
_MODEL = "gpt-5"
_HOUR_S = 3600.0
_MOST_US, _MOST_LIMITED_US = 50.0, 100.0
_SESSIONS = 100_000
#: for the calls of one figure, seconds
_LONGEST_S = 3.0
#: does not run while others have the processor
_clock = time.thread_time


def measure(bench: Bench) -> list[Figure]:
    """Time each strategy with a rested pool, and with half, nearly all and all of it limited."""
    if bench.addon is None:
        return []
    # The package lies beside the script; it need not be installed.
    sys.path.insert(0, str(bench.addon.parent))
    from account_pool.core.outcome import Scope
    from account_pool.core.selection import POLICIES

    states = [(None, 0)]
    states += [
        (scope, limited)
        for limited in (_ACCOUNTS // 2, _ACCOUNTS - 1)
        for scope in (Scope.ACCOUNT, Scope.MODEL)
    ]
    calls = bench.effort.acquires
    figures = [
        _time(strategy, scope, limited, calls) for scope, limited in states for strategy in POLICIES
    ]
    # Why nobody can serve does not depend on the strategy.
    figures += [_time_begin(scope, calls) for scope in (Scope.ACCOUNT, Scope.MODEL)]
    return [*figures, _time_adopt(calls)]


def _time(strategy: str, scope: Any, limited: int, calls: int) -> Figure:
    from account_pool.core.lease import RequestFacts
    from account_pool.core.outcome import Outcome, OutcomeClass

    pool = _pool(strategy, scope, limited)
    facts = RequestFacts(provider="openai", kind="key", model=_MODEL)
    served = Outcome(cls=OutcomeClass.OK)
    held: deque[Any] = deque()
    taken: list[float] = []
    for number in range(calls):
        now = 1.0 + number / 1000
        started = _clock()
        lease = pool.acquire(facts, now=now)
        taken.append(_clock() - started)
        if sum(taken) > _LONGEST_S:
            break
        # Its answer begins: one that takes over from another is given one request at a time.
        pool.answered(lease, now=now)
        held.append(lease)
        if len(held) > _HELD:
            pool.release(held.popleft(), served, now=now)
    state = f", {limited:,} limited ({scope})" if scope else ""
    most_us = _MOST_LIMITED_US if limited > _ACCOUNTS // 2 else _MOST_US
    return _figure(NAME, f"{strategy}{state}", taken, most_us)


def _time_begin(scope: Any, calls: int) -> Figure:
    """Begin requests that nobody can serve, for a client that does not wait."""
    from account_pool.core.attempts import Attempts
    from account_pool.core.lease import RequestFacts
    from account_pool.core.steps import Limits

    pool = _pool("round-robin", scope, _ACCOUNTS)
    limits = Limits(max_wait_s=0.0)

    def begin(number: int) -> None:
        facts = RequestFacts(provider="openai", kind="key", model=_MODEL)
        request = Attempts(pool=pool, facts=facts, limits=limits, chance=lambda: 0.5)
        request.begin(1.0 + number / 1000)

    return _figure(NAME, f"all limited ({scope})", _timed(begin, calls), _MOST_LIMITED_US)


def _time_adopt(calls: int) -> Figure:
    """Take over single sessions that other proxies have bound."""
    from account_pool.core.sessions import Sessions

    sessions = Sessions(max_sessions=2 * _SESSIONS)
    rows = [(f"session-{n}", "openai/a", n / 1000) for n in range(_SESSIONS + calls)]
    wall_now = rows[-1][2]
    sessions.adopt(rows[calls:], now=wall_now, wall_now=wall_now)
    taken = _timed(lambda n: sessions.adopt([rows[n]], now=wall_now, wall_now=wall_now), calls)
    return _figure("sessions", f"adopt one at {_SESSIONS:,}", taken, _MOST_LIMITED_US)


def _timed(call: Callable[[int], object], calls: int) -> list[float]:
    """Return how long each of *calls* took, or as many as there is time for, seconds."""
    taken: list[float] = []
    while len(taken) < calls and sum(taken) < _LONGEST_S:
        started = _clock()
        call(len(taken))
        taken.append(_clock() - started)
    return taken


def _figure(scenario: str, name: str, taken: list[float], most_us: float) -> Figure:
    taken.sort()
    return Figure(
        scenario=scenario,
        name=f"{name}, median",
        value=statistics.median(taken) * 1e6,
        unit="us",
        target=Target(most_us),
        note=f"99 % within {taken[len(taken) * 99 // 100] * 1e6:.1f} us",
    )


def _pool(strategy: str, scope: Any, limited: int) -> Any:
    """Return a pool of 10,000, of which the first *limited* cool for an hour."""
    from account_pool.core.account import Account
    from account_pool.core.credential import Credential, Secret
    from account_pool.core.outcome import Outcome, OutcomeClass
    from account_pool.core.pool import Pool

    pool = Pool(strategy=strategy)
    keys = []
    for number in range(_ACCOUNTS):
        account = Account(provider="openai", label=f"account-{number:05}")
        credential = Credential(kind="key", secret=Secret(f"sk-bench-{number}"))
        keys.append(pool.accounts.add(account, {"key": credential}, now=0.0))
    if scope is not None:
        limit = Outcome(cls=OutcomeClass.RATE_LIMIT, scope=scope, cooldown_s=_HOUR_S)
        for key in keys[:limited]:
            pool.health.mark_cooldown(key, limit, now=0.5, model=_MODEL)
    return pool
