"""Selection policies: in which order available accounts of one provider are tried.

A policy holds only accounts that are *ready* (enabled, with a credential, not cooling
as a whole, not full). What depends on the request (model, kind) is checked by the pool
while it walks `ranked()`, so the first it takes is usually the only one looked at: the
cost of a choice does not grow with the number of accounts.

Priority tiers come before every policy. Ties break by the order in which accounts were
added, unless a policy says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from sortedcontainers import SortedDict

from account_pool.core.state import AccountState, Rank


class SelectionPolicy(Protocol):
    """Keeps ready accounts in the order it prefers."""

    def add(self, state: AccountState) -> None:
        """Take in a ready account, or one whose rank may have changed."""

    def discard(self, state: AccountState) -> None:
        """Forget an account; no harm if it is not here."""

    def ranked(self) -> Iterator[AccountState]:
        """Yield ready accounts, best first. Not to be changed while it runs."""

    def chosen(self, state: AccountState) -> None:
        """Take note that *state* was given a request."""

    def skipped(self, state: AccountState) -> None:
        """Take note that the turn of *state* is over, used or not."""


class _Ranked:
    """A policy that is a sort key. Subclasses say which."""

    def __init__(self) -> None:
        self._ready: SortedDict[Rank, AccountState] = SortedDict()

    def rank(self, state: AccountState) -> Rank:
        raise NotImplementedError

    def add(self, state: AccountState) -> None:
        self.discard(state)
        rank = (
            state.account.priority,
            state.passed_over,
            *self.rank(state),
            state.position,
        )
        state.rank = rank
        self._ready[rank] = state

    def discard(self, state: AccountState) -> None:
        if state.rank is not None:
            del self._ready[state.rank]
            state.rank = None

    def ranked(self) -> Iterator[AccountState]:
        return iter(self._ready.values())

    def chosen(self, state: AccountState) -> None:
        """Nothing to note: the rank is made of the account's own state."""

    skipped = chosen


class LeastBusy(_Ranked):
    """Fewest in flight (per weight); ties to the least recently used."""

    def rank(self, state: AccountState) -> Rank:
        return (state.in_flight / state.account.weight, state.last_used)


class LeastRecent(_Ranked):
    """Least recently used."""

    def rank(self, state: AccountState) -> Rank:
        return (state.last_used,)


class MostHeadroom(_Ranked):
    """Largest known remaining share, then soonest reset, then least recently used."""

    def rank(self, state: AccountState) -> Rank:
        return (-state.headroom, state.headroom_reset_at, state.last_used)


class FillFirst(_Ranked):
    """Lowest priority number, then label: one account until it cannot serve."""

    def rank(self, state: AccountState) -> Rank:
        return (state.account.label,)


class RoundRobin:
    """The next candidate after the cursor, in the order accounts were added.

    Each tier has its own cursor. An account of weight *w* takes *w* turns before the
    cursor moves on.
    """

    def __init__(self) -> None:
        self._ready: SortedDict[tuple[int, int], AccountState] = SortedDict()
        #: priority -> position of the account served last
        self._cursor: dict[int, int] = {}
        #: priority -> turns the account at the cursor has had
        self._turns: dict[int, int] = {}

    def add(self, state: AccountState) -> None:
        # Its place never changes: nothing is done for one that is here.
        self._ready.setdefault((state.account.priority, state.position), state)

    def discard(self, state: AccountState) -> None:
        self._ready.pop((state.account.priority, state.position), None)

    def ranked(self) -> Iterator[AccountState]:
        ready = self._ready
        if not ready:
            return
        priority: int | None = ready.peekitem(0)[0][0]
        while priority is not None:
            yield from self._tier(priority)
            after = next(ready.irange((priority + 1,)), None)
            priority = None if after is None else after[0]

    def _tier(self, priority: int) -> Iterator[AccountState]:
        ready = self._ready
        cursor = self._cursor.get(priority, -1)
        current = ready.get((priority, cursor))
        if current is not None and self._turns[priority] < current.account.weight:
            yield current
        for key in ready.irange((priority, cursor + 1), (priority + 1,), (True, False)):
            yield ready[key]
        for key in ready.irange((priority,), (priority, cursor)):
            yield ready[key]

    def chosen(self, state: AccountState) -> None:
        priority, position = state.account.priority, state.position
        current = self._cursor.get(priority) == position
        in_turn = current and self._turns[priority] < state.account.weight
        self._turns[priority] = self._turns[priority] + 1 if in_turn else 1
        self._cursor[priority] = position

    def skipped(self, state: AccountState) -> None:
        self._cursor[state.account.priority] = state.position
        self._turns[state.account.priority] = state.account.weight


#: By the name used in `pool_strategy`.
POLICIES: dict[str, type[SelectionPolicy]] = {
    "round-robin": RoundRobin,
    "least-busy": LeastBusy,
    "least-recent": LeastRecent,
    "fill-first": FillFirst,
    "most-headroom": MostHeadroom,
}
