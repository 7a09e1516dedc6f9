"""Arguments and options that several commands of `account-pool` take."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from account_pool.core.account import AccountKey

AccountsFile = Annotated[
    Path | None,
    typer.Option(
        help="The accounts file. [default: it is looked for; `check` shows which it is]",
        show_default=False,
    ),
]


def keys(incomplete: str) -> list[str]:
    """Return the accounts that begin so, for a shell that completes them."""
    from account_pool.cli.completion import accounts

    return list(accounts(incomplete))


def providers(incomplete: str) -> list[str]:
    """Return the providers of those."""
    return sorted({key.partition("/")[0] for key in keys(incomplete)})


Key = Annotated[
    str,
    typer.Argument(help="The account, as provider/label.", metavar="ACCOUNT", autocompletion=keys),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Port = Annotated[
    int,
    typer.Option("--port", "-p", min=1, max=65535, help="The proxy's port on this machine."),
]


def one_each(names: Collection[str]) -> list[AccountKey]:
    """Return the accounts of those *names*, one of a provider."""
    try:
        found = {key.provider: key for key in map(AccountKey.parse, names)}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if len(found) < len(names):
        raise typer.BadParameter("--account: name one account of each provider")
    return list(found.values())


OnlyAccounts = Annotated[
    list[str] | None,
    typer.Option(
        "--account",
        help="The account, as provider/label, that alone serves the tool; again for another "
        "provider.",
        show_default=False,
        autocompletion=keys,
    ),
]
