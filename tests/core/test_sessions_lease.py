"""Requests of conversations as scripts: they stay, wait, move, and what only one can serve."""

from __future__ import annotations

from typing import Any

import pytest

from account_pool.core.lease import Conversation, RequestFacts
from account_pool.core.outcome import Scope
from account_pool.core.sessions import Pins, Sessions, session_key, session_lease_of, session_of
from tests.core.helpers import (
    BARE_429,
    FORBIDDEN,
    PROVIDER,
    REQUEST_ERROR,
    UNAUTHORIZED,
    account,
    key,
    quota,
    rate_limit,
)
from tests.core.test_attempts import (
    Play,
    begin,
    committed,
    finished,
    left,
    refreshed,
    refused,
    resumed,
)

S = Conversation(session="s")


class Request(Play):
    """One request of several on the same pool."""

    @property
    def in_flight(self) -> int:
        return 0 if self.attempts.lease is None else 1


class World:
    """A pool with its sessions and pins, and the requests of conversations."""

    def __init__(self, *members: Any, **options: Any) -> None:
        self.sessions = Sessions()
        self.pins = Pins()
        self.options = options
        self.pool = Play(*members, **options).pool

    def request(
        self, told: Conversation = S, *, at: float = 0.0, model: str = "gpt-5", **limits: Any
    ) -> Request:
        facts = RequestFacts(provider=PROVIDER, kind="key", model=model, conversation=told)
        play = Request(pool=self.pool, facts=facts, **limits)
        play.at(at)
        session = session_lease_of(facts, self.sessions, self.pins, at)
        play.attempts.session = play.attempts.choice.session = session
        return play

    def serve(self, told: Conversation = S, *, at: float = 0.0, model: str = "gpt-5") -> str:
        """Serve one request at once; return the label of who did."""
        play = self.request(told, at=at, model=model) >> begin
        play >> committed >> finished
        return play.tried[-1][0]

    def home(self, session: str = "s", model: str | None = None) -> str | None:
        found = self.sessions.peek(session_key(session, PROVIDER, model), 0.0)
        return found.account.label if found else None


def test_a_conversation_stays_while_others_spread() -> None:
    world = World("a", "b", "c")
    others = []
    for turn in range(20):
        assert world.serve() == "a"
        others.append(world.serve(Conversation(session=f"other-{turn}")))
    # The turns of the conversation use up nobody's turn.
    assert others[:4] == ["b", "c", "a", "b"]
    assert {others.count(label) for label in "abc"} == {6, 7}


def test_what_is_no_conversation_goes_where_the_strategy_says() -> None:
    world = World("a", "b")
    assert [world.serve(Conversation()) for _ in range(4)] == ["a", "b", "a", "b"]
    assert len(world.sessions) == 0


BEGINS = S._replace(begins=True)


def test_what_begins_anew_goes_where_the_strategy_says_and_its_next_turn_follows_it() -> None:
    world = World("a", "b", "c")
    assert [world.serve(BEGINS) for _ in range(4)] == ["a", "b", "c", "a"]
    world.serve(BEGINS)
    assert [world.serve() for _ in range(3)] == ["b"] * 3


def test_what_begins_anew_is_kept_when_it_goes_on() -> None:
    world = World("a", "b")
    kept: list[str] = []
    world.sessions.changed = kept.append
    play = world.request(BEGINS) >> begin << "send a" >> refused(quota(3600.0)) << "send b"
    play >> committed >> finished
    assert (world.home(), kept) == ("b", [])
    world.serve()
    assert kept == [session_key("s", PROVIDER)]


def test_what_begins_anew_waits_for_its_account_as_others_do() -> None:
    world = World("a", "b")
    world.serve(BEGINS)
    play = world.request(BEGINS) >> begin << "send b" >> refused(rate_limit(2.0))
    play << "wait until 2 or change"
    play.at(2.0) >> resumed << "send b" >> committed >> finished
    assert world.home() == "b"


