"""Which proxy tells the owner of what, and whose turn something is, in the state database."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import TYPE_CHECKING

from account_pool.store.database import Database, with_room

if TYPE_CHECKING:
    from account_pool.core.notifications import Row, Subject, Verdict


class SqliteNotices:
    """The `NoticeStore` of a state database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @with_room
    def note(
        self, begun: Collection[Subject], ended: Collection[Subject], *, wall_now: float
    ) -> dict[Subject, Verdict]:
        from account_pool.core.notifications import note  # noqa: PLC0415 - rarely wanted

        with self._database.writing() as connection:
            verdicts, changed = note(self._notices(connection), begun, ended, wall_now)
            connection.executemany(
                "INSERT OR REPLACE INTO notices VALUES (?, ?, ?, ?, ?)",
                ((*subject, *row) for subject, row in changed.items()),
            )
        return verdicts

    @with_room
    def take_turn(self, name: str, every_s: float, *, wall_now: float) -> bool:
        with self._database.writing() as connection:
            # One further ahead than any could be was taken before the clock was set back.
            taken = connection.execute(
                "INSERT INTO turns VALUES (:name, :now) ON CONFLICT (name) DO UPDATE "
                "SET at = :now WHERE abs(at - :now) >= :every",
                {"name": name, "now": wall_now, "every": every_s},
            )
            return taken.rowcount == 1

    def noted(self) -> list[Subject]:
        with self._database.reading() as connection:
            rows = self._notices(connection)
        return [subject for subject, row in rows.items() if row.standing]

    def _notices(self, connection: sqlite3.Connection) -> dict[Subject, Row]:
        from account_pool.core.notifications import Event, Row, Subject  # noqa: PLC0415 - as above

        rows = connection.execute("SELECT event, about, detail, standing, at FROM notices")
        known = {event.value for event in Event}  # a newer version may have more
        return {
            Subject(Event(event), about, detail): Row(bool(standing), at)
            for event, about, detail, standing, at in rows
            if event in known
        }
