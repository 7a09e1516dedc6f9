"""What a person can ask of the pool and tell it."""

from __future__ import annotations

import asyncio
from contextlib import closing

import pytest
from mitmproxy import exceptions
from mitmproxy.test import taddons
from mitmproxy.tools.console.commander.commander import CommandBuffer
from msgspec.structs import replace

from account_pool.core import headroom
from account_pool.core.attempts import Attempts
from account_pool.core.credential import Credential, Secret
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.steps import Limits
from account_pool.proxy import decision_log
from account_pool.proxy.addon import AccountPool
from account_pool.proxy.commands import Commands
from account_pool.proxy.reload import Reloader
from account_pool.proxy.wiring import Wiring
from account_pool.store.machine import Moment
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.store import StoreError
from tests.proxy.helpers import FakeClock, account, secret, service_of

FACTS = RequestFacts(provider="openai", kind="key", model="gpt-5")
LIMIT = Outcome(cls=OutcomeClass.RATE_LIMIT, scope=Scope.ACCOUNT, cooldown_s=30.0, signal="429")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(clock):
    return service_of("one", "two", account("off", enabled=False), clock=clock)


def commands_of(service) -> Commands:
    return Commands(service, Reloader(Wiring(service)))


@pytest.fixture
def call(service, clock):
    """Call a command by its name with texts, as mitmproxy's prompt does."""
    with taddons.context() as tctx:
        tctx.master.commands.collect_commands(commands_of(service))
        yield lambda name, *args: tctx.master.commands.call_strings(name, list(args))


def keys() -> dict[str, Credential]:
    return {"key": Credential(kind="key", secret=Secret(secret("two")))}


def key(service, label):
    return next(s.key for s in service.pool.accounts if s.key.label == label)


def test_commands_are_there_with_help():
    with taddons.context(AccountPool()) as tctx:
        names = {n for n in tctx.master.commands.commands if n.startswith("pool.")}
        assert names >= {
            "pool.status",
            "pool.next",
            "pool.cooldown",
            "pool.clear",
            "pool.remove",
        }
        for name in names:
            assert tctx.master.commands.commands[name].help


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pool.next ", ["openai"]),
        ("pool.clear ", ["openai/off", "openai/one", "openai/two"]),
        ("pool.clear openai/t", ["openai/two"]),
        ("pool.remove openai/o", ["openai/off", "openai/one"]),
        ("pool.cooldown openai/on", ["openai/one"]),
    ],
)
def test_providers_and_accounts_are_completed(service, typed, offered):
    with taddons.context() as tctx:
        tctx.master.commands.collect_commands(commands_of(service))
        prompt = CommandBuffer(tctx.master, typed)
        seen = []
        for _ in offered:
            prompt.cycle_completion()
            seen.append(prompt.text.split()[-1])
        assert sorted(seen) == offered


def test_status(call, service, clock):
    lease = service.pool.acquire(FACTS, now=clock.now())
    quota = Outcome(
        cls=OutcomeClass.QUOTA,
        scope=Scope.ACCOUNT,
        cooldown_s=3600.0,
        signal="429 code=insufficient_quota",
        evidence={"retry-after": "3600"},
    )
    service.pool.health.mark_cooldown(key(service, "two"), quota, now=clock.now())
    lines = call("pool.status")
    assert lines[:6] == [
        "account     state                   in flight  served  sessions  left  why",
        "openai/one  available               1          0       0         -",
        "openai/two  on cooldown for 60 min  0          0       0         -     "
        "429 code=insufficient_quota; retry-after: 3600",
        "openai/off  off                     0          0       0         -     "
        "enabled: false in accounts.yaml",
        "",
        "last decisions, newest first:",
    ]
    (decision,) = lines[6:]
    assert decision.endswith(
        "cooldown  openai/two: 429 quota, on cooldown for 60 min, by a refusal "
        "(429 code=insufficient_quota; retry-after: 3600)"
    )
    assert secret("one") not in str(lines)
    service.pool.release(lease, None, now=clock.now())


