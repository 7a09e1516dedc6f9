"""A book that is kept beside the accounts: where sessions live, who issued an id.

Remembers what of it the store knows, so that only what has changed is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from account_pool.store.store import Row, TableChanges

#: A line is written again when it was used so much later, seconds.
_STEP_S = 1.0

#: Lines that are being written, by key; None for one that is gone.
Taken = dict[str, Row | None]


@dataclass(slots=True, eq=False)
class Book:
    """Lines by key, as they are in memory and as they were written.

    Attributes:
        row: returns one line, None when it is gone.
        rows: returns all of them.
        take_over: puts lines of others into memory.
        forget: takes out lines that others have taken out.
        changed: keys of the lines to be written.
        written: lines as the store has them.
    """

    row: Callable[[str], Row | None]
    rows: Callable[[], list[Row]]
    take_over: Callable[[Iterable[Row]], None]
    forget: Callable[[Mapping[str, float]], None]
    changed: set[str] = field(default_factory=set)
    written: dict[str, Row] = field(default_factory=dict)

    def note_used(self) -> None:
        """Have the lines written that were used since, which nobody tells us."""
        for key, account, used_at in self.rows():
            known = self.written.get(key)
            if known is None or known[1] != account or used_at - known[2] > _STEP_S:
                self.changed.add(key)

    def adopt(self, rows: Iterable[Row]) -> None:
        """Take over what others have written."""
        rows = list(rows)
        self.take_over(rows)
        self.written.update((row[0], row) for row in rows if self.row(row[0]) is not None)

    def drop(self, gone: Mapping[str, float]) -> None:
        """Take out what others have taken out, unless it was used here since."""
        self.forget(gone)
        for key in gone:
            self.written.pop(key, None)

    def take(self) -> Taken:
        """Return what is to be written; `wrote` or `put_back` must follow."""
        taken = {key: self.row(key) for key in self.changed}
        self.changed.clear()
        return taken

    def lines(self, taken: Taken) -> TableChanges:
        """Return *taken* as the store wants it."""
        return TableChanges(
            rows=[row for row in taken.values() if row is not None],
            gone={
                key: self.written[key][2]
                for key, row in taken.items()
                if row is None and key in self.written
            },
        )

    def wrote(self, taken: Mapping[str, Row | None]) -> None:
        """The store has *taken* now."""
        for key, row in taken.items():
            if row is None:
                self.written.pop(key, None)
            else:
                self.written[key] = row

    def put_back(self, taken: Mapping[str, Row | None]) -> None:
        """What was taken could not be written.

        What came and went without ever being written need not be: a store may fail for
        days, and conversations come by the thousand.
        """
        self.changed.update(k for k, row in taken.items() if row is not None or k in self.written)
