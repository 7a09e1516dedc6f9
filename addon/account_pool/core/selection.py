"""Selection policies: in which order available accounts of one provider are tried.

A policy holds only accounts that are *ready* (enabled, with a credential, not cooling
as a whole, not full). What else depends on the request is checked by the pool while it
walks `ranked_for()`, so the first it takes is usually the only one looked at: the cost of
a choice does not grow with the number of accounts, nor of those that cool for its model.

An account that has refused what may be its own fault (a verdict) comes after all others,
whatever its tier. So does, before those, one that has used up nearly all of a long window:
what is left is for the conversations that live there. Priority tiers come before
every policy. Ties break by the order in which accounts were added, unless a policy says
otherwise.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from typing import Any

from msgspec import Struct
from sortedcontainers import SortedDict

from account_pool.core.cooldown import covers
from account_pool.core.headroom import REQUEST_WINDOWS
from account_pool.core.state import AccountState, Rank


class SelectionPolicy:
    """Keeps ready accounts in the order it prefers."""

    #: how much each account has left decides its rank
    by_headroom = False
    #: so do the requests it was given, or has in flight
    by_use = True

    def add(self, state: AccountState) -> None:
        """Take in a ready account, or one whose rank may have changed."""
        raise NotImplementedError

    def discard(self, state: AccountState) -> None:
        """Forget an account; no harm if it is not here."""
        raise NotImplementedError

    def ranked(self) -> Iterator[AccountState]:
        """Yield ready accounts, best first. Not to be changed while it runs."""
        raise NotImplementedError

    def ranked_for(self, model: str | None, now: float) -> Iterator[AccountState]:
        """Yield those that do not cool for *model*, best first, one perhaps twice.

        Not to be changed while it runs.
        """
        raise NotImplementedError

    def chosen(self, state: AccountState) -> None:
        """Take note that *state* was given a request."""

    def skipped(self, state: AccountState) -> None:
        """Take note that the turn of *state* is over, used or not."""

    def changes_at(self, state: AccountState) -> float:
        """Return when time alone changes the rank of *state*; infinity for never."""
        return state.headroom.spent_changes_at


#: How many accounts that cool for its model a request may walk past before the model gets
#: a view, which takes some milliseconds for ten thousand accounts; and how many there are.
_MAX_PASSED = 16
_MAX_VIEWS = 8


def _cooling_until(state: AccountState, model: str | None, now: float) -> float:
    """Return until when (*state*, *model*) cools; in no time for most, which never have."""
    limited = state.cooldowns or state.reserved
    return state.cooling_until(model, now) if limited else -inf


class _View:
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
        untils = [(_cooling_until(s, model, now), own, s) for own, s in ranked]
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
            if self._ranks.get(state.position) is rank:
                self._free[rank] = state


class _Ranked(SelectionPolicy):
    """A policy that is a sort key. Subclasses say which."""

    def __init__(self) -> None:
        self._ready: SortedDict[Rank, AccountState] = SortedDict()
        #: of the models for which accounts rank otherwise, or many cool; the oldest first
        self._views: dict[str | None, _View] = {}
        #: by position: models for which an account ranks otherwise; and how many do, by model
        self._narrow_of: dict[int, frozenset[str]] = {}
        self._narrow: dict[str, int] = {}

    def rank(self, state: AccountState, model: str | None) -> Rank:
        """Return where *state* stands for requests for *model* (None: for all)."""
        raise NotImplementedError

    def narrow(self, state: AccountState) -> frozenset[str]:
        """Return the models (or globs) for which *state* may rank otherwise than for all."""
        spent = state.headroom.spent
        return frozenset(filter(None, spent)) if spent else frozenset()

    def _rank(self, state: AccountState, model: str | None) -> Rank:
        return (
            # Most have nothing against them.
            state.is_suspect(model) if state.verdicts else state.doubtful,
            state.headroom.is_spent(model),
            state.account.priority,
            state.passed_over,
            *self.rank(state, model),
            state.position,
        )

    def add(self, state: AccountState) -> None:
        self.discard(state)
        rank = state.rank = self._rank(state, None)
        self._ready[rank] = state
        for view in self._views.values():
            view.add(state)
        narrow = self.narrow(state)
        if state.verdicts:
            narrow = narrow.union(filter(None, state.verdicts))
        if narrow:
            self._narrow_of[state.position] = narrow
            for covered in narrow:
                self._narrow[covered] = self._narrow.get(covered, 0) + 1

    def discard(self, state: AccountState) -> None:
        if state.rank is None:
            return
        del self._ready[state.rank]
        for view in self._views.values():
            view.discard(state)
        for covered in self._narrow_of.pop(state.position, ()):
            self._narrow[covered] -= 1
            if not self._narrow[covered]:
                del self._narrow[covered]
        state.rank = None

    def ranked(self) -> Iterator[AccountState]:
        return iter(self._ready.values())

    def ranked_for(self, model: str | None, now: float) -> Iterator[AccountState]:
        view = self._views.get(model)
        if view is None and not (self._narrow and self._is_narrow(model)):
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
        yield from (view or self._new_view(model, now)).ranked(now)

    def _is_narrow(self, model: str | None) -> bool:
        """Say whether an account may rank otherwise for *model*."""
        if model in self._narrow:
            return True
        return any("*" in covered and covers(covered, model) for covered in self._narrow)

    def _new_view(self, model: str | None, now: float) -> _View:
        _make_room(self._views)
        view = self._views[model] = _View(self._ready.values(), model, now, self._rank)
        return view


def _make_room(views: dict[str | None, Any]) -> None:
    """Forget views that are not needed any more, or else the oldest, if there are too many."""
    for known, view in list(views.items()):
        if not view.needed:
            del views[known]
    if len(views) == _MAX_VIEWS:
        del views[next(iter(views))]


class LeastBusy(_Ranked):
    """Fewest in flight (per weight), on other proxies too; ties to the least recently used."""

    def rank(self, state: AccountState, model: str | None) -> Rank:
        return ((state.in_flight + state.in_flight_remote) / state.account.weight, state.last_used)


class LeastRecent(_Ranked):
    """Least recently used."""

    def rank(self, state: AccountState, model: str | None) -> Rank:
        return (state.last_used,)


class _ByHeadroom(_Ranked):
    """One of what accounts have left, which may be another thing for each model."""

    by_headroom = True

    def narrow(self, state: AccountState) -> frozenset[str]:
        return frozenset([str(window.model) for window in state.headroom.narrow])

    def changes_at(self, state: AccountState) -> float:
        return state.headroom.changes_at


class MostHeadroom(_ByHeadroom):
    """Largest known remaining share, then soonest reset, then least recently used.

    The share is that of the tightest window that the request falls under.
    """

    def rank(self, state: AccountState, model: str | None) -> Rank:
        share, reset_at = state.headroom.tightest(model)
        return (-share, reset_at, state.last_used)


class SoonestReset(_ByHeadroom):
    """Soonest reset of the longest long window, then least recently used.

    What is not used by then is lost. A window is forgotten when it is reset, so that no choice
    rests on what was told of the one before. One request then asks the account, before all
    others: its answer tells of the next window. What does not tell of any comes last.
    """

    def rank(self, state: AccountState, model: str | None) -> Rank:
        reset_at = state.headroom.long_reset(model)
        asked = reset_at < inf or state.forgotten_at <= state.asked_at > -inf
        return (asked, reset_at, state.last_used)


#: Requests in flight on an account of `fill-first` while another of its priority has fewer: all
#: that are out when it reaches its limit are refused (`python -m benchmarks.storm`).
MOST_AT_ONCE = 6


class FillFirst(_Ranked):
    """Lowest priority number, then label: one account until it cannot serve, or is busy.

    Busy: it has MOST_AT_ONCE requests in flight, and the next one fewer than as many again.
    """

    def rank(self, state: AccountState, model: str | None) -> Rank:
        in_flight = state.in_flight + state.in_flight_remote
        return (in_flight // MOST_AT_ONCE, state.account.label)


class _Cursor(Struct):
    """Whose turn it is in a ring: the position served last, and its turns in a row."""

    position: int = -1
    turns: int = 0


class _Rings:
    """Accounts by their rank, each rank in the order they were added."""

    def __init__(self) -> None:
        self._by_rank: SortedDict[Rank, tuple[list[int], list[AccountState]]] = SortedDict()

    def __iter__(self) -> Iterator[AccountState]:
        for _, states in self._by_rank.values():
            yield from states

    def add(self, state: AccountState) -> None:
        positions, states = self._by_rank.setdefault(state.rank, ([], []))
        at = bisect_left(positions, state.position)
        positions.insert(at, state.position)
        states.insert(at, state)

    def discard(self, state: AccountState) -> None:
        positions, states = self._by_rank[state.rank]
        at = bisect_left(positions, state.position)
        del positions[at]
        del states[at]

    def ranked(self, cursors: Mapping[Rank, _Cursor]) -> Iterator[AccountState]:
        """Yield each ring from its cursor on. Not to be changed while it runs."""
        for rank, (positions, states) in self._by_rank.items():
            cursor = cursors[rank]
            after = bisect_right(positions, cursor.position)
            if after and positions[after - 1] == cursor.position:
                current = states[after - 1]
                if cursor.turns < current.account.weight:
                    yield current
            for i in range(after, len(states)):
                yield states[i]
            for i in range(after):
                yield states[i]


class _RingView:
    """The rings as requests for one model see them: those that cool for it are aside."""

    def __init__(self, ready: Iterable[AccountState], model: str | None, now: float) -> None:
        self._model = model
        self._rings = _Rings()
        #: (when it returns, position), and the former by position
        self._aside: SortedDict[tuple[float, int], AccountState] = SortedDict()
        self._until: dict[int, float] = {}
        for state in ready:
            until = _cooling_until(state, model, now)
            if until > now:
                self._put_aside(state, until)
            else:
                self._rings.add(state)

    @property
    def needed(self) -> bool:
        return bool(self._aside)

    def add(self, state: AccountState) -> None:
        self._rings.add(state)

    def discard(self, state: AccountState) -> None:
        until = self._until.pop(state.position, None)
        if until is None:
            self._rings.discard(state)
        else:
            del self._aside[until, state.position]

    def look_again(self, state: AccountState) -> None:
        """Something about *state* has changed: it may not cool any more."""
        if state.position in self._until:
            self.discard(state)
            self.add(state)

    def ranked(self, cursors: Mapping[Rank, _Cursor], now: float) -> Iterator[AccountState]:
        while self._aside and self._aside.peekitem(0)[0][0] <= now:
            self.look_again(self._aside.peekitem(0)[1])
        # The one whose turn it is may come twice.
        cooling: dict[AccountState, float] = {}
        try:
            for state in self._rings.ranked(cursors):
                until = _cooling_until(state, self._model, now)
                if until <= now:
                    yield state
                else:
                    cooling[state] = until
        finally:
            for state, until in cooling.items():
                self._rings.discard(state)
                self._put_aside(state, until)

    def _put_aside(self, state: AccountState, until: float) -> None:
        self._until[state.position] = until
        self._aside[until, state.position] = state


class RoundRobin(SelectionPolicy):
    """The next candidate after the cursor, in the order accounts were added.

    Each tier has its own cursor, and so have the nearly spent accounts of each. An account
    of weight *w* takes *w* turns before the cursor moves on. Plain sorted lists: accounts
    come and go rarely, choices do not.
    """

    by_use = False

    def __init__(self) -> None:
        self._rings = _Rings()
        self._cursors: defaultdict[Rank, _Cursor] = defaultdict(_Cursor)
        #: of the models for which many cool; the oldest first
        self._views: dict[str | None, _RingView] = {}

    def add(self, state: AccountState) -> None:
        suspect = state.is_suspect(None) if state.verdicts else state.doubtful
        rank = (suspect, None in state.headroom.spent, state.account.priority)
        # Its place changes rarely: little is done for one that is there.
        if state.rank == rank:
            for view in self._views.values():
                view.look_again(state)
            return
        self.discard(state)
        state.rank = rank
        self._rings.add(state)
        for view in self._views.values():
            view.add(state)

    def discard(self, state: AccountState) -> None:
        if state.rank is None:
            return
        self._rings.discard(state)
        for view in self._views.values():
            view.discard(state)
        state.rank = None

    def ranked(self) -> Iterator[AccountState]:
        return self._rings.ranked(self._cursors)

    def ranked_for(self, model: str | None, now: float) -> Iterator[AccountState]:
        later: dict[tuple[bool, bool], list[AccountState]] = {}
        for state in self._ranked_for(model, now):
            if not (state.verdicts or state.doubtful or state.headroom.spent):
                yield state
                continue
            place = state.is_suspect(model), state.headroom.is_spent(model)
            if any(place):
                later.setdefault(place, []).append(state)
            else:
                yield state
        for place in sorted(later):
            yield from later[place]

    def _ranked_for(self, model: str | None, now: float) -> Iterator[AccountState]:
        view = self._views.get(model)
        if view is None:
            passed = 0
            for state in self.ranked():
                if _cooling_until(state, model, now) <= now:
                    yield state
                    continue
                passed += 1
                if passed > _MAX_PASSED:
                    break
            else:
                return
            _make_room(self._views)
            view = self._views[model] = _RingView(self._rings, model, now)
        yield from view.ranked(self._cursors, now)

    def chosen(self, state: AccountState) -> None:
        cursor = self._cursor(state)
        in_turn = cursor.position == state.position and cursor.turns < state.account.weight
        cursor.turns = cursor.turns + 1 if in_turn else 1
        cursor.position = state.position

    def skipped(self, state: AccountState) -> None:
        cursor = self._cursor(state)
        cursor.position, cursor.turns = state.position, state.account.weight

    def _cursor(self, state: AccountState) -> _Cursor:
        assert state.rank is not None
        return self._cursors[state.rank]


#: By the name used in `pool_strategy`.
POLICIES: dict[str, type[SelectionPolicy]] = {
    "round-robin": RoundRobin,
    "least-busy": LeastBusy,
    "least-recent": LeastRecent,
    "fill-first": FillFirst,
    "most-headroom": MostHeadroom,
    "soonest-reset": SoonestReset,
}


def has_few_left(state: AccountState, model: str | None, now: float) -> bool:
    """Say whether *state* has as many requests in flight as it last said it takes for *model*.

    Those that were in flight when it said so it may have counted or not: one more may be
    refused.
    """
    windows = state.headroom.windows
    in_flight = state.in_flight + state.in_flight_remote
    for name in REQUEST_WINDOWS:
        window = windows.get((name, model)) or windows.get((name, None))
        if (
            window is not None
            and window.remaining is not None
            and window.remaining <= in_flight
            and now < window.expires_at
        ):
            return True
    return False
