"""Conversations in any order of events: they stay where they can, and every turn ends."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from account_pool.core import reactions
from account_pool.core.account import AccountKey
from account_pool.core.accounts import summary
from account_pool.core.attempts import Attempts
from account_pool.core.lease import Conversation, RequestFacts
from account_pool.core.outcome import Outcome, Scope
from account_pool.core.sessions import Pins, SessionLease, Sessions, session_lease_of
from account_pool.core.steps import Limits, Phase
from tests.core.helpers import (
    BARE_429,
    OK,
    PROVIDER,
    REQUEST_ERROR,
    key,
    pool_of,
    quota,
    rate_limit,
)
from tests.patience import tries

OUTCOMES = [
    rate_limit(1.0),
    rate_limit(60.0),
    rate_limit(60.0, scope=Scope.MODEL),
    quota(3600.0),
    BARE_429,
    REQUEST_ERROR,
]
TOLD = [
    Conversation(session="s"),
    Conversation(session="t"),
    Conversation(session="s/agent", parent="s"),
    Conversation(session="s", named=("made",)),
    Conversation(session="t", begins=True),
    Conversation(),
]
OWNER = key("b")


class Conversations(RuleBasedStateMachine):
    """Requests of a few conversations on three accounts that are limited now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pool = pool_of("a", "b", "c")
        self.sessions, self.pins = Sessions(idle_s=10_000.0), Pins()
        self.pins.remember(OWNER, "made", 0.0)
        self.running: list[Attempts] = []

    def some(self, data: st.DataObject, phase: Phase) -> Attempts | None:
        found = [attempts for attempts in self.running if attempts.phase is phase]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(told=st.sampled_from(TOLD), model=st.sampled_from(["big", "small"]))
    def begin(self, told: Conversation, model: str) -> None:
        facts = RequestFacts(provider=PROVIDER, kind="key", model=model, conversation=told)
        session = session_lease_of(facts, self.sessions, self.pins, self.now)
        home = session.home(self.now)
        free = home is not None and self.pool.pick(facts, now=self.now, only=home) is not None
        attempts = Attempts(
            pool=self.pool, facts=facts, limits=Limits(), chance=lambda: 0.5, session=session
        )
        silent = self.pool.failures(PROVIDER).avoided(facts, self.now)
        attempts.begin(self.now)
        self.running.append(attempts)
        if free and session.owner is None and home not in silent:
            # Nothing else takes a conversation away from an account that can serve it.
            assert attempts.history[0].key == home

    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def refuse(self, data: st.DataObject, outcome: Outcome) -> None:
        if attempts := self.some(data, Phase.SENT):
            reactions.refused(attempts, outcome, self.now)

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        if attempts := self.some(data, Phase.SENT):
            attempts.committed(self.now)
            assert attempts.history[-1].outcome == OK

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if attempts := self.some(data, Phase.COMMITTED):
            attempts.finished(self.now)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.running)).left(self.now)

    @rule(data=st.data())
    def shut_down(self, data: st.DataObject) -> None:
        if attempts := self.some(data, Phase.WAITING):
            reactions.stopped(attempts, self.now)

    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.3, 1.0, 3.0, 61.0]))
    def time_passes(self, data: st.DataObject, seconds: float) -> None:
        self.now += seconds
        if attempts := self.some(data, Phase.WAITING):
            attempts.resumed(self.now)

    @invariant()
    def what_only_its_owner_knows_goes_nowhere_else(self) -> None:
        for attempts in self.running:
            if attempts.facts.conversation.named:
                assert {attempt.key for attempt in attempts.history} <= {OWNER}

    @invariant()
    def every_turn_is_counted_once(self) -> None:
        under_way = [a.session for a in self.running if not a.over]
        for name in self.sessions:
            session = self.sessions._known[name]
            assert session.in_flight == sum(bound(lease) == name for lease in under_way)

    @invariant()
    def sessions_live_on_accounts_of_the_pool(self) -> None:
        known: set[AccountKey] = {state.key for state in self.pool.accounts}
        assert {self.sessions._known[name].account for name in self.sessions} <= known

    def teardown(self) -> None:
        for attempts in self.running:
            attempts.left(self.now)
        assert all(self.sessions._known[name].in_flight == 0 for name in self.sessions)
        assert summary(self.pool.accounts, now=self.now)["in_flight"] == 0


def bound(lease: SessionLease) -> str | None:
    return lease._bound[0] if lease._bound else None


TestConversations = Conversations.TestCase
TestConversations.settings = settings(max_examples=tries(60), stateful_step_count=40)
