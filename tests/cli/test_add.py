"""`account-pool add`: where the key comes from, where the account goes, what is said."""

from __future__ import annotations

import getpass
import io
import json
import os
import sys
from pathlib import Path

import pytest

from account_pool.cli.main import run
from account_pool.config import accounts_file
from account_pool.config.accounts_file import own_file, trust_store
from account_pool.config.loader import load
from account_pool.core.credential import Secret
from account_pool.credentials.keychain import KeychainSource
from account_pool.credentials.sources import Reading
from account_pool.providers.registry import BUILT_IN

KEY = "sk-fake-added-000"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def piped(monkeypatch):
    """What standard input holds, which is no terminal."""
    stdin = io.StringIO(f"{KEY}\n")
    monkeypatch.setattr(sys, "stdin", stdin)
    return stdin


def only_account(path: Path | None = None):
    (entry,) = load(path or own_file(), os.environ).accounts
    return entry


def test_a_key_that_is_piped_is_stored_for_its_owner_only(piped, capsys):
    assert run(["add", "OpenAI", " My Work "]) == 0
    entry = only_account()
    assert str(entry.account.key) == "openai/my-work"
    assert entry.source.read_now().secret.reveal() == KEY
    assert own_file().stat().st_mode & 0o777 == 0o600
    assert own_file().parent.stat().st_mode & 0o777 == 0o700
    out, err = capsys.readouterr()
    assert (out, err) == ("added openai/my-work to ~/.config/account-pool/accounts.yaml\n", "")


