"""How much traffic an account takes at once that has just been given it.

The herd of an account that became limited would throttle the next one as well: where it
goes, concurrency starts at one and grows (docs/storms.md). The same holds
for an account that returns from a cooldown, where one request tries first. Counted are
requests nobody has answered yet: an answer's head tells whether there is a limit, its
body may stream for minutes.

Decides from values and the times it is given; knows neither pool nor accounts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

#: Time in which concurrency grows by one, seconds, also when nobody has answered.
STEP_S = 0.25
#: Longest time an account is treated with care, seconds.
RAMP_S = 30.0
#: How long the first request after a cooldown is alone while it is not answered, seconds.
#: Refusals come at once; a good answer may take as long as the model thinks.
ALONE_S = 1.0


@dataclass(slots=True, eq=False)
class Ramp:
    """The growing number of requests that may wait for their answers at once.

    Attributes:
        grows_from: when time began, or begins, to add to it, monotonic seconds.
        answered: good answers so far, each of which added one.
        unanswered: requests sent under it whose answers have not begun.
    """

    grows_from: float
    answered: int = 0
    unanswered: int = 0

    @classmethod
    def after_switch(cls, now: float) -> Ramp:
        """Return that of an account which takes over from one that became limited."""
        return cls(now)

    @classmethod
    def half_open(cls, now: float) -> Ramp:
        """Return that of an account which returns: one request tries, then it grows."""
        return cls(now + ALONE_S)

    def allowed(self, now: float) -> int:
        """Return how many requests may be unanswered at *now*."""
        # Rounded up a little: at the moment `admits_at` names, the step is made.
        steps = int((now - self.grows_from) / STEP_S + 1e-4) if now > self.grows_from else 0
        return 1 + self.answered + steps

    def admits(self, now: float) -> bool:
        """Say whether one more request may be sent."""
        return (
            self.unanswered <= self.answered
            or self.unanswered < self.allowed(now)
            or self.over(now)
        )

    def admits_at(self) -> float:
        """Return when time alone lets one more request go; minus infinity if it may now."""
        missing = self.unanswered - self.answered
        if missing <= 0:
            return -inf
        return self.grows_from + min(missing * STEP_S, RAMP_S)

    def over(self, now: float) -> bool:
        return now >= self.grows_from + RAMP_S

    def sent(self) -> None:
        """One more request waits for its answer."""
        self.unanswered += 1

    def done(self, *, good: bool, now: float) -> None:
        """One of them has its answer, or ended without; *good*: it was no refusal."""
        self.unanswered -= 1
        if good:
            self.answered += 1
            # Whoever tried first has come through: the others may follow.
            self.grows_from = min(self.grows_from, now)
