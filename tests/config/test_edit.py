"""Adding an account to accounts.yaml: nothing else in it changes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from account_pool.config import edit
from account_pool.config.accounts_file import confirm, kept, with_added
from account_pool.config.edit import LastAccount, add_account, remove_account, require_editable
from account_pool.config.loader import load
from account_pool.config.problems import CannotEdit
from account_pool.core.account import AccountKey

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


# -- taking an account out of accounts.yaml: nothing else in it changes


X = AccountKey("openai", "x")
A = "  - {provider: openai, label: a, token: t} # a\n"


def taken(directory, text: str) -> str:
    path = directory / "accounts.yaml"
    path.touch(mode=0o600)
    path.write_text(text)
    before = [e.account.key for e in load(path, {}).accounts]
    assert remove_account(path, X)
    assert [e.account.key for e in load(path, {}).accounts] == [k for k in before if k != X]
    assert (directory / "accounts.yaml.bak").read_text() == text
    return path.read_text()


@pytest.mark.parametrize(
    ("before", "entry", "after"),
    [
        ("# mine\naccounts:\n" + A, "  - {provider: OpenAI, label: ' X ', token: t}\n", ""),
        ("accounts:\n", "  - provider: openai # x\n    label: x\n    token: t\n", A + "# end\n"),
        ("accounts:\n" + A, "  -\n    provider: openai\n    label: x\n    token: t\n", ""),
        ("accounts:\n" + A, "  - provider: openai\n    label: x\n    token: |\n      t\n", A.replace("a,", "b,")),  # noqa: E501
        (
            "accounts:\n- {provider: openai, label: a, token: t}\n",
            "- label: x\n  provider: openai\n  token: t\n  models:\n  - gpt-*\n",
            "providers: {openai: {hosts: [a.b]}}\n",
        ),
        ("accounts: [{provider: openai, label: a, token: t}", ", {provider: openai, label: x, token: t}", "] # end\n"),  # noqa: E501
        ("accounts: [", "{provider: openai, label: x, token: t}, ", "{provider: openai, label: a, token: t}]\n"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_is_left_stays_to_the_byte(tmp_path, before, entry, after):
    assert taken(tmp_path, before + entry + after) == before + after


def test_without_a_line_break_at_the_end(tmp_path):
    text = "accounts:\n" + A + "  - {provider: openai, label: x, token: t}"
    assert taken(tmp_path, text) == "accounts:\n" + A


def test_what_is_not_there(tmp_path):
    path = tmp_path / "accounts.yaml"
    assert not remove_account(path, X)
    path.write_text("accounts:\n" + A)
    assert not remove_account(path, X)
    assert not (tmp_path / "accounts.yaml.bak").exists()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("accounts:\n  - {provider: openai, label: x, token: t}\n", LastAccount),
        # others refer to it
        (
            "accounts:\n  - &x {provider: openai, label: x, token: t}\n  - {<<: *x, label: a}\n",
            CannotEdit,
        ),
        ("accounts: [", CannotEdit),
    ],
)
def test_what_a_person_has_to_do(tmp_path, text, error):
    path = tmp_path / "accounts.yaml"
    path.write_text(text)
    with pytest.raises(error):
        remove_account(path, X)
    assert path.read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ["accounts.yaml"]


@pytest.mark.skipif(os.name != "posix", reason="modes are a matter of posix")
def test_modes_stay(tmp_path):
    path = tmp_path / "accounts.yaml"
    path.write_text("accounts:\n" + A + "  - {provider: openai, label: x, token: t}\n")
    path.chmod(0o640)
    remove_account(path, X)
    assert path.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "accounts.yaml.bak").stat().st_mode & 0o777 == 0o600


# -- the second file


def files(directory, main: str, added: str):
    for name, text in (("accounts.yaml", main), ("added.yaml", added)):
        (directory / name).touch(mode=0o600)
        (directory / name).write_text(text)
    return load(directory / "accounts.yaml", {}), directory / "added.yaml"


def test_accounts_of_both_files(tmp_path):
    """Of two with the same name the one of accounts.yaml counts; its providers are known."""
    main, added = files(
        tmp_path,
        "accounts:\n" + A + "providers: {gw: {hosts: [llm.example.com]}}\n",
        "accounts:\n  - {provider: openai, label: a, token: other}\n"
        "  - {provider: gw, label: g, token: t}\n",
    )
    both = with_added(main, added, {})
    assert [str(e.account.key) for e in both.accounts] == ["openai/a", "gw/g"]
    assert both.accounts[0] is main.accounts[0]
    assert both.options == main.options


def test_hosts_of_accounts_of_both_files(tmp_path):
    azure = "accounts:\n  - {{provider: azure, label: {0}, token: t, host: {0}.openai.azure.com}}\n"
    main, added = files(tmp_path, azure.format("one"), azure.format("two"))
    hosts = with_added(main, added, {}).providers["azure"].hosts
    assert [rule.host for rule in hosts] == ["one.openai.azure.com", "two.openai.azure.com"]


def test_without_the_second_file(tmp_path):
    main, added = files(tmp_path, "accounts:\n" + A, "")
    added.unlink()
    assert with_added(main, added, {}) is main


@pytest.mark.parametrize(
    ("function", "code", "said"),
    [
        ("pathlib.Path.replace", errno.EBUSY, "; mount its directory, not the file"),
        ("pathlib.Path.replace", errno.EROFS, ""),
        ("shutil.copyfileobj", errno.ENOSPC, ""),
        ("os.fsync", errno.ENOSPC, ""),
    ],
)
def test_what_the_system_refuses_changes_nothing_and_leaves_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int, said: str
) -> None:
    path = tmp_path / "accounts.yaml"
    path.touch(mode=0o600)
    path.write_text("accounts: []\n")

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(function, refused)
    with pytest.raises(CannotEdit) as caught:
        add_account(path, ACCOUNT | {"token": "sk-fake-new-000"}, ENVIRON)
    assert str(caught.value).endswith(f"({os.strerror(code)}){said}")
    assert path.read_text() == "accounts: []\n"
    held = [file for file in tmp_path.iterdir() if "sk-fake" in file.read_text()]
    assert held == []


def test_a_file_that_is_gone_when_it_is_confirmed_again_is_told(tmp_path: Path) -> None:
    path, store = tmp_path / "accounts.yaml", tmp_path / "confirmed.json"
    path.write_text("accounts: []")
    confirm(path, store)
    gone = pytest.raises(CannotEdit, match="was changed, and cannot be confirmed")
    with gone, kept(path, store):
        path.unlink()
