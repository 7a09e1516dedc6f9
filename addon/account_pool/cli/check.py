"""`account-pool check`: read the accounts as `run` would, show them, and confirm a file once.

Shows names and settings only: what a `Secret` holds never reaches this module.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from account_pool.cli.accounts import added_file, find, how_to_add, read_accounts
from account_pool.cli.output import fail, show, show_json, warn
from account_pool.config import accounts_file
from account_pool.config.loader import load
from account_pool.config.problems import ConfigError, Problem
from account_pool.config.review import review
from account_pool.config.values import Config
from account_pool.core.account import Account
from account_pool.credentials.command import CommandSource
from account_pool.credentials.copilot import DEFAULT_TOKEN_URL
from account_pool.providers.base import HTTPS_PORT, HostRule
from account_pool.providers.registry import BUILT_IN

_ANY_WIDTH = 10_000


def check_accounts(named: Path | None, environ: Mapping[str, str], *, as_json: bool = False) -> int:
    """Show the accounts `run` would use. Returns 0, or 1 where there are none.

    A credential that cannot be read now is a warning: the proxy starts without it. Raises
    ConfigError with every problem.
    """
    loaded = read_accounts(find(named, environ), environ)
    if not loaded.accounts:
        return fail(f"no account: {how_to_add()}")
    if as_json:
        show_json(_as_json(loaded))
    else:
        _show(loaded)
    return 0


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
    path = named.expanduser().absolute() if named else accounts_file.local_file()
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
    table = Table(box=None, pad_edge=False)
    for title in ("account", "enabled", "priority", "weight", "models", "limits"):
        table.add_column(title, overflow="fold")
    for account in accounts:
        table.add_row(
            str(account.key),
            "yes" if account.enabled else "no",
            str(account.priority),
            str(account.weight),
            ", ".join(account.models.globs) or "all",
            _limits(account),
        )
    return table


class AccountsView:
    """Accounts as a table where that has room, else a line each with what is unusual of it."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        self._accounts = accounts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = _accounts_table(self._accounts)
        whole = console.measure(table, options=options.update_width(_ANY_WIDTH)).maximum
        if whole <= options.max_width:
            yield table
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
