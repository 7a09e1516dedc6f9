"""`account-pool login claude`, `codex`, `gemini`: with the real tools, and with stand-ins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyring
import pytest
from keyring.backend import KeyringBackend

from account_pool.cli import tool_login as module
from account_pool.cli.main import run
from account_pool.config.loader import load
from account_pool.config.review import ending_logins
from account_pool.credentials.oauth import OAuthSource
from tests.cli import authorisation as servers
from tests.cli.authorisation import CLAUDE_ORGANIZATION, Authorisation, jwt
from tests.patience import PATIENCE_S

OWN = ".config/account-pool/accounts.yaml"
HOMES = ".mitmproxy/account-pool-logins"
KEYS = {"claude": "claude-code/work", "codex": "codex/work", "gemini": "gemini-cli/work"}
VARIABLES = {"claude": "CLAUDE_CONFIG_DIR", "codex": "CODEX_HOME", "gemini": "GEMINI_CLI_HOME"}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are scripts")

#: Does what it finds in `does.json` beside it: writes files below its home, prints, ends.
STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, signal, sys
here = pathlib.Path(sys.argv[0]).parent
does = json.loads((here / "does.json").read_text())
home = pathlib.Path(os.environ[does["home"]])
# GEMINI_CLI_HOME
seen = dict(arguments=sys.argv[1:], home=str(home), cwd=os.getcwd(), environ=dict(os.environ),
            mode=oct(home.stat().st_mode), files=sorted(p.name for p in home.rglob("*")))
(here / "seen.json").write_text(json.dumps(seen))
for name, content in does["files"].items():
    file = home / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
if does.get("signal"):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
sys.exit(does.get("code", 0))
"""


def of(tool: str, person: str = "one") -> dict[str, str]:
    """Return the files *tool* writes when *person* has logged in."""
    if tool == "claude":
        login = {
            "accessToken": f"sk-ant-oat01-fake-{person}",
            "refreshToken": f"sk-ant-ort01-fake-{person}",
            "expiresAt": 4102444800000,
            "refreshTokenExpiresAt": 4102444800000,
        }
        account = {
            "accountUuid": f"uuid-{person}",
            "organizationUuid": CLAUDE_ORGANIZATION,
            "emailAddress": f"{person}@example.com",
        }
        return {
            ".credentials.json": json.dumps({"claudeAiOauth": login}),
            ".claude.json": json.dumps({"oauthAccount": account}),
        }
    if tool == "codex":
        tokens = {
            "id_token": jwt(email=f"{person}@example.com", aud=["app_fake"]),
            "access_token": jwt(
                **{"https://api.openai.com/auth": {"chatgpt_account_id": f"id-{person}"}}
            ),
            "refresh_token": f"rt_fake_{person}",
            "account_id": f"id-{person}",
        }
        return {"auth.json": json.dumps({"tokens": tokens})}
    login = {
        "access_token": f"ya29.fake-{person}",
        "refresh_token": f"1//fake-{person}",
        "expiry_date": 4102444800000,
        "id_token": jwt(sub=f"sub-{person}", aud="123456789-fake0fake0.apps.googleusercontent.com"),
    }
    return {".gemini/oauth_creds.json": json.dumps(login)}


