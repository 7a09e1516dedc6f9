"""What looks wrong with the accounts of a configuration, and stops nothing.

accounts.yaml is right by then. Whether each credential can be read now is the state of its
account: the proxy logs it when it starts, and `account-pool check` prints it, from here.

Of those that can be read: one login under two labels, so that failover from one to the other
goes nowhere and both run into the same limit; a key in the form of another vendor's; a login
that ends soon. Secrets are compared by their hashes, and no text has a part of one.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from account_pool.config.configuration import Config
from account_pool.config.problems import Problem
from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential
from account_pool.credentials.acquire import credential_of
from account_pool.credentials.files import FileSource
from account_pool.credentials.keeper import DOUBTED, doubt
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.sources import AccountEntry, CredentialError, moment
from account_pool.credentials.vendor_logins import DAY_S, TOOLS, log_in_again
from account_pool.providers.registry import BUILT_IN
from account_pool.providers.token_forms import foreign

#: Where these differ the limits do, although the login is the same.
_SPLITS_LIMITS = ("host", "deployments", "organization", "openai_project", "project")
#: How long before the end of a login its owner is told, seconds.
WARNED_S = 7 * DAY_S
_ONE_LIMIT = "a limit of one is a limit of both: remove one of them"


class Notice(Struct, frozen=True):
    """Something that looks wrong with the account *key*.

    *about* is equal for the same notice found again, also with the two accounts exchanged.
    """

    key: AccountKey
    wrong: str
    remedy: str
    about: frozenset[AccountKey | str]

    def __str__(self) -> str:
        return f"{self.key}: {self.wrong}; {self.remedy}"


class Notices:
    """What looks wrong with the accounts of one pool. Iterates over what does now."""

    def __init__(self) -> None:
        self._marks: dict[AccountKey, Mapping[str, str]] = {}
        #: by mark: who bears it, the first first
        self._bearers: dict[str, dict[AccountKey, None]] = {}
        self._foreign: dict[AccountKey, Notice] = {}
        self._said: set[frozenset[AccountKey | str]] = set()

    def __iter__(self) -> Iterator[Notice]:
        for key in self._marks:
            yield from self._of(key)

    def take(self, entry: AccountEntry, credentials: Mapping[str, Credential]) -> list[Notice]:
        """Look at what *entry* holds now; return what has not been said before."""
        key = entry.account.key
        if key in self._marks:
            self.forget(key)
        if not credentials:
            return []
        self._marks[key] = _marks(entry, credentials)
        for mark in self._marks[key]:
            self._bearers.setdefault(mark, {})[key] = None
        if (foreign := _foreign(entry, credentials)) is not None:
            self._foreign[key] = foreign
        new = [notice for notice in self._of(key) if notice.about not in self._said]
        self._said.update(notice.about for notice in new)
        return new

    def keep(self, keys: Container[AccountKey]) -> None:
        """Forget all but *keys*."""
        for key in [key for key in self._marks if key not in keys]:
            self.forget(key)

    def forget(self, key: AccountKey) -> None:
        """*key* is gone, or holds something else from now on."""
        for mark in self._marks.pop(key, ()):
            bearers = self._bearers[mark]
            del bearers[key]
            if not bearers:
                del self._bearers[mark]
        self._foreign.pop(key, None)

    def _of(self, key: AccountKey) -> Iterator[Notice]:
        """Yield what looks wrong with *key*; of two that are one, the later one has it."""
        met = {key}
        for mark, how in self._marks[key].items():
            first = next(iter(self._bearers[mark]))
            if first not in met:
                met.add(first)
                yield Notice(key, f"{how} {first}", _ONE_LIMIT, frozenset({key, first}))
        if key in self._foreign:
            yield self._foreign[key]


def ending_logins(entries: Iterable[AccountEntry], wall_now: float) -> list[Notice]:
    """Return a notice for each login that its owner has to make anew within days, or now.

    However often it is refreshed: only a person can. *wall_now* is in seconds since the epoch.
    """
    found = []
    for entry in entries:
        ends_at, account = entry.source.login_ends_at, entry.account
        if ends_at is None or not account.enabled or ends_at - wall_now > WARNED_S:
            continue
        day = f"{moment(ends_at):%Y-%m-%d %H:%M} UTC"
        wrong = f"its login ends on {day}" if ends_at > wall_now else f"its login ended on {day}"
        # What a tool keeps, the tool logs in to.
        tool = TOOLS.get(account.provider, "its tool")
        remedy = f"log in with {tool} again"
        if isinstance(entry.source, OAuthSource):
            remedy = log_in_again(account.provider, account.label)
        found.append(Notice(account.key, wrong, remedy, frozenset({account.key, wrong})))
    return found


def _marks(entry: AccountEntry, credentials: Mapping[str, Credential]) -> dict[str, str]:
    """Return what another account has only if it is the same, and what to say then.

    The most telling comes first.
    """
    account = entry.account
    marks: dict[str, str] = {}
    for credential in credentials.values():
        companions = {**credential.companions, **account.companions}
        scope = [account.provider, *[companions.get(name, "") for name in _SPLITS_LIMITS]]
        marks[_mark(scope, "token", credential.secret.digest())] = "has the same token as"
    if isinstance(entry.source, OAuthSource):
        # It may have an access token, and nothing to renew it with now.
        with suppress(CredentialError):
            marks[_mark(scope, "login", entry.source.family())] = "has the same login as"
    if account_id := companions.get("account_id"):
        # A workspace has one id for all of its members.
        user = companions.get("user_id", "")
        marks[_mark(scope, "account", account_id, user)] = "is the same account_id as"
    return marks


def _mark(scope: list[str], *what: str) -> str:
    return "\0".join((*scope, *what))


def _foreign(entry: AccountEntry, credentials: Mapping[str, Credential]) -> Notice | None:
    """Return a notice if the key of *entry* has the form of another provider's."""
    account, provider = entry.account, entry.provider
    if provider.name not in BUILT_IN or provider.added_hosts or "host" in account.companions:
        return None  # a gateway gives out keys of whatever form it likes
    for credential in credentials.values():
        found = foreign(credential.secret.reveal(), provider.name, BUILT_IN)
        if found is not None:
            wrong, remedy = found
            return Notice(account.key, wrong, remedy, frozenset({account.key, wrong}))
    return None


