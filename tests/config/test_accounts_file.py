"""Where accounts files are looked for, with real files, directories and variables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from account_pool.config import accounts_file, loader
from account_pool.config.accounts_file import (
    OPTION,
    VARIABLE,
    command,
    counted,
    find,
    load_found,
    own_file,
    shown,
    trust_store,
)
from account_pool.config.edit import add_account, remove_account
from account_pool.config.problems import ConfigError
from account_pool.core.account import AccountKey

ONE = "accounts:\n  - {provider: openai, label: one, token: sk-fake-one-000}\n"
EVIL = ONE.replace("sk-fake-one-000", "{command: evil}")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the places of Linux")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, and a working directory in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(path: Path, text: str = ONE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def test_the_users_own(tmp_path, monkeypatch):
    assert own_file() == tmp_path / ".config" / "account-pool" / "accounts.yaml"
    assert find("", OPTION, {}).path is None
    write(own_file())
    assert find("", OPTION, {}).path == own_file()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert own_file() == tmp_path / "xdg" / "account-pool" / "accounts.yaml"
    assert find("", OPTION, {}).path is None


def test_names_count_more_and_relative_ones_are_of_the_working_directory(here, tmp_path):
    write(own_file())
    write(here / "mine.yaml")
    assert find("mine.yaml", OPTION, {VARIABLE: "x"}).path == here / "mine.yaml"
    assert find("", OPTION, {VARIABLE: "~/work/mine.yaml"}).path == here / "mine.yaml"
    # There is no such user, which Python has an error of its own for.
    found = find("~no-such-user/mine.yaml", OPTION, {})
    assert (found.path, found.exists) == (here / "~no-such-user/mine.yaml", False)
    assert find(" ", OPTION, {VARIABLE: ""}).path == own_file()
    assert not find("", OPTION, {VARIABLE: "missing.yaml"}).exists
    with pytest.raises(ConfigError, match="ACCOUNT_POOL_ACCOUNTS names it"):
        load_found(find("", OPTION, {VARIABLE: "missing.yaml"}), {})


def test_a_file_here_serves_once_it_was_confirmed(here):
    write(own_file())
    mine = write(here / "accounts.yaml")
    found = find("", OPTION, {})
    assert (found.path, found.skipped.path) == (own_file(), mine)
    accounts_file.confirm(mine, trust_store())
    found = find("", OPTION, {})
    assert (found.path, found.skipped) == (mine, None)
    assert len(load_found(found, {}).accounts) == 1
    mine.write_text(EVIL)
    assert find("", OPTION, {}).path == own_file()
    # Also for who has found it before.
    with pytest.raises(ConfigError, match="changed since it was confirmed"):
        load_found(found, {})


def test_what_changes_while_it_is_read_is_not_taken(here, monkeypatch):
    mine = write(here / "accounts.yaml")
    accounts_file.confirm(mine, trust_store())
    found = find("", OPTION, {})
    load = loader.load

    def changed(path, *args):
        mine.write_text(EVIL)
        return load(path, *args)

    monkeypatch.setattr(loader, "load", changed)
    with pytest.raises(ConfigError, match="changed since it was confirmed"):
        load_found(found, {})


def test_what_we_add_and_take_out_stays_confirmed(here):
    mine = write(here / "accounts.yaml")
    accounts_file.confirm(mine, trust_store())
    add_account(mine, {"provider": "openai", "label": "two", "token": "sk-fake-two-000"}, {})
    assert len(load_found(find("", OPTION, {}), {}).accounts) == 2
    remove_account(Path("accounts.yaml"), AccountKey("openai", "one"))
    assert len(load_found(find("", OPTION, {}), {}).accounts) == 1


def test_the_products_own_checkout_counts_as_named(here, monkeypatch):
    mine = write(here / "accounts.yaml", EVIL)
    package = here / "addon" / "account_pool" / "__init__.py"
    write(package, "")
    monkeypatch.setattr(accounts_file.account_pool, "__file__", str(package))
    assert find("", OPTION, {}).path is None, "no pool.py beside it"
    write(here / "addon" / "pool.py", "")
    found = find("", OPTION, {})
    assert (found.path, found.confirm) == (mine, False)
    # Not of another project that we are installed for.
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    write(here / "below" / "accounts.yaml", EVIL)
    assert find("", OPTION, {}).path is None


def test_a_working_directory_that_is_gone(here, monkeypatch):
    (here / "gone").mkdir()
    monkeypatch.chdir(here / "gone")
    (here / "gone").rmdir()
    assert find("", OPTION, {}).path is None


def test_a_directory_of_that_name_is_no_file(here):
    (here / "accounts.yaml").mkdir()
    assert find("", OPTION, {}).skipped is None


def test_paths_are_shown_as_people_write_them(tmp_path, monkeypatch):
    assert shown(own_file()) == "~/.config/account-pool/accounts.yaml"
    assert shown(Path("/etc/accounts.yaml")) == "/etc/accounts.yaml"
    assert shown(own_file().parents[2]) == "~"
    assert counted(1, own_file()) == "1 account of ~/.config/account-pool/accounts.yaml"
    assert counted(3, None) == "3 accounts of the environment"
    monkeypatch.setenv("HOME", "/")
    assert shown(Path("/etc/accounts.yaml")) == "/etc/accounts.yaml"


def test_hints_name_a_command_that_the_reader_has(here, tmp_path, monkeypatch):
    program = here / ".venv" / "bin" / "account-pool"
    write(program, "#!/bin/sh\n").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.setenv("PATH", "/nowhere")
    assert command() == "./.venv/bin/account-pool"
    monkeypatch.chdir("/")
    assert command() == "~/work/.venv/bin/account-pool"
    # pipx and uv: a link in a place of its own.
    link = tmp_path / ".local" / "bin" / "account-pool"
    link.parent.mkdir(parents=True)
    link.symlink_to(program)
    monkeypatch.setattr(sys, "argv", [str(link), "check"])
    assert command() == "~/.local/bin/account-pool"
    monkeypatch.setattr(sys, "argv", ["mitmdump", "-s", "pool.py"])
    monkeypatch.setenv("PATH", str(program.parent))
    assert command() == "account-pool"
    monkeypatch.setenv("PATH", "/nowhere")
    program.unlink()
    assert command() == "account-pool"