def test_on_a_terminal_it_is_asked_for_and_not_shown(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    asked = []

    def typed(prompt: str) -> str:
        asked.append(prompt)
        return KEY

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(getpass, "getpass", typed)
    assert run(["add", "openai", "work"]) == 0
    assert only_account().source.read_now().secret.reveal() == KEY
    assert asked == ["Key of openai/work (it is not shown): "]
    assert KEY not in "".join(capsys.readouterr())


def test_a_key_may_stay_where_it_is(home, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # nothing is asked
    monkeypatch.setenv("MY_KEY", KEY)
    assert run(["add", "openai", "a", "--env", "MY_KEY"]) == 0
    (home / "work" / "key.json").touch(mode=0o600)
    (home / "work" / "key.json").write_text(f'{{"key": "{KEY}"}}')
    assert run(["add", "openai", "b", "--file", "key.json", "--pointer", "/key"]) == 0
    text = own_file().read_text()
    assert "env: MY_KEY" in text
    assert "file: ~/work/key.json" in text
    assert KEY not in text
    accounts = load(own_file(), os.environ).accounts
    assert [entry.source.read_now().secret.reveal() for entry in accounts] == [KEY, KEY]


def test_a_dollar_in_a_key_is_no_variable(piped):
    piped.truncate(0)
    piped.seek(0)
    piped.write("sk-fake-${HOME}-$1")
    piped.seek(0)
    assert run(["add", "openai", "work"]) == 0
    assert only_account().source.read_now().secret.reveal() == "sk-fake-${HOME}-$1"


KEY_PROVIDERS = sorted(set(BUILT_IN) - {"codex", "gemini-cli"})


@pytest.mark.parametrize("provider", KEY_PROVIDERS)
def test_every_provider_with_a_key(provider, piped, capsys):
    piped.truncate(0)
    piped.seek(0)
    key = {"claude-code": "sk-ant-oat01-fake", "copilot": "gho_fake"}.get(provider, "fake-000")
    piped.write(key)
    piped.seek(0)
    known = BUILT_IN[provider]
    host = known.hosts[0] if known.host_per_account else None
    like = ["--host", f"mine.{host.host}" if host and host.subdomains else str(host and host.host)]
    assert run(["add", provider, "work", *(like if host else [])]) == 0, capsys.readouterr()
    assert only_account().source.read_now().secret.reveal() == key


def test_it_goes_to_the_file_in_use(home, piped, capsys):
    """A file here only where it was confirmed, or named."""
    local = home / "work" / "accounts.yaml"
    local.touch(mode=0o600)
    local.write_text("accounts:\n  - {provider: openai, label: one, token: sk-fake-one-000}\n")
    assert run(["add", "openai", "work"]) == 0
    assert only_account().account.label == "work"
    assert "is skipped" in capsys.readouterr().err
    accounts_file.confirm(local, trust_store())
    piped.seek(0)
    assert run(["add", "openai", "work"]) == 0
    assert len(load(local, os.environ).accounts) == 2
    out, err = capsys.readouterr()
    assert "added openai/work to ~/work/accounts.yaml" in out
    assert "keep it out of version control" in err
    # It is as its owner wants it: nothing is to be confirmed again.
    piped.seek(0)
    assert run(["add", "openai", "third"]) == 0
    assert len(load(local, os.environ).accounts) == 3
    piped.seek(0)
    assert run(["add", "openai", "work", "--accounts-file", "new.yaml"]) == 0
    assert only_account(home / "work" / "new.yaml").account.label == "work"


def test_services_of_ones_own(home, piped):
    mine = home / "work" / "mine.yaml"
    mine.write_text(
        "accounts: [{provider: gw, label: a, token: sk-fake-a-000}]\n"
        "providers:\n  gw: {like: openai, hosts: [llm.example.com]}\n"
    )
    assert run(["add", "gw", "b", "--accounts-file", "mine.yaml"]) == 0
    assert [e.account.label for e in load(mine, os.environ).accounts] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "key", "code", "why"),
    [
        (["opnai", "x"], KEY, 1, "did you mean openai?"),
        (["openai", " "], KEY, 1, "label"),
        (["openai", "x"], "\n", 1, "no key was given; type it in or pipe it in"),
        (["openai", "x"], "two words", 1, "the key has a space"),
        (["azure", "x"], KEY, 1, "host"),
        (["codex", "x"], KEY, 1, "login --from codex"),
        (["gemini-cli", "x"], KEY, 1, "login --from gemini"),
        (["openai", "x", "--env", "A", "--file", "b"], KEY, 2, "write one of --env, --file"),
        (["openai", "x", "--pointer", "/a"], KEY, 2, "write one of --env, --file"),
        (["a", "b", "c"], KEY, 2, "the key is asked for"),
    ],
)
def test_what_cannot_be_added_is_one_line(monkeypatch, capsys, *, arguments, key, code, why):
    monkeypatch.setattr(sys, "stdin", io.StringIO(key))
    assert run(["add", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert why.lower() in err.lower()
    assert err.count("\n") == 1
    assert "fake" not in err
    assert not own_file().exists()


def test_what_looks_wrong_is_told_and_stops_nothing(piped, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("sk-ant-api03-fake-000"))
    assert run(["add", "openai", "work"]) == 0
    assert "openai/work: its token looks like an API key of Anthropic" in capsys.readouterr().err
    assert run(["add", "openai", "late", "--env", "FAKE_UNSET"]) == 0
    err = capsys.readouterr().err
    assert "the environment variable FAKE_UNSET is not set" in err
    assert "openai/work" not in err, "said when it was added"


def test_a_label_that_is_taken_is_told_before_the_key_is_asked_for(piped, capsys):
    assert run(["add", "openai", "work"]) == 0
    piped.seek(0)
    assert run(["add", "openai", "Work"]) == 1
    assert "choose another label" in capsys.readouterr().err
    assert piped.tell() == 0


# -- what need not be said


def typed(monkeypatch, key: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(key))


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        ([], "sk-ant-api03-fake", "anthropic/default"),
        ([], "sk-proj-fake", "openai/default"),
        (["work"], "AIzaSyFake", "gemini/work"),
        (["openai"], "sk-fake", "openai/default"),
        (["OpenAI/Work"], "sk-fake", "openai/work"),
        (["openai", "work"], "sk-fake", "openai/work"),
    ],
)
def test_the_key_tells_the_provider_where_nobody_does(words, key, expected, monkeypatch, capsys):
    typed(monkeypatch, key)
    assert run(["add", *words]) == 0
    assert str(only_account().account.key) == expected
    assert f"added {expected} to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "key", "why"),
    [
        ([], "sk-fake-000", "does not tell whose it is; name the provider"),
        ([], "gho_fake", "copilot or github-models; name the provider"),
        ([], "sk-ant-admin01-fake", "an Admin API key of Anthropic"),
        (["opnai"], "sk-proj-fake", "did you mean openai?"),
        (["sk-proj-fake00000000"], "", "leave it out, it is asked for"),
        (["openai", "sk-proj-fake00000000"], "", "leave it out, it is asked for"),
    ],
)
def test_what_cannot_be_told(words, key, why, monkeypatch, capsys):
    typed(monkeypatch, key)
    assert run(["add", *words]) == 1
    out, err = capsys.readouterr()
    assert why in err
    assert "fake" not in out + err
    assert not own_file().exists()


def test_a_key_that_stays_where_it_is_tells_it_too(home, monkeypatch):
    typed(monkeypatch, "")
    monkeypatch.setenv("MY_KEY", "sk-ant-api03-fake")
    assert run(["add", "--env", "MY_KEY"]) == 0
    assert str(only_account().account.key) == "anthropic/default"
    (home / "work" / "key.json").touch(mode=0o600)
    (home / "work" / "key.json").write_text('{"key": "xai-fake"}')
    assert run(["add", "--file", "key.json", "--pointer", "/key"]) == 0
    keys = [str(entry.account.key) for entry in load(own_file(), os.environ).accounts]
    assert keys == ["anthropic/default", "xai/default"]


def test_an_item_of_the_keychain(monkeypatch):
    async def read(source: KeychainSource) -> Reading:
        return Reading(secret=Secret("gsk_fake" if source.pointer == "/key" else "none"))

    monkeypatch.setattr(KeychainSource, "read", read)
    assert run(["add", "--keychain", "my groq", "--pointer", "/key"]) == 0
    entry = only_account()
    assert str(entry.account.key) == "groq/default"
    assert entry.source.describe() == "keychain my groq pointer /key"
    assert "gsk_" not in own_file().read_text()


def test_what_was_added_as_json(piped, capsys):
    assert run(["add", "openai", "work", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "added": "openai/work",
        "written_to": str(own_file()),
        "backup": None,
    }
