"""`account-pool list`, `remove`, `enable`, `disable`, `clear`, `next`, `pin` and `dashboard`.

They ask the proxy that runs, with the admin token of this machine. Without one, `list` and
`remove` work on the accounts file; the others change only what a proxy knows.
"""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from account_pool.cli import api
from account_pool.cli.accounts import added_file, find, how_to_add, nearest, read_accounts
from account_pool.cli.check import AccountsView
from account_pool.cli.output import answer, fail, note, show, show_json, table
from account_pool.cli.processes import DEFAULT_PORT, HOST
from account_pool.cli.status_view import STATES
from account_pool.config.accounts_file import command, shown
from account_pool.config.edit import remove_account
from account_pool.core.account import AccountKey
from account_pool.core.decision_text import duration
from account_pool.core.sessions import session_of

#: What each command asks for, and what it says afterwards.
_CHANGES = {
    "enable": ("/account-pool/enable", "enabled"),
    "disable": ("/account-pool/disable", "disabled until it is enabled again"),
    "clear": ("/account-pool/clear-cooldown", "no longer on cooldown"),
}
#: Codes of the proxy for what it does not know, and the field of accounts that names it.
_UNKNOWN = {"unknown_account": "key", "unknown_provider": "provider"}


def list_accounts(
    named: Path | None, port: int, environ: Mapping[str, str], *, as_json: bool
) -> int:
    """Print an account a line, as the proxy has it, else as the file has it.

    Returns 0, or 1 where there is none. Raises ConfigError where no proxy answers and the
    file has mistakes.
    """
    try:
        if named is not None:
            raise api.NoProxy
        value = api.accounts(port)
    except api.NoProxy:
        return _list_file(named, environ, as_json=as_json)
    accounts = value["accounts"]
    if as_json:
        show_json({"proxy": True, "accounts": [_entry(one) for one in accounts]})
    else:
        width = max((len(one["key"]) for one in accounts), default=0)
        for one in accounts:
            print(f"{one['key']:<{width}}  {_state(one)}")
    return _found(len(accounts))


def _state(account: Mapping[str, Any]) -> str:
    state = str(STATES.get(account["state"], account["state"]))
    models = sorted({str(c["model"]) for c in account["cooldowns"] if c["model"] is not None})
    if not models or account["state"] != "available":
        return state
    return f"{state}, but {', '.join(models)} on cooldown"


def _entry(account: Mapping[str, Any]) -> dict[str, Any]:
    return {name: account[name] for name in ("key", "provider", "label", "state", "priority")}


def _list_file(named: Path | None, environ: Mapping[str, str], *, as_json: bool) -> int:
    loaded = read_accounts(find(named, environ), environ)
    accounts = [entry.account for entry in loaded.accounts]
    if as_json:
        entries = [
            {
                "key": str(one.key),
                "provider": one.key.provider,
                "label": one.key.label,
                "state": None if one.enabled else "off",
                "priority": one.priority,
            }
            for one in accounts
        ]
        show_json({"proxy": False, "accounts": entries})
        return _found(len(accounts))
    if accounts:
        show(AccountsView(accounts))
    where = shown(loaded.path) if loaded.path else "the environment"
    if (added := added_file(loaded)) is not None:
        where += f" and {shown(added)}"
    note(f"as in {where}" + ("" if named else "; no proxy is running"))
    return _found(len(accounts))


def _found(number: int) -> int:
    if not number:
        note(f"no account: {how_to_add()}")
    return 0 if number else 1


def change(verb: str, name: str, port: int, *, as_json: bool) -> int:
    """Do what the command *verb* does to what is called *name*. Returns 0, or 1."""
    try:
        value, said = changed(verb, name, port)
    except (api.NoAnswer, ValueError) as error:
        return fail(_why_not(error, name, port))
    return answer(value, said, as_json=as_json)


def changed(verb: str, name: str, port: int) -> tuple[Mapping[str, Any], str]:
    """Do what the command *verb* does to an account, `next` to a provider.

    Return the answer, also in words. Raises NoAnswer, and ValueError where *name* is none.
    """
    if verb == "next":
        value = api.change(port, "/account-pool/next", {"provider": name})
        return value, f"next: {value.get('next') or 'none can serve now'}"
    path, done = _CHANGES[verb]
    key = AccountKey.parse(name)
    value = api.change(port, path, {"provider": key.provider, "label": key.label})
    return value, f"{key}: {done}"


def _why_not(error: Exception, name: str, port: int) -> str:
    """Return what *error* says, and what *name* may have been meant to be."""
    field = _UNKNOWN.get(error.code) if isinstance(error, api.NoAnswer) else None
    if field is None:
        return str(error)
    try:
        known = list(dict.fromkeys(str(one[field]) for one in api.accounts(port)["accounts"]))
    except (api.NoAnswer, KeyError):
        known = []
    meant = nearest(name.strip().lower(), known)
    at = "" if port == DEFAULT_PORT else f" -p {port}"
    remedy = f"did you mean {meant}?" if meant else f"`{command()} list{at}` shows those it has"
    return f"{name}: {error}; {remedy}"


