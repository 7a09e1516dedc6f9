"""The store of a proxy as long as it can be used, its clock, and what is logged where it cannot.

A damaged file is put aside and a new one begun. Each problem is logged once: the store is
tried again and again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from mitmproxy.log import ALERT

from account_pool.core.instruments import MAX_WAITING
from account_pool.store.machine import is_gone
from account_pool.store.store import DamagedError, Row, StateStore, Store, StoreError
from account_pool.supervision import where

logger = logging.getLogger(__name__)

#: The tables of a store.
TABLES = ("sessions", "pins")
#: How long a store that failed is left alone at first, and at most, seconds.
PAUSE_S = 5.0
MAX_PAUSE_S = 60.0
#: How many damaged files are put aside by one proxy: a disk, or a mistake of ours, may
#: damage each new one.
MAX_ASIDES = 3

TOO_LONG = "the state database takes too long to write; check the disk"
_IN_MEMORY = "cooldowns and sessions are kept in memory only"


class StoreAccess:
    """A store that may not be usable.

    Attributes:
        source: what is opened.
        store: None while it is not open.
        failures: how often it has failed since it was last used.
    """

    def __init__(self, source: Store) -> None:
        self.source = source
        self.store: StateStore | None = None
        self.failures = 0
        self._reported = ""
        #: kinds of rows that do not fit into the store, with what is wrong, as reported
        self._unfit: set[tuple[str, str]] = set()
        self._asides = 0

    @property
    def problem(self) -> str | None:
        """Why what is learnt, or a part of it, is kept in memory only; None where it is not."""
        if self._reported or not self._unfit:
            return self._reported or None
        return f"cannot be written: something of {', '.join(sorted({k for k, _ in self._unfit}))}"

    @property
    def pause_s(self) -> float:
        """How long it is left alone after a failure."""
        return min(PAUSE_S * 2 ** (self.failures - 1), MAX_PAUSE_S)

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
        if self.failures:
            self.failures, self._reported = 0, ""
            logger.log(ALERT, "account-pool: the state database can be written again")

    @contextmanager
    def reporting(self, done: str) -> Iterator[None]:
        """Report an error, also one of our own: the proxy goes on without the store."""
        try:
            yield
        except StoreError as e:
            self.report(e)
        except Exception as e:
            self.report(StoreError(f"the state cannot be {done}: {where(e)}"))

    def report(self, error: StoreError) -> None:
        """Note that it cannot be used."""
        self.failures += 1
        if str(error) != self._reported:
            self._reported = str(error)
            logger.warning("account-pool: %s", error)
            logger.log(ALERT, f"account-pool: {_IN_MEMORY} until it can be written again")

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
            f"account-pool: {MAX_WAITING:,} requests wait to be written; {TOO_LONG}. Until it "
            "can be written, more are not in GET /requests (their tokens are counted)"
        )

    def report_lost(self, lost: int) -> None:
        """Note how many requests have no row because the store took too long."""
        if lost:
            logger.warning(
                f"account-pool: the state database is written again: {lost:,} requests are missing "
                "from GET /requests"
            )


class StoreClock:
    """The clock of a store, kept in step with the monotonic clock.

    Attributes:
        ahead: what it is ahead of the monotonic clock, seconds: measured once, so that a
            deadline is the same instant each time it is written.
    """

    def __init__(self, now: Callable[[], float], wall_now: Callable[[], float]) -> None:
        self._now = now
        self._clock = wall_now
        self.ahead = self.measured()

    def follow(self, store: StateStore) -> None:
        """Take the clock of *store*, if it has one: nobody can set it, and all proxies share it."""
        if store.now() is not None:
            self._clock = lambda: store.now() or 0.0
            self.ahead = self.measured()

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
