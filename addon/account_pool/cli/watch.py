"""Whether the proxy needs help: dead, hung, or well. Pure; time is passed in.

A dead proxy serves nobody, so it is started at once. A hung one may still carry answers
that stream: it is ended only when nothing was in flight, or when the grace has passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

#: Seconds between two looks at a proxy that is well, and at one that is not.
LOOK_S, LOOK_CLOSER_S = 2.0, 0.5
#: A probe or two may be lost on a machine that is busy or just woke up.
MISSES = 3
#: Seconds a silent proxy is left alone while requests were in flight.
GRACE_S = 60.0
#: Seconds before the second start in a row; doubles up to the last.
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
#: Starts in a row that did not help.
MAX_STARTS = 10
#: After so many seconds of answering, the next start is a first one again.
STEADY_S = 60.0


class Step(StrEnum):
    """What to do now."""

    NOTHING = "nothing"
    #: it is dead: start another
    START = "start"
    #: it is hung: end it, then start another
    REPLACE = "replace"
    #: starting it again and again does not help
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look shows.

    Attributes:
        alive: the process is there.
        busy: requests in flight, None when it did not answer.
    """

    alive: bool
    busy: int | None = None


class Watch:
    """Decides, look by look, for one proxy and those started in its place.

    Attributes:
        starts: how often in a row it was started without being well for STEADY_S.
    """

    def __init__(self, now: float, *, busy: int = 0) -> None:
        """Begin at *now*; *busy* requests may be in flight until it says otherwise."""
        self.starts = 0
        self._well_since: float | None = None
        self._silent_since: float | None = None
        self._misses = 0
        self._busy = busy
        self._start_at = now

    def look(self, seen: Seen, now: float) -> Step:
        """Return what to do; *now* in monotonic seconds. After a step it is called again."""
        if seen.alive and seen.busy is not None:
            self._answered(seen.busy, now)
            return Step.NOTHING
        if seen.alive and not self._hung(now):
            return Step.NOTHING
        return self._begin(Step.REPLACE if seen.alive else Step.START, now)

    def look_again_in_s(self) -> float:
        """Return how long to wait before the next look."""
        return LOOK_S if self._well_since is not None and not self._misses else LOOK_CLOSER_S

    def _answered(self, busy: int, now: float) -> None:
        self._busy, self._misses, self._silent_since = busy, 0, None
        if self._well_since is None:
            self._well_since = now
        if now - self._well_since >= STEADY_S:
            self.starts = 0

    def _hung(self, now: float) -> bool:
        self._misses += 1
        if self._silent_since is None:
            self._silent_since = now
        if self._busy and now - self._silent_since < GRACE_S:
            return False
        return self._misses >= MISSES

    def _begin(self, step: Step, now: float) -> Step:
        if self.starts >= MAX_STARTS:
            return Step.GIVE_UP
        if now < self._start_at:
            return Step.NOTHING
        wait_s = min(FIRST_WAIT_S * 2.0**self.starts, LONGEST_WAIT_S)
        self.starts += 1
        self._start_at = now + wait_s
        self._well_since = self._silent_since = None
        self._misses = self._busy = 0
        return step
