"""Which accounts a command means: those of the file its proxy would serve from, and of the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from account_pool.cli import api
from account_pool.cli.output import note
from account_pool.cli.processes import CONFDIR, HOST
from account_pool.config import accounts_file
from account_pool.config.accounts_file import Found, skip_line
from account_pool.config.configuration import Config, from_environment
from account_pool.config.loader import load
from account_pool.config.problems import ConfigError, Problem
from account_pool.core.account import AccountKey
from account_pool.core.wrong import Wrong
from account_pool.credentials.sources import AccountEntry
from account_pool.filesystem import expanded, make_private
from account_pool.store.pool_state import database_path, read_state

#: Of mitmproxy, in its directory; the later one wins.
CONFIG_NAMES = ("config.yaml", "config.yml")


def find(named: Path | None, environ: Mapping[str, str]) -> Found:
    """Return the file, and name on stderr one that was skipped. Raises ConfigError.

    *named* is by --accounts-file; without it mitmproxy's config.yaml may name one.
    """
    if named is not None:
        found = accounts_file.find(str(named), "--accounts-file", environ)
    else:
        option = mitmproxy_config().get(accounts_file.OPTION) or ""
        found = accounts_file.find(str(option), accounts_file.OPTION, environ)
    if found.skipped:
        note(skip_line(found.skipped))
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
    for path in (expanded(confdir) / name for name in CONFIG_NAMES):
        if not path.is_file():
            continue
        from mitmproxy import exceptions, optmanager  # noqa: PLC0415 - few have such a file

        try:
            values |= optmanager.parse(path.read_text(encoding="utf-8"))
            read_state(str(values.get("pool_state") or ""))
        except Wrong as error:
            problem = Problem(path, None, "pool_state", error.wrong, error.remedy)
            raise ConfigError([problem]) from None
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


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return which of *known*, accounts or providers, was probably meant by *name*."""
    if len(begun := [one for one in known if one.startswith(name)]) == 1:
        return begun[0]
    provider, slash, label = name.partition("/")
    if not slash:
        return next(iter(get_close_matches(name, known, 1)), None)
    # By the label alone: what they have in common makes all accounts of a provider alike.
    labels = [key.partition("/")[2] for key in known if key.partition("/")[0] == provider]
    if close := get_close_matches(label, labels, 1):
        return f"{provider}/{close[0]}"
    return next((key for key in known if key.partition("/")[2] == label), None)


def pool_with(port: int, chosen: Collection[AccountKey]) -> Mapping[str, Any]:
    """Return what GET /account-pool answers at *port*, where the *chosen* accounts may be named.

    Raises NoAnswer, also where one is not there, or cannot be named.
    """
    try:
        # With the token it would answer, and then refuse the tool.
        pool = api.accounts(port, with_token=False)
    except api.NoAnswer as error:
        if not (chosen and error.code == "no_token"):
            raise
        raise api.NoAnswer(
            f"--account cannot be used at {HOST}:{port}: its proxyauth is set, and takes the user "
            "name by which an account is chosen"
        ) from None
    known = [str(account["key"]) for account in pool["accounts"]]
    for key in map(str, chosen):
        if key not in known:
            meant = nearest(key, known)
            remedy = f"did you mean {meant}?" if meant else f"it has {', '.join(known) or 'none'}"
            raise api.NoAnswer(f"the pool has no account {key}; {remedy}")
    return pool


def read_accounts(found: Found, environ: Mapping[str, str]) -> Config:
    """Return the accounts of *found*, or of the environment, and those that were added.

    Raises ConfigError.
    """
    return _with_added(read_main(found, environ), environ)


def accounts_of(path: Path, environ: Mapping[str, str]) -> Sequence[AccountEntry]:
    """Return the accounts of *path* and those that were added beside it; none if it is wrong."""
    try:
        return _with_added(load(path, environ), environ).accounts
    except ConfigError:
        return ()


def _with_added(loaded: Config, environ: Mapping[str, str]) -> Config:
    added = added_file(loaded)
    return loaded if added is None else accounts_file.with_added(loaded, added, environ)


def state_of(loaded: Config | None, confdir: str = CONFDIR) -> str:
    """Return what `pool_state` is without a command line; "" for the usual file.

    Raises ConfigError.
    """
    given = mitmproxy_config(confdir).get("pool_state")
    return str(given or (loaded.options.get("state") if loaded is not None else None) or "")


def added_file(loaded: Config) -> Path | None:
    """Return the file beside the state database, None if it does not exist.

    It has the accounts that were added while a proxy ran and *loaded* could not hold.
    """
    database = database_path(state_of(loaded), CONFDIR)
    path = None if database is None else accounts_file.beside(database)
    return path if path is not None and path.exists() else None


def read_main(found: Found, environ: Mapping[str, str]) -> Config:
    """Return the accounts of *found*, or of the environment, alone. Raises ConfigError."""
    if found.path is not None:
        return accounts_file.load_found(found, environ)
    settings = mitmproxy_config()
    return from_environment(
        environ,
        github_token=settings.get("pool_github_token"),
        account_type=settings.get("pool_account_type", "individual"),
        directories=(Path.cwd(), expanded(CONFDIR)),
    )
