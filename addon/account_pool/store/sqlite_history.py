"""What happened, in the state database: rows about requests, sums over all proxies, decisions.

What is a function over a connection is called in a transaction of `sqlite_state.py`, or with the
copy of an engine's log (`fleet/history.py`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from math import ceil
from typing import TYPE_CHECKING, Any

from account_pool.core.decision_history import LoggedDecision
from account_pool.core.request_rows import RequestRow
from account_pool.core.usage import Counted, add_to
from account_pool.store.database import IN_MEMORY, Database, with_room
from account_pool.store.schema import MIGRATIONS
from account_pool.store.store import (
    DecisionPage,
    Numbered,
    RequestBucket,
    RequestPage,
    RequestQuery,
    RequestSums,
)

if TYPE_CHECKING:
    from account_pool.core.prices import Cost

#: Rows that are kept at most, whatever their age: some 150 bytes each, and an index.
MAX_ROWS = 4_000_000
#: The same of a database in memory.
MAX_ROWS_IN_MEMORY = 20_000
#: Rows that are deleted at once: others wait to write meanwhile.
PRUNED_AT_ONCE = 20_000
#: What was held for less did not wait, but was sent again at once. Seconds.
WAITED_S = 0.05

#: Bins of durations for percentiles: up to so many seconds, so wide.
_BINS = ((1.0, 0.005), (10.0, 0.05), (100.0, 0.5), (1e9, 5.0))

_COLUMNS = ", ".join(("at", *RequestRow._fields[1:]))
_INSERT = (
    f"INSERT INTO requests (number, added_at, {_COLUMNS}) "  # noqa: S608 - names of columns
    f"VALUES ({', '.join('?' * (2 + len(RequestRow._fields)))})"
)
#: No two of a conversation begin in the same millisecond and last for as long.
_IS_THERE = (
    "SELECT 1 FROM requests WHERE at = ? AND duration_s = ? AND endpoint = ? AND tool = ? "
    "AND account IS ? AND model IS ? AND session IS ?"
)
_PRICE = (
    "UPDATE requests SET cost_usd = ?, price = ?, covered = ?, premium_requests = ? "
    "WHERE number = ? AND price IS NULL"
)
_TOKENS = (
    "input_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
)
_COSTS = {
    "cost_usd": "CASE WHEN covered THEN 0 ELSE cost_usd END",
    "saved_usd": "CASE WHEN covered THEN cost_usd ELSE 0 END",
    "premium_requests": "premium_requests",
}
#: A handshake that was accepted is no request beside the turns that followed.
_IS_REQUEST = "http_status IS NOT 101"
_HOUR, _DAY = "%Y-%m-%dT%H:00:00Z", "%Y-%m-%d"
_DECISION_COLUMNS = ", ".join(LoggedDecision._fields)


# -- requests


class RequestQuestions:
    """What is asked about requests, as `RequestStore` says, of a database that is lent for it."""

    def __init__(self, asking: Callable[[], AbstractContextManager[sqlite3.Connection]]) -> None:
        self._asking = asking

    def read(self, query: RequestQuery) -> RequestPage:
        with self._asking() as connection:
            return read_requests(connection, query)

    def sums(self, query: RequestQuery, *, by_hour: bool) -> list[RequestSums]:
        where, values = _where(query)
        amounts = {
            "requests": "counted",
            **{name: name for name in _TOKENS},
            **_COSTS,
            # What has no price is told apart from what costs nothing.
            "priced_requests": "cost_usd IS NOT NULL OR premium_requests IS NOT NULL",
        }
        selected = ", ".join(f"coalesce(sum({what}), 0)" for what in amounts.values())
        with self._asking() as connection:
            rows = connection.execute(
                "SELECT strftime(?, at, 'unixepoch'), account, coalesce(model, '-'), tool, "  # noqa: S608 - no value is in it
                f"{selected} FROM requests WHERE counted AND {where} GROUP BY 1, 2, 3, 4",
                (_HOUR if by_hour else _DAY, *values),
            ).fetchall()
        names = tuple(amounts)
        return [
            RequestSums((row[0], row[1], row[2], row[3]), dict(zip(names, row[4:], strict=True)))
            for row in rows
        ]

    def series(self, query: RequestQuery, step_s: float) -> list[RequestBucket]:
        where, values = _where(query)
        where = f"{where} AND {_IS_REQUEST}"
        index, at_and_step = "CAST((at - ?) / ? AS INTEGER)", (query.from_at or 0.0, step_s)
        amounts = {
            "requests": "1",
            **{status: f"status = '{status}'" for status in ("ok", "refused", "aborted")},
            "failovers": "failovers",
            "waited": f"wait_s > {WAITED_S}",
            "wait_s": "wait_s",
            **{name: name for name in _TOKENS},
            **_COSTS,
            "unpriced_requests": "counted AND cost_usd IS NULL AND premium_requests IS NULL",
        }
        selected = ", ".join(f"coalesce(sum({what}), 0)" for what in amounts.values())
        middle = {}
        with self._asking() as connection:
            rows = connection.execute(
                f"SELECT {index} AS step, {selected} FROM requests WHERE {where} GROUP BY step",  # noqa: S608 - no value is in it
                (*at_and_step, *values),
            ).fetchall()
            for name in ("duration_s", "first_byte_s"):
                found = connection.execute(
                    f"SELECT {index} AS step, {_bin_of(name)} AS bin, count(*) FROM requests "  # noqa: S608 - no value is in it
                    f"WHERE {where} AND status = 'ok' AND {name} IS NOT NULL GROUP BY step, bin",
                    (*at_and_step, *values),
                ).fetchall()
                middle[name] = _middle(found)
        names = tuple(amounts)
        return [
            RequestBucket(
                row[0],
                dict(zip(names, row[1:], strict=True)),
                middle["duration_s"].get(row[0]),
                middle["first_byte_s"].get(row[0]),
            )
            for row in rows
        ]


class KnownRequests(RequestQuestions):
    """Answers without the store: from what was read of it before, and from rows that are given.

    *asking* lends a database that has them, for one question; *last* returns the largest number
    that the store has given out, as far as is known.
    """

    def __init__(
        self,
        asking: Callable[[], AbstractContextManager[sqlite3.Connection]],
        last: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(asking)
        self._last = last

    def read(self, query: RequestQuery) -> RequestPage:
        return super().read(query)._replace(last=self._last())


def temporary() -> sqlite3.Connection:
    """Open a database that is in a file without a name, and gone once it is closed."""
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for statement in (statement for step in MIGRATIONS for statement in step):
        connection.execute(statement)
    return connection


def known_requests(rows: Sequence[RequestRow]) -> KnownRequests:
    """Return what answers from *rows* alone."""

    @contextmanager
    def asking() -> Iterator[sqlite3.Connection]:
        with closing(temporary()) as connection:
            connection.execute("BEGIN")
            add_missing(connection, rows)
            yield connection

    return KnownRequests(asking)


class SqliteRequests(RequestQuestions):
    """The `RequestStore` of a state database."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.beside)
        self._database = database

    def known(self, rows: Sequence[RequestRow]) -> KnownRequests:
        return known_requests(rows)

    def unpriced(self, after: int, limit: int) -> list[tuple[int, RequestRow]]:
        with self._asking() as connection:
            found = connection.execute(
                f"SELECT number, {_COLUMNS} FROM requests "  # noqa: S608 - no value is in it
                "WHERE price IS NULL AND number > ? ORDER BY number LIMIT ?",
                (after, limit),
            ).fetchall()
        return [(row[0], RequestRow(*row[1:])) for row in found]

    def price(self, costs: Sequence[tuple[int, Cost]]) -> None:
        now = self._database.now()
        with self._database.writing() as connection:
            add_counts(connection, "usage", price(connection, costs), now)

    def reprice(self) -> None:
        with self._database.writing() as connection:
            reprice(connection)

    def prune(self, kept_s: float, *, wall_now: float) -> bool:
        in_memory = self._database.path == IN_MEMORY
        max_rows = MAX_ROWS_IN_MEMORY if in_memory else MAX_ROWS
        with self._database.writing() as connection:
            # Numbers are in the order of `added_at`: only rows that go are looked at.
            first, last = connection.execute(
                "SELECT min(number), max(number) FROM requests"
            ).fetchone()
            if first is None:
                return False
            young: int
            [young] = connection.execute(
                "SELECT number FROM requests WHERE added_at >= ? ORDER BY number LIMIT 1",
                (wall_now - kept_s,),
            ).fetchone() or [last + 1]
            wanted = max(young, last + 1 - max_rows) if kept_s > 0 else last + 1
            upto = min(wanted, first + PRUNED_AT_ONCE)
            connection.execute("DELETE FROM requests WHERE number < ?", (upto,))
            return bool(upto < wanted)


