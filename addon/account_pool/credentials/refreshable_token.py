"""The newest tokens of one login at run time, refreshed when necessary.

A refresh token works only once. So one process at a time refreshes (it holds a claim in the
store, which other proxies respect), and it stores the response before anything else. Claim,
request and write are one piece of work in a thread: a cancelled task or a proxy that shuts
down cannot end it between the response and the write. Callers do not wait for a slow server:
the work goes on, and they get RefreshPending.

If the server says that a token was used before, another process has won a race, or this one
was paused for long: the winner's tokens are in the store, now or soon. So no login is given
up for good; a refused token is never sent again, and the store is checked for a newer one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

from msgspec import Struct, field
from msgspec.structs import replace

from account_pool.core.claims import ANSWER_S, Taken
from account_pool.core.credential import Secret
from account_pool.credentials.http import ExchangeFailed, Http, HttpFailed
from account_pool.credentials.oauth import (
    AnswerLost,
    LoginEnded,
    OAuthSource,
    Post,
    Stop,
    post_with,
    read_tokens,
    refresh_request,
)
from account_pool.credentials.sources import CredentialError, moment
from account_pool.credentials.vendor_logins import log_in_again
from account_pool.store.machine import Process
from account_pool.store.store import DamagedError, KeptError, StoreError, Tokens, TokenStore
from account_pool.supervision import begun

logger = logging.getLogger(__name__)

#: How long a caller waits for a refresh, in seconds; it goes on without the caller then.
SLOW_S = 5.0
#: How often a claim of another process is checked, in seconds.
CLAIM_LOOK_S = 0.2
#: A token is refreshed this many seconds before it expires, and up to the second value
#: earlier, so that accounts do not refresh together; at most this share of its lifetime.
EARLY_S, JITTER_S, EARLY_SHARE = 300.0, 60.0, 0.2
#: A token that is refused this soon after its refresh is not the reason, in seconds.
TOO_FRESH_S = 60.0
#: How often the store is checked for tokens of another process, in seconds, after a refresh
#: was refused or remained without a response.
LOOK_AGAIN_S = 30.0
#: How often a store that cannot be used is tried, in seconds: nothing is refreshed meanwhile.
STORE_LOOK_S = 5.0
#: How long the end waits at least, in seconds: for a look at the store, and for tokens that are
#: nowhere else, which another program may keep from it for as long as a write waits.
KEEP_S, SAVE_S = 2.0, 11.0
#: Refreshes of different logins at once: more than anybody has. A slow server delays its own
#: logins, for minutes, and no others.
MAX_AT_ONCE = 4096

_SLOW = f"its login is being refreshed, and the server is slow: it may take {ANSWER_S / 60:.0f} min"
_BY_ANOTHER = "its login is being refreshed by another proxy"


class RefreshPending(Exception):
    """A refresh is in progress, here or in another process; there are no new tokens yet.

    Attributes:
        again_in_s: when to ask again, in seconds.
        aloud: whether the log should say so.
        is_refused: the provider has refused the current tokens.
    """

    def __init__(
        self, text: str, *, again_in_s: float, aloud: bool = False, is_refused: bool = False
    ) -> None:
        super().__init__(text)
        self.again_in_s = again_in_s
        self.aloud = aloud
        self.is_refused = is_refused


class Family(Struct, eq=False):
    """What this process knows of a login that the store may not know.

    Attributes:
        unsaved: new tokens that are not yet stored, the refresh token they replace, and the
            fence of the claim they were obtained under.
        spent: refresh tokens that no longer work, and what the server said.
        lost: why the last response never came.
    """

    unsaved: tuple[Tokens, Secret, int] | None = None
    spent: dict[Secret, str] = field(default_factory=dict)
    lost: str = "its refresh was not answered"


class Refresher(Struct, frozen=True, kw_only=True):
    """What all logins of one proxy share.

    Attributes:
        store: the newest tokens of all logins.
        post: sends a request to a token endpoint; blocks.
        wall_clock: returns seconds since the epoch.
        threads: where the work is done.
        stopping: set when the proxy ends: running refreshes are finished and stored, and no
            others start.
        slow_s: see SLOW_S.
        families: by name; kept when an account is removed, as it may come back.
    """

    store: TokenStore
    post: Post
    wall_clock: Callable[[], float]
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="refresh")
    )
    stopping: Stop = field(default_factory=Stop)
    slow_s: float = SLOW_S
    families: dict[str, Family] = field(default_factory=dict)

    def stop(self, by: float) -> None:
        """Start no more refreshes, and store what could not be stored before. Blocks.

        Running refreshes may get their response until *by*, seconds of `time.monotonic`. A disk
        that does not answer is waited for so long, and for KEEP_S or SAVE_S at least.
        """
        self.stopping.by = by
        least_s = SAVE_S if any(family.unsaved for family in self.families.values()) else KEEP_S
        stored = begun(self._store_all)
        wait([stored], max(by - time.monotonic(), least_s))
        if stored.done():
            stored.result()
        else:
            logger.error("the newest tokens of a login may be lost: the disk does not answer")

    def _store_all(self) -> None:
        failed: list[StoreError] = []
        writes: list[Callable[[], None]] = [
            partial(self.write, name, family) for name, family in self.families.items()
        ]
        for write in (*writes, self.store.keep):
            try:
                write()
            except (DamagedError, KeptError) as error:
                failed.append(error)  # it may be about one login only
            except StoreError as error:
                failed.append(error)
                break
        lost = [error for error in failed if not isinstance(error, KeptError)]
        if lost:
            logger.error("the newest tokens of a login may be lost: %s", lost[0])
        elif failed:
            logger.warning("tokens of logins cannot be stored now: %s", failed[0])

    def write(self, name: str, family: Family) -> None:
        """Store new tokens that are not yet stored. Raises StoreError.

        If another proxy has refreshed the login since, its tokens stay.
        """
        unsaved = family.unsaved
        if unsaved is not None:
            tokens, spent, fence = unsaved
            self.store.save(name, tokens, replaces=spent, fence=fence)
            if family.unsaved is unsaved:
                family.unsaved = None


class RefreshableToken:
    """The access token of one login, which its refresh token renews."""

    def __init__(
        self,
        source: OAuthSource,
        refresher: Refresher,
        *,
        expiry: Callable[[str], float | None],
        chance: float,
    ) -> None:
        """Take the login.

        *expiry* returns the expiry that an access token itself names; *chance*, 0 to 1,
        spreads refreshes over time.
        """
        self._source = source
        self._expiry = expiry
        self._refresher = refresher
        self._store = refresher.store
        self._now = refresher.wall_clock
        self._chance = chance
        #: identifies this object among all on this machine and others
        self._owner = Process.this().owner(str(uuid.uuid4()))
        #: the access token that the provider refused
        self._refused: Secret | None = None
        #: the newest tokens seen
        self._seen: Tokens | None = None
        #: the work in a thread that callers wait for
        self._work: asyncio.Future[Tokens] | None = None
        self._working = threading.Lock()

    def refuse(self, access: Secret) -> None:
        """Note that the provider refused *access*, unless it is only just refreshed.

        Some requests get a 401 whatever the token: each of them must not cause a refresh.
        """
        seen = self._seen
        got_at = seen.refreshed_at if seen is not None and seen.access == access else None
        if got_at is None or not 0 <= self._now() - got_at < TOO_FRESH_S:
            self._refused = access

    def still_good(self) -> Tokens | None:
        """Return the newest tokens seen, None once they have expired.

        Refused ones as well: the pool decides whether that was the token's fault.
        """
        tokens = self._seen
        if tokens is None or tokens.access is None:
            return None
        if tokens.expires_at is not None and tokens.expires_at <= self._now():
            return None
        return tokens

    async def tokens(self) -> Tokens:
        """Return tokens with a valid access token, refreshed if necessary.

        Raises RefreshPending, ExchangeFailed (LoginEnded is one) or CredentialError, whose text is
        for the owner. A caller that is cancelled, or does not wait, stops nothing.
        """
        work = self._work
        if work is None:
            loop = asyncio.get_running_loop()
            work = self._work = loop.run_in_executor(self._refresher.threads, self.tokens_now)
            # The caller may be gone: asyncio warns of an exception that is not retrieved.
            work.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait({work}, timeout=self._refresher.slow_s)
        if not work.done():
            raise RefreshPending(_SLOW, again_in_s=0.0, aloud=True, is_refused=self._is_refused())
        if self._work is work:
            self._work = None
        return work.result()

    def renew_at(self, tokens: Tokens) -> float | None:
        """Return when *tokens* are to be refreshed, seconds since the epoch; None: never."""
        times = []
        if tokens.expires_at is not None:
            early_s = EARLY_S + JITTER_S * self._chance
            if tokens.refreshed_at is not None:
                early_s = min(early_s, (tokens.expires_at - tokens.refreshed_at) * EARLY_SHARE)
            times.append(tokens.expires_at - early_s)
        after_s = self._source.settings.refresh_after_s
        if after_s is not None and tokens.refreshed_at is not None:
            times.append(tokens.refreshed_at + after_s)
        return min(times, default=None)

    # -- what follows blocks

    def tokens_now(self) -> Tokens:
        """As `tokens`, in this thread."""
        with self._working:
            name = self._source.family()
            family = self._refresher.families.setdefault(name, Family())
            try:
                return self._tokens_now(name, family)
            except StoreError as error:
                # New tokens, if there are any, are kept and stored at the next try. Using the
                # access token meanwhile does no harm.
                if family.unsaved is not None:
                    self._seen = self._dated(family.unsaved[0])
                raise ExchangeFailed(str(error), STORE_LOOK_S, is_wait=True) from None

    def _tokens_now(self, name: str, family: Family) -> Tokens:
        late = family.unsaved
        self._refresher.write(name, family)
        if late is not None:
            with contextlib.suppress(StoreError):
                self._store.release(name, late[2])
        newest = self._newest(name)
        if self._is_good(newest):
            return newest
        self._require_unspent(newest, family)
        if self._refresher.stopping.is_set:
            raise ExchangeFailed("the proxy is shutting down")
        claim = self._store.claim(
            name, self._owner, token=newest.refresh, is_over=self._is_over(newest)
        )
        if isinstance(claim, Taken):
            raise self._not_now(claim, newest, family)
        unknown = True
        try:
            got = self._claimed(name, family, claim.fence)
            unknown = False
            return got
        except AnswerLost as error:
            family.lost = str(error)
            raise self._lost(error, self._newest(name)) from None
        except (ExchangeFailed, StoreError):
            unknown = False  # nothing has left, or its answer is here
            raise
        finally:
            # Otherwise the claim ends by itself: at once when this process ends, which then
            # need not wait for other writers. While an answer is here alone, nobody else may
            # send the token that it has spent.
            if family.unsaved is None and not (unknown and self._refresher.stopping.is_set):
                with contextlib.suppress(StoreError):
                    self._store.release(name, claim.fence, unknown=unknown)

    def _claimed(self, name: str, family: Family, fence: int) -> Tokens:
        # Another process may have refreshed it between our check and our claim.
        newest = self._newest(name)
        if self._is_good(newest):
            return newest
        self._require_unspent(newest, family)
        settings = self._source.settings_now()
        headers, content = refresh_request(settings, newest)

        def sending() -> None:
            if not self._store.sending(name, fence, newest.refresh):
                raise ExchangeFailed("this computer was paused during a refresh", 0.0)

        try:
            response = self._refresher.post(settings.token_url, headers, content, sending)
            got = read_tokens(response, newest, self._now(), settings.client_secret)
            family.unsaved = got, newest.refresh, fence
        except HttpFailed as error:
            text = f"refreshing its login: {error}"
            if error.sent:
                raise AnswerLost(text) from None
            raise ExchangeFailed(text, error.retry_after_s) from None
        except LoginEnded as error:
            family.spent[newest.refresh] = str(error)
            following = self._newest(name)
            self._require_unspent(following, family)
            return following if self._is_good(following) else self._claimed(name, family, fence)
        self._refresher.write(name, family)
        got = self._newest(name)
        if got.access is None:
            raise ExchangeFailed("the refresh answered 200 without an access token")
        return got

    def _newest(self, name: str) -> Tokens:
        if self._seen is None:
            # The configured tokens serve while the store cannot be read, and vice versa.
            with contextlib.suppress(CredentialError):
                self._seen = self._dated(self._source.tokens())
        self._seen = tokens = self._dated(self._store.load(name) or self._source.tokens())
        return tokens

    def _dated(self, tokens: Tokens) -> Tokens:
        """Return *tokens* with their expiry, also if only the access token names it."""
        if tokens.expires_at is None and tokens.access is not None:
            return replace(tokens, expires_at=self._expiry(tokens.access.reveal()))
        return tokens

    def _is_good(self, tokens: Tokens) -> bool:
        if tokens.access is None or tokens.access == self._refused:
            return False
        renew_at = self.renew_at(tokens)
        return renew_at is None or self._now() < renew_at

    def _is_over(self, tokens: Tokens) -> bool:
        """Return whether the access token is useless: absent, refused or expired."""
        if tokens.access is None or tokens.access == self._refused:
            return True
        return tokens.expires_at is not None and tokens.expires_at <= self._now()

    def _is_refused(self) -> bool:
        seen = self._seen
        return seen is not None and seen.access is not None and seen.access == self._refused

    def _not_now(self, taken: Taken, tokens: Tokens, family: Family) -> Exception:
        if taken.left_s == 0.0:
            return self._lost(ExchangeFailed(family.lost), tokens)
        return RefreshPending(_BY_ANOTHER, again_in_s=CLAIM_LOOK_S, is_refused=self._is_refused())

    def _lost(self, error: ExchangeFailed, tokens: Tokens) -> ExchangeFailed:
        """Return the error for a refresh that the server may have done without us knowing."""
        if self._is_over(tokens):
            return ExchangeFailed(str(error), error.retry_after_s)
        ends, wait_s = "is refused", LOOK_AGAIN_S
        if tokens.expires_at is not None:
            ends = f"ends ({moment(tokens.expires_at):%Y-%m-%d %H:%M:%S} UTC)"
            wait_s = min(wait_s, tokens.expires_at - self._now())
        return ExchangeFailed(
            f"{error}; it may have been done, so it is tried again when the access token {ends}",
            max(wait_s, error.retry_after_s or 0.0),
            is_wait=True,
        )

    def _require_unspent(self, tokens: Tokens, family: Family) -> None:
        """Never send a spent token again. Raises LoginEnded."""
        if tokens.refresh in family.spent:
            raise LoginEnded(
                f"its login is no longer valid: {family.spent[tokens.refresh]}; "
                f"{log_in_again(self._source.key.provider, self._source.key.label)}",
                LOOK_AGAIN_S,
            )


def make_refresher(store: TokenStore, http: Http, wall_clock: Callable[[], float]) -> Refresher:
    """Return what the logins of one proxy share."""
    stopping = Stop()
    return Refresher(
        store=store,
        post=post_with(http, stopping),
        wall_clock=wall_clock,
        stopping=stopping,
        slow_s=SLOW_S,
    )
