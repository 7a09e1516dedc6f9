"""`Pool.acquire` at 10,000 accounts: called directly, no proxy around it."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from typing import Any

from benchmarks.bench import Bench
from benchmarks.figures import Figure, Target

NAME = "acquire at 10,000 accounts"
_ACCOUNTS = 10_000
#: leases held while others are taken, as a busy proxy would
_HELD = 200
_MODEL = "gpt-5"
_HOUR_S = 3600.0


def measure(bench: Bench) -> list[Figure]:
    """Time each strategy with a rested pool, and with half of it limited."""
    if bench.addon is None:
        return []
    # The package lies beside the script; it need not be installed.
    sys.path.insert(0, str(bench.addon.parent))
    from account_pool.core.outcome import Scope
    from account_pool.core.selection import POLICIES

    return [
        _time(strategy, scope, bench.effort.acquires)
        for scope in (None, Scope.ACCOUNT, Scope.MODEL)
        for strategy in POLICIES
    ]


def _time(strategy: str, scope: Any, calls: int) -> Figure:
    from account_pool.core.lease import RequestFacts
    from account_pool.core.outcome import Outcome, OutcomeClass

    pool = _pool(strategy, scope)
    facts = RequestFacts(provider="openai", kind="key", model=_MODEL)
    served = Outcome(cls=OutcomeClass.OK)
    held: deque[Any] = deque()
    taken: list[float] = []
    clock = time.perf_counter
    for number in range(calls):
        now = 1.0 + number / 1000
        started = clock()
        lease = pool.acquire(facts, now=now)
        taken.append(clock() - started)
        held.append(lease)
        if len(held) > _HELD:
            pool.release(held.popleft(), served, now=now)
    taken.sort()
    state = f", half limited ({scope})" if scope else ""
    return Figure(
        scenario=NAME,
        name=f"{strategy}{state}, median",
        value=statistics.median(taken) * 1e6,
        unit="us",
        target=Target(50.0),
        note=f"99 % within {taken[len(taken) * 99 // 100] * 1e6:.1f} us",
    )


def _pool(strategy: str, scope: Any) -> Any:
    """Return a pool of 10,000; with *scope*, the first half cools for an hour."""
    from account_pool.core.account import Account
    from account_pool.core.credential import Credential, Secret
    from account_pool.core.outcome import Outcome, OutcomeClass
    from account_pool.core.pool import Pool

    pool = Pool(strategy=strategy)
    keys = []
    for number in range(_ACCOUNTS):
        account = Account(provider="openai", label=f"account-{number:05}")
        credential = Credential(kind="key", secret=Secret(f"sk-bench-{number}"))
        keys.append(pool.add(account, {"key": credential}, now=0.0))
    if scope is not None:
        limit = Outcome(cls=OutcomeClass.RATE_LIMIT, scope=scope, cooldown_s=_HOUR_S)
        for key in keys[: _ACCOUNTS // 2]:
            pool.mark_cooldown(key, limit, now=0.5, model=_MODEL)
    return pool
