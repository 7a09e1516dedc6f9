"""Which accounts file serves: one rule for the proxy and for every command.

The first hit wins: the command line or `pool_accounts`, ACCOUNT_POOL_ACCOUNTS,
`./accounts.yaml`, the user's own. A file that was named is never a reason to look further.
`./accounts.yaml` may come with a stranger's repository, with commands and hosts in it: the
search uses it only after its owner has confirmed path and content. `search` decides;
`find` gathers what it decides from.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path
from shutil import which

from msgspec import Struct

import account_pool
from account_pool.config.configuration import Config
from account_pool.config.problems import CannotEdit, ConfigError, Problem
from account_pool.filesystem import (
    expanded,
    is_file,
    make_private,
    opened_file,
    printable,
    read_file,
    write_whole,
)


class Confirmed(Enum):
    """Whether the owner has confirmed a `./accounts.yaml`."""

    YES = auto()
    #: Its content is another one than that which was confirmed.
    CHANGED = auto()
    NO = auto()


class Named(Struct, frozen=True):
    """A file that the user named, *by* what, such as ACCOUNT_POOL_ACCOUNTS."""

    path: Path
    by: str
    exists: bool


class Local(Struct, frozen=True):
    """`./accounts.yaml`.

    Attributes:
        path: absolute.
        checkout: the working directory is the checkout that the running code comes from.
    """

    path: Path
    confirmed: Confirmed
    checkout: bool = False


class Found(Struct, frozen=True):
    """What the search found.

    Attributes:
        path: the file that serves; None: the accounts of the environment do.
        own: the user's own file, there or not.
        by: what named it; "" if nothing did.
        exists: False for a named file that is not there.
        skipped: the `./accounts.yaml` that was not used for want of confirmation.
        confirm: its content must be confirmed whenever it is read.
    """

    path: Path | None
    own: Path
    by: str = ""
    exists: bool = True
    skipped: Local | None = None
    confirm: bool = False

    @property
    def target(self) -> Path:
        """Where new accounts are written: the file in use, else the user's own."""
        return self.path or self.own

    def require(self) -> None:
        """Raise ConfigError where a file was named that does not exist."""
        if self.path is not None and not self.exists:
            remedy = f"{self.by} names it: create it, or correct the path"
            raise ConfigError([Problem(self.path, None, "", "the file does not exist", remedy)])


def search(*, named: Sequence[Named], local: Local | None, own: Path, own_exists: bool) -> Found:
    """Return the file that serves. Raises nothing: see `Found.require`.

    Args:
        named: files that were named, what counts more before what counts less.
        local: None where there is no such file.
        own: the user's own file, there or not.
    """
    if named:
        first = named[0]
        return Found(first.path, own, by=first.by, exists=first.exists)
    skipped = None
    if local is not None and local.path != own:
        if local.checkout:
            return Found(local.path, own)
        if local.confirmed is Confirmed.YES:
            return Found(local.path, own, confirm=True)
        skipped = local
    if own_exists:
        return Found(own, own, skipped=skipped)
    return Found(None, own, skipped=skipped)


def skip_line(local: Local) -> str:
    """Return the line about a *local* file that is not used."""
    why = (
        "was changed since you confirmed it"
        if local.confirmed is Confirmed.CHANGED
        else "has not been confirmed; it may run commands and name hosts"
    )
    path = printable(local.path)
    return f"{path} is skipped: it {why}. If it is yours, run: {command()} check --trust"


TRUST_FILE = "confirmed.json"
#: It has some hundred bytes for each file.
MAX_TRUST_BYTES = 4 * 1024 * 1024


def confirmed(path: Path, store: Path) -> Confirmed:
    """Return whether *path* was confirmed as it is now. Blocks, raises nothing."""
    known = _confirmations(store).get(str(path))
    if known is None:
        return Confirmed.NO
    try:
        return Confirmed.YES if known == _hash(path) else Confirmed.CHANGED
    except OSError:
        return Confirmed.CHANGED


def confirm(path: Path, store: Path) -> None:
    """Keep *path* (absolute) as it is now as confirmed. Raises OSError."""
    make_private(store.parent)
    text = json.dumps({**_confirmations(store), str(path): _hash(path)}, indent=2)
    write_whole(store, text + "\n")


@contextmanager
def kept(path: Path, store: Path) -> Iterator[None]:
    """Confirm *path* again after a change of our own, if it was confirmed before.

    Raises CannotEdit.
    """
    before = confirmed(path, store)
    yield
    if before is Confirmed.YES:
        try:
            confirm(path, store)
        except OSError as error:
            wrong = f"{path} was changed, and cannot be confirmed ({error.strerror})"
            raise CannotEdit(f"{wrong}; run {command()} check --trust") from None


def _confirmations(store: Path) -> dict[str, str]:
    """Return hashes by path; nothing where the file says nothing."""
    try:
        value = json.loads(read_file(store, MAX_TRUST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    pairs = value.items() if isinstance(value, dict) else ()
    return {path: known for path, known in pairs if isinstance(known, str)}


def _hash(path: Path) -> str:
    with opened_file(path) as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


NAME = "accounts.yaml"
VARIABLE = "ACCOUNT_POOL_ACCOUNTS"
OPTION = "pool_accounts"
COMMAND = "account-pool"


def beside(database: Path) -> Path:
    """Return the file beside the state *database*: accounts that were added by hand."""
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
        named=[_named(text, source) for text, source in texts if text.strip()],
        local=_local(),
        own=own,
        own_exists=is_file(own),
    )


def load_found(found: Found, environ: Mapping[str, str]) -> Config:
    """Read the file of *found*, which has one. Raises ConfigError."""
    from account_pool.config.loader import load  # noqa: PLC0415 - only where there is a file

    found.require()
    assert found.path is not None
    if found.confirm:
        require_confirmed(found.path)
    loaded = load(found.path, environ)
    if found.confirm:
        # Again: what was read may have been written after the first look.
        require_confirmed(found.path)
    return loaded


def with_added(config: Config, path: Path, environ: Mapping[str, str]) -> Config:
    """Return *config* with the accounts in *path*, which were added by hand, if it is there.

    Raises ConfigError.
    """
    if not path.exists():
        return config
    from account_pool.config import loader  # noqa: PLC0415 - as above

    return loader.with_added(config, path, environ)


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
    return _own_folder() / TRUST_FILE


def local_file() -> Path | None:
    """Return the absolute path of `./accounts.yaml`; None if it does not exist."""
    try:
        path = Path.cwd() / NAME
    except OSError:
        return None  # the working directory is gone
    return path if is_file(path) else None


def shown(path: Path) -> str:
    """Return *path* as a person writes it: with ~ for the home directory."""
    home = expanded("~")
    if home != Path(home.anchor) and path.is_relative_to(home):
        return printable(Path("~", path.relative_to(home)).as_posix())
    return printable(path)


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


def _own_folder() -> Path:
    import platformdirs  # noqa: PLC0415 - only where no file was named

    return platformdirs.user_config_path(COMMAND, appauthor=False)


def _named(text: str, by: str) -> Named:
    path = expanded(text).absolute()
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
    """Return the directory that counts as named: the checkout that the running code comes from."""
    addon = Path(account_pool.__file__).resolve().parents[1]
    return (addon.parent,) if (addon / "pool.py").is_file() and addon.name == "addon" else ()