def test_what_begins_anew_and_brings_no_answer_is_not_sent_back() -> None:
    world = World("a", "b")
    world.serve(BEGINS)
    world.request(BEGINS) >> begin << "send b" >> refused(REQUEST_ERROR) << "deliver"
    assert world.home() == "b"


def test_an_answer_settles_the_account_it_came_from_only() -> None:
    world = World("a", "b")
    first = world.request() >> begin << "send a"
    second = world.request() >> begin << "send a" >> refused(quota(3600.0)) << "send b"
    first >> committed
    # It says nothing of where the conversation went meanwhile.
    second >> refused(REQUEST_ERROR) << "deliver"
    first >> finished
    assert world.home() == "a"


def test_a_short_wait_is_waited_out_in_place() -> None:
    world = World("a", "b")
    assert world.serve() == "a"
    play = world.request() >> begin << "send a" >> refused(rate_limit(2.0))
    play << "wait until 2 or change"
    play.at(2.0) >> resumed << "send a" >> committed >> finished
    assert world.home() == "a"


def test_a_long_wait_moves_at_once_and_it_stays_where_it_went() -> None:
    world = World("a", "b", "c")
    assert world.serve() == "a"
    play = world.request() >> begin << "send a" >> refused(rate_limit(60.0)) << "send b"
    play >> committed >> finished
    assert world.home() == "b"
    # Back again, and first in turn.
    assert world.serve(at=100.0) == "b"
    assert world.serve(Conversation(session="new"), at=100.0) == "c"
    assert world.serve(at=101.0) == "b"


def test_all_waits_of_a_request_are_within_its_patience() -> None:
    world = World("a", "b")
    world.serve()
    play = world.request() >> begin >> refused(rate_limit(2.0)) << "wait until 2 or change"
    play.at(2.0) >> resumed << "send a" >> refused(rate_limit(2.0)) << "send b"


def test_patience_is_no_longer_than_a_request_is_held() -> None:
    world = World("a", "b")
    world.serve()
    play = world.request(max_wait_s=1.0) >> begin
    play >> refused(rate_limit(2.0)) << "send b"


@pytest.mark.parametrize(
    ("follow_up", "step"), [(True, "wait until 8 or change"), (False, "send b")]
)
def test_work_that_was_begun_waits_longer_than_a_new_prompt(follow_up: bool, step: str) -> None:
    world = World("a", "b")
    world.serve()
    play = world.request(S._replace(follow_up=follow_up)) >> begin
    play >> refused(rate_limit(8.0)) << step


def test_a_full_account_is_waited_for_and_then_left() -> None:
    world = World(account("a", max_concurrent=1), "b")
    first = world.request() >> begin << "send a"
    second = world.request() >> begin << "wait until 3 or change"
    third = world.request() >> begin << "wait until 3 or change"
    first >> committed >> finished
    second.at(1.0) >> resumed << "send a"
    third.at(3.0) >> resumed << "send b"
    assert world.home() == "b"


def test_who_waited_for_the_old_account_follows_the_conversation() -> None:
    world = World("a", "b")
    world.serve()
    late = world.request() >> begin << "send a" >> refused(rate_limit(2.0))
    late << "wait until 2 or change"
    # Another request of it has no patience, and moves.
    hasty = world.request(patience_s=0.0, at=1.0) >> begin << "send b" >> committed
    late.at(2.0) >> resumed << "send b" >> committed >> finished
    hasty >> finished
    assert world.home() == "b"


def test_who_waits_for_any_account_goes_home_if_that_is_back_as_well() -> None:
    world = World("a", "b", "c")
    assert world.serve(Conversation(session="other")) == "a"
    assert world.serve() == "b"
    for label in "abc":
        world.pool.health.mark_cooldown(key(label), rate_limit(10.0), now=0.0)
    play = world.request() >> begin << "wait until 10 or change"
    # The next in turn is another.
    play.at(10.0) >> resumed << "send b" >> committed >> finished


