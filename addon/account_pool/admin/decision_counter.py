"""The number of decisions by kind: the pool itself keeps only the last ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from account_pool.core.decisions import Decision


@dataclass(slots=True, eq=False)
class DecisionCounter:
    """Counts decisions since the proxy started.

    Attributes:
        counts: decisions by (provider, kind).
    """

    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    _last: int = 0

    def note(self, decision: Decision) -> None:
        """Count *decision*, unless it was counted before and has only changed since."""
        if decision.number > self._last:
            self._last = decision.number
            self.counts[decision.provider, decision.kind.value] += 1
