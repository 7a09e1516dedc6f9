"""The pool: who may serve, until when not, and what answers teach it."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.accounts import occupancy, summary
from account_pool.core.credential import Credential, Secret
from account_pool.core.errors import (
    DuplicateAccount,
    LeaseAlreadyReturned,
    NoUsableAccount,
    UnknownAccount,
)
from account_pool.core.headroom import UNKNOWN
from account_pool.core.health import BENCH_S
from account_pool.core.lease import Lease, RequestFacts, Ticket
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.selection import POLICIES
from tests.core.helpers import (
    BARE_429,
    EXPIRED,
    FACTS,
    FORBIDDEN,
    FORBIDDEN_MODEL,
    OK,
    OVERLOADED,
    PROVIDER,
    REQUEST_ERROR,
    SERVER_ERROR,
    UNAUTHORIZED,
    ClocksAhead,
    account,
    available,
    instructions,
    key,
    keys_of,
    pool_of,
    quota,
    rate_limit,
    served,
    window,
)

DAY_S = 86_400.0
MINI = RequestFacts(provider=PROVIDER, kind="key", model="gpt-5-mini")
NO_MODEL = RequestFacts(provider=PROVIDER, kind="key")
MODEL_LIMIT = rate_limit(10.0, scope=Scope.MODEL)


def shortage(
    pool: Pool, now: float = 0.0, facts: RequestFacts = FACTS, **avoid: Any
) -> NoUsableAccount:
    with pytest.raises(NoUsableAccount) as raised:
        pool.acquire(facts, now=now, **avoid)
    return raised.value


def test_a_shortage_looks_for_credentials_that_could_not_be_read() -> None:
    pool = pool_of("a")
    sought: list[str] = []

    def seek(provider: str) -> bool:
        sought.append(provider)
        pool.accounts.set_credentials(key("b"), keys_of("b"), now=0.0)
        return True

    pool.accounts.add(account("b"), now=0.0)
    pool.seek = seek
    assert pool.acquire(FACTS, now=0.0).key == key("a")
    assert sought == []
    assert pool.acquire(FACTS, now=0.0, avoid=[key("a")]).key == key("b")
    assert sought == [PROVIDER]
    pool.seek = lambda _provider: False
    assert shortage(pool, avoid=[key("a"), key("b")]).retry_at is None


# -- members


@pytest.mark.parametrize("again", ["work", "Work", " WORK "])
def test_duplicates_are_refused(again: str) -> None:
    pool = pool_of("Work")
    with pytest.raises(DuplicateAccount, match="openai/work is already in the pool"):
        pool.accounts.add(account(again), now=0.0)
    assert occupancy(pool.accounts)["size"] == 1


def test_the_same_label_of_two_providers_is_two_accounts() -> None:
    pool = pool_of("work", account("work", provider="gemini"))
    assert pool.accounts.providers() == ["openai", "gemini"]
    assert [str(state.key) for state in pool.accounts] == ["openai/work", "gemini/work"]
    assert [str(state.key) for state in pool.accounts.of("gemini")] == ["gemini/work"]


@pytest.mark.parametrize("outcome", [rate_limit(50.0), quota(), UNAUTHORIZED, FORBIDDEN])
def test_another_credential_does_not_inherit(outcome: Outcome) -> None:
    """Neither what was learnt of the old one, nor what its last requests still learn."""
    pool = pool_of("a")
    first, late = pool.acquire(FACTS, now=0.0), pool.acquire(FACTS, now=0.0)
    pool.health.learn_owner(key("a"), "org-1")
    pool.observe_headroom(key("a"), [window(0.1)], now=0.0)
    pool.release(first, outcome, now=1.0)
    pool.accounts.renewed(key("a"), now=2.0)
    assert shortage(pool, 2.0).may_change
    pool.observe_headroom(key("a"), [window(0.1)], now=3.0, lease=late)
    pool.release(late, outcome, now=3.0)
    pool.accounts.set_credentials(key("a"), keys_of("new"), now=4.0)
    assert available(pool, now=4.0) == {"a"}
    state = pool.accounts.get(key("a"))
    assert (state.in_flight, state.headroom, pool.accounts.owners.get(key("a"))) == (
        0,
        UNKNOWN,
        None,
    )
    assert not state.is_suspect(FACTS.model)
    pool.release(pool.acquire(FACTS, now=5.0), outcome, now=6.0)
    assert state.is_suspect(FACTS.model) or available(pool, now=6.0) == set()


def test_remove_gives_the_account_back() -> None:
    pool = pool_of("a", "b")
    assert pool.accounts.remove(key("a"), now=0.0).label == "a"
    assert served(pool, 2) == ["b", "b"]
    assert pool.accounts.add(account("a"), keys_of("a"), now=0.0) == key("a")


def test_a_provider_without_accounts_is_not_listed() -> None:
    pool = pool_of("a")
    pool.accounts.remove(key("a"), now=0.0)
    assert pool.accounts.providers() == []
    assert shortage(pool).reason == "the pool has no account"


@pytest.mark.parametrize(
    "ask",
    [
        lambda pool, key: pool.accounts.remove(key, now=0.0),
        lambda pool, key: pool.accounts.get(key),
        lambda pool, key: pool.health.mark_cooldown(key, BARE_429, now=0.0),
        lambda pool, key: pool.health.mark_failure(key, UNAUTHORIZED, now=0.0),
        lambda pool, key: pool.accounts.clear_cooldown(key, now=0.0),
        lambda pool, key: pool.observe_headroom(key, [window(0.5)], now=0.0),
        lambda pool, key: pool.accounts.set_credentials(key, {}, now=0.0),
    ],
)
@pytest.mark.parametrize("unknown", [key("b"), AccountKey("gemini", "a")])
def test_an_unknown_account_is_told_with_the_known(
    ask: Callable[[Pool, AccountKey], object], unknown: AccountKey
) -> None:
    with pytest.raises(
        UnknownAccount, match=f"{unknown} is not in the pool; the accounts are: openai"
    ):
        ask(pool_of("a"), unknown)


@pytest.mark.parametrize("again", [False, True], ids=["gone", "added again"])
@pytest.mark.parametrize("outcome", [OK, quota(60.0), UNAUTHORIZED, None])
def test_removal_while_leased(again: bool, outcome: Outcome | None) -> None:
    """The open lease ends in peace, and touches nobody who came after."""
    pool = pool_of("a")
    lease = pool.acquire(FACTS, now=0.0)
    removed = pool.accounts.remove(key("a"), now=0.0)
    if again:
        pool.accounts.add(removed, keys_of("a"), now=0.0)
        pool.acquire(FACTS, now=0.0)
    pool.release(lease, outcome, now=1.0)
    assert lease.returned
    if again:
        state = pool.accounts.get(key("a"))
        assert (state.in_flight, state.served, state.cooldowns, state.disabled) == (1, 0, {}, None)


# -- who may serve


def test_an_account_without_a_credential_is_not_selected() -> None:
    pool = Pool()
    pool.accounts.add(account("a"), now=0.0)
    assert pool.pick(FACTS, now=0.0) is None
    pool.accounts.set_credentials(key("a"), keys_of("a"), now=0.0)
    assert served(pool, 1) == ["a"]


def test_kinds_do_not_mix() -> None:
    pool = Pool()
    pool.accounts.add(account("sub"), keys_of("s", "oauth"), now=0.0)
    pool.accounts.add(account("key"), keys_of("k", "key"), now=0.0)
    pool.accounts.add(account("both"), keys_of("b", "oauth", "key"), now=0.0)
    oauth = RequestFacts(provider=PROVIDER, kind="oauth", model="gpt-5")
    assert available(pool, now=0.0) == {"key", "both"}
    assert available(pool, now=0.0, facts=oauth) == {"sub", "both"}
    assert pool.acquire(oauth, now=0.0, avoid=[key("sub")]).credential.kind == "oauth"


def test_models_are_kept_to() -> None:
    pool = pool_of(account("gpt", "gpt-*"), account("small", "*-mini"), "all")
    assert available(pool, now=0.0) == {"gpt", "all"}
    assert available(pool, now=0.0, facts=MINI) == {"gpt", "small", "all"}
    assert available(pool, now=0.0, facts=NO_MODEL) == {"gpt", "small", "all"}


def test_avoided_accounts_are_not_asked() -> None:
    pool = pool_of("a", "b")
    assert pool.acquire(FACTS, now=0.0, avoid={key("a")}).key.label == "b"
    assert shortage(pool, avoid={key("a"), key("b")}).retry_at is None


def test_pick_changes_no_turn() -> None:
    pool = pool_of("a", "b")
    for _ in range(3):
        picked = pool.pick(FACTS, now=0.0)
        assert picked is not None
        assert picked.key == key("a")
    assert served(pool, 2) == ["a", "b"]


@pytest.mark.parametrize("strategy", POLICIES)
def test_max_concurrent(strategy: str) -> None:
    pool = pool_of(account("a", max_concurrent=2), strategy=strategy)
    leases = [pool.acquire(FACTS, now=0.0) for _ in range(2)]
    full = shortage(pool)
    assert full.may_change
    assert (full.retry_at, full.soonest) == (None, None)
    assert full.reason == "no usable account of 1 (1 full)"
    pool.release(leases.pop(), OK, now=0.0)
    leases.append(pool.acquire(FACTS, now=0.0))
    shortage(pool)


@pytest.mark.parametrize("strategy", POLICIES)
def test_min_interval(strategy: str) -> None:
    pool = pool_of(account("a", min_interval_s=2.0), strategy=strategy)
    for now in (0.0, 2.0, 7.5):
        pool.release(pool.acquire(FACTS, now=now), OK, now=now)
        waiting = shortage(pool, now + 1.999)
        assert (waiting.retry_at, waiting.soonest) == (now + 2.0, key("a"))


def test_clearing_by_hand_does_not_shorten_the_owners_interval() -> None:
    pool = pool_of(account("a", min_interval_s=2.0))
    pool.release(pool.acquire(FACTS, now=0.0), rate_limit(60.0), now=0.5)
    pool.accounts.clear_cooldown(key("a"), now=1.0)
    assert shortage(pool, 1.0).retry_at == 2.0


# -- leases


def test_a_lease_says_who_serves_and_with_what() -> None:
    pool = pool_of("a")
    lease = pool.acquire(FACTS, now=5.0)
    assert (lease.key, lease.account.label) == (key("a"), "a")
    assert lease.credential == keys_of("a")["key"]
    assert (lease.facts, lease.started_at, lease.returned) == (FACTS, 5.0, False)


def test_a_lease_comes_back_once() -> None:
    pool = pool_of("a")
    lease = pool.acquire(FACTS, now=0.0)
    pool.release(lease, OK, now=1.0)
    with pytest.raises(LeaseAlreadyReturned, match="openai/a"):
        pool.release(lease, quota(60.0), now=1.0)
    with pytest.raises(LeaseAlreadyReturned):
        pool.renew(lease, now=1.0)
    assert pool.accounts.get(key("a")).in_flight == 0
    assert pool.accounts.get(key("a")).cooldowns == {}


def test_renew_takes_the_credential_the_account_holds_now() -> None:
    pool = pool_of(account("a", max_concurrent=1))
    lease = pool.acquire(FACTS, now=0.0)
    pool.accounts.set_credentials(key("a"), keys_of("new"), now=1.0)
    renewed = pool.renew(lease, now=2.0)
    assert renewed is not None
    assert lease.returned
    assert renewed.credential == keys_of("new")["key"]
    assert (renewed.key, renewed.started_at) == (key("a"), 2.0)
    assert pool.accounts.get(key("a")).in_flight == 1
    pool.release(renewed, OK, now=3.0)
    assert pool.accounts.get(key("a")).in_flight == 0


def test_renew_is_no_new_turn() -> None:
    pool = pool_of("a", "b", "c")
    lease = pool.acquire(FACTS, now=0.0)
    assert served(pool, 1) == ["b"]
    assert pool.renew(lease, now=0.0)
    assert served(pool, 2) == ["c", "a"]


def test_renew_keeps_its_place_while_others_wait_for_it() -> None:
    """A waiter must not slip in between: the account would serve two of one."""
    pool = pool_of(account("a", max_concurrent=1))
    lease = pool.acquire(FACTS, now=0.0)
    pool.accounts.on_dirty = lambda: pytest.fail("renew lets nobody go on")
    assert pool.renew(lease, now=1.0)


def test_renew_counts_as_a_start_for_min_interval() -> None:
    pool = pool_of(account("a", min_interval_s=2.0))
    assert pool.renew(pool.acquire(FACTS, now=0.0), now=1.0)
    assert shortage(pool, 2.5).retry_at == 3.0


@pytest.mark.parametrize(
    "happens",
    [
        lambda pool: pool.accounts.remove(key("a"), now=0.0),
        lambda pool: pool.accounts.add(
            pool.accounts.remove(key("a"), now=0.0), keys_of("a"), now=1.0
        ),
        lambda pool: pool.accounts.set_credentials(key("a"), {}, now=1.0),
        lambda pool: pool.accounts.set_credentials(key("a"), keys_of("a", "oauth"), now=1.0),
        lambda pool: pool.health.mark_failure(key("a"), FORBIDDEN, now=1.0),
        lambda pool: pool.health.mark_cooldown(key("a"), quota(60.0), now=1.0),
        lambda pool: pool.health.mark_cooldown(key("a"), MODEL_LIMIT, now=1.0, model="gpt-5"),
    ],
)
def test_renew_gives_up_an_account_that_may_not_serve_any_more(
    happens: Callable[[Pool], None],
) -> None:
    pool = pool_of("a")
    lease = pool.acquire(FACTS, now=0.0)
    happens(pool)
    assert pool.renew(lease, now=2.0) is None
    assert lease.returned
    assert summary(pool.accounts, now=2.0)["in_flight"] == 0


# -- cooldowns


@pytest.mark.parametrize("strategy", POLICIES)
def test_cooling_exactly_until_the_deadline(strategy: str) -> None:
    pool = pool_of("a", strategy=strategy)
    pool.health.mark_cooldown(key("a"), rate_limit(10.0), now=5.0)
    assert pool.pick(FACTS, now=14.999) is None
    assert summary(pool.accounts, now=14.999)["cooling_down"] == 1
    assert pool.pick(FACTS, now=15.0) is not None
    assert summary(pool.accounts, now=15.0)["cooling_down"] == 0


def test_an_account_scope_covers_every_model() -> None:
    pool = pool_of("a")
    pool.health.mark_cooldown(key("a"), quota(10.0), now=0.0, model="gpt-5")
    for facts in (FACTS, MINI, NO_MODEL):
        assert pool.pick(facts, now=1.0) is None


def test_a_model_scope_covers_that_model_only() -> None:
    pool = pool_of("a")
    pool.health.mark_cooldown(key("a"), MODEL_LIMIT, now=0.0, model="gpt-5")
    assert pool.pick(FACTS, now=9.9) is None
    assert pool.pick(MINI, now=9.9) is not None
    assert pool.pick(NO_MODEL, now=9.9) is not None
    assert pool.pick(FACTS, now=10.0) is not None
    assert summary(pool.accounts, now=5.0)["cooling_down"] == 0


def test_the_model_an_answer_names_wins_over_the_requests() -> None:
    pool = pool_of("a")
    outcome = rate_limit(10.0, scope=Scope.MODEL, model="gpt-5*")
    assert pool.health.mark_cooldown(key("a"), outcome, now=0.0, model="gpt-5").model == "gpt-5*"
    assert pool.pick(MINI, now=1.0) is None
    other = RequestFacts(provider=PROVIDER, kind="key", model="o3")
    assert pool.pick(other, now=1.0) is not None


def test_a_model_scope_without_a_model_covers_the_account() -> None:
    pool = pool_of("a")
    assert pool.health.mark_cooldown(key("a"), MODEL_LIMIT, now=0.0).model is None
    assert pool.pick(FACTS, now=1.0) is None


def test_scopes_cool_side_by_side() -> None:
    pool = pool_of("a")
    pool.health.mark_cooldown(key("a"), rate_limit(5.0), now=0.0)
    pool.health.mark_cooldown(key("a"), MODEL_LIMIT, now=0.0, model="gpt-5")
    assert pool.pick(MINI, now=5.0) is not None
    assert pool.pick(FACTS, now=5.0) is None
    assert pool.pick(FACTS, now=10.0) is not None


@pytest.mark.parametrize("outcome", [rate_limit(10.0), quota(10.0)])
def test_a_limit_on_release_cools(outcome: Outcome) -> None:
    pool = pool_of("a")
    pool.release(pool.acquire(FACTS, now=0.0), outcome, now=1.0)
    state = pool.accounts.get(key("a"))
    assert state.cooling_until(None, 1.0) == 11.0
    cooldown = state.cooldown_of("gpt-5", 1.0)
    assert cooldown is not None
    assert cooldown.cause.signal == outcome.signal
    assert state.served == 0


@pytest.mark.parametrize(
    "outcome",
    [
        None,
        REQUEST_ERROR,
        OVERLOADED,
        SERVER_ERROR,
        Outcome(cls=OutcomeClass.TRANSPORT),
    ],
)
def test_what_is_not_the_accounts_fault_leaves_it_untouched(outcome: Outcome | None) -> None:
    pool = pool_of("a")
    pool.release(pool.acquire(FACTS, now=0.0), outcome, now=1.0)
    state = pool.accounts.get(key("a"))
    assert (state.cooldowns, state.disabled, state.served) == ({}, None, 0)
    assert pool.pick(FACTS, now=1.0) is not None


def test_concurrent_refusals_count_once() -> None:
    pool = pool_of("a")
    leases = [pool.acquire(FACTS, now=float(n)) for n in range(8)]
    for n, lease in enumerate(leases):
        pool.release(lease, rate_limit(), now=10.0 + n)
    cooldown = pool.accounts.get(key("a")).cooldowns[None]
    assert (cooldown.streak, cooldown.since) == (1, 10.0)


def test_streaks_grow_without_a_success_between_and_end_with_one() -> None:
    pool, now, waits = pool_of("a"), 0.0, []
    for refused in (True, True, True, False, True):
        lease = pool.acquire(FACTS, now=now)
        pool.release(lease, rate_limit() if refused else OK, now=now + 1)
        if refused:
            waits.append(pool.accounts.get(key("a")).cooldowns[None].until - (now + 1))
        now += 5000.0
    assert waits == [300.0, 600.0, 1200.0, 300.0]


def test_a_success_under_way_when_the_limit_hit_says_nothing() -> None:
    pool = pool_of("a")
    early = pool.acquire(FACTS, now=0.0)
    pool.release(pool.acquire(FACTS, now=1.0), quota(60.0), now=2.0)
    pool.release(early, OK, now=3.0)
    assert pool.pick(FACTS, now=4.0) is None


def test_a_success_started_after_clears_what_covers_it() -> None:
    pool = pool_of("a")
    pool.health.mark_cooldown(key("a"), rate_limit(5.0), now=0.0)
    pool.health.mark_cooldown(key("a"), MODEL_LIMIT, now=0.0, model="gpt-5")
    lease = pool.acquire(MINI, now=6.0)
    pool.release(lease, OK, now=7.0)
    # The whole account was shown to be well, the other model was not.
    assert set(pool.accounts.get(key("a")).cooldowns) == {"gpt-5"}
    assert pool.accounts.get(key("a")).served == 1


def test_cooldown_by_hand_is_released_by_hand() -> None:
    pool = pool_of("a")
    pool.health.mark_cooldown(key("a"), rate_limit(1e6, signal="by hand"), now=0.0)
    pool.health.mark_cooldown(key("a"), MODEL_LIMIT, now=0.0, model="gpt-5")
    ended = pool.accounts.clear_cooldown(key("a"), now=20.0)
    assert [(c.model, c.cause.signal) for c in ended] == [(None, "by hand")]
    assert served(pool, 1, now=20.0) == ["a"]
    assert pool.accounts.clear_cooldown(key("a"), now=20.0) == []


def test_clearing_ends_a_disabling_but_not_the_owners_own() -> None:
    pool = pool_of("a", account("b", enabled=False))
    for label in "ab":
        pool.health.mark_failure(key(label), FORBIDDEN, now=0.0)
        pool.accounts.clear_cooldown(key(label), now=0.0)
    assert available(pool, now=0.0) == {"a"}


def test_jitter_comes_from_the_chance_given() -> None:
    pool = pool_of("a", chance=lambda: 0.5)
    assert pool.health.mark_cooldown(key("a"), rate_limit(100.0), now=0.0).until == 101.0


def test_the_default_is_the_owners() -> None:
    pool = pool_of("a", default_cooldown_s=7.0)
    assert pool.health.mark_cooldown(key("a"), quota(), now=0.0).until == 7.0


# -- benched


@pytest.mark.parametrize("outcome", [UNAUTHORIZED, EXPIRED, FORBIDDEN])
def test_failure_disables_with_its_cause(outcome: Outcome) -> None:
    pool = pool_of("a")
    pool.health.mark_failure(key("a"), outcome, now=0.0)
    disabled = pool.accounts.get(key("a")).disabled
    assert disabled is not None
    assert (disabled.cls, disabled.signal) == (outcome.cls, outcome.signal)
    assert summary(pool.accounts, now=1e9)["disabled"] == 1
    gone = shortage(pool, 1e9)
    assert (gone.retry_at, gone.soonest, gone.may_change) == (None, None, False)
    assert gone.reason == "no usable account of 1 (1 disabled)"


@pytest.mark.parametrize("outcome", [OK, BARE_429, quota(9.0), REQUEST_ERROR, OVERLOADED])
def test_other_classes_are_no_failure_of_the_account(outcome: Outcome) -> None:
    pool = pool_of("a")
    pool.health.mark_failure(key("a"), outcome, now=0.0)
    assert available(pool, now=0.0) == {"a"}


def test_a_model_the_account_may_not_use_is_benched_alone() -> None:
    pool = pool_of("a")
    pool.health.mark_failure(key("a"), FORBIDDEN_MODEL, now=0.0, model="gpt-5")
    assert pool.accounts.get(key("a")).enabled
    assert pool.pick(MINI, now=1.0) is not None
    assert pool.accounts.get(key("a")).cooling_until("gpt-5", 1.0) == BENCH_S
    # Asked when nobody else can serve, and no promise of a return.
    assert shortage(pool, 1.0).last_resort == key("a")
    assert shortage(pool, 1.0).retry_at is None


def test_a_forbidden_model_nobody_named_benches_nobody() -> None:
    pool = pool_of("a")
    pool.health.mark_failure(key("a"), FORBIDDEN_MODEL, now=0.0)
    assert pool.pick(FACTS, now=1.0) is pool.accounts.get(key("a"))


@pytest.mark.parametrize("outcome", [UNAUTHORIZED, EXPIRED])
def test_disabled_by_401_until_the_credential_changes(outcome: Outcome) -> None:
    pool = pool_of("a")
    pool.health.mark_failure(key("a"), outcome, now=0.0)
    pool.accounts.set_credentials(key("a"), keys_of("a"), now=1.0)
    assert pool.pick(FACTS, now=1.0) is None
    pool.accounts.set_credentials(key("a"), keys_of("new"), now=2.0)
    assert pool.pick(FACTS, now=2.0) is not None


def test_losing_the_refused_credential_and_finding_it_again_is_no_change() -> None:
    pool = pool_of("a")
    pool.health.mark_failure(key("a"), UNAUTHORIZED, now=0.0)
    pool.accounts.set_credentials(key("a"), {}, now=1.0, problem="the file is gone")
    assert pool.accounts.get(key("a")).problem == "the file is gone"
    pool.accounts.set_credentials(key("a"), keys_of("a"), now=2.0)
    assert pool.pick(FACTS, now=2.0) is None
    assert pool.accounts.get(key("a")).problem is None


def test_forbidden_outlives_a_changed_credential() -> None:
    pool = pool_of("a")
    pool.health.mark_failure(key("a"), FORBIDDEN, now=0.0)
    pool.accounts.set_credentials(key("a"), keys_of("new"), now=1.0)
    assert pool.pick(FACTS, now=1.0) is None


@pytest.mark.parametrize(("outcome", "suspect"), [(UNAUTHORIZED, False), (FORBIDDEN, True)])
def test_a_401_for_a_credential_replaced_since_says_nothing(
    outcome: Outcome, suspect: bool
) -> None:
    pool = pool_of("a")
    lease = pool.acquire(FACTS, now=0.0)
    pool.accounts.set_credentials(key("a"), keys_of("new"), now=1.0)
    pool.release(lease, outcome, now=2.0)
    assert pool.accounts.get(key("a")).enabled
    assert pool.accounts.get(key("a")).is_suspect(FACTS.model) is suspect


# -- when nobody can serve


def test_shortage_knows_who_returns_first() -> None:
    pool = pool_of("a", "b", "c")
    for label, seconds in [("a", 30.0), ("b", 10.0), ("c", 20.0)]:
        pool.health.mark_cooldown(key(label), rate_limit(seconds), now=0.0)
    nobody = shortage(pool, 1.0)
    assert (nobody.retry_at, nobody.soonest) == (10.0, key("b"))
    assert (nobody.wait_s(1.0), nobody.wait_s(50.0)) == (9.0, 0.0)
    assert not nobody.may_change
    assert str(nobody) == "openai: no usable account of 3 (3 on cooldown)"


def test_shortage_counts_the_latest_of_what_covers_the_request() -> None:
    pool = pool_of("a")
    pool.health.mark_cooldown(key("a"), rate_limit(5.0), now=0.0)
    pool.health.mark_cooldown(key("a"), MODEL_LIMIT, now=0.0, model="gpt-5")
    assert shortage(pool, 1.0).retry_at == 10.0
    assert shortage(pool, 1.0, MINI).retry_at == 5.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"enabled": False}, "1 disabled"),
        ({"models": account("x", "o3").models}, "1 not for gpt-5"),
    ],
)
def test_who_can_never_serve_has_no_return(changes: dict[str, Any], reason: str) -> None:
    pool = pool_of(account("a", **changes))
    pool.health.mark_cooldown(key("a"), rate_limit(5.0), now=0.0)
    nobody = shortage(pool, 10.0)
    assert (nobody.retry_at, nobody.soonest, nobody.may_change) == (None, None, False)
    assert nobody.wait_s(10.0) is None
    assert reason in nobody.reason


def test_a_credential_on_its_way_is_worth_waiting_for() -> None:
    pool = Pool()
    pool.accounts.add(account("a"), now=0.0, pending=True)
    assert shortage(pool).may_change
    assert "1 without a usable credential" in shortage(pool).reason
    assert shortage(pool).status is None
    # It is tried for again, later than anybody is held.
    pool.accounts.set_credentials(key("a"), {}, now=0.0, problem="no answer", passing=True)
    assert (shortage(pool).may_change, shortage(pool).status) == (False, None)
    pool.accounts.set_credentials(key("a"), {}, now=0.0, problem="refused")
    assert (shortage(pool).may_change, shortage(pool).status) == (False, 401)


def test_a_full_account_that_cools_counts_by_its_deadline() -> None:
    pool = pool_of(account("a", max_concurrent=1))
    pool.acquire(FACTS, now=0.0)
    pool.health.mark_cooldown(key("a"), rate_limit(5.0), now=0.0)
    assert shortage(pool, 1.0).retry_at == 5.0


def test_a_request_more_on_a_ramp_changes_why_nobody_can_serve() -> None:
    pool = pool_of("a", "b")
    pool.health.mark_cooldown(key("b"), rate_limit(60.0), now=0.0)
    pool.acquire(FACTS, now=0.0)
    soon = shortage(pool, 0.0).retry_at
    assert pool.acquire_anyway(FACTS, now=0.0) is not None
    later = shortage(pool, 0.0).retry_at
    assert soon is not None and later is not None and later > soon


def test_until_when_an_account_surely_cools() -> None:
    """Where anything else may end it, nobody goes elsewhere without asking."""
    pool = pool_of(account("a", max_concurrent=1), account("b"))
    lease = pool.acquire(FACTS, now=0.0, only=key("a"))
    for label in "ab":
        pool.health.mark_cooldown(key(label), rate_limit(5.0), now=0.0)

    def cools(label: str) -> float:
        return pool.accounts.get(key(label)).cools_for(FACTS.kind, FACTS.model, 1.0)

    assert [cools(label) for label in "ab"] == [-inf, 5.0]
    pool.release(lease, None, now=1.0)
    pool.accounts.set_credentials(key("b"), {}, now=1.0)
    assert [cools(label) for label in "ab"] == [5.0, -inf]


def test_what_speaks_against_an_account_is_not_quiet() -> None:
    def quiet(learn: Callable[[Pool], object]) -> bool:
        pool = pool_of("a", "b")
        assert pool.is_quiet(PROVIDER)
        learn(pool)
        return pool.is_quiet(PROVIDER)

    def lease(pool: Pool) -> Lease:
        return pool.acquire(FACTS, now=0.0)

    assert quiet(lease)
    assert not quiet(lambda pool: pool.failures(PROVIDER).limit_address(0.0))
    assert not quiet(lambda pool: pool.failures(PROVIDER).overloaded(lease(pool), 0.0))
    assert not quiet(lambda pool: pool.health.note_broken(lease(pool), now=0.0))
    assert not quiet(lambda pool: pool.health.mark_cooldown(key("a"), quota(DAY_S), now=0.0))
    assert pool_of().is_quiet(PROVIDER)


def test_a_provider_nobody_has() -> None:
    nobody = shortage(pool_of("a"), facts=RequestFacts(provider="gemini", kind="key"))
    assert str(nobody) == "gemini: the pool has no account"
    assert (nobody.retry_at, nobody.may_change) == (None, False)


# -- next


@pytest.mark.parametrize("strategy", POLICIES)
def test_next_passes_over_who_would_come(strategy: str) -> None:
    pool = pool_of("a", "b", "c", strategy=strategy)
    assert pool.next(PROVIDER, now=0.0) == key("b")
    assert pool.next(PROVIDER, now=0.0) == key("c")
    assert pool.next(PROVIDER, now=0.0) == key("a")
    assert served(pool, 1) == ["a"]


def test_what_is_left_is_learnt_of_the_account_that_answered() -> None:
    pool = pool_of("a")
    lease = pool.acquire(FACTS, now=0.0)
    pool.accounts.remove(key("a"), now=1.0)
    pool.accounts.add(account("a"), keys_of("a"), now=1.0)
    pool.observe_headroom(key("a"), [window(0.1)], now=2.0, lease=lease)
    assert pool.accounts.get(key("a")).headroom is UNKNOWN
    pool.release(lease, OK, now=3.0)


def test_clearing_by_hand_forgets_what_was_left() -> None:
    pool = pool_of("a", "b")
    spent = window(0.0, length_s=18000.0, reset_at=9000.0)
    pool.observe_headroom(key("a"), [spent], now=0.0)
    assert served(pool, 1) == ["b"]
    pool.accounts.clear_cooldown(key("a"), now=1.0)
    assert served(pool, 1, now=1.0) == ["a"]


def test_next_ends_the_turn_of_a_heavy_account() -> None:
    pool = pool_of(account("a", weight=3), "b")
    assert served(pool, 1) == ["a"]
    assert pool.next(PROVIDER, now=0.0) == key("b")
    assert served(pool, 5) == list("baaab")


@pytest.mark.parametrize("strategy", ["fill-first", "most-headroom"])
def test_next_lasts_until_no_other_can_serve(strategy: str) -> None:
    pool = pool_of("a", "b", strategy=strategy)
    pool.observe_headroom(key("b"), [window(0.5)], now=0.0)
    assert served(pool, 1) == ["a"]
    pool.next(PROVIDER, now=0.0)
    assert served(pool, 2) == ["b", "b"]
    pool.health.mark_cooldown(key("b"), rate_limit(10.0), now=0.0)
    assert served(pool, 1, now=1.0) == ["a"]
    assert served(pool, 1, now=20.0) == ["a"]


def test_next_stays_within_the_tier() -> None:
    pool = pool_of("a", account("b", priority=1), strategy="fill-first")
    assert pool.next(PROVIDER, now=0.0) == key("a")


@pytest.mark.parametrize("strategy", POLICIES)
def test_next_with_nobody(strategy: str) -> None:
    pool = pool_of("a", strategy=strategy)
    assert pool.next("gemini", now=0.0) is None
    assert pool.next(PROVIDER, now=0.0) == key("a")
    pool.health.mark_cooldown(key("a"), rate_limit(10.0), now=0.0)
    assert pool.next(PROVIDER, now=1.0) is None
    assert pool.next(PROVIDER, now=10.0) == key("a")


# -- counts


def test_summary_and_health() -> None:
    pool = pool_of(
        "free",
        "busy",
        "cooling",
        "benched",
        account("off", enabled=False),
        account("full", max_concurrent=1),
        account("paced", min_interval_s=10.0),
        account("x", provider="gemini"),
    )
    pool.accounts.add(account("waiting"), now=0.0, pending=True)
    for label in ("busy", "full", "paced"):
        others = [state.key for state in pool.accounts if state.key.label != label]
        pool.acquire(FACTS, now=0.0, avoid=others)
    pool.health.mark_cooldown(key("cooling"), rate_limit(60.0), now=0.0)
    pool.health.mark_failure(key("benched"), UNAUTHORIZED, now=0.0)
    assert summary(pool.accounts.of(PROVIDER), now=1.0) == {
        "total": 8,
        "available": 2,
        "cooling_down": 1,
        "disabled": 2,
        "in_flight": 3,
    }
    assert summary(pool.accounts, now=1.0)["total"] == 9
    assert summary(pool.accounts.of("nobody"), now=1.0) == dict.fromkeys(
        summary(pool.accounts, now=1.0), 0
    )
    assert occupancy(pool.accounts) == {"size": 9, "busy": 3}
    assert repr(pool) == "<Pool openai: 8 accounts, 3 in flight | gemini: 1 accounts, 0 in flight>"


def test_an_empty_pool() -> None:
    assert repr(Pool()) == "<Pool empty>"
    assert occupancy(Pool().accounts) == {"size": 0, "busy": 0}


def test_an_unknown_strategy_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Pool(strategy="luck")


# -- listeners


@pytest.mark.parametrize(
    "change",
    [
        lambda pool, lease: pool.release(lease, OK, now=1.0),
        lambda pool, lease: pool.accounts.add(account("b"), now=1.0),
        lambda pool, lease: pool.accounts.set_credentials(key("a"), keys_of("new"), now=1.0),
        lambda pool, lease: pool.accounts.clear_cooldown(key("a"), now=1.0),
        lambda pool, lease: pool.accounts.remove(key("a"), now=0.0),
    ],
)
def test_who_waits_is_told(change: Callable[[Pool, Any], object]) -> None:
    pool = pool_of("a")
    lease = pool.acquire(FACTS, now=0.0)
    told: list[int] = []
    pool.accounts.on_dirty = lambda: told.append(1)
    change(pool, lease)
    assert told == [1]


def test_what_had_changed_when_an_error_ended_it_stands() -> None:
    """The account cools: it is not asked, and that is saved."""
    pool = pool_of("a", "b")

    def failing() -> float:
        raise OverflowError

    pool.accounts.dirty.clear()
    urgent: list[bool] = []
    pool.accounts.on_urgent = lambda: urgent.append(True)
    clocks = pool.decisions.clocks = ClocksAhead(0.0)
    clocks.wall_now = failing
    with pytest.raises(OverflowError):
        pool.health.mark_cooldown(key("a"), rate_limit(60.0), now=1.0)
    assert available(pool, now=2.0) == {"b"}
    assert (pool.accounts.dirty, urgent) == ({key("a")}, [True])
    assert available(pool, now=61.0) == {"a", "b"}


def test_a_credential_alone_is_nothing_to_save() -> None:
    pool = pool_of("a")
    pool.accounts.dirty.clear()
    pool.accounts.set_credentials(key("a"), keys_of("new"), now=1.0)
    assert not pool.accounts.dirty


def test_a_listener_may_take_the_place_that_became_free() -> None:
    pool = pool_of(account("a", max_concurrent=1))
    lease = pool.acquire(FACTS, now=0.0)
    taken = []
    pool.accounts.on_dirty = lambda: None if taken else taken.append(pool.acquire(FACTS, now=1.0))
    pool.release(lease, OK, now=1.0)
    assert len(taken) == 1
    assert pool.accounts.get(key("a")).in_flight == 1


@pytest.mark.parametrize("strategy", POLICIES)
def test_what_its_owner_changed_is_taken_over_and_all_else_stays(strategy: str) -> None:
    pool = pool_of("a", "b", strategy=strategy)
    limit = rate_limit(60, scope=Scope.MODEL)
    pool.health.mark_cooldown(key("a"), limit, now=0.0, model="another")
    lease = pool.acquire(FACTS, now=0.0, avoid={key("b")})
    pool.accounts.replace(account("a", priority=9, max_concurrent=2), now=1.0)
    assert {pool.acquire(FACTS, now=1.0).key for _ in range(3)} == {key("b")}
    pool.accounts.replace(account("a", priority=-1, max_concurrent=2), now=2.0)
    assert pool.acquire(FACTS, now=2.0).key == key("a")
    assert pool.acquire(FACTS, now=2.0).key == key("b")  # a is full
    pool.release(lease, OK, now=3.0)
    assert pool.acquire(FACTS, now=3.0).key == key("a")
    pool.accounts.replace(account("a", enabled=False), now=4.0)
    assert pool.acquire(FACTS, now=4.0).key == key("b")
    pool.accounts.replace(account("a"), now=5.0)
    assert pool.accounts.get(key("a")).in_flight == 2
    assert pool.accounts.get(key("a")).credentials == keys_of("a")
    assert pool.accounts.get(key("a")).cooling_until("another", 5.0) > 5.0
    with pytest.raises(UnknownAccount):
        pool.accounts.replace(account("z"), now=6.0)


def test_an_account_that_is_switched_on_waits_for_its_credential() -> None:
    pool = Pool()
    pool.accounts.add(account("a", enabled=False), now=0.0)
    pool.accounts.replace(account("a"), now=1.0)
    assert pool.shortage(FACTS, now=1.0).may_change


# -- other proxies on the same store


def test_what_other_proxies_have_in_flight_counts() -> None:
    pool = pool_of("a", "b", strategy="least-busy", now=0.0)
    pool.accounts.set_in_flight_remote({key("a"): 2, key("gone"): 9}, now=0.0)
    chosen = [pool.acquire(FACTS, now=0.0).key.label for _ in range(3)]
    assert chosen == ["b", "b", "a"]
    pool.accounts.set_in_flight_remote({}, now=0.0)
    assert pool.acquire(FACTS, now=0.0).key == key("a")
    assert summary(pool.accounts, now=0.0)["in_flight"] == 4, "of this proxy"


def test_who_waits_is_served_when_another_proxy_lets_go() -> None:
    pool = pool_of(account("a", max_concurrent=1), now=0.0)
    pool.accounts.set_shares({key("a"): 0}, now=0.0)
    assert shortage(pool).may_change
    ticket = Ticket(facts=FACTS, give_up_at=10.0)
    pool.admission.wait(ticket, None)
    pool.accounts.set_shares({key("a"): 1}, now=1.0)
    assert ticket.lease is not None


def test_several_proxies_spread_the_interval_between_requests() -> None:
    pool = pool_of(account("a", min_interval_s=5.0))
    pool.accounts.proxies = 3
    pool.release(pool.acquire(FACTS, now=0.0), OK, now=0.0)
    assert pool.pick(FACTS, now=14.9) is None
    assert pool.pick(FACTS, now=15.0) is not None


# -- a credential that may be over


def doubtful(secret: str) -> dict[str, Credential]:
    return {"key": Credential(kind="key", secret=Secret(f"sk-{secret}"), doubtful=True)}


@pytest.mark.parametrize("strategy", POLICIES)
def test_one_that_may_be_over_is_asked_when_nobody_else_can(strategy: str) -> None:
    pool = pool_of(account("a"), account("b", priority=9), strategy=strategy)
    pool.accounts.set_credentials(key("a"), doubtful("a"), now=0.0, problem="why")
    for _ in range(3):
        assert pool.acquire(FACTS, now=0.0).key == key("b")
    pool.health.mark_cooldown(key("b"), rate_limit(60.0), now=0.0)
    lease = pool.acquire(FACTS, now=0.0)
    assert lease.key == key("a")
    pool.release(lease, OK, now=1.0)
    # It has served, so it is as good as any.
    assert pool.accounts.get(key("a")).problem is None
    assert pool.acquire(FACTS, now=61.0).key == key("a")


def test_a_response_to_the_credential_before_ends_no_doubt() -> None:
    pool = pool_of("a")
    late = pool.acquire(FACTS, now=0.0)
    pool.accounts.renewed(key("a"), now=1.0)
    pool.accounts.set_credentials(key("a"), doubtful("new"), now=1.0, problem="why")
    pool.release(late, OK, now=2.0)
    state = pool.accounts.get(key("a"))
    assert (state.doubtful, state.problem) == (True, "why")
    assert pool.health.may_renew(pool.acquire(FACTS, now=3.0), now=3.0)


def test_the_same_may_be_over_again_another_is_judged_anew() -> None:
    pool = pool_of("a", "b")
    pool.accounts.set_credentials(key("a"), doubtful("a"), now=0.0)
    pool.release(pool.acquire(FACTS, now=0.0, only=key("a")), OK, now=0.0)
    pool.accounts.set_credentials(key("a"), doubtful("a"), now=1.0)
    assert not pool.accounts.get(key("a")).is_suspect(None)
    pool.accounts.set_credentials(key("a"), doubtful("a2"), now=2.0)
    assert pool.accounts.get(key("a")).is_suspect(None)
    pool.accounts.set_credentials(key("a"), keys_of("a3"), now=3.0)
    assert not pool.accounts.get(key("a")).is_suspect(None)


# -- whose a credential is


def test_what_is_known_of_an_account_is_not_believed_of_another() -> None:
    pool = pool_of("a")
    one, other = "account_id=1", "account_id=2"
    assert not pool.accounts.identified(key("a"), one, now=0.0)
    pool.health.mark_cooldown(key("a"), rate_limit(3600.0), now=0.0)
    lease_of = pool.accounts.get(key("a"))
    for same in (one, "", "account_id=1;user_id=7"):
        assert not pool.accounts.identified(key("a"), same, now=1.0)
        assert lease_of.cooling_until(None, 1.0) > 1.0
    assert pool.accounts.identified(key("a"), other, now=2.0)
    state = pool.accounts.get(key("a"))
    assert (state.cooldowns, state.credentials, state.source) == ({}, {}, f"/{other}")
    assert not pool.accounts.identified(key("a"), other, now=3.0)
    with pytest.raises(UnknownAccount):
        pool.accounts.identified(key("nobody"), one, now=3.0)


def test_a_strategy_that_stays_keeps_whose_turn_it_is() -> None:
    """An edit of accounts.yaml sets it again."""
    pool = pool_of("a", "b", "c")
    served = [pool.acquire(FACTS, now=0.0).key.label]
    pool.accounts.set_strategy("round-robin", now=0.0)
    served += [pool.acquire(FACTS, now=0.0).key.label for _ in range(2)]
    assert served == ["a", "b", "c"]


def test_why_nobody_can_serve_is_looked_up_again_when_that_changes() -> None:
    pool = pool_of("a", "b")
    for label, seconds in (("a", 60.0), ("b", 30.0)):
        pool.health.mark_cooldown(key(label), rate_limit(seconds), now=0.0)

    def retry_at(now: float) -> float | None:
        with pytest.raises(NoUsableAccount) as nobody:
            pool.acquire(FACTS, now=now)
        return nobody.value.retry_at

    assert retry_at(1.0) == 30.0
    pool.health.mark_cooldown(key("b"), rate_limit(90.0), now=2.0)
    assert retry_at(2.0) == 60.0
    pool.accounts.remove(key("a"), now=3.0)
    assert retry_at(3.0) == 92.0
    # Nothing but the time: who has returned could not be asked before.
    assert pool.shortage(FACTS, now=91.0).retry_at == 92.0
    assert pool.acquire(FACTS, now=92.0).key == key("b")
    assert pool.shortage(FACTS, now=93.0).may_change


# -- how many requests are left


def few_left(pool: Pool, label: str, remaining: float, **changes: Any) -> None:
    told = window(0.1, name="requests", remaining=remaining, reset_at=60.0, **changes)
    pool.observe_headroom(key(label), [told], now=0.0)


def served_by(pool: Pool, facts: RequestFacts = FACTS, now: float = 0.0, **how: Any) -> str:
    return pool.acquire(facts, now=now, **how).key.label


@pytest.mark.parametrize("strategy", ["fill-first", "round-robin"])
def test_no_more_are_in_flight_than_it_said_it_takes(strategy: str) -> None:
    pool = pool_of("a", "b", strategy=strategy)
    few_left(pool, "a", 3)
    assert [served_by(pool) for _ in range(9)].count("a") == 3


def test_who_has_few_left_is_asked_where_no_other_can_serve() -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    few_left(pool, "a", 0)
    few_left(pool, "b", 0)
    assert served_by(pool) == "a"
    assert served_by(pool, avoid=[key("a")]) == "b"


def test_a_conversation_stays_where_few_are_left() -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    few_left(pool, "a", 0)
    assert served_by(pool, only=key("a")) == "a"


def test_few_are_left_of_what_the_request_falls_under_until_it_is_reset() -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    few_left(pool, "a", 0, model="gpt-5")
    assert served_by(pool) == "b"
    assert served_by(pool, replace(FACTS, model="gpt-5-mini")) == "a"
    assert served_by(pool, now=60.0) == "a"


def test_those_in_flight_elsewhere_count() -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    few_left(pool, "a", 3)
    pool.accounts.set_in_flight_remote({key("a"): 3}, now=0.0)
    assert served_by(pool) == "b"


def test_of_many_with_few_left_not_all_are_looked_at() -> None:
    labels = [f"a{n:03}" for n in range(200)]
    pool = pool_of(*labels, strategy="fill-first")
    for label in labels:
        few_left(pool, label, 0)
    looked_at = instructions(lambda: pool.pick(FACTS, now=0.0))
    assert looked_at < 20 * instructions(lambda: pool.pick(FACTS, now=0.0, only=key("a000")))
