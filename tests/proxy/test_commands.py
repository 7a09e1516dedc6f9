"""What a person can ask of the pool and tell it."""

from __future__ import annotations

import pytest
from mitmproxy import exceptions
from mitmproxy.test import taddons

from account_pool.core.credential import Credential, Secret
from account_pool.core.lease import Facts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.proxy.addon import AccountPool
from tests.proxy.helpers import FakeClock, account, secret, service_of

FACTS = Facts(provider="openai", kind="key", model="gpt-5")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(clock):
    return service_of("one", "two", account("off", enabled=False), clock=clock)


@pytest.fixture
def call(service, clock):
    """Call a command by its name with texts, as mitmproxy's prompt does."""
    addon = AccountPool()
    addon.service = service
    with taddons.context() as tctx:
        tctx.master.commands.collect_commands(addon)
        yield lambda name, *args: tctx.master.commands.call_strings(name, list(args))


def keys() -> dict[str, Credential]:
    return {"key": Credential(kind="key", secret=Secret(secret("two")))}


def key(service, label):
    return next(s.key for s in service.pool.accounts() if s.key.label == label)


def test_commands_are_there_with_help(call):
    addon = AccountPool()
    with taddons.context() as tctx:
        tctx.master.commands.collect_commands(addon)
        names = {n for n in tctx.master.commands.commands if n.startswith("pool.")}
        assert names >= {"pool.status", "pool.next", "pool.cooldown", "pool.clear", "pool.remove"}
        for name in names:
            assert tctx.master.commands.commands[name].help


def test_status(call, service, clock):
    lease = service.pool.acquire(FACTS, now=clock.now())
    quota = Outcome(
        cls=OutcomeClass.QUOTA,
        scope=Scope.ACCOUNT,
        cooldown_s=3600.0,
        signal="429 code=insufficient_quota",
        evidence={"retry-after": "3600"},
    )
    service.pool.mark_cooldown(key(service, "two"), quota, now=clock.now())
    one, two, off = call("pool.status").splitlines()
    assert "openai/one" in one
    assert "available" in one
    assert "1 in flight" in one
    assert "cools 60 min" in two
    assert "429 code=insufficient_quota (retry-after: 3600)" in two
    assert "enabled: false" in off
    assert secret("one") not in call("pool.status")
    service.pool.release(lease, None, now=clock.now())


def test_status_of_one_model_of_a_full_and_of_a_disabled_account(call, service, clock):
    limit = Outcome(cls=OutcomeClass.RATE_LIMIT, scope=Scope.MODEL, cooldown_s=30, signal="429")
    service.pool.mark_cooldown(key(service, "one"), limit, now=clock.now(), model="gpt-5")
    refused = Outcome(cls=OutcomeClass.AUTH_INVALID, scope=Scope.ACCOUNT, signal="401")
    service.pool.mark_failure(key(service, "two"), refused, now=clock.now())
    one, two, _ = call("pool.status").splitlines()
    assert "available" in one
    assert "gpt-5 cools 30 s: 429" in one
    assert "disabled" in two
    service.pool.set_credentials(key(service, "one"), {}, now=clock.now(), problem="no such file")
    assert "no such file" in call("pool.status")


def test_status_of_an_empty_pool():
    addon = AccountPool()
    assert addon.status() == "the pool has no account"


def test_next(call, service, clock):
    service.pool.remove(key(service, "two"))
    service.pool.add(account("two"), keys(), now=clock.now())
    assert call("pool.next", "openai") == "openai/two"


@pytest.mark.parametrize("provider", ["nobody", ""])
def test_next_of_nobody(call, provider):
    with pytest.raises(exceptions.CommandError):
        call("pool.next", provider)


def test_cooldown_and_clear(call, service, clock):
    call("pool.cooldown", "OpenAI/ One ", "90")
    assert "cools 90 s" in call("pool.status")
    assert "by hand" in call("pool.status")
    call("pool.clear", "openai/one")
    assert "cools" not in call("pool.status")


def test_clear_enables_again(call, service, clock):
    refused = Outcome(cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.ACCOUNT, signal="403")
    service.pool.mark_failure(key(service, "one"), refused, now=clock.now())
    call("pool.clear", "openai/one")
    assert "disabled" not in call("pool.status")


def test_remove(call, service):
    call("pool.remove", "openai/one")
    assert "openai/one" not in call("pool.status")
    with pytest.raises(exceptions.CommandError, match="not in the pool"):
        call("pool.remove", "openai/one")


@pytest.mark.parametrize("name", ["pool.clear", "pool.remove"])
@pytest.mark.parametrize("text", ["", "openai", "openai/", "/one", "openai/nobody"])
def test_a_wrong_key_is_a_users_mistake(call, name, text):
    with pytest.raises(exceptions.CommandError):
        call(name, text)


@pytest.mark.parametrize("seconds", ["0", "-3", "soon", "1.5", ""])
def test_wrong_seconds_are_a_users_mistake(call, seconds):
    with pytest.raises(exceptions.CommandError):
        call("pool.cooldown", "openai/one", seconds)


def test_absurdly_long_cooldowns_do_not_break_anything(call):
    call("pool.cooldown", "openai/one", str(10**12))
    assert "openai/one" in call("pool.status")
