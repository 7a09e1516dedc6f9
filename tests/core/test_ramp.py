"""How many requests an account takes at once that has just been given them."""

from __future__ import annotations

from math import inf

import pytest
from msgspec.structs import replace

from account_pool.core.outcome import Scope
from account_pool.core.pool import Pool
from account_pool.core.state import ALONE_S, RAMP_S, STEP_S, Ramp
from tests.core.helpers import FACTS, OK, SERVER_ERROR, account, key, pool_of, rate_limit


@pytest.mark.parametrize(
    ("ramp", "now", "allowed"),
    [
        (Ramp.after_switch(10.0), 10.0, 1),
        (Ramp.after_switch(10.0), 10.0 + STEP_S * 0.9, 1),
        (Ramp.after_switch(10.0), 10.0 + STEP_S, 2),
        (Ramp.after_switch(10.0), 11.0, 5),
        (Ramp.half_open(10.0), 10.0, 1),
        (Ramp.half_open(10.0), 10.0 + ALONE_S, 1),
        (Ramp.half_open(10.0), 10.0 + ALONE_S + STEP_S, 2),
        (Ramp(10.0, answered=3), 10.0, 4),
    ],
)
def test_allowed(ramp: Ramp, now: float, allowed: int) -> None:
    assert ramp.allowed(now) == allowed


@pytest.mark.parametrize("start", [0.0, 8.0, 0.1, 1234.567, 98765432.1])
def test_admits_from_the_moment_it_names(start: float) -> None:
    ramp = Ramp.after_switch(start)
    for sent in range(200):
        at = ramp.admits_at()
        if sent == 0:
            assert at == -inf
        else:
            assert not ramp.admits(at - 0.001)
        assert ramp.admits(max(at, start))
        assert at <= start + RAMP_S
        ramp.sent()


def test_a_good_answer_lets_two_go_and_a_refusal_none() -> None:
    ramp = Ramp.half_open(0.0)
    ramp.sent()
    assert not ramp.admits(0.1)
    ramp.done(good=True, now=0.1)
    ramp.sent()
    ramp.sent()
    assert not ramp.admits(0.1)
    ramp.done(good=False, now=0.2)
    ramp.sent()
    assert not ramp.admits(0.2)


def acquired(pool: Pool, now: float) -> int:
    """How many requests the pool takes at once."""
    count = 0
    while pool.pick(FACTS, now=now):
        pool.acquire(FACTS, now=now)
        count += 1
        if count == 50:
            break
    return count


def test_without_a_switch_there_is_no_ramp() -> None:
    assert acquired(pool_of("a", "b"), 0.0) == 50


@pytest.mark.parametrize("strategy", ["round-robin", "fill-first", "least-busy"])
def test_where_the_herd_goes_it_starts_with_one(strategy: str) -> None:
    pool = pool_of("a", "b", strategy=strategy)
    herd = [pool.acquire(FACTS, now=0.0, avoid={key("b")}) for _ in range(20)]
    pool.release(herd[0], rate_limit(600.0), now=1.0)
    assert acquired(pool, 1.0) == 1
    assert acquired(pool, 1.0 + STEP_S) == 1
    assert acquired(pool, 2.0) == 3
    assert acquired(pool, 1.0 + RAMP_S) == 50


def test_an_answer_counts_when_it_begins_not_when_it_ends() -> None:
    pool = pool_of("a", "b")
    pool.health.mark_cooldown(key("a"), rate_limit(600.0), now=0.0)
    lease = pool.acquire(FACTS, now=0.0)
    assert acquired(pool, 0.1) == 0
    pool.answered(lease, now=0.1)
    assert acquired(pool, 0.1) == 2
    assert pool.accounts.get(key("b")).in_flight == 3
    pool.answered(lease, now=0.2)
    pool.release(lease, OK, now=0.2)
    assert acquired(pool, 0.2) == 0


def test_a_refusal_during_the_ramp_stops_the_herd() -> None:
    pool = pool_of("a", "b")
    pool.health.mark_cooldown(key("a"), rate_limit(600.0), now=0.0)
    lease = pool.acquire(FACTS, now=0.0)
    pool.release(lease, rate_limit(600.0), now=0.1)
    assert acquired(pool, 20.0) == 0


@pytest.mark.parametrize("outcome", [None, SERVER_ERROR])
def test_an_end_that_says_nothing_frees_the_place(outcome: object) -> None:
    pool = pool_of("a", "b")
    pool.health.mark_cooldown(key("a"), rate_limit(600.0), now=0.0)
    pool.release(pool.acquire(FACTS, now=0.0), outcome, now=0.0)  # type: ignore[arg-type]
    assert acquired(pool, 0.0) == 1


