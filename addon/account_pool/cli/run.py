"""`account-pool run`: a proxy if none answers, the tool with what it needs to use it.

Reading order: `processes` (what is kept), `api` (how a proxy is asked), `shared` (the proxy),
`environment` and `certificates` (what the tool gets), `child` (the tool, and whether it ended
because of a limit).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import time
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from account_pool.cli import api
from account_pool.cli.accounts import find, how_to_add, mitmproxy_config, pool_with
from account_pool.cli.certificates import write_trust
from account_pool.cli.child import (
    SIGNALLED,
    CannotRun,
    Signals,
    Stopped,
    Tee,
    find_program,
    limit_in,
)
from account_pool.cli.environment import (
    PROXY_VARIABLES,
    TOOLS,
    for_any_program,
    has_key,
    is_proxy,
    missing,
    placeholders,
    proxy_url,
    tool_of,
    variables,
)
from account_pool.cli.output import Failed, fail, note
from account_pool.cli.processes import CONFDIR, HOST, Launch, Places
from account_pool.cli.shared import Guard, SharedProxy
from account_pool.config.accounts_file import Found, counted, shown
from account_pool.config.problems import ConfigError
from account_pool.core.account import AccountKey
from account_pool.credentials.vendor_logins import find_login_file
from account_pool.filesystem import expanded, make_private, named_path, write_whole
from account_pool.providers.base import HostRule
from account_pool.providers.registry import BUILT_IN

#: How often in a row a tool is started again.
MAX_RESTARTS = 10
#: Seconds before a tool is started again; doubles up to the last, the first time is free.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 2.0

_NOT_UPSTREAM = (
    "HTTPS_PROXY names a proxy that the pool does not use; if it must, write "
    'mode: ["upstream:http://HOST:PORT"] into ~/.mitmproxy/config.yaml'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the user asked for.

    Attributes:
        accounts_file, strategy: of a proxy that is started; None: as it has them.
        restart: start the tool again when a limit ended it.
        join: use a proxy that runs already whatever its accounts and options are.
        allow_empty: run the tool also where no account can serve it.
        accounts: the only ones that may serve it; none: any.
    """

    command: Sequence[str]
    port: int
    accounts_file: Path | None = None
    strategy: str | None = None
    restart: bool = False
    join: bool = False
    allow_empty: bool = False
    accounts: Sequence[AccountKey] = ()


def run_tool(options: RunOptions, environ: Mapping[str, str]) -> int:
    """Run the tool and return its exit code, 128 + n after signal n.

    Of our own: 1 where there is no proxy to use, 126 and 127 where there is no program.
    """
    try:
        program = find_program(options.command[0], environ)
        return _with_proxy(options, program, environ)
    except CannotRun as error:
        return fail(error, error.code)
    except ConfigError as error:
        return fail(error)
    except OSError as error:
        return fail(f"{error.filename or 'the proxy'}: {error.strerror or error}")


def _with_proxy(options: RunOptions, program: str, environ: Mapping[str, str]) -> int:
    places = Places.usual(options.port)
    found = find(options.accounts_file, environ)
    found.require()
    proxy = SharedProxy(places, environ)
    with Signals() as signals:
        try:
            health = proxy.attach(_launch(options), lambda health: _unfit(options, found, health))
            if health.size == 0 and not options.allow_empty:
                raise Failed(f"the pool has no account: {how_to_add()}; or --allow-empty")
            note(counted(health.size, health.accounts_file))
            if proxy.started and _has_proxy_of_its_own(places, environ):
                note(_NOT_UPSTREAM)
            changed = _for_tool(options, places, environ)
            guard = Guard(proxy)
            with guard:
                code = _run(options, program, {**environ, **changed}, signals)
                signals.closing()
        except Stopped as stopped:
            return SIGNALLED + stopped.number
        finally:
            signals.closing()
            _detach(proxy)
    if summary := guard.summary():
        note(summary)
    return code


