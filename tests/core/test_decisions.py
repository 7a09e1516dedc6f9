"""What was decided is kept, in order, bounded, and ready for JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from account_pool.core.decisions import KEPT, By, Decision, Decisions, Kind, session_hash
from account_pool.core.outcome import Cause, OutcomeClass, Scope
from account_pool.core.steps import remedy
from tests.core.helpers import PROVIDER, ClocksAhead, key

A = key("a")
CAUSE = Cause(
    signal="429 code=slow",
    cls=OutcomeClass.RATE_LIMIT,
    scope=Scope.ACCOUNT,
    evidence={"retry-after": "60"},
    hinted=True,
)


def cooldown(at: float = 0.0, *, until: float = 60.0, model: str | None = None) -> Decision:
    return Decision(
        kind=Kind.COOLDOWN,
        at=at,
        by=By.ANSWER,
        provider=PROVIDER,
        account=A,
        model=model,
        covers=model,
        cause=CAUSE,
        until=until,
    )


def test_the_last_thousand_are_kept_newest_first() -> None:
    decisions = Decisions()
    for at in range(KEPT + 5):
        decisions.add(cooldown(float(at)))
    assert [d.number for d in decisions] == list(range(KEPT + 5, 5, -1))
    assert len(decisions) == KEPT
    assert decisions.made == KEPT + 5


def test_a_listener_that_fails_is_in_nobodys_way() -> None:
    decisions, failures, heard = Decisions(), [], []
    decisions.failed = failures.append
    decisions.subscribe(lambda _: 1 / 0)
    decisions.subscribe(heard.append)
    decision = decisions.add(cooldown())
    assert heard == [decision]
    assert [type(e) for e in failures] == [ZeroDivisionError]


def test_what_is_no_longer_kept_is_not_in_force() -> None:
    decisions = Decisions(kept=2)
    decisions.add(cooldown(model="old"))
    assert decisions.lasting(Kind.COOLDOWN, A, "old", 1.0) is not None
    for _ in range(2):
        decisions.add(cooldown())
    assert decisions.lasting(Kind.COOLDOWN, A, "old", 1.0) is None
    assert len(decisions.all_lasting(A, 1.0)) == 1
    # It ends without a trace; the account itself still knows.
    decisions.end(1, By.HAND, 2.0)
    assert all(d.ended_at is None for d in decisions)


def test_a_listener_hears_of_it_and_of_its_end() -> None:
    decisions = Decisions()
    heard: list[tuple[int, By | None]] = []
    unsubscribe = decisions.subscribe(lambda d: heard.append((d.number, d.released_by)))
    first = decisions.add(cooldown())
    decisions.end(first.number, By.HAND, 5.0)
    decisions.end(first.number, By.SUCCESS, 6.0)  # it has ended
    unsubscribe()
    decisions.add(cooldown())
    assert heard == [(1, None), (1, By.HAND)]


def test_as_dict() -> None:
    decisions = Decisions()
    decisions.clocks = ClocksAhead(1_000_000.0)
    told = decisions.add(cooldown(10.0, until=70.0, model="gpt-5")).as_dict(20.0)
    assert told == {
        "number": 1,
        "kind": "cooldown",
        "at": 1_000_010.0,
        "by": "a refusal",
        "provider": "openai",
        "account": "openai/a",
        "to": None,
        "model": "gpt-5",
        "class": "rate_limit",
        "scope": "account",
        "signal": "429 code=slow",
        "unknown": False,
        "evidence": {"retry-after": "60"},
        "reset_named": True,
        "reason": None,
        "effect": None,
        "covers": "gpt-5",
        "until": 1_000_070.0,
        "told_s": None,
        "session": None,
        "ends": None,
        "ended_at": None,
        "released_by": None,
        "waited_s": None,
        "times": 1,
    }
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize(
    ("now", "ended_by", "at"), [(59.9, None, None), (60.0, "time", 60.0), (99.0, "time", 60.0)]
)
def test_time_ends_a_cooldown_without_anybody_doing_anything(
    now: float, ended_by: str | None, at: float | None
) -> None:
    told = Decisions().add(cooldown()).as_dict(now)
    assert (told["released_by"], told["ended_at"]) == (ended_by, at)


def test_what_ended_earlier_says_by_whom() -> None:
    decisions = Decisions()
    decisions.end(decisions.add(cooldown()).number, By.HAND, 5.0)
    (told,) = [d.as_dict(99.0) for d in decisions]
    assert (told["released_by"], told["ended_at"]) == ("hand", 5.0)


def test_every_decision_has_the_same_keys() -> None:
    decisions = Decisions()
    for kind in Kind:
        decisions.add(Decision(kind=kind, at=0.0, by=By.ANSWER, provider=PROVIDER))
    assert len({tuple(d.as_dict(1.0)) for d in decisions}) == 1
    text = Decision.as_dict.__doc__ or ""
    listed = text[text.index("Keys:") : text.index("What is not known")].lower()
    assert all(name in listed for name in next(iter(decisions)).as_dict(1.0))


def test_the_documentation_names_every_kind_key_and_agent() -> None:
    page = (Path(__file__).parents[2] / "docs" / "why.md").read_text(encoding="utf-8")
    decision = Decision(kind=Kind.MOVE, at=0.0, by=By.ANSWER, provider=PROVIDER)
    for name in (*Kind, *decision.as_dict(0.0)):
        assert f"`{name}`" in page
    agents = page[page.index("are one of:") : page.index("No record,")]
    assert {a.strip(" .") for a in agents[11:].replace("\n", " ").split("·")} == set(By)


def test_only_a_wait_has_waited() -> None:
    decisions = Decisions()
    wait = decisions.add(Decision(kind=Kind.WAIT, at=1.0, by=By.SHORTAGE, provider=PROVIDER))
    assert wait.waited_s is None
    decisions.end(wait.number, By.ACCOUNT, 3.5)
    decisions.end(decisions.add(cooldown()).number, By.HAND, 9.0)
    assert [d.waited_s for d in decisions] == [None, 2.5]


def test_what_clients_name_is_one_short_line() -> None:
    shown = Decisions().add(cooldown(model="a\nb\x1b[31m" + "x" * 999)).model
    assert shown is not None
    assert shown.startswith("a?b?[31mxx")
    assert shown.isprintable()
    assert len(shown) == 200


def test_what_helps_is_not_cut_off() -> None:
    host = "a-resource-with-a-very-long-name-" * 4 + ".openai.azure.com"
    message = "Certificate verify failed: unable to get local issuer certificate"
    reason = f"no connection to {host}: {message}; {remedy(message)}"
    assert Decisions().add(replace(cooldown(), reason=reason)).reason == reason


def test_a_session_is_told_by_a_hash() -> None:
    assert session_hash(None) is None
    one, other = session_hash("session-1"), session_hash("session-2 \udc80")
    assert one is not None
    assert one != other
    assert one == session_hash("session-1")
    assert "session" not in one
