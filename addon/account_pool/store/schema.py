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
    (
        # What is known of each account (`provider/label`); `write` is the number of the
        # write that changed it last. Causes are JSON; times in seconds since the epoch.
        """CREATE TABLE accounts (
            account TEXT PRIMARY KEY,
            first_seen REAL NOT NULL,
            last_seen REAL NOT NULL,
            served INTEGER NOT NULL,
            owner TEXT,
            headroom REAL NOT NULL,
            headroom_reset_at REAL,
            disabled TEXT,
            disabled_at REAL,
            refused TEXT,
            write INTEGER NOT NULL
        )""",
        "CREATE INDEX accounts_by_write ON accounts (write)",
        # Model and owner are JSON text; no model: the whole account.
        """CREATE TABLE cooldowns (
            account TEXT NOT NULL,
            model TEXT,
            since REAL NOT NULL,
            until REAL NOT NULL,
            streak INTEGER NOT NULL,
            cause TEXT NOT NULL
        )""",
        "CREATE INDEX cooldowns_by_account ON cooldowns (account)",
        # The number and the time of the last write of an account; one row.
        "CREATE TABLE writes (write INTEGER NOT NULL, wall_at REAL NOT NULL)",
        "INSERT INTO writes VALUES (0, 0)",
        # The account a key of a book belongs to: of a session, of an id that was issued.
        """CREATE TABLE bindings (
            book TEXT NOT NULL,
            key TEXT NOT NULL,
            account TEXT NOT NULL,
            used_at REAL NOT NULL,
            PRIMARY KEY (book, key)
        )""",
    ),
)
