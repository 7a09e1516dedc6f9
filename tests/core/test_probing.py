"""Deadlines far away are tested while others serve, and no client notices."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from msgspec.structs import replace

from account_pool.core.cooldown import Cooldown
from account_pool.core.decisions import Kind
from account_pool.core.outcome import BY_HAND, Cause, Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.steps import MAX_PROBE_BYTES
from tests.core.helpers import FACTS, account, key, pool_of, quota, rate_limit
from tests.core.test_attempts import Play, begin, committed, finished, refused

HOUR, DAY = 3600.0, 86400.0
RESET = {"evidence": {"anthropic-ratelimit-unified-reset": "1791493427"}}
GUESS = {"evidence": {"retry-after": "86400"}}


def cooldown(length_s: float, *, hinted: bool = True, **cause: Any) -> Cooldown:
    about = {"signal": "429", "cls": OutcomeClass.QUOTA, "scope": Scope.ACCOUNT} | RESET | cause
    return Cooldown(
        model=None, since=0.0, until=length_s, streak=1, cause=Cause(hinted=hinted, **about)
    )


def schedule(cooldown: Cooldown) -> list[float]:
    """When it is probed, if each probe is refused."""
    times = []
    while (at := cooldown.probe_at()) < inf:
        times.append(at / HOUR)
        cooldown = replace(cooldown, probed_at=at)
    return times


@pytest.mark.parametrize(
    ("cooldown", "expected"),
    [
        # named by the account's own window: 4 h, then once a day, and near the end
        (cooldown(3 * DAY), [4.0, 28.0, 52.0, 68.4]),
        (cooldown(5 * HOUR), [4.0, 4.75]),
        (cooldown(3 * HOUR), [2.85]),
        # a guess, a sentence, a wait: 1 h, 2 h, 4 h ...
        (cooldown(DAY, **GUESS), [1.0, 2.0, 4.0, 8.0, 16.0]),
        (cooldown(DAY, hinted=False), [1.0, 2.0, 4.0, 8.0, 16.0]),
        # an hour or less is waited for
        (cooldown(HOUR, **GUESS), []),
        (cooldown(HOUR), []),
        # what its owner set, and a sanction
        (cooldown(DAY, signal=BY_HAND), []),
        (cooldown(DAY, cls=OutcomeClass.FORBIDDEN_ACCOUNT), []),
        # a model that the plan does not include, or that nobody has opened yet
        (cooldown(DAY, cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.MODEL, hinted=False),
         [1.0, 2.0, 4.0, 8.0, 16.0]),
        # what was not understood is no sanction
        (cooldown(DAY, cls=OutcomeClass.FORBIDDEN_ACCOUNT, unknown=True, hinted=False),
         [1.0, 2.0, 4.0, 8.0, 16.0]),
    ],
)  # fmt: skip
def test_the_schedule(cooldown: Cooldown, expected: list[float]) -> None:
    assert schedule(cooldown) == pytest.approx(expected)


def limited(seconds: float = DAY, **changes: Any) -> Outcome:
    return replace(quota(seconds), **(GUESS | changes))


def pool_with_a_limit(outcome: Outcome | None = None, **options: Any) -> Pool:
    pool = pool_of("a", "b", **({"strategy": "fill-first"} | options))
    pool.health.mark_cooldown(key("a"), outcome or limited(), now=0.0, model="gpt-5")
    return pool


def play(pool: Pool, now: float, **options: Any) -> Play:
    return Play(pool=pool, **options).at(now)


def test_a_refused_probe_is_replayed_and_changes_nothing() -> None:
    pool = pool_with_a_limit()
    before = pool.accounts.get(key("a")).cooldowns[None]
    play(pool, HOUR - 1) >> begin << "send b" >> committed >> finished
    probing = play(pool, HOUR)
    probing >> begin << "send a" >> refused(replace(limited(), cooldown_s=None)) << "send b"
    probing >> committed >> finished
    assert pool.accounts.get(key("a")).cooldowns[None] == replace(before, probed_at=HOUR)
    # The schedule goes on; until then nobody asks.
    play(pool, HOUR + 1) >> begin << "send b" >> committed >> finished
    play(pool, 2 * HOUR - 1) >> begin << "send b" >> committed >> finished
    play(pool, 2 * HOUR) >> begin << "send a"
    assert [d.kind for d in pool.decisions].count(Kind.PROBE) == 2


def test_a_good_probe_brings_the_account_back() -> None:
    pool = pool_with_a_limit()
    play(pool, HOUR) >> begin << "send a" >> committed >> finished
    assert pool.accounts.get(key("a")).cooldowns == {}
    play(pool, HOUR + 1) >> begin << "send a"


def test_one_probe_at_a_time() -> None:
    pool = pool_with_a_limit()
    first = play(pool, 2 * HOUR)
    first >> begin << "send a"
    play(pool, 5 * HOUR) >> begin << "send b"
    first.at(5 * HOUR) >> refused(limited(19 * HOUR)) << "send b"
    play(pool, 8 * HOUR) >> begin << "send a"


@pytest.mark.parametrize(
    "options",
    [
        {"replayable": False},
        {"facts": replace(FACTS, body_bytes=MAX_PROBE_BYTES + 1)},
        {"facts": replace(FACTS, socket=True)},
        {"max_attempts": 1},
    ],
    ids=["not kept", "long", "websocket", "one attempt"],
)
def test_what_could_not_be_replayed_asks_nobody(options: dict[str, Any]) -> None:
    play(pool_with_a_limit(), HOUR, **options) >> begin << "send b"


def test_nobody_is_probed_while_no_other_can_serve() -> None:
    pool = pool_with_a_limit()
    pool.health.mark_cooldown(key("b"), limited(2 * DAY), now=0.0)
    # The rule for that case asks the one that returns first.
    play(pool, HOUR, max_wait_s=0.0) >> begin << "send a"
    assert pool.acquire_probe(FACTS, now=HOUR) is None


def test_a_limit_of_one_model_is_probed_for_that_model() -> None:
    pool = pool_with_a_limit(limited(scope=Scope.MODEL))
    other = replace(FACTS, model="gpt-5-mini")
    play(pool, HOUR, facts=other) >> begin << "send a" >> committed >> finished
    assert [d.kind for d in pool.decisions].count(Kind.PROBE) == 0
    play(pool, HOUR) >> begin << "send a"
    assert [d.kind for d in pool.decisions].count(Kind.PROBE) == 1


def test_a_wider_limit_that_is_not_due_is_not_asked_about() -> None:
    pool = pool_with_a_limit(limited(scope=Scope.MODEL))
    pool.health.mark_cooldown(key("a"), replace(quota(5 * DAY), **RESET), now=0.0)
    play(pool, HOUR) >> begin << "send b"
    play(pool, 4 * HOUR) >> begin << "send a"


def test_by_hand_or_disabled_is_not_probed() -> None:
    pool = pool_with_a_limit()
    pool.accounts.clear_cooldown(key("a"), now=1.0)
    assert pool.accounts.get(key("a")).probe_at == inf
    pool.health.mark_cooldown(key("a"), limited(signal=BY_HAND), now=1.0)
    assert pool.accounts.get(key("a")).probe_at == inf
    pool.accounts.remove(key("a"), now=2.0)
    play(pool, 2 * DAY) >> begin << "send b"


def test_a_probe_does_not_slow_the_others_down() -> None:
    pool = pool_with_a_limit()
    probing = play(pool, HOUR)
    probing >> begin << "send a" >> refused(limited(23 * HOUR)) << "send b"
    others = [play(pool, HOUR) for _ in range(30)]
    for other in others:
        other >> begin << "send b"


def test_thousands_that_are_due_cost_one_look() -> None:
    pool = pool_of(*(account(f"a{n}", priority=1) for n in range(2000)), "z")
    for n in range(2000):
        pool.health.mark_cooldown(key(f"a{n}"), limited(), now=0.0)
    for n in range(5):
        play(pool, HOUR) >> begin
        assert pool.accounts.get(key(f"a{n}")).probing
    short = rate_limit(60.0)
    pool.health.mark_cooldown(key("z"), short, now=HOUR)
    assert pool.acquire_probe(FACTS, now=HOUR) is None
