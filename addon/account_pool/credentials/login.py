"""The tokens of one login at run time: the newest there are, refreshed when they must be.

A refresh token is worth one refresh, so asking is done by one at a time (the claim in the
store, which other proxies respect), and the answer is written before anything else is done.
Claim, question and write are one piece of work in a thread: a cancelled task or a
proxy that shuts down cannot end it between the answer and the write. Nobody waits for a
server that is slow: the work goes on, and its callers are told so.

Whoever is told that a token was used already has lost a race, or was paused for long: the
winner's tokens are in the store, now or soon. So no login is given up for good; a token
that was refused is just never sent again, and the store is looked at for a newer one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from account_pool.core.claims import ANSWER_S, Taken
from account_pool.core.credential import Secret
from account_pool.credentials import token_answer
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.exchange_answer import ExchangeFailed
from account_pool.credentials.http import Http, HttpFailed
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.token_answer import AnswerLost, LoginEnded
from account_pool.credentials.token_post import Post, Stop, post_with
from account_pool.credentials.vendors import log_in_again
from account_pool.store.errors import StoreError
from account_pool.store.process import Process
from account_pool.store.tokens import Tokens, TokenStore

logger = logging.getLogger(__name__)

#: How long whoever wants tokens waits for a refresh, in seconds; then it goes on by itself.
SLOW_S = 5.0
#: How often a claim of somebody else is looked at, in seconds.
CLAIM_LOOK_S = 0.2
#: A token is refreshed so long before it ends, in seconds, and up to the second value
#: earlier still, so that accounts do not refresh together; short lives, at most a fifth.
EARLY_S, JITTER_S, EARLY_SHARE = 300.0, 60.0, 0.2
#: A token that is refused so soon after it was got is not the reason, in seconds.
TOO_FRESH_S = 60.0
#: How often the store is looked at for the tokens of somebody else, in seconds, when a
#: login is over here, or was left without an answer.
LOOK_AGAIN_S = 30.0
#: Refreshes of different logins at once: more than anybody has. A server that is slow holds
#: its own logins up, for minutes, and nobody else's.
MAX_AT_ONCE = 4096

_SLOW = f"its login is being refreshed, and the server is slow: it may take {ANSWER_S / 60:.0f} min"
_BY_ANOTHER = "its login is being refreshed by another proxy"


class UnderWay(Exception):
    """A refresh goes on, here or elsewhere, and there are no new tokens yet.

    Attributes:
        again_in_s: when to ask again, in seconds.
        aloud: people want to know.
        is_refused: the provider has not taken the tokens that there are.
    """

    def __init__(
        self, text: str, *, again_in_s: float, aloud: bool = False, is_refused: bool = False
    ) -> None:
        super().__init__(text)
        self.again_in_s = again_in_s
        self.aloud = aloud
        self.is_refused = is_refused


@dataclass(slots=True, eq=False)
class Family:
    """What this process knows of a login, and the store may not.

    Attributes:
        unsaved: got, and not yet written; the refresh token they were got for, and by
            which claim.
        spent: refresh tokens that are, and what the server said.
        lost: why the last answer never came.
    """

    unsaved: tuple[Tokens, Secret, int] | None = None
    spent: dict[Secret, str] = field(default_factory=dict)
    lost: str = "its refresh was not answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresher:
    """What all logins of one proxy share.

    Attributes:
        store: the newest tokens of all logins.
        post: asks a token endpoint; it blocks.
        wall_clock: seconds since the epoch.
        threads: where the work is done.
        stopping: set when the proxy ends: what was asked is answered and written, and
            nothing else is begun.
        slow_s: see SLOW_S.
        families: by name; they stay when an account goes and comes back.
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
        """Begin nothing any more, and write what could not be written before. Blocks.

        What was asked may be answered until *by*, seconds of `time.monotonic`.
        """
        self.stopping.by = by
        try:
            for name, family in list(self.families.items()):
                self.write(name, family)
            self.store.keep()
        except StoreError as error:
            logger.error("the newest tokens of a login may be lost: %s", error)

    def write(self, name: str, family: Family) -> None:
        """Put what was got into the store. Raises StoreError.

        If that took so long that another proxy has refreshed it since, its tokens stand.
        """
        unsaved = family.unsaved
        if unsaved is not None:
            tokens, spent, fence = unsaved
            self.store.save(name, tokens, replaces=spent, fence=fence)
            if family.unsaved is unsaved:
                family.unsaved = None


