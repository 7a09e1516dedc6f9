"""The tokens of one login at run time: the newest there are, refreshed when they must be.

A refresh token is worth one refresh, so asking is done by one at a time (the claim in the
store, which other proxies respect), and the answer is in the store before anybody uses it.
Claim, question and write are one piece of work in a thread: a cancelled task or a
proxy that shuts down cannot end it between the answer and the write.

Whoever is told that a token was used already has lost a race, or was paused for long: the
winner's tokens are in the store, now or soon. So no login is given up for good; a token
that was refused is just never sent again, and the store is looked at for a newer one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from account_pool.core.credential import Secret
from account_pool.credentials import token_answer
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.exchange_answer import ExchangeFailed
from account_pool.credentials.http import Http, HttpAnswer, HttpFailed
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.token_answer import LoginEnded
from account_pool.credentials.vendors import log_in_again
from account_pool.store.errors import StoreError
from account_pool.store.tokens import Tokens, TokenStore

#: Seconds for one refresh, from the connection to the end of the body.
REFRESH_TIMEOUT_S = 15.0
#: How long a claim lasts, in seconds: longer than the question can take, so that the
#: answer is there before somebody else may ask.
CLAIM_S = 25.0
#: How often a claim of somebody else is looked at, in seconds.
CLAIM_LOOK_S = 0.2
#: A token is refreshed so long before it ends, in seconds, and up to the second value
#: earlier still, so that accounts do not refresh together; short lives, at most a fifth.
EARLY_S, JITTER_S, EARLY_SHARE = 300.0, 60.0, 0.2
#: A token that is refused so soon after it was got is not the reason, in seconds.
TOO_FRESH_S = 60.0
#: How often the store is looked at for the tokens of somebody else, in seconds, when a
#: login is over here.
LOOK_AGAIN_S = 30.0
#: Refreshes of different logins at once.
MAX_AT_ONCE = 8

#: Sends (url, headers, body) and returns the answer. Raises HttpFailed.
Post = Callable[[str, dict[str, str], bytes], HttpAnswer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresher:
    """What all logins of one proxy share.

    Attributes:
        store: the newest tokens of all logins.
        post: asks a token endpoint; it blocks.
        wall_clock: seconds since the epoch.
        sleep: blocks for so many seconds.
        threads: where the work is done.
        stopped: set when the proxy ends: what was asked is answered and written, and
            nothing else is begun.
    """

    store: TokenStore
    post: Post
    wall_clock: Callable[[], float]
    sleep: Callable[[float], object]
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="refresh")
    )
    stopped: threading.Event = field(default_factory=threading.Event)


def post_with(http: Http) -> Post:
    """Return a `Post` that blocks its thread while *http* asks."""

    def post(url: str, headers: dict[str, str], content: bytes) -> HttpAnswer:
        # A loop of its own: that of the proxy must be free to stop meanwhile.
        return asyncio.run(
            http.ask("POST", url, headers=headers, content=content, timeout_s=REFRESH_TIMEOUT_S)
        )

    return post


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
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4()}"
        #: access tokens that the provider did not take
        self._refused: Secret | None = None
        #: refresh tokens that are spent, and what the server said
        self._spent: dict[Secret, str] = {}
        #: got, and not yet written; and the refresh token they were got for
        self._unsaved: tuple[Tokens, Secret] | None = None
        #: the newest that were seen
        self._seen: Tokens | None = None
        # A caller that was cancelled leaves its work running.
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

        Raises ExchangeFailed (LoginEnded is one) or CredentialError, whose text is for
        the owner. A caller that is cancelled stops nothing.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._refresher.threads, self.tokens_now)

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
        try:
            with self._working:
                return self._tokens_now(self._source.family())
        except StoreError as error:
            # The answer, if there was one, is kept and written at the next try.
            raise ExchangeFailed(str(error)) from None

    def _tokens_now(self, family: str) -> Tokens:
        self._write(family)
        last_look = self._now() + CLAIM_S + REFRESH_TIMEOUT_S
        while True:
            newest = self._newest(family)
            if self._is_good(newest):
                return newest
            self._require_hope(newest)
            if self._refresher.stopped.is_set():
                raise ExchangeFailed("the proxy is shutting down")
            until = self._store.claim(family, self._owner, clock=self._now, lasts_s=CLAIM_S)
            if until is not None:
                break
            if self._now() >= last_look:
                raise ExchangeFailed("another proxy has been refreshing this login for too long")
            self._refresher.sleep(CLAIM_LOOK_S)
        try:
            return self._claimed(family, until)
        finally:
            self._store.release(family, self._owner)

    def _claimed(self, family: str, until: float) -> Tokens:
        # Somebody may have refreshed it between our look and our claim.
        newest = self._newest(family)
        if self._is_good(newest):
            return newest
        self._require_hope(newest)
        settings = self._source.settings_now()
        headers, content = token_answer.request(settings, newest)
        if not REFRESH_TIMEOUT_S < until - self._now() <= CLAIM_S:
            raise ExchangeFailed("this computer was paused during a refresh", 0.0)
        try:
            answer = self._refresher.post(settings.token_url, headers, content)
            self._unsaved = token_answer.read(answer, newest, self._now()), newest.refresh
        except HttpFailed as error:
            raise ExchangeFailed(f"refreshing its login: {error}") from None
        except LoginEnded as error:
            self._spent[newest.refresh] = str(error)
            following = self._newest(family)
            self._require_hope(following)
            return following if self._is_good(following) else self._claimed(family, until)
        self._write(family)
        got = self._newest(family)
        if got.access is None:
            raise ExchangeFailed("the refresh answered 200 without an access token")
        return got

    def _write(self, family: str) -> None:
        """Put what was got into the store, before anybody uses it.

        If that took so long that another proxy has refreshed it since, its tokens stand.
        """
        if self._unsaved is not None:
            tokens, spent = self._unsaved
            self._store.save(family, tokens, replaces=spent)
            self._unsaved = None

    def _newest(self, family: str) -> Tokens:
        if self._seen is None:
            # What is written serves while the store cannot be read, and the other way round.
            with contextlib.suppress(CredentialError):
                self._seen = self._dated(self._source.tokens())
        self._seen = tokens = self._dated(self._store.load(family) or self._source.tokens())
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

    def _require_hope(self, tokens: Tokens) -> None:
        """Never send a spent token again. Raises LoginEnded."""
        if tokens.refresh in self._spent:
            raise LoginEnded(
                f"its login is no longer valid: {self._spent[tokens.refresh]}; "
                f"{log_in_again(self._source.key.provider)}",
                LOOK_AGAIN_S,
            )


def make_refresher(store: TokenStore, http: Http, wall_clock: Callable[[], float]) -> Refresher:
    """Return what the logins of one proxy share."""
    stopped = threading.Event()
    return Refresher(
        store=store,
        post=post_with(http),
        wall_clock=wall_clock,
        sleep=stopped.wait,
        stopped=stopped,
    )