def test_status_of_one_model_of_a_full_and_of_a_disabled_account(call, service, clock):
    limit = Outcome(cls=OutcomeClass.RATE_LIMIT, scope=Scope.MODEL, cooldown_s=30, signal="429")
    service.pool.health.mark_cooldown(key(service, "one"), limit, now=clock.now(), model="gpt-5")
    refused = Outcome(cls=OutcomeClass.AUTH_INVALID, scope=Scope.ACCOUNT, signal="401")
    service.pool.health.mark_failure(key(service, "two"), refused, now=clock.now())
    clock.advance(3)
    _, one, two, *_ = call("pool.status")
    assert "available" in one
    assert "gpt-5 on cooldown for 27 s: 429" in one
    assert "disabled 3 s ago" in two
    service.pool.accounts.set_credentials(
        key(service, "one"), {}, now=clock.now(), problem="no such file"
    )
    assert "no such file" in call("pool.status")[1]


def test_status_shows_conversations_what_is_left_and_who_waits(call, service, clock):
    one = key(service, "one")
    for name in ("s", "t"):
        service.sessions.bind(name, one, clock.now())
    week = headroom.Window("7d", 0.62, clock.now(), reset_at=clock.now() + 9000.0)
    service.pool.observe_headroom(one, [week], now=clock.now())
    for label in ("one", "two"):
        service.pool.health.mark_cooldown(key(service, label), LIMIT, now=clock.now())
    attempts = Attempts(
        pool=service.pool, facts=FACTS, limits=Limits(max_wait_s=60), chance=lambda: 0.0
    )
    attempts.begin(clock.now())
    lines = call("pool.status")
    assert lines[1].split()[5:10] == ["s", "0", "0", "2", "7d"]
    assert "62%" in lines[1]
    assert "1 waiting now:" in lines
    assert "openai: a request is waiting, at most 60 s (no usable account of 3" in str(lines)


def test_status_says_how_cooldowns_ended(call, service, clock):
    one = key(service, "one")
    service.pool.health.mark_cooldown(one, LIMIT, now=clock.now())
    service.pool.health.mark_cooldown(one, LIMIT, now=clock.now())
    clock.advance(60)
    service.pool.health.mark_cooldown(one, LIMIT, now=clock.now())
    clock.advance(5)
    call("pool.clear", "openai/one")
    _, again, second, first = call("pool.status")[-4:]
    assert "release   openai/one: back in use, 25 s early, by hand" in again
    assert second.endswith("[ended after 5 s, by hand]")
    assert first.endswith("[2 times] [over]")


def test_status_shows_what_other_proxies_have_decided(call, service, clock, tmp_path):
    other = service_of("one", "two", clock=clock)
    other.fleet.port = 8081

    def moment() -> Moment:
        return Moment("one", clock.now(), clock.wall_now())

    with closing(SqliteState(tmp_path / "pool.sqlite", clock=moment)) as store:
        other.pool.health.mark_cooldown(key(other, "two"), LIMIT, now=clock.now())
        other.decided.write(store)
        clock.advance(1)
        service.pool.health.mark_cooldown(key(service, "one"), LIMIT, now=clock.now())
        assert "openai/two" not in "".join(call("pool.status")[-1:]), "nothing was read yet"
        service.decided.sync(store)
        clock.advance(20)
        other.pool.accounts.clear_cooldown(key(other, "two"), now=clock.now())
        clock.advance(20)
        other.decided.write(store)
        service.decided.sync(store)
    freed, mine, theirs = call("pool.status")[-3:]
    name = f" [{other.fleet.name}]"
    assert "openai/two: back in use" in freed and freed.endswith(name)
    assert "openai/one: 429" in mine and mine.endswith(" [over]")
    assert "openai/two: 429" in theirs and theirs.endswith(f" [ended after 21 s, by hand]{name}")
    assert not [line for line in call("pool.status", "openai/one") if "8081" in line]


