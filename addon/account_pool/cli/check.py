"""`account-pool check`: read the accounts as `run` would, show them, and confirm a file once.

Shows names and settings only: what a `Secret` holds never reaches this module.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from account_pool.cli.accounts import added_file, find, how_to_add, read_accounts, state_of
from account_pool.cli.output import fail, note, show, show_json, table, warn
from account_pool.cli.processes import CONFDIR
from account_pool.config import accounts_file
from account_pool.config.configuration import Config
from account_pool.config.loader import load
from account_pool.config.problems import ConfigError, Problem
from account_pool.config.review import review
from account_pool.core.account import Account
from account_pool.core.wrong import Wrong
from account_pool.credentials.command import CommandSource
from account_pool.credentials.copilot import DEFAULT_TOKEN_URL
from account_pool.filesystem import named_path
from account_pool.providers.base import HTTPS_PORT, HostRule
from account_pool.providers.registry import BUILT_IN
from account_pool.store.pool_state import Fact, database_path, is_url, parse
from account_pool.store.sqlite import count_logins
from account_pool.store.store import StoreError

_ANY_WIDTH = 10_000
#: How what is said of a state engine is shown, by its level.
_SHOW: Mapping[str, Callable[[object], None]] = {"ok": print, "note": warn, "bad": note}


def check_accounts(named: Path | None, environ: Mapping[str, str], *, as_json: bool = False) -> int:
    """Show the accounts `run` would use, and the state engine. Returns 0.

    Or 1 where there is no account, or the engine cannot be used or would lose logins.

    A credential that cannot be read now is a warning: the proxy starts without it. Raises
    ConfigError with every problem.
    """
    loaded = read_accounts(find(named, environ), environ)
    if not loaded.accounts:
        if as_json:
            show_json({**_as_json(loaded), "state": []})
        return fail(f"no account: {how_to_add()}")
    facts = look_at(state_of(loaded))
    if as_json:
        show_json({**_as_json(loaded), "state": [fact._asdict() for fact in facts]})
    else:
        _show(loaded)
        for fact in facts:
            text = f"state: {'; '.join(filter(None, (fact.text, fact.remedy)))}"
            _SHOW[fact.level](text)
    return int(any(fact.level == "bad" for fact in facts))


def _as_json(loaded: Config) -> dict[str, object]:
    reviewed = review(loaded, wall_now=time.time())
    problems = {problem.key: problem for problem in reviewed.unreadable}
    added = added_file(loaded)
    return {
        "file": loaded.path and str(loaded.path),
        "added": added and str(added),
        "accounts": [
            {
                "key": str(one.key),
                "provider": one.key.provider,
                "label": one.key.label,
                "enabled": one.enabled,
                "priority": one.priority,
                "weight": one.weight,
                "models": list(one.models.globs),
                "max_concurrent": one.max_concurrent,
                "min_interval_s": one.min_interval_s,
                "problem": str(problems[str(one.key)].wrong) if str(one.key) in problems else None,
            }
            for one in (entry.account for entry in loaded.accounts)
        ],
        "warnings": [str(one) for one in (*loaded.warnings, *reviewed.notices)],
    }


def confirm_file(named: Path | None, environ: Mapping[str, str]) -> int:
    """Confirm *named*, or ./accounts.yaml, as it is now, and show what it can do. Returns 0.

    Raises ConfigError, OSError.
    """
    path = named_path(named).absolute() if named else accounts_file.local_file()
    if path is None:
        where = Path.cwd() / accounts_file.NAME
        remedy = "change to the directory of the file, or name it with --accounts-file"
        raise ConfigError([Problem(where, None, "", "the file does not exist", remedy)])
    loaded = load(path, environ)
    _show(loaded, added=False)
    for line in _abilities(loaded):
        print(line)
    accounts_file.confirm(path, accounts_file.trust_store())
    print("confirmed; after a change it must be confirmed again")
    return 0


def _accounts_table(accounts: Sequence[Account]) -> Table:
    """Return *accounts* as a table, in the order of the file."""
    shown = table("account", "enabled", "priority", "weight", "models", "limits")
    for account in accounts:
        shown.add_row(
            str(account.key),
            "yes" if account.enabled else "no",
            str(account.priority),
            str(account.weight),
            ", ".join(account.models.globs) or "all",
            _limits(account),
        )
    return shown


class AccountsView:
    """Accounts as a table where that has room, else a line each with what is unusual of it."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        self._accounts = accounts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = _accounts_table(self._accounts)
        wanted = console.measure(whole, options=options.update_width(_ANY_WIDTH)).maximum
        if wanted <= options.max_width:
            yield whole
            return
        for account in self._accounts:
            yield Text(str(account.key), overflow="fold")
            if unusual := _unusual(account):
                yield Padding(Text(unusual), (0, 0, 0, 4))


def _unusual(account: Account) -> str:
    return ", ".join(
        filter(
            None,
            (
                "" if account.enabled else "off",
                f"priority {account.priority}" if account.priority else "",
                f"weight {account.weight}" if account.weight != 1 else "",
                f"models {', '.join(account.models.globs)}" if account.models.globs else "",
                limits if (limits := _limits(account)) != "none" else "",
            ),
        )
    )