class Login:
    """One login."""

    def __init__(
        self,
        source: OAuthSource,
        refresher: Refresher,
        *,
        expiry: Callable[[str], float | None],
        chance: float,
    ) -> None:
        """Take the login.

        *expiry* says when an access token ends by its own word; *chance*, 0 to 1, spreads
        the moments of refresh.
        """
        self._source = source
        self._expiry = expiry
        self._refresher = refresher
        self._store = refresher.store
        self._now = refresher.wall_clock
        self._chance = chance
        #: of this object and no other, on this machine and others
        self._owner = Process.this().owner(str(uuid.uuid4()))
        #: access tokens that the provider did not take
        self._refused: Secret | None = None
        #: the newest that were seen
        self._seen: Tokens | None = None
        #: what is done in a thread for whoever asks
        self._work: asyncio.Future[Tokens] | None = None
        self._working = threading.Lock()

    def refuse(self, access: Secret) -> None:
        """Note that the provider did not take *access*, unless it was got just now.

        Some requests are answered 401 whatever the token: they must not make a refresh each.
        """
        seen = self._seen
        got_at = seen.refreshed_at if seen is not None and seen.access == access else None
        if got_at is None or not 0 <= self._now() - got_at < TOO_FRESH_S:
            self._refused = access

    def still_good(self) -> Tokens | None:
        """Return the newest tokens seen while they have not ended.

        Refused ones as well: whether that was the token's fault is for the pool to say.
        """
        tokens = self._seen
        if tokens is None or tokens.access is None:
            return None
        if tokens.expires_at is not None and tokens.expires_at <= self._now():
            return None
        return tokens

    async def tokens(self) -> Tokens:
        """Return tokens whose access token is good, new ones if need be.

        Raises UnderWay, ExchangeFailed (LoginEnded is one) or CredentialError, whose text is
        for the owner. A caller that is cancelled, or does not wait, stops nothing.
        """
        work = self._work
        if work is None:
            loop = asyncio.get_running_loop()
            work = self._work = loop.run_in_executor(self._refresher.threads, self.tokens_now)
            # Looked at, although whoever asked may be gone.
            work.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait({work}, timeout=self._refresher.slow_s)
        if not work.done():
            raise UnderWay(_SLOW, again_in_s=0.0, aloud=True, is_refused=self._is_refused())
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
                # The answer, if there was one, is kept and written at the next try. That its
                # access token serves meanwhile takes nothing from it.
                if family.unsaved is not None:
                    self._seen = self._dated(family.unsaved[0])
                raise ExchangeFailed(str(error)) from None

    def _tokens_now(self, name: str, family: Family) -> Tokens:
        self._refresher.write(name, family)
        newest = self._newest(name)
        if self._is_good(newest):
            return newest
        self._require_hope(newest, family)
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
        except ExchangeFailed:
            unknown = False
            raise
        finally:
            # Else it ends by itself: at once with a process that ends, which need not wait for
            # others who write.
            if not (unknown and self._refresher.stopping.is_set):
                with contextlib.suppress(StoreError):
                    self._store.release(name, claim.fence, unknown=unknown)

    def _claimed(self, name: str, family: Family, fence: int) -> Tokens:
        # Somebody may have refreshed it between our look and our claim.
        newest = self._newest(name)
        if self._is_good(newest):
            return newest
        self._require_hope(newest, family)
        settings = self._source.settings_now()
        headers, content = token_answer.request(settings, newest)

        def sending() -> None:
            if not self._store.sending(name, fence, newest.refresh):
                raise ExchangeFailed("this computer was paused during a refresh", 0.0)

        try:
            answer = self._refresher.post(settings.token_url, headers, content, sending)
            got = token_answer.read(answer, newest, self._now(), settings.client_secret)
            family.unsaved = got, newest.refresh, fence
        except HttpFailed as error:
            text = f"refreshing its login: {error}"
            if error.sent:
                raise AnswerLost(text) from None
            raise ExchangeFailed(text, error.retry_after_s) from None
        except LoginEnded as error:
            family.spent[newest.refresh] = str(error)
            following = self._newest(name)
            self._require_hope(following, family)
            return following if self._is_good(following) else self._claimed(name, family, fence)
        self._refresher.write(name, family)
        got = self._newest(name)
        if got.access is None:
            raise ExchangeFailed("the refresh answered 200 without an access token")
        return got

    def _newest(self, name: str) -> Tokens:
        if self._seen is None:
            # What is written serves while the store cannot be read, and the other way round.
            with contextlib.suppress(CredentialError):
                self._seen = self._dated(self._source.tokens())
        self._seen = tokens = self._dated(self._store.load(name) or self._source.tokens())
        return tokens

    def _dated(self, tokens: Tokens) -> Tokens:
        """Return *tokens* with their end, where only the access token itself names it."""
        if tokens.expires_at is None and tokens.access is not None:
            return replace(tokens, expires_at=self._expiry(tokens.access.reveal()))
        return tokens

    def _is_good(self, tokens: Tokens) -> bool:
        if tokens.access is None or tokens.access == self._refused:
            return False
        renew_at = self.renew_at(tokens)
        return renew_at is None or self._now() < renew_at

    def _is_over(self, tokens: Tokens) -> bool:
        """Say whether the access token is worth nothing any more."""
        if tokens.access is None or tokens.access == self._refused:
            return True
        return tokens.expires_at is not None and tokens.expires_at <= self._now()

    def _is_refused(self) -> bool:
        seen = self._seen
        return seen is not None and seen.access is not None and seen.access == self._refused

    def _not_now(self, taken: Taken, tokens: Tokens, family: Family) -> Exception:
        if taken.left_s == 0.0:
            return self._lost(ExchangeFailed(family.lost), tokens)
        return UnderWay(_BY_ANOTHER, again_in_s=CLAIM_LOOK_S, is_refused=self._is_refused())

    def _lost(self, error: ExchangeFailed, tokens: Tokens) -> ExchangeFailed:
        """Say that the server may have spent the refresh token of *tokens*."""
        if self._is_over(tokens):
            return ExchangeFailed(str(error), error.retry_after_s)
        ends, wait_s = "is refused", LOOK_AGAIN_S
        if tokens.expires_at is not None:
            ends = f"ends ({datetime.fromtimestamp(tokens.expires_at, UTC):%Y-%m-%d %H:%M:%S} UTC)"
            wait_s = min(wait_s, tokens.expires_at - self._now())
        return ExchangeFailed(
            f"{error}; it may have been done, so it is tried again when the access token {ends}",
            max(wait_s, error.retry_after_s or 0.0),
            is_wait=True,
        )

    def _require_hope(self, tokens: Tokens, family: Family) -> None:
        """Never send a spent token again. Raises LoginEnded."""
        if tokens.refresh in family.spent:
            raise LoginEnded(
                f"its login is no longer valid: {family.spent[tokens.refresh]}; "
                f"{log_in_again(self._source.key.provider)}",
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
