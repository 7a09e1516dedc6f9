"""Who waits goes on in order, once, and as soon as it can."""

from __future__ import annotations

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

from account_pool.core.accounts import summary
from account_pool.core.errors import NoUsableAccount
from account_pool.core.lease import Lease, RequestFacts, Ticket
from account_pool.core.outcome import Outcome
from account_pool.core.pool import Pool
from account_pool.core.state import RAMP_S, STEP_S
from tests.core.generated import SETTINGS
from tests.core.helpers import (
    FACTS,
    OK,
    PROVIDER,
    account,
    key,
    keys_of,
    pool_of,
    rate_limit,
)
from tests.patience import tries

MINI = RequestFacts(provider=PROVIDER, kind="key", model="gpt-5-mini")


def waiting(pool: Pool, facts: RequestFacts = FACTS, give_up_at: float = 30.0) -> Ticket:
    ticket = Ticket(facts=facts, give_up_at=give_up_at)
    nobody = pool.shortage(facts, now=0.0)
    pool.admission.wait(ticket, nobody.retry_at)
    return ticket


def test_a_slot_goes_to_who_has_waited_longest() -> None:
    pool = pool_of(account("a", max_concurrent=1))
    lease = pool.acquire(FACTS, now=0.0)
    first, second, third = (waiting(pool, facts) for facts in (FACTS, MINI, FACTS))
    pool.release(lease, OK, now=1.0)
    assert first.lease is not None
    assert (second.lease, third.lease) == (None, None)
    assert first.called
    pool.release(first.lease, OK, now=2.0)
    assert second.lease is not None
    assert third.lease is None


def test_a_newcomer_overtakes_nobody() -> None:
    pool = pool_of(account("a", min_interval_s=5.0))
    pool.release(pool.acquire(FACTS, now=0.0), OK, now=0.0)
    ticket = waiting(pool)
    assert ticket.look_at == 5.0
    try:
        pool.acquire(FACTS, now=5.0)
    except NoUsableAccount:
        assert ticket.lease is not None
    else:
        raise AssertionError("it was overtaken")


def test_a_change_wakes_one_not_the_herd() -> None:
    pool = pool_of(account("a", max_concurrent=1))
    lease = pool.acquire(FACTS, now=0.0)
    herd = [waiting(pool) for _ in range(200)]
    woken: list[int] = []
    for n, ticket in enumerate(herd):
        ticket.when_called(lambda n=n: woken.append(n))
    pool.release(lease, OK, now=1.0)
    # The first has the lease, the second watches the clock from now on.
    assert sorted(set(woken)) == [0, 1]


def test_who_leaves_hands_the_clock_on() -> None:
    pool = pool_of("a")
    pool.health.mark_cooldown(key("a"), rate_limit(20.0), now=0.0)
    first, second = waiting(pool), waiting(pool)
    assert (first.look_at, second.look_at) == (20.0, 30.0)
    assert pool.admission.stop_waiting(first) is None
    assert second.called


def test_nobody_waits_in_vain() -> None:
    pool = pool_of("a")
    pool.health.mark_cooldown(key("a"), rate_limit(20.0), now=0.0)
    herd = [waiting(pool) for _ in range(3)]
    pool.health.mark_cooldown(key("a"), rate_limit(500.0), now=1.0)
    assert all(ticket.called for ticket in herd)


def test_a_wait_that_became_shorter() -> None:
    pool = pool_of(account("a", max_concurrent=1, min_interval_s=8.0))
    lease = pool.acquire(FACTS, now=0.0)
    ticket = waiting(pool)
    ticket.look_at = 30.0
    pool.release(lease, OK, now=1.0)
    assert ticket.called
    assert ticket.lease is None


def test_age_is_kept_when_it_has_to_wait_again() -> None:
    pool = pool_of(account("a", max_concurrent=1))
    lease = pool.acquire(FACTS, now=0.0)
    first, second = waiting(pool), waiting(pool)
    pool.admission.stop_waiting(first)
    pool.admission.wait(first, None)
    pool.release(lease, OK, now=1.0)
    assert first.lease is not None
    assert second.lease is None


