"""The five policies, in the words of the issue: who is tried, in which order."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from msgspec.structs import replace

from account_pool.core.account import Account
from account_pool.core.errors import NoUsableAccount
from account_pool.core.headroom import UNKNOWN, Window
from account_pool.core.lease import Lease
from account_pool.core.outcome import Scope
from account_pool.core.pool import Pool
from account_pool.core.selection import MOST_AT_ONCE, POLICIES
from account_pool.core.state import AccountState
from tests.core.helpers import (
    FACTS,
    OK,
    PROVIDER,
    account,
    key,
    pool_of,
    rate_limit,
    served,
    window,
)


def order(pool: Pool, *, now: float = 0.0, model: str = "gpt-5") -> list[str]:
    """Labels as they would be tried now, best first."""
    labels: list[str] = []
    facts = replace(FACTS, model=model)
    while found := pool.pick(facts, now=now, avoid=[key(label) for label in labels]):
        labels.append(found.key.label)
    return labels


def hold(pool: Pool, label: str, times: int = 1) -> list[Lease]:
    """Take *times* leases on one account."""
    others = [state.key for state in pool.accounts if state.key != key(label)]
    return [pool.acquire(FACTS, now=0.0, avoid=others) for _ in range(times)]


def use(pool: Pool, *labels: str) -> None:
    """Give one request to each of *labels*, one after the other."""
    for label in labels:
        for lease in hold(pool, label):
            pool.release(lease, OK, now=0.0)


def test_the_names_are_those_of_the_option() -> None:
    assert list(POLICIES) == [
        "round-robin",
        "least-busy",
        "least-recent",
        "fill-first",
        "most-headroom",
        "soonest-reset",
    ]


@pytest.mark.parametrize("strategy", POLICIES)
@pytest.mark.parametrize("members", [[], ["a"]])
def test_none_and_one(strategy: str, members: list[str]) -> None:
    pool = pool_of(*members, strategy=strategy)
    assert order(pool) == members
    assert served(pool, 3 * len(members)) == members * 3


@pytest.mark.parametrize("strategy", POLICIES)
def test_priority_tiers_come_before_every_policy(strategy: str) -> None:
    pool = pool_of(
        account("c", priority=2),
        account("a", priority=-1),
        account("b", priority=0),
        strategy=strategy,
    )
    pool.observe_headroom(key("a"), [window(0.01)], now=0.0)
    hold(pool, "a", 5)
    assert order(pool) == ["a", "b", "c"]


@pytest.mark.parametrize("strategy", POLICIES)
def test_the_next_tier_serves_only_while_the_first_cannot(strategy: str) -> None:
    pool = pool_of(account("a"), account("b", priority=1), strategy=strategy)
    pool.health.mark_cooldown(key("a"), rate_limit(10.0), now=0.0)
    assert served(pool, 2, now=9.9) == ["b", "b"]
    assert served(pool, 2, now=10.0) == ["a", "a"]


# -- round-robin: the next after the cursor


def test_round_robin_takes_turns_in_the_order_added() -> None:
    assert served(pool_of("b", "a", "c"), 7) == ["b", "a", "c", "b", "a", "c", "b"]


def test_round_robin_goes_on_after_a_gap() -> None:
    pool = pool_of("a", "b", "c", "d")
    assert served(pool, 2) == ["a", "b"]
    pool.health.mark_cooldown(key("c"), rate_limit(10.0), now=0.0)
    assert served(pool, 3, now=1.0) == ["d", "a", "b"]
    assert served(pool, 2, now=11.0) == ["c", "d"]


def test_round_robin_goes_on_when_the_account_at_the_cursor_is_removed() -> None:
    pool = pool_of("a", "b", "c")
    assert served(pool, 2) == ["a", "b"]
    pool.accounts.remove(key("b"), now=0.0)
    assert served(pool, 3) == ["c", "a", "c"]


def test_round_robin_gives_a_newcomer_the_last_turn() -> None:
    pool = pool_of("a", "b")
    assert served(pool, 1) == ["a"]
    pool.accounts.add(account("c"), pool.accounts.get(key("a")).credentials, now=0.0)
    assert served(pool, 4) == ["b", "c", "a", "b"]


def test_round_robin_does_not_look_at_who_is_busy() -> None:
    pool = pool_of("a", "b", "c")
    hold(pool, "b", 9)
    assert served(pool, 3) == ["c", "a", "b"]


def test_round_robin_has_a_cursor_for_each_tier() -> None:
    pool = pool_of("a", "b", account("x", priority=1), account("y", priority=1))
    assert served(pool, 1) == ["a"]
    for label in "ab":
        pool.health.mark_cooldown(key(label), rate_limit(10.0), now=0.0)
    assert served(pool, 3) == ["x", "y", "x"]
    assert served(pool, 2, now=10.0) == ["b", "a"]
    for label in "ab":
        pool.health.mark_cooldown(key(label), rate_limit(10.0), now=10.0)
    assert served(pool, 2, now=11.0) == ["y", "x"]


def test_round_robin_weight_is_turns_in_a_row() -> None:
    pool = pool_of(account("a", weight=3), "b", account("c", weight=2))
    assert served(pool, 12) == list("aaabccaaabcc")


def test_round_robin_weight_of_one_account_alone() -> None:
    assert served(pool_of(account("a", weight=3)), 5) == ["a"] * 5


# -- least-busy: the fewest in flight, ties to the least recently used


def test_least_busy_takes_the_fewest_in_flight() -> None:
    pool = pool_of("a", "b", "c", strategy="least-busy")
    hold(pool, "a", 2)
    hold(pool, "b", 1)
    assert order(pool) == ["c", "b", "a"]


def test_least_busy_ties_go_to_the_least_recently_used() -> None:
    pool = pool_of("a", "b", "c", strategy="least-busy")
    use(pool, "b", "c", "a")
    assert order(pool) == ["b", "c", "a"]
    use(pool, "b")
    assert order(pool) == ["c", "a", "b"]


def test_least_busy_ties_of_the_never_used_go_to_the_first_added() -> None:
    assert order(pool_of("b", "c", "a", strategy="least-busy")) == ["b", "c", "a"]


def test_least_busy_spreads_open_requests_evenly() -> None:
    pool = pool_of("a", "b", "c", strategy="least-busy")
    labels = [pool.acquire(FACTS, now=0.0).key.label for _ in range(9)]
    assert {label: labels.count(label) for label in "abc"} == {"a": 3, "b": 3, "c": 3}


def test_least_busy_counts_per_weight() -> None:
    pool = pool_of(account("a", weight=2), "b", strategy="least-busy")
    labels = [pool.acquire(FACTS, now=0.0).key.label for _ in range(9)]
    assert (labels.count("a"), labels.count("b")) == (6, 3)


def test_least_busy_release_makes_less_busy() -> None:
    pool = pool_of("a", "b", strategy="least-busy")
    first = pool.acquire(FACTS, now=0.0)
    second = pool.acquire(FACTS, now=0.0)
    assert (first.key.label, second.key.label) == ("a", "b")
    pool.release(second, OK, now=0.0)
    assert order(pool) == ["b", "a"]


# -- least-recent: the least recently used


def test_least_recent_takes_the_least_recently_used() -> None:
    pool = pool_of("a", "b", "c", strategy="least-recent")
    use(pool, "b", "a")
    assert order(pool) == ["c", "b", "a"]


def test_least_recent_does_not_look_at_who_is_busy() -> None:
    pool = pool_of("a", "b", strategy="least-recent")
    hold(pool, "a", 5)
    use(pool, "b")
    assert order(pool) == ["a", "b"]


def test_least_recent_ignores_weight() -> None:
    pool = pool_of(account("a", weight=5), "b", strategy="least-recent")
    assert served(pool, 4) == ["a", "b", "a", "b"]


# -- fill-first: the lowest priority number, then label


def test_fill_first_is_by_label_whoever_is_added_first() -> None:
    assert order(pool_of("c", "a", "b", strategy="fill-first")) == ["a", "b", "c"]


def test_fill_first_stays_until_it_cannot_serve() -> None:
    pool = pool_of("b", "a", strategy="fill-first")
    assert served(pool, 3) == ["a", "a", "a"]
    pool.health.mark_cooldown(key("a"), rate_limit(10.0), now=0.0)
    assert served(pool, 2, now=1.0) == ["b", "b"]
    assert served(pool, 1, now=10.0) == ["a"]


def test_fill_first_spreads_what_is_in_flight_at_once_over_accounts_of_one_priority() -> None:
    pool = pool_of("b", "a", account("c", priority=1), strategy="fill-first")
    held = [pool.acquire(FACTS, now=0.0) for _ in range(2 * MOST_AT_ONCE + 2)]
    # All that is on an account when it reaches its limit is refused.
    assert [lease.key.label for lease in held] == ["a"] * 6 + ["b"] * 6 + ["a"] * 2
    pool.release(held[0], None, now=1.0)
    pool.release(held[6], None, now=1.0)
    pool.release(held[7], None, now=1.0)
    assert served(pool, 2, now=1.0) == ["b", "b"]


# -- most-headroom: the largest known remaining share, soonest reset among equals


def test_most_headroom_takes_the_largest_share() -> None:
    pool = pool_of("a", "b", "c", strategy="most-headroom")
    for label, share in [("a", 0.2), ("b", 0.7), ("c", 0.5)]:
        pool.observe_headroom(key(label), [window(share)], now=0.0)
    assert order(pool) == ["b", "c", "a"]


def test_most_headroom_equals_go_to_the_soonest_reset() -> None:
    pool = pool_of("a", "b", "c", strategy="most-headroom")
    for label, reset_at in [("a", 300.0), ("b", 100.0), ("c", 200.0)]:
        pool.observe_headroom(key(label), [window(0.5, reset_at=reset_at)], now=0.0)
    assert order(pool) == ["b", "c", "a"]


def test_most_headroom_ties_go_to_the_least_recently_used() -> None:
    pool = pool_of("a", "b", "c", strategy="most-headroom")
    assert served(pool, 4) == ["a", "b", "c", "a"]


def test_most_headroom_counts_as_whole_after_its_reset() -> None:
    pool = pool_of("a", "b", strategy="most-headroom")
    pool.observe_headroom(key("a"), [window(0.0, reset_at=60.0)], now=0.0)
    pool.observe_headroom(key("b"), [window(0.5, reset_at=1000.0)], now=0.0)
    assert order(pool, now=59.9) == ["b", "a"]
    assert order(pool, now=60.0) == ["a", "b"]
    assert pool.accounts.get(key("a")).headroom == UNKNOWN


def test_most_headroom_resets_while_cooling_or_full() -> None:
    pool = pool_of(account("a", max_concurrent=1), "b", "c", strategy="most-headroom")
    for label in "abc":
        left = window(0.1 if label != "c" else 0.5, reset_at=50.0)
        pool.observe_headroom(key(label), [left], now=0.0)
    (lease,) = hold(pool, "a")
    pool.health.mark_cooldown(key("b"), rate_limit(100.0), now=0.0)
    assert order(pool, now=49.0) == ["c"]
    pool.release(lease, OK, now=60.0)
    assert order(pool, now=60.0) == ["c", "a"]
    assert order(pool, now=100.0) == ["b", "c", "a"]


def test_most_headroom_asks_about_the_model() -> None:
    pool = pool_of("a", "b", "c", strategy="most-headroom")
    pool.observe_headroom(key("a"), [window(0.6), window(0.1, model="gpt-5")], now=0.0)
    pool.observe_headroom(key("b"), [window(0.5), window(0.4, model="gpt-5")], now=0.0)
    pool.observe_headroom(key("c"), [window(0.7), window(0.2, model="*opus*")], now=0.0)
    assert order(pool) == ["c", "b", "a"]
    assert order(pool, model="gpt-5-mini") == ["c", "a", "b"]
    assert order(pool, model="claude-opus-4") == ["a", "b", "c"]
    # Of two windows the tighter one counts, whatever it covers.
    pool.observe_headroom(key("b"), [window(0.05)], now=0.0)
    assert order(pool) == ["c", "a", "b"]


def test_most_headroom_forgets_the_window_of_a_model_when_it_ends() -> None:
    pool = pool_of("a", "b", strategy="most-headroom")
    pool.observe_headroom(key("a"), [window(0.1, model="gpt-5", reset_at=60.0)], now=0.0)
    pool.observe_headroom(key("b"), [window(0.5, reset_at=1000.0)], now=0.0)
    assert order(pool, now=59.0) == ["b", "a"]
    assert order(pool, now=60.0) == ["a", "b"]


# -- soonest-reset: what is lost first is used first


def week(share: float, reset_at: float, **changes: Any) -> Window:
    return window(share, reset_at=reset_at, **{"name": "7d", "length_s": 604_800.0} | changes)


def test_soonest_reset_takes_the_long_window_that_ends_first() -> None:
    pool = pool_of("a", "b", "c", "d", strategy="soonest-reset")
    for label, reset_at in [("a", 90_000.0), ("b", 50_000.0), ("c", 70_000.0)]:
        # A window of hours ends before each of them: the week is what counts.
        hours = window(0.5, name="5h", length_s=18_000.0, reset_at=60_000.0 - reset_at / 2)
        pool.observe_headroom(key(label), [hours, week(0.5, reset_at)], now=0.0)
    # Whom nothing is known of is asked once; what tells of nothing then comes last.
    assert order(pool) == ["d", "b", "c", "a"]
    assert served(pool, 3) == ["d", "b", "b"]
    assert order(pool) == ["b", "c", "a", "d"]


def test_soonest_reset_needs_room() -> None:
    pool = pool_of("a", "b", strategy="soonest-reset")
    pool.observe_headroom(key("a"), [week(0.01, 50_000.0)], now=0.0)
    pool.observe_headroom(key("b"), [week(0.5, 90_000.0)], now=0.0)
    assert order(pool) == ["b", "a"]


def test_soonest_reset_forgets_a_window_that_was_reset() -> None:
    pool = pool_of("a", "b", strategy="soonest-reset")
    pool.observe_headroom(key("a"), [week(0.5, 50_000.0)], now=0.0)
    pool.observe_headroom(key("b"), [week(0.5, 90_000.0)], now=0.0)
    assert served(pool, 2, now=49_999.0) == ["a", "a"]
    # What is known of `a` is older than its reset. It is asked once, and tells nothing.
    assert served(pool, 3, now=50_000.0) == ["a", "b", "b"]
    pool.observe_headroom(key("a"), [week(0.9, 80_000.0)], now=50_001.0)
    assert served(pool, 2, now=50_002.0) == ["a", "a"]


def test_soonest_reset_asks_about_the_model() -> None:
    pool = pool_of("a", "b", strategy="soonest-reset")
    pool.observe_headroom(key("a"), [week(0.5, 90_000.0)], now=0.0)
    pool.observe_headroom(
        key("b"),
        [week(0.5, 95_000.0, length_s=400_000.0), week(0.5, 50_000.0, model="*opus*")],
        now=0.0,
    )
    assert order(pool, model="claude-opus-4") == ["b", "a"]
    assert order(pool, model="claude-sonnet-4") == ["a", "b"]


# -- an account that has used up nearly all of a long window


SPENT = {"share": 0.015, "length_s": 18000.0, "reset_at": 9000.0}


@pytest.mark.parametrize("strategy", POLICIES)
def test_a_nearly_spent_account_is_the_last(strategy: str) -> None:
    pool = pool_of(account("a"), account("b", priority=1), strategy=strategy)
    pool.observe_headroom(key("a"), [window(**SPENT)], now=0.0)
    assert served(pool, 2, now=1.0) == ["b", "b"]
    assert served(pool, 2, now=9000.0) == ["a", "a"]


@pytest.mark.parametrize("strategy", POLICIES)
def test_nearly_spent_accounts_serve_when_all_are(strategy: str) -> None:
    pool = pool_of("a", "b", strategy=strategy)
    for label in "ab":
        pool.observe_headroom(key(label), [window(**SPENT)], now=0.0)
    assert set(served(pool, 4, now=1.0)) <= {"a", "b"}
    pool = pool_of("a", "b", strategy=strategy)
    pool.observe_headroom(key("a"), [window(**SPENT)], now=0.0)
    pool.health.mark_cooldown(key("b"), rate_limit(10.0), now=0.0)
    assert served(pool, 1, now=1.0) == ["a"]


@pytest.mark.parametrize("strategy", POLICIES)
def test_conversations_that_live_there_stay(strategy: str) -> None:
    pool = pool_of("a", "b", strategy=strategy)
    pool.observe_headroom(key("a"), [window(**SPENT)], now=0.0)
    assert pool.acquire(FACTS, now=1.0, only=key("a")).key == key("a")


@pytest.mark.parametrize(
    "changes",
    [
        {"share": 0.02},
        {"length_s": 3600.0},
        {"length_s": None, "reset_at": 3600.0},
        {"length_s": None, "reset_at": inf},
        {"model": "gpt-5-mini"},
    ],
)
@pytest.mark.parametrize("strategy", ["round-robin", "fill-first"])
def test_what_is_not_nearly_spent(strategy: str, changes: dict[str, Any]) -> None:
    pool = pool_of("a", "b", strategy=strategy)
    pool.observe_headroom(key("a"), [window(**SPENT | changes)], now=0.0)
    assert served(pool, 1, now=1.0) == ["a"]


@pytest.mark.parametrize("strategy", POLICIES)
@pytest.mark.parametrize("model", ["gpt-5", "gpt-*"])
def test_only_for_the_model_whose_window_it_is(strategy: str, model: str) -> None:
    pool = pool_of("a", account("b", priority=1), strategy=strategy)
    pool.observe_headroom(key("a"), [window(**SPENT, model=model)], now=0.0)
    assert order(pool, now=1.0) == ["b", "a"]
    assert order(pool, now=1.0, model="o3") == ["a", "b"]
    assert order(pool, now=9000.0) == ["a", "b"]


def test_a_reset_hours_away_proves_a_long_window() -> None:
    pool = pool_of("a", "b")
    left = window(0.01, name="requests", model="gpt-5", reset_at=7200.0)
    pool.observe_headroom(key("a"), [left], now=0.0)
    assert order(pool, now=1.0) == ["b", "a"]


@pytest.mark.parametrize("strategy", POLICIES)
def test_a_choice_among_many_walks_past_nobody(strategy: str) -> None:
    """Thousands that are nearly spent, as a whole or for a model, are not looked at."""
    pool = pool_of(*(f"a{n}" for n in range(3000)), strategy=strategy)
    for n in range(2999):
        for_model = {"model": "gpt-5"} if n % 2 and strategy != "round-robin" else {}
        pool.observe_headroom(key(f"a{n}"), [window(**SPENT, **for_model)], now=0.0)
    assert pool.pick(FACTS, now=1.0) is pool.accounts.get(key("a2999"))
    ranked = pool._members[PROVIDER].policy.ranked_for(FACTS.model, 1.0)
    assert next(ranked) is pool.accounts.get(key("a2999"))


# -- all of them


ACCOUNTS: dict[str, Any] = {
    "not enabled": account("x", enabled=False),
    "not for the model": account("x", "claude-*"),
}


@pytest.mark.parametrize("strategy", POLICIES)
@pytest.mark.parametrize("why", ACCOUNTS)
def test_no_policy_takes_an_account_that_may_not_serve(strategy: str, why: str) -> None:
    other: Account = ACCOUNTS[why]
    pool = pool_of(other, "a", strategy=strategy)
    assert order(pool) == ["a"]
    assert served(pool, 3) == ["a", "a", "a"]


def test_a_policy_can_be_changed_while_it_works() -> None:
    pool = pool_of("b", "a", "c")
    hold(pool, "b", 2)
    pool.health.mark_cooldown(key("c"), rate_limit(10.0), now=0.0)
    pool.accounts.set_strategy("fill-first", now=1.0)
    assert order(pool, now=1.0) == ["a", "b"]
    pool.accounts.set_strategy("least-busy", now=2.0)
    assert order(pool, now=10.0) == ["a", "c", "b"]
    with pytest.raises(KeyError):
        pool.accounts.set_strategy("luck", now=10.0)
    assert order(pool, now=10.0) == ["a", "c", "b"]


@pytest.mark.parametrize("strategy", POLICIES)
@pytest.mark.parametrize("cooling", [99, 100])
def test_many_that_cool_for_a_model_are_looked_at_once(
    strategy: str, cooling: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next request for it costs what it costs with few, whether one can serve or nobody."""
    pool = pool_of(*(f"a{n}" for n in range(100)), strategy=strategy)
    for n in range(cooling):
        limit = rate_limit(600.0, scope=Scope.MODEL)
        pool.health.mark_cooldown(key(f"a{n}"), limit, now=0.0, model=FACTS.model)
    looked: list[float] = []
    until = AccountState.cooling_until

    def cooling_until(state: AccountState, model: str | None, now: float) -> float:
        looked.append(now)
        return until(state, model, now)

    monkeypatch.setattr(AccountState, "cooling_until", cooling_until)
    for now in (1.0, 2.0, 3.0):
        try:
            pool.release(pool.acquire(FACTS, now=now), OK, now=now)
        except NoUsableAccount as nobody:
            assert nobody.retry_at == 600.0
    assert looked.count(3.0) < 10
    pool.accounts.clear_cooldown(key("a5"), now=4.0)
    assert pool.acquire(FACTS, now=4.0, avoid=[key("a99")]).key == key("a5")
