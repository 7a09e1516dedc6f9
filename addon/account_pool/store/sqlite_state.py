"""What a pool has learnt, in the state database, shared by all proxies that use the file.

Each account and each row of a table has the number of the write that changed it last, so
that what others have changed is found without reading everything.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from account_pool.core.account import AccountKey
from account_pool.core.request_rows import RequestRow
from account_pool.core.shares import ME, Ask, Share, grant
from account_pool.core.snapshot import AccountSnapshot, PoolSnapshot, merge, of_another
from account_pool.core.usage import Counted
from account_pool.store import sqlite_counts, sqlite_requests
from account_pool.store.database import IN_MEMORY, Database, with_room
from account_pool.store.machine import Clock, Process
from account_pool.store.sqlite_accounts import names, read_accounts, write_account
from account_pool.store.sqlite_notices import SqliteNotices
from account_pool.store.sqlite_requests import SqliteRequests
from account_pool.store.store import (
    GRACE_S,
    News,
    Numbered,
    Row,
    StoreError,
    TableChanges,
)

#: Another proxy writes for some milliseconds; no request waits for these rows. Seconds.
BUSY_TIMEOUT_S = 2.0
#: How long unused rows are kept, seconds: accounts that no proxy has (they may be configured
#: again), the tables by name, and sums. A session is bound for half an hour; vendors keep what
#: a pin names for a month (OpenAI: responses, 30 days).
ACCOUNT_KEPT_S = 90 * 86400.0
TABLE_KEPT_S = {"sessions": 86400.0, "pins": 30 * 86400.0}
#: How long it is known that a line was taken out, and which counts of a proxy were added
#: last, seconds: longer than another proxy leaves a store alone that failed.
GONE_KEPT_S = 3600.0
BATCH_KEPT_S = 7 * 86400.0
#: Times of a line, from clock to clock and back, differ by less than this, seconds.
ROUNDED_S = 0.01
COUNTS_KEPT_S = 400 * 86400.0


class SqliteState:
    """A `StateStore` in a file that only its owner may read.

    What was written is not lost with the process, but may be with the machine's power
    (`synchronous=NORMAL`): it is written several times a second, and can be learnt anew.

    Attributes:
        requests: rows about requests that have ended.
        notices: what the proxies have told the owner of.
    """

    def __init__(self, path: Path, *, clock: Clock | None = None) -> None:
        """Open *path*. Raises StoreError. *clock* is for tests."""
        self._database = Database(
            path, busy_timeout_s=BUSY_TIMEOUT_S, synchronous="NORMAL", clock=clock
        )
        self.requests = SqliteRequests(self._database)
        self.notices = SqliteNotices(self._database)
        self._me = Process.this().owner(uuid4().hex)
        #: what the file and our pool agreed on last
        self._base: dict[AccountKey, AccountSnapshot] = {}
        #: what the file has, as long as others write nothing
        self._stored: dict[AccountKey, AccountSnapshot] = {}
        self._stored_version: int | None = None
        #: of the last write we know of; None: look at everything
        self._data_version: int | None = None
        self._seen = 0

    @with_room
    def exchange(
        self,
        mine: Iterable[AccountSnapshot],
        gone: Collection[AccountKey] = (),
        *,
        wall_now: float,
        lines: Mapping[str, TableChanges] | None = None,
        counts: Mapping[str, Counted] | None = None,
        batch: Numbered | None = None,
        in_flight: Mapping[AccountKey, int] | None = None,
        requests: Sequence[RequestRow] = (),
    ) -> PoolSnapshot:
        mine = list(mine)
        for key in gone:
            self._base.pop(key, None)
        with self._database.writing() as connection:
            last = connection.execute("SELECT write, wall_at FROM writes").fetchone()
            if last is None:
                raise self._database.damaged()
            write, wall_at = last
            # What no other connection has written since is as we left it.
            version = connection.execute("PRAGMA data_version").fetchone()[0]
            # None is known if this fails: it may have been written all the same.
            known, self._stored = self._stored, {}
            if version != self._stored_version:
                known = {}
            self._stored_version = version
            found = {a.key: known[a.key] for a in mine if a.key in known}
            if unread := [a.key for a in mine if a.key not in known]:
                found |= self._read(connection, unread)
            merged = [merge(self._base.get(a.key), a, found.get(a.key)) for a in mine]
            new = [account for account in merged if self._is_new(account, found.get(account.key))]
            for account in new:
                write_account(connection, account, write + 1, wall_now, found.get(account.key))
            for table, changes in (lines or {}).items():
                _write_lines(connection, table, changes, write + 1, wall_now)
            is_new = batch is None or sqlite_counts.note_batch(connection, batch, wall_now)
            for name, added in (counts or {}).items() if is_new else ():
                sqlite_counts.add(connection, name, added, wall_now)
            if requests and is_new:
                sqlite_requests.add(connection, requests, wall_now)
            self._note_in_flight(connection, in_flight or {})
            if new or lines:
                connection.execute(
                    "UPDATE writes SET write = ?, wall_at = ?", (write + 1, wall_now)
                )
        if (new or lines) and write == self._seen:
            self._seen = write + 1  # no other proxy has written since: no news to us
        replaced = frozenset(
            a.key for a in mine if a.key not in self._base and of_another(a, found.get(a.key))
        )
        self._base.update((account.key, account) for account in merged)
        written = {account.key: account for account in new}
        self._stored = known | found | written
        return PoolSnapshot(accounts=tuple(merged), wall_at=wall_at, replaced=replaced)

    def now(self) -> float | None:
        return None if self._database.path == IN_MEMORY else self._database.now()

    def changed(self, *, wall_now: float) -> News:
        self._database.check_place()
        with self._database.reading() as connection:
            # Differs when another connection has written; asking costs no read of the file.
            data_version = connection.execute("PRAGMA data_version").fetchone()[0]
        if data_version == self._data_version:
            return News()
        with self._database.looking() as connection:
            since = (self._seen,)
            accounts = connection.execute(
                "SELECT account, write FROM accounts WHERE write > ?", since
            ).fetchall()
            bound = connection.execute(
                "SELECT book, key, account, used_at, gone_at, write FROM bindings "
                "WHERE write > ? ORDER BY used_at",
                since,
            ).fetchall()
            in_flight_remote = connection.execute(
                "SELECT account, sum(requests) FROM in_flight JOIN proxies USING (proxy) "
                "WHERE proxy != ? AND abs(seen_at - ?) < ? GROUP BY account",
                (self._me, wall_now, GRACE_S),
            ).fetchall()
            proxies = connection.execute(
                "SELECT proxy FROM proxies WHERE proxy != ?", (self._me,)
            ).fetchall()
            shares = connection.execute(
                "SELECT account, proxy, slots, wants, asked_at FROM shares WHERE account IN "
                "(SELECT account FROM shares WHERE proxy != ? AND wants > slots)",
                (self._me,),
            ).fetchall()
        lines: dict[str, list[Row]] = {}
        gone: dict[str, dict[str, float]] = {}
        for table, key, account, used_at, gone_at, _ in bound:
            if gone_at is None:
                lines.setdefault(table, []).append((key, account, used_at))
            else:
                gone.setdefault(table, {})[key] = used_at
        news = News(
            accounts=self._keys(account for account, _ in accounts),
            lines=lines,
            gone=gone,
            in_flight_remote={
                self._key(account): requests for account, requests in in_flight_remote
            },
            shares=self._shares(shares) or None,
            proxies=tuple(proxy for (proxy,) in proxies),
        )
        self._keys({account for of_book in lines.values() for _, account, _ in of_book})
        self._data_version = data_version
        self._seen = max((row[-1] for row in (*accounts, *bound)), default=self._seen)
        return news

    @with_room
    def beat(self, in_flight: Mapping[AccountKey, int], *, wall_now: float) -> bool:
        with self._database.writing() as connection:
            known = connection.execute("SELECT 1 FROM proxies WHERE proxy = ?", (self._me,))
            is_known = known.fetchone() is not None
            # One further ahead than any could be was seen before the clock was set back.
            dead = connection.execute(
                "SELECT proxy FROM proxies WHERE proxy != ? AND abs(seen_at - ?) >= ?",
                (self._me, wall_now, GRACE_S),
            ).fetchall()
            _reap(connection, [proxy for (proxy,) in dead])
            connection.execute(
                "INSERT INTO proxies VALUES (:me, :host, :pid, :now, :now) "
                "ON CONFLICT (proxy) DO UPDATE SET seen_at = :now",
                {"me": self._me, "host": socket.gethostname(), "pid": os.getpid(), "now": wall_now},
            )
            connection.execute("DELETE FROM in_flight WHERE proxy = ?", (self._me,))
            self._database.note_time(connection)
            self._note_in_flight(connection, in_flight)
        # Who is dead has written nothing: look, whether or not others have.
        self._data_version = None
        return is_known

    @with_room
    def share(self, asks: Mapping[AccountKey, Ask], *, wall_now: float) -> dict[AccountKey, Share]:
        granted: dict[AccountKey, Share] = {}
        with self._database.writing() as connection:
            for key, ask in asks.items():
                rows = connection.execute(
                    "SELECT account, proxy, slots, wants, asked_at FROM shares WHERE account = ?",
                    (str(key),),
                ).fetchall()
                granted[key] = mine = grant(ask, self._shares(rows).get(key, {}), wall_now)
                if ask.limit:
                    connection.execute(
                        "INSERT OR REPLACE INTO shares VALUES (?, ?, ?, ?, ?)",
                        (self._me, str(key), *mine),
                    )
                else:
                    connection.execute(
                        "DELETE FROM shares WHERE proxy = ? AND account = ?", (self._me, str(key))
                    )
        return granted

    def _shares(
        self, rows: Iterable[tuple[str, str, int, int, float]]
    ) -> dict[AccountKey, dict[str, Share]]:
        shares: dict[AccountKey, dict[str, Share]] = {}
        for account, proxy, slots, wants, asked_at in rows:
            name = ME if proxy == self._me else proxy
            shares.setdefault(self._key(account), {})[name] = Share(slots, wants, asked_at)
        return shares

    def reap(self, proxies: Collection[str]) -> None:
        with self._database.writing() as connection:
            _reap(connection, proxies)

    def read_table(self, table: str) -> list[Row]:
        with self._database.reading() as connection:
            rows: list[Row] = connection.execute(
                "SELECT key, account, used_at FROM bindings "
                "WHERE book = ? AND gone_at IS NULL ORDER BY used_at",
                (table,),
            ).fetchall()
        self._keys({account for _, account, _ in rows})
        return rows

    def read_counts(self, name: str) -> Counted:
        with self._database.reading() as connection:
            try:
                return sqlite_counts.read(connection, name)
            except (TypeError, ValueError):
                raise self._database.damaged() from None

    def sweep(self, present: Iterable[AccountKey], *, wall_now: float) -> None:
        self._stored.clear()
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE accounts SET last_seen = ? "
                "WHERE account IN (SELECT value FROM json_each(?))",
                (wall_now, names(present)),
            )
            connection.execute(
                "DELETE FROM accounts WHERE last_seen < ?", (wall_now - ACCOUNT_KEPT_S,)
            )
            connection.execute(
                "DELETE FROM cooldowns WHERE account NOT IN (SELECT account FROM accounts)"
            )
            connection.executemany(
                "DELETE FROM bindings WHERE book = ? AND used_at < ?",
                ((table, wall_now - kept_s) for table, kept_s in TABLE_KEPT_S.items()),
            )
            connection.execute("DELETE FROM bindings WHERE gone_at < ?", (wall_now - GONE_KEPT_S,))
            connection.execute("DELETE FROM batches WHERE at < ?", (wall_now - BATCH_KEPT_S,))
            connection.execute("DELETE FROM counts WHERE added_at < ?", (wall_now - COUNTS_KEPT_S,))
            connection.execute("DELETE FROM notices WHERE at < ?", (wall_now - ACCOUNT_KEPT_S,))
            connection.execute("DELETE FROM turns WHERE at < ?", (wall_now - ACCOUNT_KEPT_S,))
        self._database.keep_reserve()

    def close(self) -> None:
        with contextlib.suppress(StoreError):
            self.reap([self._me])
        self._database.close()

    def _is_new(self, account: AccountSnapshot, found: AccountSnapshot | None) -> bool:
        """Say whether *account* is to be written.

        Another proxy may use this name with another credential: each writes only what is
        new, or both would write in turns for ever.
        """
        if account == found:
            return False
        return not (of_another(account, found) and account == self._base.get(account.key))

    def _note_in_flight(
        self, connection: sqlite3.Connection, in_flight: Mapping[AccountKey, int]
    ) -> None:
        connection.executemany(
            "INSERT OR REPLACE INTO in_flight VALUES (?, ?, ?)",
            ((self._me, str(key), requests) for key, requests in in_flight.items()),
        )

    def _keys(self, accounts: Iterable[str]) -> set[AccountKey]:
        return {self._key(account) for account in accounts}

    def _key(self, account: str) -> AccountKey:
        try:
            return AccountKey.parse(account)
        except ValueError:
            raise self._database.damaged() from None

    def _read(
        self, connection: sqlite3.Connection, keys: Iterable[AccountKey]
    ) -> dict[AccountKey, AccountSnapshot]:
        try:
            return read_accounts(connection, keys)
        except (LookupError, TypeError, ValueError):
            raise self._database.damaged() from None


def is_text(key: str) -> bool:
    """Say whether SQLite can hold *key*: clients choose it, and JSON has half characters."""
    return key.isascii() or key == key.encode(errors="replace").decode()


def _write_lines(
    connection: sqlite3.Connection, table: str, lines: TableChanges, write: int, wall_now: float
) -> None:
    connection.executemany(
        "UPDATE bindings SET gone_at = ?, write = ? "
        "WHERE book = ? AND key = ? AND used_at <= ? AND gone_at IS NULL",
        (
            (wall_now, write, table, key, used_at + ROUNDED_S)
            for key, used_at in lines.gone.items()
            if is_text(key)
        ),
    )
    # One that was taken out comes back only where it was used since.
    connection.executemany(
        "INSERT INTO bindings (book, key, account, used_at, write) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (book, key) DO UPDATE SET account = excluded.account, "
        "used_at = excluded.used_at, write = excluded.write, gone_at = NULL "
        "WHERE used_at + ? * (gone_at IS NOT NULL) <= excluded.used_at",
        ((table, *row, write, ROUNDED_S) for row in lines.rows if is_text(row[0])),
    )


def _reap(connection: sqlite3.Connection, proxies: Iterable[str]) -> None:
    for proxy in proxies:
        connection.execute("DELETE FROM in_flight WHERE proxy = ?", (proxy,))
        connection.execute("DELETE FROM shares WHERE proxy = ?", (proxy,))
        connection.execute("DELETE FROM proxies WHERE proxy = ?", (proxy,))
