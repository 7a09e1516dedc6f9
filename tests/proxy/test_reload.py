"""accounts.yaml is taken over when it changes; a broken one changes nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import runpy
import threading
from pathlib import Path

import pytest
from mitmproxy import ctx, hooks
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.exceptions import CommandError, OptionsError
from mitmproxy.test import taddons
from msgspec.structs import replace

from account_pool.admin.http import ApiError
from account_pool.config import accounts_file
from account_pool.config.accounts_file import own_file
from account_pool.core.account import Account, AccountKey
from account_pool.core.accounts import summary
from account_pool.core.credential import Secret
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.credentials.sources import AccountEntry, ValueSource
from account_pool.providers import openai
from account_pool.providers.base import Origin
from account_pool.proxy import reload, wiring
from account_pool.proxy.addon import AccountPool
from account_pool.proxy.reload import Watcher, stamp_of
from account_pool.proxy.response_reader import StoredRefusal
from account_pool.proxy.wiring import Changes
from account_pool.store.store import StoreError
from tests.core.helpers import instructions
from tests.patience import PATIENCE_S
from tests.proxy.helpers import service_of

TWO = """
accounts:
  - {provider: openai, label: one, token: sk-fake-one-000}
  - {provider: openai, label: two, token: sk-fake-two-000}
