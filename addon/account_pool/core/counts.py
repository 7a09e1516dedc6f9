"""Numbers that only grow, by key: what was served, what it took.

Proxies that share a store add to the same numbers, so what is kept here is only what is
not written yet. The store has the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
    """One book of counters.

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
