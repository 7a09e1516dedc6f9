"""The ready accounts of a policy, as requests for one model see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import inf

from sortedcontainers import SortedDict

from account_pool.core.state import AccountState, Rank


def cooling_until(state: AccountState, model: str | None, now: float) -> float:
    """Return until when (*state*, *model*) cools; in no time for most, which never have."""
    return state.cooling_until(model, now) if state.limited else -inf


class View:
    """The ready accounts as requests for one model see them.

    Those that cool for it are aside: they are in nobody's way until they return. Whatever
    else happens to an account, it is added again, and put aside again when it is found
    cooling. The others rank by what they have left for the model.
    """

    def __init__(
        self,
        ready: Iterable[AccountState],
        model: str | None,
        now: float,
        rank: Callable[[AccountState, str | None], Rank],
    ) -> None:
        self._model = model
        self._rank = rank
        ranked = [(rank(state, model), state) for state in ready]
        #: by position: the rank of each account, free or aside
        self._ranks = {state.position: own for own, state in ranked}
        #: positions of those that rank otherwise for other models
        self._narrow = {state.position for own, state in ranked if own != state.rank}
        untils = [(cooling_until(s, model, now), own, s) for own, s in ranked]
        self._free: SortedDict[Rank, AccountState] = SortedDict(
            (own, s) for until, own, s in untils if until <= now
        )
        #: (when it returns, position): account and the rank it had
        self._aside: SortedDict[tuple[float, int], tuple[AccountState, Rank]] = SortedDict(
            ((until, s.position), (s, own)) for until, own, s in untils if until > now
        )

    @property
    def needed(self) -> bool:
        return bool(self._aside or self._narrow)

    def add(self, state: AccountState) -> None:
        rank = self._ranks[state.position] = self._rank(state, self._model)
        self._free[rank] = state
        if rank != state.rank:
            self._narrow.add(state.position)

    def discard(self, state: AccountState) -> None:
        # One that is aside is found out when it returns: its rank is another one then.
        self._free.pop(self._ranks.pop(state.position), None)
        self._narrow.discard(state.position)

    def ranked(self, now: float) -> Iterator[AccountState]:
        self._take_back(now)
        at = 0
        while at < len(self._free):
            rank, state = self._free.peekitem(at)
            until = cooling_until(state, self._model, now)
            if until <= now:
                yield state
                at += 1
            else:
                del self._free[rank]
                self._aside[until, state.position] = (state, rank)

    def _take_back(self, now: float) -> None:
        while self._aside and self._aside.peekitem(0)[0][0] <= now:
            _, (state, rank) = self._aside.popitem(0)
            if self._ranks.get(state.position) is rank:
                self._free[rank] = state