def _show(loaded: Config, *, added: bool = True) -> None:
    show(AccountsView([entry.account for entry in loaded.accounts]))
    number = len(loaded.accounts)
    noun = "account" if number == 1 else "accounts"
    where = f"file OK: {loaded.path}" if loaded.path else "from the environment; there is no file"
    kept = added_file(loaded) if added else None
    also = f", and {accounts_file.shown(kept)}" if kept else ""
    print(f"\n{number} {noun}, {where}{also}")
    reviewed = review(loaded, wall_now=time.time())
    warn(*loaded.warnings, *reviewed.notices, *reviewed.unreadable)


def _abilities(loaded: Config) -> Iterator[str]:
    """Say what a file makes the pool do, beside using tokens: run programs, ask hosts."""
    for entry in loaded.accounts:
        if isinstance(entry.source, CommandSource):
            yield f"{entry.account.key} runs: {entry.source.shown}"
    for name, provider in loaded.providers.items():
        usual = BUILT_IN[name].hosts if name in BUILT_IN else ()
        hosts = [_written(rule) for rule in provider.hosts if rule not in usual]
        if hosts:
            yield f"{name} sends credentials to: {', '.join(hosts)}"
    for name, settings in loaded.exchanges.items():
        if settings.token_url != DEFAULT_TOKEN_URL:
            yield f"{name} sends GitHub tokens to: {settings.token_url}"


def _written(rule: HostRule) -> str:
    port = f":{rule.port}" if rule.port != HTTPS_PORT else ""
    return f"{'*.' if rule.subdomains else ''}{rule.host}{port}"


def _limits(account: Account) -> str:
    limits = []
    if account.max_concurrent is not None:
        limits.append(f"{account.max_concurrent} at once")
    if account.min_interval_s:
        limits.append(f"{account.min_interval_s:g} s apart")
    return ", ".join(limits) or "none"


# -- what `pool_state` names: does an engine answer, would it lose logins, and where are they?


def look_at(state: str, confdir: str = CONFDIR) -> list[Fact]:
    """Return what there is to say of the engine *state*, and of logins that a file still has.

    Of a file only which of its logins an engine has. Blocks for some seconds at most.
    """
    path = database_path(state, confdir)
    if path is None:
        return []
    return [*_engine(state, confdir), *_waiting(path)] if is_url(state) else _moved(path)


def _engine(state: str, confdir: str) -> list[Fact]:
    from account_pool.store.fleet import fleet_store  # noqa: PLC0415 - few have an engine

    try:
        store = fleet_store.FleetStore(parse(state), fleet_store.unsaved_folder(confdir))
        try:
            return fleet_store.inspect(store)
        finally:
            store.engine.close()
    except (StoreError, Wrong) as error:
        text, _, remedy = str(error).partition("; ")
        return [Fact("bad", text, remedy)]


def _waiting(path: Path) -> list[Fact]:
    """Say which logins an engine does not have from this machine yet."""
    found = count_logins(path)
    if found is None or not found[0]:
        return []
    text = f"{_logins(found[0])} in {path} and not in the engine yet"
    remedy = "stop the proxy that uses it, and start that with the engine before those elsewhere"
    return [Fact("note", text, remedy)]


def _moved(path: Path) -> list[Fact]:
    """Say which logins of the file that is used an engine has."""
    _, engines = count_logins(path) or (0, {})
    return [
        Fact(
            "note",
            f"{_logins(number)} in {path}, but the newest tokens are in the state engine {engine}",
            "they are not refreshed here: set pool_state to its URL again, or log in again",
        )
        for engine, number in engines.items()
    ]


def _logins(number: int) -> str:
    return "1 login is" if number == 1 else f"{number} logins are"


def look_at_file(path: Path) -> Iterator[Fact]:
    """Yield what there is to say of the state database *path*, which is only read."""
    name = accounts_file.shown(path)
    if not path.exists():
        yield Fact("ok", f"{name} does not exist yet")
        return
    if not path.is_file():
        text = f"{name} is not a file, and nothing is kept over a restart"
        yield Fact("bad", text, "move it away, or name a file with pool_state")
        return
    if is_open(path):
        yield Fact("bad", f"others can read {name}", f"chmod 600 {path}")
    if not os.access(path, os.W_OK):
        text = f"{name} cannot be written"
        yield Fact("bad", text, f"correct its owner and mode (600): {path}")
        return
    # A proxy may be writing to it.
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as database:
            (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        said = str(error)
    if said == "ok":
        yield Fact("ok", f"{name}, {path.stat().st_size:,} bytes")
    else:
        remedy = "stop the proxy and move the file away; logins in it must log in again"
        yield Fact("bad", f"{name} is damaged ({said})", remedy)


def is_open(path: Path) -> bool:
    """Say whether others than its owner may read the file, or write to it."""
    return os.name == "posix" and bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
