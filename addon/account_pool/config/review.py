"""What there is to say of the accounts of a configuration and stops nothing.

accounts.yaml is right by then. Whether each credential can be had now is the state of its
account: the proxy says so when it starts, `account-pool check` without it, from here.
Blocks: files and variables are read, commands are not run. Raises nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from account_pool.config.problems import Problem
from account_pool.config.values import AccountEntry, Config
from account_pool.core.credential import Credential
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.files import FileSource, Reading
from account_pool.credentials.ways import credential_of


@dataclass(frozen=True, slots=True)
class Review:
    """What was found.

    Attributes:
        unreadable: accounts that have no credential now, and why.
    """

    unreadable: tuple[Problem, ...] = ()


def review(config: Config) -> Review:
    """Return what there is to say of the enabled accounts of *config*."""
    unreadable = []
    for entry in config.accounts:
        if not entry.account.enabled:
            continue  # what is out of use need not be there
        try:
            _credential_now(entry)
        except CredentialError as error:
            wrong = f"{entry.source.describe()}: {error.wrong}"
            unreadable.append(_about(config, entry, wrong, error.remedy))
    return Review(tuple(unreadable))


def _credential_now(entry: AccountEntry) -> Credential | None:
    """Return what *entry* has, None when it takes time. Raises CredentialError."""
    reading: Reading | None
    if isinstance(entry.source, FileSource):
        reading = entry.source.reading()
    else:
        secret = entry.source.read_now()
        reading = None if secret is None else Reading(secret=secret)
    return None if reading is None else next(iter(credential_of(entry, reading).values()))


def _about(config: Config, entry: AccountEntry, wrong: str, remedy: str) -> Problem:
    path = config.path or Path("environment")
    return Problem(path, entry.line, str(entry.account.key), wrong, remedy)
