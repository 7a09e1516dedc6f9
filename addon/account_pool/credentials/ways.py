"""How the credentials of one account are had: one class for each way there is.

A way answers with credentials and says when to ask it again, or raises what is the
matter. It publishes nothing and keeps no time: that is `held.py`.
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
from account_pool.credentials.entry import AccountEntry
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.exchange_answer import Exchanged, ExchangeRefused
from account_pool.credentials.files import FileSource, Stamp
from account_pool.credentials.keychain import KeychainSource
from account_pool.credentials.login import Login, Refresher
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.reading import Reading
from account_pool.store.tokens import Tokens

#: How often a file is looked at, in seconds: its tool may have renewed what is in it.
FILE_LOOK_S = 5.0

#: How often an item of the keychain is looked at, in seconds, for the same reason: each look
#: may ask its user.
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
class Ways:
    """What the ways of all accounts share.

    Attributes:
        exchange: turns GitHub tokens into Copilot tokens.
        refresher: refreshes logins; None: they are used as they were written.
        assist: learns the project of an account that needs one.
    """

    exchange: Exchange
    refresher: Refresher | None = None
    assist: CodeAssist | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """What a way answers.

    Attributes:
        credentials: by kind.
        again_in_s: seconds until it is asked again; None: when the server refuses them.
        for_clients: what clients may see of an exchange.
        told: what there is to say of new credentials, "" for nothing.
    """

    credentials: Credentials
    again_in_s: float | None = None
    for_clients: Mapping[str, Any] = field(default_factory=dict)
    told: str = ""


class Way:
    """How the credentials of one account are had: a source is read for them.

    Attributes:
        expired: what to say when they have ended.
        renews: it gets new ones itself, in time.
    """

    expired = "its token has expired"
    renews = False

    def __init__(self, entry: AccountEntry) -> None:
        self._entry = entry

    def now(self) -> Got | None:
        """Return what can be had at once, None when it takes time. Raises CredentialError."""
        return None

    async def renew(self) -> Got:
        """Return what can be had.

        Raises CredentialError, ExchangeRefused, ExchangeFailed, or UnderWay (login.py).
        """
        raise NotImplementedError

    def refuse(self, secret: Secret) -> None:
        """Note that the provider did not take *secret*: other credentials are wanted."""
        self._entry.source.refused(secret)

    def meanwhile(self, held: Credentials) -> Credentials:
        """Return what can be used after a failure; *held* was used before it."""
        return held


def way_of(entry: AccountEntry, ways: Ways, wall_clock: Callable[[], float], chance: float) -> Way:
    """Return how the credentials of *entry* are had. *chance*, 0 to 1, spreads refreshes."""
    if ways.exchange.handles(entry.account.provider):
        return ExchangeWay(entry, ways.exchange)
    way: Way
    if isinstance(entry.source, OAuthSource) and ways.refresher is not None:
        expiry = entry.provider.token_expiry
        login = Login(entry.source, ways.refresher, expiry=expiry, chance=chance)
        way = LoginWay(entry, login, wall_clock)
    elif isinstance(entry.source, FileSource):
        way = FileWay(entry, entry.source)
    elif isinstance(entry.source, KeychainSource):
        way = KeychainWay(entry, entry.source)
    else:
        way = SourceWay(entry)
    needs_project = "project" not in entry.account.companions
    if needs_project and ways.assist and ways.assist.handles(entry.account.provider):
        way = ProjectWay(entry, way, ways.assist)
    return way


class SourceWay(Way):
    """Reads a source: what it has is the credential."""

    def now(self) -> Got | None:
        secret = self._entry.source.read_now()
        return None if secret is None else self._got(secret)

    async def renew(self) -> Got:
        return self._got(await self._entry.source.read())

    def _got(self, secret: Secret) -> Got:
        return Got(credentials=credential_of(self._entry, Reading(secret=secret)))


class FileWay(Way):
    """Reads a file, again and again: only if it was written, or its token was refused."""

    def __init__(self, entry: AccountEntry, source: FileSource) -> None:
        super().__init__(entry)
        self._source = source
        self._read: tuple[Stamp, Got] | None = None
        self.expired = f"{source.describe()}: {_ITS_TOOL}"

    def now(self) -> Got:
        stamp = self._source.stamp()
        if self._read is not None and stamp == self._read[0]:
            return self._read[1]
        # Once it fails it is read until it does not: a changed mode is in no stamp.
        self._read = None
        credentials = credential_of(self._entry, self._source.reading())
        got = Got(credentials=credentials, again_in_s=FILE_LOOK_S)
        # As it was before it was read: what is written meanwhile is noticed next time.
        self._read = None if stamp is None else (stamp, got)
        return got

    async def renew(self) -> Got:
        # A home directory may be on the network.
        return await asyncio.to_thread(self.now)

    def refuse(self, _secret: Secret) -> None:
        self._read = None


class KeychainWay(Way):
    """Reads an item of the keychain, again and again: its tool renews what is in it."""

    def __init__(self, entry: AccountEntry, source: KeychainSource) -> None:
        super().__init__(entry)
        self._source = source
        self.expired = f"{source.describe()}: {_ITS_TOOL}"

    async def renew(self) -> Got:
        credentials = credential_of(self._entry, await self._source.reading())
        return Got(credentials=credentials, again_in_s=KEYCHAIN_LOOK_S)


class LoginWay(Way):
    """Has the newest tokens of a login, and new ones in time."""

    renews = True

    def __init__(self, entry: AccountEntry, login: Login, wall_clock: Callable[[], float]) -> None:
        super().__init__(entry)
        self._login = login
        self._wall_clock = wall_clock

    async def renew(self) -> Got:
        tokens = await self._login.tokens()
        credentials = self._credentials(tokens)
        renew_at = self._login.renew_at(tokens)
        wait_s = None if renew_at is None else max(renew_at - self._wall_clock(), 1.0)
        refreshed = "when it is refused" if wait_s is None else f"in {in_words(wait_s)}"
        ends = [c.expires_at for c in credentials.values() if c.expires_at is not None]
        until = f" (valid until {_moment(min(ends)):%Y-%m-%d %H:%M:%S} UTC)" if ends else ""
        return Got(
            credentials=credentials,
            again_in_s=wait_s,
            told=f"has an access token, refreshed {refreshed}{until}",
        )

    def refuse(self, secret: Secret) -> None:
        self._login.refuse(secret)

    def meanwhile(self, _held: Credentials) -> Credentials:
        tokens = self._login.still_good()
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


class ExchangeWay(Way):
    """Exchanges what the source has for a Copilot token."""

    renews = True

    def __init__(self, entry: AccountEntry, exchange: Exchange) -> None:
        super().__init__(entry)
        self._account = entry.account
        self._source = entry.source
        self._exchange = exchange

    async def renew(self) -> Got:
        secret = await self._source.read()
        try:
            exchanged = await self._exchange.exchange(self._account, secret)
        except ExchangeRefused as error:
            # The owner may have logged in again: what is remembered is outdated then.
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
        return Got(
            credentials=credentials,
            again_in_s=exchanged.renew_in_s,
            for_clients=exchanged.for_clients,
            told=f"has a Copilot token, refreshed in {in_words(exchanged.renew_in_s)} "
            f"(valid until {_moment(token.expires_at or 0):%H:%M:%S} UTC, "
            f"host {token.companions.get('host', 'as the client names it')})",
        )

    def _raw(self, secret: Secret) -> Got:
        """The token is of another app, or a PAT: the Copilot CLI sends such a one itself."""
        return Got(
            credentials=self._exchange.credentials(self._account, secret, None),
            again_in_s=NO_EXCHANGE_LOOK_S,
            told="its token cannot be exchanged (404): it serves only tools that send a GitHub "
            "token, as the Copilot CLI does; log in with an app that has Copilot access to "
            "serve editors too",
        )


class ProjectWay(Way):
    """Adds the project of the account, learnt once, to what another way has."""

    def __init__(self, entry: AccountEntry, way: Way, assist: CodeAssist) -> None:
        super().__init__(entry)
        self._way = way
        self._assist = assist
        self._project: str | None = None
        self.expired, self.renews = way.expired, way.renews

    async def renew(self) -> Got:
        got = await self._way.renew()
        if self._project is None:
            for credential in got.credentials.values():
                self._project = await self._assist.project(
                    self._entry.account.provider, credential.secret
                )
        return replace(got, credentials=self._with_project(got.credentials))

    def refuse(self, secret: Secret) -> None:
        self._way.refuse(secret)

    def meanwhile(self, held: Credentials) -> Credentials:
        return self._with_project(self._way.meanwhile(held))

    def _with_project(self, credentials: Credentials) -> Credentials:
        """Return none at all while the project is not known: they would be refused."""
        if self._project is None:
            return {}
        added = {"project": self._project}
        return {
            kind: replace(one, companions={**added, **one.companions})
            for kind, one in credentials.items()
        }


def credential_of(entry: AccountEntry, reading: Reading) -> Credentials:
    """Return what was read as a credential of the account. Raises CredentialError."""
    provider, token = entry.provider, reading.secret.reveal()
    if where := provider.misplaced(token):
        raise CredentialError(f"this token is not one for {provider.name}", where)
    expires_at = reading.expires_at
    credential = Credential(
        kind=provider.token_kind,
        secret=reading.secret,
        # What the owner wrote counts before what the token says of itself.
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
    """Return a span of time as a person would say it."""
    if seconds >= 7200:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
