"""Accounts of one owner share what is limited there."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.accounts import Owners
from account_pool.core.errors import NoUsableAccount
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Scope
from tests.core.helpers import FACTS, PROVIDER, key, keys_of, pool_of, quota, rate_limit

A, B, C = key("a"), key("b"), key("c")
SHARED = quota(600.0, shared=True)
OTHER_MODEL = replace(FACTS, model="other")


def test_an_account_has_one_owner() -> None:
    owners = Owners()
    for account in (A, B):
        owners.learn(account, "org-1")
    assert (owners.get(A), owners.others(A), owners.get(C), owners.others(C)) == (
        "org-1",
        [B],
        None,
        [],
    )
    owners.learn(B, "org-2")
    assert (owners.others(A), owners.others(B)) == ([], [])
    owners.forget(A)
    assert owners.get(A) is None


def test_providers_do_not_share_owners() -> None:
    owners = Owners()
    owners.learn(AccountKey("groq", "a"), "org-1")
    owners.learn(AccountKey("openai", "a"), "org-1")
    assert owners.others(AccountKey("groq", "a")) == []


def test_a_shared_limit_covers_every_account_of_the_owner() -> None:
    pool = pool_of("a", "b", "c")
    pool.health.learn_owner(A, "org-1")
    pool.health.learn_owner(B, "org-1")
    pool.health.mark_cooldown(A, SHARED, now=0.0)
    assert pool.acquire(FACTS, now=1.0).key == C
    assert [pool.accounts.get(k).cooling_until(None, 1.0) for k in (A, B)] == [600.0, 600.0]


def test_a_limit_that_is_not_shared_stays_with_its_account() -> None:
    pool = pool_of("a", "b")
    pool.health.learn_owner(A, "org-1")
    pool.health.learn_owner(B, "org-1")
    pool.health.mark_cooldown(A, quota(600.0), now=0.0)
    assert pool.acquire(FACTS, now=1.0).key == B


def test_a_shared_limit_of_a_model_leaves_the_others() -> None:
    pool = pool_of("a", "b")
    pool.health.learn_owner(A, "org-1")
    pool.health.learn_owner(B, "org-1")
    limit = rate_limit(60.0, scope=Scope.MODEL, shared=True)
    pool.health.mark_cooldown(A, limit, now=0.0, model=FACTS.model)
    with pytest.raises(NoUsableAccount):
        pool.acquire(FACTS, now=1.0)
    assert pool.acquire(OTHER_MODEL, now=1.0)


def test_an_owner_that_only_the_refusal_names() -> None:
    """xAI: "Too many requests for team T ..."."""
    pool = pool_of("a", "b")
    limit = rate_limit(60.0, shared=True, owner="team-1")
    pool.health.mark_cooldown(A, limit, now=0.0)
    assert pool.acquire(FACTS, now=1.0).key == B
    pool.health.mark_cooldown(B, limit, now=1.0)
    assert pool.accounts.owners.get(B) == "team-1"
    # From now on one refusal speaks for both.
    pool.accounts.clear_cooldown(A, now=2.0)
    pool.accounts.clear_cooldown(B, now=2.0)
    pool.health.mark_cooldown(B, limit, now=3.0)
    assert pool.accounts.get(A).cooling_until(None, 3.0) == 63.0


def test_a_removed_account_owns_nothing() -> None:
    pool = pool_of("a", "b")
    pool.health.learn_owner(A, "org-1")
    pool.health.learn_owner(B, "org-1")
    pool.accounts.remove(B, now=0.0)
    pool.health.mark_cooldown(A, SHARED, now=0.0)
    pool.health.learn_owner(B, "org-1")
    assert pool.accounts.owners.get(B) is None


def test_an_unknown_model_is_looked_for_again_later() -> None:
    pool = pool_of("a")
    typo = RequestFacts(provider="openai", kind="key", model="gtp-5")
    pool.failures(PROVIDER).refused_by_all(typo, 0.0, missing_model=True)
    asked = [
        pool.failures(PROVIDER).tried_since(facts, now, missing_model=True)
        for facts, now in ((typo, 59.0), (typo, 60.0), (FACTS, 1.0))
    ]
    assert [tried is not None for tried in asked] == [True, False, False]


def test_a_new_credential_may_know_more_models() -> None:
    pool = pool_of("a")
    pool.failures(PROVIDER).refused_by_all(FACTS, 0.0, missing_model=True)
    pool.accounts.set_credentials(A, pool.accounts.get(A).credentials, now=1.0)
    assert pool.failures(PROVIDER).tried_since(FACTS, 1.0, missing_model=True) is not None
    pool.accounts.set_credentials(A, keys_of("new"), now=1.0)
    assert pool.failures(PROVIDER).tried_since(FACTS, 1.0, missing_model=True) is None
