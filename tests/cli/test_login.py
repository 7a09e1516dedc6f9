"""`account-pool login`: what is added to accounts.yaml, and what is told."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from account_pool.cli import add as module
from account_pool.cli.main import run
from account_pool.config.loader import load
from account_pool.credentials import keychain
from account_pool.credentials.oauth import OAuthSource

TOKENS = ("fake-access-000", "fake-refresh-000", "gho_fake000")
FILES: dict[str, tuple[str, Any]] = {
    "codex": (
        ".codex/auth.json",
        {
            "tokens": {
                "access_token": "fake-access-000",
                "refresh_token": "fake-refresh-000",
                "account_id": "account-1",
            }
        },
    ),
    "claude": (
        ".claude/.credentials.json",
        {
            "claudeAiOauth": {
                "accessToken": "fake-access-000",
                "refreshToken": "fake-refresh-000",
                "expiresAt": 1796083200000,
            }
        },
    ),
    "gemini": (
        ".gemini/oauth_creds.json",
        {
            "access_token": "fake-access-000",
            "refresh_token": "fake-refresh-000",
            "expiry_date": 1796083200000,
        },
    ),
    "copilot": (
        ".config/github-copilot/apps.json",
        {"github.com:Iv1.x": {"user": "me", "oauth_token": "gho_fake000"}},
    ),
}
PROVIDERS = {
    "codex": "codex",
    "claude": "claude-code",
    "gemini": "gemini-cli",
    "copilot": "copilot",
    "gh": "copilot",
}

#: Where accounts are written while none are in use.
OWN = ".config/account-pool/accounts.yaml"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with every tool's login in it, and gh on PATH."""
    for name in ("CODEX_HOME", "CLAUDE_CONFIG_DIR", "XDG_CONFIG_HOME", "GH_CONFIG_DIR", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    for name, document in FILES.values():
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.touch(mode=0o600)
        file.write_text(json.dumps(document))
    gh = tmp_path / "bin" / "gh"
    gh.parent.mkdir()
    gh.write_text("#!/bin/sh\n")
    gh.chmod(0o700)
    return tmp_path


@pytest.fixture
def no_keychain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keychain, "_find", lambda _service: None)


@pytest.fixture
def quiet(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """No token is ever shown."""
    yield
    out, err = capsys.readouterr()
    assert not [token for token in TOKENS if token in out + err]


def account(home: Path):
    (entry,) = load(home / OWN, os.environ).accounts
    return entry


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("tool", FILES)
def test_an_account_refers_to_what_the_tool_stored(home, tool):
    before = (home / FILES[tool][0]).read_bytes()
    assert run(["login", "--from", tool, "--label", "Mine"]) == 0
    entry = account(home)
    assert str(entry.account.key) == f"{PROVIDERS[tool]}/mine"
    reading = entry.source.read_now()
    assert reading is not None and reading.secret.reveal() in TOKENS
    text = (home / OWN).read_text()
    assert f"file: ~/{FILES[tool][0]}" in text
    assert not [token for token in TOKENS if token in text]
    assert (home / FILES[tool][0]).read_bytes() == before


def test_gh_is_asked_each_time(home, capsys):
    assert run(["login", "--from", "gh"]) == 0
    assert account(home).source.describe() == "command gh auth token"
    (home / "bin" / "gh").unlink()
    assert run(["login", "--from", "gh", "--label", "b"]) == 1
    assert "gh is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["codex", "claude"])
def test_a_copy_is_refreshed_by_us_and_says_what_follows(home, capsys, tool):
    assert run(["login", "--from", tool, "--copy"]) == 0
    entry = account(home)
    assert isinstance(entry.source, OAuthSource)
    assert entry.source.refresh_token.reveal() == "fake-refresh-000"
    if tool == "codex":
        assert entry.account.companions == {"account_id": "account-1"}
    else:
        assert entry.source.expires_at == 1796083200.0
    if os.name == "posix":
        assert (home / OWN).stat().st_mode & 0o777 == 0o600
    out, err = capsys.readouterr()
    assert f"{tool} must log in again" in out
    assert not [token for token in TOKENS if token in out + err]


@pytest.mark.usefixtures("quiet")
def test_a_copy_of_a_token_that_does_not_change_is_that_token(home):
    assert run(["login", "--from", "copilot", "--copy"]) == 0
    reading = account(home).source.read_now()
    assert reading is not None and reading.secret.reveal() == "gho_fake000"


def test_a_copy_that_cannot_be_refreshed_is_refused(home, capsys):
    assert run(["login", "--from", "gemini", "--copy"]) == 1
    assert "client_id" in capsys.readouterr().err
    assert not (home / OWN).exists()


def test_another_file_can_be_named(home):
    (home / FILES["codex"][0]).rename(home / "other.json")
    assert run(["login", "--from", "codex", "--file", "other.json"]) == 0
    assert "file: " + str(home / "other.json") in (home / OWN).read_text() or (
        "file: ~/other.json" in (home / OWN).read_text()
    )


def test_a_second_account_keeps_the_first_and_its_comments(home, capsys):
    assert run(["login", "--from", "codex"]) == 0
    file = home / OWN
    file.write_text("# mine\n" + file.read_text() + "\n# options\npool: {gate: 3}\n")
    before = file.read_text()
    assert run(["login", "--from", "codex"]) == 1
    assert "already has an account codex/default; choose another label" in capsys.readouterr().err
    assert file.read_text() == before
    assert run(["login", "--from", "codex", "--label", "b"]) == 0
    assert file.read_text().startswith(before.partition("\n# options")[0])
    assert file.read_text().endswith("\n# options\npool: {gate: 3}\n")
    assert (home / f"{OWN}.bak").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["login"], 2, "write one of claude, codex, gemini, copilot, or --from TOOL"),
        (["login", "copilot", "--from", "gh"], 2, "gemini, copilot, or --from TOOL"),
        (["login", "openai"], 2, "gemini, copilot, or --from TOOL"),
        (["login", "copilot", "--renew"], 2, "belong to claude, codex and gemini"),
        (["login", "codex", "--copy"], 2, "codex takes --label, --program, --renew"),
        (["login", "copilot", "--copy"], 2, "--copy and --file belong to it"),
        (["login", "--from", "gh", "--host", "a.ghe.com"], 2, "belong to copilot"),
        (["login", "--from", "emacs"], 1, "write one of codex, claude, gemini, copilot, gh"),
        (["login", "--from", "gh", "--label", " "], 1, "at least one character"),
        (["login", "copilot", "--host", "github.example.com"], 1, "such as acme.ghe.com"),
        (["login", "copilot", "--base-url", "http://github.example"], 1, "unencrypted"),
    ],
)
def test_what_cannot_be_done_is_one_line(home, capsys, arguments, code, why):
    assert run(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert why in err
    assert err.count("\n") == 1
    assert not (home / OWN).exists()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("tool", "service"), [("claude", "Claude Code-credentials"), ("codex", "Codex Auth")]
)
def test_a_login_in_the_keychain_is_read_there(home, monkeypatch, tool, service):
    file, document = FILES[tool]
    (home / file).unlink()
    asked = []

    def find(name: str) -> str:
        asked.append(name)
        return json.dumps(document)

    monkeypatch.setattr(keychain, "_find", find)
    assert run(["login", "--from", tool]) == 0
    entry = account(home)
    assert entry.account.provider == PROVIDERS[tool]
    assert entry.source.describe() == f"keychain {service}"
    assert asked == [service]
    # What is named, or copied, is a file.
    assert run(["login", "--from", tool, "--copy", "--label", "b"]) == 1
    assert asked == [service]


