"""What a pool has learnt, in the state database, shared by all proxies that use the file.

Each account and each row of a table has the number of the write that changed it last, so
that what others have changed is found without reading everything.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.fleet import MAX_PROXIES, SHOWN_S, AboutProxy, ProxyRow, read_about
from account_pool.core.request_rows import RequestRow
from account_pool.core.shares import ME, Ask, Share, grant
from account_pool.core.snapshot import AccountSnapshot, PoolSnapshot
from account_pool.core.usage import Counted
from account_pool.store import sqlite_history
from account_pool.store.account_rows import Texts, names, read_accounts, write_accounts
from account_pool.store.agreed import (
    ACCOUNT_KEPT_S,
    BATCH_KEPT_S,
    COUNTS_KEPT_S,
    GONE_KEPT_S,
    ROUNDED_S,
    TABLE_KEPT_S,
    Agreed,
    is_text,
)
from account_pool.store.database import IN_MEMORY, Database, with_room
from account_pool.store.machine import Clock, Process
from account_pool.store.sqlite_history import SqliteDecisions, SqliteRequests
from account_pool.store.store import (
    GRACE_S,
    News,
    Numbered,
    Row,
    StoreError,
    TableChanges,
)

if TYPE_CHECKING:
    from account_pool.core.notifications import Row as NoticeRow
    from account_pool.core.notifications import Subject, Verdict


#: Another proxy writes for some milliseconds; no request waits for these rows. Seconds.
BUSY_TIMEOUT_S = 2.0


class SqliteState:
    """A `StateStore` in a file that only its owner may read.

    What was written is not lost with the process, but may be with the machine's power
    (`synchronous=NORMAL`): it is written several times a second, and can be learnt anew.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock | None = None,
        counted: dict[AccountKey, int] | None = None,
    ) -> None:
        """Open *path*. Raises StoreError. *clock* is for tests.

        *counted*: how many requests this process and the file agreed that accounts have served,
        whatever file that was.
        """
        self._database = Database(
            path, busy_timeout_s=BUSY_TIMEOUT_S, synchronous="NORMAL", clock=clock
        )
        self.requests = SqliteRequests(self._database)
        self.notices = SqliteNotices(self._database)
        self.decisions = SqliteDecisions(self._database)
        self._me = Process.this().owner(uuid4().hex)
        self._agreed = Agreed({} if counted is None else counted)
        #: what the file has, as long as others write nothing
        self._stored: dict[AccountKey, AccountSnapshot] = {}
        self._stored_version: int | None = None
        self._texts: Texts = {}
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
        urgent: bool = False,
    ) -> PoolSnapshot:
        mine = list(mine)
        for key in gone:
            self._agreed.leave(key)
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
            merged = [self._agreed.merged(a, found.get(a.key)) for a in mine]
            new = [
                account
                for account in merged
                if self._agreed.is_new(account, found.get(account.key))
            ]
            write_accounts(connection, new, write + 1, wall_now, found, texts=self._texts)
            for table, changes in (lines or {}).items():
                _write_lines(connection, table, changes, write + 1, wall_now)
            is_new = batch is None or sqlite_history.note_batch(connection, batch, wall_now)
            for name, added in (counts or {}).items() if is_new else ():
                sqlite_history.add_counts(connection, name, added, wall_now)
            if requests and is_new:
                sqlite_history.add_requests(connection, requests, wall_now)
            self._note_in_flight(connection, in_flight or {})
            if new or lines:
                connection.execute(
                    "UPDATE writes SET write = ?, wall_at = ?", (write + 1, wall_now)
                )
        if (new or lines) and write == self._seen:
            self._seen = write + 1  # no other proxy has written since: no news to us
        replaced = frozenset(a.key for a in mine if self._agreed.is_replaced(a, found.get(a.key)))
        self._agreed.note(merged)
        written = {account.key: account for account in new}
        self._stored = known | found | written
        return PoolSnapshot(accounts=tuple(merged), wall_at=wall_at, replaced=replaced)

    def now(self) -> float | None:
        return None if self._database.path == IN_MEMORY else self._database.now()

    def listen(self, wake: Callable[[], None]) -> None:
        """A file notifies nobody; workers do that themselves (`proxy/siblings.py`)."""

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
            last = connection.execute("SELECT write, wall_at FROM writes").fetchone()
        lines: dict[str, list[Row]] = {}
        gone: dict[str, dict[str, float]] = {}
        for table, key, account, used_at, gone_at, _ in bound:
            if gone_at is None:
                lines.setdefault(table, []).append((key, account, used_at))
            else:
                gone.setdefault(table, {})[key] = used_at
        newest = max((row[-1] for row in (*accounts, *bound)), default=self._seen)
        news = News(
            accounts=self._keys(account for account, _ in accounts),
            lines=lines,
            gone=gone,
            in_flight_remote={
                self._key(account): requests for account, requests in in_flight_remote
            },
            shares=self._shares(shares) or None,
            proxies=tuple(proxy for (proxy,) in proxies),
            wrote_at=last[1] if last and last[0] == newest > self._seen else None,
        )
        self._keys({account for of_book in lines.values() for _, account, _ in of_book})
        self._data_version = data_version
        self._seen = newest
        return news

    @with_room
    def beat(
        self,
        in_flight: Mapping[AccountKey, int],
        *,
        wall_now: float,
        about: AboutProxy | None = None,
    ) -> bool:
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
            _note_report(connection, self._me, about, wall_now)
        # Who is dead has written nothing: look, whether or not others have.
        self._data_version = None
        return is_known

    def proxies(self, *, wall_now: float) -> list[ProxyRow]:
        with self._database.looking() as connection:
            return _read_proxies(connection, self._me, wall_now)

    @with_room
    def forget(self, proxies: Collection[str]) -> None:
        with self._database.writing() as connection:
            _forget_reports(connection, proxies)

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
                return sqlite_history.read_counts(connection, name)
            except (TypeError, ValueError):
                raise self._database.damaged() from None

    def sweep(self, present: Iterable[AccountKey], *, wall_now: float) -> None:
        self._stored.clear()
        self._texts.clear()
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
            connection.execute(
                "DELETE FROM endings WHERE account NOT IN (SELECT account FROM accounts)"
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
        with contextlib.suppress(StoreError), self._database.writing() as connection:
            _reap(connection, [self._me])
            _forget_reports(connection, [self._me])
        self._database.close()

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


# -- what the proxies on it say of themselves


def _note_report(
    connection: sqlite3.Connection, me: str, about: AboutProxy | None, wall_now: float
) -> None:
    """Note the heartbeat of *me*, and forget proxies of long ago. Call it in a transaction."""
    connection.execute("DELETE FROM proxy_reports WHERE abs(seen_at - ?) >= ?", (wall_now, SHOWN_S))
    if about is not None:
        connection.execute(
            "INSERT OR REPLACE INTO proxy_reports VALUES (?, ?, ?)", (me, about.as_text(), wall_now)
        )


def _forget_reports(connection: sqlite3.Connection, proxies: Iterable[str]) -> None:
    """Forget what *proxies* have said. Call it in a transaction."""
    connection.executemany(
        "DELETE FROM proxy_reports WHERE proxy = ?", ((proxy,) for proxy in proxies)
    )


def _read_proxies(connection: sqlite3.Connection, me: str, wall_now: float) -> list[ProxyRow]:
    """Return the proxies, those of another version too, of which only the host is known."""
    running: dict[str, tuple[object, object, object]] = {
        proxy: (host, started_at, seen_at)
        for proxy, host, started_at, seen_at in connection.execute(
            "SELECT proxy, CAST(host AS BLOB), started_at, seen_at FROM proxies "
            "ORDER BY seen_at DESC LIMIT ?",
            (MAX_PROXIES,),
        )
    }
    in_flight = dict(
        connection.execute("SELECT proxy, sum(requests) FROM in_flight GROUP BY proxy").fetchall()
    )
    # Bytes: what is no UTF-8 is one row that says nothing.
    said = {
        proxy: (read_about(about), seen_at)
        for proxy, about, seen_at in connection.execute(
            "SELECT proxy, CAST(about AS BLOB), seen_at FROM proxy_reports "
            "ORDER BY seen_at DESC LIMIT ?",
            (MAX_PROXIES,),
        )
    }
    rows = []
    for proxy in {**running, **said}:
        host, started_at, beat_at = running.get(proxy, (None, None, None))
        unheard = AboutProxy(name=_text(host), uptime_s=_since(wall_now, started_at)), None
        about, said_at = said.get(proxy, unheard)
        seen_s = _since(wall_now, said_at if beat_at is None else beat_at)
        rows.append(
            ProxyRow(
                proxy=proxy,
                about=about if about.name else replace(about, name=_text(host)),
                seen_s=seen_s,
                in_flight=_count(in_flight.get(proxy)),
                is_running=proxy in running and seen_s is not None and seen_s < GRACE_S,
                is_me=proxy == me,
            )
        )
    return rows


def _since(wall_now: float, at: object) -> float | None:
    is_time = isinstance(at, int | float) and isfinite(at)
    return abs(wall_now - at) if is_time else None  # type: ignore[operator]


def _count(number: object) -> int:
    is_count = isinstance(number, int | float) and 0 <= number < 1e9
    return int(number) if is_count else 0  # type: ignore[call-overload]


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


# -- what the owner is told of


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

    def _notices(self, connection: sqlite3.Connection) -> dict[Subject, NoticeRow]:
        from account_pool.core.notifications import Event, Row, Subject  # noqa: PLC0415 - as above

        rows = connection.execute("SELECT event, about, detail, standing, at FROM notices")
        known = {event.value for event in Event}  # a newer version may have more
        return {
            Subject(Event(event), about, detail): Row(bool(standing), at)
            for event, about, detail, standing, at in rows
            if event in known
        }
