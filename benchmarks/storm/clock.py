"""Simulated time: what happens when, in order."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Protocol


class Time(Protocol):
    """What an agent needs of a clock, simulated or real. `now` is in seconds."""

    @property
    def now(self) -> float: ...

    def after(self, seconds: float, act: Callable[[], None]) -> None: ...


class Clock:
    """A queue of things to do. `now` is in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Have *act* called at *when*, after what was planned for that moment before."""
        heappush(self._due, (max(when, self.now), next(self._order), act))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.at(self.now + seconds, act)

    def run(self, until: float) -> None:
        """Let time pass up to *until*."""
        while self._due and self._due[0][0] <= until:
            self.now, _, act = heappop(self._due)
            act()
        self.now = until