@pytest.mark.usefixtures("no_keychain")
def test_a_tool_that_is_not_logged_in(home, capsys):
    (home / FILES["claude"][0]).unlink()
    assert run(["login", "--from", "claude"]) == 1
    err = capsys.readouterr().err
    assert "does not exist" in err
    assert err.count("\n") == 1


# -- with GitHub


@pytest.fixture
def github() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A scripted server of the device flow: its address, and what it will answer."""
    code = {
        "device_code": "device-fake",
        "user_code": "ABCD-1234",
        "verification_uri": "https://github.com/login/device",
        "interval": 0.01,
    }
    answers = [code, {"error": "authorization_pending"}, {"access_token": "gho_fake000"}]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = json.dumps(answers.pop(0)).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()
        thread.join()


def test_a_login_to_github(home, capsys, github):
    base, _ = github
    assert run(["login", "copilot", "--label", "me", "--base-url", base]) == 0
    entry = account(home)
    assert str(entry.account.key) == "copilot/me"
    reading = entry.source.read_now()
    assert reading is not None and reading.secret.reveal() == "gho_fake000"
    if os.name == "posix":
        assert (home / OWN).stat().st_mode & 0o777 == 0o600
    out, err = capsys.readouterr()
    assert "Open https://github.com/login/device and enter ABCD-1234" in out
    assert "gho_" not in out + err


def test_a_login_to_a_tenant_defines_its_provider(home, github):
    base, answers = github
    again = list(answers)
    host = ["--host", "Acme.ghe.com", "--base-url", base]
    assert run(["login", "copilot", *host]) == 0
    answers += again
    assert run(["login", "copilot", "--label", "b", *host]) == 0
    config = load(home / OWN, os.environ)
    assert [str(e.account.key) for e in config.accounts] == ["ghe-acme/default", "ghe-acme/b"]
    assert [rule.host for rule in config.providers["ghe-acme"].hosts] == [
        "copilot-api.acme.ghe.com",
        "api.acme.ghe.com",
    ]
    exchange = config.exchanges["ghe-acme"].token_url
    assert exchange == "https://api.acme.ghe.com/copilot_internal/v2/token"


@pytest.mark.parametrize(
    ("text", "arguments", "why"),
    [
        ("accounts: [{provider: copilot, label: default, token: x}]", "", "choose another label"),
        ("accounts: [", "", "is not YAML"),
        ('{"accounts": []}', "--host acme.ghe.com", "add the account by hand"),
        ("", "--accounts-file missing/accounts.yaml", "cannot write in"),
    ],
)
def test_nobody_logs_in_for_a_token_without_a_place(capsys, github, text, arguments, why):
    base, answers = github
    Path(OWN).parent.mkdir(parents=True)
    Path(OWN).write_text(text)
    assert run(["login", "copilot", "--base-url", base, *arguments.split()]) == 1
    out, err = capsys.readouterr()
    assert why in err
    assert out == ""
    assert len(answers) == 3


def test_a_login_that_is_denied(home, capsys, github):
    base, answers = github
    answers[2] = {"error": "access_denied"}
    assert run(["login", "copilot", "--base-url", base]) == 1
    assert "cancelled" in capsys.readouterr().err
    assert not (home / OWN).exists()


def test_ctrl_c_writes_nothing(home, capsys, monkeypatch):
    async def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_device_login", interrupted)
    assert run(["login", "copilot"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (home / OWN).exists()
