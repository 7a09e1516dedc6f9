"""The credentials of one account at run time: acquired, renewed in time, published.

One object per account, driven by the keeper; `acquire.py` gets the credentials. Whatever
changes them in a task runs under the account's lock, so that any number of refused requests
cause one refresh. A failure is a text for the owner and a later try, never an exception.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential, Secret, is_plausible_end
from account_pool.credentials.acquire import FILE_LOOK_S, AcquireContext, Acquired, acquirer_of
from account_pool.credentials.errors import CredentialError, ExchangeFailed, ExchangeRefused
from account_pool.credentials.files import FileSource
from account_pool.credentials.refreshable_token import RefreshPending
from account_pool.credentials.sources import AccountEntry
from account_pool.supervision import tasks

logger = logging.getLogger(__name__)

#: Seconds until a token that GitHub refused for good is tried again: its owner may have
#: bought a seat since.
REFUSED_WAIT_S = 600.0
#: What happens to a token with an implausible expiry.
DOUBTED = "that may be wrong, so it is used when no other account can serve"
#: A source that fails waits longer at first: a command may open a window each time.
SOURCE_FIRST_FAILURES = 4

#: Bounds of the wait before something that failed is tried again, in seconds.
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 300.0

#: Takes the account, its credentials by kind, the problem or None, and the seconds until others
#: are tried for: 0 for any moment now, None if that needs somebody to act.
Publish = Callable[[AccountKey, Mapping[str, Credential], str | None, float | None], None]


def backoff_s(failures: int, chance: float) -> float:
    """Return the seconds to wait after *failures* (1 or more) in a row.

    Doubles from 1 s to 5 min. *chance*, 0 to 1, takes up to half of it away, so that
    accounts which failed together do not come back together; never below 1 s.
    """
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 30))
    return max(FIRST_WAIT_S, longest * (1 - chance / 2))


def doubt(expires_at: float, wall_now: float) -> str | None:
    """Say why an end that is told of a token is not believed; None if it may be true."""
    if is_plausible_end(expires_at, wall_now):
        return None
    when = "in the far future"
    if expires_at <= wall_now:
        when = f"on {datetime.fromtimestamp(expires_at, UTC):%Y-%m-%d %H:%M} UTC already"
    return f"its token ends {when}, by what is said of it"


class AccountCredential:
    """The credentials that one account has now.

    Attributes:
        lock: held while `renew` runs.
        credentials: usable now, by kind.
        for_clients: the part of the account's last exchange that clients may see.
        tried: set once the first try is over, successful or not.
        unreadable: the last read of the source gave no usable credential.
        looked_at: when the source was read last, seconds since the epoch.
        takes_time: the last read of the source could not finish at once.
        is_renewing: a renewal goes on in the background.
    """

    def __init__(
        self,
        entry: AccountEntry,
        publish: Publish,
        context: AcquireContext,
        wall_clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.entry = entry
        self.key = entry.account.key
        self.lock = asyncio.Lock()
        self.tried = asyncio.Event()
        self.credentials: Mapping[str, Credential] = {}
        self.for_clients: Mapping[str, Any] = {}
        self.unreadable = False
        self.looked_at = -math.inf
        self.takes_time = False
        self.is_renewing = False
        self._publish = publish
        self._acquirer = acquirer_of(entry, context, wall_clock, chance())
        self._wall_clock = wall_clock
        self._chance = chance
        self._problem: str | None = None
        #: seconds until the next try for others; None: somebody has to act
        self._again_in_s: float | None = 0.0
        #: by kind: secrets that were read before they expired, so that their expiry is plausible
        self._timed: dict[str, Secret] = {}
        self._published: float | None = None
        self._failures = 0
        self._said_slow = False
        self._closed = False

    def close(self) -> None:
        """Publish nothing from now on: the account is gone, or has another object."""
        self._closed = True

    def read_now(self) -> float | None:
        """Publish what is available at once; return the seconds until `renew` is due.

        0 if acquiring takes time, None for never.
        """
        self.looked_at, self.takes_time = self._wall_clock(), False
        try:
            acquired = self._acquirer.now()
        except CredentialError as error:
            self.tried.set()
            return self._source_failed(error)
        except Exception as error:
            self.tried.set()
            return self._unexpected(error)
        if acquired is None:
            self.takes_time = True
            return 0.0
        self.tried.set()
        return self._accept(acquired)

    async def renew(self) -> float | None:
        """Acquire credentials again; return the seconds until the next time, None for never.

        Call it under the lock. Raises nothing but cancellation.
        """
        self.looked_at = self._wall_clock()
        try:
            acquired = await self._acquirer.renew()
            self.is_renewing = self._said_slow = False
            return self._accept(acquired)
        except RefreshPending as error:
            return self._goes_on(error)
        except CredentialError as error:
            return self._source_failed(error)
        except ExchangeRefused as error:
            self.is_renewing, self._again_in_s = False, None
            self._drop(str(error))
            return REFUSED_WAIT_S
        except ExchangeFailed as error:
            return self._keep_old(
                str(error), error.retry_after_s, is_wait=error.is_wait, passes=error.passes
            )
        except Exception as error:
            return self._unexpected(error)
        finally:
            self.tried.set()

    def refuse(self, secret: Secret) -> None:
        """Note that the provider refused *secret*; `renew` gets another."""
        self._acquirer.refuse(secret)

    def differs_from(self, refused: Credential) -> bool:
        """Return whether the credential of the kind of *refused* has changed since."""
        current = self.credentials.get(refused.kind)
        return current is not None and current.secret != refused.secret

    @property
    def renewal_expected(self) -> bool:
        """Whether other credentials can come without anybody acting: a try is running or due."""
        return self.is_renewing or self._again_in_s is not None

    def ends_in_s(self) -> float:
        """Return the seconds until the first of the credentials expires; inf for never."""
        return self._left_s(self.credentials)

    def drop_expired(self) -> None:
        """Withdraw credentials that have expired. The problem of the last try stays."""
        if self.ends_in_s() > 0:
            return
        if self._problem is None and self._acquirer.renews:
            self._again_in_s = 0.0  # late, as after sleep, or it goes on
        self._drop(self._problem or self._acquirer.expired)

    def _left_s(self, credentials: Mapping[str, Credential]) -> float:
        ends = [c.expires_at for c in credentials.values() if c.expires_at is not None]
        return min(ends) - self._wall_clock() if ends else math.inf

    def _accept(self, acquired: Acquired) -> float | None:
        credentials = {kind: self._with_end(kind, c) for kind, c in acquired.credentials.items()}
        self._again_in_s = None
        if self._left_s(credentials) <= 0:
            self._drop(self._acquirer.expired)
            return acquired.again_in_s
        if acquired.log_text and credentials != self.credentials:
            # Aloud at first and after a problem.
            is_news = not self.credentials or self._problem is not None
            level = logging.INFO if is_news else logging.DEBUG
            logger.log(level, "%s: %s", self.key, acquired.log_text)
        if self.unreadable:
            logger.info("%s: its credential can be read again", self.key)
        self._failures, self.unreadable = 0, False
        self.for_clients = acquired.for_clients
        self._change(credentials, self._doubt_of(acquired.credentials, credentials))
        return acquired.again_in_s

    def _doubt_of(
        self, read: Mapping[str, Credential], used: Mapping[str, Credential]
    ) -> str | None:
        """Return what is wrong with an expiry that was *read*; None if all are plausible."""
        for kind, credential in used.items():
            ends = read[kind].expires_at
            if credential.doubtful and ends is not None:
                why = doubt(ends, self._wall_clock())
                return f"{self.entry.source.describe()}: {why}; {DOUBTED}"
        return None

    def _with_end(self, kind: str, credential: Credential) -> Credential:
        """Return *credential*, without its expiry if that is implausible.

        The expiry of a secret that was read before it holds. One that had passed before the
        secret was first read, or that lies a hundred years ahead, is ignored.
        """
        ends = credential.expires_at
        if ends is None or self._timed.get(kind) == credential.secret:
            return credential
        if is_plausible_end(ends, self._wall_clock()):
            self._timed[kind] = credential.secret
            return credential
        return replace(credential, expires_at=None, doubtful=True)

    def _source_failed(self, error: CredentialError) -> float:
        # Nothing to fall back on but a token that is still good.
        self.unreadable = True
        problem = f"{self.entry.source.describe()}: {error}"
        wait_s = self._keep_old(problem, None, source=True, passes=False)
        # Reading a file costs nothing, and notices a write or a changed mode.
        return FILE_LOOK_S if isinstance(self.entry.source, FileSource) else wait_s

    def _unexpected(self, error: Exception) -> float:
        """Log a bug of ours. It ends neither the account's loop nor the request that waits."""
        wait_s = self._keep_old(f"unexpected {type(error).__name__}", None)
        tasks.note(f"keeping the credential of {self.key}", error, f"again in {wait_s:.0f} s")
        return wait_s

    def _keep_old(
        self,
        problem: str,
        retry_after_s: float | None,
        *,
        source: bool = False,
        is_wait: bool = False,
        passes: bool = True,
    ) -> float:
        """Note a failure; return the seconds until the next try."""
        self._failures += not is_wait
        self.is_renewing = self._said_slow = False
        wait_s = backoff_s(max(self._failures, 1) + SOURCE_FIRST_FAILURES * source, self._chance())
        again_in_s = (retry_after_s or 0.0) if is_wait else max(wait_s, retry_after_s or 0.0)
        self._again_in_s = again_in_s if passes else None
        self._change(self._acquirer.fallback(self.credentials), problem)
        self.drop_expired()
        return again_in_s

    def _goes_on(self, error: RefreshPending) -> float:
        """Use what is still valid while the renewal goes on; otherwise requests are held."""
        if error.aloud and not self._said_slow:
            logger.warning("%s: %s", self.key, error)
            self._said_slow = True
        self.is_renewing, self._again_in_s = True, 0.0
        self._change({} if error.is_refused else self._acquirer.fallback(self.credentials), None)
        return error.again_in_s

    def _drop(self, problem: str) -> None:
        self.for_clients = {}
        self._change({}, problem)

    def _change(self, credentials: Mapping[str, Credential], problem: str | None) -> None:
        """Publish what has changed; log a problem once."""
        if self._closed:
            return
        if problem is not None and problem != self._problem:
            logger.warning("%s: %s", self.key, problem)
        known = credentials, problem, None if credentials else self._again_in_s
        if known == (self.credentials, self._problem, self._published):
            return
        self.credentials, self._problem, self._published = known
        self._publish(self.key, *known)
