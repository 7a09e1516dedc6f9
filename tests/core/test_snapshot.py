"""A pool that was saved is the same pool later, on another clock and beside another proxy."""

from __future__ import annotations

from typing import NoReturn

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from account_pool.core import snapshot
from account_pool.core.cooldown import PROBE_EVERY_S, Cooldown, Endings
from account_pool.core.decisions import By
from account_pool.core.errors import NoUsableAccount
from account_pool.core.members import Transition
from account_pool.core.outcome import Cause, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.snapshot import (
    FORGIVEN_S,
    STREAK_KEPT_S,
    AccountSnapshot,
    DisablingSnapshot,
    PoolSnapshot,
    forgiven,
    merge,
)
from tests.core.generated import MODELS, REQUESTS, SETTINGS, outcomes
from tests.core.helpers import (
    FACTS,
    FORBIDDEN,
    UNAUTHORIZED,
    available,
    key,
    keys_of,
    pool_of,
    quota,
    rate_limit,
    window,
)

WALL = 1_800_000_000.0
LABELS = ["a", "b", "c"]
A = key("a")


def kept(pool: Pool, now: float, wall_now: float = WALL) -> PoolSnapshot:
    return snapshot.take(pool.accounts, wall_now=wall_now, ahead=wall_now - now)


def again(saved: PoolSnapshot, now: float, wall_now: float, *labels: str) -> Pool:
    """A pool that begins with what was saved."""
    pool = pool_of(*(labels or LABELS), now=now)
    snapshot.restore(pool.accounts, saved, now=now, wall_now=wall_now)
    return pool


def left(pool: Pool, now: float) -> float:
    """How long a still cools."""
    return max(pool.accounts.get(A).cooling_until(None, now) - now, 0.0)


@SETTINGS
@given(
    learnt=st.lists(
        st.tuples(st.sampled_from(LABELS), outcomes, st.sampled_from(MODELS), st.floats(0, 60)),
        max_size=8,
    ),
    away=st.floats(0, 5000),
    later=st.lists(st.floats(0, 100_000), min_size=1, max_size=4),
)
def test_it_selects_the_same_accounts_at_every_later_time(learnt, away, later) -> None:
    now = 500.0
    pool = pool_of(*LABELS, now=now)
    for label, outcome, model, elapsed in learnt:
        now += elapsed
        if outcome is not None:
            pool.health.mark_cooldown(key(label), outcome, now=now, model=model) if outcome.cls in (
                OutcomeClass.RATE_LIMIT,
                OutcomeClass.QUOTA,
            ) else pool.health.mark_failure(key(label), outcome, now=now, model=model)
    # The machine was started anew meanwhile: its monotonic clock is another one.
    restored = again(kept(pool, now), 7.0, WALL + away)
    for seconds in sorted(later):
        deadlines = [c.until - now for s in pool.accounts for c in s.cooldowns.values()]
        at = away + seconds
        # Rows are rounded to milliseconds.
        assume(all(abs(deadline - at) > 0.01 for deadline in deadlines))
        for facts in REQUESTS:
            assert available(restored, now=7.0 + seconds, facts=facts) == available(
                pool, now=now + at, facts=facts
            )


@given(until=st.floats(0, 1e6), ahead=st.floats(1e9, 2e9), others=st.floats(-1e6, 1e6))
def test_a_row_that_was_read_is_written_back_as_it_was(until, ahead, others) -> None:
    pool = pool_of("a", now=0.0)
    pool.health.mark_cooldown(A, rate_limit(until), now=0.0)
    pool.observe_headroom(A, [window(0.5, reset_at=until + 1e6)], now=0.0)
    row = kept(pool, 0.0, ahead).accounts[0]
    restored = again(PoolSnapshot(accounts=(row,)), others, ahead, "a")
    assert kept(restored, others, ahead).accounts[0].cooldowns.keys() == {None}
    (back,) = snapshot.take(restored.accounts, [A], wall_now=ahead, ahead=ahead - others).accounts
    assert back == row


def test_causes_streaks_counters_owner_and_headroom_are_kept() -> None:
    pool = pool_of("a", now=100.0)
    for _ in range(3):
        cooldown = pool.health.mark_cooldown(
            A, rate_limit(evidence={"retry-after": "60"}), now=100.0, started_at=100.0
        )
    pool.health.learn_owner(A, "org-1")
    hours = window(0.25, told_at=100.0, reset_at=160.0)
    tokens = window(0.5, name="tokens", model="gpt-5", told_at=100.0, limit=8.0, remaining=4.0)
    over = window(0.1, name="7d", told_at=100.0, reset_at=104.0)
    pool.observe_headroom(A, [hours, tokens, over], now=100.0)
    # Five seconds later, by another clock.
    restored = again(kept(pool, 100.0), 10.0, WALL + 5, "a")
    state = restored.accounts.get(A)
    assert state.cooldowns[None].cause == cooldown.cause
    assert state.cooldowns[None].streak == cooldown.streak
    assert list(state.headroom.windows.values()) == [hours.later(-95.0), tokens.later(-95.0)]
    assert restored.accounts.owners.get(A) == "org-1"


