"""Holds the credentials of all accounts at run time; what the addon talks to.

Each account has a task that runs a command, exchanges, refreshes, checks its source or tries
again; `acquire.py` says how. Whatever changes the credentials in a task runs under the
account's lock, so that any number of refused requests cause one refresh. A failure is a text
for the owner and a later try, never an exception. It belongs to one event loop; nothing here is
called from another thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential, Secret, is_plausible_end
from account_pool.credentials.acquire import AcquireContext, Acquired, strategy_of
from account_pool.credentials.copilot import no_token_response, placeholder_response
from account_pool.credentials.files import FILE_LOOK_S, FileSource
from account_pool.credentials.http import ExchangeFailed, ExchangeRefused
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.refreshable_token import RefreshPending
from account_pool.credentials.sources import AccountEntry, CredentialError, moment
from account_pool.providers.base import LocalResponse
from account_pool.supervision import tasks

logger = logging.getLogger(__name__)

#: Seconds until a token that GitHub refused for good is tried again: its owner may have
#: bought a seat since.
REFUSED_WAIT_S = 600.0
#: What happens to a token with an implausible expiry.
DOUBTED = "that may be wrong, so it is used when no other account can serve"
#: A source that fails waits longer at first: a command may open a window each time.
SOURCE_FIRST_FAILURES = 4
#: A sleeping laptop stops the clock that sleeps run on; the wall clock goes on. Looking
#: at it so often, in seconds, bounds how late a renewal is after waking up.
LONGEST_SLEEP_S = 60.0
#: How often a source that takes time, such as a command that may open a window, is read for
#: a shortage, in seconds.
SLOW_SEEK_S = 60.0

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
    """Return why an expiry that is said of a token is implausible; None if it may be true."""
    if is_plausible_end(expires_at, wall_now):
        return None
    when = "in the far future"
    if expires_at <= wall_now:
        when = f"on {moment(expires_at):%Y-%m-%d %H:%M} UTC already"
    return f"its token ends {when}, according to its expiry date"


class Timing(Struct, frozen=True, kw_only=True):
    """The time and the chance of all accounts.

    Attributes:
        wall_clock: returns seconds since the epoch.
        sleep: waits for so many seconds.
        chance: returns 0 to 1, to spread tries over time.
    """

    wall_clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[object]]
    chance: Callable[[], float]


class AccountCredential:
    """The credentials that one account has now.

    Attributes:
        credentials: usable now, by kind.
        for_clients: the part of the account's last exchange that clients may see.
        unreadable: the last read of the source gave no usable credential.
    """

    def __init__(
        self, entry: AccountEntry, publish: Publish, context: AcquireContext, timing: Timing
    ) -> None:
        self.entry = entry
        self.key = entry.account.key
        self.credentials: Mapping[str, Credential] = {}
        self.for_clients: Mapping[str, Any] = {}
        self.unreadable = False
        self._publish = publish
        self._strategy = strategy_of(entry, context, timing.wall_clock, timing.chance())
        self._timing = timing
        self._wall_clock = timing.wall_clock
        #: held while `_obtain` runs
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        #: set once the first try is over, successful or not
        self._tried = asyncio.Event()
        #: when the source was read last, seconds since the epoch; whether that took time
        self._looked_at, self._takes_time = -math.inf, False
        #: a renewal goes on in the background
        self._is_renewing = False
        self._problem: str | None = None
        #: seconds until the next try for others; None: somebody has to act
        self._again_in_s: float | None = 0.0
        #: by kind: secrets that were read before they expired, so that their expiry is plausible
        self._timed: dict[str, Secret] = {}
        self._published: float | None = None
        self._failures = 0
        self._said_slow = False
        self._closed = False

    # -- what the keeper asks for

    def start(self) -> None:
        """Publish what is available at once, and keep it from now on."""
        self._restart(self._read_now())

    def close(self) -> None:
        """End the task and publish nothing more: the account is gone, or has another object."""
        self._closed = True
        self._restart(None)

    async def refresh(self, refused: Credential) -> bool | None:
        """Get another credential after the server refused *refused*; see `Keeper.refresh`."""
        if self._is_renewing:
            return True if self._differs_from(refused) else None
        async with self._lock:
            if self._differs_from(refused):
                return True
            if self._closed:
                return False
            if self._is_renewing:
                return None
            if refused.kind != "copilot":
                self._strategy.refuse(refused.secret)
            self._restart(await self._obtain())
            if self._differs_from(refused):
                return True
            # Others can come without anybody acting where a try is running or due.
            return None if self._is_renewing or self._again_in_s is not None else False

    def seek(self, now: float) -> bool:
        """Read the source again; return whether it had a credential at once."""
        if self._lock.locked():
            return False  # it is being looked for
        if self._takes_time and 0 <= now - self._looked_at < SLOW_SEEK_S:
            return False
        self.start()
        return bool(self.credentials)

    async def first_try(self) -> None:
        """Wait until it has been tried once."""
        if self._task is not None:
            await self._tried.wait()

    @property
    def is_refreshing(self) -> bool:
        """Whether a login is being refreshed: its refresh token works only once."""
        return self._lock.locked() and isinstance(self.entry.source, OAuthSource)

    def drop_expired(self) -> None:
        """Withdraw credentials that have expired. The problem of the last try stays."""
        if self._left_s(self.credentials) > 0:
            return
        if self._problem is None and self._strategy.renews:
            self._again_in_s = 0.0  # late, as after sleep, or it goes on
        self._drop(self._problem or self._strategy.expired)

    # -- its task

    def _restart(self, wait_s: float | None) -> None:
        """Restart the task with a wait, in seconds; None ends it."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if wait_s is not None and not self._closed:
            self._task = tasks.supervised(
                f"keeping the credential of {self.key}", lambda: self._keep(wait_s)
            )

    async def _keep(self, wait_s: float | None) -> None:
        while wait_s is not None:
            await self._wait(wait_s)
            async with self._lock:
                wait_s = await self._obtain()

    async def _wait(self, wait_s: float) -> None:
        """Sleep *wait_s* seconds, by the clock that runs faster; see LONGEST_SLEEP_S."""
        until = self._wall_clock() + wait_s
        while wait_s > 0 and self._wall_clock() < until:
            step_s = min(wait_s, LONGEST_SLEEP_S, self._left_s(self.credentials))
            await self._timing.sleep(step_s)
            wait_s -= step_s
            self.drop_expired()

    # -- one try: each returns the seconds until the next, None for never

    def _read_now(self) -> float | None:
        """Publish what is available at once; 0 if acquiring takes time."""
        self._looked_at, self._takes_time = self._wall_clock(), False
        try:
            acquired = self._strategy.acquire_now()
            if acquired is None:
                self._takes_time = True
                return 0.0
            wait_s = self._accept(acquired)
        except Exception as error:
            wait_s = self._after(error)
        self._tried.set()
        return wait_s

    async def _obtain(self) -> float | None:
        """Acquire credentials and publish them, under the lock. Raises only cancellation."""
        self._looked_at = self._wall_clock()
        try:
            acquired = await self._strategy.acquire()
            self._is_renewing = self._said_slow = False
            return self._accept(acquired)
        except Exception as error:
            return self._after(error)
        finally:
            self._tried.set()

    def _after(self, error: Exception) -> float:
        """Publish what is left after *error*."""
        match error:
            case RefreshPending():
                return self._goes_on(error)
            case CredentialError():
                return self._source_failed(error)
            case ExchangeRefused():
                self._is_renewing, self._again_in_s = False, None
                self._drop(str(error))
                return REFUSED_WAIT_S
            case ExchangeFailed():
                return self._failed(error)
            case _:
                return self._unexpected(error)

    def _accept(self, acquired: Acquired) -> float | None:
        credentials = {kind: self._with_end(kind, c) for kind, c in acquired.credentials.items()}
        self._again_in_s = None
        if self._left_s(credentials) <= 0:
            self._drop(self._strategy.expired)
            return acquired.again_in_s
        if acquired.log_text and credentials != self.credentials:
            # At INFO the first time and after a problem.
            is_news = not self.credentials or self._problem is not None
            level = logging.INFO if is_news else logging.DEBUG
            logger.log(level, "%s: %s", self.key, acquired.log_text)
        if self.unreadable:
            logger.info("%s: its credential can be read again", self.key)
        self._failures, self.unreadable = 0, False
        self.for_clients = acquired.for_clients
        self._change(credentials, self._doubt_of(acquired.credentials, credentials))
        return acquired.again_in_s

    def _goes_on(self, error: RefreshPending) -> float:
        """Use what is still valid while the renewal goes on; otherwise requests are held."""
        if error.aloud and not self._said_slow:
            logger.warning("%s: %s", self.key, error)
            self._said_slow = True
        self._is_renewing, self._again_in_s = True, 0.0
        self._change({} if error.is_refused else self._strategy.fallback(self.credentials), None)
        return error.again_in_s

    def _source_failed(self, error: CredentialError) -> float:
        # Nothing to fall back on but a token that is still good.
        self.unreadable = True
        failed = ExchangeFailed(f"{self.entry.source.describe()}: {error}", passes=False)
        wait_s = self._failed(failed, SOURCE_FIRST_FAILURES)
        # Reading a file costs nothing, and notices a write or a changed mode.
        return FILE_LOOK_S if isinstance(self.entry.source, FileSource) else wait_s

    def _unexpected(self, error: Exception) -> float:
        """Log a bug of ours. It ends neither the account's task nor the request that waits."""
        wait_s = self._failed(ExchangeFailed(f"unexpected {type(error).__name__}"))
        tasks.note(f"keeping the credential of {self.key}", error, f"again in {wait_s:.0f} s")
        return wait_s

    def _failed(self, error: ExchangeFailed, more_failures: int = 0) -> float:
        """Keep what is still good; wait as after *more_failures* more of them."""
        self._failures += not error.is_wait
        self._is_renewing = self._said_slow = False
        wait_s = backoff_s(max(self._failures, 1) + more_failures, self._timing.chance())
        asked_s = error.retry_after_s or 0.0
        wait_s = asked_s if error.is_wait else max(wait_s, asked_s)
        self._again_in_s = wait_s if error.passes else None
        self._change(self._strategy.fallback(self.credentials), str(error))
        self.drop_expired()
        return wait_s

    # -- what is published

    def _differs_from(self, refused: Credential) -> bool:
        """Return whether the credential of the kind of *refused* has changed since."""
        current = self.credentials.get(refused.kind)
        return current is not None and current.secret != refused.secret

    def _left_s(self, credentials: Mapping[str, Credential]) -> float:
        """Return the seconds until the first of *credentials* expires; inf for never."""
        ends = [c.expires_at for c in credentials.values() if c.expires_at is not None]
        return min(ends) - self._wall_clock() if ends else math.inf

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


