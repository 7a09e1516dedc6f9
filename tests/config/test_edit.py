"""Adding an account to accounts.yaml: nothing else in it changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from account_pool.config import edit
from account_pool.config.edit import add_account, require_editable
from account_pool.config.loader import load
from account_pool.config.replace import CannotEdit

ACCOUNT = {"provider": "openai", "label": "new", "token": {"env": "NEW_KEY"}}
ENVIRON = {"NEW_KEY": "sk-fake-new-000", "OLD_KEY": "sk-fake-old-000"}
ADDED = "  - provider: openai\n    label: new\n    token:\n      env: NEW_KEY\n"


def added(directory: Path, text: str, account=ACCOUNT, **settings) -> str:
    path = directory / "accounts.yaml"
    path.touch(mode=0o640)
    path.write_text(text)
    add_account(path, account, ENVIRON, **settings)
    keys = [str(entry.account.key) for entry in load(path, ENVIRON).accounts]
    assert keys[-1] == f"{account['provider']}/{account['label']}"
    return path.read_text()


@pytest.mark.parametrize(
    ("before", "inserted", "after"),
    [
        (
            "# mine\naccounts: # all\n  - provider: openai\n    label: a\n"
            "    token: ${OLD_KEY}   # the old one\n",
            ADDED,
            "\n  # what comes next\n\n# more\npool: {strategy: least-busy}\n",
        ),
        (
            "accounts:\n  - {provider: openai, label: a, token: '${OLD_KEY}'} # a\n",
            ADDED,
            "providers: {openai: {hosts: [a.b]}} # end",
        ),
        (
            "accounts:\n- provider: openai\n  label: a\n  token: x\n  models:\n  - gpt-*\n",
            "- provider: openai\n  label: new\n  token:\n    env: NEW_KEY\n",
            "pool:\n  gate: 5\n",
        ),
        ("accounts:\n", ADDED, "# nothing yet\npool: {}\n"),
        ("pool: {}\n", "\naccounts:\n" + ADDED, ""),
        ("", "accounts:\n" + ADDED, ""),
    ],
)
def test_everything_else_stays_to_the_byte(tmp_path, before, inserted, after):
    if before == "accounts:\n":
        assert added(tmp_path, before + after) == before + inserted + after
        return
    assert added(tmp_path, before + after) == before + inserted + after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("accounts: [{provider: openai, label: a, token: x}", " # last\n]\n"),
        ('{"accounts": [{"provider": "openai", "label": "a", "token": "x"}', "\n]}"),
    ],
)
def test_lists_in_brackets(tmp_path, before, after):
    text = added(tmp_path, before + after)
    assert text.startswith(before)
    assert text.endswith(after)


def test_a_missing_line_break_at_the_end_is_added(tmp_path):
    text = added(tmp_path, "accounts:\n  - {provider: openai, label: a, token: x}")
    assert text.endswith("token: x}\n" + ADDED)


def test_a_block_of_text_before_it(tmp_path):
    before = "accounts:\n  - provider: openai\n    label: a\n    token: |\n      x\n"
    assert added(tmp_path, before) == before + ADDED


def test_the_example_takes_an_account(tmp_path):
    example = Path(__file__).parents[2] / "accounts.example.yaml"
    path = tmp_path / "accounts.yaml"
    path.write_text(example.read_text())
    # Its files and variables are not there: what was wrong before is no reason to refuse.
    add_account(path, ACCOUNT, ENVIRON)
    lines = path.read_text().splitlines()
    assert [line for line in lines if line not in ADDED.splitlines()] == [
        line for line in example.read_text().splitlines() if line not in ADDED.splitlines()
    ]


def test_a_provider_is_added_once(tmp_path):
    definition = {"like": "copilot", "hosts": ["copilot-api.acme.ghe.com"]}
    account = {"provider": "ghe-acme", "label": "a", "token": {"env": "NEW_KEY"}}
    text = added(tmp_path, "accounts: []\n", account, provider=("ghe-acme", definition))
    again = added(tmp_path, text, {**account, "label": "b"}, provider=("ghe-acme", definition))
    assert again.count("like: copilot") == 1


@pytest.mark.parametrize("section", ["providers: {openai: {hosts: [a.b]}}", "providers:", ""])
def test_a_provider_is_added_beside_others(tmp_path, section):
    definition = {"hosts": ["llm.example.com"]}
    account = {"provider": "gw", "label": "a", "token": {"env": "NEW_KEY"}}
    text = f"accounts:\n  - {{provider: openai, label: x, token: y}}\n{section}\n"
    assert "llm.example.com" in added(tmp_path, text, account, provider=("gw", definition))


def test_a_new_file_is_its_owners_only(tmp_path):
    path = tmp_path / "accounts.yaml"
    assert add_account(path, ACCOUNT, ENVIRON) is None
    assert path.read_text() == "accounts:\n" + ADDED
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name != "posix", reason="modes are a matter of posix")
def test_modes_and_the_copy(tmp_path):
    text = "accounts:\n  - {provider: openai, label: a, token: x}\n"
    added(tmp_path, text)
    path, backup = tmp_path / "accounts.yaml", tmp_path / "accounts.yaml.bak"
    assert path.stat().st_mode & 0o777 == 0o640
    assert backup.read_text() == text
    assert backup.stat().st_mode & 0o777 == 0o600
    add_account(path, {**ACCOUNT, "label": "b"}, ENVIRON, private=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["accounts.yaml", "accounts.yaml.bak"]


def test_a_link_stays_a_link(tmp_path):
    real = tmp_path / "dotfiles" / "accounts.yaml"
    real.parent.mkdir()
    real.write_text("accounts: [{provider: openai, label: a, token: x}]\n")
    link = tmp_path / "accounts.yaml"
    link.symlink_to(real)
    add_account(link, ACCOUNT, ENVIRON)
    assert link.is_symlink()
    assert "NEW_KEY" in real.read_text()


@pytest.mark.parametrize(
    ("text", "account", "why"),
    [
        (
            "accounts:\n  - {provider: OpenAI, label: ' New ', token: x}\n",
            ACCOUNT,
            "accounts.yaml already has an account openai/new; choose another label",
        ),
        ("accounts: [", ACCOUNT, "the file is not YAML; see account-pool check"),
        ("- a\n", ACCOUNT, "the file is not a mapping; start it with `accounts:`"),
        (
            "pool: {}\n...\n",
            ACCOUNT,
            "accounts.yaml cannot be edited by this command; add the account by hand",
        ),
        (
            '{"pool": {"strategy": "least-busy"}}',
            ACCOUNT,
            "accounts.yaml cannot be edited by this command; add the account by hand",
        ),
        ("accounts: 3\n", ACCOUNT, "accounts is not a list; see account-pool check"),
        (
            "accounts:\n  - {provider: openai, label: a, token: x}\n",
            {**ACCOUNT, "token": {"env": "NOT A NAME"}},
            "openai/new was not added to accounts.yaml: accounts[1].token: the value of env is "
            "not the name of a variable; write {env: OPENAI_API_KEY}",
        ),
    ],
)
def test_what_cannot_be_done_changes_nothing(tmp_path, text, account, why):
    path = tmp_path / "accounts.yaml"
    path.write_text(text)
    with pytest.raises(CannotEdit) as caught:
        add_account(path, account, ENVIRON)
    assert str(caught.value) == why
    with pytest.raises(CannotEdit) as caught:
        require_editable(path, account, ENVIRON)
    assert str(caught.value) == why
    assert path.read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["accounts.yaml"]


def test_a_provider_beside_accounts_in_brackets_is_for_its_owner(tmp_path):
    path = tmp_path / "accounts.yaml"
    path.write_text('{"accounts": []}')
    with pytest.raises(CannotEdit, match="add the account by hand"):
        add_account(path, ACCOUNT, ENVIRON, provider=("gw", {"hosts": ["llm.example.com"]}))
    assert path.read_text() == '{"accounts": []}'


def test_it_is_tried_without_a_trace(tmp_path):
    path = tmp_path / "accounts.yaml"
    require_editable(path, ACCOUNT, ENVIRON)
    assert not list(tmp_path.iterdir())
    with pytest.raises(CannotEdit, match="cannot write in"):
        require_editable(tmp_path / "missing" / "accounts.yaml", ACCOUNT, ENVIRON)


def test_a_failure_at_the_last_step_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "accounts.yaml"
    path.write_text("accounts: [{provider: openai, label: a, token: x}]\n")

    def fail(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(edit, "back_up", fail)
    with pytest.raises(KeyboardInterrupt):
        add_account(path, ACCOUNT, ENVIRON)
    assert [p.name for p in tmp_path.iterdir()] == ["accounts.yaml"]


@pytest.mark.parametrize("token", [{"env": "NOT_SET"}, {"file": "/nonexistent"}, "${NOT_SET}"])
def test_an_account_whose_credential_cannot_be_read_yet_is_added(tmp_path, token):
    path = tmp_path / "accounts.yaml"
    add_account(path, {**ACCOUNT, "token": token}, ENVIRON)
    assert len(load(path, ENVIRON).accounts) == 1
