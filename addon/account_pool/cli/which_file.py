"""Which accounts file a command reads or writes: the one its proxy would serve from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from account_pool.cli.places import CONFDIR
from account_pool.config import ConfigError, Problem, accounts_file
from account_pool.config.accounts_file import Found, skip_line
from account_pool.config.replace import make_private

#: Of mitmproxy, in its directory; the later one wins.
CONFIG_NAMES = ("config.yaml", "config.yml")


def find(named: Path | None, environ: Mapping[str, str], *, confdir: str = CONFDIR) -> Found:
    """Return the file, and name on stderr one that was skipped. Raises ConfigError.

    Args:
        named: by --accounts-file.
        confdir: mitmproxy's directory, whose config.yaml may name a file.
    """
    if named is not None:
        found = accounts_file.find(str(named), "--accounts-file", environ)
    else:
        option = mitmproxy_config(confdir).get(accounts_file.OPTION) or ""
        found = accounts_file.find(str(option), accounts_file.OPTION, environ)
    if found.skipped:
        note(skip_line(found.skipped, accounts_file.command()))
    return found


def to_write(named: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the file that gets a new account: the one in use, else the user's own.

    A file that was named need not be there yet. Raises ConfigError, OSError.
    """
    found = find(named, environ)
    if found.target == found.own:
        make_private(found.own.parent)
    return found.target


def mitmproxy_config(confdir: str = CONFDIR) -> dict[str, Any]:
    """Return what mitmproxy's own configuration sets, as it reads it. Raises ConfigError."""
    values: dict[str, Any] = {}
    for path in (Path(confdir).expanduser() / name for name in CONFIG_NAMES):
        if not path.is_file():
            continue
        from mitmproxy import exceptions, optmanager  # noqa: PLC0415 - few have such a file

        try:
            values |= optmanager.parse(path.read_text(encoding="utf-8"))
        except (exceptions.OptionsError, UnicodeDecodeError, TypeError):
            # Its text quotes the file.
            wrong = "mitmproxy cannot read this file"
            raise ConfigError([Problem(path, None, "", wrong, "correct it")]) from None
    return values


def how_to_add() -> str:
    """Return what to do about a pool without accounts."""
    command = accounts_file.command()
    return (
        f"add one with `{command} add PROVIDER LABEL`, or use the login of a tool with "
        f"`{command} login --from claude`"
    )


def note(text: str) -> None:
    """Say *text* on stderr, as all that is no answer to the command."""
    print(f"account-pool: {text}", file=sys.stderr)
