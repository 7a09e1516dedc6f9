"""What a pool has learnt, in the state database, shared by all proxies that name the file.

Each row of `accounts` has the number of the write that changed it last, so that the rows
others have changed are found without reading all.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from math import inf
from pathlib import Path
from typing import Any

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cause, Cooldown
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.saved import Saved, SavedAccount, SavedDisabling, merge
from account_pool.store.database import Database
from account_pool.store.state import Row

#: Another proxy writes for some milliseconds; nobody waits for these rows, seconds.
BUSY_TIMEOUT_S = 2.0
#: How long rows are kept that nobody uses, seconds: of accounts that no proxy has (they
#: may be written down again), and of the books. A session is bound for half an hour;
#: vendors keep what a pin names for a month (OpenAI: responses, 30 days).
ACCOUNT_KEPT_S = 90 * 86400.0
BOOK_KEPT_S = {"sessions": 86400.0, "pins": 30 * 86400.0}


class SqliteState:
    """A `StateStore` in a file that only its owner may read.

    What was written is not lost with the process, but may be with the machine's power
    (`synchronous=NORMAL`): it is written several times a second, and can be learnt anew.
    """

    def __init__(self, path: Path) -> None:
        """Open *path*. Raises StoreError."""
        self._database = Database(path, busy_timeout_s=BUSY_TIMEOUT_S, synchronous="NORMAL")
        #: what the file and our pool agreed on last
        self._base: dict[AccountKey, SavedAccount] = {}
        self._data_version: int | None = None
        self._seen = 0

    def exchange(
        self, mine: Iterable[SavedAccount], gone: Collection[AccountKey], *, wall_now: float
    ) -> Saved:
        mine = list(mine)
        with self._database.writing() as connection:
            write, wall_at = connection.execute("SELECT write, wall_at FROM writes").fetchone()
            found = self._read(connection, [account.key for account in mine])
            merged = [merge(self._base.get(a.key), a, found.get(a.key)) for a in mine]
            new = [account for account in merged if account != found.get(account.key)]
            for account in new:
                _write(connection, account, write + 1, wall_now)
            for key in gone:
                _forget(connection, key)
            if new or gone:
                connection.execute(
                    "UPDATE writes SET write = ?, wall_at = ?", (write + 1, wall_now)
                )
        self._base.update((account.key, account) for account in merged)
        for key in gone:
            self._base.pop(key, None)
        return Saved(accounts=tuple(merged), wall_at=wall_at)

    def changed(self) -> Collection[AccountKey]:
        with self._database.reading() as connection:
            # Differs when another connection has written; asking costs no read of the file.
            data_version = connection.execute("PRAGMA data_version").fetchone()[0]
            if data_version == self._data_version:
                return ()
            rows = connection.execute(
                "SELECT account, write FROM accounts WHERE write > ?", (self._seen,)
            ).fetchall()
        self._data_version = data_version
        self._seen = max((write for _, write in rows), default=self._seen)
        return self._keys(account for account, _ in rows)

    def read_book(self, book: str) -> list[Row]:
        with self._database.reading() as connection:
            rows: list[Row] = connection.execute(
                "SELECT key, account, used_at FROM bindings WHERE book = ? ORDER BY used_at",
                (book,),
            ).fetchall()
        self._keys({account for _, account, _ in rows})
        return rows

    def write_book(self, book: str, rows: Iterable[Row], gone: Iterable[str] = ()) -> None:
        with self._database.writing() as connection:
            connection.executemany(
                "DELETE FROM bindings WHERE book = ? AND key = ?", ((book, key) for key in gone)
            )
            # One that was used later on another proxy is newer.
            connection.executemany(
                "INSERT INTO bindings VALUES (?, ?, ?, ?) ON CONFLICT (book, key) DO UPDATE SET "
                "account = excluded.account, used_at = excluded.used_at "
                "WHERE used_at <= excluded.used_at",
                ((book, *row) for row in rows if _is_text(row[0])),
            )

    def sweep(self, present: Iterable[AccountKey], *, wall_now: float) -> None:
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE accounts SET last_seen = ? "
                "WHERE account IN (SELECT value FROM json_each(?))",
                (wall_now, _names(present)),
            )
            connection.execute(
                "DELETE FROM accounts WHERE last_seen < ?", (wall_now - ACCOUNT_KEPT_S,)
            )
            connection.execute(
                "DELETE FROM cooldowns WHERE account NOT IN (SELECT account FROM accounts)"
            )
            connection.executemany(
                "DELETE FROM bindings WHERE book = ? AND used_at < ?",
                ((book, wall_now - kept_s) for book, kept_s in BOOK_KEPT_S.items()),
            )

    def close(self) -> None:
        self._database.close()

    def _keys(self, names: Iterable[str]) -> set[AccountKey]:
        try:
            return {AccountKey.parse(name) for name in names}
        except ValueError:
            raise self._database.damaged() from None

    def _read(
        self, connection: sqlite3.Connection, keys: Iterable[AccountKey]
    ) -> dict[AccountKey, SavedAccount]:
        try:
            return _read(connection, keys)
        except (LookupError, TypeError, ValueError):
            raise self._database.damaged() from None


# -- rows


def _read(
    connection: sqlite3.Connection, keys: Iterable[AccountKey]
) -> dict[AccountKey, SavedAccount]:
    names = (_names(keys),)
    cooldowns: dict[str, dict[str | None, Cooldown]] = {}
    for account, model, since, until, streak, cause in connection.execute(
        "SELECT account, model, since, until, streak, cause FROM cooldowns "
        "WHERE account IN (SELECT value FROM json_each(?))",
        names,
    ):
        covered = _unquoted(model)
        cooldowns.setdefault(account, {})[covered] = Cooldown(
            model=covered, since=since, until=until, streak=streak, cause=_cause(cause)
        )
    rows = connection.execute(
        "SELECT account, served, owner, headroom, headroom_reset_at, "
        "disabled, disabled_at, refused FROM accounts "
        "WHERE account IN (SELECT value FROM json_each(?))",
        names,
    )
    return {
        (key := AccountKey.parse(account)): SavedAccount(
            key=key,
            cooldowns=cooldowns.get(account, {}),
            disabled=disabled
            and SavedDisabling(cause=_cause(disabled), since=disabled_at, refused=refused),
            owner=_unquoted(owner),
            headroom=headroom,
            headroom_reset_at=inf if reset_at is None else reset_at,
            served=served,
        )
        for account, served, owner, headroom, reset_at, disabled, disabled_at, refused in rows
    }


def _write(
    connection: sqlite3.Connection, account: SavedAccount, write: int, wall_now: float
) -> None:
    name, disabled = str(account.key), account.disabled
    connection.execute(
        "INSERT INTO accounts VALUES (:name, :now, :now, :served, :owner, :headroom, :reset_at, "
        ":disabled, :disabled_at, :refused, :write) ON CONFLICT (account) DO UPDATE SET "
        "last_seen = :now, served = :served, owner = :owner, headroom = :headroom, "
        "headroom_reset_at = :reset_at, disabled = :disabled, disabled_at = :disabled_at, "
        "refused = :refused, write = :write",
        {
            "name": name,
            "now": wall_now,
            "served": account.served,
            "owner": _quoted(account.owner),
            "headroom": account.headroom,
            "reset_at": None if account.headroom_reset_at == inf else account.headroom_reset_at,
            "disabled": disabled and _text(disabled.cause),
            "disabled_at": disabled and disabled.since,
            "refused": disabled and disabled.refused,
            "write": write,
        },
    )
    connection.execute("DELETE FROM cooldowns WHERE account = ?", (name,))
    connection.executemany(
        "INSERT INTO cooldowns VALUES (?, ?, ?, ?, ?, ?)",
        (
            (name, _quoted(c.model), c.since, c.until, c.streak, _text(c.cause))
            for c in account.cooldowns.values()
        ),
    )


def _forget(connection: sqlite3.Connection, key: AccountKey) -> None:
    name = (str(key),)
    connection.execute("DELETE FROM accounts WHERE account = ?", name)
    connection.execute("DELETE FROM cooldowns WHERE account = ?", name)
    connection.execute("DELETE FROM bindings WHERE account = ?", name)


def _names(keys: Iterable[AccountKey]) -> str:
    return json.dumps([str(key) for key in keys])


def _is_text(key: str) -> bool:
    """Say whether SQLite can hold *key*: clients choose it, and JSON has half characters."""
    return key.isascii() or key == key.encode(errors="replace").decode()


def _quoted(text: str | None) -> str | None:
    """Return *text* as JSON, for the same reason."""
    return None if text is None else json.dumps(text)


def _unquoted(text: str | None) -> str | None:
    return None if text is None else str(json.loads(text))


def _text(cause: Cause) -> str:
    told: Mapping[str, Any] = {
        "signal": cause.signal,
        "class": cause.cls,
        "scope": cause.scope,
        "evidence": dict(cause.evidence),
        "hinted": cause.hinted,
    }
    return json.dumps(told)


def _cause(text: str) -> Cause:
    told = json.loads(text)
    return Cause(
        signal=told["signal"],
        cls=OutcomeClass(told["class"]),
        scope=Scope(told["scope"]),
        evidence=told["evidence"],
        hinted=told["hinted"],
    )
