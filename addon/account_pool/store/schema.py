"""The tables of the store, as the list of steps that make them.

A step is never changed once it was released; what is new is a step more. The number of
steps done is the version of a file.
"""

from __future__ import annotations

#: What versions that do not know it can do without: no step, so that they go on with the file.
#: Done each time a file is opened.
BESIDE = (
    # What was ended other than by time or a response (`Endings` in core/cooldown.py).
    """CREATE TABLE IF NOT EXISTS endings (
        account TEXT PRIMARY KEY,
        disabling REAL,
        benches REAL,
        cooldowns REAL
    )""",
    # An account may have a hundred cooldowns, of which one ends.
    "DROP INDEX IF EXISTS cooldowns_by_account",
    "CREATE INDEX IF NOT EXISTS cooldowns_by_model ON cooldowns (account, model)",
)
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
        # The account that a key belongs to: of a session, or of an id that was issued.
        """CREATE TABLE bindings (
            book TEXT NOT NULL,
            key TEXT NOT NULL,
            account TEXT NOT NULL,
            used_at REAL NOT NULL,
            PRIMARY KEY (book, key)
        )""",
    ),
    (
        # The proxies that use this file, and how many requests each has in flight. One
        # that has not been seen for a while is dead, and its requests no longer count.
        """CREATE TABLE proxies (
            proxy TEXT PRIMARY KEY,
            host TEXT NOT NULL,
            pid INTEGER NOT NULL,
            started_at REAL NOT NULL,
            seen_at REAL NOT NULL
        )""",
        """CREATE TABLE in_flight (
            proxy TEXT NOT NULL,
            account TEXT NOT NULL,
            requests INTEGER NOT NULL,
            PRIMARY KEY (proxy, account)
        )""",
        # The number of the write that changed a line last, as of an account.
        "ALTER TABLE bindings ADD COLUMN write INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX bindings_by_write ON bindings (write)",
        # Fingerprint of how the credential of an account was written down.
        "ALTER TABLE accounts ADD COLUMN source TEXT NOT NULL DEFAULT ''",
        # Sums, of all proxies together; the key is a JSON list of texts.
        """CREATE TABLE counts (
            name TEXT NOT NULL,
            key TEXT NOT NULL,
            field TEXT NOT NULL,
            amount NUMERIC NOT NULL,
            added_at REAL NOT NULL,
            PRIMARY KEY (name, key, field)
        )""",
    ),
    (
        # What is left of each allowance: a list in JSON in place of one share.
        """CREATE TABLE accounts_with_windows (
            account TEXT PRIMARY KEY,
            first_seen REAL NOT NULL,
            last_seen REAL NOT NULL,
            served INTEGER NOT NULL,
            owner TEXT,
            disabled TEXT,
            disabled_at REAL,
            refused TEXT,
            write INTEGER NOT NULL,
            source TEXT NOT NULL,
            windows TEXT NOT NULL
        )""",
        "INSERT INTO accounts_with_windows SELECT account, first_seen, last_seen, served, owner, "
        "disabled, disabled_at, refused, write, source, '[]' FROM accounts",
        "DROP TABLE accounts",
        "ALTER TABLE accounts_with_windows RENAME TO accounts",
        "CREATE INDEX accounts_by_write ON accounts (write)",
    ),
    (
        # What the store's clock is ahead of the time that a run of a machine has lasted, and
        # how late it was when that was noted last (`database.py`).
        """CREATE TABLE clock (
            run TEXT PRIMARY KEY,
            ahead REAL NOT NULL,
            at REAL NOT NULL,
            wall REAL NOT NULL
        )""",
        # By which claim tokens were stored; the number of the last claim, and the digest of
        # the refresh token that was sent and not answered (core/claims.py).
        "ALTER TABLE tokens ADD COLUMN fence INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE claims ADD COLUMN fence INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE claims ADD COLUMN sent TEXT NOT NULL DEFAULT ''",
    ),
    (
        # When a line was taken out: it stays for a while, so that others learn of it.
        "ALTER TABLE bindings ADD COLUMN gone_at REAL",
        # The last batch of counts of each proxy: one that comes again is not added again.
        """CREATE TABLE batches (
            proxy TEXT PRIMARY KEY,
            number INTEGER NOT NULL,
            at REAL NOT NULL
        )""",
    ),
    (
        # How the proxies divide `max_concurrent` of an account (core/shares.py).
        """CREATE TABLE shares (
            proxy TEXT NOT NULL,
            account TEXT NOT NULL,
            slots INTEGER NOT NULL,
            wants INTEGER NOT NULL,
            asked_at REAL NOT NULL,
            PRIMARY KEY (account, proxy)
        )""",
    ),
    (
        # What the owner was notified of (core/notifications.py).
        """CREATE TABLE notices (
            event TEXT NOT NULL,
            about TEXT NOT NULL,
            detail TEXT NOT NULL,
            standing INTEGER NOT NULL,
            at REAL NOT NULL,
            PRIMARY KEY (event, about, detail)
        )""",
    ),
    (
        # A row about each request that has ended (core/request_rows.py). Times in seconds: `at`
        # by the wall clock of its proxy, `added_at` by the clock of the store. A number is
        # never given twice.
        """CREATE TABLE requests (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            added_at REAL NOT NULL,
            at REAL NOT NULL,
            provider TEXT NOT NULL,
            account TEXT,
            model TEXT,
            endpoint TEXT NOT NULL,
            tool TEXT NOT NULL,
            session TEXT,
            status TEXT NOT NULL,
            http_status INTEGER,
            attempts INTEGER NOT NULL,
            failovers INTEGER NOT NULL,
            wait_s REAL NOT NULL,
            first_byte_s REAL,
            duration_s REAL NOT NULL,
            counted INTEGER NOT NULL,
            input_tokens INTEGER,
            cached_tokens INTEGER,
            cache_write_tokens INTEGER,
            output_tokens INTEGER,
            reasoning_tokens INTEGER,
            cost_usd REAL,
            covered INTEGER NOT NULL,
            premium_requests REAL
        )""",
        "CREATE INDEX requests_by_time ON requests (at)",
    ),
    (
        # Where the price of a request is from; NULL: it was not looked for yet.
        "ALTER TABLE requests ADD COLUMN price TEXT",
        "CREATE INDEX requests_unpriced ON requests (number) WHERE price IS NULL",
    ),
    (
        # What one of all proxies does, and not again for a while: who, and when it was taken.
        "CREATE TABLE turns (name TEXT PRIMARY KEY, at REAL NOT NULL)",
    ),
    (
        # What each proxy says of itself (core/fleet.py), and when it did: it outlives the row of
        # `proxies`, so that one that has stopped is missed.
        """CREATE TABLE proxy_reports (
            proxy TEXT PRIMARY KEY,
            about TEXT NOT NULL,
            seen_at REAL NOT NULL
        )""",
    ),
    (
        # What was decided (core/decision_history.py): `origin` and `own` identify a decision,
        # `change` is the number of its last change. The last 1,000 are kept.
        """CREATE TABLE decisions (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            change INTEGER NOT NULL,
            origin TEXT NOT NULL,
            own INTEGER NOT NULL,
            proxy TEXT NOT NULL,
            record TEXT NOT NULL,
            UNIQUE (origin, own)
        )""",
        "CREATE INDEX decisions_by_change ON decisions (change)",
        """CREATE TRIGGER decisions_are_capped AFTER INSERT ON decisions BEGIN
            DELETE FROM decisions WHERE number <= NEW.number - 1000;
        END""",
        # The name of the log, and the number of its last change; one row.
        "CREATE TABLE decision_log (log TEXT NOT NULL, change INTEGER NOT NULL)",
        "INSERT INTO decision_log VALUES (lower(hex(randomblob(8))), 0)",
    ),
    (
        # Logins whose newest tokens are in an engine since (store/fleet/fleet_store.py).
        """CREATE TABLE moved_logins (
            family TEXT PRIMARY KEY,
            engine TEXT NOT NULL,
            at REAL NOT NULL
        )""",
    ),
)
