"""The file a proxy serves from: searched for until one serves, then followed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.test import taddons

from account_pool.config import accounts_file
from account_pool.config.accounts_file import own_file, trust_store
from account_pool.config.problems import ConfigError
from account_pool.proxy.addon import AccountPool
from account_pool.proxy.reload import SourceFile


def text(label: str) -> str:
    return f"accounts:\n  - {{provider: openai, label: {label}, token: sk-fake-{label}-000}}\n"


def write(path: Path, label: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text(label))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory, and a place for the user's own file that is empty."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY",
                 "GITHUB_TOKEN", "GH_TOKEN"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tctx(here, caplog):
    caplog.set_level(logging.INFO)
    with taddons.context(Proxyserver(), NextLayer()) as tctx:
        tctx.options.update(confdir=str(here / "mitmproxy"))
        tctx.options.add_option("pool_accounts", str, "", "")
        yield tctx


@pytest.fixture
async def addon(here, caplog):
    """The addon, started where there is no file at all."""
    caplog.set_level(logging.INFO)
    with taddons.context(Proxyserver(), NextLayer()) as tctx:
        tctx.options.update(confdir=str(here / "mitmproxy"))
        addon = AccountPool()
        tctx.options.update_defer(pool_state="memory:")
        tctx.master.addons.add(addon)
        tctx.configure(addon)
        addon.running()
        await addon._starting
        yield addon
        addon.done()


def keys(addon) -> list[str]:
    return [str(state.key) for state in addon.service.pool.accounts]


async def test_your_own_file_is_picked_up_when_it_appears(addon, caplog):
    before = addon.reloader.file.stamps()
    write(own_file(), "mine")
    assert addon.reloader.file.stamps() != before
    await addon.reloader.reload_in_background()
    assert keys(addon) == ["openai/mine"]
    assert addon.reloader.file.path == own_file()
    assert f"{own_file()} reloaded: added openai/mine" in caplog.text


async def test_a_file_here_is_named_and_taken_once_it_was_confirmed(addon, here, caplog):
    local = write(here / "accounts.yaml", "theirs")
    await addon.reloader.reload_in_background()
    assert keys(addon) == []
    assert caplog.text.count("accounts.yaml is skipped: it has not been confirmed") == 1
    await addon.reloader.reload_in_background()
    assert caplog.text.count("is skipped") == 1, "said once"
    before = addon.reloader.file.stamps()
    accounts_file.confirm(local, trust_store())
    assert addon.reloader.file.stamps() != before
    await addon.reloader.reload_in_background()
    assert keys(addon) == ["openai/theirs"]


async def test_a_change_of_a_file_here_must_be_confirmed_again(addon, here, caplog):
    """Else a `git pull` could bring a command that runs at once."""
    local = write(here / "accounts.yaml", "ours")
    accounts_file.confirm(local, trust_store())
    await addon.reloader.reload_in_background()
    write(local, "theirs")
    await addon.reloader.reload_in_background()
    assert keys(addon) == ["openai/ours"]
    assert "was changed since it was confirmed; look at it" in caplog.text
    assert "the accounts stay as they were" in caplog.text
    before = addon.reloader.file.stamps()
    accounts_file.confirm(local, trust_store())
    assert addon.reloader.file.stamps() != before
    await addon.reloader.reload_in_background()
    assert keys(addon) == ["openai/theirs"]


async def test_a_file_that_serves_is_followed_whatever_appears(addon, here):
    own = write(own_file(), "mine")
    await addon.reloader.reload_in_background()
    accounts_file.confirm(write(here / "accounts.yaml", "ours"), trust_store())
    await addon.reloader.reload_in_background()
    assert keys(addon) == ["openai/mine"]
    own.unlink()
    await addon.reloader.reload_in_background()
    assert keys(addon) == ["openai/mine"], "gone is a mistake, no wish for other accounts"


async def test_a_broken_file_that_appears_is_named(addon, caplog):
    write(own_file(), "mine").write_text("accounts: [")
    await addon.reloader.reload_in_background()
    assert keys(addon) == []
    assert f"{own_file()} has errors; the accounts stay as they were" in caplog.text


def test_another_option_is_another_file(tctx, here):
    write(own_file(), "mine")
    file = SourceFile({})
    assert [str(e.account.key) for e in file.load().accounts] == ["openai/mine"]
    other = write(here / "other.yaml", "other")
    before = file.stamps()
    tctx.options.update(pool_accounts="other.yaml")
    assert file.stamps() != before
    assert [str(e.account.key) for e in file.load().accounts] == ["openai/other"]
    assert file.path == other
    tctx.options.update(pool_accounts="missing.yaml")
    with pytest.raises(ConfigError, match="pool_accounts names it"):
        file.load()
    # What cannot be read replaces nothing.
    assert (file.path, file.target) == (other, other)
    tctx.options.update(pool_accounts="other.yaml")
    assert file.load().path == other


def test_new_accounts_go_to_the_file_in_use_else_to_your_own(tctx, here):
    write(here / "accounts.yaml", "theirs")
    file = SourceFile({})
    assert file.load() is None
    assert file.target == own_file()
    tctx.options.update(pool_accounts="accounts.yaml")
    file.load()
    assert file.target == here / "accounts.yaml"