class Stage:
    """A home with stand-ins for the tools on PATH."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "bin"

    def does(self, tool: str, files: dict[str, str], **more: Any) -> None:
        """Install *tool*, which writes *files* when it is started."""
        program = self.folder / tool
        program.write_text(STAND_IN)
        program.chmod(0o700)
        (self.folder / "client.js").write_text(
            'GEMINI_CLI_HOME; var ID = "123456789-fake0fake0.apps.googleusercontent.com";'
            f'var SECRET = "GOCSPX-{"fake0" * 5}";'
        )
        does = {"home": VARIABLES[tool], "files": files, **more}
        (self.folder / "does.json").write_text(json.dumps(does))

    @property
    def seen(self) -> Any:
        return json.loads((self.folder / "seen.json").read_text())

    @property
    def text(self) -> str:
        return (self.home / OWN).read_text()

    @property
    def left(self) -> list[Path]:
        return sorted((self.home / HOMES).glob("*"))

    def account(self, key: str) -> Any:
        config = load(self.home / OWN, os.environ)
        return next(entry for entry in config.accounts if str(entry.account.key) == key)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    for name in ("XDG_CONFIG_HOME", "DISPLAY", *VARIABLES.values()):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    return Stage(tmp_path)


@pytest.mark.parametrize("tool", KEYS)
def test_the_pool_takes_what_the_tool_got_in_a_home_of_its_own(stage, capsys, monkeypatch, tool):
    stage.does(tool, of(tool))
    daily = stage.home / {"claude": ".claude", "codex": ".codex", "gemini": ".gemini"}[tool]
    daily.mkdir()
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.setenv(name, "sk-fake-mine")
    assert run(["login", tool, "--label", "Work", "--", "--more"]) == 0
    entry = stage.account(KEYS[tool])
    assert isinstance(entry.source, OAuthSource)
    assert entry.source.refresh_token.reveal().endswith("one")
    assert (stage.home / OWN).stat().st_mode & 0o777 == 0o600
    seen = stage.seen
    assert Path(seen["home"]).parent == stage.home / HOMES
    assert seen["mode"].endswith("700")
    assert seen["cwd"] == seen["home"]
    assert seen["arguments"][-1] == "--more"
    assert "sk-fake-mine" not in [
        value for name, value in seen["environ"].items() if name.startswith(tool[:3].upper())
    ]
    assert (stage.left, list(daily.iterdir())) == ([], [])
    out, err = capsys.readouterr()
    assert f"added {KEYS[tool]}" in out
    assert "the folder it was made in is removed" in out
    assert "fake-one" not in out + err


def test_a_login_is_refreshed_by_the_application_it_was_made_with(stage):
    for tool in KEYS:
        stage.does(tool, of(tool))
        assert run(["login", tool, "--label", "work"]) == 0
    clients = {tool: stage.account(key).source.settings.client_id for tool, key in KEYS.items()}
    assert clients == {
        "claude": "9d1c250a-e61b-44d9-88ed-5944d1962f5e",
        "codex": "app_fake",
        "gemini": "123456789-fake0fake0.apps.googleusercontent.com",
    }
    secret = stage.account(KEYS["gemini"]).source.settings.client_secret
    assert secret.reveal() == "GOCSPX-" + "fake0" * 5


def test_several_logins_of_one_tool_live_side_by_side(stage, capsys):
    for person in ("one", "two"):
        stage.does("claude", of("claude", person))
        assert run(["login", "claude", "--label", person]) == 0
    tokens = [
        stage.account(f"claude-code/{p}").source.refresh_token.reveal() for p in ("one", "two")
    ]
    assert tokens == ["sk-ant-ort01-fake-one", "sk-ant-ort01-fake-two"]
    assert "added claude-code/two (two@example.com)" in capsys.readouterr().out
    assert stage.account("claude-code/two").account.companions == {
        "account_id": "uuid-two",
        "organization": CLAUDE_ORGANIZATION,
    }


@pytest.mark.parametrize("tool", ["claude", "codex"])
def test_an_account_that_is_in_the_pool_is_named_and_not_added_twice(stage, capsys, tool):
    stage.does(tool, of(tool))
    assert run(["login", tool, "--label", "work"]) == 0
    before = stage.text
    assert run(["login", tool, "--label", "other"]) == 1
    err = capsys.readouterr().err
    assert f"this is the account of {KEYS[tool]}, which is in the pool already" in err
    assert f"login {tool} --label work --renew" in err
    assert (stage.text, stage.left) == (before, [])


def test_a_label_that_is_taken_is_said_before_anybody_logs_in(stage, capsys):
    stage.does("claude", of("claude"))
    assert run(["login", "claude"]) == 0
    (stage.folder / "seen.json").unlink()
    assert run(["login", "claude"]) == 1
    err = capsys.readouterr().err
    assert "already has an account claude-code/default; choose another label, or log in" in err
    assert "login claude --label default --renew" in err
    assert not (stage.folder / "seen.json").exists()


def test_a_login_is_renewed_in_place(stage):
    stage.does("codex", of("codex"))
    assert run(["login", "codex", "--label", "work"]) == 0
    file = stage.home / OWN
    file.write_text(f"# mine\n{stage.text}    priority: 3 # stays\n")
    again = json.loads(of("codex")["auth.json"])
    again["tokens"]["refresh_token"] = "rt_fake_again"
    stage.does("codex", {"auth.json": json.dumps(again)})
    assert run(["login", "codex", "--label", "work", "--renew"]) == 0
    entry = stage.account("codex/work")
    assert entry.source.refresh_token.reveal() == "rt_fake_again"
    assert (entry.account.priority, entry.account.companions) == (3, {"account_id": "id-one"})
    assert stage.text.startswith("# mine\n")
    assert "# stays" in stage.text
    assert "rt_fake_one" not in stage.text


@pytest.mark.parametrize("account", ["{provider: codex, label: work, token: sk-old}", None])
def test_what_is_renewed_must_be_there(stage, capsys, account):
    stage.does("codex", of("codex"))
    file = stage.home / OWN
    file.parent.mkdir(parents=True)
    file.write_text(f"accounts: [{account or '{provider: openai, label: work, token: sk-x}'}]\n")
    file.chmod(0o600)
    if account:
        assert run(["login", "codex", "--label", "work", "--renew"]) == 0
        assert stage.account("codex/work").source.refresh_token.reveal() == "rt_fake_one"
        return
    assert run(["login", "codex", "--label", "work", "--renew"]) == 1
    assert "has no account codex/work" in capsys.readouterr().err


def test_another_account_does_not_take_the_place_of_one(stage, capsys):
    stage.does("claude", of("claude"))
    assert run(["login", "claude", "--label", "work"]) == 0
    before = stage.text
    stage.does("claude", of("claude", "two"))
    assert run(["login", "claude", "--label", "work", "--renew"]) == 1
    assert "another account than claude-code/work, which keeps" in capsys.readouterr().err
    assert (stage.text, stage.left) == (before, [])


@pytest.mark.parametrize(
    ("does", "code", "why"),
    [
        ({"files": {}}, 1, "claude ended without a login (exit code 0); try again"),
        ({"files": {}, "code": 3}, 1, "claude ended without a login (exit code 3)"),
        (
            {"files": {}, "signal": True},
            130,
            "interrupted before the login was complete; nothing was",
        ),
        ({"files": {".credentials.json": "{"}}, 1, "is neither JSON nor YAML"),
        ({"files": {".credentials.json": "{}"}}, 1, "holds no login of claude"),
    ],
)
def test_a_login_that_came_to_nothing(stage, capsys, does, code, why):
    stage.does("claude", **does)
    assert run(["login", "claude"]) == code
    assert why in capsys.readouterr().err
    assert not (stage.home / OWN).exists()
    assert bool(stage.left) == bool(does["files"])


def test_a_login_that_cannot_be_written_is_kept_and_can_be_taken(stage, capsys, monkeypatch):
    stage.does("codex", of("codex"))

    def full(*_args: object, **_more: object) -> None:
        raise module.CannotEdit("the disk is full")

    monkeypatch.setattr(module, "write", full)
    assert run(["login", "codex", "--label", "work"]) == 1
    (home,) = stage.left
    said = capsys.readouterr().err
    assert "the disk is full" in said
    file = f"~/{HOMES}/{home.name}/auth.json"
    assert f"login --from codex --file {file} --copy --label LABEL" in said
    asked = ["--file", str(home / "auth.json"), "--copy", "--label", "work"]
    assert run(["login", "--from", "codex", *asked]) == 0
    assert stage.account("codex/work").source.refresh_token.reveal() == "rt_fake_one"


def test_a_login_that_was_never_taken_is_named_the_next_time(stage, capsys):
    home = stage.home / HOMES / "codex-left"
    home.mkdir(parents=True)
    (home / "auth.json").write_text("{}")
    stage.does("codex", of("codex"))
    assert run(["login", "codex"]) == 0
    assert f"an earlier login is in ~/{HOMES}/codex-left" in capsys.readouterr().err
    assert stage.left == [home]


@pytest.mark.parametrize("tool", KEYS)
def test_a_tool_that_is_not_there(stage, capsys, tool):
    assert run(["login", tool]) == 127
    err = capsys.readouterr().err
    assert f"install it: npm install -g {module.TOOLS_THAT_LOG_IN[tool].package}" in err
    assert "--program PATH" in err
    assert not (stage.home / OWN).exists()


def test_a_tool_may_be_elsewhere(stage):
    stage.does("codex", of("codex"))
    elsewhere = stage.folder / "codex-next"
    (stage.folder / "codex").rename(elsewhere)
    assert run(["login", "codex", "--label", "work", "--program", str(elsewhere)]) == 0


def test_a_program_may_be_named_from_where_one_is(stage, monkeypatch):
    stage.does("claude", of("claude"))
    assert run(["login", "claude", "--label", "work", "--program", "bin/claude"]) == 0
    monkeypatch.setenv("PATH", "bin")
    stage.does("codex", of("codex"))
    assert run(["login", "codex", "--label", "work"]) == 0


def test_a_program_may_be_named_where_one_is(stage, monkeypatch):
    stage.does("claude", of("claude"))
    (stage.folder / "claude").rename(stage.folder / "mine")
    monkeypatch.chdir(stage.folder)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert run(["login", "claude", "--label", "work", "--program", "./mine"]) == 0


def test_a_gemini_with_one_home_only_is_not_started(stage, capsys):
    stage.does("gemini", of("gemini"))
    (stage.folder / "client.js").write_text("")
    assert run(["login", "gemini"]) == 1
    assert "this version of gemini has one home only" in capsys.readouterr().err
    assert not (stage.folder / "seen.json").exists()


@pytest.mark.parametrize("browser", [False, True])
def test_gemini_gets_no_terminal_where_it_opens_a_browser(stage, capfd, monkeypatch, browser):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("NO_BROWSER", "DEBIAN_FRONTEND", "WAYLAND_DISPLAY", "MIR_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    if browser:
        monkeypatch.setenv("DISPLAY", ":9")
    stage.does("gemini", of("gemini"))
    program = stage.folder / "gemini"
    program.write_text(STAND_IN.replace("sys.exit", "print('from the tool', flush=True)\nsys.exit"))
    piped = []
    before = module._copied_to_stdout
    monkeypatch.setattr(module, "_copied_to_stdout", lambda: piped.append(1) or before())
    assert run(["login", "gemini"]) == 0
    assert bool(piped) is browser
    assert "from the tool" in capfd.readouterr().out


class Keychain(KeyringBackend):
    """Keeps its items in a file, as the keychain of a system does."""

    priority = 1.0

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def _items(self) -> dict[str, str]:
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def get_password(self, service: str, username: str) -> str | None:
        return self._items().get(f"{service}\0{username}")

    def set_password(self, service: str, username: str, password: str) -> None:
        self.file.write_text(json.dumps({**self._items(), f"{service}\0{username}": password}))

    def delete_password(self, service: str, username: str) -> None:
        items = self._items()
        del items[f"{service}\0{username}"]
        self.file.write_text(json.dumps(items))


@pytest.fixture
def keychain(tmp_path: Path) -> Iterator[Keychain]:
    before = keyring.get_keyring()
    made = Keychain(tmp_path / "keychain.json")
    keyring.set_keyring(made)
    yield made
    keyring.set_keyring(before)


def test_on_macos_the_login_of_claude_comes_from_its_own_keychain_item(
    stage, keychain, monkeypatch
):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("USER", "me")
    files = of("claude")
    login = files.pop(".credentials.json")
    keychain.set_password("Claude Code-credentials", "me", "the user's own")
    home = stage.home / HOMES / "claude-fixed"
    # The name of the item is made from the folder, as in Claude Code.
    service = "Claude Code-credentials-" + module.hashlib.sha256(str(home).encode()).hexdigest()[:8]

    def made(*, prefix: str, dir: Path) -> str:
        home.mkdir()
        return str(home)

    monkeypatch.setattr(module.tempfile, "mkdtemp", made)
    monkeypatch.setattr(module, "write", _writing(module.write, keychain, service))
    keychain.set_password(service, "me", login)
    stage.does("claude", files)
    own = stage.home / "accounts.yaml"
    assert run(["login", "claude", "--accounts-file", str(own)]) == 0
    assert "sk-ant-ort01-fake-one" in own.read_text()
    assert keychain.get_password("Claude Code-credentials", "me") == "the user's own"
    assert not home.exists()


def _writing(write: Any, keychain: Keychain, service: str) -> Any:
    """Return *write*, which finds the item gone already: one place at a time holds the login."""

    def checked(*args: Any, **more: Any) -> None:
        assert keychain.get_password(service, "me") is None
        write(*args, **more)

    return checked


# -- the real tools


@pytest.fixture
def vendors(tmp_path: Path) -> Iterator[Authorisation]:
    (tmp_path / "vendors").mkdir()
    with servers.authorisation(tmp_path / "vendors") as running:
        yield running


def _version(program: str) -> str:
    asked = [program, "--version"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("tool", KEYS)
def test_the_real_tool_logs_in(tmp_path, vendors, tool):
    """As a person has it: our command, the tool, a browser, the vendor's servers (scripted)."""
    found = servers.vendor_tool(tool)
    if found is None:
        pytest.skip(
            f"{tool} is not installed: npm install -g {module.TOOLS_THAT_LOG_IN[tool].package}"
        )
    home = tmp_path / "home"
    programs = home / "bin"
    programs.mkdir(parents=True)
    (programs / tool).symlink_to(Path(found).resolve())
    browser = servers.browser(programs, vendors)
    trust = dict.fromkeys(
        ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "CODEX_CA_CERTIFICATE"),
        str(vendors.certificate.authority),
    )
    environ = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "HTTPS_PROXY": vendors.url,
        "https_proxy": vendors.url,
        "NO_PROXY": "localhost,127.0.0.1",
        "BROWSER": str(browser),
        "DISPLAY": ":9",
        "TERM": "xterm-256color",
        "DISABLE_AUTOUPDATER": "1",
        "PYTHONPATH": str(Path(module.__file__).parents[2]),
        **trust,
    }
    words = [
        sys.executable,
        "-c",
        "import sys; from account_pool.cli import main; sys.exit(main())",
    ]

    def log_in(label: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*words, "login", tool, "--label", label, *more],
            env=environ,
            cwd=home,
            input="y\n",
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    done = log_in("work")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"added {KEYS[tool]} (one@example.com)" in done.stdout
    config = load(home / OWN, {})
    (entry,) = config.accounts
    source = entry.source
    assert isinstance(source, OAuthSource)
    sent = vendors.tokens[0]
    # What may refresh it is what it was made with.
    assert source.settings.client_id == sent["client_id"]
    assert source.read_now() is not None
    if tool == "claude":
        assert entry.account.companions["organization"] == CLAUDE_ORGANIZATION
        # Older ones do not note it.
        assert source.login_ends_at is not None or "2.1.3" not in _version(found)
    if source.login_ends_at is not None:
        assert not ending_logins(config.accounts, source.login_ends_at - 8 * 86400)
        (notice,) = ending_logins(config.accounts, source.login_ends_at - 6 * 86400)
        assert "login claude --label work --renew" in notice.remedy
    if tool == "gemini":
        client_secret = source.settings.client_secret
        assert client_secret is not None
        assert client_secret.reveal() == sent["client_secret"]
    assert not list((home / HOMES).iterdir())
    left = {path.name for path in home.iterdir()}
    assert not left & {".claude", ".claude.json", ".codex", ".gemini"}
    if tool != "gemini":  # which names nobody in what is stored for the pool
        again = log_in("other")
        assert again.returncode == 1
        assert f"this is the account of {KEYS[tool]}" in again.stderr
    vendors.person = "two"
    assert log_in("other").returncode == 0
    vendors.refuses = True
    refused = log_in("third")
    assert refused.returncode == 1
    assert f"{tool} ended without a login" in refused.stderr
