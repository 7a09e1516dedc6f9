"""Every change of what an account is in has exactly one record, whatever made it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from account_pool.core import snapshot
from account_pool.core.account import AccountKey
from account_pool.core.decisions import By, Decision, Kind
from account_pool.core.errors import NoUsableAccount
from account_pool.core.health import MAX_COOLDOWNS
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Outcome, Scope
from account_pool.core.pool import Pool
from account_pool.core.snapshot import PoolSnapshot
from tests.core.generated import MODELS, SETTINGS, failures, limits, moments, outcomes, requests
from tests.core.helpers import (
    FACTS,
    FORBIDDEN,
    OK,
    UNAUTHORIZED,
    account,
    key,
    keys_of,
    pool_of,
    quota,
    rate_limit,
)

A, B = key("a"), key("b")
WALL = 1_800_000_000.0


def told(pool: Pool) -> list[str]:
    """The decisions, oldest first, in words."""
    return [_words(d) for d in reversed(list(pool.decisions))]


def _words(d: Decision) -> str:
    assert d.account is not None
    end = f", ended by {d.released_by}" if d.released_by else ""
    times = f" x{d.times}" if d.times > 1 else ""
    of_model = f" {d.covers}" if d.covers else ""
    ends = f" of {d.ends}" if d.ends else ""
    return f"{d.kind} {d.account.label}{of_model}{ends} by {d.by}{times}{end}"


Act = Callable[[Pool], object]


def limited(seconds: float = 60.0, at: float = 10.0, **changes: object) -> Act:
    return lambda pool: pool.health.mark_cooldown(A, rate_limit(seconds, **changes), now=at)


def asked(outcome: Outcome, at: float = 10.0) -> Act:
    def act(pool: Pool) -> None:
        pool.release(pool.acquire(FACTS, now=at), outcome, now=at)

    return act


def slow(outcome: Outcome, began: float, ended: float) -> Act:
    """A request that began on a while it did not cool, and ended later."""

    def act(pool: Pool) -> None:
        lease = pool.acquire_anyway(FACTS, now=began, only=A)
        assert lease is not None
        pool.release(lease, outcome, now=ended)

    return act


@pytest.mark.parametrize(
    ("acts", "expected"),
    [
        ([asked(rate_limit(60.0))], ["cooldown a by a refusal"]),
        # A limit that is over at once counts as one of a second.
        ([asked(rate_limit(0.0))], ["cooldown a by a refusal"]),
        ([asked(OK)], []),
        # Refused at once by several, or once more: one cooldown, which says how often.
        ([limited(), limited(), limited(60.0, 11.0)], ["cooldown a by a refusal x3"]),
        (
            [limited(), lambda p: p.health.mark_cooldown(A, quota(3600.0), now=20.0)],
            [
                "cooldown a by a refusal, ended by a later deadline",
                "cooldown a by a refusal",
            ],
        ),
        # Another cause that ends earlier changes nothing.
        (
            [limited(), lambda p: p.health.mark_cooldown(A, quota(5.0), now=20.0)],
            ["cooldown a by a refusal x2"],
        ),
        # One that was over is not the same as the next.
        ([limited(), limited(60.0, 100.0)], ["cooldown a by a refusal", "cooldown a by a refusal"]),
        (
            [limited(scope=Scope.MODEL, model="m")],
            ["cooldown a m by a refusal"],
        ),
        (
            [limited(), lambda p: p.accounts.clear_cooldown(A, now=20.0)],
            ["cooldown a by a refusal, ended by hand", "release a of 1 by hand"],
        ),
        # Nothing is released that was over already.
        (
            [limited(), lambda p: p.accounts.clear_cooldown(A, now=99.0)],
            ["cooldown a by a refusal"],
        ),
        (
            [limited(900.0), slow(OK, 100.0, 101.0)],
            [
                "cooldown a by a refusal, ended by a probe",
                "release a of 1 by a probe",
            ],
        ),
        (
            [lambda p: p.health.mark_failure(A, FORBIDDEN, now=5.0, by=By.WITNESS)],
            ["disable a by a comparison with other accounts"],
        ),
        (
            [
                lambda p: p.health.mark_failure(A, UNAUTHORIZED, now=5.0),
                lambda p: p.accounts.set_credentials(A, keys_of("new"), now=6.0),
            ],
            [
                "disable a by a refusal, ended by a new credential",
                "enable a of 1 by a new credential",
            ],
        ),
        # The same again is no change.
        (
            [
                lambda p: p.health.mark_failure(A, FORBIDDEN, now=5.0),
                lambda p: p.health.mark_failure(A, FORBIDDEN, now=6.0),
            ],
            ["disable a by a refusal"],
        ),
        (
            [limited(), lambda p: p.accounts.renewed(A, now=20.0)],
            [
                "cooldown a by a refusal, ended by a new credential in accounts.yaml",
                "release a of 1 by a new credential in accounts.yaml",
            ],
        ),
        (
            [limited(), lambda p: p.accounts.remove(A, now=20.0)],
            ["cooldown a by a refusal, ended by the removal of the account"],
        ),
        (
            [
                lambda p: p.health.learn_owner(A, "org"),
                lambda p: p.health.learn_owner(B, "org"),
                limited(shared=True),
            ],
            [
                "cooldown b by a refusal of an account of the same owner",
                "cooldown a by a refusal",
            ],
        ),
    ],
)
def test_changes(acts: list[Act], expected: list[str]) -> None:
    pool = pool_of(account("a"), account("b", priority=1))
    for act in acts:
        act(pool)
    assert told(pool) == expected


def test_another_proxy_has_learnt_it_and_released_it() -> None:
    one, other = pool_of("a"), pool_of("a")
    one.health.mark_cooldown(A, rate_limit(60.0), now=0.0)
    for pool, at in ((one, 1.0), (one, 2.0)):
        saved = snapshot.take(pool.accounts, wall_now=WALL + at, ahead=WALL)
        snapshot.restore(other.accounts, saved, now=at, wall_now=WALL + at, by=By.PROXY)
    one.accounts.clear_cooldown(A, now=3.0)
    saved = snapshot.take(one.accounts, wall_now=WALL + 3.0, ahead=WALL)
    snapshot.restore(other.accounts, saved, now=3.0, wall_now=WALL + 3.0, by=By.PROXY)
    assert told(other) == [
        "cooldown a by another proxy, ended by another proxy",
        "release a of 1 by another proxy",
    ]


def test_the_model_that_has_to_go_for_another() -> None:
    pool = pool_of("a")
    for number in range(MAX_COOLDOWNS + 1):
        limit = rate_limit(60.0 + number, scope=Scope.MODEL, model=f"m{number}")
        pool.health.mark_cooldown(A, limit, now=0.0)
    assert [told(pool)[0], len(told(pool))] == [
        "cooldown a m0 by a refusal, ended by room for others",
        MAX_COOLDOWNS + 1,
    ]


class RecordedPool(RuleBasedStateMachine):
    """Whatever is done to a pool: its records say what its accounts are in."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.pool = Pool()
        self.saved: list[PoolSnapshot] = []
        self.ended: dict[int, By] = {}
        self.pool.decisions.subscribe(self.heard)

    def heard(self, decision: Decision) -> None:
        """What has ended has ended once."""
        if decision.released_by is not None:
            assert decision.number not in self.ended
            self.ended[decision.number] = decision.released_by

    @initialize()
    def begin(self) -> None:
        for label in ("a", "b", "c"):
            self.pool.accounts.add(account(label), keys_of("old", "key", "oauth"), now=self.now)

    def key(self, who: int) -> AccountKey:
        keys = [state.key for state in self.pool.accounts]
        return keys[who % len(keys)]

    @rule(facts=requests, outcome=outcomes, elapsed=moments)
    def request(self, facts: RequestFacts, outcome: Outcome | None, elapsed: float) -> None:
        try:
            lease = self.pool.acquire(facts, now=self.now)
        except NoUsableAccount:
            anyway = self.pool.acquire_anyway(facts, now=self.now)
            if anyway is None:
                return
            lease = anyway
        self.now += elapsed
        self.pool.release(lease, outcome, now=self.now)

    @rule(who=st.integers(0, 2), outcome=limits, model=st.sampled_from(MODELS), age=moments)
    def limit(self, who: int, outcome: Outcome, model: str | None, age: float) -> None:
        self.pool.health.mark_cooldown(
            self.key(who), outcome, now=self.now, model=model, started_at=self.now - age
        )

    @rule(who=st.integers(0, 2), outcome=failures, model=st.sampled_from(MODELS))
    def fail(self, who: int, outcome: Outcome, model: str | None) -> None:
        self.pool.health.mark_failure(self.key(who), outcome, now=self.now, model=model)

    @rule(who=st.integers(0, 2), what=st.sampled_from(["clear", "renewed", "new", "remove", "own"]))
    def change(self, who: int, what: str) -> None:
        pool, key = self.pool, self.key(who)
        new = keys_of(f"new-{self.now}", "key", "oauth")
        match what:
            case "clear":
                pool.accounts.clear_cooldown(key, now=self.now)
            case "renewed":
                pool.accounts.renewed(key, now=self.now)
                pool.accounts.set_credentials(key, new, now=self.now)
            case "new":
                pool.accounts.set_credentials(key, new, now=self.now)
            case "remove":
                pool.accounts.add(pool.accounts.remove(key, now=self.now), new, now=self.now)
            case "own":
                pool.health.learn_owner(key, "org")

    @rule()
    def save(self) -> None:
        self.saved.append(snapshot.take(self.pool.accounts, wall_now=WALL + self.now, ahead=WALL))

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 5), slept=moments)
    def restore(self, which: int, slept: float) -> None:
        saved = self.saved[which % len(self.saved)]
        wall_now = WALL + self.now + slept
        snapshot.restore(self.pool.accounts, saved, now=self.now, wall_now=wall_now, by=By.PROXY)

    @rule(elapsed=moments)
    def time_passes(self, elapsed: float) -> None:
        self.now += elapsed

    @invariant()
    def records_and_accounts_agree(self) -> None:
        for state in self.pool.accounts:
            recorded = {
                (d.kind, d.covers): (d.cause, d.until)
                for d in self.pool.decisions.all_lasting(state.key, self.now)
            }
            expected: dict[tuple[Kind, str | None], tuple[object, float | None]] = {
                (Kind.COOLDOWN, model): (c.cause, c.until)
                for model, c in state.cooldowns.items()
                if c.active(self.now)
            }
            expected |= {
                (Kind.SUSPECT, model): (v.cause, v.until)
                for model, v in state.verdicts.items()
                if v.active(self.now)
            }
            if state.disabled is not None:
                expected[Kind.DISABLE, None] = (state.disabled, None)
            assert recorded == expected

    @invariant()
    def what_was_released_early_was_released_once(self) -> None:
        records = {d.number: d for d in self.pool.decisions}
        ends = [d.ends for d in records.values() if d.ends is not None]
        assert len(set(ends)) == len(ends)
        silent = {By.LATER, By.REMOVAL}
        # That a verdict is not open any more changes nothing for anybody who waits.
        early = {n for n, by in self.ended.items() if by not in silent}
        assert set(ends) == {n for n in early if records[n].kind is not Kind.SUSPECT}
        for record in records.values():
            if record.ends is not None:
                ended = records[record.ends]
                assert (ended.account, ended.covers) == (record.account, record.covers)
                assert (ended.released_by, ended.ended_at) == (record.by, record.at)


def test_records() -> None:
    run_state_machine_as_test(RecordedPool, settings=SETTINGS)