def _unfit(options: RunOptions, found: Found, health: api.Health) -> str:
    """Say why a proxy that runs already is not the one the user wants, "" if it is."""
    if options.join:
        return ""
    served = counted(health.size, health.accounts_file)
    if found.path is not None and not _same(found.path, health.accounts_file):
        why = f"serves {served}, not of {shown(found.path)}"
    elif options.strategy is not None:
        why = f"serves {served}, with options of its own"
    else:
        return ""
    return (
        f"a proxy that runs already at {HOST}:{options.port} {why}; --join uses it as it is, "
        "--port N starts another one"
    )


def _same(path: Path, other: Path | None) -> bool:
    try:
        return other is not None and path.samefile(other)
    except OSError:
        return path == other


def _has_proxy_of_its_own(places: Places, environ: Mapping[str, str]) -> bool:
    """Say whether the user reaches the internet by a proxy that mitmproxy does not use."""
    named = [v for name in PROXY_VARIABLES if (v := environ.get(name))]
    if all(is_proxy(url, places.url) for url in named):
        return False
    return "upstream:" not in str(mitmproxy_config(str(places.confdir)).get("mode"))


def _detach(proxy: SharedProxy) -> None:
    """Use the proxy no more; the exit code of the tool counts, whatever happens here."""
    try:
        proxy.detach()
    except OSError as error:
        note(f"the proxy may still be running: {error.filename or 'its record'}: {error.strerror}")


def _launch(options: RunOptions) -> Launch:
    arguments = []
    if options.accounts_file is not None:
        path = named_path(options.accounts_file).absolute()
        arguments += ["--set", f"pool_accounts={path}"]
    if options.strategy is not None:
        arguments += ["--set", f"pool_strategy={options.strategy}"]
    return Launch(str(Path.cwd()), tuple(arguments))


