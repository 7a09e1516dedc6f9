"""What the answers are made from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from account_pool.admin import views
from account_pool.admin.actions import Actions
from account_pool.admin.decided import Decided
from account_pool.admin.views import Json, Moment, Sums
from account_pool.core.state import AccountState

if TYPE_CHECKING:
    from account_pool.proxy.service import Service


@dataclass(slots=True, eq=False, kw_only=True)
class Desk:
    """The pool, and what is known beside it.

    Attributes:
        service: the pool and its sessions.
        actions: what changes it.
        decided: how often what was decided.
        counted: returns the sums of a counter: "usage" by (day, account, model), "resets" by
            (day, account, window).
        instance: a name of this run of the proxy.
        started_at: when it was started, monotonic seconds.
        ready: returns whether it serves.
        accounts_file: returns the file that serves, None while there is none.
    """

    service: Service
    actions: Actions
    decided: Decided
    counted: Callable[[str], Awaitable[Sums]]
    instance: str
    started_at: float
    ready: Callable[[], bool]
    accounts_file: Callable[[], Path | None]

    def source(self) -> Json:
        """Return which file the accounts are of; null: they are those of the environment."""
        path = self.accounts_file()
        return {"accounts_file": None if path is None else str(path)}

    def moment(self) -> Moment:
        return Moment(self.service.now(), self.service.wall_now())

    async def beside(self) -> views.Beside:
        """Return what is told of accounts beside the accounts themselves."""
        sums, moment = await self.counted("usage"), self.moment()
        return views.Beside(
            sessions=views.sessions_by_account(self.service.sessions, moment.now),
            usage=views.usage_of_day(sums, views.day_of(moment.wall_now)),
        )

    async def account(self, state: AccountState) -> Json:
        """Return one account as JSON."""
        beside = await self.beside()
        return views.account_view(state, self.moment(), beside)