def test_a_refusal_without_evidence_is_no_reason_to_be_patient() -> None:
    world = World("a", "b")
    world.serve()
    play = world.request() >> begin << "send a" >> refused(BARE_429) << "wait until 0.15"
    play.at(0.15) >> resumed << "send b"


def test_the_requests_of_a_session_that_come_together_go_together() -> None:
    world = World("a", "b", "c")
    first, second = (world.request() >> begin << "send a" for _ in range(2))
    first >> refused(quota(3600.0)) << "send b"
    # The account it moved to is given one request at first: the others wait for it there.
    second >> refused(quota(3600.0)) << "wait until 0.25 or change"
    third = world.request() >> begin << "wait until 3 or change"
    first >> committed
    second >> resumed << "send b" >> committed >> finished
    third >> resumed << "send b" >> left
    first >> finished
    assert world.home() == "b"


def test_a_move_that_brought_no_answer_is_undone() -> None:
    world = World("a", "b")
    world.serve()
    play = world.request() >> begin >> refused(quota(3600.0)) << "send b"
    # What the account of the conversation encrypted, the other cannot read.
    play >> refused(REQUEST_ERROR) << "deliver"
    assert play.benched == []
    assert world.home() == "a"
    assert world.serve(at=4000.0) == "a"


def test_a_move_that_another_request_was_served_by_is_not_undone() -> None:
    world = World("a", "b")
    world.serve()
    first = world.request() >> begin >> refused(quota(3600.0)) << "send b"
    assert world.serve(at=1.0) == "b"
    first >> left
    assert world.home() == "b"


def test_a_conversation_leaves_an_account_that_cannot_serve_it() -> None:
    world = World("a", "b")
    world.serve()
    play = world.request() >> begin >> refused(FORBIDDEN) << "send b"
    play >> committed >> finished
    assert world.home() == "b"


def test_a_conversation_leaves_an_account_whose_credential_is_refused() -> None:
    world = World("a", "b")
    world.serve()
    # Long after: a credential that served a moment ago is not renewed.
    play = world.request(at=61.0) >> begin >> refused(UNAUTHORIZED) << "refresh a"
    play >> refreshed(False) << "send b" >> committed >> finished
    assert world.home() == "b"


# -- one model of several


def test_a_limit_of_one_model_moves_that_model_only() -> None:
    world = World("a", "b")
    assert world.serve(model="big") == "a"
    assert world.serve(model="small") == "a"
    play = world.request(model="small") >> begin << "send a"
    play >> refused(rate_limit(600.0, scope=Scope.MODEL)) << "send b" >> committed >> finished
    assert world.serve(model="big") == "a"
    assert world.serve(model="small") == "b"
    assert world.serve(at=1000.0, model="small") == "b"
    assert (world.home(), world.home(model="small")) == ("a", "b")


def test_a_model_the_account_may_not_serve_moves_no_other() -> None:
    world = World(account("a", "big"), "b")
    assert [world.serve(model=m) for m in ("big", "small", "big", "small")] == ["a", "b", "a", "b"]


# -- agents


def test_a_sub_agent_begins_where_its_parent_lives_and_moves_alone() -> None:
    world = World("a", "b")
    assert world.serve() == "a"
    agent = Conversation(session="s/agent", parent="s")
    assert world.serve(agent) == "a"
    play = world.request(agent) >> begin >> refused(quota(3600.0)) << "send b"
    play >> committed >> finished
    assert (world.home(), world.home("s/agent")) == ("a", "b")


def test_a_sub_agent_of_an_account_that_rests_goes_elsewhere_at_once() -> None:
    world = World("a", "b")
    world.serve()
    world.pool.health.mark_cooldown(key("a"), rate_limit(2.0), now=0.0)
    assert world.serve(Conversation(session="s/agent", parent="s")) == "b"


