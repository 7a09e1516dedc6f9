"""Gathers what `search.py` decides from, and reads the file that it finds."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import which

import platformdirs

import account_pool
from account_pool.config import load
from account_pool.config.problems import ConfigError, Problem
from account_pool.config.search import Confirmed, Found, Local, Named, SearchInput, search
from account_pool.config.trust import FILE_NAME, confirmed
from account_pool.config.values import Config
from account_pool.providers.base import Provider

NAME = "accounts.yaml"
VARIABLE = "ACCOUNT_POOL_ACCOUNTS"
OPTION = "pool_accounts"
COMMAND = "account-pool"


def beside(database: Path) -> Path:
    """Return the file beside the state *database*: accounts that were added (`added.py`)."""
    return database.with_name(f"{database.name}.accounts.yaml")


def find(named: str, by: str, environ: Mapping[str, str]) -> Found:
    """Return the file that serves.

    Args:
        named: what *by* (an option of a command, or `OPTION`) says; "" if nothing.
        environ: where `VARIABLE` is looked up.
    """
    texts = [(named, by), (environ.get(VARIABLE, ""), VARIABLE)]
    own = own_file()
    return search(
        SearchInput(
            named=[_named(text, source) for text, source in texts if text.strip()],
            local=_local(),
            own=own,
            own_exists=_is_file(own),
        )
    )


def load_found(
    found: Found, environ: Mapping[str, str], known: Mapping[str, Provider] | None = None
) -> Config:
    """Read the file of *found*, which has one. Raises ConfigError."""
    found.require()
    assert found.path is not None
    if found.confirm:
        require_confirmed(found.path)
    loaded = load(found.path, environ, known)
    if found.confirm:
        # Again: what was read may have been written after the first look.
        require_confirmed(found.path)
    return loaded


def require_confirmed(path: Path) -> None:
    """Raise ConfigError where the `./accounts.yaml` at *path* is not as it was confirmed."""
    if path.exists() and confirmed(path, trust_store()) is not Confirmed.YES:
        remedy = f"look at it, then run {command()} check --trust in {path.parent}"
        wrong = "the file was changed since it was confirmed"
        raise ConfigError([Problem(path, None, "", wrong, remedy)])


def own_file() -> Path:
    """Return the user's own accounts file, there or not."""
    return _own_folder() / NAME


def trust_store() -> Path:
    """Return where confirmations are kept."""
    return _own_folder() / FILE_NAME


def local_file() -> Path | None:
    """Return `./accounts.yaml` by its absolute path, None where there is none."""
    try:
        path = Path.cwd() / NAME
    except OSError:
        return None  # the working directory is gone
    return path if _is_file(path) else None


def shown(path: Path) -> str:
    """Return *path* as a person writes it: with ~ for the home directory."""
    try:
        home = Path.home()
    except RuntimeError:
        return str(path)
    if home != Path(home.anchor) and path.is_relative_to(home):
        return f"~/{path.relative_to(home).as_posix()}"
    return str(path)


def counted(accounts: int, path: Path | None) -> str:
    """Return who serves, such as "3 accounts of ~/accounts.yaml"."""
    noun = "account" if accounts == 1 else "accounts"
    return f"{accounts} {noun} of {shown(path) if path else 'the environment'}"


def command() -> str:
    """Return how the reader of a hint can start `account-pool`."""
    if which(COMMAND):
        return COMMAND
    # How it was started now, else the one that belongs to this interpreter.
    started = which(sys.argv[0]) if Path(sys.argv[0]).name == COMMAND else None
    program = started or which(COMMAND, path=str(Path(sys.executable).parent))
    if program is None:
        return COMMAND
    path = Path(program).absolute()
    with suppress(OSError):
        folder = Path.cwd()
        if folder != Path(folder.anchor) and path.is_relative_to(folder):
            return f"./{path.relative_to(folder).as_posix()}"
    return shown(path)


def _is_file(path: Path) -> bool:
    # Unlike Path.is_file it raises nothing where a directory may not be read.
    return os.path.isfile(path)  # noqa: PTH113


def _own_folder() -> Path:
    return platformdirs.user_config_path(COMMAND, appauthor=False)


def _named(text: str, by: str) -> Named:
    path = Path(text).expanduser().absolute()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return Named(path, by, exists=False)
    except OSError:
        pass  # reading it says what is the matter
    return Named(path, by, exists=True)


def _local() -> Local | None:
    path = local_file()
    if path is None:
        return None
    if path.parent in _checkouts():
        return Local(path, Confirmed.YES, checkout=True)
    return Local(path, confirmed(path, trust_store()))


def _checkouts() -> Sequence[Path]:
    """Return the working directory that counts as named: of the checkout whose code runs."""
    addon = Path(account_pool.__file__).resolve().parents[1]
    return (addon.parent,) if (addon / "pool.py").is_file() and addon.name == "addon" else ()
