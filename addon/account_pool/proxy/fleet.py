"""This proxy among those on the same store: what it says of itself, knows of them, agrees on.

`persistence` sends the one and reads the other with each heartbeat. Whoever asks is answered
from memory: a store that hangs delays no page.
"""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from mitmproxy import version
from msgspec.structs import replace

from account_pool import __version__
from account_pool.core.account import AccountKey
from account_pool.core.fleet import AboutProxy, ProxyRow, ProxyView, replaced_by, view_fleet
from account_pool.core.pool import Pool
from account_pool.proxy.store_access import StoreAccess, StoreClock
from account_pool.store.store import GRACE_S, NoticeStore, StateStore, StoreError
from account_pool.supervision import tasks
from account_pool.workers import worker

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from account_pool.core.notifications import Subject, Verdict

#: What the store said so long ago says nothing of the others now, seconds.
STALE_S = GRACE_S
#: How long the accounts of two proxies differ before it is told, seconds: all may be changing.
DIFFER_S = 30.0
#: Proxies that are named then.
MAX_NAMED = 5


def beat(
    store: StateStore, in_flight: Mapping[AccountKey, int], about: AboutProxy, wall_now: float
) -> tuple[bool, list[ProxyRow]]:
    """Send a heartbeat; return whether this one counted as running, and who is there. Blocks.

    Raises StoreError.
    """
    did_run = store.beat(in_flight, wall_now=wall_now, about=about)
    rows = store.proxies(wall_now=wall_now)
    if replaced := replaced_by(about, rows):
        store.forget(replaced)
    return did_run, rows


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


class Running(Protocol):
    """What is told of this proxy: `service.Service`.

    Attributes:
        now: the monotonic clock, seconds.
        pool: its accounts.
        stopping: whether it shuts down.
        state_problem: returns why what is learnt is kept in memory only; None if it is not.
    """

    now: Callable[[], float]
    pool: Pool
    stopping: bool
    state_problem: Callable[[], str | None]


class Fleet:
    """The proxies on one store, as this one knows them.

    Attributes:
        instance: names this run of the proxy; all workers of one launcher have the same.
        started_at: when it was started, monotonic seconds.
        port: where it listens; None: nowhere yet.
        kind: what keeps the state ("file", "memory" ...); None: nothing yet.
        server: its host and port; "": it is on this machine.
        pool: the name of the pool there; "": it has none.
    """

    def __init__(self, proxy: Running) -> None:
        link = worker.LINK
        self.instance = secrets.token_hex(8) if link is None else link.instance
        self.started_at = proxy.now() if link is None else link.started_at
        self.port: int | None = None
        self.kind: str | None = None
        self.server = self.pool = ""
        self._worker = 0 if link is None else link.number
        self._proxy = proxy
        self._host = socket.gethostname()
        self._said: AboutProxy | None = None
        self._rows: tuple[ProxyRow, ...] = ()
        self._heard_at = -inf
        self._is_lost = False
        #: proxies with other accounts, and since when; infinity: that was told
        self._differ: dict[str, float] = {}

    @property
    def name(self) -> str:
        """The host of this proxy, and its port."""
        return self._host if self.port is None else f"{self._host}:{self.port}"

    @property
    def process_name(self) -> str:
        """The name of this proxy, and its number among workers."""
        return f"{self.name}/{self._worker}" if self._worker else self.name

    def about(self, now: float | None = None) -> AboutProxy:
        """Return what this process says of itself, at *now* (monotonic seconds)."""
        now = self._proxy.now() if now is None else now
        return AboutProxy(
            name=self.name,
            instance=self.instance,
            worker=self._worker,
            version=__version__,
            mitmproxy=version.VERSION,
            uptime_s=max(now - self.started_at, 0.0),
            stopping=self._proxy.stopping,
            problem=self._problem(),
            accounts=self._proxy.pool.accounts.fingerprint,
        )

    @property
    def has_news(self) -> bool:
        """Whether the store has to know, or may have to be asked, before the next heartbeat."""
        said = self._said
        if said is None or self._is_lost:
            return True
        return replace(self.about(), uptime_s=said.uptime_s) != said

    def said(self, about: AboutProxy) -> None:
        """Note what the store has of this process."""
        self._said = about

    def heard(self, rows: Iterable[ProxyRow], now: float) -> None:
        """Note what the store has said at *now* (monotonic seconds)."""
        self._rows, self._heard_at, self._is_lost = tuple(rows), now, False
        if self._worker <= 1:  # one speaks for all workers
            self._tell_who_differs(now)

    def _tell_who_differs(self, now: float) -> None:
        differ = {view.key: view for view in self.views() if view.same_accounts is False}
        self._differ = {key: self._differ.get(key, now) for key in differ}
        # One that was told has infinity: it is told again once it was the same meanwhile.
        new = [differ[key] for key, since in self._differ.items() if now >= since + DIFFER_S]
        if new:
            self._differ |= dict.fromkeys((view.key for view in new), inf)
            logger.warning(
                f"account-pool: {_listed([view.name for view in new])} and this proxy, "
                f"{self.name}, do not have the same accounts; give all the same accounts.yaml "
                "(docs/fleet.md)"
            )

    def lost(self) -> None:
        """Note that the store could not be used: it has to be asked what the others do."""
        self._is_lost = True

    @property
    def is_known(self) -> bool:
        """Whether it is known what the others do: not while the loss of the store is said."""
        is_away = self._is_lost and self._proxy.state_problem() is not None
        return not is_away and self._proxy.now() - self._heard_at < STALE_S

    def views(self) -> list[ProxyView]:
        """Return all proxies, this one first, as they are now."""
        now = self._proxy.now()
        return view_fleet(
            self._rows,
            self.about(now),
            sum(state.in_flight for state in self._proxy.pool.accounts),
            since_s=max(now - self._heard_at, 0.0),
            is_known=self.is_known,
        )

    def _problem(self) -> str | None:
        if problem := self._proxy.state_problem():
            return problem
        ended = [name for name, failed in tasks.failed.items() if not failed.running]
        return f"a background task has ended: {', '.join(ended)}" if ended else None


class SharedNotices:
    """What the proxies have told their owner of, and whose turn something is.

    Asks the store in turn with what is written. All raise StoreError while it is not open.
    """

    def __init__(
        self,
        access: StoreAccess,
        clock: StoreClock,
        in_turn: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        self._access, self._clock, self._in_turn = access, clock, in_turn

    async def note(
        self, begun: Collection[Subject], ended: Collection[Subject]
    ) -> dict[Subject, Verdict]:
        """Decide with the other proxies which of these conditions this one tells."""
        store, wall = self._store(), self._clock.wall()
        verdicts: dict[Subject, Verdict] = await self._in_turn(
            lambda: store.note(begun, ended, wall_now=wall)
        )
        return verdicts

    async def noted(self) -> list[Subject]:
        """Return the conditions that were told and are not over."""
        noted: list[Subject] = await self._in_turn(self._store().noted)
        return noted

    async def take_turn(self, name: str, every_s: float) -> bool:
        """Say whether no proxy has taken the turn *name* for *every_s*; it is taken then."""
        store, wall = self._store(), self._clock.wall()
        return bool(await self._in_turn(lambda: store.take_turn(name, every_s, wall_now=wall)))

    def _store(self) -> NoticeStore:
        if self._access.store is None:
            raise StoreError("the store is not open")
        return self._access.store.notices
