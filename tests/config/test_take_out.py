"""Taking an account out of accounts.yaml: nothing else in it changes."""

from __future__ import annotations

import os

import pytest

from account_pool.config.accounts_file import with_added
from account_pool.config.edit import LastAccount, remove_account
from account_pool.config.loader import load
from account_pool.config.replace import CannotEdit
from account_pool.core.account import AccountKey

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
def test_everything_else_stays_to_the_byte(tmp_path, before, entry, after):
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
