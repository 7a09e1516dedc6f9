"""Notices that the proxy did not run for a while: the machine slept, or its process was stopped.

No system tells a process of it in time, and which clocks go on meanwhile differs from one
to the next. But somebody looks every few seconds here, and before each request that would
use a connection again: where two looks are far apart, nothing ran in between. Two clocks
are compared, because each has its blind spot. One goes on in a suspend and cannot be set,
but stands still with a virtual machine that is paused; the wall clock is put right
afterwards, but may be set by anybody. What is done about it is harmless where it was only
set, so that either will do.
"""

from __future__ import annotations

from typing import NamedTuple

#: Looks that are so far apart had a gap between them, seconds: more than a busy machine
#: delays the look that is due every five, less than it takes until connections are
#: forgotten on their way.
GAP_S = 30.0


class Gap(NamedTuple):
    """A time in which nothing ran.

    Attributes:
        seconds: how long it was.
        slept: false where only the wall clock has it, which may have been set.
    """

    seconds: float
    slept: bool


class Watch:
    """Compares each look with the one before.

    Args:
        up: a clock that goes on in a suspend, seconds.
        wall: the wall clock, seconds.
    """

    def __init__(self, up: float, wall: float) -> None:
        self._up, self._wall = up, wall

    def look(self, up: float, wall: float) -> Gap | None:
        """Return the gap since the last look; None: there was none."""
        slept, ahead = up - self._up, wall - self._wall
        self._up, self._wall = up, wall
        if slept >= GAP_S:
            return Gap(slept, slept=True)
        return Gap(ahead, slept=False) if ahead >= GAP_S else None
