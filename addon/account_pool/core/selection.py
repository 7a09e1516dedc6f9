"""Selection policies: in which order available accounts of one provider are tried.

A policy holds only accounts that are *ready* (enabled, with a credential, not cooling
as a whole, not full). What else depends on the request is checked by the pool while it
walks `ranked_for()`, so the first it takes is usually the only one looked at: the cost of
a choice does not grow with the number of accounts, nor of those that cool for its model.

Priority tiers come before every policy. Ties break by the order in which accounts were
added, unless a policy says otherwise.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from math import inf
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

    def ranked_for(self, model: str | None, now: float) -> Iterator[AccountState]:
        """Yield those that do not cool for *model*, best first, one perhaps twice.

        Not to be changed while it runs.
        """

    def chosen(self, state: AccountState) -> None:
        """Take note that *state* was given a request."""

    def skipped(self, state: AccountState) -> None:
        """Take note that the turn of *state* is over, used or not."""


def _cooling_until(state: AccountState, model: str | None, now: float) -> float:
    return state.cooling_until(model, now) if state.cooldowns else -inf


class _View:
    """The ready accounts as requests for one model see them: those that cool for it aside.

    They are in nobody's way until they return. Whatever else happens to an account, it is
    added again, and put aside again when it is found cooling.
    """

    def __init__(self, ready: Mapping[Rank, AccountState], model: str | None, now: float) -> None:
        self._model = model
        untils = [(_cooling_until(s, model, now), rank, s) for rank, s in ready.items()]
        self._free: SortedDict[Rank, AccountState] = SortedDict(
            (rank, s) for until, rank, s in untils if until <= now
        )
        #: (when it returns, position): account and the rank it had
        self._aside: SortedDict[tuple[float, int], tuple[AccountState, Rank]] = SortedDict(
            ((until, s.position), (s, rank)) for until, rank, s in untils if until > now
        )

    @property
    def needed(self) -> bool:
        return bool(self._aside)

    def add(self, rank: Rank, state: AccountState) -> None:
        self._free[rank] = state

    def discard(self, rank: Rank) -> None:
        # One that is aside is found out when it returns: its rank is another one then.
        self._free.pop(rank, None)

    def ranked(self, now: float) -> Iterator[AccountState]:
        self._take_back(now)
        at = 0
        while at < len(self._free):
            rank, state = self._free.peekitem(at)
            until = _cooling_until(state, self._model, now)
            if until <= now:
                yield state
                at += 1
            else:
                del self._free[rank]
                self._aside[until, state.position] = (state, rank)

    def _take_back(self, now: float) -> None:
        while self._aside and self._aside.peekitem(0)[0][0] <= now:
            _, (state, rank) = self._aside.popitem(0)
            if state.rank is rank:
                self._free[rank] = state


#: How many accounts that cool for its model a request may walk past before the model gets
#: a view, which takes some milliseconds for ten thousand accounts; and how many there are.
_MAX_PASSED = 16
_MAX_VIEWS = 8


class _Ranked:
    """A policy that is a sort key. Subclasses say which."""

    def __init__(self) -> None:
        self._ready: SortedDict[Rank, AccountState] = SortedDict()
        #: of the models for which many accounts cool, the oldest first
        self._views: dict[str | None, _View] = {}

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
        for view in self._views.values():
            view.add(rank, state)

    def discard(self, state: AccountState) -> None:
        if state.rank is not None:
            del self._ready[state.rank]
            for view in self._views.values():
                view.discard(state.rank)
            state.rank = None

    def ranked(self) -> Iterator[AccountState]:
        return iter(self._ready.values())

    def ranked_for(self, model: str | None, now: float) -> Iterator[AccountState]:
        view = self._views.get(model)
        if view is None:
            passed = 0
            for state in self._ready.values():
                if _cooling_until(state, model, now) <= now:
                    yield state
                    continue
                passed += 1
                if passed > _MAX_PASSED:
                    break
            else:
                return
            view = self._new_view(model, now)
        yield from view.ranked(now)

    def _new_view(self, model: str | None, now: float) -> _View:
        for known, view in list(self._views.items()):
            if not view.needed:
                del self._views[known]
        if len(self._views) == _MAX_VIEWS:
            del self._views[next(iter(self._views))]
        view = self._views[model] = _View(self._ready, model, now)
        return view

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


class _Ring:
    """The ready accounts of one tier in the order they were added, and the cursor."""

    __slots__ = ("cursor", "positions", "states", "turns")

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.states: list[AccountState] = []
        #: position of the account served last
        self.cursor = -1
        #: turns it has had in a row
        self.turns = 0


class RoundRobin:
    """The next candidate after the cursor, in the order accounts were added.

    Each tier has its own cursor. An account of weight *w* takes *w* turns before the
    cursor moves on. Plain sorted lists: accounts come and go rarely, choices do not.
    """

    def __init__(self) -> None:
        self._rings: SortedDict[int, _Ring] = SortedDict()

    def add(self, state: AccountState) -> None:
        ring = self._rings.get(state.account.priority)
        if ring is None:
            ring = self._rings[state.account.priority] = _Ring()
        at = bisect_left(ring.positions, state.position)
        # Its place never changes: nothing is done for one that is here.
        if at == len(ring.positions) or ring.positions[at] != state.position:
            ring.positions.insert(at, state.position)
            ring.states.insert(at, state)

    def discard(self, state: AccountState) -> None:
        ring = self._rings.get(state.account.priority)
        if ring is None:
            return
        at = bisect_left(ring.positions, state.position)
        if at < len(ring.positions) and ring.positions[at] == state.position:
            del ring.positions[at]
            del ring.states[at]

    def ranked(self) -> Iterator[AccountState]:
        for ring in self._rings.values():
            states, after = ring.states, bisect_right(ring.positions, ring.cursor)
            if after and ring.positions[after - 1] == ring.cursor:
                current = states[after - 1]
                if ring.turns < current.account.weight:
                    yield current
            for i in range(after, len(states)):
                yield states[i]
            for i in range(after):
                yield states[i]

    def ranked_for(self, model: str | None, now: float) -> Iterator[AccountState]:
        # The cursor has passed those that cool: no index is needed.
        for state in self.ranked():
            if _cooling_until(state, model, now) <= now:
                yield state

    def chosen(self, state: AccountState) -> None:
        ring = self._rings[state.account.priority]
        in_turn = ring.cursor == state.position and ring.turns < state.account.weight
        ring.turns = ring.turns + 1 if in_turn else 1
        ring.cursor = state.position

    def skipped(self, state: AccountState) -> None:
        ring = self._rings[state.account.priority]
        ring.cursor, ring.turns = state.position, state.account.weight


#: By the name used in `pool_strategy`.
POLICIES: dict[str, type[SelectionPolicy]] = {
    "round-robin": RoundRobin,
    "least-busy": LeastBusy,
    "least-recent": LeastRecent,
    "fill-first": FillFirst,
    "most-headroom": MostHeadroom,
}
