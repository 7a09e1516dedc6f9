"""Conversations, waiting, ramps and cooldowns together: what is promised of them.

A small world in any order of events: three accounts of different size, a few
conversations, clients that come, are refused, served, and leave. It is driven as the shell
drives it: whoever waits looks again when it is called or its time has come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from account_pool.core import reactions
from account_pool.core.account import AccountKey
from account_pool.core.accounts import summary
from account_pool.core.attempts import Attempts
from account_pool.core.errors import NoUsableAccount
from account_pool.core.lease import Conversation, RequestFacts, Ticket
from account_pool.core.outcome import Outcome, Scope
from account_pool.core.sessions import Pins, Session, Sessions, session_lease_of
from account_pool.core.steps import (
    BARE_JITTER_S,
    BARE_PAUSE_S,
    Broken,
    Limits,
    Phase,
    Send,
    Step,
    Wait,
)
from tests.core.helpers import BARE_429, PROVIDER, account, key, pool_of, quota, rate_limit
from tests.patience import tries

PATIENCE_S, MAX_WAIT_S = 3.0, 30.0
IDLE_S, MAX_SESSIONS = 200.0, 2
OUTCOMES = [
    rate_limit(1.0),
    rate_limit(2.0),
    rate_limit(20.0),
    rate_limit(60.0, scope=Scope.MODEL),
    quota(3600.0),
    BARE_429,
]
OWNER = key("b")
TOLD = [
    Conversation(session="s"),
    Conversation(session="t"),
    Conversation(session="u", begins=True),
    Conversation(session="s/agent", parent="s"),
    Conversation(session="t", named=("made",)),
    Conversation(),
]


@dataclass(eq=False)
class Client:
    """One request, and what was last decided about it."""

    attempts: Attempts
    came_at: float
    step: Step | None = None
    #: since when the account of its conversation cannot serve it: one clock for all waits
    patient_since: float = inf

    @property
    def waits(self) -> Wait | None:
        return self.step if isinstance(self.step, Wait) else None

    @property
    def waits_for_anybody(self) -> bool:
        ticket = self.waits.ticket if self.waits else None
        return ticket is not None and ticket.only is None


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.pool = pool_of(
            account("a", max_concurrent=1),
            account("b", max_concurrent=2),
            account("c", min_interval_s=0.5),
            now=self.now,
        )
        self.sessions = Sessions(idle_s=IDLE_S, max_sessions=MAX_SESSIONS)
        self.pins = Pins()
        self.pins.remember(OWNER, "made", 0.0)
        self.clients: list[Client] = []

    # -- what happens

    @rule(told=st.sampled_from(TOLD), model=st.sampled_from(["big", "small"]), n=st.integers(1, 4))
    def come(self, told: Conversation, model: str, n: int) -> None:
        facts = RequestFacts(provider=PROVIDER, kind="key", model=model, conversation=told)
        for _ in range(n):
            attempts = Attempts(
                pool=self.pool,
                facts=facts,
                limits=Limits(patience_s=PATIENCE_S, max_wait_s=MAX_WAIT_S),
                chance=lambda: 0.5,
                session=session_lease_of(facts, self.sessions, self.pins, self.now),
            )
            client = Client(attempts, self.now)
            older = [ticket for ticket in self.waiting() if ticket.attempts.facts == facts]
            self.clients.append(client)
            self.do(client, lambda a=attempts: a.begin(self.now))  # type: ignore[misc]
            sent = client.step
            if isinstance(sent, Send) and not sent.lease.probe:
                # Whoever waits and could use that account was there first.
                assert not any(could_use(one, sent.lease.key) for one in older)

    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def refuse(self, data: st.DataObject, outcome: Outcome) -> None:
        if client := self.one_of(data, Phase.SENT):
            client.patient_since = min(client.patient_since, self.now)
            self.do(client, lambda: reactions.refused(client.attempts, outcome, self.now))

    @rule(data=st.data())
    def break_off(self, data: st.DataObject) -> None:
        if client := self.one_of(data, Phase.SENT):
            self.do(client, lambda: reactions.broken(client.attempts, Broken.MAYBE_RAN, self.now))

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        if client := self.one_of(data, Phase.SENT):
            self.do(client, lambda: client.attempts.committed(self.now))

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if client := self.one_of(data, Phase.COMMITTED):
            self.do(client, lambda: client.attempts.finished(self.now))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.do(client, lambda: client.attempts.left(self.now))

    @rule(seconds=st.sampled_from([0.1, 0.3, 1.0, 2.0, 10.0, 61.0, 500.0]))
    def time_passes(self, seconds: float) -> None:
        """No clock jumps over the moment somebody looks again."""
        end = self.now + seconds
        while (
            moment := min((w.until for c in self.waiting() if (w := c.waits)), default=inf)
        ) < end:
            self.now = max(self.now, moment)
            self.settle()
        self.now = end
        self.settle()

    @rule()
    def sweep(self) -> None:
        busy = {name for name in self.sessions if self.sessions._known[name].in_flight}
        assert busy.isdisjoint(self.sessions.sweep(self.now).removed)

    @rule(label=st.sampled_from("abc"))
    def release_by_hand(self, label: str) -> None:
        homes = self.homes()
        self.pool.accounts.clear_cooldown(key(label), now=self.now)
        assert self.homes() == homes
        self.settle()

    # -- carried out as the shell does

    def do(self, client: Client, event: Callable[[], Step | None]) -> None:
        """Tell one request what happened; see where that leaves all conversations."""
        attempts, homes, sent = client.attempts, self.homes(), len(client.attempts.history)
        home, waited = attempts.session.home(self.now), client.waits_for_anybody
        client.step = event()
        self.only_its_own_has_moved(attempts, homes)
        if client.waits:
            client.patient_since = min(client.patient_since, self.now)
        goes = len(attempts.history) > sent and attempts.history[-1].key != home
        # Once it waits for anybody the first to be free has it, be its own soon free as well.
        if home and not waited and (goes or client.waits_for_anybody):
            self.could_not_stay(client, home)
        self.settle()

    def settle(self) -> None:
        """Let those look again who were called or whose time has come."""
        while due := [c for c in self.waiting() if self.is_due(c)]:
            self.do(due[0], lambda client=due[0]: client.attempts.resumed(self.now))  # type: ignore[misc]

    def next_look(self) -> float:
        return min((c.waits.until for c in self.waiting() if c.waits), default=inf)

    def is_due(self, client: Client) -> bool:
        wait = client.waits
        return wait is not None and (
            wait.until <= self.now or (wait.ticket is not None and wait.ticket.called)
        )

    def waiting(self) -> list[Client]:
        return [c for c in self.clients if c.attempts.phase is Phase.WAITING]

    def one_of(self, data: st.DataObject, phase: Phase) -> Client | None:
        found = [client for client in self.clients if client.attempts.phase is phase]
        return data.draw(st.sampled_from(found)) if found else None

    def homes(self) -> dict[str, AccountKey]:
        return {name: self.sessions._known[name].account for name in self.sessions}

    # -- what is promised of conversations

    def only_its_own_has_moved(self, attempts: Attempts, before: dict[str, AccountKey]) -> None:
        session = attempts.session
        moved = {name for name, home in self.homes().items() if before.get(name, home) != home}
        assert moved <= {session.key, session.model_key}

    def could_not_stay(self, client: Client, home: AccountKey) -> None:
        """It went elsewhere: its own account cannot serve it soon, or it has waited for it."""
        attempts = client.attempts
        if attempts.facts.conversation.named:
            assert attempts.history[-1].key == OWNER
            return
        if home in attempts.choice.avoid or any(a.outcome == BARE_429 for a in attempts.history):
            return
        # An overloaded account, or one that did not answer, is left for others.
        if (
            home in self.pool.failures(PROVIDER).avoided(attempts.facts, self.now)
            or attempts.tries.asked_another
        ):
            return
        assert self.pool.pick(attempts.facts, now=self.now, only=home) is None
        nobody = self.pool.shortage(attempts.facts, now=self.now, only=home)
        patient_until = min(client.patient_since, self.now) + PATIENCE_S
        assert self.now >= patient_until - 1e-6 or not returns_by(nobody, patient_until)

    # -- what always holds

    @invariant()
    def no_account_has_more_than_it_takes(self) -> None:
        for state in self.pool.accounts:
            assert state.account.max_concurrent is None or (
                state.in_flight <= state.account.max_concurrent
            )

    @invariant()
    def every_slot_belongs_to_a_request(self) -> None:
        held = [c.attempts.lease for c in self.clients if c.attempts.lease]
        for state in self.pool.accounts:
            assert state.in_flight == sum(lease.key == state.key for lease in held)

    @invariant()
    def ramps_count_what_is_unanswered(self) -> None:
        held = [c.attempts.lease for c in self.clients if c.attempts.lease]
        for state in self.pool.accounts:
            for ramp in state.ramps.values():
                assert ramp.unanswered == sum(ramp in lease.ramps for lease in held)

    @invariant()
    def nobody_waits_longer_than_it_may(self) -> None:
        for client in self.waiting():
            assert client.waits is not None
            if client.waits.ticket is None:  # a pause between two accounts
                assert client.waits.until <= self.now + BARE_PAUSE_S + BARE_JITTER_S
                continue
            assert client.waits.until <= self.give_up_at(client)

    def give_up_at(self, client: Client) -> float:
        assert client.attempts.choice.give_up_at is not None
        # The clock starts at the first wait, which is not before it came.
        assert client.attempts.choice.give_up_at <= self.now + MAX_WAIT_S
        return client.attempts.choice.give_up_at

    @invariant()
    def lines_are_first_come_first_served(self) -> None:
        for line in self.lines():
            assert [t.number for t in line] == sorted(t.number for t in line)
            # Whoever has a lease has left the line: the oldest left in it has none.
            assert all(ticket.lease is None for ticket in line)

    @invariant()
    def nobody_waits_for_what_is_free(self) -> None:
        for line in self.lines():
            first = line[0]
            free = self.pool.pick(first.facts, now=self.now, avoid=first.avoid, only=first.only)
            assert free is None or first.called or first.look_at <= self.now

    def lines(self) -> Iterator[list[Ticket]]:
        return self.pool.admission.lines(PROVIDER)

    @invariant()
    def busy_conversations_are_remembered(self) -> None:
        for client in self.clients:
            bound = client.attempts.session._bound
            if bound is not None and not client.attempts.over:
                name, session = bound
                assert self.sessions._known.get(name) is session
                assert session.in_flight > 0

    def known(self) -> list[Session]:
        return [self.sessions._known[name] for name in self.sessions]

    @invariant()
    def what_only_its_owner_knows_goes_nowhere_else(self) -> None:
        for client in self.clients:
            if client.attempts.facts.conversation.named:
                assert {attempt.key for attempt in client.attempts.history} <= {OWNER}

    def teardown(self) -> None:
        for client in self.clients:
            client.attempts.left(self.now)
        assert summary(self.pool.accounts, now=self.now)["in_flight"] == 0
        assert len(self.pool.admission) == 0
        assert all(session.in_flight == 0 for session in self.known())
        for state in self.pool.accounts:
            assert all(ramp.unanswered == 0 for ramp in state.ramps.values())
        assert not self.pool._members[PROVIDER].probing


def could_use(client: Client, served_by: AccountKey) -> bool:
    """Say whether *client* waits for that account too."""
    ticket = client.waits.ticket if client.waits else None
    if ticket is None or client.attempts.phase is not Phase.WAITING:
        return False
    return served_by not in ticket.avoid and ticket.only in (None, served_by)


def returns_by(nobody: NoUsableAccount, moment: float) -> bool:
    return nobody.may_change or (nobody.retry_at is not None and nobody.retry_at < moment - 1e-6)


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=tries(50), stateful_step_count=50)
