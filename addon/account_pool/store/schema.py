"""The tables of the store, as the list of steps that make them.

A step is never changed once it was released; what is new is a step more. The number of
steps done is the version of a file.
"""

from __future__ import annotations

#: Statements by step, in order.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # The newest tokens of each login; times in seconds since the epoch.
        """CREATE TABLE tokens (
            family TEXT PRIMARY KEY,
            access_token TEXT,
            refresh_token TEXT NOT NULL,
            expires_at REAL,
            refreshed_at REAL,
            companions TEXT NOT NULL
        )""",
        # Who alone may refresh a login, and until when.
        """CREATE TABLE claims (
            family TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            until REAL NOT NULL
        )""",
    ),
)