def add_requests(
    connection: sqlite3.Connection, rows: Sequence[RequestRow], store_now: float
) -> None:
    """Add *rows*. Call it in a transaction."""
    connection.executemany(_INSERT, ((None, store_now, *row) for row in rows))


def put_requests(
    connection: sqlite3.Connection, rows: Iterable[tuple[int, float, RequestRow]]
) -> None:
    """Add rows that have a number, and when they were added, already. Call it in a transaction."""
    connection.executemany(_INSERT, ((number, at, *row) for number, at, row in rows))


def add_missing(connection: sqlite3.Connection, rows: Iterable[RequestRow]) -> None:
    """Add those of *rows* that are not there. Call it in a transaction."""
    for row in rows:
        same: tuple[Any, ...] = (row.wall_at, row.duration_s, row.endpoint, row.tool)
        same += (row.account, row.model, row.session)
        if connection.execute(_IS_THERE, same).fetchone() is None:
            add_requests(connection, [row], row.wall_at)


def read_requests(connection: sqlite3.Connection, query: RequestQuery) -> RequestPage:
    """Return the rows that *query* asks for."""
    where, values = _where(query)
    order = "ASC" if query.since is not None else "DESC"
    found = connection.execute(
        f"SELECT number, {_COLUMNS} FROM requests WHERE {where} ORDER BY number {order} LIMIT ?",  # noqa: S608 - no value is in it
        (*values, query.limit),
    ).fetchall()
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'requests'").fetchone()
    rows = [(row[0], RequestRow(*row[1:])) for row in found]
    if query.since is not None:
        rows.reverse()
    return RequestPage(rows, last[0] if last else 0)


