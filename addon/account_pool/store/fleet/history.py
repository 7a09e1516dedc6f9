"""What happened, in the engine of a fleet: requests with their prices, and decisions.

Rows about requests are entries of a log, as are prices, which are put into rows in the order of
the log: so every copy of it is the same. Questions are answered from such a copy, a temporary
database of this process: any proxy reads what is new in the log before it answers one. It is a
file without a name, which ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any, NamedTuple, get_args, get_type_hints
from uuid import uuid4

from account_pool.core.decision_history import MAX_RECORD_CHARS, LoggedDecision
from account_pool.core.decisions import KEPT, one_line
from account_pool.core.prices import Cost
from account_pool.core.request_rows import RequestRow
from account_pool.core.usage import Counted, add_to
from account_pool.store import sqlite_history
from account_pool.store.account_rows import dumps, loads
from account_pool.store.database import LOOK_TIMEOUT_S, transaction
from account_pool.store.fleet.connection import Argument
from account_pool.store.fleet.engine import Engine
from account_pool.store.fleet.link import TRIES, Accepted, Beside, Change, Link, StoredRow
from account_pool.store.sqlite_history import KnownRequests, RequestQuestions
from account_pool.store.store import (
    DecisionPage,
    FullError,
    MovedError,
    Numbered,
    RequestPage,
    RequestQuery,
    StoreError,
)

#: Entries that are kept at most, whatever their age: some 250 bytes of the engine's memory each,
#: and of the disk of each proxy that is asked, to which it reads them all once.
MAX_ENTRIES = 100_000
#: Rows that are added at once: while they are, the engine serves nobody else for some 3 ms.
ADDED_AT_ONCE = 500
#: Entries that are looked at in one step when old ones are deleted.
PRUNED_AT_ONCE = 1000
#: Entries that are read at once.
READ_AT_ONCE = 500
#: How long may be read what is new, seconds; the next question goes on from there.
CATCH_UP_S = 8.0
#: Longer texts are of no row of ours.
MAX_TEXT_CHARS = 1000
#: An integer in JSON may be larger than any that SQLite keeps.
_MOST = 2**53

ROW, UNPRICED_ROW, PRICES, REPRICE = "row", "unpriced", "prices", "reprice"

#: Asks for the entries after a number: that, when it was added, and how many at most.
Read = Callable[[int, str, int], Any]
#: A function of `functions/history.lua`, and its arguments.
Call = tuple[str, list[Argument]]


class FleetRequests(RequestQuestions):
    """The `RequestStore` of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._mirror = Mirror(self._entries, MAX_ENTRIES)
        super().__init__(self._mirror.asking)
        #: who changes prices has it
        self._pricing = threading.Lock()
        self._link = Link(engine)

    def added(self, rows: Sequence[RequestRow], batch: Numbered | None, link: Link) -> list[Call]:
        """Return what *link* is to call with *batch*, so that *rows* are added.

        More than ADDED_AT_ONCE are added before, part by part: each once, as *batch* is.
        """
        starts = range(0, len(rows), ADDED_AT_ONCE)
        parts = [_rows_added(rows[start : start + ADDED_AT_ONCE]) for start in starts]
        for n, part in enumerate(parts[:-1]):
            of_part = batch and batch._replace(proxy=f"{batch.proxy}#{n}")
            link.commit_all(Beside(batch=of_part, calls=[part]))
        return parts[-1:]

    def read(self, query: RequestQuery) -> RequestPage:
        with self._mirror.asking() as connection:
            # Prices have numbers as well.
            return sqlite_history.read_requests(connection, query)._replace(last=self._mirror.last)

    def known(self, rows: Sequence[RequestRow]) -> KnownRequests:
        return KnownRequests(lambda: self._mirror.knowing(rows), lambda: self._mirror.last)

    def unpriced(self, after: int, limit: int) -> list[tuple[int, RequestRow]]:
        return list(self._rows("unpriced", after, limit))

    def price(self, costs: Sequence[tuple[int, Cost]]) -> None:
        by_number = dict(costs)

        def decide() -> Beside | None:
            rows = dict(self._rows("still_unpriced", *by_number))
            if not rows:
                return None
            added: Counted = {}
            for number, row in rows.items():
                if amounts := sqlite_history.amounts_of(by_number[number]):
                    add_to(added, {_key(row): amounts})
            entry = dumps([(number, *by_number[number]) for number in rows])
            again = [n for n, row in rows.items() if _may_be_priced(row, by_number[n])]
            return Beside(
                sums=[
                    ("usage", dumps(key), name, amount)
                    for key, amounts in added.items()
                    for name, amount in amounts.items()
                ],
                calls=[
                    _append(PRICES, entry),
                    ("note_priced", ["", *rows]),
                    ("note_priced", ["unknown", *again]),
                ],
            )

        self._change(decide)

    def reprice(self) -> None:
        calls: list[Call] = [_append(REPRICE, b""), ("note_repriced", [])]
        self._change(lambda: Beside(calls=calls))

    def prune(self, kept_s: float, *, wall_now: float) -> bool:
        return bool(self._engine.call("prune", kept_s, PRUNED_AT_ONCE) == 1)

    def close(self) -> None:
        """Forget the copy of the log."""
        self._mirror.close()

    def _change(self, decide: Any) -> None:
        """Do what *decide* says, decided anew until nothing has changed meanwhile."""
        with self._pricing:
            for _ in range(TRIES):
                try:
                    [found] = self._link.call("rows", "pricing", "all")
                    beside = decide()
                    if beside is None:
                        return
                    # All who change prices change this row.
                    change = Change("pricing", "all", StoredRow.read(found).version, b"-")
                    if isinstance(self._link.commit([change], beside), Accepted):
                        return
                except MovedError:
                    self._link.begin()
                except (TypeError, ValueError):
                    raise self._link.strange("rows") from None
            raise self._link.busy()

    def _rows(self, function: str, *args: Argument) -> Iterator[tuple[int, RequestRow]]:
        found = self._engine.call(function, *args)
        for entry in entries_of(found if isinstance(found, list) else ()):
            if (row := row_of(entry)) is not None:
                yield entry.number, row

    def _entries(self, after: int, at: str, limit: int) -> Any:
        return self._engine.call("entries", after, at, limit)


