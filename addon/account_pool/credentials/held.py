"""The credentials of one account: read, exchanged, renewed in time.

One object per account, driven by its keeper. Everything that changes credentials runs
under the account's lock, so that however many requests were refused at once there is
one refresh. Failure is a text for the owner and a later try, never an exception.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from account_pool.core.account import Account, AccountKey
from account_pool.core.credential import Credential, Secret
from account_pool.credentials.backoff import backoff_s
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.exchange_answer import Exchanged, ExchangeFailed, ExchangeRefused

if TYPE_CHECKING:
    from account_pool.config import AccountEntry

logger = logging.getLogger(__name__)

#: Seconds until a token that GitHub refused for good is offered again: its owner may
#: have bought a seat meanwhile.
REFUSED_WAIT_S = 600.0
#: A source that fails waits longer at first: a command may open a window each time.
SOURCE_FIRST_FAILURES = 4

Publish = Callable[[AccountKey, Mapping[str, Credential], str | None], None]


class Exchange(Protocol):
    """What turns GitHub tokens into Copilot tokens: see `copilot.CopilotExchange`."""

    def handles(self, provider: str) -> bool: ...

    async def exchange(self, account: Account, github: Secret) -> Exchanged: ...

    def credentials(
        self, account: Account, github: Secret, exchanged: Exchanged
    ) -> dict[str, Credential]: ...


class Held:
    """What one account holds now.

    Attributes:
        lock: held by whoever changes the credentials.
        credentials: usable now, by kind.
        for_clients: what clients may see of the account's last exchange.
        tried: set once the first try is over, well or badly.
    """

    def __init__(
        self,
        entry: AccountEntry,
        publish: Publish,
        exchange: Exchange,
        wall_clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.entry = entry
        self.key = entry.account.key
        self.lock = asyncio.Lock()
        self.tried = asyncio.Event()
        self.credentials: Mapping[str, Credential] = {}
        self.for_clients: Mapping[str, Any] = {}
        self._publish = publish
        self._exchange = exchange
        self._wall_clock = wall_clock
        self._chance = chance
        self._problem: str | None = None
        self._failures = 0
        self._closed = False

    @property
    def is_exchanged(self) -> bool:
        return self._exchange.handles(self.key.provider)

    def close(self) -> None:
        """Publish nothing any more: the account is gone, or read anew by another object."""
        self._closed = True

    def read_now(self) -> float | None:
        """Publish what can be had at once; return in how many seconds to `renew`.

        0 when a command or an exchange is needed, None for never.
        """
        if self.is_exchanged:
            return 0.0
        try:
            secret = self.entry.source.read_now()
            credential = None if secret is None else self._key_credential(secret)
        except CredentialError as error:
            self.tried.set()
            return self._source_failed(error)
        if credential is None:
            return 0.0
        self.tried.set()
        self._take(credential)
        return None

    async def renew(self) -> float | None:
        """Read or exchange anew; return in how many seconds again, None for never.

        Call it under the lock. Raises nothing but cancellation: see the last handler.
        """
        try:
            return await self._renew()
        except CredentialError as error:
            return self._source_failed(error)
        except ExchangeRefused as error:
            self._drop(str(error))
            return REFUSED_WAIT_S
        except ExchangeFailed as error:
            return self._keep_old(str(error), error.retry_after_s)
        # A mistake of ours must not end the account's loop for good, and its text may
        # quote anything.
        except Exception as error:
            return self._keep_old(f"unexpected {type(error).__name__}", None)
        finally:
            self.tried.set()

    async def _renew(self) -> float | None:
        source = self.entry.source
        secret = await source.read()
        if not self.is_exchanged:
            self._take(self._key_credential(secret))
            return None
        try:
            exchanged = await self._exchange.exchange(self.entry.account, secret)
        except ExchangeRefused as error:
            # The owner may have logged in again: what is remembered is outdated then.
            source.refused(secret)
            newer = await source.read() if error.status == 401 else secret
            if newer == secret:
                raise
            secret = newer
            exchanged = await self._exchange.exchange(self.entry.account, secret)
        credentials = self._exchange.credentials(self.entry.account, secret, exchanged)
        self.for_clients = exchanged.for_clients
        self._announce(credentials["copilot"], exchanged.renew_in_s)
        self._take(*credentials.values())
        return exchanged.renew_in_s

    def has_other_than(self, refused: Credential) -> bool:
        """Say whether the credential of the same kind is another one by now."""
        current = self.credentials.get(refused.kind)
        return current is not None and current.secret != refused.secret

    def drop_expired(self) -> None:
        """Withdraw credentials that have ended. The problem of the last try stays."""
        ends = [c.expires_at for c in self.credentials.values() if c.expires_at is not None]
        if ends and min(ends) <= self._wall_clock():
            self._drop(self._problem or "its token has expired")

    def _key_credential(self, secret: Secret) -> Credential:
        provider, token = self.entry.provider, secret.reveal()
        if where := provider.misplaced(token):
            raise CredentialError(f"this token is not one for {provider.name}", where)
        return Credential(
            kind=provider.token_kind,
            secret=secret,
            # What the owner wrote counts before what the token says of itself.
            companions={**provider.token_companions(token), **self.entry.account.companions},
            expires_at=provider.token_expiry(token),
        )

    def _take(self, *credentials: Credential) -> None:
        self._failures = 0
        self._change({credential.kind: credential for credential in credentials}, None)

    def _source_failed(self, error: CredentialError) -> float:
        # Nothing to fall back on but a token that is still good.
        return self._keep_old(f"{self.entry.source.describe()}: {error}", None, source=True)

    def _keep_old(
        self, problem: str, retry_after_s: float | None, *, source: bool = False
    ) -> float:
        """Note a failure that may pass; return the seconds until the next try."""
        self._failures += 1
        wait_s = backoff_s(self._failures + SOURCE_FIRST_FAILURES * source, self._chance())
        self._change(self.credentials, problem)
        self.drop_expired()
        return max(wait_s, retry_after_s or 0.0)

    def _drop(self, problem: str) -> None:
        self.for_clients = {}
        self._change({}, problem)

    def _change(self, credentials: Mapping[str, Credential], problem: str | None) -> None:
        """Publish what is new, and say a problem once."""
        if self._closed:
            return
        if problem is not None and problem != self._problem:
            logger.warning("%s: %s", self.key, problem)
        if credentials == self.credentials and problem == self._problem:
            return
        self.credentials, self._problem = credentials, problem
        self._publish(self.key, credentials, problem)

    def _announce(self, token: Credential, renew_in_s: float) -> None:
        """Say that the account has a token: aloud at first and after a problem."""
        is_news = not self.credentials or self._problem is not None
        until = datetime.fromtimestamp(token.expires_at or 0, UTC)
        logger.log(
            logging.INFO if is_news else logging.DEBUG,
            "%s: has a Copilot token, refreshed in %s (valid until %s UTC, host %s)",
            self.key,
            _in_words(renew_in_s),
            until.strftime("%H:%M:%S"),
            token.companions.get("host", "as the client names it"),
        )


def _in_words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