def test_what_is_over_counts_for_the_streak_for_a_day() -> None:
    pool = pool_of("a", now=0.0)
    pool.health.mark_cooldown(A, rate_limit(60.0), now=0.0)
    restored = again(kept(pool, 0.0), 0.0, WALL + 61, "a")
    assert left(restored, 0.0) == 0
    assert restored.health.mark_cooldown(A, rate_limit(60.0), now=1.0).streak == 2
    restored = again(kept(pool, 0.0), 0.0, WALL + 61 + STREAK_KEPT_S, "a")
    assert restored.accounts.get(A).cooldowns == {}


@pytest.mark.parametrize("away", [0.0, 59.0, 1000.0])
def test_after_a_restart_one_request_tries_an_account_that_cooled(away) -> None:
    pool = pool_of("a", now=500.0)
    pool.health.mark_cooldown(A, rate_limit(60.0), now=500.0)
    back = again(kept(pool, 500.0), 0.0, WALL + away, "a")
    now = max(60.0 - away, 0.0)
    lease = back.acquire(FACTS, now=now)
    with pytest.raises(NoUsableAccount):
        back.acquire(FACTS, now=now)
    back.answered(lease, now=now)
    back.acquire(FACTS, now=now)


def test_whoever_restarts_it_again_and_again_does_not_try_it_each_time() -> None:
    pool = pool_of("a", now=500.0)
    pool.health.mark_cooldown(A, rate_limit(3600.0), now=500.0)
    back = again(kept(pool, 500.0), 0.0, WALL + 600.0, "a")
    assert back.acquire_anyway(FACTS, now=0.0) is not None
    once_more = again(kept(back, 1.0, WALL + 601.0), 0.0, WALL + 602.0, "a")
    assert once_more.acquire_anyway(FACTS, now=PROBE_EVERY_S - 3.0) is None
    assert once_more.acquire_anyway(FACTS, now=PROBE_EVERY_S - 2.0) is not None


@pytest.mark.parametrize("away", [0.0, 300.0, 3000.0])
def test_a_restart_neither_skips_nor_repeats_a_probe(away) -> None:
    """Deadlines far away are probed while others serve: after 1 h, 2 h, 4 h ..."""
    hour = 3600.0
    pool = pool_of("a", "b", now=0.0)
    pool.health.mark_cooldown(A, quota(86400.0), now=0.0)
    back = again(kept(pool, hour + 60.0), 0.0, WALL + away, "a", "b")
    # It came due while nobody looked.
    probe = back.acquire_probe(FACTS, now=1.0)
    assert probe is not None
    assert probe.key == A
    back.release(probe, quota(86400.0), now=2.0)
    again_s = hour + 60.0 + away + 3.0
    once_more = again(kept(back, 3.0, WALL + away + 3.0), 0.0, WALL + away + 3.0, "a", "b")
    assert once_more.acquire_probe(FACTS, now=2 * hour - again_s - 1.0) is None
    assert once_more.acquire_probe(FACTS, now=2 * hour - again_s + 1.0) is not None


def test_a_clock_that_was_set_back_makes_no_cooldown_longer() -> None:
    pool = pool_of("a", now=0.0)
    pool.health.mark_cooldown(A, rate_limit(3600.0), now=0.0)
    saved = kept(pool, 3000.0, WALL + 3000)
    for set_back in (0.0, 10.0, 1800.0, 1e9):
        assert left(again(saved, 0.0, WALL + 3000 - set_back, "a"), 0.0) <= 600.001
    # And one that was set forward ends it.
    assert left(again(saved, 0.0, WALL + 1e6, "a"), 0.0) == 0


def test_accounts_that_are_no_longer_there_are_ignored() -> None:
    pool = pool_of("a", "b", now=0.0)
    pool.health.mark_cooldown(A, rate_limit(60.0), now=0.0)
    restored = again(kept(pool, 0.0), 0.0, WALL, "b")
    assert [state.key for state in restored.accounts] == [key("b")]


