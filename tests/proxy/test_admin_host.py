"""The admin pages on a real addon: what they change, and what they cost those who do not look."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from mitmproxy import exceptions
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.test import taddons

from account_pool.admin.auth import TOKEN_FILE
from account_pool.proxy.addon import AccountPool
from account_pool.proxy.events import Pause
from tests.admin.helpers import admin_request, told

TWO = (
    "accounts:\n  - {provider: openai, label: one, token: sk-fake-one-000}\n"
    "  - {provider: openai, label: two, token: sk-fake-two-000}\n"
)


@pytest.fixture
async def start(tmp_path, monkeypatch, caplog):
    """Start the addon in a folder of its own; what is given is accounts.yaml."""
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NEW_KEY", "sk-fake-new-000")
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY",
                 "GITHUB_TOKEN", "GH_TOKEN"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    made: list[AccountPool] = []
    with taddons.context(Proxyserver(), NextLayer()) as tctx:

        async def build(accounts: str | None = TWO, **options) -> AccountPool:
            if accounts is not None:
                (tmp_path / "accounts.yaml").touch(mode=0o600)
                (tmp_path / "accounts.yaml").write_text(accounts, encoding="utf-8")
            tctx.options.update(confdir=str(tmp_path))
            if made:
                tctx.master.addons.remove(made[-1])
                await asyncio.sleep(0)  # it waits so long whether it is wanted again
            addon = AccountPool()
            made.append(addon)
            named = {"pool_accounts": "accounts.yaml"} if accounts is not None else {}
            tctx.options.update_defer(**(named | options))
            tctx.master.addons.add(addon)
            tctx.configure(addon)
            addon.running()
            await addon._starting
            return addon

        yield build
        made[-1]._end()


async def ask(addon: AccountPool, path: str, body=None):
    """Ask as the stream does: a pause of the addon."""
    token = (Path.cwd() / TOKEN_FILE).read_text().strip()
    pause = Pause(admin_request(path, body, token=token))
    await addon.pool_pause(pause)
    assert pause.failed is None
    return told(pause.reply)


def keys(addon: AccountPool) -> list[str]:
    return [str(state.key) for state in addon.service.pool.accounts]


def named(label: str) -> dict[str, str]:
    return {"provider": "openai", "label": label}


async def test_an_addition_counts_at_once(start, tmp_path, caplog):
    addon = await start()
    added = await ask(addon, "/account-pool/add", {**named("new"), "token": "sk-fake-new-000"})
    assert (added["written_to"], added["account"]["state"]) == ("accounts.yaml", "available")
    assert "token: sk-fake-new-000" in (tmp_path / "accounts.yaml").read_text()
    # Who has written the file himself does not read it again.
    assert addon.reloader.watcher.seen[0][1] is not None
    assert addon.reloader.watcher.seen == addon.reloader.file.stamps()
    assert "added openai/new (accounts.yaml)" in caplog.text
    assert "reloaded" not in caplog.text


async def test_the_first_account_of_a_pool_without_any(start, tmp_path):
    addon = await start(None)
    assert keys(addon) == []
    body = {**named("new"), "token": "sk-fake-new-000"}
    assert (await ask(addon, "/account-pool/add", body))["written_to"] == "store"
    assert keys(addon) == ["openai/new"]
    assert addon.service.recognizer.claims("api.openai.com", 443)
    again = await start(None)
    assert keys(again) == ["openai/new"]


async def test_who_was_removed_stays_away_while_others_come(start, tmp_path):
    """Where the file must not be changed he comes back with the next reading by hand."""
    addon = await start(pool_state="memory:")
    (tmp_path / "accounts.yaml").chmod(0o400)
    removed = await ask(addon, "/account-pool/remove", named("one"))
    assert removed == {"removed": "openai/one", "written_to": None}
    body = {**named("new"), "token": "sk-fake-new-000"}
    assert (await ask(addon, "/account-pool/add", body))["written_to"] == "memory"
    assert keys(addon) == ["openai/two", "openai/new"]
    folder = addon.reloader.added.path.parent
    addon.commands.reload()
    assert "openai/one" in keys(addon)
    addon._end()
    assert not folder.exists()


async def test_a_mistake_elsewhere_in_the_file_is_told(start, tmp_path):
    addon = await start()
    (tmp_path / "accounts.yaml").write_text(TWO + "pool: {strategi: x}\n")
    body = {**named("new"), "token": "sk-fake-new-000"}
    answer = await ask(addon, "/account-pool/add", body)
    assert answer["error"]["code"] == "not_taken"
    assert "strategi" in answer["error"]["message"]
    assert "sk-fake" not in json.dumps(answer)
    assert keys(addon) == ["openai/one", "openai/two"]


async def test_disabled_by_hand_outlives_a_restart(start, caplog):
    addon = await start()
    await ask(addon, "/account-pool/disable", named("one"))
    again = await start(None)
    pool = await ask(again, "/account-pool")
    assert [account["state"] for account in pool["accounts"]] == ["disabled", "available"]
    await ask(again, "/account-pool/enable", named("one"))
    assert next(iter(again.service.pool.accounts)).enabled


async def test_the_command(start, tmp_path):
    addon = await start()
    assert (
        addon.commands.add("openai", "New", "env:NEW_KEY") == "openai/new was added (accounts.yaml)"
    )
    assert keys(addon) == ["openai/one", "openai/two", "openai/new"]
    for args in (
        ("openai", "new", "env:NEW_KEY"),
        ("nobody", "x", "env:NEW_KEY"),
        ("openai", " ", "env:NEW_KEY"),
        ("openai", "x", "sk-fake-new-000"),
        ("openai", "x", "command:cat /etc/passwd"),
        ("openai", "x", "env:"),
    ):
        with pytest.raises(exceptions.CommandError) as error:
            addon.commands.add(*args)
        assert "sk-fake" not in str(error.value)
    assert len(keys(addon)) == 3
    # What cannot be read now is the state of its account.
    assert "openai/later was added" in addon.commands.add("openai", "later", "env:NOT_SET")
    assert "openai/file was added" in addon.commands.add("openai", "file", "file:nothing.txt")
    assert len(keys(addon)) == 5


async def test_a_token_that_cannot_be_kept(start, tmp_path, caplog):
    (tmp_path / TOKEN_FILE).mkdir()
    addon = await start()
    assert "the REST API is read-only" in caplog.text
    assert keys(addon) == ["openai/one", "openai/two"]


async def test_health_says_when_it_is_ready(start):
    addon = await start()
    assert (await ask(addon, "/health"))["ready"]
    addon._ready = False
    assert not (await ask(addon, "/health"))["ready"]