class Review(Struct, frozen=True):
    """What was found: accounts that have no credential now, and notices of those that have one."""

    unreadable: tuple[Problem, ...] = ()
    notices: tuple[Problem, ...] = ()


def review(config: Config, *, wall_now: float) -> Review:
    """Return what there is to say of the enabled accounts of *config*.

    *wall_now* is in seconds since the epoch. Blocks: files and variables are read, commands are
    not run. Raises nothing.
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
    """Return which of *others* is the same account as *new*, as far as both can be read now.

    What reads the same variable, file or item is the same whether it can be read or not.
    """
    notices, key = Notices(), new.account.key
    for entry in others:
        other = entry.account.key
        if other.provider == key.provider and other != key and entry.same_credential(new):
            return other
        notices.take(entry, held_now(entry))
    notices.take(new, held_now(new))
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
    reading = entry.source.read_now()
    if reading is None and isinstance(entry.source, FileSource):
        raise entry.source.not_read
    return {} if reading is None else credential_of(entry, reading)


def _noticed(config: Config, notice: Notice) -> Problem:
    entry = next(one for one in config.accounts if one.account.key == notice.key)
    return _about(config, entry, notice.wrong, notice.remedy)


def _about(config: Config, entry: AccountEntry, wrong: str, remedy: str) -> Problem:
    path = config.path or Path("environment")
    return Problem(path, entry.line, str(entry.account.key), wrong, remedy)