def price(connection: sqlite3.Connection, costs: Sequence[tuple[int, Cost]]) -> Counted:
    """Write *costs*, by number, into rows that have none; return what that adds to the usage.

    Call it in a transaction.
    """
    added: Counted = {}
    for number, cost in costs:
        done = connection.execute(_PRICE, (*cost, number))
        if done.rowcount and (amounts := amounts_of(cost)):
            key = connection.execute(
                "SELECT date(at + duration_s, 'unixepoch'), account, coalesce(model, '-') "
                "FROM requests WHERE number = ?",
                (number,),
            ).fetchone()
            add_to(added, {key: amounts})
    return added


def put_prices(connection: sqlite3.Connection, costs: Iterable[tuple[int, Cost]]) -> None:
    """Do the same where the usage has it already. Call it in a transaction."""
    connection.executemany(_PRICE, ((*cost, number) for number, cost in costs))


def amounts_of(cost: Cost) -> dict[str, float]:
    """Return what *cost* adds to the usage of its day."""
    amounts: dict[str, float] = {}
    if cost.cost_usd is not None:
        amounts["saved_usd" if cost.covered else "cost_usd"] = cost.cost_usd
    if cost.premium_requests is not None:
        amounts["premium_requests"] = cost.premium_requests
    return {**amounts, "priced_requests": 1} if amounts else {}


def reprice(connection: sqlite3.Connection) -> None:
    """Have rows looked at again that have no price. Call it in a transaction."""
    connection.execute(
        "UPDATE requests SET price = NULL WHERE price = '' AND counted AND premium_requests IS NULL"
    )


def _bin_of(name: str) -> str:
    """Return the number of the bin of a value, as SQL. To sort all values costs five times this."""
    cases = " ".join(
        f"WHEN {name} < {below} THEN {1000 * n} + min(999, CAST({name} / {width} AS INTEGER))"
        for n, (below, width) in enumerate(_BINS)
    )
    return f"CASE {cases} ELSE {len(_BINS) * 1000 - 1} END"


