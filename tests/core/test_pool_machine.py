"""A pool under whatever happens in whatever order holds its invariants.

After every step each choice is compared with that of the naive picker in `reference.py`.
"""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from account_pool.core import selection
from account_pool.core.account import Account, AccountKey
from account_pool.core.accounts import occupancy, summary
from account_pool.core.credential import Credential, fingerprint
from account_pool.core.errors import DuplicateAccount, LeaseAlreadyReturned, NoUsableAccount
from account_pool.core.headroom import Window
from account_pool.core.lease import Lease, RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.selection import POLICIES
from tests.core.generated import (
    MODELS,
    REQUESTS,
    SETTINGS,
    accounts,
    check_counts,
    cooling,
    credentials,
    failures,
    limits,
    moments,
    outcomes,
    requests,
)
from tests.core.helpers import OK, PROVIDER, account, keys_of
from tests.core.reference import Member, Reference


def deadlines(pool: Pool, now: float) -> list[float]:
    times = [c.until for s in pool.accounts for c in s.cooldowns.values()]
    times += [v.until for s in pool.accounts for v in s.verdicts.values()]
    times += [s.next_start_at for s in pool.accounts]
    times += [w.expires_at for s in pool.accounts for w in s.headroom.windows.values()]
    return sorted(time for time in times if now < time < inf)


