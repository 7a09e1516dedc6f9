"""Several proxies share a store: whatever the order of their steps, the login is not lost.

Each proxy runs the real code in a thread that stops where another process could get in
between: before it claims, before its question reaches the server, before the answer reaches
it. There, hypothesis lets it go on, kills it, or lets the clock run.

One thing is not survived and is not tried: a process that is killed after the server took
the refresh token, and before the answer arrived. Nobody has the new one then.
"""

from __future__ import annotations

import contextlib
import queue
import tempfile
import threading
from pathlib import Path
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.credentials.fakes import FakeClock
from tests.credentials.token_server import FIRST, TokenServer
from tests.patience import PATIENCE_S, tries

from account_pool.core.claims import SENT_S, Claim, Taken
from account_pool.core.credential import Secret
from account_pool.credentials.http import ExchangeFailed, HttpResponse
from account_pool.credentials.oauth import LoginEnded, OAuthSource
from account_pool.credentials.refreshable_token import RefreshableToken, Refresher, RefreshPending
from account_pool.store.machine import Moment
from account_pool.store.sqlite import SqliteTokens
from account_pool.store.store import Tokens, TokenStore

SOURCE = OAuthSource.from_written("codex", "me", {"refresh_token": FIRST}, {})
PROXIES = st.integers(0, 2)
#: What the wall clock of each is ahead, seconds.
SKEWS = (0.0, 7200.0, -7200.0)


class Killed(BaseException):
    """The process is gone; nothing of it runs any more."""


class Proxy:
    """One process: its connection to the store, its login, and a thread of it."""

    def __init__(
        self, path: Path, server: TokenServer, clock: FakeClock, gone: set[str], skew: float
    ) -> None:
        self.path, self.server, self.clock = path, server, clock
        #: owners of claims whose process is dead, as far as others can know
        self.gone = gone
        #: what its wall clock is ahead of that of the others
        self.skew = skew
        self.sending_since: float | None = None
        self.state = "idle"
        self.known: Secret | None = None
        self.dead = False
        self.is_known_to_die = True
        self.told: queue.Queue[str] = queue.Queue()
        self.may: queue.Queue[str] = queue.Queue()
        self.boot()

    def boot(self) -> None:
        self.store = self.open_store()
        self.dead, self.known = False, None
        self.login = RefreshableToken(
            SOURCE,
            Refresher(store=self, post=self.post, wall_clock=self.wall),
            expiry=lambda _: None,
            chance=0.0,
        )

    def open_store(self) -> TokenStore:
        return SqliteTokens(
            self.path,
            clock=lambda: Moment("one", self.clock.now, self.wall()),
            is_gone=self.gone.__contains__,
        )

    def wall(self) -> float:
        return self.clock.now + self.skew

    # -- what the machine does

    def start(self) -> None:
        if self.known is not None:
            self.login.refuse(self.known)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        self.state = self.told.get(timeout=PATIENCE_S)

    def go_on(self) -> None:
        self.may.put("go on")
        self.state = self.told.get(timeout=PATIENCE_S)

    def kill(self) -> None:
        """As `kill -9`: no `finally` of it reaches the store."""
        self.dead = True
        if self.is_known_to_die:
            self.gone.add(self.login._owner)
        if self.state != "idle":
            self.go_on()
        self.thread_ended()
        self.store.close()
        self.boot()

    def thread_ended(self) -> None:
        if self.state == "idle" and hasattr(self, "thread"):
            self.thread.join(PATIENCE_S)

    # -- what runs in the thread

    def run(self) -> None:
        with contextlib.suppress(ExchangeFailed, LoginEnded, RefreshPending, Killed):
            self.known = self.login.tokens_now().access
        self.told.put("idle")

    def stop(self, state: str) -> None:
        self.told.put(state)
        self.may.get(timeout=PATIENCE_S)
        if self.dead:
            raise Killed

    def post(self, url: str, headers: dict[str, str], content: bytes, sending: Any) -> HttpResponse:
        self.stop("connecting")
        sending()
        self.sending_since = self.clock.now
        try:
            self.stop("sending")
        finally:
            self.sending_since = None
        answer = self.server.post(url, headers, content, lambda: None)
        self.stop("answered")
        return answer

    # -- the store, as long as the process lives

    def alive(self) -> TokenStore:
        if self.dead:
            raise Killed
        return self.store

    def load(self, family: str) -> Tokens | None:
        return self.alive().load(family)

    def save(self, family: str, tokens: Tokens, **how: Any) -> bool:
        return self.alive().save(family, tokens, **how)

    def claim(self, family: str, owner: str, **how: Any) -> Claim | Taken:
        self.stop("claiming")
        return self.alive().claim(family, owner, **how)

    def sending(self, family: str, fence: int, token: Secret) -> bool:
        return self.alive().sending(family, fence, token)

    def release(self, family: str, fence: int, **how: Any) -> None:
        self.alive().release(family, fence, **how)


