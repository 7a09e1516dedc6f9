"""`account-pool check`: read accounts.yaml as the addon would, and show the accounts.

Shows names and settings only: what a `Secret` holds never reaches this module.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from account_pool.config import ConfigError, load
from account_pool.config.review import review
from account_pool.core.account import Account


def check_file(path: Path, environment: Mapping[str, str]) -> int:
    """Show the accounts in *path*. Returns 0, or 1 after naming every mistake on stderr.

    A credential that cannot be read now is a warning there: the proxy starts without it.
    """
    try:
        config = load(path, environment)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    console = Console(highlight=False)
    if not console.is_terminal:
        # Whoever reads a pipe wants whole names, not a layout for 80 columns.
        console.width = 1000
    console.print(accounts_table([entry.account for entry in config.accounts]))
    found = review(config)
    warn(*config.warnings, *found.notices, *found.unreadable)
    return 0


def warn(*warnings: object) -> None:
    """Show what looks wrong and stops nothing."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def accounts_table(accounts: list[Account]) -> Table:
    """Return *accounts* as a table, in the order of the file."""
    table = Table("account", "enabled", "priority", "weight", "models", "limits", box=None)
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


def _limits(account: Account) -> str:
    limits = []
    if account.max_concurrent is not None:
        limits.append(f"{account.max_concurrent} at once")
    if account.min_interval_s:
        limits.append(f"{account.min_interval_s:g} s apart")
    return ", ".join(limits) or "none"
