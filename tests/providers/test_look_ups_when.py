"""When a provider is asked what an idle account has left, and what the answer ends."""

from __future__ import annotations

from itertools import pairwise

import pytest
from msgspec.structs import replace
from tests.core.helpers import account

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cooldown
from account_pool.core.headroom import Window
from account_pool.core.outcome import BY_HAND, Cause, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.state import AccountState
from account_pool.providers.look_ups import (
    APART_S,
    FAILED_S,
    FIRST_S,
    GREATEST_S,
    LEAST_S,
    MAX_PUT_OFF,
    OFF_S,
    Answer,
    LookUps,
    answer_of,
    lifted,
)

ONE, TWO = AccountKey("openai", "one"), AccountKey("openai", "two")
ROOM = Window("5h", 0.5, 0.0, reset_at=9e9, length_s=18_000.0)
WEEK = Window("7d", 0.5, 0.0, reset_at=9e9, length_s=604_800.0)


@pytest.fixture
def states() -> list[AccountState]:
    pool = Pool()
    for label in ("one", "two"):
        pool.accounts.add(account(label), now=0.0)
    return list(pool.accounts)


def test_accounts_that_are_idle_are_asked_one_after_the_other(states) -> None:
    known = LookUps()
    assert known.due(states, 1000.0 - FIRST_S) == []
    assert known.due(states, 1000.0) == [ONE]
    assert known.due(states, 1000.0 + APART_S) == [ONE, TWO]
    states[0].running[1] = 1000.0
    states[1].asked_at = 1000.0
    assert known.due(states, 1000.0 + APART_S) == []
    states[0].running.clear()
    assert known.due(states, 1000.0 + LEAST_S) == [ONE, TWO]


def test_less_often_while_nothing_changes(states) -> None:
    known, now, asked = LookUps(), 0.0, []
    known.due(states[:1], now)
    while now < 4 * 3600:
        now += 10
        if known.due(states[:1], now):
            known.asked(ONE, now)
            known.shown(ONE, [ROOM], None, now)
            asked.append(now)
    waits = [b - a for a, b in pairwise(asked)]
    assert waits[:4] == [LEAST_S, 600.0, 1200.0, GREATEST_S]
    assert set(waits[4:]) == {GREATEST_S}
    known.shown(ONE, [ROOM._replace(share=0.4)], None, now)
    assert known.accounts[ONE].next_at == now + LEAST_S


def test_nobody_is_asked_twice_in_five_minutes(states) -> None:
    known = LookUps()
    known.due(states, 0.0)
    known.asked(ONE, 0.0)
    assert known.why_not(ONE, 40.0) == "asked 40 s ago"
    known.accounts[ONE].next_at = 0.0
    assert known.due(states, LEAST_S - 1) == [TWO]
    assert known.why_not(ONE, LEAST_S) is None


@pytest.mark.parametrize(
    ("status", "understood", "answer"),
    [(200, True, Answer.SHOWN), (200, False, Answer.FAILED), (204, False, Answer.FAILED),
     (302, False, Answer.FAILED), (401, False, Answer.FAILED), (403, False, Answer.REFUSED),
     (404, False, Answer.REFUSED), (426, False, Answer.REFUSED), (429, False, Answer.PUT_OFF),
     (500, False, Answer.FAILED), (299, True, Answer.FAILED)],
)  # fmt: skip
def test_what_an_answer_means(status: int, understood: bool, answer: Answer) -> None:
    assert answer_of(status, understood=understood) is answer


def test_a_vendor_that_refuses_our_name_is_left_alone_for_a_day(states) -> None:
    known = LookUps()
    known.due(states, 0.0)
    off = known.failed(ONE, Answer.REFUSED, "status 403", 10.0)
    assert off == "openai refuses look-ups: status 403; off for a day"
    assert known.why_not(TWO, 20.0) == off
    assert known.due(states, OFF_S) == []
    assert known.due(states, OFF_S + 10.0) == [ONE, TWO]


def test_an_account_that_is_refused_while_others_are_answered_is_left_alone(states) -> None:
    known = LookUps()
    known.due(states, 0.0)
    known.shown(TWO, [ROOM], None, 5.0)
    assert known.failed(ONE, Answer.REFUSED, "status 403", 10.0) is None
    assert known.due(states, 2 * LEAST_S) == [TWO]
    assert ONE in known.due(states, OFF_S + 10.0)


def test_a_vendor_that_puts_off_again_and_again_is_left_alone(states) -> None:
    known, now, said = LookUps(), 0.0, []
    known.due(states, now)
    for _ in range(MAX_PUT_OFF):
        now = known.accounts[ONE].next_at + 1
        known.asked(ONE, now)
        said.append(known.failed(ONE, Answer.PUT_OFF, "status 429", now, retry_after_s=7200.0))
        assert known.accounts[ONE].next_at >= now + 7200 or said[-1]
    assert said == [None] * (MAX_PUT_OFF - 1) + [
        "openai refuses look-ups: status 429; off for a day"
    ]


def test_silence_is_asked_again_later_and_later(states) -> None:
    known, now, waits = LookUps(), 0.0, []
    known.due(states, now)
    for _ in range(6):
        known.failed(ONE, Answer.FAILED, "no answer", now)
        waits.append(known.accounts[ONE].next_at - now)
        now = known.accounts[ONE].next_at
    assert waits == [600.0, 1200.0, 2400.0, FAILED_S, FAILED_S, FAILED_S]
    assert known.accounts[ONE].problem == "no answer"


CAUSE = Cause(
    signal="429 usage_limit_reached", cls=OutcomeClass.QUOTA, scope=Scope.ACCOUNT, hinted=True
)
SPENT = Cooldown(model=None, since=100.0, until=9e5, streak=1, cause=CAUSE)


@pytest.mark.parametrize(
    ("cooldown", "windows", "ends"),
    [
        (SPENT, [ROOM, WEEK], True),
        (SPENT, [ROOM, WEEK._replace(share=0.01)], False),
        (SPENT, [WEEK._replace(model="*opus*")], False),
        # A family that is spent says nothing of the account.
        (SPENT, [WEEK, WEEK._replace(model="*opus*", share=0.0)], True),
        (SPENT, [], False),
        (SPENT, [ROOM._replace(length_s=60.0, reset_at=160.0)], False),
        # It began after the provider was asked.
        (replace(SPENT, since=200.0), [ROOM, WEEK], False),
        (replace(SPENT, model="claude-opus-4"), [WEEK._replace(model="*opus*")], True),
        (replace(SPENT, model="claude-opus-*"), [WEEK, WEEK._replace(model="*opus*")], True),
        (replace(SPENT, model="claude-opus-4"), [WEEK], False),
        (replace(SPENT, model="claude-opus-4"),
         [WEEK._replace(share=0.0), WEEK._replace(model="*opus*")], False),
        (replace(SPENT, cause=replace(CAUSE, cls=OutcomeClass.AUTH_INVALID)), [ROOM, WEEK], False),
        (replace(SPENT, cause=replace(CAUSE, money=True)), [ROOM, WEEK], False),
        (replace(SPENT, cause=replace(CAUSE, unknown=True)), [ROOM, WEEK], False),
        (replace(SPENT, cause=replace(CAUSE, signal=BY_HAND)), [ROOM, WEEK], False),
    ],
)  # fmt: skip
def test_what_room_ends(cooldown: Cooldown, windows: list[Window], ends: bool) -> None:
    assert lifted(cooldown, windows, asked_at=200.0) is ends
