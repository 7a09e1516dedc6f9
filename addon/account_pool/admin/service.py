"""What the admin API needs of the proxy."""

from __future__ import annotations

from typing import Protocol

from account_pool.core.instruments import Measured
from account_pool.core.pool import Pool
from account_pool.core.sessions import Sessions
from account_pool.core.usage_totals import Resets, Usages


class PoolService(Protocol):
    """A running pool, as `proxy.service.Service` is one.

    Attributes:
        pool: its accounts.
        sessions: its conversations.
        measured: how long requests took, and their results.
        usages: what each account has served.
        resets: what was left of windows when they were reset.
        stopping: whether the proxy shuts down.
    """

    pool: Pool
    sessions: Sessions
    measured: Measured
    usages: Usages
    resets: Resets
    stopping: bool

    def now(self) -> float:
        """Return monotonic seconds."""

    def wall_now(self) -> float:
        """Return seconds since the epoch."""

    def warnings(self) -> list[str]:
        """Return what looks wrong with the accounts and stops nothing, for people."""

    def state_problem(self) -> str | None:
        """Return why what is learnt is kept in memory only; None if it is not."""
