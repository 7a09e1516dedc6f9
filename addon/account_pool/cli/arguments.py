"""Arguments and options that several commands of `account-pool` take."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from account_pool.cli.processes import DEFAULT_PORT
from account_pool.core.account import AccountKey

#: How long a proxy is waited for while somebody types, seconds.
_KEYS_S = 0.8

AccountsFile = Annotated[
    Path | None,
    typer.Option(
        help="The accounts file. [default: it is looked for; `check` shows which it is]",
        show_default=False,
    ),
]


class Shell(StrEnum):
    """A shell that commands can write for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


def keys(incomplete: str) -> list[str]:
    """Return the accounts that begin so, for a shell that completes them.

    Those of the proxy, else of the file.
    """
    # A prompt is no place for errors.
    with suppress(Exception):
        return [key for key in _accounts() if key.startswith(incomplete.lower())]
    return []


def _accounts() -> list[str]:
    from account_pool.cli import api
    from account_pool.config.accounts_file import find, load_found

    try:
        return [str(one["key"]) for one in api.accounts(DEFAULT_PORT, _KEYS_S)["accounts"]]
    except api.NoAnswer:
        loaded = load_found(find("", "", os.environ), os.environ)
        return [str(entry.account.key) for entry in loaded.accounts]


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


def one_of(choices: Callable[[], Collection[str]]) -> Callable[[str | None], str | None]:
    """Return what refuses a value that is not one of *choices*, which are asked for then."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in choices():
            raise typer.BadParameter(f"{value} is not one of {', '.join(choices())}")
        return value

    return check


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
