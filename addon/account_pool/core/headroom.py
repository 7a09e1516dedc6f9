"""How much of its allowances an account has left: windows, and their summary.

A provider counts what an account uses in windows: five hours, a week, a minute of one
model. Each response reports some of them, and a report holds until the window is reset.
`headroom_parsing.py` reads the reports; here is what the pool makes of them. An unknown
window counts as full: nothing speaks against an account without reports.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple

from account_pool.core.cooldown import Cooldown, covers
from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import Cause, OutcomeClass, Scope

#: A window longer than this is a long one, seconds: no request waits for its reset.
LONG_S = 3600.0
#: Used above 98 %: what is left of a long window is for the conversations that live there.
SPENT_SHARE = 0.02
#: How long the report of a window is valid that has neither a reset nor a length, seconds.
#: Vendors who leave both out count per minute (Azure OpenAI).
UNNAMED_S = 60.0
#: The same, at most, with a length but no reset: an account that is avoided because of it
#: gets another chance within the hour, and its next response reports again.
NO_RESET_S = 3600.0
#: Windows kept per account. Clients choose the names of models, so there must be a bound.
MAX_WINDOWS = 128
#: Windows that count requests.
REQUEST_WINDOWS = ("requests", "requests-minute", "requests-hour", "requests-day")
#: Windows that fit in a column.
MAX_SHOWN = 4


class Window(NamedTuple):
    """One allowance of an account, as a response reported it.

    Not a dataclass: some are made for every response, and a frozen one costs four times as
    much. Times are monotonic seconds (seconds since the epoch in rows of the store).

    Attributes:
        name: short, unique for a model: `5h`, `7d`, `tokens`, `requests-day`.
        share: the share that remains, 0 to 1.
        told_at: when it was reported.
        model: the model, or a glob of models, that it covers; None: all.
        reset_at: when it is full again; infinity if the response does not say.
        length_s: its length, None if the response does not say.
        limit, remaining: in its own unit, None if only a share was reported.
    """

    name: str
    share: float
    told_at: float
    model: str | None = None
    reset_at: float = inf
    length_s: float | None = None
    limit: float | None = None
    remaining: float | None = None

    @property
    def expires_at(self) -> float:
        """When it stops being valid."""
        if self.reset_at < inf:
            return self.reset_at
        return self.told_at + min(self.length_s or UNNAMED_S, NO_RESET_S)

    @property
    def long(self) -> bool:
        """Whether it is longer than an hour; a reset further away proves it too."""
        if self.length_s is not None:
            return self.length_s > LONG_S
        return LONG_S < self.reset_at - self.told_at < inf

    def later(self, seconds: float) -> Window:
        """Return it by a clock that is *seconds* ahead."""
        return self._replace(told_at=self.told_at + seconds, reset_at=self.reset_at + seconds)


#: What identifies a window: its name, and the models it covers.
Key = tuple[str, str | None]
#: When a window expires, and its key: what None would not sort with is behind a flag.
_Expiry = tuple[float, str, bool, str]


class HeadroomSnapshot(NamedTuple):
    """What is known of one account's headroom. All but the windows follows from them.

    Attributes:
        windows: by name and models, those first that were told of longest ago.
        share, reset_at: of the tightest window that covers every model; 1 and infinity
            if none is known.
        spent: the models covered by long windows of which less than SPENT_SHARE is left
            (None: the whole account).
        changes_at: when the first window expires.
        spent_changes_at: when the first of the spent windows expires.
        expiries: the windows in the order in which they expire.
    """

    windows: Mapping[Key, Window] = MappingProxyType({})
    share: float = 1.0
    reset_at: float = inf
    spent: frozenset[str | None] = frozenset()
    changes_at: float = inf
    spent_changes_at: float = inf
    expiries: Sequence[_Expiry] = ()

    @classmethod
    def of(cls, windows: Iterable[Window], now: float) -> HeadroomSnapshot:
        """Return the snapshot of *windows*; of two with one key the last counts."""
        told = {(window.name, window.model): window for window in windows}
        return UNKNOWN.updated(sorted(told.values(), key=attrgetter("told_at")), now)

    @property
    def narrow(self) -> list[Window]:
        """The windows that cover some models only."""
        return [window for window in self.windows.values() if window.model is not None]

    def resets(self, now: float) -> list[Window]:
        """Return the long windows that were reset by *now*, as they were told last."""
        reset: list[Window] = []
        for expires_at, name, narrow, model in self.expiries:
            if expires_at > now:
                break
            window = self.windows[name, model if narrow else None]
            if window.reset_at < inf and window.long:
                reset.append(window)
        return reset

    def at(self, now: float) -> HeadroomSnapshot:
        """Return it without the windows that have expired at *now*."""
        return self if now < self.changes_at else self.updated((), now)

    def updated(self, windows: Iterable[Window], now: float) -> HeadroomSnapshot:
        """Return it with the *windows* that a response has reported.

        Every response comes here, perhaps with a hundred models' windows known: only what
        has changed is looked at.
        """
        known, expiries = dict(self.windows), list(self.expiries)
        changed: list[Window] = []
        for window in windows:
            key = window[0], window[3]  # name and model
            if key in known:
                changed.append(_drop(key, known, expiries))
            known[key] = window
            insort(expiries, _expiry(window))
            changed.append(window)
        while expiries and expiries[0][0] <= now:
            _, name, narrow, model = expiries[0]
            changed.append(_drop((name, model if narrow else None), known, expiries))
        while len(known) > MAX_WINDOWS:
            changed.append(_drop(next(iter(known)), known, expiries))
        if not known:
            return UNKNOWN
        _, share, reset_at, spent, _, spent_changes_at, _ = self
        if None in [window.model for window in changed]:
            share, reset_at = _tightest(w for w in known.values() if w.model is None)
        if spent or [w for w in changed if w.share < SPENT_SHARE and w.long]:
            over = [w for w in known.values() if w.share < SPENT_SHARE and w.long]
            spent = frozenset([window.model for window in over])
            spent_changes_at = min([window.expires_at for window in over], default=inf)
        changes_at = expiries[0][0]
        return HeadroomSnapshot(
            known, share, reset_at, spent, changes_at, spent_changes_at, expiries
        )

    def tightest(self, model: str | None) -> tuple[float, float]:
        """Return (share, reset) of the tightest window that a request for *model* falls under."""
        covering = [w for w in self.narrow if covers(w.model, model)]
        return _tightest(covering, self.share, self.reset_at)

    def long_reset(self, model: str | None) -> float:
        """Return when the longest of the long windows for *model* is reset; infinity if unknown.

        A window of hours is a part of its week, and lost with it: the longest counts.
        """
        told = [w for w in self.windows.values() if w.long and w.reset_at < inf]
        covering = [w for w in told if covers(w.model, model)]
        longest = max(covering, key=lambda w: w.length_s or w.reset_at - w.told_at, default=None)
        return inf if longest is None else longest.reset_at

    def is_spent(self, model: str | None) -> bool:
        """Return whether new conversations with *model* should begin on another account."""
        return bool(self.spent) and any(covers(covered, model) for covered in self.spent)


#: Of an account without reports.
UNKNOWN = HeadroomSnapshot()


def _expiry(window: Window) -> _Expiry:
    return window.expires_at, window.name, window.model is not None, window.model or ""


def _drop(key: Key, known: dict[Key, Window], expiries: list[_Expiry]) -> Window:
    window = known.pop(key)
    del expiries[bisect_left(expiries, _expiry(window))]
    return window


def _tightest(
    windows: Iterable[Window], share: float = 1.0, reset_at: float = inf
) -> tuple[float, float]:
    """Return (share, reset) of the tightest window; of equals the one with the latest reset.

    *share*, *reset_at*: of the tightest so far. A full window counts as an unknown one.
    """
    for window in windows:
        if window.share < share or (window.share == share and window.reset_at > reset_at):
            share, reset_at = window.share, window.reset_at
    return share, reset_at


def tightest_window(windows: Iterable[Window], now: float) -> Window | None:
    """Return the window with the least left, whatever it covers; None if none is known.

    Of equals the one that is reset last, as in `HeadroomSnapshot.tightest`; then one of the
    whole account.
    """
    known = [w for w in windows if now < w.expires_at]
    return min(
        known,
        key=lambda w: (w.share, -w.reset_at, w.model is not None, w.model or "", w.name),
        default=None,
    )


def shown(windows: Iterable[Window], now: float) -> str:
    """Return what remains, for people: `5h 62% 7d 81%`; "" if nothing is known.

    Windows of the whole account come first, each kind from the shortest to the longest;
    beyond MAX_SHOWN only their number.
    """
    known = [w for w in windows if now < w.expires_at]
    known.sort(key=lambda w: (w.model is not None, w.model or "", w.length_s or 0.0, w.name))
    parts = [_shown(window) for window in known[:MAX_SHOWN]]
    if len(known) > MAX_SHOWN:
        parts.append(f"+{len(known) - MAX_SHOWN}")
    return " ".join(parts)


def _shown(window: Window) -> str:
    # Rounded down: "0%" is said of what is spent, and "100%" only of what is whole.
    percent = f"{window.name} {int(window.share * 100 + 1e-9)}%"
    return percent if window.model in (None, window.name) else f"{window.model}: {percent}"


# -- the reserve: the share of a window that its owner keeps. Below it an account is no candidate
# until the window is reset, whoever else can serve. What is unknown or expired excludes nobody.

#: Windows of a plan are named by their length, which vendors change: 5h, 7d, 30d.
_BY_LENGTH = LazyPattern(r"[1-9][0-9]{0,2}[mhd]")


def is_window(name: str, known: Collection[str]) -> bool:
    """Say whether a provider that reports the windows *known* may report *name*."""
    if name in known:
        return True
    return any(map(_BY_LENGTH.fullmatch, known)) and _BY_LENGTH.fullmatch(name) is not None


def reserved(
    reserve: Mapping[str, float], headroom: HeadroomSnapshot, now: float
) -> tuple[Cooldown, ...]:
    """Return what keeps an account with this *reserve* out of use, and until when.

    Args:
        reserve: share to be left, 0 to 1, by name of a window.
    """
    return tuple(
        Cooldown(
            model=window.model,
            since=window.told_at,
            until=window.expires_at,
            streak=0,
            cause=Cause(
                signal=f"reserve: {window.share:.0%} of {window.name} left, {kept:.0%} kept",
                cls=OutcomeClass.QUOTA,
                scope=Scope.ACCOUNT if window.model is None else Scope.MODEL,
                hinted=window.reset_at < inf,
            ),
        )
        for window in headroom.windows.values()
        if (kept := reserve.get(window.name)) is not None
        and window.share < kept
        and now < window.expires_at
    )