def _middle(bins: Iterable[tuple[int, int, int]]) -> dict[int, tuple[float, float]]:
    """Return median and 95th percentile by step, the nearest rank, to the width of a bin.

    *bins*: steps, numbers of bins and how many values are in each, in order.
    """
    by_step: dict[int, list[tuple[float, int]]] = {}
    for step, number, count in bins:
        value = number % 1000 * _BINS[number // 1000][1]
        by_step.setdefault(step, []).append((round(value, 3), count))
    return {step: (_at_rank(values, 50), _at_rank(values, 95)) for step, values in by_step.items()}


def _at_rank(values: Sequence[tuple[float, int]], percent: int) -> float:
    left = ceil(sum(count for _, count in values) * percent / 100)
    for value, count in values:
        left -= count
        if left <= 0:
            return value
    return values[-1][0]


def _where(query: RequestQuery) -> tuple[str, tuple[Any, ...]]:
    """Return the condition of *query*, and its values."""
    account = query.account
    conditions = {
        "at >= ?": query.from_at,
        "at < ?": query.to_at,
        "account = ?" if account and "/" in account else "provider = ?": account,
        "model = ?": query.model,
        "tool = ?": query.tool,
        "status = ?": query.status,
        "number > ?": query.since,
        "number < ?": query.before,
    }
    given = {text: value for text, value in conditions.items() if value is not None}
    return " AND ".join(given) or "1", tuple(given.values())


# -- sums over all proxies: what is added, each batch once


def note_batch(connection: sqlite3.Connection, batch: Numbered, wall_now: float) -> bool:
    """Note that *batch* is added; say whether it was not before."""
    done = connection.execute(
        "INSERT INTO batches VALUES (?, ?, ?) ON CONFLICT (proxy) DO UPDATE SET "
        "number = excluded.number, at = excluded.at WHERE number < excluded.number",
        (batch.proxy, batch.number, wall_now),
    )
    return done.rowcount > 0


def add_counts(connection: sqlite3.Connection, name: str, added: Counted, wall_now: float) -> None:
    """Add amounts to the sums under *name*. Call it in a transaction."""
    connection.executemany(
        "INSERT INTO counts VALUES (?, ?, ?, ?, ?) ON CONFLICT (name, key, field) DO UPDATE SET "
        "amount = amount + excluded.amount, added_at = excluded.added_at",
        (
            (name, json.dumps(key), field, amount, wall_now)
            for key, amounts in added.items()
            for field, amount in amounts.items()
        ),
    )


def read_counts(connection: sqlite3.Connection, name: str) -> Counted:
    """Return the sums under *name*. Raises TypeError or ValueError."""
    rows = connection.execute("SELECT key, field, amount FROM counts WHERE name = ?", (name,))
    sums: Counted = {}
    for key, field, amount in rows:
        sums.setdefault(tuple(json.loads(key)), {})[field] = amount
    return sums


# -- decisions


class SqliteDecisions:
    """The `DecisionLog` of a state database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @with_room
    def add(self, new: Sequence[LoggedDecision], changed: Sequence[LoggedDecision]) -> str:
        with self._database.writing() as connection:
            row = connection.execute("SELECT log, change FROM decision_log").fetchone()
            if row is None:
                raise self._database.damaged()
            log, change = row
            connection.execute("UPDATE decision_log SET change = change + 1")
            for one, is_new in [*((d, False) for d in changed), *((d, True) for d in new)]:
                values = {**one._asdict(), "change": change + 1}
                done = connection.execute(
                    "UPDATE decisions SET proxy = :proxy, record = :record, change = :change "
                    "WHERE origin = :origin AND own = :own",
                    values,
                )
                if is_new and done.rowcount == 0:
                    connection.execute(
                        f"INSERT INTO decisions ({_DECISION_COLUMNS}, change) "  # noqa: S608 - names of columns
                        "VALUES (:origin, :own, :proxy, :record, :change)",
                        values,
                    )
        return str(log)

    def read(self, after: int) -> DecisionPage:
        with self._database.looking() as connection:
            row = connection.execute("SELECT log, change FROM decision_log").fetchone()
            if row is None:
                raise self._database.damaged()
            found = connection.execute(
                f"SELECT number, {_DECISION_COLUMNS} FROM decisions WHERE change > ?",  # noqa: S608 - names of columns
                (after,),
            ).fetchall()
        log, upto = row
        return DecisionPage(log, upto, [(n, LoggedDecision(*rest)) for n, *rest in found])
