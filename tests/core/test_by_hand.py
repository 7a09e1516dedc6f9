"""What a person decides about an account stays until a person decides otherwise."""

from __future__ import annotations

import pytest

from account_pool.core import snapshot
from account_pool.core.account import Account, AccountKey
from account_pool.core.credential import Credential, Secret
from account_pool.core.errors import UnknownAccount
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import BY_HAND, Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.snapshot import FORGIVEN_S, forgiven

KEY = AccountKey("openai", "one")
FACTS = RequestFacts(provider="openai", kind="key", model="gpt-5")
LIMIT = Outcome(cls=OutcomeClass.RATE_LIMIT, scope=Scope.ACCOUNT, cooldown_s=60, signal="429")


def refusal(signal: str) -> Outcome:
    return Outcome(cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.ACCOUNT, signal=signal)


def key(value: str) -> dict[str, Credential]:
    return {"key": Credential(kind="key", secret=Secret(value))}


@pytest.fixture
def pool() -> Pool:
    pool = Pool()
    pool.accounts.add(Account(provider="openai", label="one"), key("sk-fake-one-000"), now=0.0)
    return pool


def test_enabling_ends_a_disabling_and_no_cooldown(pool):
    pool.health.mark_cooldown(KEY, LIMIT, now=0.0)
    pool.health.mark_failure(KEY, refusal("403"), now=0.0)
    pool.accounts.enable(KEY, now=1.0)
    assert pool.accounts.get(KEY).enabled
    assert pool.pick(FACTS, now=1.0) is None
    assert pool.pick(FACTS, now=61.0) is not None


def test_who_waits_goes_on_when_an_account_is_enabled(pool):
    told = []
    pool.health.mark_failure(KEY, refusal(BY_HAND), now=0.0)
    pool.accounts.on_dirty = lambda: told.append(pool.accounts.get(KEY).enabled)
    pool.accounts.enable(KEY, now=1.0)
    assert told == [True]
    assert KEY in pool.accounts.dirty


def test_nobody_is_enabled_by_another_credential(pool):
    pool.health.mark_failure(KEY, refusal(BY_HAND), now=0.0)
    pool.accounts.set_credentials(KEY, key("sk-fake-other-000"), now=1.0)
    assert not pool.accounts.get(KEY).enabled


def test_an_account_that_is_not_there(pool):
    with pytest.raises(UnknownAccount):
        pool.accounts.enable(AccountKey("openai", "nobody"), now=0.0)


@pytest.mark.parametrize(("signal", "kept"), [(BY_HAND, True), ("403 suspended", False)])
def test_a_restart_forgives_what_a_provider_said_long_ago_only(pool, signal, kept):
    pool.health.mark_failure(KEY, refusal(signal), now=0.0)
    later = FORGIVEN_S + 1.0
    saved = forgiven(snapshot.take(pool.accounts, wall_now=0.0, ahead=0.0), later)
    assert (saved.accounts[0].disabled is not None) is kept