def remove(
    name: str,
    named: Path | None,
    port: int,
    environ: Mapping[str, str],
    *,
    as_json: bool = False,
) -> int:
    """Remove an account from the proxy and its file; without a proxy from the file alone.

    Returns 0, or 1. Raises ConfigError, CannotEdit, OSError.
    """
    try:
        key = AccountKey.parse(name)
        if named is not None:
            raise api.NoProxy
        value = api.change(
            port, "/account-pool/remove", {"provider": key.provider, "label": key.label}
        )
    except api.NoProxy:
        return _remove_from_file(key, named, environ, as_json=as_json)
    except (api.NoAnswer, ValueError) as error:
        return fail(_why_not(error, name, port))
    where = value.get("written_to")
    said = f"removed {key}" + (f" from {where}" if where else "; it comes back at the next start")
    return answer(value, said, as_json=as_json)


def _remove_from_file(
    key: AccountKey, named: Path | None, environ: Mapping[str, str], *, as_json: bool
) -> int:
    path = find(named, environ).path
    if path is None:
        return fail(f"{key} is in no accounts file: the accounts come from the environment")
    if not remove_account(path, key):
        return fail(f"{key} is not in {shown(path)}")
    said = f"removed {key} from {shown(path)}; the previous file is {path.name}.bak"
    return answer({"removed": str(key), "written_to": str(path)}, said, as_json=as_json)


# -- the dashboard, logged in by a link that is valid once

#: One of these is set where a window can be shown; elsewhere Python finds browsers that take
#: over the terminal.
_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")


def open_dashboard(
    port: int, environ: Mapping[str, str], *, only_print: bool, as_json: bool
) -> int:
    """Open the dashboard in a browser, or print the link to it. Returns 0, or 1."""
    try:
        link = api.change(port, "/link", {})
    except api.NoAnswer as error:
        if error.code != "not_found":
            raise
        return fail(
            "the proxy is of an older version: start it again, or open "
            f"http://{HOST}:{port}/ and give it the token that `account-pool status` shows"
        )
    url = str(link["url"])
    if as_json:
        show_json({"url": url, "expires_in_s": link["expires_in_s"]})
        return 0
    valid = f"valid once, for {float(link['expires_in_s']):.0f} s"
    if not only_print and _has_display(environ) and webbrowser.open(url):
        note(f"opened in your browser; the link is {valid}")
        return 0
    print(url, flush=True)
    is_remote = bool(environ.get("SSH_CONNECTION"))
    elsewhere = f", where `ssh -L {port}:{HOST}:{port}` leads here" if is_remote else ""
    note(f"open this link in a browser{elsewhere}; it is {valid}")
    return 0


def _has_display(environ: Mapping[str, str]) -> bool:
    if os.name == "nt" or sys.platform == "darwin":
        return True
    return any(environ.get(name) for name in _DISPLAYS)


# -- conversations


def list_sessions(port: int, *, as_json: bool) -> int:
    """Print a conversation a line, the one used last first. Returns 0, or 1."""
    value = api.ask(port, "/sessions")
    rows = value["sessions"]
    if as_json:
        show_json(value)
        return 0
    if not rows:
        note("no conversation is known; those of the last 30 minutes are")
        return 0
    shown_rows = table("conversation", "account", "idle", "")
    for row in rows:
        pinned = "pinned" if row.get("pinned") else ""
        shown_rows.add_row(row["key"], row["account"], duration(row["idle_s"]), pinned)
    show(shown_rows)
    return 0


def pin(session: str, name: str, port: int, *, as_json: bool) -> int:
    """Have the account called *name* alone serve *session*: a key, its beginning, or an id."""
    try:
        account = AccountKey.parse(name)
        found = _key_of(session, account.provider, port)
        which = {"session": session} if found is None else {"key": found}
        body = {"provider": account.provider, "label": account.label, **which}
        value = api.change(port, "/sessions/pin", body)
    except (api.NoAnswer, ValueError) as error:
        return fail(_why_not(error, name, port))
    new = "; it has not begun yet, or is idle" if found is None else ""
    said = f"{value['key']}: {value['account']} alone serves it{new}"
    return answer(value, said, as_json=as_json)


def unpin(session: str, port: int, *, as_json: bool) -> int:
    """Let *session* go where the strategy says. Returns 0, or 1."""
    try:
        value = api.change(port, "/sessions/close", {"key": _key_of(session, "", port) or session})
    except ValueError as error:
        return fail(error)
    said = f"{value['closed']}: its next request goes where the strategy says"
    return answer(value, said, as_json=as_json)


def _key_of(session: str, provider: str, port: int) -> str | None:
    """Return the key of the conversation that *session* is, or begins. Raises ValueError.

    *provider*: of that provider; "" for any.
    """
    keys = [str(row["key"]) for row in api.ask(port, "/sessions?limit=10000")["sessions"]]
    keys = [key for key in keys if not provider or session_of(key, provider) is not None]
    begun = [key for key in keys if key.startswith(session)]
    if session in begun or len(begun) == 1:
        return session if session in begun else begun[0]
    # The same conversation may have a key for each of its models.
    shortest = min(begun, key=len, default=None)
    if shortest is None or all(key.startswith(f"{shortest}:") for key in begun if key != shortest):
        return shortest
    raise ValueError(f"{len(begun)} conversations begin with {session}; write more of it")
