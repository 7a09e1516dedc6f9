"""How the credentials of one account are acquired: one class for each kind of source.

An acquirer returns credentials and says when to call it again, or raises. It publishes
nothing and runs no timer: `account_credential.py` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.credentials.code_assist import CodeAssist
from account_pool.credentials.copilot_token import Exchanged
from account_pool.credentials.errors import CredentialError, ExchangeRefused
from account_pool.credentials.files import FileSource, Stamp
from account_pool.credentials.keychain import KeychainSource
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.reading import Reading
from account_pool.credentials.refreshable_token import RefreshableToken, Refresher
from account_pool.credentials.sources import AccountEntry
from account_pool.store.store import Tokens

#: How often a file is checked, in seconds: its tool may have renewed the token in it.
FILE_LOOK_S = 5.0

#: How often an item of the keychain is read, in seconds, for the same reason; rarer, because
#: each read may prompt the user.
KEYCHAIN_LOOK_S = 300.0

#: How often an exchange that was not possible is tried again, in seconds.
NO_EXCHANGE_LOOK_S = 600.0

Credentials = Mapping[str, Credential]

_ITS_TOOL = (
    "the token in it has expired; its tool renews it when it is used, or give this account a "
    "login of its own"
)


class Exchange(Protocol):
    """What turns GitHub tokens into Copilot tokens: see `copilot.CopilotExchange`."""

    def handles(self, provider: str) -> bool: ...

    async def exchange(self, account: Account, github: Secret) -> Exchanged: ...

    def credentials(
        self, account: Account, github: Secret, exchanged: Exchanged | None
    ) -> dict[str, Credential]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquireContext:
    """What the acquirers of all accounts share.

    Attributes:
        exchange: turns GitHub tokens into Copilot tokens.
        refresher: refreshes logins; None: their tokens are used as configured.
        assist: looks up the project of an account that needs one.
    """

    exchange: Exchange
    refresher: Refresher | None = None
    assist: CodeAssist | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquired:
    """What an acquirer returns.

    Attributes:
        credentials: by kind.
        again_in_s: seconds until the next call; None: once the server refuses them.
        for_clients: the part of an exchange that clients may see.
        log_text: what the log says of new credentials; "" for nothing.
    """

    credentials: Credentials
    again_in_s: float | None = None
    for_clients: Mapping[str, Any] = field(default_factory=dict)
    log_text: str = ""


class Acquirer:
    """Acquires the credentials of one account from its source.

    Attributes:
        expired: the problem to report when they have expired.
        renews: gets new ones itself before they expire.
    """

    expired = "its token has expired"
    renews = False

    def __init__(self, entry: AccountEntry) -> None:
        self._entry = entry

    def now(self) -> Acquired | None:
        """Return what is available at once; None if it takes time. Raises CredentialError."""
        return None

    async def renew(self) -> Acquired:
        """Return new credentials.

        Raises CredentialError, ExchangeRefused, ExchangeFailed or RefreshPending.
        """
        raise NotImplementedError

    def refuse(self, secret: Secret) -> None:
        """Note that the provider refused *secret*: another one is wanted."""
        self._entry.source.refused(secret)

    def fallback(self, current: Credentials) -> Credentials:
        """Return what can be used after a failure; *current* was used before it."""
        return current


def acquirer_of(
    entry: AccountEntry, context: AcquireContext, wall_clock: Callable[[], float], chance: float
) -> Acquirer:
    """Return the acquirer for *entry*. *chance*, 0 to 1, spreads refreshes over time."""
    if context.exchange.handles(entry.account.provider):
        return ExchangeAcquirer(entry, context.exchange)
    acquirer: Acquirer
    if isinstance(entry.source, OAuthSource) and context.refresher is not None:
        expiry = entry.provider.token_expiry
        token = RefreshableToken(entry.source, context.refresher, expiry=expiry, chance=chance)
        acquirer = RefreshableTokenAcquirer(entry, token, wall_clock)
    elif isinstance(entry.source, FileSource):
        acquirer = FileAcquirer(entry, entry.source)
    elif isinstance(entry.source, KeychainSource):
        acquirer = KeychainAcquirer(entry, entry.source)
    else:
        acquirer = SourceAcquirer(entry)
    needs_project = "project" not in entry.account.companions
    if needs_project and context.assist and context.assist.handles(entry.account.provider):
        acquirer = ProjectAcquirer(entry, acquirer, context.assist)
    return acquirer


class SourceAcquirer(Acquirer):
    """Reads a source that holds the credential itself."""

    def now(self) -> Acquired | None:
        secret = self._entry.source.read_now()
        return None if secret is None else self._acquired(secret)

    async def renew(self) -> Acquired:
        return self._acquired(await self._entry.source.read())

    def _acquired(self, secret: Secret) -> Acquired:
        return Acquired(credentials=credential_of(self._entry, Reading(secret=secret)))


class FileAcquirer(Acquirer):
    """Reads a file: again only after it was written, or its token was refused."""

    def __init__(self, entry: AccountEntry, source: FileSource) -> None:
        super().__init__(entry)
        self._source = source
        self._read: tuple[Stamp, Acquired] | None = None
        self.expired = f"{source.describe()}: {_ITS_TOOL}"

    def now(self) -> Acquired:
        stamp = self._source.stamp()
        if self._read is not None and stamp == self._read[0]:
            return self._read[1]
        # After a failure it is read every time: a stamp does not show a changed mode.
        self._read = None
        credentials = credential_of(self._entry, self._source.reading())
        acquired = Acquired(credentials=credentials, again_in_s=FILE_LOOK_S)
        # The stamp from before the read: a write during it is noticed next time.
        self._read = None if stamp is None else (stamp, acquired)
        return acquired

    async def renew(self) -> Acquired:
        # A home directory may be on the network.
        return await asyncio.to_thread(self.now)

    def refuse(self, _secret: Secret) -> None:
        self._read = None


class KeychainAcquirer(Acquirer):
    """Reads an item of the keychain from time to time: its tool renews the token in it."""

    def __init__(self, entry: AccountEntry, source: KeychainSource) -> None:
        super().__init__(entry)
        self._source = source
        self.expired = f"{source.describe()}: {_ITS_TOOL}"

    async def renew(self) -> Acquired:
        credentials = credential_of(self._entry, await self._source.reading())
        return Acquired(credentials=credentials, again_in_s=KEYCHAIN_LOOK_S)


class RefreshableTokenAcquirer(Acquirer):
    """Returns the newest tokens of a login, refreshed before they expire."""

    renews = True

    def __init__(
        self, entry: AccountEntry, token: RefreshableToken, wall_clock: Callable[[], float]
    ) -> None:
        super().__init__(entry)
        self._token = token
        self._wall_clock = wall_clock

    async def renew(self) -> Acquired:
        tokens = await self._token.tokens()
        credentials = self._credentials(tokens)
        renew_at = self._token.renew_at(tokens)
        wait_s = None if renew_at is None else max(renew_at - self._wall_clock(), 1.0)
        refreshed = "when it is refused" if wait_s is None else f"in {in_words(wait_s)}"
        ends = [c.expires_at for c in credentials.values() if c.expires_at is not None]
        until = f" (valid until {_moment(min(ends)):%Y-%m-%d %H:%M:%S} UTC)" if ends else ""
        return Acquired(
            credentials=credentials,
            again_in_s=wait_s,
            log_text=f"has an access token, refreshed {refreshed}{until}",
        )

    def refuse(self, secret: Secret) -> None:
        self._token.refuse(secret)

    def fallback(self, _current: Credentials) -> Credentials:
        tokens = self._token.still_good()
        try:
            return {} if tokens is None else self._credentials(tokens)
        except CredentialError:
            return {}

    def _credentials(self, tokens: Tokens) -> Credentials:
        assert tokens.access is not None  # a login gives out no others
        reading = Reading(
            secret=tokens.access, expires_at=tokens.expires_at, companions=tokens.companions
        )
        return credential_of(self._entry, reading)


class ExchangeAcquirer(Acquirer):
    """Exchanges the GitHub token of the source for a Copilot token."""

    renews = True

    def __init__(self, entry: AccountEntry, exchange: Exchange) -> None:
        super().__init__(entry)
        self._account = entry.account
        self._source = entry.source
        self._exchange = exchange

    async def renew(self) -> Acquired:
        secret = await self._source.read()
        try:
            exchanged = await self._exchange.exchange(self._account, secret)
        except ExchangeRefused as error:
            # The owner may have logged in again since the source was read.
            self._source.refused(secret)
            newer = await self._source.read() if error.status == 401 else secret
            if newer == secret and error.status == 404:
                return self._raw(secret)
            if newer == secret:
                raise
            secret = newer
            exchanged = await self._exchange.exchange(self._account, secret)
        credentials = self._exchange.credentials(self._account, secret, exchanged)
        token = credentials["copilot"]
        return Acquired(
            credentials=credentials,
            again_in_s=exchanged.renew_in_s,
            for_clients=exchanged.for_clients,
            log_text=f"has a Copilot token, refreshed in {in_words(exchanged.renew_in_s)} "
            f"(valid until {_moment(token.expires_at or 0):%H:%M:%S} UTC, "
            f"host {token.companions.get('host', 'as the client names it')})",
        )

    def _raw(self, secret: Secret) -> Acquired:
        """Use a token of another app, or a PAT, as it is: the Copilot CLI sends those itself."""
        return Acquired(
            credentials=self._exchange.credentials(self._account, secret, None),
            again_in_s=NO_EXCHANGE_LOOK_S,
            log_text="its token cannot be exchanged (404): it serves only tools that send a GitHub "
            "token, as the Copilot CLI does; log in with an app that has Copilot access to "
            "serve editors too",
        )


class ProjectAcquirer(Acquirer):
    """Adds the account's project, looked up once, to what another acquirer returns."""

    def __init__(self, entry: AccountEntry, acquirer: Acquirer, assist: CodeAssist) -> None:
        super().__init__(entry)
        self._acquirer = acquirer
        self._assist = assist
        self._project: str | None = None
        self.expired, self.renews = acquirer.expired, acquirer.renews

    async def renew(self) -> Acquired:
        acquired = await self._acquirer.renew()
        if self._project is None:
            for credential in acquired.credentials.values():
                self._project = await self._assist.project(
                    self._entry.account.provider, credential.secret
                )
        return replace(acquired, credentials=self._with_project(acquired.credentials))

    def refuse(self, secret: Secret) -> None:
        self._acquirer.refuse(secret)

    def fallback(self, current: Credentials) -> Credentials:
        return self._with_project(self._acquirer.fallback(current))

    def _with_project(self, credentials: Credentials) -> Credentials:
        """Return *credentials* with the project; {} while it is unknown: they would be refused."""
        if self._project is None:
            return {}
        added = {"project": self._project}
        return {
            kind: replace(one, companions={**added, **one.companions})
            for kind, one in credentials.items()
        }


def credential_of(entry: AccountEntry, reading: Reading) -> Credentials:
    """Return *reading* as credentials of the account, by kind. Raises CredentialError."""
    provider, token = entry.provider, reading.secret.reveal()
    if where := provider.misplaced(token):
        raise CredentialError(f"this token is not one for {provider.name}", where)
    expires_at = reading.expires_at
    credential = Credential(
        kind=provider.token_kind,
        secret=reading.secret,
        # What the owner configured takes precedence over the claims of the token.
        companions={
            **provider.token_companions(token),
            **reading.companions,
            **entry.account.companions,
        },
        expires_at=provider.token_expiry(token) if expires_at is None else expires_at,
    )
    if why := provider.lacking(credential):
        raise CredentialError("this token alone is not enough", why)
    return {credential.kind: credential}


def in_words(seconds: float) -> str:
    """Return a duration in words, such as "5 min"."""
    if seconds >= 7200:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
