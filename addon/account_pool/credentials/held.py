"""The credentials of one account at run time: had, renewed in time, published.

One object per account, driven by its keeper; how they are had is `ways.py`. Everything
that changes credentials runs under the account's lock, so that however many requests
were refused at once there is one refresh. Failure is a text for the owner and a later
try, never an exception.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential, Secret, is_plausible_end
from account_pool.credentials.entry import AccountEntry
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.exchange_answer import ExchangeFailed, ExchangeRefused
from account_pool.credentials.files import FileSource
from account_pool.credentials.instants import doubt
from account_pool.credentials.login import UnderWay
from account_pool.credentials.ways import FILE_LOOK_S, Got, Ways, way_of
from account_pool.supervision import tasks

logger = logging.getLogger(__name__)

#: Seconds until a token that GitHub refused for good is offered again: its owner may
#: have bought a seat meanwhile.
REFUSED_WAIT_S = 600.0
#: What becomes of a token whose end is not believed.
DOUBTED = "that may be wrong, so it is used when no other account can serve"
#: A source that fails waits longer at first: a command may open a window each time.
SOURCE_FIRST_FAILURES = 4

#: Bounds of the wait before something that failed is tried again, in seconds.
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 300.0

#: Takes the account, its credentials by kind, the problem if there is one, and in how many
#: seconds others come by themselves: 0 for at any moment, None for not before somebody acts.
Publish = Callable[[AccountKey, Mapping[str, Credential], str | None, float | None], None]


def backoff_s(failures: int, chance: float) -> float:
    """Return the seconds to wait after *failures* (1 or more) in a row.

    Doubles from 1 s to 5 min. *chance*, 0 to 1, takes up to half of it away, so that
    accounts which failed together do not come back together; never below 1 s.
    """
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 30))
    return max(FIRST_WAIT_S, longest * (1 - chance / 2))


class Held:
    """What one account holds now.

    Attributes:
        lock: held by whoever changes the credentials.
        credentials: usable now, by kind.
        for_clients: what clients may see of the account's last exchange.
        tried: set once the first try is over, well or badly.
        unreadable: the source had no usable credential when it was read last.
        looked_at: when the source was read last, seconds since the epoch.
        takes_time: the source could not be read at once, the last time.
        under_way: a renewal goes on, and nobody waits for it.
    """

    def __init__(
        self,
        entry: AccountEntry,
        publish: Publish,
        ways: Ways,
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
        self.under_way = False
        self._publish = publish
        self._way = way_of(entry, ways, wall_clock, chance())
        self._wall_clock = wall_clock
        self._chance = chance
        self._problem: str | None = None
        #: in how many seconds others come by themselves; None: somebody has to act
        self._again_in_s: float | None = 0.0
        #: by kind: what was read before its end, which is believed therefore
        self._timed: dict[str, Secret] = {}
        self._published: float | None = None
        self._failures = 0
        self._said_slow = False
        self._closed = False

    def close(self) -> None:
        """Publish nothing any more: the account is gone, or read anew by another object."""
        self._closed = True

    def read_now(self) -> float | None:
        """Publish what can be had at once; return in how many seconds to `renew`.

        0 when it takes time, None for never.
        """
        self.looked_at, self.takes_time = self._wall_clock(), False
        try:
            got = self._way.now()
        except CredentialError as error:
            self.tried.set()
            return self._source_failed(error)
        except Exception as error:
            self.tried.set()
            return self._unexpected(error)
        if got is None:
            self.takes_time = True
            return 0.0
        self.tried.set()
        return self._accept(got)

    async def renew(self) -> float | None:
        """Have credentials anew; return in how many seconds again, None for never.

        Call it under the lock. Raises nothing but cancellation.
        """
        self.looked_at = self._wall_clock()
        try:
            got = await self._way.renew()
            self.under_way = self._said_slow = False
            return self._accept(got)
        except UnderWay as error:
            return self._goes_on(error)
        except CredentialError as error:
            return self._source_failed(error)
        except ExchangeRefused as error:
            self.under_way, self._again_in_s = False, None
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
        """Note that the provider did not take *secret*: it is had anew."""
        self._way.refuse(secret)

    def has_other_than(self, refused: Credential) -> bool:
        """Say whether the credential of the same kind is another one by now."""
        current = self.credentials.get(refused.kind)
        return current is not None and current.secret != refused.secret

    @property
    def comes(self) -> bool:
        """Whether other credentials come by themselves: they are on their way, or tried for."""
        return self.under_way or self._again_in_s is not None

    def ends_in_s(self) -> float:
        """Return in how many seconds the first of the credentials ends; inf: never."""
        return self._left_s(self.credentials)

    def drop_expired(self) -> None:
        """Withdraw credentials that have ended. The problem of the last try stays."""
        if self.ends_in_s() > 0:
            return
        if self._problem is None and self._way.renews:
            self._again_in_s = 0.0  # late, as after sleep, or it goes on
        self._drop(self._problem or self._way.expired)

    def _left_s(self, credentials: Mapping[str, Credential]) -> float:
        ends = [c.expires_at for c in credentials.values() if c.expires_at is not None]
        return min(ends) - self._wall_clock() if ends else math.inf

    def _accept(self, got: Got) -> float | None:
        credentials = {kind: self._with_end(kind, c) for kind, c in got.credentials.items()}
        self._again_in_s = None
        if self._left_s(credentials) <= 0:
            self._drop(self._way.expired)
            return got.again_in_s
        if got.told and credentials != self.credentials:
            # Aloud at first and after a problem.
            is_news = not self.credentials or self._problem is not None
            level = logging.INFO if is_news else logging.DEBUG
            logger.log(level, "%s: %s", self.key, got.told)
        if self.unreadable:
            logger.info("%s: its credential can be read again", self.key)
        self._failures, self.unreadable = 0, False
        self.for_clients = got.for_clients
        self._change(credentials, self._doubt_of(got.credentials, credentials))
        return got.again_in_s

    def _doubt_of(
        self, read: Mapping[str, Credential], used: Mapping[str, Credential]
    ) -> str | None:
        """Say what of the ends that were *read* is not believed; None if all of it is."""
        for kind, credential in used.items():
            ends = read[kind].expires_at
            if credential.doubtful and ends is not None:
                why = doubt(ends, self._wall_clock())
                return f"{self.entry.source.describe()}: {why}; {DOUBTED}"
        return None

    def _with_end(self, kind: str, credential: Credential) -> Credential:
        """Return *credential* without an end that cannot be true.

        One that was read in time has really ended when it has; what had ended before it was
        ever read, or ends in a hundred years, says nothing.
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
        # Reading a file costs nothing, and tells that it was written or its mode changed.
        return FILE_LOOK_S if isinstance(self.entry.source, FileSource) else wait_s

    def _unexpected(self, error: Exception) -> float:
        """A mistake of ours ends nothing: neither the account's loop nor what asked for others."""
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
        self.under_way = self._said_slow = False
        wait_s = backoff_s(max(self._failures, 1) + SOURCE_FIRST_FAILURES * source, self._chance())
        again_in_s = (retry_after_s or 0.0) if is_wait else max(wait_s, retry_after_s or 0.0)
        self._again_in_s = again_in_s if passes else None
        self._change(self._way.meanwhile(self.credentials), problem)
        self.drop_expired()
        return again_in_s

    def _goes_on(self, error: UnderWay) -> float:
        """Use what is still good while the renewal goes on; without it requests are held."""
        if error.aloud and not self._said_slow:
            logger.warning("%s: %s", self.key, error)
            self._said_slow = True
        self.under_way, self._again_in_s = True, 0.0
        self._change({} if error.is_refused else self._way.meanwhile(self.credentials), None)
        return error.again_in_s

    def _drop(self, problem: str) -> None:
        self.for_clients = {}
        self._change({}, problem)

    def _change(self, credentials: Mapping[str, Credential], problem: str | None) -> None:
        """Publish what is new, and say a problem once."""
        if self._closed:
            return
        if problem is not None and problem != self._problem:
            logger.warning("%s: %s", self.key, problem)
        known = credentials, problem, None if credentials else self._again_in_s
        if known == (self.credentials, self._problem, self._published):
            return
        self.credentials, self._problem, self._published = known
        self._publish(self.key, *known)