async def test_what_others_decide_is_read_without_a_command(service, clock, monkeypatch):
    asked: list[object] = []

    async def ask(question: object) -> None:
        asked.append(question)
        if len(asked) == 1:
            raise StoreError("it is away")
        raise asyncio.CancelledError

    monkeypatch.setattr(decision_log, "BEAT_S", 0.0)
    with pytest.raises(asyncio.CancelledError):
        await service.decided.keep_read(ask)
    assert asked == [service.decided.sync] * 2


@pytest.mark.parametrize(
    ("only", "shown"),
    [
        ("openai/two", ["openai/two"]),
        (" OpenAI ", ["openai/one", "openai/two", "openai/off"]),
        ("OpenAI/ Two ", ["openai/two"]),
    ],
)
def test_status_of_some(call, service, clock, only, shown):
    for label in ("one", "two"):
        service.pool.health.mark_cooldown(key(service, label), LIMIT, now=clock.now())
    lines = call("pool.status", only)
    table = lines[1 : lines.index("")]
    assert [line.split()[0] for line in table] == shown
    assert ("cooldown  openai/one" in str(lines)) is ("openai/one" in shown)


def test_a_model_a_client_has_named_forges_no_line(call, service, clock):
    forged = "m\nopenai/forged  available"
    limit = replace(LIMIT, scope=Scope.MODEL)
    service.pool.health.mark_cooldown(key(service, "one"), limit, now=clock.now(), model=forged)
    assert "m?openai/forged  available on cooldown for 30 s" in call("pool.status")[1]
    assert all(line.isprintable() for line in call("pool.status"))


def test_status_of_one_account_is_whole(call, service, clock):
    evidence = {f"x-ratelimit-{number}": "0" for number in range(5)}
    limit = replace(LIMIT, cooldown_s=None, evidence=evidence)
    service.pool.health.mark_cooldown(key(service, "one"), limit, now=clock.now())
    assert call("pool.status")[1].endswith("x-ratelimit-2: 0; no reset was named")
    assert call("pool.status", "openai/one")[1].endswith("x-ratelimit-4: 0; no reset was named")


@pytest.mark.parametrize("only", ["nobody", "openai/nobody", "openai/", "/one"])
def test_status_of_nobody_is_a_users_mistake(call, only):
    with pytest.raises(exceptions.CommandError, match="accounts are: openai/one, openai/two"):
        call("pool.status", only)


def test_status_of_an_empty_pool():
    addon = AccountPool()
    assert addon.commands.status() == ["the pool has no account"]


def test_next(call, service, clock):
    service.pool.accounts.remove(key(service, "two"), now=clock.now())
    service.pool.accounts.add(account("two"), keys(), now=clock.now())
    assert call("pool.next", "openai") == "openai/two"


@pytest.mark.parametrize("provider", ["nobody", ""])
def test_next_of_nobody(call, provider):
    with pytest.raises(exceptions.CommandError):
        call("pool.next", provider)


def test_cooldown_and_clear(call, service, clock):
    call("pool.cooldown", "openai/one", "90")
    assert "on cooldown for 90 s" in call("pool.status")[1]
    assert "by hand" in call("pool.status")[1]
    call("pool.clear", "openai/one")
    assert "available" in call("pool.status")[1]


def test_clear_enables_again(call, service, clock):
    refused = Outcome(cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.ACCOUNT, signal="403")
    service.pool.health.mark_failure(key(service, "one"), refused, now=clock.now())
    call("pool.clear", "openai/one")
    assert "available" in call("pool.status")[1]


def test_remove(call, service):
    call("pool.remove", "openai/one")
    assert "openai/one" not in str(call("pool.status"))
    with pytest.raises(exceptions.CommandError, match="Invalid choice"):
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
    assert "openai/one" in call("pool.status")[1]