class AdmissionMachine(RuleBasedStateMachine):
    """Requests that wait, are served, give up and leave, in whatever order."""

    @initialize(
        strategy=st.sampled_from(["round-robin", "fill-first", "least-busy"]),
        limit=st.sampled_from([None, 1, 2]),
        interval=st.sampled_from([0.0, 1.0]),
    )
    def begin(self, strategy: str, limit: int | None, interval: float) -> None:
        self.now = 100.0
        self.pool = Pool(strategy=strategy)
        for label in ("a", "b"):
            member = account(label, max_concurrent=limit, min_interval_s=interval)
            self.pool.accounts.add(member, keys_of(label), now=self.now)
        self.waits: list[Ticket] = []
        self.out: list[Lease] = []

    @rule(facts=st.sampled_from([FACTS, FACTS, MINI]), count=st.integers(1, 6))
    def come(self, facts: RequestFacts, count: int) -> None:
        for _ in range(count):
            try:
                self.out.append(self.pool.acquire(facts, now=self.now))
            except NoUsableAccount as nobody:
                ticket = Ticket(facts=facts, give_up_at=self.now + 30.0)
                assert self.pool.admission.wait(ticket, nobody.retry_at) <= self.now + 30.0
                self.waits.append(ticket)
            self.take_in()

    @precondition(lambda self: self.out)
    @rule(
        who=st.integers(0, 20),
        outcome=st.sampled_from([OK, OK, OK, None, rate_limit(2.0), rate_limit(40.0)]),
    )
    def end(self, who: int, outcome: Outcome | None) -> None:
        self.pool.release(self.out.pop(who % len(self.out)), outcome, now=self.now)
        self.take_in()

    @precondition(lambda self: self.out)
    @rule(who=st.integers(0, 20))
    def answer(self, who: int) -> None:
        self.pool.answered(self.out[who % len(self.out)], now=self.now)
        self.take_in()

    @precondition(lambda self: self.waits)
    @rule(who=st.integers(0, 20))
    def leave(self, who: int) -> None:
        assert self.pool.admission.stop_waiting(self.waits.pop(who % len(self.waits))) is None
        self.take_in()

    @rule(label=st.sampled_from("ab"), clear=st.booleans())
    def by_hand(self, label: str, clear: bool) -> None:
        if clear:
            self.pool.accounts.clear_cooldown(key(label), now=self.now)
        else:
            self.pool.health.mark_cooldown(key(label), rate_limit(3.0), now=self.now)
        self.take_in()

    @rule(elapsed=st.sampled_from([0.1, STEP_S, 1.0, 3.0, RAMP_S]))
    def time_passes(self, elapsed: float) -> None:
        """As the shell does: whoever's time has come looks again."""
        end = self.now + elapsed
        while due := [ticket.look_at for ticket in self.waits if ticket.look_at <= end]:
            self.now = max(self.now, min(due))
            self.look_again([t for t in self.waits if t.look_at <= self.now])
            self.take_in()
        self.now = end

    def look_again(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            if ticket not in self.waits:
                continue
            self.pool.admit(PROVIDER, now=self.now)
            self.take_in(called=False)
            if ticket not in self.waits:
                continue
            assert self.pool.admission.stop_waiting(ticket) is None
            if ticket.give_up_at <= self.now:
                self.waits.remove(ticket)
                continue
            nobody = self.pool.shortage(ticket.facts, now=self.now)
            assert self.pool.admission.wait(ticket, nobody.retry_at) > self.now

    def take_in(self, *, called: bool = True) -> None:
        """Those that were given a lease go on, in the order in which they came."""
        for facts in (FACTS, MINI):
            line = sorted((t for t in self.waits if t.facts == facts), key=lambda t: t.number)
            given = [ticket.lease is not None for ticket in line]
            assert given == sorted(given, reverse=True)
        for ticket in [t for t in self.waits if t.lease is not None]:
            assert ticket.called
            lease = self.pool.admission.stop_waiting(ticket)
            assert lease is not None
            self.waits.remove(ticket)
            self.out.append(lease)
        while called and (tickets := [ticket for ticket in self.waits if ticket.called]):
            self.look_again(tickets)

    @invariant()
    def nobody_waits_who_could_go(self) -> None:
        for ticket in self.waits:
            # What time alone has freed is seen by the first of the line, in time.
            if self.pool.pick(ticket.facts, now=self.now):
                assert any(t.look_at <= self.now for t in self.waits if t.facts == ticket.facts)
            assert ticket.give_up_at >= self.now

    @invariant()
    def every_line_is_watched(self) -> None:
        for facts in (FACTS, MINI):
            line = sorted((t for t in self.waits if t.facts == facts), key=lambda t: t.number)
            retry_at = self.pool.shortage(facts, now=self.now).retry_at if line else None
            if retry_at is not None and line[0].give_up_at > self.now:
                assert line[0].look_at <= min(max(retry_at, self.now), line[0].give_up_at)

    @invariant()
    def no_more_than_a_ramp_allows(self) -> None:
        for state in self.pool.accounts:
            for ramp in state.ramps.values():
                assert ramp.over(self.now) or ramp.unanswered <= ramp.allowed(self.now)
                assert ramp.unanswered == sum(ramp in lease.ramps for lease in self.out)
            assert state.in_flight == sum(lease.key == state.key for lease in self.out)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            for ticket in self.waits:
                self.pool.admission.stop_waiting(ticket)
            for lease in self.out:
                self.pool.release(lease, None, now=self.now)
            assert summary(self.pool.accounts, now=self.now)["in_flight"] == 0
            assert len(self.pool.admission) == 0


def test_admission() -> None:
    run_state_machine_as_test(AdmissionMachine, settings=settings(SETTINGS, max_examples=tries(30)))
