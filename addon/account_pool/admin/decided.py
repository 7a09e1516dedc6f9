"""How often what was decided: the pool keeps the last decisions only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from account_pool.core.decision import Decision


@dataclass(slots=True, eq=False)
class Decided:
    """How often what was decided since the proxy started.

    Attributes:
        counts: by (provider, kind).
    """

    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    _last: int = 0

    def note(self, decision: Decision) -> None:
        """Count *decision*, unless it is told again because it has changed."""
        if decision.number > self._last:
            self._last = decision.number
            self.counts[decision.provider, decision.kind.value] += 1
