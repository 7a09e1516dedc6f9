"""What all proxies have decided, as one of them shows it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from account_pool.core.account import AccountKey
from account_pool.core.decision_history import (
    MAX_RECORD_CHARS,
    DecisionHistory,
    LoggedDecision,
    read_record,
    record_of,
)
from account_pool.core.decision_text import line
from account_pool.core.decisions import By, Decision, Decisions, Kind
from tests.core.helpers import ClocksAhead

ONE = AccountKey("openai", "one")
#: Our wall clock shows this much more than the monotonic one.
WALL = 1_700_000_000.0


def made(**fields: Any) -> Decision:
    decisions = Decisions()
    decisions.clocks = ClocksAhead(WALL)
    wanted = {"kind": Kind.COOLDOWN, "at": 10.0, "by": By.ANSWER, "provider": "openai"}
    return decisions.add(Decision(**{"account": ONE, **wanted, **fields}))


def logged(origin: str, own: int = 1, ahead_s: float = 0.0, **fields: Any) -> LoggedDecision:
    return LoggedDecision(origin, own, f"host-{origin}", record_of(made(**fields), ahead_s))


def history(*rows: LoggedDecision) -> DecisionHistory:
    return DecisionHistory().read("log", len(rows), [*enumerate(rows, 1)])


def shown(*rows: LoggedDecision, now: float = 10.0) -> list[dict[str, Any]]:
    return history(*rows).shown(ahead_s=0.0, wall_now=WALL + now).rows


def test_a_record_is_shown_as_its_proxy_would_show_it() -> None:
    decision = made(until=70.0, covers="gpt-5", reason="because")
    [row] = (
        history(LoggedDecision("a", 1, "host", record_of(decision, 30.0)))
        .shown(ahead_s=30.0, wall_now=WALL + 20.0)
        .rows
    )
    more = {"id": "a-1", "proxy": "host", "text": line(decision)}
    assert row == {**decision.as_dict(20.0), **more}


def test_time_ends_a_cooldown_by_the_clock_of_whoever_shows_it() -> None:
    rows = logged("a", until=70.0, ahead_s=1000.0)
    known = history(rows)
    [row] = known.shown(ahead_s=1000.0, wall_now=WALL + 69.0).rows
    assert (row["at"], row["ended_at"]) == (WALL + 10.0, None)
    [row] = known.shown(ahead_s=1000.0, wall_now=WALL + 70.0).rows
    assert (row["ended_at"], row["released_by"]) == (WALL + 70.0, "time")


def test_what_ends_a_decision_of_another_proxy_names_it() -> None:
    # 77 is what b calls the cooldown that it took over.
    released = logged("b", kind=Kind.RELEASE, at=20.0, by=By.SUCCESS, ends=77)
    begun, ended = shown(logged("a", until=99.0), released)
    assert (ended["number"], ended["ends"]) == (2, 1)
    assert (begun["ended_at"], begun["released_by"]) == (WALL + 20.0, "a good answer")


def test_what_ends_an_own_decision_has_its_number_in_the_log() -> None:
    of_other = logged("b", kind=Kind.MOVE)
    own = logged("a", 1, until=99.0), logged("a", 2, kind=Kind.RELEASE, at=20.0, ends=1)
    assert [row["ends"] for row in shown(of_other, *own)] == [None, None, 2]


@pytest.mark.parametrize(
    ("second", "is_same"),
    [
        ({}, True),
        ({"at": 14.0}, True),
        ({"at": 16.0}, False),
        ({"covers": "gpt-5"}, False),
        ({"account": AccountKey("openai", "two")}, False),
    ],
)
def test_what_two_proxies_decide_at_once_is_shown_once(second, is_same) -> None:
    rows = shown(logged("a"), logged("b", **second))
    assert [row["times"] for row in rows] == ([2] if is_same else [1, 1])


def test_two_requests_that_move_are_two() -> None:
    assert len(shown(logged("a", kind=Kind.MOVE), logged("b", kind=Kind.MOVE))) == 2


def test_one_proxy_that_decides_the_same_twice_has_decided_twice() -> None:
    assert len(shown(logged("a", 1), logged("a", 2))) == 2


def test_a_cooldown_that_was_ended_is_another_than_the_next() -> None:
    first = logged("a", at=10.0, until=99.0)
    end = logged("a", 2, kind=Kind.RELEASE, at=11.0, by=By.HAND, ends=1)
    assert len(shown(first, end, logged("b", at=12.0))) == 3


def test_what_the_store_has_not_got_follows_and_changes_what_it_has() -> None:
    known = history(logged("a", 1), logged("b", 1, kind=Kind.MOVE))
    changed, new = logged("a", 1, until=50.0), logged("a", 2, kind=Kind.WAIT)
    rows, upto = known.shown([changed, new], ahead_s=0.0, wall_now=WALL)
    assert [(row["number"], row["id"]) for row in rows] == [(1, "a-1"), (2, "b-1"), (3, "a-2")]
    assert rows[0]["until"] == WALL + 50.0
    assert upto == 2, "what is not in the log may get another number"


def test_without_a_log_decisions_have_their_own_numbers() -> None:
    waiting = [logged("a", own, kind=Kind.MOVE) for own in (41, 42)]
    rows, upto = DecisionHistory().shown(waiting, ahead_s=0.0, wall_now=WALL)
    assert ([row["number"] for row in rows], upto) == ([41, 42], 42)
    assert DecisionHistory().shown(ahead_s=0.0, wall_now=WALL) == ([], 0)


def test_changes_are_added_and_another_log_takes_the_place_of_the_first() -> None:
    known = history(logged("a"), logged("b", kind=Kind.MOVE))
    later = known.read("log", 3, [(2, logged("b", kind=Kind.MOVE, reason="x"))])
    rows = later.shown(ahead_s=0.0, wall_now=WALL).rows
    assert [(row["number"], row["reason"]) for row in rows] == [(1, None), (2, "x")]
    anew = later.read("another", 1, [(1, logged("c"))])
    assert [r["id"] for r in anew.shown(ahead_s=0.0, wall_now=WALL).rows] == ["c-1"]


def test_no_more_than_a_thousand_are_known() -> None:
    one = logged("a", kind=Kind.MOVE)
    rows = [(number, one._replace(own=number)) for number in range(1, 1503)]
    found = DecisionHistory().read("log", 1, rows).shown(ahead_s=0.0, wall_now=WALL).rows
    assert (len(found), found[0]["number"], found[-1]["number"]) == (1000, 503, 1502)


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "1", "{", "{}", b"\xff", None, 7, "[" * 10_000,
        '{"at": "now"}', '{"at": NaN}', '{"at": 1e999}', f'{{"at": {10**400}}}',
        '{"at": 1.0, "kind": 1, "by": "a", "provider": "b", "text": "c"}',
        json.dumps({"at": 1, "kind": "move", "by": "a", "provider": "b", "text": "c" * 20_000}),
    ],
)  # fmt: skip
def test_what_is_no_record_is_left_out(text) -> None:
    assert read_record(text) is None


def test_a_record_of_another_version_is_shown_as_far_as_it_is_understood() -> None:
    said = {
        "at": 5, "kind": "new kind", "by": "something", "provider": "openai", "text": "a\x1b[2Jb",
        "until": "later", "times": -1, "ends": True, "evidence": {"x": 1, "y": "z\n"}, "more": [1],
        "unknown": "yes", "model": ["x"],
    }  # fmt: skip
    [row] = shown(LoggedDecision("a", 1, "host\n", json.dumps(said)))
    assert row["kind"] == "new kind"
    assert (row["text"], row["proxy"]) == ("a?[2Jb", "host?")
    assert (row["until"], row["times"], row["ends"], row["unknown"]) == (None, 1, None, None)
    assert (row["evidence"], row["model"]) == ({"y": "z?"}, None)
    assert row.keys() == shown(logged("a"))[0].keys()


def test_the_longest_record_is_not_too_long() -> None:
    decision = made(model="\u2603" * 999, covers="\u2603" * 999, reason="\u2603" * 999)
    assert len(record_of(decision, 0.0)) < MAX_RECORD_CHARS


def test_no_decision_is_made_for_a_record(monkeypatch) -> None:
    """One has twenty-four fields, and each failover writes some records."""
    decision = made(until=40.0)
    monkeypatch.delattr(Decision, "__post_init__")
    record = json.loads(record_of(decision, 30.0))
    assert (record["at"], record["until"]) == (WALL + 40.0, WALL + 70.0)
