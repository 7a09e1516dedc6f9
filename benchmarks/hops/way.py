"""What is counted in a recording: files, changes of file, calls. Values in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

#: `[file, function]` where a function is entered, None where one is left.
Entry = Sequence[str] | None


@dataclass(slots=True)
class Visits:
    """How often control came into one file: from another, and at all."""

    changes: int = 0
    calls: int = 0


@dataclass(frozen=True, slots=True)
class Way:
    """The way of control through the package (what counts: `benchmarks.hops`).

    Attributes:
        visits: by file, in the order in which they are entered first.
        calls: depth on the stack of the package's frames, file, function; in order.
    """

    visits: dict[str, Visits] = field(default_factory=dict)
    calls: list[tuple[int, str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Way:
        """Return the way in what the recorder has sent."""
        way = cls()
        depth, last = 0, ""
        for entry in entries:
            if entry is None:
                depth -= 1
                continue
            file, function = entry
            way.calls.append((depth, file, function))
            visits = way.visits.setdefault(file, Visits())
            visits.calls += 1
            visits.changes += file != last
            depth, last = depth + 1, file
        return way

    @property
    def files(self) -> int:
        return len(self.visits)

    @property
    def changes(self) -> int:
        return sum(visits.changes for visits in self.visits.values())