class PoolMachine(RuleBasedStateMachine):
    """A pool and a naive observer of it. Subclassed by strategy."""

    strategy = "round-robin"
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.pool = Pool(strategy=self.strategy)
        self.reference = Reference(self.strategy)
        self.open: dict[int, Lease] = {}
        self.owner: dict[int, Member] = {}

    # -- members

    @initialize(members=st.lists(accounts, max_size=3, unique_by=lambda a: a.label))
    def begin(self, members: list[Account]) -> None:
        for member in [account("e", weight=2), account("f"), *members]:
            self.take_in(member, keys_of("old", "key", "oauth"))

    def take_in(self, added: Account, held: dict[str, Credential]) -> None:
        self.pool.accounts.add(added, held, now=self.now)
        self.reference.members[added.label] = Member(added, self.reference.added)
        self.reference.added += 1

    @rule(added=accounts, held=credentials)
    def add(self, added: Account, held: dict[str, Credential]) -> None:
        if added.label not in self.reference.members:
            self.take_in(added, held)
            return
        before = repr(list(self.pool.accounts))
        with pytest.raises(DuplicateAccount):
            self.pool.accounts.add(added, held, now=self.now)
        assert repr(list(self.pool.accounts)) == before

    @precondition(lambda self: self.reference.members)
    @rule(who=st.integers(0, 5), again=st.booleans())
    def remove(self, who: int, again: bool) -> None:
        key = self.someone(who)
        removed = self.pool.accounts.remove(key, now=self.now)
        del self.reference.members[key.label]
        if again:
            self.take_in(removed, keys_of("old", "key", "oauth"))

    @precondition(lambda self: self.reference.members)
    @rule(who=st.integers(0, 5), held=credentials)
    def set_credentials(self, who: int, held: dict[str, Credential]) -> None:
        key = self.someone(who)
        state = self.pool.accounts.get(key)
        was, refused = state.disabled, state.refused
        self.pool.accounts.set_credentials(key, held, now=self.now)
        forbidden = was is not None and was.cls is OutcomeClass.FORBIDDEN_ACCOUNT
        healed = bool(held) and fingerprint(held) != refused and not forbidden
        assert (state.disabled is None) == (was is None or healed)

    # -- leases

    @rule(target=leases, wanted=st.lists(requests, min_size=1, max_size=5))
    def acquire(self, wanted: list[RequestFacts]) -> object:
        return multiple(*[lease for facts in wanted if (lease := self.acquired(facts))])

    @rule(wanted=st.lists(requests, min_size=1, max_size=8))
    def serve(self, wanted: list[RequestFacts]) -> None:
        """Requests one after the other, each ended before the next."""
        for facts in wanted:
            lease = self.acquired(facts)
            if lease is not None:
                self.pool.release(lease, OK, now=self.now)
                self.forget(lease).in_flight -= 1

    def acquired(self, facts: RequestFacts) -> Lease | None:
        expected = self.reference.pick(self.pool, facts, self.now)
        try:
            lease = self.pool.acquire(facts, now=self.now)
        except NoUsableAccount as nobody:
            assert expected is None
            self.check_shortage(nobody, facts)
            return None
        assert expected is not None
        assert lease.key == expected.account.key
        assert lease.credential == self.pool.accounts.get(lease.key).credentials[facts.kind]
        self.reference.use(self.pool, expected, self.now)
        self.hold(lease, expected)
        return lease

    def hold(self, lease: Lease, member: Member) -> None:
        self.open[id(lease)] = lease
        self.owner[id(lease)] = member
        limit = member.account.max_concurrent
        assert limit is None or member.in_flight <= limit

    def check_shortage(self, nobody: NoUsableAccount, facts: RequestFacts) -> None:
        """The return it names is the first; nobody can serve a moment earlier."""
        returns: list[tuple[float, AccountKey]] = []
        resorts: list[AccountKey] = []
        may_change = False
        for state in self.pool.accounts.of(facts.provider):
            if (
                not state.enabled
                or not state.account.models.allows(facts.model)
                or facts.kind not in state.credentials
            ):
                continue
            covering = [c.until for c in state.cooldowns.values() if c.covers(facts.model)]
            until = max([*covering, state.next_start_at])
            causes = [
                c.cause for c in state.holds() if c.active(self.now) and c.covers(facts.model)
            ]
            if causes and all(cause.yields for cause in causes):
                # Asked when nobody else can serve; the end of a bench promises nothing.
                if state.full:
                    may_change = True
                    continue
                if state.next_start_at <= self.now:
                    resorts.append(state.key)
                    if all(cause.benches for cause in causes):
                        continue
            if until <= self.now:
                may_change = True
                if state.full:
                    continue
                until = state.ramps_admit_at(facts.model)
            assert until > self.now
            returns.append((until, state.key))
        assert nobody.retry_at == min((until for until, _ in returns), default=None)
        assert nobody.may_change == may_change
        assert (nobody.retry_at, nobody.soonest) in [*returns, (None, None)]
        assert nobody.last_resort in (resorts or [None])

    @rule(lease=consumes(leases), outcome=outcomes, elapsed=moments)
    def release(self, lease: Lease, outcome: Outcome | None, elapsed: float) -> None:
        if lease.returned:
            with pytest.raises(LeaseAlreadyReturned):
                self.pool.release(lease, outcome, now=self.now)
            return
        self.now += elapsed
        self.pool.release(lease, outcome, now=self.now)
        self.forget(lease).in_flight -= 1
        with pytest.raises(LeaseAlreadyReturned):
            self.pool.release(lease, outcome, now=self.now)

    def forget(self, lease: Lease) -> Member:
        del self.open[id(lease)]
        return self.owner.pop(id(lease))

    @rule(target=leases, lease=consumes(leases))
    def renew(self, lease: Lease) -> object:
        if lease.returned:
            return multiple()
        renewed = self.pool.renew(lease, now=self.now)
        member = self.forget(lease)
        assert lease.returned
        if renewed is None:
            member.in_flight -= 1
            return multiple()
        assert self.reference.members[renewed.key.label] is member
        state = self.pool.accounts.get(renewed.key)
        assert state.enabled
        assert not cooling(state, lease.facts.model, self.now)
        assert renewed.credential == state.credentials[lease.facts.kind]
        self.reference.start(member, self.now)
        self.hold(renewed, member)
        return renewed

    # -- what answers teach, and what people do

    @precondition(lambda self: self.reference.members)
    @rule(who=st.integers(0, 5), outcome=limits, model=st.sampled_from(MODELS), age=moments)
    def mark_cooldown(self, who: int, outcome: Outcome, model: str | None, age: float) -> None:
        key = self.someone(who)
        before = self.pool.accounts.get(key).cooling_until(model, self.now)
        benched = any(c.cause.benches for c in self.pool.accounts.get(key).cooldowns.values())
        cooldown = self.pool.health.mark_cooldown(
            key, outcome, now=self.now, model=model, started_at=self.now - age
        )
        assert self.pool.accounts.get(key).cooldowns[cooldown.model] is cooldown
        # A later, shorter hint never shortens a deadline; a limit ends a bench.
        assert benched or self.pool.accounts.get(key).cooling_until(model, self.now) >= before

    @precondition(lambda self: self.reference.members)
    @rule(who=st.integers(0, 5), outcome=failures, model=st.sampled_from(MODELS))
    def mark_failure(self, who: int, outcome: Outcome, model: str | None) -> None:
        state = self.pool.accounts.get(self.someone(who))
        enabled = state.enabled
        self.pool.health.mark_failure(state.key, outcome, now=self.now, model=model)
        disables = outcome.scope is not Scope.MODEL and not outcome.unknown
        assert state.enabled is (enabled and not disables)

    @precondition(lambda self: self.reference.members)
    @rule(who=st.integers(0, 5))
    def clear_cooldown(self, who: int) -> None:
        key = self.someone(who)
        self.pool.accounts.clear_cooldown(key, now=self.now)
        self.reference.members[key.label].forget(self.now)
        state = self.pool.accounts.get(key)
        assert not any(cooling(state, model, self.now) for model in MODELS)
        assert state.enabled is state.account.enabled

    @precondition(lambda self: self.reference.members)
    @rule(
        who=st.integers(0, 5),
        told=st.builds(
            Window,
            name=st.sampled_from(["5h", "7d"]),
            share=st.sampled_from([0.0, 0.019, 0.3, 0.3, 0.9, 1.0]),
            told_at=st.just(0.0),
            model=st.sampled_from([*MODELS, "gpt-*"]),
            reset_at=st.sampled_from([-1.0, 0.0, 5.0, 5.0, 100.0, 7200.0, inf]),
            length_s=st.sampled_from([None, 60.0, 18000.0]),
        ),
    )
    def observe_headroom(self, who: int, told: Window) -> None:
        key, window = self.someone(who), told.later(self.now)
        self.pool.observe_headroom(key, [window], now=self.now)
        self.reference.members[key.label].observe(window, self.now)

    @rule()
    def pass_over(self) -> None:
        reference = self.reference
        first = self.best()
        following = self.pool.next(PROVIDER, now=self.now)
        if first is None:
            assert following is None
            return
        first.passed_over = reference.tick()
        ring = reference.ring(self.pool, first, self.now)
        reference.cursor[ring] = (first.added, first.account.weight)
        second = self.best()
        assert second is not None
        assert following == second.account.key

    def best(self) -> Member | None:
        ready = self.reference.ready(self.pool, self.now)
        return self.reference.best(self.pool, ready, None, self.now)

    @rule(elapsed=moments)
    def time_passes(self, elapsed: float) -> None:
        self.now += elapsed

    @precondition(lambda self: deadlines(self.pool, self.now))
    @rule(just_before=st.booleans())
    def next_deadline(self, just_before: bool) -> None:
        """Go to the next deadline exactly, or to the last moment before it."""
        deadline = deadlines(self.pool, self.now)[0]
        self.now = max(self.now, deadline - 1e-6) if just_before else deadline

    def someone(self, who: int) -> AccountKey:
        keys = [state.key for state in self.pool.accounts]
        return keys[who % len(keys)]

    # -- what always holds

    @invariant()
    def labels_are_unique(self) -> None:
        keys = [state.key for state in self.pool.accounts]
        assert len(set(keys)) == len(keys)
        assert {key.label for key in keys} == set(self.reference.members)

    @invariant()
    def the_naive_picker_agrees(self) -> None:
        for facts in REQUESTS:
            picked = self.pool.pick(facts, now=self.now)
            expected = self.reference.pick(self.pool, facts, self.now)
            assert (picked and picked.key) == (expected and expected.account.key)

    @invariant()
    def cooling_is_told_exactly(self) -> None:
        for state in self.pool.accounts:
            for model in MODELS:
                expected = cooling(state, model, self.now)
                assert (state.cooling_until(model, self.now) > self.now) is expected
                assert (state.cooldown_of(model, self.now) is not None) is expected

    @invariant()
    def what_is_in_flight_is_leased(self) -> None:
        present = self.reference.members.values()
        for member in present:
            state = self.pool.accounts.get(member.account.key)
            assert state.in_flight == member.in_flight
            held = [lease for at, lease in self.open.items() if self.owner[at] is member]
            assert len(held) == member.in_flight
        check_counts(self.pool, self.now, sum(member.in_flight for member in present))

    def teardown(self) -> None:
        for lease in self.open.values():
            self.pool.release(lease, None, now=self.now)
        assert summary(self.pool.accounts, now=self.now)["in_flight"] == 0
        assert occupancy(self.pool.accounts)["busy"] == 0


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("strategy", POLICIES)
def test_pool(strategy: str, views: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if views:
        # So few accounts would never need the index that a large pool makes per model.
        monkeypatch.setattr(selection, "_MAX_PASSED", 0)
        monkeypatch.setattr(selection, "_MAX_VIEWS", 2)
    machine = type(f"PoolMachine[{strategy}]", (PoolMachine,), {"strategy": strategy})
    run_state_machine_as_test(machine, settings=SETTINGS)
