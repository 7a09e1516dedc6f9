"""`account-pool login claude`, `codex`, `gemini`: a login that the pool owns, made by the tool.

The vendor's own tool logs in, as it always does, in a folder that it has for this login alone.
The pool takes the login from there and the folder is removed: from then on only the pool
refreshes that login. What the user's daily tool has stored is neither read nor changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from account_pool.cli.accounts import accounts_of
from account_pool.cli.add import CannotLogIn, copied, write
from account_pool.cli.child import SIGNALLED, CannotRun, Signals, Stopped, find_program
from account_pool.cli.output import fail, note
from account_pool.cli.processes import CONFDIR
from account_pool.config.accounts_file import command, shown
from account_pool.config.edit import require_editable
from account_pool.config.problems import CannotEdit, ConfigError
from account_pool.config.review import held_now, twin
from account_pool.core.account import AccountKey, normalise_label
from account_pool.credentials.files import read_private
from account_pool.credentials.new_logins import (
    VendorLogin,
    gemini_client,
    gemini_has_own_home,
    login_in,
)
from account_pool.credentials.sources import AccountEntry, CredentialError
from account_pool.credentials.vendor_logins import TOOLS
from account_pool.filesystem import expanded, make_private
from account_pool.providers.token_forms import hidden

_NOT_YET = "not-yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """How a tool logs in on its own. Read from the versions named at TOOLS_THAT_LOG_IN.

    Attributes:
        arguments: what makes it log in.
        home: the variable of the folder that holds all it stores.
        login: its file with the login, below that folder.
        package: what npm installs.
        files: what has to be there before it starts: text by path below the folder.
        sets: variables it needs, beside *home*.
        without: variables that would give it another login, or lead it elsewhere.
        piped: where it opens a browser, its stdout must be no terminal: in one it asks for
            consent on a screen that it does not draw.
    """

    arguments: tuple[str, ...]
    home: str
    login: str
    package: str
    files: Mapping[str, str] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    piped: bool = False


#: claude-code 2.1.332, codex 0.171, gemini-cli 0.61 (November 2026).
TOOLS_THAT_LOG_IN: Mapping[str, Tool] = {
    "claude": Tool(
        arguments=("auth", "login"),
        home="CLAUDE_CONFIG_DIR",
        login=".credentials.json",
        package="@anthropic-ai/claude-code",
        without=(
            "CLAUDE_SECURESTORAGE_CONFIG_DIR",
            "CLAUDE_CODE_OAUTH_TOKEN",
            "CLAUDE_CODE_OAUTH_REFRESH_TOKEN",
            "CLAUDE_CODE_CUSTOM_OAUTH_URL",
            "ANTHROPIC_API_KEY",
            "ANTHROPIC_AUTH_TOKEN",
            "ANTHROPIC_BASE_URL",
        ),
    ),
    "codex": Tool(
        arguments=("login",),
        home="CODEX_HOME",
        login="auth.json",
        package="@openai/codex",
        # Else it may use the keychain of the system, where all its logins are beside each other.
        files={"config.toml": 'cli_auth_credentials_store = "file"\n'},
        without=("OPENAI_API_KEY", "CODEX_API_KEY", "CODEX_ACCESS_TOKEN", "CODEX_SQLITE_HOME"),
    ),
    # It has no command to log in: it does so before it does anything else.
    "gemini": Tool(
        arguments=("--list-sessions",),
        home="GEMINI_CLI_HOME",
        login=".gemini/oauth_creds.json",
        package="@google/gemini-cli",
        files={
            ".gemini/settings.json": json.dumps(
                {"security": {"auth": {"selectedType": "oauth-personal"}}}
            )
        },
        sets={"GEMINI_CLI_TRUST_WORKSPACE": "true"},
        without=(
            "GEMINI_FORCE_ENCRYPTED_FILE_STORAGE",
            "GEMINI_API_KEY",
            "GOOGLE_API_KEY",
            "GOOGLE_GENAI_USE_GCA",
            "GOOGLE_GENAI_USE_VERTEXAI",
            "GOOGLE_CLOUD_ACCESS_TOKEN",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "CI",
        ),
        piped=True,
    ),
}
PROVIDERS = {tool: provider for provider, tool in TOOLS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogIn:
    """What the user asked for.

    Attributes:
        tool: of TOOLS_THAT_LOG_IN; with further arguments (*more*) for it.
        program: where it is; None: on PATH.
        renew: the account is in the pool, and gets this login in place of its own.
    """

    tool: str
    label: str
    program: str | None = None
    renew: bool = False
    more: Sequence[str] = ()

    @property
    def key(self) -> AccountKey:
        return AccountKey(PROVIDERS[self.tool], normalise_label(self.label))

    @property
    def again(self) -> str:
        return f"{command()} login {self.tool} --label {self.key.label}"


def log_in(asked: LogIn, path: Path, environ: Mapping[str, str]) -> int:
    """Have the tool log in, and write its login to *path*. Returns the exit code."""
    try:
        key, program = asked.key, _find(asked, environ)
        _require_place(asked, path, environ)
        with _home(asked) as home, Signals() as signals:
            print(f"Log in to the account for {key}. If the browser is logged in to")
            print("another one, log out there first, or use a private window.", flush=True)
            code = _run(asked, program, home.path, environ, signals)
            text = home.text()
            if text is None:
                if signals.passed or code >= SIGNALLED:
                    return fail(
                        "interrupted before the login was complete; nothing was written", 130
                    )
                return fail(f"{asked.tool} ended without a login (exit code {code}); try again")
            login = home.login(text)
            account = _account(asked, login, home.path, program)
            owner = login.owner or _claude_account(home.path)[1]
            try:
                _require_new(asked, account, path, environ)
            except SameAccount:
                home.is_done = True
                raise
            write(path, account, environ, private=True, renew=asked.renew)
            home.is_done = True
    except Stopped as stopped:
        return fail("interrupted; nothing was written", SIGNALLED + stopped.number)
    except CannotRun as error:
        return fail(error, error.code)
    except (CredentialError, CannotLogIn, CannotEdit, ConfigError, ValueError) as error:
        return fail(error)
    except OSError as error:
        return fail(f"{error.filename or 'the folder of the login'}: {error.strerror or error}")
    whose = f" ({hidden(owner)})" if owner else ""
    print()  # the last line of the tool may have no end
    print(f"{'renewed' if asked.renew else 'added'} {key}{whose} in {shown(path)}")
    print("Only the pool refreshes this login from now on; the folder it was made in is removed.")
    return 0


def _find(asked: LogIn, environ: Mapping[str, str]) -> str:
    """Return the program. Raises CannotRun that says how to get it."""
    try:
        # Absolute: the tool is started in a folder of its own, and PATH may have relative entries.
        return str(Path(find_program(asked.program or asked.tool, environ)).absolute())
    except CannotRun as error:
        package = TOOLS_THAT_LOG_IN[asked.tool].package
        why = f"{error}; install it: npm install -g {package}, or name it: --program PATH"
        raise CannotRun(why, error.code) from None


def _require_place(asked: LogIn, path: Path, environ: Mapping[str, str]) -> None:
    """Raise CannotEdit where the login could not be stored: nobody logs in for that."""
    token = {"oauth": {"refresh_token": _NOT_YET, "client_id": _NOT_YET}}
    account = {"provider": asked.key.provider, "label": asked.label, "token": token}
    try:
        require_editable(path, account, environ, renew=asked.renew)
    except CannotEdit as error:
        if not asked.renew and "already has" in str(error):
            how = f"log in to that one again: {asked.again} --renew"
            raise CannotEdit(f"{error}, or {how}") from None
        raise


# -- its folder


@dataclass(slots=True)
class _Home:
    """The folder of one login; *is_done*: the pool has what is in it, or nobody needs that."""

    path: Path
    tool: str
    is_done: bool = False

    @property
    def file(self) -> Path:
        return self.path / TOOLS_THAT_LOG_IN[self.tool].login

    def text(self) -> str | None:
        """Return what the tool has stored as its login, None without one."""
        if self.file.exists():
            # Nobody else can open the folder.
            self.file.chmod(0o600)
            return read_private(self.file, shown(self.file))
        if self.tool == "claude" and sys.platform == "darwin":
            return self._from_keychain()
        return None

    def login(self, text: str) -> VendorLogin:
        """Return the login in *text*. Raises CredentialError."""
        return login_in(self.tool, text, f"what {self.tool} stored")

    def _from_keychain(self) -> str | None:
        """Take the item that Claude Code keeps for this folder; it is there no more then.

        Until the pool has it, it is a file in the folder instead.
        """
        import keyring  # noqa: PLC0415 - on macOS only
        from keyring.errors import KeyringError  # noqa: PLC0415

        folder = unicodedata.normalize("NFC", str(self.path)).encode()
        service = f"Claude Code-credentials-{hashlib.sha256(folder).hexdigest()[:8]}"
        user = os.environ.get("USER") or os.environ.get("LOGNAME") or ""
        try:
            text = keyring.get_password(service, user)
            if text is None:
                return None
            self.file.touch(mode=0o600)
            self.file.write_text(text)
            keyring.delete_password(service, user)
        except KeyringError as error:
            note(f"the keychain item {service} stays ({type(error).__name__}): remove it")
        return self.file.read_text() if self.file.exists() else None


@contextmanager
def _home(asked: LogIn) -> Iterator[_Home]:
    """Make the folder, and remove it: unless there is a login in it that was not taken."""
    parent = expanded(CONFDIR) / "account-pool-logins"
    make_private(parent)
    _tell_of_others(parent, asked)
    made = tempfile.mkdtemp(prefix=f"{asked.tool}-", dir=parent)
    home = _Home(Path(made).resolve(), asked.tool)
    for name, text in TOOLS_THAT_LOG_IN[asked.tool].files.items():
        file = home.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    try:
        yield home
    finally:
        if home.is_done or not home.file.exists():
            shutil.rmtree(home.path, ignore_errors=True)
        else:
            note(f"the login is in {shown(home.path)}: {_how_to_take(asked, home.file)}")


def _how_to_take(asked: LogIn, file: Path) -> str:
    copy = f"{command()} login --from {asked.tool} --file {shown(file)} --copy --label LABEL"
    return f"take it with `{copy}`, or remove the folder"


def _tell_of_others(parent: Path, asked: LogIn) -> None:
    """Name logins that were made and never taken, as after a loss of power."""
    login = TOOLS_THAT_LOG_IN[asked.tool].login
    for folder in sorted(parent.glob(f"{asked.tool}-*")):
        if (file := folder / login).exists():
            note(f"an earlier login is in {shown(folder)}: {_how_to_take(asked, file)}")


# -- the tool


def _run(
    asked: LogIn, program: str, home: Path, environ: Mapping[str, str], signals: Signals
) -> int:
    """Run the tool in its folder, and return its exit code. Raises CannotRun, CannotLogIn."""
    tool = TOOLS_THAT_LOG_IN[asked.tool]
    kept = {name: value for name, value in environ.items() if name not in tool.without}
    given = {**kept, **tool.sets, tool.home: str(home)}
    words = [program, *tool.arguments, *asked.more]
    if asked.tool == "gemini" and not gemini_has_own_home(program):
        raise CannotLogIn(
            "this version of gemini has one home only, where your own login is; update it: npm "
            f"install -g {tool.package}"
        )
    if tool.piped and _has_browser(environ):
        with _copied_to_stdout() as descriptor:
            return signals.run(words, program, given, None, cwd=home, stdout=descriptor)
    return signals.run(words, program, given, None, cwd=home)


def _has_browser(environ: Mapping[str, str]) -> bool:
    """Say whether gemini opens a browser, as it decides that; else it asks for a code."""
    if environ.get("NO_BROWSER") or environ.get("DEBIAN_FRONTEND") == "noninteractive":
        return False
    if sys.platform == "linux":
        return any(environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "MIR_SOCKET"))
    return not environ.get("SSH_CONNECTION")


@contextmanager
def _copied_to_stdout() -> Iterator[int]:
    """Yield a descriptor that is no terminal; what is written there appears on our stdout."""
    ours, theirs = os.pipe()

    def copy() -> None:
        with os.fdopen(ours, "rb", buffering=0) as source:
            while chunk := source.read(65536):
                sys.stdout.write(chunk.decode(errors="replace"))
                sys.stdout.flush()

    thread = threading.Thread(target=copy, name="stdout of the tool", daemon=True)
    thread.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        # A program it left behind may hold the other end for ever.
        thread.join(timeout=2.0)


# -- what becomes of the login


def _account(asked: LogIn, login: VendorLogin, home: Path, program: str) -> dict[str, Any]:
    """Return the account as it is written down. Raises CannotLogIn."""
    if login.provider != asked.key.provider or login.refresh is None:
        raise CannotLogIn(
            f"{asked.tool} has stored a key and no login; add it: {command()} add {login.provider}"
        )
    companions = {**login.companions, **_claude_account(home)[0]}
    client = gemini_client(program, login.client_id) if asked.tool == "gemini" else {}
    return {
        "provider": login.provider,
        "label": asked.label,
        **copied(asked.tool, login, client, companions),
    }


def _claude_account(home: Path) -> tuple[dict[str, str], str | None]:
    """Return whose login it is, ids and address, as Claude Code notes it beside its login."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        account = json.loads((home / ".claude.json").read_text("utf-8"))["oauthAccount"]
        found = {
            "account_id": account.get("accountUuid"),
            "organization": account.get("organizationUuid"),
        }
        ids = {name: value for name, value in found.items() if isinstance(value, str) and value}
        owner = account.get("emailAddress")
        return ids, owner if isinstance(owner, str) else None
    return {}, None


