"""What an owner keeps of a window: nobody else gets it, and only as long as it is known."""

from __future__ import annotations

from math import inf

import pytest

from account_pool.core import snapshot
from account_pool.core.account import Account
from account_pool.core.decisions import By, Kind
from account_pool.core.errors import NoUsableAccount
from account_pool.core.headroom import HeadroomSnapshot, Window, is_window, reserved
from account_pool.core.pool import Pool
from tests.core.helpers import FACTS, OK, account, key, pool_of, rate_limit

HOURS, WEEK = 5 * 3600.0, 7 * 86400.0


def window(
    share: float, name: str = "5h", model: str | None = None, reset_at: float = HOURS
) -> Window:
    length_s = HOURS if name == "5h" else WEEK
    return Window(name, share, 0.0, model=model, reset_at=reset_at, length_s=length_s)


def keeper(label: str = "a", **reserve: float) -> Account:
    kept = {name.removeprefix("w"): share for name, share in reserve.items()}
    return account(label, reserve=kept)


def order(pool: Pool, now: float, model: str | None = None) -> list[str]:
    found: list[str] = []
    facts = FACTS if model is None else type(FACTS)(provider="openai", kind="key", model=model)
    while state := pool.pick(facts, now=now, avoid=[key(label) for label in found]):
        found.append(state.key.label)
    return found


@pytest.mark.parametrize(
    ("share", "until"), [(0.16, -inf), (0.15, -inf), (0.149, HOURS), (0.0, HOURS)]
)
def test_below_its_reserve_an_account_serves_nobody(share: float, until: float) -> None:
    pool = pool_of(keeper(w5h=0.15))
    pool.observe_headroom(key("a"), [window(share)], now=0.0)
    assert pool.accounts.get(key("a")).cooling_until(None, 0.0) == until
    assert order(pool, 1.0) == ([] if until > 0 else ["a"])
    # It is whole again when the window is reset.
    assert order(pool, HOURS) == ["a"]


def test_others_serve_and_when_all_are_below_requests_are_refused() -> None:
    pool = pool_of(keeper("a", w5h=0.15), keeper("b", w5h=0.5))
    pool.observe_headroom(key("a"), [window(0.1)], now=0.0)
    assert order(pool, 1.0) == ["b"]
    pool.observe_headroom(key("b"), [window(0.4, reset_at=900.0)], now=1.0)
    with pytest.raises(NoUsableAccount) as nobody:
        pool.acquire(FACTS, now=2.0)
    assert (nobody.value.retry_at, nobody.value.soonest) == (900.0, key("b"))
    assert "2 at its reserve" in str(nobody.value)
    # The reserve is the owner's: nobody tries whether it is really so small.
    assert pool.acquire_anyway(FACTS, now=600.0, soon_s=0.0) is None


def test_a_good_answer_gives_nothing_back() -> None:
    pool = pool_of(keeper(w5h=0.15))
    lease = pool.acquire(FACTS, now=0.0)
    pool.observe_headroom(key("a"), [window(0.1)], now=1.0)
    pool.answered(lease, now=1.0)
    pool.release(lease, OK, now=2.0)
    assert order(pool, 3.0) == []


def test_a_window_of_one_model_keeps_that_model_only() -> None:
    pool = pool_of(keeper(w7d=0.1))
    pool.observe_headroom(
        key("a"), [window(0.05, "7d", "*opus*", WEEK), window(0.5, "7d", None, WEEK)], now=0.0
    )
    assert order(pool, 1.0, "claude-opus-4") == []
    assert order(pool, 1.0, "claude-sonnet-4") == ["a"]


def test_what_is_unknown_or_outdated_excludes_nobody() -> None:
    pool = pool_of(keeper(w5h=0.15, w7d=0.15))
    assert order(pool, 0.0) == ["a"]
    pool.observe_headroom(key("a"), [window(0.1, reset_at=60.0)], now=0.0)
    assert order(pool, 59.0) == []
    assert order(pool, 60.0) == ["a"]
    # No reset named: believed for an hour at most.
    pool.observe_headroom(key("a"), [window(0.1, reset_at=inf)._replace(told_at=60.0)], now=60.0)
    assert order(pool, 61.0) == []
    assert order(pool, 60.0 + 3600.0) == ["a"]