class TestDisabled:
    def test_a_refused_credential_stays_refused_until_it_changes(self) -> None:
        pool = pool_of("a", now=0.0)
        pool.health.mark_failure(A, UNAUTHORIZED, now=0.0)
        saved = forgiven(kept(pool, 0.0), WALL + 1e6)
        restored = again(saved, 0.0, WALL + 1e6, "a")
        restored.accounts.set_credentials(A, keys_of("a"), now=1.0)
        disabled = restored.accounts.get(A).disabled
        assert disabled is not None and disabled.signal == "401"
        restored.accounts.set_credentials(A, keys_of("another"), now=2.0)
        assert restored.accounts.get(A).enabled

    def test_a_suspended_account_is_tried_again_by_a_restart_after_an_hour(self) -> None:
        pool = pool_of("a", now=0.0)
        pool.health.mark_failure(A, FORBIDDEN, now=0.0)
        for later, enabled in ((FORGIVEN_S - 1, False), (FORGIVEN_S + 1, True)):
            saved = forgiven(kept(pool, 0.0), WALL + later)
            assert again(saved, 0.0, WALL + later, "a").accounts.get(A).enabled is enabled

    def test_no_secret_is_kept(self) -> None:
        pool = pool_of("a", now=0.0)
        pool.health.mark_failure(A, UNAUTHORIZED, now=0.0)
        assert "sk-a" not in repr(kept(pool, 0.0))


# -- two proxies


def cooled(until: float, streak: int = 1) -> Cooldown:
    cause = Cause(signal="429", cls=OutcomeClass.RATE_LIMIT, scope=Scope.ACCOUNT)
    return Cooldown(model=None, since=WALL, until=until, streak=streak, cause=cause)


OLD, SHORT, LONG = cooled(WALL + 10), cooled(WALL + 20, 3), cooled(WALL + 30, 2)


@pytest.mark.parametrize(
    ("base", "mine", "theirs", "expected"),
    [
        pytest.param(None, SHORT, None, SHORT, id="ours is new"),
        pytest.param(None, None, SHORT, SHORT, id="theirs is new"),
        pytest.param(OLD, OLD, LONG, LONG, id="theirs is newer"),
        pytest.param(OLD, LONG, OLD, LONG, id="ours is newer"),
        pytest.param(OLD, SHORT, LONG, replace(LONG, streak=3), id="the later deadline wins"),
        pytest.param(OLD, LONG, SHORT, replace(LONG, streak=3), id="whoever has it"),
        pytest.param(OLD, OLD, None, None, id="released there: it does not come back"),
        pytest.param(OLD, None, OLD, None, id="released here"),
        pytest.param(OLD, LONG, None, LONG, id="released there, refused again here"),
        pytest.param(OLD, None, LONG, LONG, id="released here, refused again there"),
        pytest.param(OLD, None, None, None, id="released by both"),
    ],
)
def test_what_two_know_of_a_cooldown(base, mine, theirs, expected) -> None:
    def account(cooldown: Cooldown | None) -> AccountSnapshot:
        return AccountSnapshot(key=A, cooldowns={None: cooldown} if cooldown else {})

    merged = merge(account(base), account(mine), account(theirs))
    assert merged.cooldowns == ({None: expected} if expected else {})
    if base == theirs:
        both = account(base)
        assert merge(both, account(mine), both) == merged


@pytest.mark.parametrize("ours", [True, False], ids=["ended here", "ended there"])
def test_a_disabling_that_began_before_it_was_ended_elsewhere_is_over(ours) -> None:
    cause = OLD.cause
    disabled = {n: DisablingSnapshot(cause=cause, since=WALL + n) for n in (1, 2, 3)}

    def account(since: int | None, ended: int | None = None) -> AccountSnapshot:
        endings = Endings() if ended is None else Endings(disabling=WALL + ended)
        return AccountSnapshot(key=A, disabled=disabled.get(since or 0), endings=endings)

    def merged(base: int | None, apart: int | None, ended: int) -> int | None:
        two = account(None, ended), account(apart)
        found = merge(account(base), *(two if ours else reversed(two)))
        assert found.endings == Endings(disabling=WALL + ended)
        return round(found.disabled.since - WALL) if found.disabled else None

    assert merged(None, 1, ended=2) is None
    assert merged(1, 2, ended=3) is None
    assert merged(1, 1, ended=2) is None
    assert merged(1, 3, ended=2) == 3
    assert merged(None, 3, ended=2) == 3


def test_what_a_restart_forgives_does_not_come_back_from_who_was_away() -> None:
    pool = pool_of("a", now=0.0)
    pool.health.mark_failure(A, FORBIDDEN, now=0.0)
    saved = kept(pool, 0.0)
    [away] = saved.accounts
    [begun] = forgiven(saved, WALL + FORGIVEN_S + 1).accounts
    assert away.disabled is not None
    assert merge(None, away, begun).disabled is None
    again_at = replace(away.disabled, since=WALL + 2)
    assert merge(None, replace(away, disabled=again_at), begun).disabled == again_at


def test_counters_add_up() -> None:
    base, mine, theirs = (AccountSnapshot(key=A, served=n) for n in (10, 13, 25))
    assert merge(base, mine, theirs).served == 28
    assert merge(None, mine, theirs).served == 38
    assert merge(base, mine, None) is mine


