"""Which accounts file serves, and why: one rule for the proxy and for every command. Pure.

The first hit wins: the command line or `pool_accounts`, ACCOUNT_POOL_ACCOUNTS,
`./accounts.yaml`, the user's own. A file that was named is never a reason to look
further. `./accounts.yaml` may come with a stranger's repository, with commands and hosts
in it: the search uses it only after its owner has confirmed path and content. The facts
are gathered in `accounts_file.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from account_pool.config.problems import ConfigError, Problem


class Confirmed(Enum):
    """Whether the owner has confirmed a `./accounts.yaml`."""

    YES = auto()
    #: Its content is another one than that which was confirmed.
    CHANGED = auto()
    NO = auto()


class Why(Enum):
    """Why a file serves."""

    NAMED = auto()
    LOCAL = auto()
    OWN = auto()
    #: No file: the accounts are those of the environment.
    NONE = auto()


@dataclass(frozen=True, slots=True)
class Named:
    """A file that the user named.

    Attributes:
        by: what named it, such as ACCOUNT_POOL_ACCOUNTS.
    """

    path: Path
    by: str
    exists: bool


@dataclass(frozen=True, slots=True)
class Local:
    """`./accounts.yaml`.

    Attributes:
        path: absolute.
        checkout: the working directory is that of the product itself, whose code runs.
    """

    path: Path
    confirmed: Confirmed
    checkout: bool = False


@dataclass(frozen=True, slots=True)
class SearchInput:
    """What the search decides from.

    Attributes:
        named: files that were named, what counts more before what counts less.
        local: None where there is no such file.
        own: the user's own file, there or not.
        own_exists: whether it is there.
    """

    named: Sequence[Named]
    local: Local | None
    own: Path
    own_exists: bool


@dataclass(frozen=True, slots=True)
class Found:
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
    why: Why
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


def search(facts: SearchInput) -> Found:
    """Return the file that serves. Raises nothing: see `Found.require`."""
    if facts.named:
        first = facts.named[0]
        return Found(first.path, Why.NAMED, facts.own, by=first.by, exists=first.exists)
    local, skipped = facts.local, None
    if local is not None and local.path != facts.own:
        if local.checkout:
            return Found(local.path, Why.LOCAL, facts.own)
        if local.confirmed is Confirmed.YES:
            return Found(local.path, Why.LOCAL, facts.own, confirm=True)
        skipped = local
    if facts.own_exists:
        return Found(facts.own, Why.OWN, facts.own, skipped=skipped)
    return Found(None, Why.NONE, facts.own, skipped=skipped)


def skip_line(local: Local, command: str) -> str:
    """Return the line about a *local* file that is not used; *command* is account-pool."""
    why = (
        "was changed since you confirmed it"
        if local.confirmed is Confirmed.CHANGED
        else "has not been confirmed; it may run commands and name hosts"
    )
    return f"{local.path} is skipped: it {why}. If it is yours, run: {command} check --trust"
