"""The engine as one process uses it: answers are data, and a write without one is known later.

A write may have happened although no answer came. Each names the last one of this process that
is known to have been accepted, so of those without an answer one is accepted at most; the next
write learns which. It writes only where what was read is still there (`functions/state.lua`).
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from account_pool.store.agreed import ROUNDED_S
from account_pool.store.fleet.connection import Argument
from account_pool.store.fleet.engine import Engine
from account_pool.store.store import (
    GRACE_S,
    FullError,
    MovedError,
    Numbered,
    StoreError,
    UnfitError,
)

logger = logging.getLogger(__name__)

#: How often a write is tried while others change what it is about.
TRIES = 100
#: Calls that one answer in parts may take.
MAX_PAGES = 100_000
#: Writes without an answer of which is remembered what to do: an engine may answer reads and
#: refuse writes for days.
MAX_UNANSWERED = 100
#: Damaged rows that are told of.
MAX_TOLD = 1000
_ROW = re.compile(rb"(\d{1,99}) ([\d.e+-]{1,99}) (.*)", re.DOTALL)
#: Larger numbers are not exact in the engine.
_MOST = 2**52

Value = TypeVar("Value")


class StoredRow(NamedTuple):
    """A row of the engine: its time, and whatever it says.

    *version* is the number of the write that changed it last; 0: it is not there, or is none.
    """

    version: int = 0
    at: float = 0.0
    data: bytes = b""

    @classmethod
    def read(cls, row: object) -> StoredRow:
        """Return *row*, as the functions in the engine read it."""
        parts = _ROW.fullmatch(row) if isinstance(row, bytes) else None
        with contextlib.suppress(ValueError):
            if parts is not None:
                version, at = int(parts[1]), float(parts[2])
                if version <= _MOST and abs(at) <= _MOST:
                    return cls(version, at, parts[3])
        return cls()


class Change(NamedTuple):
    """A row to be written.

    Attributes:
        version: what it has to have been; None: anything.
        data: b"": it is only looked at.
    """

    table: str
    name: str
    version: int | None
    data: bytes


#: Table, key, time of the last use, and account ("": it is gone).
Line = tuple[str, str, float, str]


class Beside(NamedTuple):
    """What is written with rows, whatever their versions are.

    Attributes:
        batch: the number of *sums* and *calls*, which are done once.
        sums: name, key, field, amount.
        calls: functions to be called, with their arguments.
        told: who has written is published.
    """

    lines: Sequence[Line] = ()
    batch: Numbered | None = None
    sums: Sequence[tuple[str, bytes, str, float]] = ()
    calls: Sequence[tuple[str, Sequence[Argument]]] = ()
    told: str = ""


class Accepted(NamedTuple):
    """It was written.

    Attributes:
        before, after: numbers of the last write, before and after: rows with data have the
            numbers after *before*, in their order.
        wrote_at: when an account or a line was written before.
    """

    before: int
    after: int
    wrote_at: float


class Refused(NamedTuple):
    """Nothing was written: decide once more.

    Attributes:
        stale: rows that have another version.
        alive: proxies that were taken for dead.
        dead: the proxy that writes does not count as running.
    """

    stale: Sequence[tuple[str, str, StoredRow]] = ()
    alive: Collection[str] = ()
    dead: bool = False


class Link:
    """Asks the engine, for one thread; what does not write may be asked by any.

    Attributes:
        history: names what the engine holds since it was empty, and the server; b"": unknown.
        seen: number of the last write up to which all is known; None: nothing is.
    """

    def __init__(self, engine: Engine) -> None:
        self.begin()
        self.engine = engine
        self._me = uuid4().hex
        self._number = 0
        self._accepted = 0
        #: writes without an answer: what is to be called if one was accepted
        self._unanswered: dict[int, Callable[[], object]] = {}
        self._told: set[tuple[str, object]] = set()

    def begin(self) -> None:
        """Take what the engine holds as it is, whatever was known of it."""
        self.history = b""
        self.seen: int | None = None

    @property
    def is_uncertain(self) -> bool:
        """Whether there are writes of which it is not known whether they were accepted."""
        return bool(self._unanswered)

    def wrote(self, before: int, after: int) -> None:
        """Note numbers of the last write before and after ours: if it was ours, it is no news."""
        if self.seen == before:
            self.seen = after

    def call(self, function: str, *args: Argument) -> Any:
        """Call a function. Raises StoreError; MovedError where the history is another one."""
        reply = self.engine.call(function, *args)
        if isinstance(reply, list) and reply[:1] == [b"lost"]:
            raise MovedError(
                f"the state engine {self.engine.address} was started again, has lost what it had, "
                "or another has taken over; what is there now gets what this proxy knows"
            )
        return reply

    def commit(
        self,
        rows: Sequence[Change],
        beside: Beside | None = None,
        *,
        accepted: Callable[[], object] = lambda: None,
        running: str = "",
        dead: Collection[str] = (),
    ) -> Accepted | Refused:
        """Write all of it, or nothing. Raises StoreError where that is not known.

        Args:
            accepted: called before a later write, if this one turns out to have been accepted.
            running: the proxy that has to count as running; "": none.
            dead: proxies that must not.
        """
        beside = beside or Beside()
        if self._unanswered and self._settle(self.call("rows", "b", self._me)):
            return Refused()
        self._number += 1
        self._unanswered[self._number] = accepted
        if len(self._unanswered) > MAX_UNANSWERED:
            del self._unanswered[min(self._unanswered)]
        try:
            reply = self.call(
                "commit",
                self.history,
                uuid4().hex,
                self._me,
                self._number,
                self._accepted,
                running,
                GRACE_S,
                beside.told,
                ROUNDED_S,
                *_listed([(proxy,) for proxy in dead]),
                *_listed([(c.table, c.name, _version(c), c.data) for c in rows]),
                *_listed(beside.lines),
                *_listed([beside.batch] if beside.batch else []),
                *_listed(beside.sums),
                *_listed([(function, len(args)) for function, args in beside.calls]),
                *(arg for _, args in beside.calls for arg in args),
            )
        except (UnfitError, FullError, MovedError):
            del self._unanswered[self._number]  # nothing was written
            raise
        match reply:
            case [b"ok", bytes(history), bytes(before), bytes(after), bytes(wrote_at)]:
                with contextlib.suppress(ValueError):
                    done = Accepted(int(before), int(after), float(wrote_at))
                    self._unanswered.clear()
                    self._accepted = self._number
                    self.history = history
                    self.wrote(done.before, done.after)
                    return done
            case [b"last", bytes(last)] if last.isdigit():
                self._settle([last + b" 0 "])
                return Refused()
            case [b"stale", *found]:
                del self._unanswered[self._number]
                return Refused(stale=list(triples(found)))
            case [b"alive", *proxies]:
                del self._unanswered[self._number]
                return Refused(alive=[decoded(proxy) for proxy in proxies])
            case [b"dead"]:
                del self._unanswered[self._number]
                return Refused(dead=True)
        raise self.strange("commit")

    def commit_all(self, beside: Beside) -> None:
        """Write what is beside rows, whatever others do. Raises StoreError."""
        for _ in range(TRIES):
            if isinstance(self.commit([], beside), Accepted):
                return
        raise self.busy()

    def _settle(self, found: object) -> bool:
        """Say whether a write without an answer was accepted, by the row of the last one."""
        if not isinstance(found, list) or len(found) != 1:
            raise self.strange("rows")
        last = StoredRow.read(found[0]).version
        if last == self._accepted:
            return False  # one may be on its way yet, until another is accepted
        self._accepted = last
        accepted = self._unanswered.get(last)
        self._unanswered.clear()
        if accepted is not None:
            accepted()
        return True

    def change_rows(
        self,
        table: str,
        names: Collection[str],
        decide: Callable[[Mapping[str, bytes]], tuple[Value, Mapping[str, bytes]]],
    ) -> Value:
        """Write what *decide* makes of the rows *names* of *table*, and return its result."""
        for _ in range(TRIES):
            found = self.call("rows", table, *names)
            if not isinstance(found, list) or len(found) != len(names):
                raise self.strange("rows")
            rows = dict(zip(names, map(StoredRow.read, found), strict=True))
            result, changed = decide({name: row.data for name, row in rows.items()})
            changes = [Change(table, n, rows[n].version, data) for n, data in changed.items()]
            if not changes or isinstance(self.commit(changes), Accepted):
                return result
        raise self.busy()

    def pages(self, table: str) -> Iterator[tuple[str, StoredRow]]:
        """Return name and row of all rows of *table*."""
        for found in self.parts("page", table):
            for name, row in zip(found[::2], found[1::2], strict=False):
                yield decoded(name), StoredRow.read(row)

    def parts(self, function: str, name: str) -> Iterator[list[Any]]:
        """Return the parts of the answer to *function*, each of which names the next."""
        cursor = b"0"
        for _ in range(MAX_PAGES):
            match self.call(function, name, cursor):
                case [bytes(cursor), list(found)]:
                    yield found
                case _:
                    raise self.strange(function)
            if cursor == b"0":
                return

    # -- what is wrong

    def tell_damaged(self, kind: str, name: object) -> None:
        """Say once that a row makes no sense; it is as good as not there."""
        if (kind, name) not in self._told and len(self._told) < MAX_TOLD:
            self._told.add((kind, name))
            logger.warning(
                f"account-pool: in the state engine {self.engine.address} a row of {kind} makes "
                "no sense and is left out"
            )

    def strange(self, function: str) -> StoreError:
        return StoreError(
            f"the state engine {self.engine.address} gave an unexpected answer to {function}"
        )

    def busy(self) -> StoreError:
        return StoreError(
            f"the state engine {self.engine.address} is busy: other proxies keep changing the same "
            "row"
        )


def triples(found: Sequence[object]) -> Iterator[tuple[str, str, StoredRow]]:
    """Return tables, names and rows."""
    for table, name, row in zip(found[::3], found[1::3], found[2::3], strict=False):
        yield decoded(table), decoded(name), StoredRow.read(row)


def decoded(name: object) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else ""


def _version(change: Change) -> int | str:
    return "*" if change.version is None else change.version


def _listed(entries: Sequence[tuple[Argument, ...]]) -> Iterator[Argument]:
    yield len(entries)
    for entry in entries:
        yield from entry
