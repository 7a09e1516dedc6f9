"""The store that `pool_state` names, as long as it can be used: its clock, and what is logged.

It is a file, an engine, or memory. A damaged file is put aside and a new one begun. Each problem
is logged once: the store is tried again and again. A proxy without its state engine is alone: it
serves on, with what it knows, and says so once that has lasted: on a busy machine an answer may
be late.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import wait
from contextlib import contextmanager, suppress

from mitmproxy.log import ALERT
from mitmproxy.options import Options

from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.core.instruments import MAX_WAITING
from account_pool.store.machine import is_gone
from account_pool.store.pool_state import database_path, is_url, parse
from account_pool.store.sqlite import MemoryStore, SqliteStore
from account_pool.store.store import (
    DamagedError,
    MovedError,
    Row,
    StateStore,
    Store,
    StoreError,
    Tokens,
    TokenStore,
)
from account_pool.supervision import begun, where

logger = logging.getLogger(__name__)

#: The tables of a store.
TABLES = ("sessions", "pins")
#: How long a store that failed is left alone at first, and at most, seconds.
PAUSE_S = 5.0
MAX_PAUSE_S = 60.0
#: The same of a state engine, which decides itself when it is asked (`store/fleet/engine.py`).
ENGINE_PAUSE_S = 1.0
#: How long an engine has failed before that is said, seconds: longer than until the next try.
SAID_AFTER_S = 2.0
#: By how much two looks at one clock differ at most, seconds.
SAME_CLOCK_S = 0.05
#: The same problem is not logged again for so long, seconds: a store may come and go.
QUIET_S = 60.0
#: How often another store may be in the place of one within QUIET_S, and is used at once: two
#: servers behind one address take turns for ever.
MAX_MOVED = 2
#: How many damaged files are put aside by one proxy: a disk, or a mistake of ours, may
#: damage each new one.
MAX_ASIDES = 3
#: How long the event loop, and who refreshes a login, wait for the half of a store that keeps
#: logins to be opened, seconds.
OPEN_S = 5.0

_IN_MEMORY = "cooldowns and sessions are kept in memory only"


def make_store(
    state: str,
    options: Options,
    *,
    tell: Callable[[str], object] | None = None,
) -> Store:
    """Return the store that `pool_state` (*state*) names; nothing is opened yet.

    *tell* gets a line where logins were moved to it; the log, where it is not given. Raises
    Wrong, or StoreError.
    """
    if is_url(state):
        from account_pool.store.fleet import fleet_store  # noqa: PLC0415 - few proxies have one

        folder = fleet_store.unsaved_folder(options.confdir)
        before = database_path("", options.confdir)
        return fleet_store.FleetStore(parse(state), folder, before=before, tell=tell or _announce)
    path = database_path(state, options.confdir)
    return MemoryStore() if path is None else SqliteStore(path)


def _announce(text: str) -> None:
    logger.log(ALERT, f"account-pool: {text}")


def open_tokens(store: Store) -> TokenStore:
    """Open the half of *store* that keeps logins. Blocks for OPEN_S at most. Raises StoreError.

    What does not answer by then is used once it does.
    """
    late = LateTokens(store)
    tokens = late.opened()
    if tokens is None:
        logger.warning(f"account-pool: {late.slow}; no login is refreshed until it answers")
    return tokens or late


class LateTokens:
    """A `TokenStore` that is opened in a thread: the disk it is on may not answer."""

    def __init__(self, store: Store) -> None:
        self._open = store.tokens
        self._opening = begun(self._open)
        name = f"the state engine {store.server}" if store.server else "the state database"
        self.slow = f"{name} takes too long to open; check the disk that it is on"

    def opened(self) -> TokenStore | None:
        """Return it once it is open; None after OPEN_S. Raises StoreError."""
        opening = self._opening
        wait([opening], OPEN_S)
        if opening is self._opening and opening.done() and opening.exception() is not None:
            self._opening = begun(self._open)  # for whoever asks next
        return opening.result() if opening.done() else None

    def load(self, family: str) -> Tokens | None:
        return self._tokens().load(family)

    def claim(self, family: str, owner: str, *, token: Secret, is_over: bool) -> Claim | Taken:
        return self._tokens().claim(family, owner, token=token, is_over=is_over)

    def sending(self, family: str, fence: int, token: Secret) -> bool:
        return self._tokens().sending(family, fence, token)

    def save(
        self, family: str, tokens: Tokens, *, replaces: Secret | None = None, fence: int = 0
    ) -> bool:
        return self._tokens().save(family, tokens, replaces=replaces, fence=fence)

    def release(self, family: str, fence: int, *, unknown: bool = False) -> None:
        self._tokens().release(family, fence, unknown=unknown)

    def keep(self) -> None:
        if self._opening.done():  # nothing is known here before
            self._tokens().keep()

    def close(self) -> None:
        if self._opening.done():
            self._tokens().close()

    def _tokens(self) -> TokenStore:
        if (tokens := self.opened()) is None:
            raise StoreError(self.slow)
        return tokens


class StoreAccess:
    """A store that may not be usable.

    Args:
        now: returns monotonic seconds.
        chance: returns a number from 0 to 1.

    Attributes:
        source: what is opened.
        store: None while it is not open.
        failures: how often it has failed since it was last used.
    """

    def __init__(
        self, source: Store, *, now: Callable[[], float], chance: Callable[[], float]
    ) -> None:
        self.source = source
        self.store: StateStore | None = None
        self.failures = 0
        self._now, self._chance = now, chance
        #: since when it has failed
        self._failed_at = 0.0
        #: why it cannot be used, as was said
        self._failed_for = ""
        #: problems that are logged and not over; when each was
        self._reported: set[str] = set()
        self._reported_at: dict[str, float] = {}
        #: kinds of rows that do not fit into the store, with what is wrong, as reported
        self._unfit: set[tuple[str, str]] = set()
        self._asides = 0
        #: when there was another in its place
        self._moved_at: deque[float] = deque(maxlen=MAX_MOVED)

    @property
    def problem(self) -> str | None:
        """Why what is learnt, or a part of it, is kept in memory only; None where it is not."""
        if self._failed_for or not self._unfit:
            return self._failed_for or None
        return f"cannot be written: something of {', '.join(sorted({k for k, _ in self._unfit}))}"

    @property
    def name(self) -> str:
        """What it is called in messages."""
        server = self.source.server
        return f"the state engine {server}" if server else "the state database"

    @property
    def too_long(self) -> StoreError:
        """What is wrong with a store that does not answer."""
        if self.source.server:
            return StoreError(f"{self.name} takes too long; check it, and the network to it")
        return StoreError(f"{self.name} takes too long to write; check the disk")

    @property
    def pause_s(self) -> float:
        """How long it is left alone after a failure."""
        if self.source.server:
            # Those that lost it together do not come back together.
            return ENGINE_PAUSE_S * (0.5 + self._chance())
        return min(PAUSE_S * 2.0 ** min(self.failures - 1, 10), MAX_PAUSE_S)

    def read(self, wall: float) -> tuple[StateStore, dict[str, list[Row]], Collection[str]]:
        """Return the store opened, its tables, and the other proxies on it.

        What proxies have left that are known to be dead is removed. Blocks. Raises StoreError.
        """
        store = self.source.state()
        try:
            # What is there already is not news.
            news = store.changed(wall_now=store.now() or wall)
            if dead := [proxy for proxy in news.proxies or () if is_gone(proxy)]:
                store.reap(dead)
            tables = {name: store.read_table(name) for name in TABLES}
        except StoreError:
            store.close()
            raise
        return store, tables, [proxy for proxy in news.proxies or () if proxy not in dead]

    def close(self) -> None:
        store, self.store = self.store, None
        if store is not None:
            store.close()

    def put_aside(self, error: DamagedError) -> None:
        """Have the next store begin empty. Blocks. Raises StoreError."""
        self.close()
        if self._asides == MAX_ASIDES:
            raise error
        self._asides += 1
        aside = self.source.put_aside()
        kept = f"it was kept as {aside}" if aside else "another proxy moved it aside"
        logger.log(ALERT, f"account-pool: {error.wrong}: {kept}, and a new one was created")

    def used(self) -> None:
        """Note that it can be used, again if it could not."""
        self.failures, self._failed_for = 0, ""
        if self._reported:
            self._reported.clear()
            logger.log(ALERT, f"account-pool: {self.name} can be written again")

    @contextmanager
    def reporting(self, done: str) -> Iterator[None]:
        """Report an error, also one of our own: the proxy goes on without the store."""
        try:
            yield
        except StoreError as e:
            self.report(e)
        except Exception as e:
            self.report(StoreError(f"the state cannot be {done}: {where(e)}"))

    def failed(self, error: StoreError, *, lasted_s: float = 0.0) -> None:
        """Note that it has failed, for *lasted_s*; report it, of an engine only if that lasts."""
        now = self._now()
        if not self.failures:
            self._failed_at = now - lasted_s
        if not self.source.server or now - self._failed_at >= SAID_AFTER_S:
            self.report(error)
        else:
            self.failures += 1

    def report(self, error: StoreError) -> None:
        """Say that it cannot be used."""
        self.failures += 1
        self._failed_for = str(error)
        # An engine that goes away does so in several ways, one after the other; what is wrong
        # with it a minute later is another matter.
        kind = type(error).__name__ if self.source.server else str(error)
        now = self._now()
        known = self._reported_at.get(kind)
        if str(error) in self._reported or (known is not None and now - known < QUIET_S):
            return
        self._reported.add(str(error))
        self._reported_at[kind] = now
        alone = "this proxy is alone, and " if self.source.server else ""
        logger.warning(f"account-pool: {error}; {alone}{_IN_MEMORY} until it can be written again")

    def report_moved(self, error: MovedError) -> None:
        """Note that there is another in its place.

        No reason to wait: a proxy that starts now must find what we know. Unless that goes on.
        """
        now, at = self._now(), self._moved_at
        if len(at) == MAX_MOVED and now - at[0] < QUIET_S:
            self.report(error)
        else:
            logger.warning(f"account-pool: {error}")
        at.append(now)

    def report_unfit(self, unfit: Mapping[str, str]) -> None:
        """Note which kinds of rows could not be written: it would be the same with the next."""
        for kind, wrong in unfit.items():
            if (kind, wrong) not in self._unfit:
                self._unfit.add((kind, wrong))
                logger.warning(
                    f"account-pool: of {kind} something cannot be written ({wrong}) and is kept in "
                    "memory only; all else is written"
                )

    def report_full(self) -> None:
        """Note that no more requests can wait to be written."""
        logger.warning(
            f"account-pool: {MAX_WAITING:,} requests wait to be written; {self.too_long}. Until "
            "it can be written, more are not in GET /requests (their tokens are counted)"
        )

    def report_lost(self, lost: int) -> None:
        """Note how many requests have no row because the store took too long."""
        if lost:
            logger.warning(
                f"account-pool: {self.name} is written again: {lost:,} requests are missing from "
                "GET /requests"
            )


class Wake:
    """Calls *woken* in *loop* when it was called in any thread: once for many calls at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, woken: Callable[[], object]) -> None:
        self._loop, self._woken = loop, woken
        self._is_due = False

    def __call__(self) -> None:
        if not self._is_due:
            self._is_due = True
            with suppress(RuntimeError):  # the loop has ended, and so has the proxy
                self._loop.call_soon_threadsafe(self._call)

    def _call(self) -> None:
        # Whoever calls from here on is not heard by what follows.
        self._is_due = False
        self._woken()