def test_a_sticky_token_goes_to_the_account_that_issued_it_if_that_can_serve() -> None:
    world = World("a", "b")
    world.pins.remember(key("b"), "state", 0.0)
    assert world.serve(Conversation(session="new", sticky="state")) == "b"
    world.pool.health.mark_cooldown(key("b"), rate_limit(60.0), now=0.0)
    assert world.serve(Conversation(session="newer", sticky="state")) == "a"


# -- pins

NAMED = Conversation(named=("resp_unknown", "resp_1"))


def pinned(**options: Any) -> World:
    world = World("a", "b", **options)
    world.pins.remember(key("b"), "resp_1", 0.0)
    return world


def test_what_only_its_owner_knows_goes_to_its_owner() -> None:
    world = pinned()
    assert [world.serve(NAMED) for _ in range(3)] == ["b"] * 3
    assert world.serve(S._replace(named=("resp_1",))) == "b"
    assert world.home() == "b"


def test_an_id_nobody_here_made_goes_anywhere() -> None:
    assert pinned().serve(Conversation(named=("resp_unknown",))) == "a"


def test_an_owner_that_returns_in_time_is_waited_for() -> None:
    play = pinned().request(NAMED) >> begin << "send b"
    play >> refused(rate_limit(20.0)) << "wait until 20 or change"
    play.at(20.0) >> resumed << "send b" >> committed >> finished


def test_an_owner_that_returns_late_is_the_one_that_refuses() -> None:
    play = pinned().request(NAMED) >> begin << "send b"
    play >> refused(quota(3600.0)) << "deliver, 3600 s"
    assert play.tried == [("b", quota().cls)]


def test_an_owner_that_rests_is_never_replaced() -> None:
    world = pinned()
    world.pool.health.mark_cooldown(key("b"), quota(3600.0), now=0.0)
    world.pool.accounts.get(key("b")).note_probe(None, 0.0)
    world.request(NAMED) >> begin << "answer 429, 3600 s, like b"


@pytest.mark.parametrize("outcome", [BARE_429, FORBIDDEN, REQUEST_ERROR])
def test_no_refusal_sends_it_elsewhere(outcome: Any) -> None:
    play = pinned().request(NAMED, max_wait_s=0.0) >> begin >> refused(outcome)
    assert {label for label, _ in play.tried} == {"b"}
    assert play.attempts.over


# -- what a person has chosen


def test_a_pinned_conversation_is_never_moved() -> None:
    world = World("a", "b")
    assert world.serve() == "a"
    world.pins.pin_session(key("b"), "s", 0.0)
    assert world.serve() == "b"
    assert world.home() == "b"
    # Its account is limited for long, and another could serve: the client is told.
    limited = world.request(at=1.0) >> begin
    limited >> refused(quota(3600))
    assert limited.tried[-1][0] == "b"
    assert {label for label, *_ in limited.tried} == {"b"}
    # Other conversations go on.
    assert world.serve(Conversation(session="t"), at=2.0) == "a"


def test_the_refusal_says_which_account_alone_may_serve() -> None:
    world = World("a", "b")
    facts = RequestFacts(provider=PROVIDER, kind="key", conversation=S, only=key("b"))
    world.pool.health.mark_failure(key("b"), FORBIDDEN, now=0.0)
    nobody = world.pool.shortage(facts, now=0.0, only=key("b"))
    assert nobody.reason == "no usable account of 1 (1 disabled), as only openai/b may serve this"


def test_what_the_client_has_chosen_comes_first() -> None:
    world = World("a", "b", "c")
    world.pins.pin_session(key("b"), "s", 0.0)
    facts = RequestFacts(provider=PROVIDER, kind="key", conversation=S, only=key("c"))
    assert session_lease_of(facts, world.sessions, world.pins, 0.0).owner == key("c")


def test_the_session_of_a_key() -> None:
    for session in ("s", "s:t", "s:openai"):
        assert session_of(session_key(session, "openai"), "openai") == session
    assert session_of(session_key("s", "openai", "llama:free"), "openai") == "s"
    assert session_of(session_key("s", "openai"), "azure") is None
    assert session_of(session_key("s", "openai-eu"), "openai") is None