# -- all accounts

#: How often a shortage has credentials looked for that cannot be read, in seconds: at most,
#: by provider.
SEEK_S = 2.0
#: The `retry-after` a client gets, in seconds, while no account has a token yet.
NO_TOKEN_RETRY_S = 5


class Keeper:
    """The credentials of all accounts."""

    def __init__(
        self,
        entries: Iterable[AccountEntry],
        publish: Publish,
        context: AcquireContext,
        *,
        wall_clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Take what it needs; nothing happens before `start`.

        *publish* is called in the loop's thread whenever one of its arguments changes. There
        may be a problem and credentials: a token that is still valid, and the reason why
        there is no newer one.
        """
        self._entries = {entry.account.key: entry for entry in entries}
        self._publish = publish
        #: what the strategies of new accounts share
        self.context = context
        self._timing = Timing(wall_clock=wall_clock, sleep=sleep, chance=chance)
        self._accounts: dict[AccountKey, AccountCredential] = {}
        self._sought_at: dict[str, float] = {}

    def start(self) -> None:
        """Publish what can be read at once; start the rest, all accounts in parallel.

        Call it in the event loop. Disabled accounts are not read.
        """
        self.update(self._entries.values())

    def renewed(self, entries: Iterable[AccountEntry]) -> tuple[AccountKey, ...]:
        """Return which of *entries* lead to another credential than they did."""
        find, renewed = self._entries.get, []
        for entry in entries:
            account = entry.account
            known = find(account.key)
            # Most are what they were, and the loop stands still meanwhile.
            if known is None or (known.account is account and known.source is entry.source):
                continue
            if not known.same_credential(entry):
                renewed.append(account.key)
        return tuple(renewed)

    def update(
        self,
        entries: Iterable[AccountEntry],
        context: AcquireContext | None = None,
        anew: Collection[AccountKey] = (),
    ) -> None:
        """Apply a changed list of accounts. Unchanged accounts keep their tokens.

        *context*, if given, applies to accounts that are new or changed; *anew* are accounts
        to start again although nothing about them changed.
        """
        self.context = context or self.context
        self._entries = {entry.account.key: entry for entry in entries}
        before, self._accounts, new, anew = self._accounts, {}, [], frozenset(anew)
        for key, entry in self._entries.items():
            if not entry.account.enabled:
                continue
            known = before.get(key)
            if known is not None and key not in anew and known.entry.same_credential(entry):
                known.entry = entry
                self._accounts[key] = known
                del before[key]
            else:
                one = AccountCredential(entry, self._publish, self.context, self._timing)
                self._accounts[key] = one
                new.append(one)
        for account in before.values():
            account.close()
        for account in new:
            account.start()

    def stop(self, by: float = 0.0) -> None:
        """Cancel everything. Nothing is published afterwards.

        A refresh that was asked for is still written to the store, by its thread, if its
        response comes until *by*, seconds of `time.monotonic`.
        """
        if self.context.refresher is not None:
            self.context.refresher.stop(by)
        for account in self._accounts.values():
            account.close()
        self._accounts = {}

    async def refresh(self, key: AccountKey, refused: Credential) -> bool | None:
        """Get another credential after the server refused *refused*.

        Returns whether the account now has one that differs, also if another task got it
        meanwhile: there is one refresh at a time per account. None: it takes longer than a
        request should wait, and goes on, or is tried again.
        """
        while (account := self._accounts.get(key)) is not None:
            changed = await account.refresh(refused)
            if self._accounts.get(key) is account:
                return changed
            # A reload replaced it meanwhile: what is there now has the newer credential.
        return False

    @property
    def is_refreshing(self) -> bool:
        """Whether a login is being refreshed: its refresh token works only once."""
        return any(account.is_refreshing for account in self._accounts.values())

    def seek(self, provider: str) -> bool:
        """Read the unreadable sources of *provider* at once: none of its accounts can serve.

        Returns whether an account has a credential now that had none. Call it in the loop.
        """
        now = self._timing.wall_clock()
        # A clock that was set back is no reason to wait for it.
        if 0 <= now - self._sought_at.get(provider, -math.inf) < SEEK_S:
            return False
        self._sought_at[provider] = now
        lacking = [account for account in self._of(provider) if account.unreadable]
        # Each of them is read, whatever the first says.
        return sum(account.seek(now) for account in lacking) > 0

    async def first_try(self, provider: str) -> None:
        """Wait until every account of *provider* has been tried once.

        For a client that asks for its token right after the start; bound the wait.
        """
        for account in self._of(provider):
            await account.first_try()

    def exchange_response(self, wall_now: float, provider: str = "copilot") -> LocalResponse:
        """Answer a client's own token exchange, without any real token in it.

        *wall_now* is in seconds since the epoch. 503 while no account has a token.
        """
        for account in self._of(provider):
            account.drop_expired()
            if account.for_clients:
                return placeholder_response(account.for_clients, wall_now)
        message = f"account-pool: no account of {provider} has a Copilot token; see the proxy's log"
        return no_token_response(message, NO_TOKEN_RETRY_S)

    def _of(self, provider: str) -> list[AccountCredential]:
        return [one for one in self._accounts.values() if one.key.provider == provider]