class StoreClock:
    """The clock of a store, kept in step with the monotonic clock.

    Attributes:
        ahead: what it is ahead of the monotonic clock, seconds: measured once, so that a
            deadline is the same instant each time it is written.
    """

    def __init__(self, now: Callable[[], float], wall_now: Callable[[], float]) -> None:
        self._now = now
        self._clock = wall_now
        self._is_of_store = False
        self.ahead = self.measured()

    def follow(self, store: StateStore) -> None:
        """Take the clock of *store*, if it has one: nobody can set it, and all proxies share it."""
        if store.now() is None:
            return
        self._clock = lambda: store.now() or 0.0
        ahead = self.measured()
        # One that is opened anew is measured a little differently: all deadlines would move.
        if not self._is_of_store or abs(ahead - self.ahead) > SAME_CLOCK_S:
            self.ahead, self._is_of_store = ahead, True

    def measured(self) -> float:
        """Return what it is ahead of the monotonic clock now."""
        return self._clock() - self._now()

    def wall(self) -> float:
        """Return now."""
        return self.both()[1]

    def both(self) -> tuple[float, float]:
        """Return one moment, on the monotonic clock and on this one.

        Of two looks, a time that is moved from clock to clock would move by what lies between.
        """
        now = self._now()
        return now, now + self.ahead