def _require_new(
    asked: LogIn,
    account: Mapping[str, Any],
    path: Path,
    environ: Mapping[str, str],
) -> None:
    """Raise SameAccount if this is an account that the pool has already, or another one."""
    key = asked.key
    after = require_editable(path, account, environ, renew=asked.renew)
    new = next((entry for entry in after.accounts if entry.account.key == key), None)
    if new is None:
        return
    before = accounts_of(path, environ)
    other = twin(new, (entry for entry in before if entry.account.key != key))
    if other is not None:
        raise SameAccount(
            f"this is the account of {other}, which is in the pool already; nothing was "
            f"changed. Log in to another account, or to this one again: {command()} login "
            f"{asked.tool} --label {other.label} --renew"
        )
    old = next((entry for entry in before if entry.account.key == key), None)
    if asked.renew and old is not None and _are_different(old, new):
        raise SameAccount(
            f"this is another account than {key}, which keeps its login; log in to that one, or "
            "add this one under another label"
        )


class SameAccount(CannotLogIn):
    """It was logged in to an account that does not fit; the new login is worth nothing."""


def _are_different(old: AccountEntry, new: AccountEntry) -> bool:
    """Say whether both are known to be different accounts."""
    mine, theirs = (_companions(entry) for entry in (old, new))
    names = ("account_id", "user_id", "organization")
    return any(n in mine and n in theirs and mine[n] != theirs[n] for n in names)


def _companions(entry: AccountEntry) -> Mapping[str, str]:
    found = dict(entry.account.companions)
    for credential in held_now(entry).values():
        found |= credential.companions
    return found