def test_only_what_the_limit_covers_is_ramped() -> None:
    pool = pool_of("a", "b")
    pool.health.mark_cooldown(key("a"), rate_limit(600.0, scope=Scope.MODEL, model="o3-*"), now=0.0)
    assert acquired(pool, 0.0) == 50


def test_one_request_tries_an_account_that_returns() -> None:
    pool = pool_of("a")
    pool.health.mark_cooldown(key("a"), rate_limit(60.0), now=0.0)
    lease = pool.acquire(FACTS, now=60.0)
    assert acquired(pool, 60.0 + ALONE_S) == 0
    pool.answered(lease, now=60.5)
    assert acquired(pool, 60.5) == 2


def test_a_renewed_lease_keeps_its_place() -> None:
    pool = pool_of("a", "b")
    pool.health.mark_cooldown(key("a"), rate_limit(600.0), now=0.0)
    lease = pool.renew(pool.acquire(FACTS, now=0.0), now=0.1)
    assert lease is not None
    assert acquired(pool, 0.1) == 0
    pool.release(lease, None, now=0.1)
    assert acquired(pool, 0.1) == 1


# -- what the pool does when nobody is left


def test_our_caution_costs_no_answer() -> None:
    pool = pool_of("a", "b")
    pool.health.mark_cooldown(key("a"), rate_limit(600.0), now=0.0)
    pool.acquire(FACTS, now=0.0)
    assert pool.pick(FACTS, now=0.0) is None
    lease = pool.acquire_anyway(FACTS, now=0.0)
    assert lease is not None
    assert (lease.key, lease.probe) == (key("b"), False)


def test_when_all_cool_one_tries_once_a_minute() -> None:
    pool = pool_of("a", "b")
    pool.health.mark_cooldown(key("a"), rate_limit(9000.0), now=0.0)
    pool.health.mark_cooldown(key("b"), rate_limit(8000.0), now=0.0)
    # The provider has just said so.
    assert pool.acquire_anyway(FACTS, now=59.9) is None
    lease = pool.acquire_anyway(FACTS, now=60.0)
    assert lease is not None
    assert (lease.key, lease.probe) == (key("b"), True)
    assert pool.acquire_anyway(FACTS, now=60.0) is None
    until = pool.accounts.get(key("b")).cooling_until(None, 60.0)
    pool.release(lease, rate_limit(None), now=61.0)
    assert pool.accounts.get(key("b")).cooling_until(None, 61.0) == until
    assert pool.acquire_anyway(FACTS, now=119.0) is None
    again = pool.acquire_anyway(FACTS, now=120.0)
    assert again is not None
    pool.answered(again, now=121.0)
    # It healed: those who follow do so one by one.
    assert acquired(pool, 121.0) == 2


def test_a_refused_try_extends_only_what_it_names() -> None:
    pool = pool_of("a")
    pool.health.mark_cooldown(key("a"), rate_limit(None), now=0.0)
    first = pool.accounts.get(key("a")).cooldowns[None]
    lease = pool.acquire_anyway(FACTS, now=60.0)
    assert lease is not None
    pool.release(lease, rate_limit(None), now=60.0)
    assert pool.accounts.get(key("a")).cooldowns[None] == replace(first, probed_at=60.0)
    lease = pool.acquire_anyway(FACTS, now=120.0)
    assert lease is not None
    pool.release(lease, rate_limit(1000.0), now=120.0)
    assert pool.accounts.get(key("a")).cooldowns[None].until == 1120.0
    assert pool.accounts.get(key("a")).cooldowns[None].streak == 1


def test_what_ends_soon_or_was_set_by_hand_is_not_tried() -> None:
    pool = pool_of("a", account("b", max_concurrent=1))
    pool.health.mark_cooldown(key("a"), rate_limit(100.0), now=0.0)
    pool.health.mark_cooldown(key("b"), rate_limit(9000.0, signal="by hand"), now=0.0)
    assert pool.acquire_anyway(FACTS, now=80.0, soon_s=30.0) is None
    assert pool.acquire_anyway(FACTS, now=80.0, soon_s=30.0, only=key("b")) is None
    assert pool.acquire_anyway(FACTS, now=70.0 - 1e-6, soon_s=30.0) is not None


def test_clear_ends_the_care() -> None:
    pool = pool_of("a")
    pool.health.mark_cooldown(key("a"), rate_limit(1.0), now=0.0)
    pool.acquire(FACTS, now=50.0)
    pool.accounts.clear_cooldown(key("a"), now=50.0)
    assert acquired(pool, 50.0) == 50
