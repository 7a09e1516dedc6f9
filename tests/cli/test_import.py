"""`account-pool import`: what other programs keep, and what becomes of it."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from account_pool.cli import import_accounts as module
from account_pool.cli.import_formats import recognise
from account_pool.cli.import_items import Found, Left
from account_pool.cli.main import run
from account_pool.config.loader import load
from account_pool.credentials.oauth import OAuthSource
from tests.cli.authorisation import jwt

OWN = ".config/account-pool/accounts.yaml"
AUTH = "https://api.openai.com/auth"

# -- what is there: the layouts are those of the sources named in import_formats.py


def claude_file(person: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "claude",
        "access_token": f"sk-ant-oat01-fake-{person}",
        "refresh_token": f"sk-ant-ort01-fake-{person}",
        "email": f"{person}@example.com",
        "expired": "2099-01-01T00:00:00Z",
        "last_refresh": "2026-11-01T00:00:00Z",
        "id_token": "",
        **more,
    }


CLIPROXY_FILES = {
    "claude-one.json": claude_file("one", priority=5, weight=3),
    "claude-two.json": claude_file("two", disabled=True, proxy_url="http://10.0.0.1:1"),
    "codex-one.json": {
        "type": "codex",
        "id_token": jwt(aud=["app_fake"]),
        "access_token": jwt(**{AUTH: {"chatgpt_account_id": "id-one"}}),
        "refresh_token": "rt_fake_one",
        "account_id": "id-one",
        "email": "one@example.com",
        "expired": "2099-01-01T00:00:00Z",
    },
    "gemini-one.json": {
        "type": "gemini",
        "token": {
            "access_token": "ya29.fake-one",
            "refresh_token": "1//fake-one",
            "expiry": "2099-01-01T00:00:00Z",
            "client_id": "1-fake.apps.googleusercontent.com",
            "client_secret": "GOCSPX-fake-client",
        },
        "project_id": "project-one",
        "email": "one@example.com",
    },
    "qwen-one.json": {"type": "qwen", "access_token": "fake", "email": "q@example.com"},
    "new.json": {"type": "something-new", "access_token": "fake"},
    "notes.json": {"nothing": True},
}
CLIPROXY_CONFIG = {
    "port": 8317,
    "auth-dir": "~/.cli-proxy-api",
    "api-keys": ["of-a-client"],
    "gemini-api-key": [{"api-key": "AIza-fake-gemini"}],
    "claude-api-key": [{"api-key": "sk-ant-api03-fake", "base-url": "https://claude.example.com"}],
    "codex-api-key": [{"api-key": "sk-proj-fake-codex", "base-url": "https://api.openai.com/v1"}],
    "openai-compatibility": [
        {
            "name": "openrouter",
            "base-url": "https://openrouter.ai/api/v1",
            "api-key-entries": [{"api-key": "sk-or-fake-1"}, {"api-key": "sk-or-fake-2"}],
        },
        {
            "name": "local",
            "base-url": "http://localhost:1234/v1",
            "api-key-entries": [{"api-key": "x"}],
        },
    ],
}


def swapped(person: str) -> dict[str, Any]:
    return {
        "claudeAiOauth": {
            "accessToken": f"sk-ant-oat01-fake-{person}",
            "refreshToken": f"sk-ant-ort01-fake-{person}",
            "expiresAt": 4070908800000,
            "refreshTokenExpiresAt": 4070995200000,
        }
    }


CLAUDE_SWAP = {
    "version": 1,
    "exportedFrom": "linux",
    "swapVersion": "1.0",
    "encrypted": False,
    "accounts": [
        {
            "number": 1,
            "email": "one@example.com",
            "uuid": "uuid-one",
            "organizationUuid": "org-one",
            "alias": "Work",
            "credentials": swapped("one"),
            "config": {"oauthAccount": {}},
        },
        {
            "number": 2,
            "email": "two@example.com",
            "kind": "api_key",
            "credentials": "sk-ant-api03-fake-two",
            "config": {},
        },
    ],
}
TEAMCLAUDE = {
    "proxy": {"port": 3456, "apiKey": "tc-fake"},
    "upstream": "https://api.anthropic.com",
    "accounts": [
        {
            "name": "one@example.com (Acme)",
            "type": "oauth",
            "accountUuid": "uuid-one",
            "orgUuid": "org-one",
            "priority": 1,
            "accessToken": "sk-ant-oat01-fake-one",
            "refreshToken": "sk-ant-ort01-fake-one",
            "expiresAt": 4070908800000,
            "routing": "socks5h://a:fake-password@proxy.example.com",
        },
        {"name": "key", "type": "apikey", "apiKey": "sk-ant-api03-fake-key", "disabled": True},
        {"name": "mine", "type": "oauth", "importFrom": "~/.claude/.credentials.json"},
        {"name": "codex", "type": "oauth", "provider": "codex"},
    ],
}
LITELLM = {
    "model_list": [
        {
            "model_name": "gpt-4o",
            "litellm_params": {
                "model": "azure/gpt-4o-eu",
                "api_base": "https://mine.openai.azure.com/",
                "api_key": "os.environ/AZURE_KEY",
                "rpm": 6,
            },
        },
        {
            "model_name": "claude",
            "litellm_params": {
                "model": "anthropic/claude-opus-5-5",
                "api_key": "sk-ant-api03-fake-l",
                "weight": 2,
                "max_parallel_requests": 4,
            },
        },
        {
            "model_name": "claude-sonnet-5-5",
            "litellm_params": {
                "model": "anthropic/claude-sonnet-5-5",
                "api_key": "sk-ant-api03-fake-l",
            },
        },
        {"model_name": "gpt-5", "litellm_params": {"model": "gpt-5"}},
        {
            "model_name": "qwen",
            "litellm_params": {
                "model": "openai/qwen3",
                "api_base": "https://llm.example.com:8443/v1",
                "api_key": "os.environ/MY_KEY",
            },
        },
        {"model_name": "nova", "litellm_params": {"model": "bedrock/amazon.nova"}},
        {
            "model_name": "llama",
            "litellm_params": {"model": "ollama/llama", "api_base": "http://localhost:11434"},
        },
    ],
    "general_settings": {"master_key": "sk-fake-master"},
    "litellm_settings": {"fallbacks": [{"gpt-4o": ["claude"]}]},
}


def row(name: str, provider: str, **more: Any) -> dict[str, Any]:
    usual = {"api_key": None, "refresh_token": "", "access_token": None, "expires_at": None}
    settings = {"paused": 0, "priority": 0, "custom_endpoint": None, "model_mappings": None}
    return {"id": name, "name": name, "provider": provider, **usual, **settings, **more}


CCFLARE = [
    row(
        "one",
        "anthropic",
        access_token="sk-ant-oat01-fake-one",
        refresh_token="sk-ant-ort01-fake-one",
        expires_at=4070908800000,
        priority=2,
    ),
    row("console", "claude-console-api", api_key="sk-ant-api03-fake", refresh_token="", paused=1),
    row("zai", "zai", api_key="fake-zai", refresh_token="fake-zai"),
    row(
        "mine",
        "openai-compatible",
        api_key="fake-mine",
        refresh_token="fake-mine",
        custom_endpoint='{"endpoint": "https://llm.example.com/v1", "modelMappings": {}}',
        model_mappings="{}",
    ),
    row("nano", "nanogpt", api_key="fake-nano"),
]

SINGLE = {
    "cliproxy.yaml": CLIPROXY_CONFIG,
    "swap.json": CLAUDE_SWAP,
    "teamclaude.json": TEAMCLAUDE,
    "litellm.yaml": LITELLM,
    "ccflare.json": CCFLARE,
    "claude.json": claude_file("one"),
}
PROGRAMS = {
    "auth": "CLIProxyAPI",
    "cliproxy.yaml": "CLIProxyAPI",
    "swap.json": "claude-swap",
    "teamclaude.json": "teamclaude",
    "litellm.yaml": "LiteLLM",
    "ccflare.json": "better-ccflare",
    "claude.json": "CLIProxyAPI",
}
SECRETS = ("fake-", "fake_", "eyJ", "GOCSPX", "of-a-client")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "OPENAI_API_KEY", "CODEX_HOME", "CLAUDE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, document in SINGLE.items():
        text = yaml.safe_dump(document) if name.endswith(".yaml") else json.dumps(document)
        (tmp_path / name).write_text(text)
    folder = tmp_path / "auth"
    folder.mkdir()
    for name, document in CLIPROXY_FILES.items():
        (folder / name).write_text(json.dumps(document))
    return tmp_path


def database(folder: Path) -> Path:
    file = folder / "better-ccflare.db"
    with closing(sqlite3.connect(file)) as made:
        names = list(CCFLARE[0])
        made.execute(f"CREATE TABLE accounts ({', '.join(names)})")
        for one in CCFLARE:
            marks = ", ".join("?" * len(names))
            made.execute(f"INSERT INTO accounts VALUES ({marks})", list(one.values()))
        made.commit()
    return file


def swap_folder(folder: Path) -> Path:
    store = folder / "swap"
    (store / "credentials").mkdir(parents=True)
    entries = {
        "1": {"email": "one@example.com", "uuid": "uuid-one", "organizationUuid": "org-one"},
        "2": {"email": "two@example.com", "uuid": "uuid-two", "organizationUuid": ""},
    }
    (store / "sequence.json").write_text(json.dumps({"accounts": entries, "sequence": [1, 2]}))
    held = base64.b64encode(json.dumps(swapped("one")).encode())
    (store / "credentials" / ".creds-1-one@example.com.enc").write_bytes(held)
    return store


def come_over(home: Path) -> dict[str, Any]:
    config = load(home / OWN, os.environ)
    return {str(entry.account.key): entry for entry in config.accounts}


# -- what comes over


@pytest.mark.parametrize(
    ("source", "keys", "left"),
    [
        (
            "auth",
            {
                "claude-code/one@example.com": True,
                "claude-code/two@example.com": True,
                "codex/one@example.com": True,
                "gemini-cli/one@example.com": True,
            },
            ["new", "notes.json", "q@example.com", "the proxy of two@example.com"],
        ),
        (
            "cliproxy.yaml",
            {
                "gemini/gemini-api-key-1": False,
                "claude-example-com/claude-api-key-1": False,
                "openai/codex-api-key-1": False,
                "openrouter/openrouter-1": False,
                "openrouter/openrouter-2": False,
            },
            ["api-keys", "local-1 at localhost", "the logins in ~/.cli-proxy-api"],
        ),
        (
            "swap.json",
            {"claude-code/work": True, "anthropic/two@example.com": False},
            [],
        ),
        (
            "teamclaude.json",
            {
                "claude-code/one@example.com-(acme)": True,
                "anthropic/key": False,
                "claude-code/mine": False,
                "codex/codex": False,
            },
            ["the proxy of one@example.com (Acme)"],
        ),
        (
            "litellm.yaml",
            {
                "azure/azure-key": False,
                "anthropic/litellm": False,
                "openai/openai-api-key": False,
                "llm-example-com/my-key": False,
            },
            [
                "accounts of bedrock",
                "fallbacks",
                "master_key and virtual keys",
                "model names of its own (gpt-4o, claude, qwen, nova)",
                "ollama/llama",
                "rpm and tpm",
            ],
        ),
        (
            "ccflare.json",
            {
                "claude-code/one": True,
                "anthropic/console": False,
                "zai/zai": False,
                "llm-example-com/mine": False,
            },
            ["nano", "the model mappings of mine"],
        ),
        ("claude.json", {"claude-code/one@example.com": True}, []),
    ],
)
def test_what_comes_over_and_what_does_not(home, capsys, source, keys, left):
    program = PROGRAMS[source]
    before = {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
    asked = ["import", source, "--take-over", "--yes", "--json"]
    assert run(asked) == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert (said["program"], said["written"]) == (program, True)
    assert {one["key"]: one["kind"] == "login" for one in said["accounts"]} == keys
    assert sorted(one["what"] for one in said["left"]) == left
    assert all(one["why"] for one in said["left"])
    accounts = come_over(home)
    assert accounts.keys() == keys.keys()
    for key, is_login in keys.items():
        assert isinstance(accounts[key].source, OAuthSource) is is_login
    assert (home / OWN).stat().st_mode & 0o777 == 0o600
    assert not [secret for secret in SECRETS if secret in out + err]
    if any(keys.values()):
        assert f"{program} must be stopped for good first" in err
    # Of the other program nothing is touched.
    assert all(file.read_bytes() == content for file, content in before.items())


def test_what_belongs_to_an_account_comes_with_it(home):
    assert run(["import", "auth", "--take-over", "--yes"]) == 0
    accounts = come_over(home)
    first = accounts["claude-code/one@example.com"]
    # There the higher one is preferred, here the lower one.
    assert (first.account.priority, first.account.weight) == (-5, 3)
    assert not accounts["claude-code/two@example.com"].account.enabled
    codex = accounts["codex/one@example.com"]
    assert codex.account.companions == {"account_id": "id-one"}
    assert codex.source.settings.client_id == "app_fake"
    assert codex.source.expires_at == 4070908800.0
    gemini = accounts["gemini-cli/one@example.com"]
    assert gemini.account.companions == {"project": "project-one"}
    assert gemini.source.settings.client_id == "1-fake.apps.googleusercontent.com"
    assert gemini.source.settings.client_secret.reveal() == "GOCSPX-fake-client"


def test_of_claude_it_is_said_whose_login_it_is_and_when_it_ends(home):
    assert run(["import", "swap.json", "--take-over", "--yes"]) == 0
    entry = come_over(home)["claude-code/work"]
    assert entry.account.companions == {"account_id": "uuid-one", "organization": "org-one"}
    assert entry.source.login_ends_at == 4070995200.0


def test_keys_that_are_elsewhere_stay_there(home, monkeypatch):
    monkeypatch.setenv("AZURE_KEY", "fake-azure")
    assert run(["import", "litellm.yaml", "--yes"]) == 0
    accounts = come_over(home)
    azure = accounts["azure/azure-key"]
    assert azure.source.describe() == "env AZURE_KEY"
    assert azure.account.companions["host"] == "mine.openai.azure.com"
    assert accounts["openai/openai-api-key"].source.describe() == "env OPENAI_API_KEY"
    anthropic = accounts["anthropic/litellm"].account
    assert (anthropic.weight, anthropic.max_concurrent) == (2, 4)
    own = load(home / OWN, os.environ).providers["llm-example-com"]
    assert [(rule.host, rule.port) for rule in own.hosts] == [("llm.example.com", 8443)]


def test_a_database_and_a_folder_are_read_as_the_export_is(home, capsys):
    assert run(["import", str(database(home)), "--take-over", "--yes", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["accounts"]) == 4
    store = swap_folder(home)
    options = ["--take-over", "--yes", "--json", "--accounts-file", str(home / "other.yaml")]
    assert run(["import", str(store), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["key"] for one in said["accounts"]] == ["claude-code/one@example.com"]
    (left,) = said["left"]
    assert left["what"] == "two@example.com"
    assert "cswap --export" in left["why"]


# -- before anything is written


@pytest.mark.parametrize("source", SINGLE)
def test_a_login_comes_over_only_where_that_is_said(home, capsys, source):
    code = run(["import", source, "--yes", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert not [one for one in said["accounts"] if one["kind"] == "login"]
    assert code == (0 if said["accounts"] else 1)
    text = (home / OWN).read_text() if (home / OWN).exists() else ""
    assert "refresh_token" not in text


@pytest.mark.parametrize("how", [["--dry-run"], ["--dry-run", "--yes"], []])
def test_it_is_shown_first(home, capsys, how):
    assert run(["import", "teamclaude.json", *how]) == 0
    out, err = capsys.readouterr()
    assert "teamclaude: 3 to ~/.config/account-pool/accounts.yaml, 2 left behind" in out
    assert "+ anthropic/key" in out
    assert "its key is copied; disabled, as there" in out
    assert "its key stays in the file ~/.claude/.credentials.json" in out
    assert "a login works for one program: --take-over, once teamclaude is stopped for good" in out
    assert "nothing was written" in out
    assert not (home / OWN).exists()
    assert not [secret for secret in SECRETS if secret in out + err]


@pytest.mark.parametrize(("answer", "written"), [("y", True), ("n", False), ("", False)])
def test_a_terminal_is_asked(home, capsys, monkeypatch, answer, written):
    monkeypatch.setattr(module.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _question: answer)
    assert run(["import", "swap.json", "--take-over"]) == 0
    assert (home / OWN).exists() is written


def test_what_the_pool_has_is_not_added_again(home, capsys):
    assert run(["import", "swap.json", "--take-over", "--yes"]) == 0
    before = (home / OWN).read_text()
    capsys.readouterr()
    assert run(["import", "swap.json", "--take-over", "--yes"]) == 1
    out, err = capsys.readouterr()
    assert "it is claude-code/work" in out
    assert "it is anthropic/two@example.com" in out
    assert "nothing of claude-swap can be imported" in err
    # The same person, by another program.
    assert run(["import", "teamclaude.json", "--take-over", "--yes"]) == 0
    assert "it is claude-code/work" in capsys.readouterr().out
    assert (home / OWN).read_text().startswith(before)


def test_what_reads_the_same_variable_is_not_added_again(home, capsys):
    """Also where that is not set here."""
    assert run(["import", "litellm.yaml", "--yes"]) == 0
    assert "its key stays in the variable AZURE_KEY" in capsys.readouterr().out
    before = (home / OWN).read_text()
    assert run(["import", "litellm.yaml", "--yes"]) == 1
    assert (home / OWN).read_text() == before


def test_a_label_that_is_taken_gets_a_number(home):
    file = home / OWN
    file.parent.mkdir(parents=True)
    file.write_text("# mine\naccounts:\n  - {provider: anthropic, label: key, token: sk-ant-x}\n")
    file.chmod(0o600)
    before = file.read_text()
    assert run(["import", "teamclaude.json", "--yes"]) == 0
    assert "anthropic/key-2" in come_over(home)
    assert file.read_text().startswith(before)
    assert file.with_name("accounts.yaml.bak").read_text() == before


def test_all_of_it_is_written_or_nothing(home, capsys, monkeypatch):
    def full(*_args: object) -> None:
        raise module.CannotEdit("the disk is full")

    file = home / OWN
    file.parent.mkdir(parents=True)
    file.write_text("accounts: [{provider: openai, label: a, token: sk-a}]\n")
    before = file.read_text()
    monkeypatch.setattr("account_pool.config.edit.put_in_place", full)
    assert run(["import", "teamclaude.json", "--yes"]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert file.read_text() == before
    assert [path.name for path in file.parent.iterdir()] == ["accounts.yaml"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{}", "is nothing that is known here: it may be the auth folder"),
        ("not: [closed", "is nothing that is known here"),
        ('{"accounts": "sk-fake-x"}', "is nothing that is known here"),
        (b"\xff\xfe\x00", "is nothing that is known here"),
        (b"SQLite format 3\0broken", "has no table of accounts that can be read"),
        (None, "No such file"),
    ],
)
def test_what_is_no_file_of_theirs(home, capsys, content, why):
    file = home / "x.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run(["import", str(file)]) == 1
    err = capsys.readouterr().err
    assert why in err
    assert "sk-fake-x" not in err
    assert err.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_what_is_not_read_of_a_folder_is_said(home, capsys, monkeypatch):
    (home / "auth" / "a-cut-off.json").write_text('{"type": "claude", "access_to')
    monkeypatch.setattr(module, "_MAX_FILES", 3)
    assert run(["import", str(home / "auth"), "--dry-run", "--json"]) == 1
    left = {one["what"]: one["why"] for one in json.loads(capsys.readouterr().out)["left"]}
    assert left["a-cut-off.json"] == "what is in it cannot be read"
    assert left["5 more files"] == "the first 3 are read"


def test_what_has_no_size_is_not_read_for_ever(home, capsys, monkeypatch):
    monkeypatch.setattr(module, "_MAX_BYTES", 100)
    pipe = home / "x.json"
    os.mkfifo(pipe)
    text = json.dumps({"proxy": {}, "accounts": [], "more": "x" * 100}).encode()
    writer = threading.Thread(target=lambda: pipe.write_bytes(text), daemon=True)
    writer.start()
    assert run(["import", str(pipe)]) == 1
    assert "is larger than 16 MiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    "document",
    [
        {"accounts": [{"name": "sk-ant-api03-fake-of-a", "upstream": url, "apiKey": "x"}]}
        | {"proxy": {}}
        for url in ("http://a.example.com", "https://[")
    ]
    + [
        {
            "openai-compatibility": [
                {"name": "sk-ant-api03-fake-of-a", "api-key-entries": [{"x": 1}]}
            ]
        }
    ],
)
def test_a_name_that_is_a_key_is_not_shown(document: Any) -> None:
    contents = recognise({"x.json": document})
    assert contents is not None
    (left,) = contents.items
    assert isinstance(left, Left)
    assert "sk-ant" not in left.what + left.why


@pytest.mark.parametrize(
    "document",
    [
        {"openai-compatibility": [{"api-keys": 1}]},
        {"model_list": [], "general_settings": {7: "a number where a name belongs"}},
    ],
)
def test_an_unusual_value_is_no_account(document: Any) -> None:
    contents = recognise({"x.json": document})
    assert contents is not None
    assert contents.items == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["accounts", "proxy", "type", "model_list", "litellm_params", "model", "token",
                 "credentials", "swapVersion", "access_token", "refresh_token", "provider", "name",
                 "api_key", "api_base", "api-keys", "openai-compatibility", "claudeAiOauth",
                 "base-url", "custom_endpoint", "email", "upstream", "priority", "expired"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_whatever_is_in_a_file_is_an_account_or_said(document: Any) -> None:
    contents = recognise({"x.json": document})
    for item in contents.items if contents else ():
        if isinstance(item, Left):
            assert item.what is not None and item.why
        else:
            assert isinstance(item, Found)
            assert item.provider and item.label and item.written["token"]
