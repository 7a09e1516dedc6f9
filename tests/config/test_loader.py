"""What `load` makes of a correct accounts.yaml."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from account_pool.config.configuration import Config
from account_pool.config.loader import load
from account_pool.core.account import Account, AccountKey, ModelFilter
from account_pool.credentials.copilot import DEFAULT_TOKEN_URL, ExchangeSettings
from account_pool.credentials.oauth import OAuthSource
from account_pool.providers.base import HostRule

ACCOUNT = "accounts: [{provider: openai, label: a, token: x}]\n"


def loaded(directory: Path, text: str, **environ: str) -> Config:
    path = directory / "accounts.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return load(path, environ)


def test_every_key_of_an_account_arrives(tmp_path: Path) -> None:
    text = (
        "# the one\n"
        "accounts:\n"
        "  - provider: ' OpenAI '\n"
        "    label: Work  Two\n"
        "    token: sk-${PART}-$$\n"
        "    account_type: business\n"
        "    priority: -1\n"
        "    weight: 3\n"
        "    models: ['gpt-*', '!gpt-5*']\n"
        "    max_concurrent: 8\n"
        "    min_interval: 1\n"
        "    organization: o\n"
        "    openai_project: op\n"
        "    host: api.openai.com\n"
    )
    config = loaded(tmp_path, text, PART="1")
    (entry,) = config.accounts
    assert entry.account == Account(
        provider="openai",
        label="work-two",
        priority=-1,
        weight=3,
        models=ModelFilter(("gpt-*", "!gpt-5*")),
        max_concurrent=8,
        min_interval_s=1.0,
        enabled=True,
        account_type="business",
        companions={
            "organization": "o",
            "openai_project": "op",
            "host": "api.openai.com",
        },
    )
    assert entry.line == 3
    assert entry.source.describe() == "accounts.yaml"
    reading = entry.source.read_now()
    assert reading is not None
    assert reading.secret.reveal() == "sk-1-$"
    assert config.path == tmp_path / "accounts.yaml"


def test_companions_of_other_providers_arrive(tmp_path: Path) -> None:
    text = (
        "accounts:\n"
        "  - {provider: codex, label: a, token: x, account_id: a1}\n"
        "  - {provider: gemini-cli, label: a, token: x, project: p}\n"
        "  - {provider: azure, label: a, token: x, host: One.openai.azure.com,\n"
        "     deployments: {m: d, a: b}}\n"
    )
    found = [entry.account.companions for entry in loaded(tmp_path, text).accounts]
    assert found == [
        {"account_id": "a1"},
        {"project": "p"},
        {"host": "One.openai.azure.com", "deployments": json.dumps({"a": "b", "m": "d"})},
    ]


def test_a_login_that_is_refreshed(tmp_path: Path) -> None:
    text = (
        "accounts:\n"
        "  - provider: codex\n"
        "    label: Plus\n"
        "    token:\n"
        "      oauth: {access_token: 'fake-${A}', refresh_token: rt-fake,\n"
        "              expires_at: 2026-12-01T00:00:00Z}\n"
    )
    source = loaded(tmp_path, text, A="access").accounts[0].source
    assert isinstance(source, OAuthSource)
    assert source.key == AccountKey("codex", "plus")
    assert source.expires_at == 1796083200.0
    reading = source.read_now()
    assert reading is not None and reading.secret.reveal() == "fake-access"


@pytest.mark.parametrize("written", ["1796083200", "1796083200000", "'2026-12-01T01:00:00+01:00'"])
def test_spellings_of_the_end_of_a_token(tmp_path: Path, written: str) -> None:
    oauth = f"{{oauth: {{refresh_token: r, expires_at: {written}}}}}"
    text = f"accounts:\n  - {{provider: codex, label: a, token: {oauth}}}\n"
    source = loaded(tmp_path, text).accounts[0].source
    assert isinstance(source, OAuthSource) and source.expires_at == 1796083200.0


def test_the_hosts_of_azure_are_those_of_its_accounts(tmp_path: Path) -> None:
    text = (
        "accounts:\n"
        "  - {provider: azure, label: a, token: x, host: one.openai.azure.com}\n"
        "  - {provider: azure, label: b, token: y, host: two.example.com}\n"
        "  - {provider: azure, label: c, token: z, host: off.openai.azure.com, enabled: false}\n"
        "providers: {azure: {hosts: [two.example.com]}}\n"
    )
    config = loaded(tmp_path, text)
    assert [rule.host for rule in config.providers["azure"].hosts] == [
        "one.openai.azure.com",
        "two.example.com",
    ]
    assert loaded(tmp_path, ACCOUNT).providers["azure"].hosts == ()


def test_a_vendors_own_file_needs_no_pointer(tmp_path: Path) -> None:
    file = tmp_path / "auth.json"
    file.touch(mode=0o600)
    file.write_text('{"tokens": {"access_token": "fake-a", "account_id": "a1"}}')
    text = f"accounts:\n  - {{provider: codex, label: a, token: {{file: {file}}}}}\n"
    reading = loaded(tmp_path, text).accounts[0].source.read_now()
    assert reading is not None and reading.secret.reveal() == "fake-a"


def test_defaults(tmp_path: Path) -> None:
    config = loaded(tmp_path, ACCOUNT)
    assert config.accounts[0].account == Account(provider="openai", label="a")
    assert config.options == {}
    assert {"openai", "anthropic", "gemini", "copilot"} <= config.providers.keys()
    assert config.exchanges == {"copilot": ExchangeSettings()}


def test_empty_optional_keys_and_sections_are_as_if_left_out(tmp_path: Path) -> None:
    text = "accounts:\n  - provider: openai\n    label: a\n    token: x\n    max_concurrent:\n"
    assert loaded(tmp_path, text + "pool:\nproviders:\n").accounts[0].account.max_concurrent is None


def test_a_date_in_quotes_is_text(tmp_path: Path) -> None:
    config = loaded(tmp_path, "accounts: [{provider: openai, label: '2026-01-02', token: x}]")
    assert config.accounts[0].account.key == AccountKey("openai", "2026-01-02")


def test_the_same_label_serves_two_providers(tmp_path: Path) -> None:
    text = (
        "accounts:\n"
        "  - {provider: openai, label: a, token: x}\n"
        "  - {provider: gemini, label: a, token: x}\n"
    )
    assert len(loaded(tmp_path, text).accounts) == 2


def test_files_are_relative_to_the_file_and_to_the_home_of_the_environment(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for path in (tmp_path / "key", home / "key"):
        path.write_text(json.dumps({"a/b": {"~": [f"sk-{path.parent.name}\n"]}}))
        path.chmod(0o600)
    text = (
        "accounts:\n"
        "  - {provider: openai, label: a, token: {file: key, pointer: /a~1b/~0/0}}\n"
        "  - {provider: openai, label: b, token: {file: ~/key, pointer: /a~1b/~0/0}}\n"
    )
    config = loaded(tmp_path, text, HOME=str(home))
    assert [entry.source.describe() for entry in config.accounts] == [
        "file key pointer /a~1b/~0/0",
        "file ~/key pointer /a~1b/~0/0",
    ]
    tokens = [one.secret.reveal() for entry in config.accounts if (one := entry.source.read_now())]
    assert tokens == [f"sk-{tmp_path.name}", "sk-home"]


def test_the_credential_of_a_disabled_account_may_be_missing(tmp_path: Path) -> None:
    text = "accounts: [{provider: openai, label: a, token: {env: NOPE}, enabled: false}]"
    assert not loaded(tmp_path, text).accounts[0].account.enabled


def test_commands_are_not_run(tmp_path: Path) -> None:
    text = "accounts: [{provider: openai, label: a, token: {command: /nonexistent/program}}]"
    source = loaded(tmp_path, text).accounts[0].source
    assert source.describe() == "command /nonexistent/program"
    assert source.read_now() is None


def test_hosts_are_added_and_providers_made(tmp_path: Path) -> None:
    text = ACCOUNT + (
        "providers:\n"
        "  openai: {hosts: ['localhost:9443']}\n"
        "  gw: {like: anthropic, hosts: [llm.example.com, '*.example.org']}\n"
        "  tenant: {like: copilot, hosts: ['*.acme.ghe.com'], "
        "token_url: 'https://api.acme.ghe.com/t'}\n"
        "  copilot: {token_url: 'http://127.0.0.1:8000/t'}\n"
    )
    config = loaded(tmp_path, text)
    openai = config.providers["openai"].hosts
    assert HostRule("localhost", 9443) in openai
    assert any(rule.matches("api.openai.com", 443) for rule in openai)
    assert config.providers["gw"].name == "gw"
    assert config.providers["gw"].hosts == (
        HostRule("llm.example.com"),
        HostRule("example.org", subdomains=True),
    )
    assert config.exchanges == {
        "copilot": ExchangeSettings(token_url="http://127.0.0.1:8000/t"),
        "tenant": ExchangeSettings(
            token_url="https://api.acme.ghe.com/t",
            hosts=(HostRule("acme.ghe.com", subdomains=True),),
        ),
    }


def test_an_account_of_a_provider_of_ones_own(tmp_path: Path) -> None:
    text = (
        "accounts: [{provider: gw, label: a, token: x, host: 'llm.example.com:8443'}]\n"
        "providers: {gw: {like: openai, hosts: [llm.example.com]}}\n"
    )
    account = loaded(tmp_path, text).accounts[0].account
    assert account.key == AccountKey("gw", "a")
    assert account.companions == {"host": "llm.example.com:8443"}


def test_this_machine_without_a_port_is_warned_about(tmp_path: Path) -> None:
    text = ACCOUNT + "providers: {gw: {hosts: [localhost, 'localhost:443', 'x.example']}}\n"
    path = tmp_path / "accounts.yaml"
    [warning] = [one for one in loaded(tmp_path, text).warnings if "hosts" in one]
    assert warning == (
        f"{path}: providers.gw.hosts: localhost is port 443 of this machine; write the port that "
        "the service uses, such as localhost:8000"
    )


def test_options_arrive_with_their_types(tmp_path: Path) -> None:
    text = ACCOUNT + "pool: {strategy: fill-first, max_wait: 2, gate: 0.5, retry_broken: true}\n"
    options = loaded(tmp_path, text).options
    assert options == {
        "strategy": "fill-first",
        "max_wait": 2.0,
        "gate": 0.5,
        "retry_broken": True,
    }
    assert isinstance(options["max_wait"], float)


@pytest.mark.skipif(os.name != "posix", reason="modes are a matter of posix")
def test_a_readable_file_with_tokens_in_it_is_warned_about(tmp_path: Path) -> None:
    path = tmp_path / "accounts.yaml"
    path.write_text("accounts: [{provider: openai, label: a, token: '${KEY}'}]")
    path.chmod(0o644)
    assert load(path, {"KEY": "x"}).warnings == ()
    path.write_text(ACCOUNT)
    assert load(path, {}).warnings == (
        f"{path} holds tokens and can be read by other users; run: chmod 600 {path}",
    )


def test_default_exchange_is_githubs() -> None:
    assert DEFAULT_TOKEN_URL == "https://api.github.com/copilot_internal/v2/token"