"""
ENTRY = Path(__file__).parents[2] / "addon" / "pool.py"
ONE, SECOND = AccountKey("openai", "one"), AccountKey("openai", "two")
FACTS = RequestFacts(provider="openai", kind="key", model="gpt-5")
FORBIDDEN = Outcome(cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.ACCOUNT)
LIMIT = Outcome(cls=OutcomeClass.QUOTA, scope=Scope.ACCOUNT, cooldown_s=3600.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "accounts.yaml"
    path.touch(mode=0o600)
    path.write_text(TWO)
    return path


@pytest.fixture
async def addon(file, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    with taddons.context(Proxyserver(), NextLayer()) as tctx:
        tctx.options.update(confdir=str(tmp_path))
        addon = AccountPool()
        tctx.options.update_defer(pool_state="memory:", pool_accounts=str(file))
        tctx.master.addons.add(addon)
        tctx.configure(addon)
        addon.running()
        await addon._starting
        yield addon
        addon.done()


def keys(addon) -> list[str]:
    return [str(state.key) for state in addon.service.pool.accounts]


def secret(addon, key) -> str:
    return addon.service.pool.accounts.get(key).credentials["key"].secret.reveal()


async def test_accounts_come_and_go(addon, file):
    file.write_text(TWO.replace("label: one", "label: three") + "pool: {max_wait: 7}\n")
    assert addon.commands.reload() == "added openai/three; removed openai/one"
    assert keys(addon) == ["openai/two", "openai/three"]
    assert secret(addon, AccountKey("openai", "three")) == "sk-fake-one-000"
    assert addon.service.settings.limits.max_wait_s == 7.0


async def test_cooldowns_credentials_and_leases_of_those_that_stay_are_kept(addon, file):
    pool, now = addon.service.pool, addon.service.now()
    pool.health.mark_cooldown(ONE, LIMIT, now=now)
    lease = pool.acquire(FACTS, now=now)
    credential = pool.accounts.get(SECOND).credentials["key"]
    file.write_text(TWO.replace("label: two", "label: two, weight: 3, priority: 2"))
    assert addon.commands.reload() == "changed openai/two"
    assert pool.accounts.get(ONE).cooling_until(None, now) > now + 3000
    state = pool.accounts.get(SECOND)
    assert (state.account.weight, state.in_flight) == (3, 1)
    assert state.credentials["key"] is credential
    pool.release(lease, None, now=now)
    assert pool.accounts.get(SECOND).in_flight == 0


async def test_what_is_read_again_shares_what_is_the_same(addon, file):
    one, second = addon.reloader.load().accounts
    file.write_text("# one line more" + TWO.replace("label: two", "label: two, weight: 3"))
    again, changed = addon.reloader.load().accounts
    assert (again.account is one.account, again.source is one.source) == (True, True)
    assert (changed.account.weight, changed.source is second.source) == (3, True)
    file.write_text(TWO.replace("sk-fake-one-000", "sk-fake-new-000"))
    assert addon.reloader.load().accounts[0].source != one.source


async def test_a_lease_of_an_account_that_goes_ends_in_peace(addon, file):
    pool, now = addon.service.pool, addon.service.now()
    lease = pool.acquire(FACTS, now=now)
    file.write_text(TWO.replace(lease.key.label, "other"))
    addon.commands.reload()
    pool.release(lease, None, now=now)
    assert lease.key.label not in {state.key.label for state in pool.accounts}


async def test_a_token_that_changed_is_used(addon, file):
    file.write_text(TWO.replace("sk-fake-two-000", "sk-fake-new-000"))
    assert addon.commands.reload() == "new credential for openai/two"
    assert secret(addon, SECOND) == "sk-fake-new-000"
    assert addon.commands.reload() == "no account changed"


async def test_what_was_said_of_the_old_token_is_not_said_of_the_new(addon, file):
    pool, service = addon.service.pool, addon.service
    now = service.now()
    pool.health.mark_cooldown(ONE, replace(LIMIT, owner="org-1"), now=now)
    pool.health.mark_failure(SECOND, FORBIDDEN, now=now)
    service.refusals._stored[ONE, False] = StoredRefusal(429, (), b"")
    file.write_text(TWO.replace("-one-", "-first-").replace("-two-", "-second-"))
    assert addon.commands.reload() == "new credential for openai/one, openai/two"
    assert [secret(addon, key) for key in (ONE, SECOND)] == [
        "sk-fake-first-000",
        "sk-fake-second-000",
    ]
    assert summary(pool.accounts, now=service.now())["available"] == 2
    assert pool.accounts.owners.get(ONE) is None
    assert service.refusals.find(ONE) is None


async def test_a_token_that_changed_while_the_account_was_off_is_new(addon, file):
    pool = addon.service.pool
    pool.health.mark_failure(SECOND, FORBIDDEN, now=addon.service.now())
    off = TWO.replace("label: two", "label: two, enabled: false")
    file.write_text(off)
    assert addon.commands.reload() == "changed openai/two"
    file.write_text(TWO.replace("sk-fake-two-000", "sk-fake-new-000"))
    assert addon.commands.reload() == "changed openai/two; new credential for openai/two"
    assert pool.accounts.get(SECOND).enabled
    assert secret(addon, SECOND) == "sk-fake-new-000"


async def test_accounts_are_switched_off_and_on(addon, file):
    pool, now = addon.service.pool, addon.service.now()
    file.write_text(TWO.replace("label: one", "label: one, enabled: false"))
    addon.commands.reload()
    assert not pool.accounts.get(ONE).enabled
    assert {pool.acquire(FACTS, now=now).key for _ in range(2)} == {SECOND}
    file.write_text(TWO)
    addon.commands.reload()
    assert pool.accounts.get(ONE).enabled
    assert secret(addon, ONE) == "sk-fake-one-000"


async def test_what_was_removed_by_hand_is_there_again(addon):
    addon.commands.remove("openai/one")
    assert addon.commands.reload() == "added openai/one"
    assert secret(addon, ONE) == "sk-fake-one-000"


async def test_new_providers_are_ours_and_those_without_accounts_are_not(addon, file):
    assert addon.service.recognizer.claims("api.openai.com", 443)
    file.write_text(
        "accounts: [{provider: gw, label: a, token: sk-fake-a-000}]\n"
        "providers: {gw: {hosts: [llm.example.com]}}\n"
    )
    addon.commands.reload()
    assert addon.service.recognizer.claims("llm.example.com", 443)
    assert not addon.service.recognizer.claims("api.openai.com", 443)


async def test_a_provider_that_changed_sends_its_credential_otherwise(addon, file):
    gateway = "accounts: [{{provider: gw, label: a, token: sk-fake-a-000}}]\n{}\n"
    file.write_text(gateway.format("providers: {gw: {hosts: [a.example]}}"))
    addon.commands.reload()
    pool, service = addon.service.pool, addon.service
    lease = pool.acquire(RequestFacts(provider="gw", kind="key"), now=service.now())
    assert dict(service.swaps.of(service.providers["gw"], lease).headers).keys() == {
        b"authorization"
    }
    file.write_text(
        gateway.format("providers: {gw: {hosts: [a.example], credential: {header: x-key}}}")
    )
    addon.commands.reload()
    assert dict(service.swaps.of(service.providers["gw"], lease).headers).keys() == {b"x-key"}


async def test_an_account_of_one_host_is_sent_there(addon, file):
    file.write_text(
        "accounts: [{provider: openai, label: a, token: sk-fake-a-000, host: 'localhost:9443'}]\n"
        "providers: {openai: {hosts: ['localhost:9443']}}\n"
    )
    addon.commands.reload()
    service = addon.service
    lease = service.pool.acquire(FACTS, now=service.now())
    assert service.swaps.of(service.providers["openai"], lease).origin == Origin("localhost", 9443)


@pytest.mark.parametrize(
    "broken", ["accounts: [", "accounts: [{provider: nobody, label: a, token: x}]", ""]
)
async def test_a_broken_edit_changes_nothing_and_says_so(addon, file, caplog, broken):
    file.write_text(broken)
    await addon.reloader.reload_in_background()
    assert keys(addon) == ["openai/one", "openai/two"]
    assert "the accounts stay as they were" in caplog.text
    assert "accounts.yaml" in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR and r.levelname == "ERROR"]


async def test_a_file_that_is_gone_changes_nothing(addon, file, caplog):
    file.unlink()
    await addon.reloader.reload_in_background()
    assert keys(addon) == ["openai/one", "openai/two"]
    assert "does not exist" in caplog.text


async def test_a_wrong_option_in_the_file_changes_nothing(addon, file, caplog):
    file.write_text("accounts: [{provider: openai, label: x, token: y}]\npool: {gate: -1}\n")
    await addon.reloader.reload_in_background()
    assert keys(addon) == ["openai/one", "openai/two"]


async def test_the_command_says_what_is_wrong(addon, file):
    from mitmproxy import exceptions

    file.write_text(TWO.replace("openai", "opnai", 1))
    with pytest.raises(exceptions.CommandError, match="did you mean openai"):
        addon.commands.reload()
    # The watcher goes on with it.
    assert addon.reloader.watcher.seen is None


async def test_a_login_that_comes_later_gets_a_store(addon, file, tmp_path):
    oauth = "{oauth: {refresh_token: rt-fake, access_token: fake-access, expires_at: 2099-01-01}}"
    file.write_text(TWO + f"  - {{provider: codex, label: plus, account_id: a, token: {oauth}}}\n")
    assert addon.commands.reload() == "added codex/plus"
    refresher = addon.wiring.keeper.context.refresher
    assert refresher is not None
    file.write_text(file.read_text() + "# touched\n")
    addon.commands.reload()
    assert addon.wiring.keeper.context.refresher is refresher


async def test_a_token_that_changed_while_no_proxy_ran_is_new(file, tmp_path, monkeypatch):
    """What the last run learnt of the other account is still there."""
    monkeypatch.chdir(tmp_path)
    cooling = []
    for token in ("sk-fake-two-000", "sk-fake-new-000", "sk-fake-new-000"):
        file.write_text(TWO.replace("sk-fake-two-000", token))
        with taddons.context(Proxyserver(), NextLayer()) as tctx:
            tctx.options.update(confdir=str(tmp_path))
            addon = AccountPool()
            tctx.options.update_defer(pool_accounts=str(file))
            tctx.master.addons.add(addon)
            tctx.configure(addon)
            pool, now = addon.service.pool, addon.service.now()
            cooling.append([key.label for key in (ONE, SECOND) if pool.accounts.get(key).cooldowns])
            for key in (ONE, SECOND):
                pool.health.mark_cooldown(key, LIMIT, now=now)
            tctx.master.should_exit.set()
            addon.done()
    assert cooling == [[], ["one"], ["one", "two"]]


# -- pool.py is reloaded


def reload_script(addon) -> AccountPool:
    """What mitmproxy does when pool.py was written."""
    manager = ctx.master.addons
    manager.remove(addon)
    (again,) = runpy.run_path(str(ENTRY))["addons"]
    manager.add(again)
    manager.invoke_addon_sync(again, hooks.ConfigureHook(set(ctx.options.keys())))
    manager.invoke_addon_sync(again, hooks.RunningHook())
    return again


async def test_a_reload_of_the_script_keeps_all_there_is(addon, file, caplog):
    service, pool, now = addon.service, addon.service.pool, addon.service.now()
    pool.health.mark_cooldown(ONE, LIMIT, now=now)
    lease = pool.acquire(FACTS, now=now)
    service.sessions.bind("a", SECOND, now)
    service.pins.remember(SECOND, "resp_1", service.wall_now())
    ctx.options.update(pool_max_attempts=3)
    again = reload_script(addon)
    for _ in range(3):
        await asyncio.sleep(0)  # whoever was dropped for good would end now
    assert again.service is service
    assert service.settings.limits.max_attempts == 3
    assert pool.accounts.get(ONE).cooling_until(None, now) > now + 3000
    assert pool.accounts.get(SECOND).in_flight == 1
    assert service.sessions.peek("a", now).account == SECOND
    assert service.pins.owner("openai", "resp_1") == SECOND
    pool.release(lease, Outcome(cls=OutcomeClass.OK, scope=Scope.NONE), now=now)
    assert (pool.accounts.get(SECOND).in_flight, pool.accounts.get(SECOND).served) == (0, 1)
    await again._reading
    assert "reloaded: no account changed" in caplog.text
    # The keeper and the file are still looked after.
    assert not again._watching.done()
    file.write_text(TWO.replace("sk-fake-two-000", "sk-fake-new-000"))
    assert again.commands.reload() == "new credential for openai/two"
    assert secret(again, SECOND) == "sk-fake-new-000"


async def test_an_option_given_at_the_start_is_still_given_after_a_reload_of_the_script(
    addon, tmp_path
):
    assert "pool_state" in addon.wiring.at_start
    assert "pool_state" in reload_script(addon).wiring.at_start


async def test_a_script_that_is_taken_away_ends(addon):
    ctx.master.addons.remove(addon)
    kept = addon.wiring.persistence
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert kept._stopped
    assert addon._watching.cancelled()
    assert reload.carried_over(AccountPool) is None


async def test_at_the_end_nobody_waits(addon):
    ctx.master.should_exit.set()
    addon.done()
    assert addon.wiring.persistence._stopped


# -- noticing it


async def test_only_a_written_file_is_noticed(tmp_path):
    path = tmp_path / "accounts.yaml"
    path.write_text("a")
    written = []
    steps = iter(("nothing", "write", "nothing", "replace", "remove", "end"))

    async def note() -> None:
        written.append(stamp_of(path))

    async def sleep(_seconds: float) -> None:
        match next(steps):
            case "write":
                path.write_text("longer")
            case "replace":
                (tmp_path / "new").write_text("longer")
                (tmp_path / "new").replace(path)
            case "remove":
                path.unlink()
            case "end":
                raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await Watcher(lambda: stamp_of(path), note, stamp_of(path), sleep).run()
    assert len(written) == 3
    assert written[-1] is None


async def test_what_could_not_be_taken_over_is_read_again(tmp_path):
    """An unexpected error is no reason to stay with the old accounts until the next change."""
    tries = []

    async def fail() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise MemoryError

    async def sleep(_seconds: float) -> None:
        if len(tries) == 3:
            raise asyncio.CancelledError

    watcher = Watcher(lambda: "new", fail, "old", sleep)
    for error in (MemoryError, MemoryError, asyncio.CancelledError):
        with pytest.raises(error):
            await watcher.run()
    assert watcher.seen == "new"


async def test_what_fails_is_tried_again_and_logged_once(addon, file, caplog, monkeypatch):
    """Nothing need change in the file: the disk or the database may have been the reason."""
    monkeypatch.setattr(reload, "RETRY_S", 0.0)
    addon._watching.cancel()
    reloader, wiring = addon.reloader, addon.wiring
    take_over, tries = wiring.take_over, []

    def take_over_later(loaded):
        tries.append(loaded)
        if len(tries) < 3:
            raise StoreError("the state database is locked")
        return take_over(loaded)

    monkeypatch.setattr(wiring, "take_over", take_over_later)
    reloader.watcher = Watcher(
        reloader.file.stamps,
        reloader.reload_in_background,
        reloader.file.read,
        lambda _seconds: asyncio.sleep(0),
    )
    file.write_text(TWO.replace("label: one", "label: three"))
    watching = asyncio.create_task(reloader.watcher.run())
    async with asyncio.timeout(PATIENCE_S):
        while keys(addon) != ["openai/two", "openai/three"]:
            await asyncio.sleep(0)
    watching.cancel()
    assert len(tries) == 3
    assert caplog.text.count("the state database is locked") == 1
    assert caplog.text.count("the accounts stay as they were") == 1


async def test_what_was_written_and_not_taken_over_is_read_again(addon, file, monkeypatch):
    def fail(_loaded):
        raise StoreError("the state database is locked")

    addon._watching.cancel()
    file.write_text(TWO.replace("label: one", "label: three"))
    monkeypatch.setattr(addon.wiring, "take_over", fail)
    with pytest.raises(ApiError):
        await addon.reloader.read_written()
    assert addon.reloader.watcher.seen != addon.reloader.file.stamps()


async def test_another_path_is_another_file(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    written = []

    async def note() -> None:
        written.append(1)

    async def sleep(_seconds: float) -> None:
        if written:
            raise asyncio.CancelledError
        paths.pop(0)

    with pytest.raises(asyncio.CancelledError):
        await Watcher(lambda: paths[0], note, paths[0], sleep).run()


@pytest.mark.parametrize("when", ["read", "started"])
async def test_what_is_written_while_the_proxy_starts_is_noticed(file, monkeypatch, when):
    """After the accounts were read, and before the file is looked at for the first time."""
    monkeypatch.setattr(reload, "LOOK_S", 0.0)
    real, reads = accounts_file.load_found, []

    def load_found(*given):
        reads.append(loaded := real(*given))
        if when == "read" and len(reads) == 1:
            file.write_text(TWO.replace("two", "renamed"))
        return loaded

    monkeypatch.setattr(accounts_file, "load_found", load_found)
    with taddons.context(Proxyserver(), NextLayer()) as tctx:
        tctx.options.update(confdir=str(file.parent))
        addon = AccountPool()
        tctx.master.addons.add(addon)
        tctx.configure(addon, pool_accounts=str(file))
        if when == "started":
            file.write_text(TWO.replace("two", "renamed"))
        addon.running()
        async with asyncio.timeout(PATIENCE_S):
            while "openai/renamed" not in keys(addon):
                await asyncio.sleep(0)
        tctx.master.addons.remove(addon)


# -- a disk or share that does not answer


@pytest.fixture
def hangs(monkeypatch):
    """Have each look into the file hang until it is set."""
    goes_on, real = threading.Event(), accounts_file.load_found

    def load_found(*given):
        assert goes_on.wait(PATIENCE_S)
        return real(*given)

    monkeypatch.setattr(accounts_file, "load_found", load_found)
    yield goes_on
    goes_on.set()


def test_a_start_does_not_wait_for_ever(file, tmp_path, monkeypatch, caplog, hangs):
    monkeypatch.setattr(reload, "START_S", 0.01)
    with taddons.context(Proxyserver(), NextLayer()) as tctx:
        tctx.options.update(confdir=str(tmp_path))
        addon = AccountPool()
        tctx.master.addons.add(addon)
        tctx.configure(addon, pool_accounts=str(file))
        assert addon._failed
        assert f"{file}: it was not read in time; check the disk or share" in caplog.text
        assert gc.isenabled()


async def test_a_file_that_hangs_changes_nothing_and_is_read_once_it_answers(
    addon, file, caplog, monkeypatch, hangs
):
    monkeypatch.setattr(reload, "READ_S", 0.01)
    monkeypatch.setattr(reload, "BY_HAND_S", 0.01)
    addon._watching.cancel()
    file.write_text(TWO.replace("label: one", "label: three"))
    readings = threading.active_count()
    for _ in range(3):
        await addon.reloader.reload_in_background()
        with pytest.raises(CommandError, match="it was not read in time"):
            addon.commands.reload()
    assert threading.active_count() <= readings + 1
    assert "the accounts stay as they were" in caplog.text
    assert keys(addon) == ["openai/one", "openai/two"]
    hangs.set()
    monkeypatch.setattr(reload, "READ_S", PATIENCE_S)
    async with asyncio.timeout(PATIENCE_S):
        while keys(addon) != ["openai/two", "openai/three"]:
            await addon.reloader.reload_in_background()
            await asyncio.sleep(0)


async def test_a_look_that_hangs_is_told_and_goes_on(monkeypatch, caplog):
    monkeypatch.setattr(reload, "READ_S", 0.01)
    answers, written = threading.Event(), asyncio.Event()

    def look():
        return answers.wait(PATIENCE_S)

    async def note():
        written.set()

    watcher = Watcher(look, note, None, lambda _seconds: asyncio.sleep(0))
    watching = asyncio.create_task(watcher.run())
    async with asyncio.timeout(PATIENCE_S):
        while "does not answer; the accounts stay as they are" not in caplog.text:
            await asyncio.sleep(0)
        answers.set()
        await written.wait()
    watching.cancel()
    assert caplog.text.count("does not answer") == 1


def test_changes_are_one_line():
    assert str(Changes(added=(ONE, SECOND), changed=(ONE,))) == (
        "added openai/one, openai/two; changed openai/one"
    )


async def test_a_file_that_comes_later_takes_the_place_of_the_environment(
    tmp_path, monkeypatch, caplog
):
    # The user's own: what appears in the working directory would have to be confirmed.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-fake-env-000")
    with taddons.context(Proxyserver(), NextLayer()) as tctx:
        tctx.options.update(confdir=str(tmp_path))
        addon = AccountPool()
        tctx.master.addons.add(addon)
        tctx.configure(addon)
        addon.running()
        await addon._starting
        assert "openai/default" in keys(addon)
        own_file().parent.mkdir(parents=True)
        own_file().write_text(TWO)
        await addon.reloader.reload_in_background()
        assert keys(addon) == ["openai/one", "openai/two"]
        addon.done()


# -- several at once


async def test_what_was_read_earlier_does_not_win_over_what_was_read_later(addon, file, caplog):
    """A home directory may be slow: the one that began first ends last."""
    real, slow, go_on = addon.reloader.load, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def load():
        loaded = real()
        if not slow.is_set():
            loop.call_soon_threadsafe(slow.set)
            assert go_on.wait(PATIENCE_S)
        return loaded

    addon.reloader.load = load
    first = asyncio.create_task(addon.reloader.reload_in_background())
    async with asyncio.timeout(PATIENCE_S):
        await slow.wait()
    file.write_text(TWO.replace("label: one", "label: three"))
    assert addon.commands.reload() == "added openai/three; removed openai/one"
    caplog.clear()
    go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        await first
    assert keys(addon) == ["openai/two", "openai/three"]
    assert caplog.messages == []


async def test_a_mistake_that_was_read_earlier_is_not_told_either(addon, file, caplog):
    slow, go_on = asyncio.Event(), threading.Event()
    real, loop = addon.reloader.load, asyncio.get_running_loop()

    def load():
        if slow.is_set():
            return real()
        loop.call_soon_threadsafe(slow.set)
        assert go_on.wait(PATIENCE_S)
        raise OptionsError("a mistake")

    addon.reloader.load = load
    first = asyncio.create_task(addon.reloader.reload_in_background())
    async with asyncio.timeout(PATIENCE_S):
        await slow.wait()
    # As POST /account-pool/add does.
    await addon.reloader.read_written()
    caplog.clear()
    go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        await first
    assert caplog.messages == []


async def test_what_is_removed_while_the_file_is_read_does_not_come_back(addon):
    slow, go_on = asyncio.Event(), threading.Event()
    real, loop = addon.reloader.load, asyncio.get_running_loop()

    def load():
        loaded = real()
        loop.call_soon_threadsafe(slow.set)
        assert go_on.wait(PATIENCE_S)
        return loaded

    addon.reloader.load = load
    reading = asyncio.create_task(addon.reloader.reload_in_background())
    async with asyncio.timeout(PATIENCE_S):
        await slow.wait()
    addon.commands.remove("openai/one")
    go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        await reading
    assert keys(addon) == ["openai/two"]
    addon.reloader.load = real
    assert addon.commands.reload() == "added openai/one"


def test_what_has_not_changed_is_taken_over_in_one_pass() -> None:
    """The event loop stands still meanwhile, for all accounts of a file."""
    entries = [
        AccountEntry(
            Account(provider="openai", label=f"a{number}"),
            ValueSource(Secret(f"sk-fake-{number}"), {}),
            openai.PROVIDER,
        )
        for number in range(200)
    ]
    service = service_of("gone")
    changes = wiring.update_pool(service, entries)
    assert (len(changes.added), changes.removed) == (200, (AccountKey("openai", "gone"),))
    # Another line of the file, as after an edit further up.
    moved = [replace(entry, line=7) for entry in entries]
    cost = instructions(lambda: wiring.update_pool(service, moved))
    assert cost / len(entries) < 45
    assert wiring.update_pool(service, moved) == Changes()
