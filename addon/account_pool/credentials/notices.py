"""What looks wrong with credentials that can be read: for their owner to see, once.

One login under two labels: failover from one to the other goes nowhere, and both run into
the same limit. A key in the form of another vendor's. Nothing is refused for it. Secrets
are compared by their hashes, and no text has a part of one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.sources import AccountEntry
from account_pool.credentials.vendor_logins import DAY_S, TOOLS, log_in_again
from account_pool.providers.registry import BUILT_IN
from account_pool.providers.token_forms import foreign

#: Where these differ the limits do, although the login is the same.
_SPLITS_LIMITS = ("host", "deployments", "organization", "openai_project", "project")
#: How long before the end of a login its owner is told, seconds.
WARNED_S = 7 * DAY_S
_ONE_LIMIT = "a limit of one is a limit of both: remove one of them"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that looks wrong.

    Attributes:
        key: the account.
        wrong: what looks wrong.
        remedy: what to do about it.
        about: equal for the same notice found again, also with the two accounts exchanged.
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

    def keep(self, keys: Collection[AccountKey]) -> None:
        """Forget all but *keys*."""
        for key in self._marks.keys() - keys:
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
        day = f"{datetime.fromtimestamp(ends_at, UTC):%Y-%m-%d %H:%M} UTC"
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
