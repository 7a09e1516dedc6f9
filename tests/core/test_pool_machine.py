"""Whatever happens in whatever order: the invariants of the pool and of its requests.

Two machines. The first drives a Pool and compares each choice with a naive picker that
looks at every account, written from the words of the issue. The second lets several
requests (`Attempts`) run over one pool.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import settings
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

from account_pool.core.account import Account, AccountKey
from account_pool.core.attempts import (
    Answer,
    Attempts,
    Broken,
    Deliver,
    Limits,
    Phase,
    Refresh,
    Send,
    Wait,
)
from account_pool.core.cooldown import Cooldown
from account_pool.core.credential import Credential
from account_pool.core.errors import (
    DuplicateAccount,
    IllegalEvent,
    LeaseAlreadyReturned,
    NoUsableAccount,
)
from account_pool.core.lease import Facts, Lease
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.selection import POLICIES
from account_pool.core.state import AccountState
from tests.core.helpers import (
    BARE_429,
    EXPIRED,
    FORBIDDEN,
    FORBIDDEN_MODEL,
    OK,
    OVERLOADED,
    PROVIDER,
    REQUEST_ERROR,
    SERVER_ERROR,
    UNAUTHORIZED,
    account,
    keys_of,
    quota,
    rate_limit,
)

# No deadline: that would be wall time. The seed is that of the test's name.
SETTINGS = settings(deadline=None, derandomize=True, max_examples=50, stateful_step_count=40)

MODELS = ["gpt-5", "gpt-5-mini", None]
REQUESTS = [
    Facts(provider=PROVIDER, kind=kind, model=m) for kind in ("key", "oauth") for m in MODELS
]

labels = st.sampled_from(["a", "b", "c", "d"])
requests = st.sampled_from(REQUESTS)
accounts = st.builds(
    lambda label, models, **rest: account(label, *models, **rest),
    labels,
    st.sampled_from([(), (), (), ("gpt-5",), ("!gpt-5",), ("*-mini",)]),
    priority=st.sampled_from([0, 0, 1]),
    weight=st.sampled_from([1, 1, 2, 3]),
    max_concurrent=st.sampled_from([None, None, 1, 2]),
    min_interval_s=st.sampled_from([0.0, 0.0, 3.0]),
    enabled=st.sampled_from([True, True, True, True, False]),
)
credentials = st.builds(
    keys_of,
    st.sampled_from(["old", "new"]),
    st.just("key"),
    st.sampled_from(["key", "oauth"]),
) | st.sampled_from([{}, keys_of("other", "oauth")])
waits = st.sampled_from([None, 0.0, 0.5, 4.0, 20.0, 900.0, -1.0, float("nan")])
limits = st.builds(
    lambda limit, seconds, scope, model: limit(seconds, scope=scope, model=model),
    st.sampled_from([rate_limit, quota]),
    waits,
    st.sampled_from([Scope.ACCOUNT, Scope.MODEL]),
    st.sampled_from([None, None, "gpt-5*"]),
)
failures = st.sampled_from([UNAUTHORIZED, EXPIRED, FORBIDDEN, FORBIDDEN_MODEL])
others = st.sampled_from([BARE_429, REQUEST_ERROR, SERVER_ERROR, OVERLOADED])
refusals = limits | failures | others
outcomes = st.just(OK) | st.none() | refusals
moments = st.sampled_from([0.0, 0.25, 1.0, 3.0, 7.0, 60.0, 2000.0])


@dataclass
class Member:
    """What a naive observer of the pool writes down about one account."""

    account: Account
    added: int
    in_flight: int = 0
    last_used: int = 0
    passed_over: int = 0
    next_start_at: float = -inf
    headroom: float = 1.0
    headroom_reset_at: float = inf
    cooldowns: dict[str | None, Cooldown] = field(default_factory=dict)


class Reference:
    """A pool as the issue words it, looking at every account each time."""

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        self.members: dict[str, Member] = {}
        self.clock = 0
        self.added = 0
        #: priority -> (added number of the account served last, turns it has had)
        self.cursor: dict[int, tuple[int, int]] = {}

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def ready(self, pool: Pool, now: float) -> list[Member]:
        """Those who may be given a request, whatever it is about."""
        found = []
        for member in self.members.values():
            limit = member.account.max_concurrent
            state = pool.get(member.account.key)
            if (
                state.enabled
                and state.credentials
                and not cooling(state, None, now)
                and (limit is None or member.in_flight < limit)
                and member.next_start_at <= now
            ):
                found.append(member)
        return found

    def pick(self, pool: Pool, facts: Facts, now: float) -> Member | None:
        return self.best(
            [
                member
                for member in self.ready(pool, now)
                if facts.kind in pool.get(member.account.key).credentials
                and member.account.models.allows(facts.model)
                and not cooling(pool.get(member.account.key), facts.model, now)
            ],
            now,
        )

    def best(self, candidates: list[Member], now: float) -> Member | None:
        if not candidates:
            return None
        tier = min(member.account.priority for member in candidates)
        candidates = [member for member in candidates if member.account.priority == tier]
        if self.strategy == "round-robin":
            return self.after_the_cursor(candidates, tier)
        return min(candidates, key=lambda member: (member.passed_over, *self.rank(member, now)))

    def rank(self, member: Member, now: float) -> tuple[float | str, ...]:
        match self.strategy:
            case "least-busy":
                return (member.in_flight / member.account.weight, member.last_used, member.added)
            case "least-recent":
                return (member.last_used, member.added)
            case "fill-first":
                return (member.account.label,)
            case "most-headroom":
                known = now < member.headroom_reset_at
                share = member.headroom if known else 1.0
                reset_at = member.headroom_reset_at if known else inf
                return (-share, reset_at, member.last_used, member.added)
        raise AssertionError(self.strategy)

    def after_the_cursor(self, candidates: list[Member], tier: int) -> Member:
        cursor, turns = self.cursor.get(tier, (-1, 0))
        for member in candidates:
            if member.added == cursor and turns < member.account.weight:
                return member
        candidates = sorted(candidates, key=lambda member: member.added)
        return next((m for m in candidates if m.added > cursor), candidates[0])

    def use(self, member: Member, now: float) -> None:
        tier = member.account.priority
        cursor, turns = self.cursor.get(tier, (-1, 0))
        again = cursor == member.added and turns < member.account.weight
        self.cursor[tier] = (member.added, turns + 1 if again else 1)
        member.in_flight += 1
        member.last_used = self.tick()
        member.passed_over = 0
        self.start(member, now)

    def start(self, member: Member, now: float) -> None:
        if member.account.min_interval_s:
            member.next_start_at = now + member.account.min_interval_s


def cooling(state: AccountState, model: str | None, now: float) -> bool:
    return any(now < c.until and c.covers(model) for c in state.cooldowns.values())


def check_counts(pool: Pool, now: float, in_flight: int) -> None:
    """Summary and health add up, whatever is in the pool."""
    states = list(pool.accounts())
    summary = pool.summary(now=now)
    neither = [
        s
        for s in states
        if s.enabled
        and not cooling(s, None, now)
        and (not s.credentials or s.full or s.next_start_at > now)
    ]
    assert summary["total"] == len(states) == pool.health()["size"]
    counted = summary["available"] + summary["cooling_down"] + summary["disabled"]
    assert counted + len(neither) == summary["total"]
    assert summary["in_flight"] == in_flight == sum(s.in_flight for s in states)
    assert all(s.in_flight >= 0 for s in states)
    assert pool.health()["busy"] == sum(1 for s in states if s.in_flight)


def deadlines(pool: Pool, now: float) -> list[float]:
    times = [c.until for s in pool.accounts() for c in s.cooldowns.values()]
    times += [s.next_start_at for s in pool.accounts()]
    times += [s.headroom_reset_at for s in pool.accounts()]
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

    @initialize(members=st.lists(accounts, min_size=1, max_size=3, unique_by=lambda a: a.label))
    def begin(self, members: list[Account]) -> None:
        for member in members:
            self.take_in(member, keys_of("old", "key", "oauth"))

    def take_in(self, added: Account, held: dict[str, Credential]) -> None:
        self.pool.add(added, held, now=self.now)
        self.reference.members[added.label] = Member(added, self.reference.added)
        self.reference.added += 1

    @rule(added=accounts, held=credentials)
    def add(self, added: Account, held: dict[str, Credential]) -> None:
        if added.label not in self.reference.members:
            self.take_in(added, held)
            return
        before = repr(list(self.pool.accounts()))
        with pytest.raises(DuplicateAccount):
            self.pool.add(added, held, now=self.now)
        assert repr(list(self.pool.accounts())) == before

    @precondition(lambda self: self.reference.members)
    @rule(data=st.data(), again=st.booleans())
    def remove(self, data: st.DataObject, again: bool) -> None:
        key = self.someone(data)
        removed = self.pool.remove(key)
        del self.reference.members[key.label]
        if again:
            self.take_in(removed, keys_of("old", "key", "oauth"))

    @precondition(lambda self: self.reference.members)
    @rule(data=st.data(), held=credentials)
    def set_credentials(self, data: st.DataObject, held: dict[str, Credential]) -> None:
        key = self.someone(data)
        state = self.pool.get(key)
        was, refused = state.disabled, state.refused
        self.pool.set_credentials(key, held, now=self.now)
        forbidden = was is not None and was.cls is OutcomeClass.FORBIDDEN_ACCOUNT
        healed = bool(held) and held != refused and not forbidden
        assert (state.disabled is None) == (was is None or healed)

    # -- leases

    @rule(target=leases, facts=requests)
    def acquire(self, facts: Facts) -> object:
        expected = self.reference.pick(self.pool, facts, self.now)
        try:
            lease = self.pool.acquire(facts, now=self.now)
        except NoUsableAccount as nobody:
            assert expected is None
            self.check_shortage(nobody, facts)
            return multiple()
        assert expected is not None
        assert lease.key == expected.account.key
        assert lease.credential == self.pool.get(lease.key).credentials[facts.kind]
        self.reference.use(expected, self.now)
        self.hold(lease, expected)
        return lease

    def hold(self, lease: Lease, member: Member) -> None:
        self.open[id(lease)] = lease
        self.owner[id(lease)] = member
        limit = member.account.max_concurrent
        assert limit is None or member.in_flight <= limit

    def check_shortage(self, nobody: NoUsableAccount, facts: Facts) -> None:
        """The return it names is the first; nobody can serve a moment earlier."""
        returns: list[tuple[float, AccountKey]] = []
        may_change = False
        for state in self.pool.accounts(facts.provider):
            if (
                not state.enabled
                or not state.account.models.allows(facts.model)
                or facts.kind not in state.credentials
            ):
                continue
            covering = [c.until for c in state.cooldowns.values() if c.covers(facts.model)]
            until = max([*covering, state.next_start_at])
            if until > self.now:
                returns.append((until, state.key))
            else:
                assert state.full
                may_change = True
        assert nobody.retry_at == min((until for until, _ in returns), default=None)
        assert nobody.may_change == may_change
        assert (nobody.retry_at, nobody.soonest) in [*returns, (None, None)]

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
        state = self.pool.get(renewed.key)
        assert state.enabled
        assert not cooling(state, lease.facts.model, self.now)
        assert renewed.credential == state.credentials[lease.facts.kind]
        self.reference.start(member, self.now)
        self.hold(renewed, member)
        return renewed

    # -- what answers teach, and what people do

    @precondition(lambda self: self.reference.members)
    @rule(data=st.data(), outcome=limits, model=st.sampled_from(MODELS), age=moments)
    def mark_cooldown(
        self, data: st.DataObject, outcome: Outcome, model: str | None, age: float
    ) -> None:
        key = self.someone(data)
        before = self.pool.get(key).cooling_until(model, self.now)
        cooldown = self.pool.mark_cooldown(
            key, outcome, now=self.now, model=model, started_at=self.now - age
        )
        assert self.pool.get(key).cooldowns[cooldown.model] is cooldown
        # A later, shorter hint never shortens a deadline.
        assert self.pool.get(key).cooling_until(model, self.now) >= before

    @precondition(lambda self: self.reference.members)
    @rule(data=st.data(), outcome=failures, model=st.sampled_from(MODELS))
    def mark_failure(self, data: st.DataObject, outcome: Outcome, model: str | None) -> None:
        key = self.someone(data)
        self.pool.mark_failure(key, outcome, now=self.now, model=model)
        assert outcome.scope is Scope.MODEL or not self.pool.get(key).enabled

    @precondition(lambda self: self.reference.members)
    @rule(data=st.data())
    def clear_cooldown(self, data: st.DataObject) -> None:
        key = self.someone(data)
        self.pool.clear_cooldown(key, now=self.now)
        state = self.pool.get(key)
        assert not any(cooling(state, model, self.now) for model in MODELS)
        assert state.enabled is state.account.enabled

    @precondition(lambda self: self.reference.members)
    @rule(
        data=st.data(),
        share=st.sampled_from([0.3, 0.3, 0.9, 1.0]),
        reset_in=st.sampled_from([-1.0, 0.0, 5.0, 5.0, 100.0, inf]),
    )
    def observe_headroom(self, data: st.DataObject, share: float, reset_in: float) -> None:
        key = self.someone(data)
        self.pool.observe_headroom(key, share, reset_at=self.now + reset_in, now=self.now)
        member = self.reference.members[key.label]
        member.headroom, member.headroom_reset_at = share, self.now + reset_in

    @rule()
    def pass_over(self) -> None:
        reference = self.reference
        first = reference.best(reference.ready(self.pool, self.now), self.now)
        following = self.pool.next(PROVIDER, now=self.now)
        if first is None:
            assert following is None
            return
        first.passed_over = reference.tick()
        reference.cursor[first.account.priority] = (first.added, first.account.weight)
        second = reference.best(reference.ready(self.pool, self.now), self.now)
        assert second is not None
        assert following == second.account.key

    @rule(elapsed=moments)
    def time_passes(self, elapsed: float) -> None:
        self.now += elapsed

    @precondition(lambda self: deadlines(self.pool, self.now))
    @rule(just_before=st.booleans())
    def next_deadline(self, just_before: bool) -> None:
        """Go to the next deadline exactly, or to the last moment before it."""
        deadline = deadlines(self.pool, self.now)[0]
        self.now = max(self.now, deadline - 1e-6) if just_before else deadline

    def someone(self, data: st.DataObject) -> AccountKey:
        return data.draw(st.sampled_from([state.key for state in self.pool.accounts()]))

    # -- what always holds

    @invariant()
    def labels_are_unique(self) -> None:
        keys = [state.key for state in self.pool.accounts()]
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
        for state in self.pool.accounts():
            for model in MODELS:
                expected = cooling(state, model, self.now)
                assert (state.cooling_until(model, self.now) > self.now) is expected
                assert (state.cooldown_of(model, self.now) is not None) is expected

    @invariant()
    def what_is_in_flight_is_leased(self) -> None:
        present = self.reference.members.values()
        for member in present:
            state = self.pool.get(member.account.key)
            assert state.in_flight == member.in_flight
            held = [lease for at, lease in self.open.items() if self.owner[at] is member]
            assert len(held) == member.in_flight
        check_counts(self.pool, self.now, sum(member.in_flight for member in present))

    def teardown(self) -> None:
        for lease in self.open.values():
            self.pool.release(lease, None, now=self.now)
        assert self.pool.summary(now=self.now)["in_flight"] == 0
        assert self.pool.health()["busy"] == 0


@pytest.mark.parametrize("strategy", POLICIES)
def test_pool(strategy: str) -> None:
    machine = type(f"PoolMachine[{strategy}]", (PoolMachine,), {"strategy": strategy})
    run_state_machine_as_test(machine, settings=SETTINGS)


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
ARGUMENTS: dict[str, st.SearchStrategy[object]] = {
    "begin": st.none(),
    "refused": refusals,
    "broken": st.sampled_from(list(Broken)),
    "committed": st.none(),
    "resumed": st.none(),
    "refreshed": st.booleans(),
    "finished": st.none(),
}


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
        self.pool.set_strategy(strategy, now=self.now)
        for member in [account("plain"), account("other"), *members]:
            self.pool.add(member, keys_of("old", "key", "oauth"), now=self.now)

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
    )
    def request(self, facts: Facts, limits: Limits, chance: float, replayable: bool) -> None:
        attempts = Attempts(
            pool=self.pool,
            facts=facts,
            limits=limits,
            chance=lambda: chance,
            replayable=replayable,
        )
        self.all.append(attempts)
        self.tell(attempts, "begin", None)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), events=st.integers(1, 8))
    def go_on(self, data: st.DataObject, events: int) -> None:
        """Some events of one request, each legal in its phase."""
        attempts = data.draw(st.sampled_from(self.alive))
        for _ in range(events):
            if attempts.over:
                return
            name = data.draw(st.sampled_from(LEGAL[attempts.phase]))
            argument = data.draw(ARGUMENTS[name])
            if argument is True and attempts.lease in self.held:
                self.pool.set_credentials(
                    attempts.lease.key, keys_of(f"new-{self.now}", "key", "oauth"), now=self.now
                )
            if name == "resumed":
                self.now = data.draw(st.sampled_from([self.now, max(self.now, self.wake_at)]))
            self.tell(attempts, name, argument)
            self.a_request_holds_a_lease_exactly_while_it_needs_one()
            self.bounded()

    @precondition(lambda self: self.all)
    @rule(data=st.data(), name=st.sampled_from(EVENTS))
    def anything(self, data: st.DataObject, name: str) -> None:
        attempts = data.draw(st.sampled_from(self.all))
        self.tell(attempts, name, data.draw(ARGUMENTS[name]))

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        attempts = data.draw(st.sampled_from(self.all))
        attempts.left(self.now)
        assert attempts.over

    @property
    def alive(self) -> list[Attempts]:
        return [attempts for attempts in self.all if not attempts.over]

    def tell(self, attempts: Attempts, name: str, argument: object) -> None:
        """An event: its step is well formed; an illegal one raises and changes nothing."""
        event = getattr(attempts, name)
        given = () if argument is None else (argument,)
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
                state = self.pool.get(lease.key)
                assert state.enabled
                assert not cooling(state, attempts.facts.model, self.now)
                assert state.account.models.allows(attempts.facts.model)
                assert lease.credential == state.credentials[attempts.facts.kind]
                assert not state.account.max_concurrent or (
                    state.in_flight <= state.account.max_concurrent
                )
            case Wait(until, for_change):
                self.wake_at = until
                assert self.now <= until <= self.now + max(attempts.limits.max_wait_s, 0.5)
                assert for_change is (attempts.lease is None)
            case Refresh(lease):
                assert attempts.lease is lease
            case Deliver():
                assert attempts.over
                assert attempts.history
            case Answer():
                assert attempts.over
                assert step.status in (429, 502, 503)
            case None:
                assert name in ("committed", "finished")
        if not isinstance(step, Send):
            assert len(attempts.history) == sent

    def everything(self, attempts: Attempts) -> str:
        return f"{attempts!r} {list(self.pool.accounts())!r}"

    @precondition(lambda self: self.pool.providers())
    @rule(data=st.data(), outcome=limits)
    def another_request_is_refused(self, data: st.DataObject, outcome: Outcome) -> None:
        key = data.draw(st.sampled_from([state.key for state in self.pool.accounts()]))
        self.pool.mark_cooldown(key, outcome, now=self.now)

    @rule(added=accounts)
    def change_members(self, added: Account) -> None:
        """Who is in the pool goes, who is not comes."""
        if added.key in [state.key for state in self.pool.accounts()]:
            self.pool.remove(added.key)
        else:
            self.pool.add(added, keys_of("old", "key", "oauth"), now=self.now)

    @rule()
    def clear(self) -> None:
        for state in self.pool.accounts():
            self.pool.clear_cooldown(state.key, now=self.now)

    @rule(elapsed=moments)
    def time_passes(self, elapsed: float) -> None:
        self.now += elapsed

    @property
    def held(self) -> list[Lease]:
        """Open leases on accounts that are still in the pool."""
        present = {state.key: state.position for state in self.pool.accounts()}
        leases = [a.lease for a in self.all if a.lease is not None]
        return [lease for lease in leases if present.get(lease.key) == lease.position]

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
        assert self.pool.summary(now=self.now)["in_flight"] == 0


def test_attempts() -> None:
    run_state_machine_as_test(AttemptsMachine, settings=settings(SETTINGS, max_examples=150))