class SharedLogin(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.clock, self.server = FakeClock(), TokenServer(life_s=1000)
        self.proxies = self.make_proxies(Path(self.folder.name), set())
        self.paused = False

    def make_proxies(self, folder: Path, gone: set[str]) -> list[Proxy]:
        path = folder / "state.sqlite"
        return [Proxy(path, self.server, self.clock, gone, skew) for skew in SKEWS]

    @rule(n=PROXIES)
    def next_step(self, n: int) -> None:
        proxy = self.proxies[n]
        if proxy.state == "idle":
            proxy.start()
        else:
            proxy.go_on()

    @rule(n=PROXIES, is_known=st.booleans())
    def killed(self, n: int, is_known: bool) -> None:
        proxy = self.proxies[n]
        proxy.is_known_to_die = is_known
        if proxy.state != "answered":
            proxy.kill()

    @rule(seconds=st.sampled_from([1.0, 9.0, 61.0, 701.0]))
    @precondition(lambda self: all(p.state != "answered" for p in self.proxies))
    def time_passes(self, seconds: float) -> None:
        """While a process is about to send, it may so be overtaken by another."""
        self.clock.now += seconds
        self.paused |= any(
            self.clock.now - proxy.sending_since >= SENT_S
            for proxy in self.proxies
            if proxy.sending_since is not None
        )

    @rule(seconds=st.sampled_from([30.0, 400.0]))
    @precondition(lambda self: any(p.state == "answered" for p in self.proxies))
    def a_process_is_stopped_for_long_with_the_answer_in_its_hand(self, seconds: float) -> None:
        # Its claim lasts until nobody would read on.
        self.paused |= seconds >= SENT_S
        self.clock.now += seconds

    @invariant()
    def no_token_is_sent_twice_unless_somebody_was_paused(self) -> None:
        assert self.paused or not self.server.reused

    def teardown(self) -> None:
        if not hasattr(self, "proxies"):
            return
        for proxy in self.proxies:
            while proxy.state != "idle":
                proxy.go_on()
            proxy.thread_ended()
        stored = self.proxies[0].store.load(SOURCE.family())
        assert (stored.refresh if stored else Secret(FIRST)) == Secret(self.server.newest)
        # And each of them, also one that took the login for ended, can go on.
        for proxy in self.proxies:
            self.clock.now += 2000
            proxy.start()
            while proxy.state != "idle":
                proxy.go_on()
            proxy.thread_ended()
            assert proxy.known == Secret(f"at-{self.server.count}")
            proxy.store.close()
        self.folder.cleanup()


SETTINGS = settings(
    max_examples=tries(40),
    stateful_step_count=30,
    report_multiple_bugs=False,
    # To shrink a failure takes minutes: a thread that hangs is waited for, example by example.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
SharedLogin.TestCase.settings = SETTINGS
test_no_order_of_steps_loses_the_login = SharedLogin.TestCase
