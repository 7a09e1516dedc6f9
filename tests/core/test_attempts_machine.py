"""Several requests over one pool, in whatever order: bounded, and every lease comes back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from account_pool.core import reactions
from account_pool.core.account import Account
from account_pool.core.accounts import summary
from account_pool.core.attempts import Attempts
from account_pool.core.errors import IllegalEvent
from account_pool.core.lease import Lease, RequestFacts
from account_pool.core.outcome import Outcome
from account_pool.core.pool import Pool
from account_pool.core.selection import POLICIES
from account_pool.core.steps import (
    BARE_JITTER_S,
    BARE_PAUSE_S,
    Broken,
    Deliver,
    Limits,
    Phase,
    Refresh,
    Send,
    Synthesize,
    Wait,
)
from tests.core.generated import (
    REQUESTS,
    SETTINGS,
    accounts,
    check_counts,
    cooling,
    labels,
    limits,
    moments,
    refusals,
    requests,
)
from tests.core.helpers import account, keys_of
from tests.patience import tries

LEGAL = {
    Phase.NEW: ["begin"],
    # Refusals first: they are what there is to test.
    Phase.SENT: ["refused", "refused", "refused", "broken", "committed"],
    Phase.WAITING: ["resumed"],
    Phase.REFRESHING: ["refreshed"],
    Phase.COMMITTED: ["finished"],
    Phase.OVER: [],
}
EVENTS = sorted({name for names in LEGAL.values() for name in names})


@dataclass(frozen=True)
class Telling:
    """One event of a request: which of those legal in its phase, and what it says."""

    choice: int
    refusal: Outcome
    how: Broken
    changed: bool
    patient: bool
    leave: bool
    elapsed: float

    def arguments(self, name: str) -> tuple[object, ...]:
        said = {"refused": self.refusal, "broken": self.how, "refreshed": self.changed}
        return (said[name],) if name in said else ()


tellings = st.builds(
    Telling,
    choice=st.integers(0, 4),
    refusal=refusals,
    how=st.sampled_from(list(Broken)),
    changed=st.booleans(),
    patient=st.booleans(),
    leave=st.sampled_from([False] * 19 + [True]),
    elapsed=st.sampled_from([0.0, 0.0, 0.5, 20.0]),
)
scripts = st.lists(tellings, max_size=12)


class AttemptsMachine(RuleBasedStateMachine):
    """Several requests over one pool: bounded, and every lease comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.pool = Pool()
        self.wake_at = self.now
        self.all: list[Attempts] = []

    @initialize(
        members=st.lists(accounts, max_size=3, unique_by=lambda a: a.label),
        strategy=st.sampled_from(list(POLICIES)),
    )
    def begin(self, members: list[Account], strategy: str) -> None:
        self.pool.accounts.set_strategy(strategy, now=self.now)
        for member in [account("plain"), *members]:
            self.pool.accounts.add(member, keys_of("old", "key", "oauth"), now=self.now)

    @precondition(lambda self: len(self.alive) < 4)
    @rule(
        facts=st.just(REQUESTS[0]) | requests,
        limits=st.builds(
            Limits,
            max_attempts=st.sampled_from([1, 2, 3, 4, 10]),
            max_wait_s=st.sampled_from([0.0, 5.0, 30.0]),
            retry_broken=st.booleans(),
        ),
        chance=st.sampled_from([0.0, 0.5, 1.0]),
        replayable=st.sampled_from([True, True, True, False]),
        script=scripts,
    )
    def request(
        self,
        facts: RequestFacts,
        limits: Limits,
        chance: float,
        replayable: bool,
        script: list[Telling],
    ) -> None:
        attempts = Attempts(
            pool=self.pool,
            facts=facts,
            limits=limits,
            chance=lambda: chance,
            replayable=replayable,
        )
        self.all.append(attempts)
        self.tell(attempts, "begin")
        self.play(attempts, script)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), script=scripts)
    def go_on(self, data: st.DataObject, script: list[Telling]) -> None:
        self.play(data.draw(st.sampled_from(self.alive)), script)

    def play(self, attempts: Attempts, script: list[Telling]) -> None:
        """Tell *attempts* what its phase allows, as *script* says, until it is over."""
        for telling in script:
            if attempts.over:
                return
            if telling.leave:
                attempts.left(self.now)
                return
            names = LEGAL[attempts.phase]
            name = names[telling.choice % len(names)]
            if name == "resumed" and telling.patient:
                self.now = max(self.now, self.wake_at)
            if name == "refreshed" and telling.changed and attempts.lease in self.held:
                self.pool.accounts.set_credentials(
                    attempts.lease.key, keys_of(f"new-{self.now}", "key", "oauth"), now=self.now
                )
            self.now += telling.elapsed
            self.tell(attempts, name, telling)
            self.bounded()
            self.a_request_holds_a_lease_exactly_while_it_needs_one()

    @precondition(lambda self: self.all)
    @rule(data=st.data(), name=st.sampled_from(EVENTS), telling=tellings)
    def anything(self, data: st.DataObject, name: str, telling: Telling) -> None:
        self.tell(data.draw(st.sampled_from(self.all)), name, telling)

    @property
    def alive(self) -> list[Attempts]:
        return [attempts for attempts in self.all if not attempts.over]

    def tell(self, attempts: Attempts, name: str, telling: Telling | None = None) -> None:
        """An event: its step is well formed; an illegal one raises and changes nothing."""
        event = getattr(attempts, name, None) or partial(getattr(reactions, name), attempts)
        given = telling.arguments(name) if telling else ()
        if name not in LEGAL[attempts.phase]:
            before = self.everything(attempts)
            with pytest.raises(IllegalEvent):
                event(*given, self.now)
            assert self.everything(attempts) == before
            return
        sent = len(attempts.history)
        step = event(*given, self.now)
        match step:
            case Send(lease):
                assert attempts.lease is lease
                assert len(attempts.history) == sent + 1
                state = self.pool.accounts.get(lease.key)
                assert state.enabled
                despite = lease.probe or lease.last_resort
                assert despite or not cooling(state, attempts.facts.model, self.now)
                assert state.account.models.allows(attempts.facts.model)
                assert lease.credential == state.credentials[attempts.facts.kind]
                assert not state.account.max_concurrent or (
                    state.in_flight <= state.account.max_concurrent
                )
            case Wait(until, ticket):
                self.wake_at = until
                assert self.now <= until <= self.now + max(attempts.limits.max_wait_s, 0.5)
                # A pause between two accounts holds neither a place nor an account.
                pause = until <= self.now + BARE_PAUSE_S + BARE_JITTER_S
                assert pause or (ticket is not None) is (attempts.lease is None)
            case Refresh(lease):
                assert attempts.lease is lease
            case Deliver():
                assert attempts.over
                assert attempts.history
            case Synthesize():
                assert attempts.over
                assert step.status in (401, 402, 403, 404, 429, 502, 503, 504)
            case None:
                assert name in ("committed", "finished")
        if not isinstance(step, Send):
            assert len(attempts.history) == sent

    def everything(self, attempts: Attempts) -> str:
        return f"{attempts!r} {list(self.pool.accounts)!r}"

    @rule(
        label=labels,
        change=st.sampled_from(["cool", "clear", "add", "remove", "wait"]),
        added=accounts,
        outcome=limits,
        elapsed=moments,
    )
    def the_pool_changes(
        self, label: str, change: str, added: Account, outcome: Outcome, elapsed: float
    ) -> None:
        """Other requests, people and time change it."""
        present = {state.key.label: state.key for state in self.pool.accounts}
        match change:
            case "cool" if label in present:
                self.pool.health.mark_cooldown(present[label], outcome, now=self.now)
            case "clear" if label in present:
                self.pool.accounts.clear_cooldown(present[label], now=self.now)
            case "remove" if label in present:
                self.pool.accounts.remove(present[label], now=self.now)
            case "add" if added.label not in present:
                self.pool.accounts.add(added, keys_of("old", "key", "oauth"), now=self.now)
            case "wait":
                self.now += elapsed

    @property
    def held(self) -> list[Lease]:
        """Open leases on accounts that are still in the pool."""
        present = {state.key: state.position for state in self.pool.accounts}
        given = [a.choice.ticket.lease for a in self.all if a.choice.ticket is not None]
        leases = [lease for lease in [*given, *(a.lease for a in self.all)] if lease is not None]
        return [lease for lease in leases if present.get(lease.key) == lease.state.position]

    @invariant()
    def bounded(self) -> None:
        for attempts in self.all:
            most = attempts.limits.max_attempts if attempts.replayable else 1
            assert len(attempts.history) <= most
            numbers = [attempt.number for attempt in attempts.history]
            assert numbers == list(range(1, len(numbers) + 1))

    @invariant()
    def a_request_holds_a_lease_exactly_while_it_needs_one(self) -> None:
        for attempts in self.all:
            if attempts.phase in (Phase.SENT, Phase.REFRESHING, Phase.COMMITTED):
                assert attempts.lease is not None
            if attempts.over:
                assert attempts.lease is None
            assert attempts.lease is None or not attempts.lease.returned

    @invariant()
    def what_is_in_flight_is_leased(self) -> None:
        assert len({id(lease) for lease in self.held}) == len(self.held)
        check_counts(self.pool, self.now, len(self.held))

    def teardown(self) -> None:
        for attempts in self.all:
            attempts.left(self.now)
            assert attempts.over
        assert summary(self.pool.accounts, now=self.now)["in_flight"] == 0


def test_attempts() -> None:
    run_state_machine_as_test(AttemptsMachine, settings=settings(SETTINGS, max_examples=tries(80)))