def _rows_added(rows: Sequence[RequestRow]) -> Call:
    entries: list[Argument] = []
    for row in rows:
        entries += (UNPRICED_ROW if row.price is None else ROW, dumps(row))
    return _append(*entries)


def _append(*entries: Argument) -> Call:
    return "append", [MAX_ENTRIES, *entries]


def _key(row: RequestRow) -> tuple[Any, ...]:
    """Return where usage counts *row*: the day of its end, account and model."""
    day = datetime.fromtimestamp(row.wall_at + row.duration_s, UTC).date().isoformat()
    return day, row.account, row.model or "-"


def _may_be_priced(row: RequestRow, cost: Cost) -> bool:
    """Say whether `sqlite_history.reprice` would have it looked at again."""
    return cost.price == "" and bool(row.counted) and cost.premium_requests is None


# -- the copy of the log


class Entry(NamedTuple):
    """An entry of the log; *at* is when it was added, seconds, as it is written."""

    number: int
    kind: str
    at: str
    data: bytes


class Mirror:
    """The log as far as it was read, *max_rows* of it. For any thread, one at a time.

    *read* asks the engine for entries.
    """

    def __init__(self, read: Read, max_rows: int) -> None:
        self._read, self._max_rows = read, max_rows
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._last, self._last_at = 0, "0"
        self._is_closed = False

    @property
    def last(self) -> int:
        """The number of the last entry that was read."""
        return self._last

    @contextlib.contextmanager
    def asking(self) -> Iterator[sqlite3.Connection]:
        """Read what is new, and lend the database for one question. Raises StoreError."""
        with self._lent(self._catch_up) as connection:
            yield connection

    @contextlib.contextmanager
    def knowing(self, rows: Iterable[RequestRow]) -> Iterator[sqlite3.Connection]:
        """Lend the database with *rows*, and what was read before. Raises StoreError."""
        with self._lent(lambda _connection: None) as connection:
            connection.execute("BEGIN")
            try:
                sqlite_history.add_missing(connection, rows)
                yield connection
            finally:
                connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _lent(
        self, prepare: Callable[[sqlite3.Connection], object]
    ) -> Iterator[sqlite3.Connection]:
        if not self._lock.acquire(timeout=LOOK_TIMEOUT_S):
            raise StoreError("another question about requests takes too long")
        try:
            connection = self._opened()
            prepare(connection)
            give_up_at = time.monotonic() + LOOK_TIMEOUT_S
            connection.set_progress_handler(lambda: time.monotonic() > give_up_at, 100_000)
            try:
                yield connection
            finally:
                connection.set_progress_handler(None, 0)
        except sqlite3.Error as error:
            raise _explained(error) from None
        finally:
            if self._is_closed:
                self._drop()
            self._lock.release()

    def close(self) -> None:
        """End the copy: after the question that is asked now, which is not waited for."""
        self._is_closed = True
        if self._lock.acquire(blocking=False):
            self._drop()
            self._lock.release()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite_history.temporary()
            self._last, self._last_at = 0, "0"
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _catch_up(self, connection: sqlite3.Connection) -> None:
        """Read what is new. Raises StoreError."""
        give_up_at = time.monotonic() + CATCH_UP_S
        while True:
            reply = self._read(self._last, self._last_at, READ_AT_ONCE)
            if reply == [b"anew"] and self._last:
                # The log is another one, or this one was not read for long.
                connection.execute("DELETE FROM requests")
                self._last, self._last_at = 0, "0"
                continue
            first, last, entries = _understood(reply)
            self._take(connection, first, [e for e in entries if e.number > self._last])
            if not entries or self._last >= last:
                return
            if time.monotonic() > give_up_at:
                raise StoreError("requests are read from the state engine; ask again")

    def _take(self, connection: sqlite3.Connection, first: int, entries: list[Entry]) -> None:
        """Do what *entries* say, all of it or nothing; rows before *first* are gone."""
        last = entries[-1] if entries else None
        with transaction(connection):
            rows: list[tuple[int, float, RequestRow]] = []
            for entry in entries:
                if entry.kind in (ROW, UNPRICED_ROW):
                    if (row := row_of(entry)) is not None:
                        rows.append((entry.number, float(entry.at), row))
                    continue
                sqlite_history.put_requests(connection, rows)
                rows.clear()
                if entry.kind == PRICES:
                    sqlite_history.put_prices(connection, _costs(entry.data))
                elif entry.kind == REPRICE:
                    sqlite_history.reprice(connection)
            sqlite_history.put_requests(connection, rows)
            first = max(first, (last.number if last else self._last) + 1 - self._max_rows)
            connection.execute("DELETE FROM requests WHERE number < ?", (first,))
        if last is not None:
            self._last, self._last_at = last.number, last.at


