"""What the handlers of the admin API read and change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from account_pool.admin import views
from account_pool.admin.actions import Actions
from account_pool.admin.decision_counter import DecisionCounter
from account_pool.admin.service import PoolService
from account_pool.admin.views import Json, Moment, Sums
from account_pool.core.state import AccountState


@dataclass(slots=True, eq=False, kw_only=True)
class AdminContext:
    """The pool, and what the proxy knows besides.

    Attributes:
        service: the pool and its sessions.
        actions: what changes them.
        decision_counter: the number of decisions by kind.
        counted: returns the sums of a counter: "usage" by (day, account, model), "resets" by
            (day, account, window).
        instance: a name of this run of the proxy.
        started_at: when it was started, monotonic seconds.
        ready: returns whether the proxy serves requests.
        accounts_file: returns the accounts file in use; None if there is none.
    """

    service: PoolService
    actions: Actions
    decision_counter: DecisionCounter
    counted: Callable[[str], Awaitable[Sums]]
    instance: str
    started_at: float
    ready: Callable[[], bool]
    accounts_file: Callable[[], Path | None]

    def source(self) -> Json:
        """Return the accounts file in use; null if the accounts come from the environment."""
        path = self.accounts_file()
        return {"accounts_file": None if path is None else str(path)}

    def moment(self) -> Moment:
        return Moment(self.service.now(), self.service.wall_now())

    async def extras(self) -> views.AccountExtras:
        """Return sessions and usage by account."""
        sums, moment = await self.counted("usage"), self.moment()
        return views.AccountExtras(
            sessions=views.sessions_by_account(self.service.sessions, moment.now),
            usage=views.usage_of_day(sums, views.day_of(moment.wall_now)),
        )

    async def account(self, state: AccountState) -> Json:
        """Return one account as JSON."""
        extras = await self.extras()
        return views.account_view(state, self.moment(), extras)
