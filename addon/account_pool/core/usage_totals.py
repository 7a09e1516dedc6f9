"""What each account has served: requests and tokens, by model and day.

Days are those of UTC: they begin at the same moment for every proxy that shares a store,
whatever its clock shows its owner. Those proxies add to the same sums, which the store has:
`Counts` is what one of them has not written yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from account_pool.core.account import AccountKey
from account_pool.core.usage import Usage

#: What is counted, from the wide to the narrow: ("2026-08-01", "openai/work", "gpt-5").
CountKey = tuple[str, ...]
#: Amounts by name ("requests", "input_tokens"), by key.
Counted = dict[CountKey, dict[str, float]]

#: Keys that wait to be written at most. Clients choose the names of models, and a store
#: may fail for long.
MAX_WAITING = 10_000


def _ignore() -> None:
    """Nobody wants to know."""


@dataclass(slots=True, eq=False)
class Counts:
    """Numbers that only grow, by key, of which the store has the sums.

    Attributes:
        changed: called after each change; quick, raises nothing.
        waiting: what was counted and is not written yet.
    """

    changed: Callable[[], None] = _ignore
    waiting: Counted = field(default_factory=dict)

    def add(self, key: CountKey, amounts: Mapping[str, float]) -> None:
        """Count *amounts* more of *key*. One key too many is not counted."""
        if key not in self.waiting and len(self.waiting) >= MAX_WAITING:
            return
        add_to(self.waiting, {key: amounts})
        self.changed()

    def take(self) -> Counted:
        """Return what waits, which is then whoever's who takes it."""
        taken, self.waiting = self.waiting, {}
        return taken

    def put_back(self, taken: Counted) -> None:
        """What was taken could not be written."""
        add_to(self.waiting, taken)


def add_to(sums: Counted, more: Mapping[CountKey, Mapping[str, float]]) -> None:
    """Add *more* to *sums*, number by number."""
    for key, amounts in more.items():
        known = sums.setdefault(key, {})
        for name, amount in amounts.items():
            known[name] = known.get(name, 0) + amount


#: Models of one account that are counted one by one. Clients choose the names.
MAX_MODELS = 200
#: Windows that are counted at most. Clients choose the names of models, which are in theirs.
MAX_WINDOWS = 2000
#: What the others count as.
OTHER = "other"
#: What a request counts as that names no model.
UNNAMED = "-"
#: Longest name of a model that is kept.
_MAX_NAME = 128
_DAY_S = 86_400

#: Adds amounts, by name, to a day, an account and a model.
Book = Callable[[tuple[str, str, str], Mapping[str, float]], None]


def _keep_nothing(_key: tuple[str, str, str], _amounts: Mapping[str, float]) -> None:
    """Nothing is kept."""


@dataclass(slots=True)
class Tally:
    """What was served. Tokens as in `core.usage.Usage`.

    Attributes:
        requests: good answers, those that were cut off included; turns of a WebSocket.
    """

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def add(self, more: Usage) -> None:
        """Add the tokens of one answer."""
        self.input_tokens += more.input_tokens
        self.cached_tokens += more.cached_tokens
        self.output_tokens += more.output_tokens
        self.reasoning_tokens += more.reasoning_tokens


class Resets:
    """Counts resets of long windows, and what was left of them.

    Attributes:
        totals: since this proxy started, by account and window: how many, and the sum of the
            shares that were left.
    """

    def __init__(self, book: Book = _keep_nothing) -> None:
        """Every count also goes to *book*, which keeps it by day."""
        self.totals: dict[tuple[str, str], tuple[int, float]] = {}
        self._book = book

    def count(self, key: AccountKey, window: str, share: float, wall_now: float) -> None:
        """Count a reset of *window*, of which *share* (0 to 1) was left."""
        of = (str(key), window[:_MAX_NAME])
        known = self.totals.get(of)
        if known is None and len(self.totals) >= MAX_WINDOWS:
            return
        count, left = known or (0, 0.0)
        self.totals[of] = (count + 1, left + share)
        day = datetime.fromtimestamp(wall_now, UTC).date().isoformat()
        self._book((day, *of), {"resets": 1, "left": share})


class Usages:
    """Counts what accounts serve.

    Attributes:
        totals: since this proxy started, by account and model.
    """

    def __init__(self, book: Book = _keep_nothing) -> None:
        """Every count also goes to *book*, which keeps it by day."""
        self.totals: dict[tuple[str, str], Tally] = {}
        self._book = book
        self._models: dict[str, set[str]] = {}
        self._day = (0, "")

    def count(
        self,
        key: AccountKey,
        model: str | None,
        usage: Usage | None,
        wall_now: float,
        *,
        requests: int = 1,
    ) -> None:
        """Count *requests* answers of *key*, and what they took as far as it is told."""
        account = str(key)
        name = self._name(account, model)
        total = self.totals.get((account, name))
        if total is None:
            total = self.totals[account, name] = Tally()
        amounts: dict[str, float] = {"requests": requests}
        total.requests += requests
        if usage is not None:
            amounts.update(usage._asdict())
            total.add(usage)
        self._book((self._today(wall_now), account, name), amounts)

    def _name(self, account: str, model: str | None) -> str:
        """Return what *model* counts as."""
        if not model:
            return UNNAMED
        name = model[:_MAX_NAME]
        known = self._models.setdefault(account, set())
        if name not in known:
            if len(known) >= MAX_MODELS:
                return OTHER
            known.add(name)
        return name

    def _today(self, wall_now: float) -> str:
        number = int(wall_now // _DAY_S)
        if number != self._day[0]:
            self._day = (number, datetime.fromtimestamp(wall_now, UTC).date().isoformat())
        return self._day[1]
