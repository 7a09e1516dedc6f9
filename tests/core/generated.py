"""What the machines draw from (hypothesis), and what must hold of any pool."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from account_pool.core.accounts import occupancy, summary
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Scope
from account_pool.core.pool import Pool
from account_pool.core.state import AccountState
from tests.core.helpers import (
    BARE_429,
    EXPIRED,
    FORBIDDEN,
    FORBIDDEN_MODEL,
    INVALID_KEY,
    OK,
    OVERLOADED,
    PROVIDER,
    REQUEST_ERROR,
    SERVER_ERROR,
    UNAUTHORIZED,
    UNKNOWN_401,
    UNKNOWN_402,
    UNKNOWN_403,
    account,
    keys_of,
    quota,
    rate_limit,
)
from tests.patience import tries

SETTINGS = settings(max_examples=tries(30), stateful_step_count=40)

MODELS = ["gpt-5", "gpt-5-mini", None]
REQUESTS = [
    RequestFacts(provider=PROVIDER, kind=kind, model=m) for kind in ("key", "oauth") for m in MODELS
]

labels = st.sampled_from(["a", "b", "c", "d"])
requests = st.sampled_from(REQUESTS)
accounts = st.builds(
    lambda label, models, **rest: account(label, *models, **rest),
    labels,
    st.sampled_from([(), (), (), ("gpt-5",), ("!gpt-5",), ("*-mini",)]),
    priority=st.sampled_from([0, 0, 1]),
    weight=st.sampled_from([1, 1, 2, 3]),
    max_concurrent=st.sampled_from([None, None, 1, 2]),
    min_interval_s=st.sampled_from([0.0, 0.0, 3.0]),
    enabled=st.sampled_from([True] * 7 + [False]),
)
credentials = st.sampled_from(
    [
        keys_of("old", "key", "oauth"),
        keys_of("new", "key", "oauth"),
        keys_of("newer", "key", "oauth"),
        keys_of("old", "key"),
        keys_of("old", "oauth"),
        {},
    ]
)
waits = st.sampled_from([0.0, 0.5, 4.0, 4.0, 20.0, 900.0, None, -1.0, float("nan")])
limits = st.builds(
    lambda limit, seconds, scope, model: limit(seconds, scope=scope, model=model),
    st.sampled_from([rate_limit, quota]),
    waits,
    st.sampled_from([Scope.ACCOUNT, Scope.MODEL]),
    st.sampled_from([None, None, "gpt-5*"]),
)
failures = st.sampled_from(
    [
        UNAUTHORIZED,
        EXPIRED,
        INVALID_KEY,
        UNKNOWN_401,
        UNKNOWN_402,
        UNKNOWN_403,
        FORBIDDEN,
        FORBIDDEN_MODEL,
    ]
)
others = st.sampled_from([BARE_429, REQUEST_ERROR, SERVER_ERROR, OVERLOADED])
refusals = limits | failures | others
outcomes = st.just(OK) | st.none() | refusals
moments = st.sampled_from([0.0, 0.25, 1.0, 3.0, 7.0, 60.0, 2000.0])


def cooling(state: AccountState, model: str | None, now: float) -> bool:
    return any(now < c.until and c.covers(model) for c in state.cooldowns.values())


def check_counts(pool: Pool, now: float, in_flight: int) -> None:
    """Summary and health add up, whatever is in the pool."""
    states = list(pool.accounts)
    counts = summary(pool.accounts, now=now)
    neither = [
        s
        for s in states
        if s.enabled
        and not cooling(s, None, now)
        and (not s.credentials or s.full or s.next_start_at > now)
    ]
    assert counts["total"] == len(states) == occupancy(pool.accounts)["size"]
    counted = counts["available"] + counts["cooling_down"] + counts["disabled"]
    assert counted + len(neither) == counts["total"]
    assert counts["in_flight"] == in_flight == sum(s.in_flight for s in states)
    assert all(s.in_flight >= 0 for s in states)
    assert occupancy(pool.accounts)["busy"] == sum(1 for s in states if s.in_flight)
