"""What was decided about accounts and requests: the last 1,000 decisions.

`changes.py` makes the records of what became of an account, `story.py` those of what
became of a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from account_pool.core.account import AccountKey
from account_pool.core.decision import By, Decision, Kind, one_line

#: Decisions that are kept.
KEPT = 1000

#: What a decision that lasts is about.
_Subject = tuple[Kind, AccountKey | None, str | None]
_LASTING = frozenset({Kind.COOLDOWN, Kind.DISABLE, Kind.SUSPECT})


class Decisions:
    """The last decisions, the newest first.

    Attributes:
        made: how many there were, those that are no longer kept included.
        ahead: returns what the wall clock is ahead of the monotonic one, seconds.
        failed: told what a listener has raised. The decision stands, whoever heard of it.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.made = 0
        self.ahead: Callable[[], float] = lambda: 0.0
        self.failed: Callable[[Exception], object] = lambda _error: None
        self._kept = kept
        self._records: dict[int, Decision] = {}
        #: the cooldown and disabling records that were made last, by what they are about
        self._lasting: dict[_Subject, int] = {}
        self._listeners: list[Callable[[Decision], None]] = []

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Decision]:
        return reversed(self._records.values())

    def subscribe(self, listener: Callable[[Decision], None]) -> Callable[[], None]:
        """Call *listener* with every decision, and again (same number) when it changes.

        It changes when it ends before its time, or when another refusal says the same.
        *listener* must be quick. Returns the function that ends it.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def add(self, decision: Decision) -> Decision:
        """Number *decision* and keep it; the oldest goes."""
        self.made += 1
        decision = decision.recorded(self.made, decision.at + self.ahead())
        self._records[decision.number] = decision
        if decision.kind in _LASTING:
            self._lasting[_subject(decision)] = decision.number
        if len(self._records) > self._kept:
            self._forget(self._records.pop(self.made - self._kept))
        self._tell(decision)
        return decision

    def update(self, decision: Decision) -> None:
        """Put *decision* in the place of the one with its number, if that is still kept."""
        if decision.number in self._records:
            self._records[decision.number] = decision
            if decision.ended_at is not None:
                self._forget(decision)
            self._tell(decision)

    def end(self, number: int, by: By, now: float) -> None:
        """What *number* decided has come to its end, if it is still kept."""
        decision = self._records.get(number)
        if decision is not None and decision.ended_at is None:
            self.update(replace(decision, ended_at=now, released_by=by))

    def lasting(
        self, kind: Kind, account: AccountKey, covers: str | None, now: float
    ) -> Decision | None:
        """Return the cooldown or disabling of *account* that is in force, if it is kept."""
        covers = None if covers is None else one_line(covers)
        number = self._lasting.get((kind, account, covers))
        decision = None if number is None else self._records.get(number)
        return None if decision is None or decision.is_over(now) else decision

    def all_lasting(self, account: AccountKey, now: float) -> list[Decision]:
        """Return every cooldown and disabling of *account* that is in force and kept."""
        of_account = [n for (_, about, _), n in self._lasting.items() if about == account]
        return [self._records[n] for n in of_account if not self._records[n].is_over(now)]

    def _forget(self, decision: Decision) -> None:
        """Nothing refers to *decision* as the one in force any more."""
        if self._lasting.get(subject := _subject(decision)) == decision.number:
            del self._lasting[subject]

    def _tell(self, decision: Decision) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(decision)
            except Exception as e:
                self.failed(e)


def _subject(decision: Decision) -> _Subject:
    return decision.kind, decision.account, decision.covers