# -- what is in an entry: data, which may be anything

_HINTS = get_type_hints(RequestRow)
_TYPES = [set(get_args(hint) or (hint,)) for hint in _HINTS.values()]
#: A float may be written without a point.
_TYPES = [types | {int} if float in types else types for types in _TYPES]
_LEAST = len(_TYPES) - len(RequestRow._field_defaults)


def entries_of(parts: Iterable[object]) -> list[Entry]:
    """Return those of *parts* that are an entry."""
    found = []
    for part in parts:
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            number, kind, at, data = part.split(b" ", 3)  # type: ignore[attr-defined]
            entry = Entry(int(number), kind.decode(), at.decode(), data)
            if 0 < entry.number < _MOST and isfinite(float(entry.at)):
                found.append(entry)
    return found


def row_of(entry: Entry) -> RequestRow | None:
    """Return the row in *entry*; None: it is none. A newer version may know more of it."""
    values = loads(entry.data)
    if not isinstance(values, list) or len(values) < _LEAST:
        return None
    values = values[: len(_TYPES)]
    for n, (value, types) in enumerate(zip(values, _TYPES, strict=False)):
        kind = type(value)
        if kind not in types:
            return None
        if kind is str:
            values[n] = one_line(value, MAX_TEXT_CHARS)
        elif value is not None and not -_MOST < value < _MOST:
            return None
    return RequestRow(*values)


def _costs(data: bytes) -> Iterator[tuple[int, Cost]]:
    costs = loads(data)
    for one in costs if isinstance(costs, list) else ():
        match one:
            case [int(number), cost_usd, str(price), int(covered), premium] if all(
                value is None or (isinstance(value, int | float) and -_MOST < value < _MOST)
                for value in (number, cost_usd, covered, premium)
            ):
                yield number, Cost(cost_usd, one_line(price), covered, premium)


def _understood(reply: object) -> tuple[int, int, list[Entry]]:
    """Return the numbers of the first and the last entry, and entries. Raises StoreError."""
    with contextlib.suppress(ValueError):
        match reply:
            case [bytes(first), bytes(last), *parts]:
                return int(first), int(last), entries_of(parts)
    raise StoreError("the state engine gave an unexpected answer about requests")


def _explained(error: sqlite3.Error) -> StoreError:
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    if name == "SQLITE_INTERRUPT":
        return StoreError("the question about requests takes too long")
    if name.startswith("SQLITE_FULL"):
        return FullError("there is no room for a copy of the requests; free some of TMPDIR")
    return StoreError(f"the copy of the requests cannot be used ({name})")


# -- decisions


class FleetDecisions:
    """The `DecisionLog` of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, new: Sequence[LoggedDecision], changed: Sequence[LoggedDecision]) -> str:
        args: list[Argument] = []
        for one in (*new, *changed):
            args += (f"{one.origin}:{one.own}", json.dumps([one.proxy, one.record]))
        log = self._engine.call("decide", uuid4().hex, KEPT, len(new), *args)
        return log.decode("utf-8", "replace") if isinstance(log, bytes) else ""

    def read(self, after: int) -> DecisionPage:
        found = self._engine.call("decisions", after)
        try:
            log, upto, *parts = found
            return DecisionPage(
                log.decode(),
                int(upto),
                [row for row in map(_logged, parts[::2], parts[1::2]) if row is not None],
            )
        except (AttributeError, TypeError, ValueError):
            raise StoreError(
                f"the state engine {self._engine.address} gave an unexpected answer about decisions"
            ) from None


def _logged(name: Any, row: Any) -> tuple[int, LoggedDecision] | None:
    """Return a decision with its number; None: no proxy has written it."""
    try:
        origin, _, own = name.decode().rpartition(":")
        number, _, said = row.decode().split(" ", 2)
        if len(said) > 2 * MAX_RECORD_CHARS:
            return None
        match json.loads(said):
            case [str(proxy), str(record)]:
                return int(number), LoggedDecision(origin, int(own), proxy, record)
    except (AttributeError, ValueError, RecursionError):
        pass
    return None
