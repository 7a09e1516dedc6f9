"""What the proxies on one store agree on: which of them tells their owner, and whose turn it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any

from account_pool.proxy.store_access import StoreAccess, StoreClock
from account_pool.store.store import NoticeStore, StoreError

if TYPE_CHECKING:
    from account_pool.core.notifications import Subject, Verdict


class SharedNotices:
    """Asks the store in turn with what is written. All raise StoreError while it is not open."""

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