def test_it_is_one_decision_with_its_cause() -> None:
    pool = pool_of(keeper(w5h=0.15))
    for share in (0.14, 0.13, 0.12):
        pool.observe_headroom(key("a"), [window(share)], now=1.0)
    (decision,) = [d for d in pool.decisions if d.kind is Kind.COOLDOWN]
    assert (decision.by, decision.until) == (By.RESERVE, HOURS)
    assert decision.cause is not None
    assert decision.cause.signal == "reserve: 14% of 5h left, 15% kept"


def test_a_real_limit_stands_beside_it() -> None:
    pool = pool_of(keeper(w5h=0.15))
    pool.health.mark_cooldown(key("a"), rate_limit(60.0), now=0.0)
    pool.observe_headroom(key("a"), [window(0.1, reset_at=30.0)], now=0.0)
    assert order(pool, 31.0) == []
    assert order(pool, 60.0) == ["a"]


def test_another_reserve_counts_at_once_and_by_hand_it_is_forgotten() -> None:
    pool = pool_of(keeper(w5h=0.15))
    pool.observe_headroom(key("a"), [window(0.2)], now=0.0)
    pool.accounts.replace(keeper(w5h=0.5), now=1.0)
    assert order(pool, 1.0) == []
    pool.accounts.replace(keeper(), now=2.0)
    assert order(pool, 2.0) == ["a"]
    pool.accounts.replace(keeper(w5h=0.5), now=3.0)
    pool.accounts.clear_cooldown(key("a"), now=4.0)
    assert order(pool, 4.0) == ["a"]


def test_it_outlives_a_restart() -> None:
    pool = pool_of(keeper(w5h=0.15))
    pool.observe_headroom(key("a"), [window(0.1)], now=0.0)
    kept = snapshot.take(pool.accounts, wall_now=1000.0, ahead=1000.0)
    again = pool_of(keeper(w5h=0.15))
    snapshot.restore(again.accounts, kept, now=50.0, wall_now=1100.0)
    assert order(again, 50.0) == []
    assert order(again, 50.0 + HOURS - 100.0) == ["a"]


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("5h", ("5h", "7d"), True),
        ("30d", ("5h", "7d"), True),
        ("5hours", ("5h", "7d"), False),
        ("5h", ("requests",), False),
        ("requests", ("requests",), True),
        ("5h", (), False),
    ],
)
def test_names_of_windows(name: str, known: tuple[str, ...], expected: bool) -> None:
    assert is_window(name, known) is expected


def test_nothing_is_kept_where_nothing_is_known() -> None:
    assert reserved({"5h": 0.5}, HeadroomSnapshot(), 0.0) == ()


# -- what is lost when a window is reset


@pytest.mark.parametrize("strategy", ["least-busy", "round-robin", "soonest-reset"])
def test_what_was_left_of_a_long_window_is_reported_once(strategy: str) -> None:
    pool = pool_of("a", strategy=strategy)
    seen: list[tuple[str, str, float]] = []
    pool.accounts.on_reset = lambda k, w: seen.append((k.label, w.name, w.share))
    minute = Window("tokens", 0.3, 0.0, reset_at=50.0, length_s=60.0)
    pool.observe_headroom(key("a"), [window(0.4), window(0.9, "7d", None, WEEK), minute], now=0.0)
    pool.observe_headroom(key("a"), [window(0.25)], now=1.0)
    assert seen == []
    # The next answer tells of the new window; the old one is over.
    fresh = window(1.0, reset_at=2 * HOURS)._replace(told_at=HOURS)
    pool.observe_headroom(key("a"), [fresh], now=HOURS)
    assert seen == [("a", "5h", 0.25)]
    pool.release(pool.acquire(FACTS, now=WEEK), OK, now=WEEK)
    assert sorted(seen[1:]) == [("a", "5h", 1.0), ("a", "7d", 0.9)]