def _for_tool(options: RunOptions, places: Places, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the tool: proxy, trust, a key where it needs one."""
    trust = write_trust(places, environ)
    pool = pool_with(places.port, options.accounts)
    for warning in warnings_of(pool):
        note(f"warning: {warning}")
    providers = {account["provider"] for account in pool["accounts"]}
    if options.accounts:
        providers = {key.provider for key in options.accounts}
        for account in pool["accounts"]:
            if account["key"] in map(str, options.accounts) and account["reason"]:
                note(f"{account['key']}: {account['reason']}")
    if not providers:
        note("the pool has no account: the requests of the tool pass through untouched")
    url = proxy_url(places.url, map(str, options.accounts))
    changed = variables(url, trust, pool_hosts(providers), environ)
    return changed | _keys(options.command, providers, environ) if providers else changed


def _keys(
    command: Sequence[str], providers: Collection[str], environ: Mapping[str, str]
) -> dict[str, str]:
    """Return what makes the tool start: placeholders, where it has no key and no login."""
    tool = tool_of(command[0])
    whole = {**os.environ, **environ}
    if tool is None:
        logged_in_tools = [name for name in TOOLS if _has_login(name, whole)]
        keys, left = for_any_program(sorted(providers), environ, logged_in_tools)
        if left:
            note(
                f"no placeholder in {', '.join(left)}: the vendor's own tool is logged in on this "
                "machine; set it to any text if the command needs it"
            )
        return keys
    logged_in = _has_login(tool, whole)
    if tool == "codex" and "codex" in providers and not (logged_in or has_key(tool, environ)):
        home = _codex_home(command, environ)
        if home is not None:
            return {"CODEX_HOME": str(home)}
    if tool == "opencode":
        providers = set(providers) - _logins_of_opencode(whole)
    keys = placeholders(tool, providers, environ, logged_in=logged_in)
    if not (keys or logged_in or has_key(tool, environ)) and (why := missing(tool, providers)):
        note(why)
    return keys


def warnings_of(pool: Mapping[str, Any]) -> list[str]:
    """Return what its owner should know of a *pool* that serves nevertheless."""
    lacking = [account for account in pool["accounts"] if account["state"] == "no_credential"]
    problem = pool.get("state_problem")
    return [
        *([problem] if problem else ()),
        *pool.get("warnings", ()),  # not of a proxy of an older version
        *(f"{one['key']}: {why}" for one in lacking if (why := one.get("problem"))),
    ]


def pool_hosts(providers: Collection[str]) -> list[HostRule]:
    """Return the hosts of those *providers* that are built in.

    Those of a user's own services are known to the proxy alone: a NO_PROXY that names
    them is the user's own, too.
    """
    return [rule for name in providers if name in BUILT_IN for rule in BUILT_IN.hosts(name)]


def _has_login(tool: str, environ: Mapping[str, str]) -> bool:
    try:
        file = find_login_file(tool, environ)
        return file.is_file() or (tool == "claude" and _has_claude_account(file))
    except (KeyError, OSError):
        return False


def _has_claude_account(file: Path) -> bool:
    """Say whether Claude Code, whose login would be in *file*, has one in the keychain."""
    # Beside the login where a variable moves both, else in the home directory.
    notes = (file.parent / ".claude.json", file.parent.parent / ".claude.json")
    return sys.platform == "darwin" and any(
        '"oauthAccount"' in one.read_text("utf-8", "replace") for one in notes if one.is_file()
    )


def _logins_of_opencode(environ: Mapping[str, str]) -> set[str]:
    """Return the providers that opencode has a credential of its own for."""
    home = Path(environ.get("HOME") or expanded("~"))
    data = environ.get("XDG_DATA_HOME") or home / ".local/share"
    try:
        written = json.loads((Path(data) / "opencode" / "auth.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    ours = {"google": "gemini", "github-copilot": "copilot"}
    names: list[str] = list(written) if isinstance(written, dict) else []
    return {ours.get(name, name) for name in names}


def _codex_home(command: Sequence[str], environ: Mapping[str, str]) -> Path | None:
    """Return a home with a placeholder login; None where Codex may have a login, or gets one."""
    own = own_home(environ)
    if may_have_login(own) or {"login", "logout"} & set(command[1:]):
        return None
    home = placeholder_home(own)
    note("codex has no login: it gets a placeholder for one, and your own settings and sessions")
    return home


# -- the tool, again and again


def _run(options: RunOptions, program: str, environ: Mapping[str, str], signals: Signals) -> int:
    if not options.restart:
        return signals.run(options.command, program, environ, None)
    for restarts in range(MAX_RESTARTS + 1):
        with Tee() as tee:
            code = signals.run(options.command, program, environ, tee)
        line = limit_in(tee.text(), BUILT_IN.values())
        # A tool that was stopped by a signal stays stopped.
        if code == 0 or code >= SIGNALLED or signals.passed or line is None:
            return code
        if restarts == MAX_RESTARTS:
            note(f"ended {restarts + 1} times in a row because of a limit; giving up")
            return code
        if not _can_serve(options):
            note(f"ended because of a limit ({line}), and no account of the pool can serve now")
            return code
        again = f"{restarts + 1} of {MAX_RESTARTS}"
        note(f"ended because of a limit ({line}); starting it again, {again}")
        time.sleep(wait_s(restarts))
    raise AssertionError("the last round returns")


def wait_s(restarts: int) -> float:
    """Return how long to wait before the next start, after so many."""
    return min(_FIRST_WAIT_S * 2.0 ** (restarts - 1), _LONGEST_WAIT_S) if restarts else 0.0


def _can_serve(options: RunOptions) -> bool:
    try:
        accounts = api.accounts(options.port)["accounts"]
    except api.NoAnswer:
        return False
    tool = tool_of(options.command[0])
    keys = [str(key) for key in options.accounts]
    return usable(accounts, TOOLS[tool].served_by if tool else (), keys)


def usable(
    accounts: Iterable[Mapping[str, Any]],
    providers: Collection[str],
    keys: Collection[str] = (),
) -> bool:
    """Say whether one of *accounts* can serve; of *providers*, of *keys*, where there are any."""
    return any(
        account["state"] in ("available", "full")
        and (not providers or account["provider"] in providers)
        and (not keys or account["key"] in keys)
        for account in accounts
    )


# -- a home for Codex with a placeholder for a login, for a pool of ChatGPT accounts
#
# Codex asks how to sign in before it sends anything, and looks only into its home. So it gets one
# whose login is worth nothing, and where everything else is the user's own, by links: settings,
# instructions, sessions. Nothing is written to the user's own home.

#: Marks a login that is none, also where Codex has written it anew.
PLACEHOLDER = "account-pool-placeholder"
_ACCOUNT = "00000000-0000-4000-8000-000000000000"
#: 2100-01-01: it would ask for another one before it ends.
_ENDS_AT = 4102444800
_LOGIN = "auth.json"
#: What belongs to the login: never the user's own.
_NOT_LINKED = frozenset({_LOGIN, "auth.lock", "auth.json.lock"})
#: What is copied where there are no links (Windows, without the right to make them).
_COPIED = ("config.toml",)


def placeholder_home(own: Path) -> Path:
    """Return a home for Codex with a placeholder login, like *own* else. Raises OSError."""
    home = expanded(CONFDIR) / "account-pool-codex-home"
    make_private(home)
    _link(own, home)
    login = home / _LOGIN
    # Somebody may have logged in there: that is theirs.
    if not login.exists() or PLACEHOLDER in login.read_text("utf-8", "replace"):
        # Whole: another Codex may be reading it.
        write_whole(login, json.dumps(_login(datetime.now(UTC))), durable=False)
    return home


def own_home(environ: Mapping[str, str]) -> Path:
    """Return the home that Codex has without us."""
    if named := environ.get("CODEX_HOME"):
        return Path(named)
    return Path(environ.get("HOME") or environ.get("USERPROFILE") or expanded("~")) / ".codex"


def may_have_login(own: Path) -> bool:
    """Say whether Codex may have a login that is not in a file: settings can name a keychain."""
    try:
        settings = tomllib.loads((own / "config.toml").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return settings.get("cli_auth_credentials_store") in ("keyring", "auto")


def _link(own: Path, home: Path) -> None:
    """Let *home* have what is in *own*; what is gone there is gone here."""
    for entry in home.iterdir():
        if entry.is_symlink() and not entry.exists():
            entry.unlink()
    if not own.is_dir() or own.resolve() == home.resolve():
        return
    for entry in own.iterdir():
        link = home / entry.name
        # Codex may have made its own meanwhile, such as its sessions: they stay.
        if entry.name in _NOT_LINKED or os.path.lexists(link):
            continue
        try:
            link.symlink_to(entry.absolute(), target_is_directory=entry.is_dir())
        except OSError:
            if entry.name in _COPIED:
                shutil.copyfile(entry, link)


def _login(now: datetime) -> dict[str, object]:
    about = {"chatgpt_account_id": _ACCOUNT, "chatgpt_plan_type": "plus"}
    token = _token({"exp": _ENDS_AT, "https://api.openai.com/auth": about})
    return {
        "auth_mode": "chatgpt",
        "OPENAI_API_KEY": None,
        "tokens": {
            "id_token": token,
            "access_token": token,
            "refresh_token": PLACEHOLDER,
            "account_id": _ACCOUNT,
        },
        # It asks for new tokens when the last ones are 8 days old.
        "last_refresh": now.isoformat().replace("+00:00", "Z"),
    }


def _token(claims: Mapping[str, object]) -> str:
    """Return *claims* as a JWT that nobody has signed."""
    parts = (json.dumps({"alg": "none", "typ": "JWT"}), json.dumps(claims), PLACEHOLDER)
    return ".".join(base64.urlsafe_b64encode(p.encode()).decode().rstrip("=") for p in parts)