@pytest.mark.parametrize(
    ("base", "mine", "theirs", "merged"),
    [
        (None, 1, None, 1),
        (None, None, 2, 2),
        (1, 1, 2, 2),
        (1, 2, 1, 2),
        (1, 3, 2, 3),
        (1, 2, 3, 3),
        # One of them has forgotten it: it ended, or a person cleared it.
        (1, None, 1, None),
        (1, 1, None, None),
        (1, None, 2, 2),
    ],
)
def test_of_two_proxies_the_one_that_was_told_last_is_right(base, mine, theirs, merged) -> None:
    def account(told_at: int | None) -> AccountSnapshot:
        windows = {} if told_at is None else {("5h", None): window(0.5, told_at=told_at)}
        return AccountSnapshot(key=A, windows=windows)

    assert merge(account(base), account(mine), account(theirs)) == account(merged)


@pytest.mark.parametrize(
    ("mine", "theirs", "kept_source"),
    [
        ("w", "w/account_id=1", "w/account_id=1"),
        ("w/account_id=1", "w", "w/account_id=1"),
        ("w/account_id=1", "w/account_id=1;user_id=2", "w/account_id=1;user_id=2"),
        ("", "w/account_id=1", "w/account_id=1"),
        ("w/account_id=2", "w/account_id=1", None),
        ("x", "w/account_id=1", None),
        ("x/account_id=1", "w/account_id=1", None),
    ],
)
def test_what_was_learnt_of_another_account_is_not_taken_over(
    mine: str, theirs: str, kept_source: str | None
) -> None:
    """None: it is another's; the account that was there last is known by its source."""
    cause = Cause(cls=OutcomeClass.QUOTA, scope=Scope.ACCOUNT, signal="429")
    cooldown = Cooldown(model=None, since=0.0, until=9.0, cause=cause, streak=1)
    known = AccountSnapshot(key=A, cooldowns={None: cooldown}, source=theirs)
    merged = merge(None, AccountSnapshot(key=A, source=mine), known)
    assert bool(merged.cooldowns) == (kept_source is not None)
    assert merged.source == (mine if kept_source is None else kept_source)


def test_what_is_saved_again_is_the_object_it_was_until_it_or_the_clock_changes() -> None:
    pool = pool_of("a")

    def saved(*, ahead: float = WALL) -> tuple[dict, dict]:
        [account] = snapshot.take(pool.accounts, wall_now=WALL, ahead=ahead).accounts
        return dict(account.cooldowns), dict(account.windows)

    for model in ("m1", "m2"):
        limit = rate_limit(60.0, scope=Scope.MODEL, model=model)
        pool.health.mark_cooldown(A, limit, now=0.0)
        pool.observe_headroom(A, [window(0.5, model=model)], now=0.0)
    before = saved()
    pool.health.mark_cooldown(A, rate_limit(90.0, scope=Scope.MODEL, model="m2"), now=1.0)
    pool.observe_headroom(A, [window(0.4, model="m2", told_at=1.0)], now=1.0)
    for was, now, changed in zip(before, saved(), ("m2", ("5h", "m2")), strict=True):
        assert was.keys() == now.keys()
        assert [name for name in was if was[name] is not now[name]] == [changed]
    later = saved(ahead=WALL + 5.0)
    assert [row.until for row in later[0].values()] == [WALL + 65.0, WALL + 96.0]
    assert [row.told_at for row in later[1].values()] == [WALL + 5.0, WALL + 6.0]


def no_row(value: object) -> NoReturn:
    raise AssertionError(value)


def test_what_an_account_no_longer_has_is_not_remembered_to_be_saved() -> None:
    pool = pool_of("a")
    for model in (None, "m1"):
        scope = Scope.ACCOUNT if model is None else Scope.MODEL
        pool.health.mark_cooldown(A, rate_limit(60.0, scope=scope, model=model), now=0.0)
        pool.observe_headroom(A, [window(0.5, model=model)], now=0.0)
    snapshot.take(pool.accounts, wall_now=WALL, ahead=WALL)
    with Transition(pool.accounts, pool.accounts.get(A), By.HAND, 1.0) as change:
        change.end_cooldowns(among=["m1"])
    [account] = snapshot.take(pool.accounts, wall_now=WALL, ahead=WALL).accounts
    state = pool.accounts.get(A)
    assert state.saved is not None and account.cooldowns.keys() == {None}
    # Nothing is made anew of what stays, and nothing else is kept.
    assert state.saved.cooldowns.of(state.cooldowns, no_row) is account.cooldowns
    pool.accounts.clear_cooldown(A, now=1.0)
    [account] = snapshot.take(pool.accounts, wall_now=WALL, ahead=WALL).accounts
    assert not (account.cooldowns or account.windows or pool.accounts.get(A).saved)
