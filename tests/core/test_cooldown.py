"""Deadlines: how long, from when, covering what, and for which reason."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.cooldown import Cooldown, covers
from account_pool.core.health import (
    BARE_BACKOFF_S,
    BENCH_S,
    MAX_BENCH_S,
    MAX_DEFAULT_S,
    MAX_JITTER_S,
    bare_wait,
    bench_wait,
    default_wait,
    next_cooldown,
)
from account_pool.core.outcome import Cause, Outcome, OutcomeClass, Scope
from account_pool.core.reset_hints import MAX_WAIT_S, believable
from account_pool.core.state import ByModel, Cooldowns
from tests.core.helpers import (
    BARE_429,
    FORBIDDEN_MODEL,
    INVALID_KEY,
    UNKNOWN_402,
    UNKNOWN_403,
    quota,
    rate_limit,
)

DAY = 86400.0


def after(
    previous: Cooldown | None = None, outcome: Outcome | None = None, **given: Any
) -> Cooldown:
    """The next cooldown of an account, with an attempt that began just before."""
    arguments: dict[str, Any] = {"model": None, "default_s": 300.0, "chance": 0.0, "now": 100.0}
    arguments |= given
    arguments.setdefault("started_at", arguments["now"] - 0.5)
    return next_cooldown(previous, outcome or rate_limit(), **arguments)


@pytest.mark.parametrize(
    ("seconds", "usable"),
    [
        (None, None),
        (0.0, 0.0),
        (0.2, 0.2),
        (60.0, 60.0),
        (365 * DAY, 365 * DAY),
        (366 * DAY, 366 * DAY),
        (366 * DAY + 1, None),
        (-1.0, None),
        (-0.001, None),
        (inf, None),
        (-inf, None),
        (nan, None),
    ],
)
def test_hint_is_believed_up_to_a_year(seconds: float | None, usable: float | None) -> None:
    assert believable(seconds) == usable


@pytest.mark.parametrize(
    ("default_s", "waits"),
    [
        (300.0, [300, 600, 1200, 1800, 1800, 1800]),
        (1.0, [1, 2, 4, 8, 16, 32]),
        (1000.0, [1000, 1800, 1800]),
        # the owner's own number stands, also above the cap
        (7200.0, [7200, 7200, 7200]),
        (0.0, [0, 0, 0]),
    ],
)
def test_default_doubles_per_streak_up_to_30_minutes(default_s: float, waits: list[float]) -> None:
    assert [default_wait(default_s, streak) for streak in range(1, len(waits) + 1)] == waits


@pytest.mark.parametrize(
    ("default_s", "waits"),
    [
        (300.0, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]),
        (5.0, [1, 2, 4, 5, 5]),
        (0.0, [1, 1, 1]),
    ],
)
def test_bare_backoff_doubles_from_a_second(default_s: float, waits: list[float]) -> None:
    assert [bare_wait(default_s, streak) for streak in range(1, len(waits) + 1)] == waits


def test_benches_double_from_five_minutes_to_a_day() -> None:
    waits = [bench_wait(streak) / 60 for streak in range(1, 11)]
    assert waits == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 1440]


@given(st.floats(0, 1e6), st.integers(1, 10**9))
def test_long_streaks_stay_bounded(default_s: float, streak: int) -> None:
    assert default_s <= default_wait(default_s, streak) <= max(default_s, MAX_DEFAULT_S)
    assert BARE_BACKOFF_S <= bare_wait(default_s, streak) <= max(default_s, BARE_BACKOFF_S)
    assert BENCH_S <= bench_wait(streak) <= MAX_BENCH_S


@pytest.mark.parametrize(
    ("outcome", "wait", "hinted"),
    [
        (rate_limit(7.5), 7.5, True),
        (rate_limit(0.0), BARE_BACKOFF_S, True),
        (quota(20 * DAY), 20 * DAY, True),
        (rate_limit(), 300.0, False),
        (quota(), 300.0, False),
        (quota(MAX_WAIT_S + 1), 300.0, False),
        (quota(-5.0), 300.0, False),
        (quota(nan), 300.0, False),
        (BARE_429, BARE_BACKOFF_S, False),
        (FORBIDDEN_MODEL, BENCH_S, False),
        (UNKNOWN_403, BENCH_S, False),
        (UNKNOWN_402, BENCH_S, False),
        (INVALID_KEY, BENCH_S, False),
    ],
)
def test_first_cooldown(outcome: Outcome, wait: float, hinted: bool) -> None:
    cooldown = after(None, outcome, now=100.0)
    assert (cooldown.since, cooldown.until) == (100.0, 100.0 + wait)
    assert cooldown.streak == 1
    assert cooldown.cause == Cause.of(outcome, hinted=hinted)


def test_cause_keeps_the_evidence() -> None:
    outcome = quota(60.0, evidence={"retry-after": "60"}, signal="429 insufficient_quota")
    cause = after(None, outcome).cause
    assert cause.evidence == {"retry-after": "60"}
    assert cause.signal == "429 insufficient_quota"
    assert (cause.cls, cause.scope, cause.hinted) == (outcome.cls, outcome.scope, True)


@pytest.mark.parametrize(
    ("wait", "most"),
    [(0.01, 0.0002), (1.0, 0.02), (100.0, 2.0), (250.0, 5.0), (300.0, 5.0), (30 * DAY, 5.0)],
)
def test_jitter_is_a_little_and_never_early(wait: float, most: float) -> None:
    assert after(None, rate_limit(wait), now=0.0, chance=0.0).until == wait
    assert after(None, rate_limit(wait), now=0.0, chance=1.0).until == pytest.approx(wait + most)
    assert most <= MAX_JITTER_S


def test_streak_doubles_the_default() -> None:
    cooldown, waits = None, []
    for _ in range(6):
        now = 0.0 if cooldown is None else cooldown.until + 1
        cooldown = after(cooldown, now=now)
        waits.append(cooldown.until - now)
    assert waits == [300, 600, 1200, 1800, 1800, 1800]


def test_bare_refusals_back_off() -> None:
    cooldown, waits = None, []
    for _ in range(4):
        now = 0.0 if cooldown is None else cooldown.until + 1
        cooldown = after(cooldown, BARE_429, now=now)
        waits.append(cooldown.until - now)
    assert waits == [1, 2, 4, 8]


def test_bare_refusals_have_a_streak_of_their_own() -> None:
    bare = after(after(after(None, BARE_429), BARE_429, now=110.0), BARE_429, now=120.0)
    assert bare.streak == 3
    named = after(bare, rate_limit(), now=130.0)
    assert (named.streak, named.until) == (1, 430.0)
    assert after(named, BARE_429, now=500.0).until == 501.0


@pytest.mark.parametrize("outcome", [BARE_429, rate_limit(), rate_limit(30.0)])
def test_concurrent_refusals_count_once(outcome: Outcome) -> None:
    """Eight requests were under way when the limit hit; each is told about it."""
    first = after(None, outcome, now=100.0, started_at=90.0)
    last = first
    for late in range(1, 8):
        last = after(last, outcome, now=100.0 + late * 0.01, started_at=92.0 + late)
    assert last.streak == 1
    assert last.since == first.since
    assert last.until == pytest.approx(first.until, abs=0.1)


def test_a_straggler_after_the_end_counts_once_too() -> None:
    first = after(None, BARE_429, now=100.0)
    straggler = after(first, BARE_429, now=200.0, started_at=99.0)
    assert (straggler.streak, straggler.since, straggler.until) == (1, 200.0, 201.0)


def test_a_refusal_that_started_later_counts() -> None:
    first = after(None, now=100.0)
    assert after(first, now=500.0, started_at=450.0).streak == 2
    # also while it still cools: the owner asked for it, or a retry was under way
    assert after(first, now=200.0, started_at=150.0).streak == 2


def test_same_instant_is_concurrent_only_while_something_is_held_back() -> None:
    held = after(None, rate_limit(5.0), now=100.0)
    assert after(held, rate_limit(5.0), now=100.0, started_at=100.0).streak == 1


def test_reset_of_zero_does_not_invite_a_storm() -> None:
    """It counts as a second, doubling: a request would spend all its attempts at once."""
    first = after(None, rate_limit(0.0), now=100.0)
    second = after(first, rate_limit(0.0), now=101.0, started_at=101.0)
    third = after(second, rate_limit(0.0), now=103.0, started_at=103.0)
    assert [first.until, second.until, third.until] == [101.0, 103.0, 107.0]
    assert after(first, rate_limit(7.0), now=101.0, started_at=101.0).until == 108.0


def test_a_bench_and_a_limit_have_streaks_of_their_own() -> None:
    bench = after(after(None, UNKNOWN_403), UNKNOWN_403, now=500.0)
    assert (bench.streak, bench.until) == (2, 1100.0)
    limited = after(bench, quota(60.0), now=1200.0)
    assert (limited.streak, limited.until) == (1, 1260.0)
    assert after(limited, UNKNOWN_403, now=1300.0).streak == 1


def test_who_is_told_of_a_limit_is_off_the_bench() -> None:
    bench = after(None, UNKNOWN_403, now=100.0)
    limited = after(bench, quota(60.0), now=110.0, probe=True)
    assert (limited.until, limited.cause.cls) == (170.0, OutcomeClass.QUOTA)
    # Not one that was under way when it was benched.
    late = after(bench, quota(60.0), now=110.0, started_at=99.0)
    assert (late.until, late.cause.cls) == (bench.until, OutcomeClass.FORBIDDEN_ACCOUNT)


def test_asking_on_the_bench_does_not_lengthen_it() -> None:
    bench = after(None, UNKNOWN_403, now=100.0)
    assert after(bench, UNKNOWN_403, now=110.0, probe=True) == bench


def test_a_later_shorter_hint_never_shortens() -> None:
    long = after(None, quota(3600.0), now=0.0, started_at=-5.0)
    short = after(long, rate_limit(5.0), now=1.0, started_at=-4.0)
    assert short.until == long.until
    assert short.cause == long.cause


def test_a_later_longer_hint_extends_and_becomes_the_cause() -> None:
    short = after(None, rate_limit(5.0), now=0.0, started_at=-5.0)
    long = after(short, quota(3600.0, signal="plan"), now=1.0, started_at=-4.0)
    assert long.until == 3601.0
    assert long.cause.signal == "plan"


def test_a_bare_straggler_does_not_forget_the_streak_that_stands() -> None:
    third = after(after(after(None, now=0.0), now=400.0), now=1100.0)
    assert third.streak == 3
    assert after(third, BARE_429, now=1101.0, started_at=1000.0) == third


_HINTS = st.none() | st.floats(0, 1e6) | st.sampled_from([nan, inf, -1.0])
_REFUSALS = st.tuples(
    st.sampled_from([rate_limit, quota]), _HINTS, st.floats(0, 500), st.floats(0, 600)
)


@given(st.lists(_REFUSALS, max_size=20), st.floats(0, 1))
def test_deadlines_never_move_back(refusals: list[Any], chance: float) -> None:
    cooldown, now = None, 1000.0
    for limit, hint, elapsed, age in refusals:
        now += elapsed
        following = after(cooldown, limit(hint), now=now, started_at=now - age, chance=chance)
        assert now <= following.until <= now + 1e6 + MAX_JITTER_S
        assert following.since <= now
        assert following.streak >= 1
        if cooldown is not None and cooldown.active(now):
            assert following.until >= cooldown.until
            assert following.streak >= cooldown.streak
        if believable(hint) is not None:
            assert following.until >= now + hint
        cooldown = following


def test_cooling_exactly_while_now_is_before_until() -> None:
    cooldown = after(None, rate_limit(10.0), now=0.0)
    assert cooldown.active(9.999)
    assert not cooldown.active(10.0)
    assert not cooldown.active(10.001)


@pytest.mark.parametrize(
    ("covered", "model", "expected"),
    [
        (None, "gpt-5", True),
        (None, None, True),
        ("gpt-5", "gpt-5", True),
        ("gpt-5", "gpt-5-mini", False),
        ("gpt-5", None, False),
        ("claude-opus-*", "claude-opus-5", True),
        ("claude-opus-*", "claude-haiku-5", False),
        ("claude-opus-*", None, False),
        # only a star makes it a glob
        ("o[1]", "o1", False),
        ("o[1]", "o[1]", True),
    ],
)
def test_what_a_cooldown_covers(covered: str | None, model: str | None, expected: bool) -> None:
    assert after(None, model=covered).covers(model) is expected


MODELS = st.sampled_from([None, "gpt-5", "gpt-*", "*", "other", "gpt-5-mini"])


@given(st.lists(st.tuples(st.sampled_from(["set", "last", "drop"]), MODELS)), MODELS)
def test_what_covers_a_model_is_found_among_many(
    changes: list[tuple[str, str | None]], model: str | None
) -> None:
    known = ByModel.of(dict.fromkeys(["other", "gpt-*"], 0))
    for number, (change, covered) in enumerate(changes):
        if change == "set":
            known[covered] = number
        elif change == "last":
            known.put_last(covered, number)
            assert list(known)[-1] == covered
        elif covered in known:
            del known[covered]
    found = known.covering(model)
    assert len(found) == len(set(found))
    assert set(found) == {one for one in known if covers(one, model)}


@given(
    st.lists(
        st.tuples(MODELS, st.sampled_from([None, 60.0, 86400.0]), st.floats(0.0, 86400.0)),
        max_size=12,
    )
)
def test_the_next_probe_is_known_after_each_change(
    changes: list[tuple[str | None, float | None, float]],
) -> None:
    cooldowns, now = Cooldowns(), 0.0
    for model, length_s, later_s in changes:
        now += later_s
        if length_s is not None:
            cause = Cause(signal="429", cls=OutcomeClass.RATE_LIMIT, scope=Scope.MODEL)
            cooldowns[model] = Cooldown(
                model=model, since=now, until=now + length_s, streak=1, cause=cause
            )
        elif model in cooldowns:
            del cooldowns[model]
        active = [c for c in cooldowns.values() if c.active(now)]
        expected = min((c.probe_at() for c in active), default=inf)
        assert cooldowns.next_probe_at(now) == expected
        assert {c.model for c in active if c.covers("gpt-5")} == {
            c.model for c in cooldowns.cooling("gpt-5", now)
        }
