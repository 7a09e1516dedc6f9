"""What looks wrong with the accounts of a configuration, and stops nothing.

accounts.yaml is right by then. Whether each credential can be read now is the state of its
account: the proxy logs it when it starts, and `account-pool check` prints it, from here.
Blocks: files and variables are read, commands are not run. Raises nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from account_pool.config.problems import Problem
from account_pool.config.values import Config
from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential
from account_pool.credentials.account_credential import DOUBTED, doubt
from account_pool.credentials.acquire import credential_of
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.notices import Notice, Notices, ending_logins
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.sources import AccountEntry


@dataclass(frozen=True, slots=True)
class Review:
    """What was found.

    Attributes:
        unreadable: accounts that have no credential now, and why.
        notices: what looks wrong with those that have one.
    """

    unreadable: tuple[Problem, ...] = ()
    notices: tuple[Problem, ...] = ()


def review(config: Config, *, wall_now: float) -> Review:
    """Return what there is to say of the enabled accounts of *config*.

    *wall_now* is in seconds since the epoch.
    """
    unreadable, found, notices = [], [], Notices()
    for entry in config.accounts:
        if not entry.account.enabled:
            continue  # what is out of use need not be there
        try:
            credentials = _credentials_now(entry)
        except CredentialError as error:
            wrong = f"{entry.source.describe()}: {error.wrong}"
            unreadable.append(_about(config, entry, wrong, error.remedy))
            continue
        ends = [c.expires_at for c in credentials.values() if c.expires_at is not None]
        if ends and not isinstance(entry.source, OAuthSource) and (why := doubt(ends[0], wall_now)):
            found.append(_about(config, entry, f"{entry.source.describe()}: {why}", DOUBTED))
        new = notices.take(entry, credentials)
        found += [_noticed(config, notice) for notice in new]
    # Last: a file has been read by now, and says when its login ends.
    found += [_noticed(config, one) for one in ending_logins(config.accounts, wall_now)]
    return Review(tuple(unreadable), tuple(found))


def twin(new: AccountEntry, others: Iterable[AccountEntry]) -> AccountKey | None:
    """Return which of *others* is the same account as *new*, as far as both can be read now."""
    notices = Notices()
    for entry in (*others, new):
        notices.take(entry, held_now(entry))
    key = new.account.key
    about = (one for notice in notices if notice.key == key for one in notice.about)
    return next((one for one in about if isinstance(one, AccountKey) and one != key), None)


def held_now(entry: AccountEntry) -> Mapping[str, Credential]:
    """Return the credentials of *entry*, none where they cannot be read at once."""
    try:
        return _credentials_now(entry)
    except CredentialError:
        return {}


def _credentials_now(entry: AccountEntry) -> Mapping[str, Credential]:
    """Return what *entry* has, nothing when it takes time. Raises CredentialError."""
    reading = entry.source.reading_now()
    return {} if reading is None else credential_of(entry, reading)


def _noticed(config: Config, notice: Notice) -> Problem:
    entry = next(one for one in config.accounts if one.account.key == notice.key)
    return _about(config, entry, notice.wrong, notice.remedy)


def _about(config: Config, entry: AccountEntry, wrong: str, remedy: str) -> Problem:
    path = config.path or Path("environment")
    return Problem(path, entry.line, str(entry.account.key), wrong, remedy)
