"""What the store does not know yet of a pool: taken for one write, put back if that fails.

Accounts that changed are in `Accounts.dirty`; sessions and pins report the keys of their changes,
which are kept here, as is what the store has of each row: only differences are written. A
batch with rows that cannot be written is divided until those are found: they keep no other
back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from msgspec import Struct
from msgspec.structs import replace

from account_pool.core import snapshot
from account_pool.core.account import AccountKey
from account_pool.core.request_rows import LazyRows, RequestRow
from account_pool.core.sessions import Pins, Sessions
from account_pool.core.snapshot import AccountSnapshot, PoolSnapshot
from account_pool.core.state import AccountState
from account_pool.core.usage import Counted, CountKey, add_to
from account_pool.proxy.service import Service
from account_pool.proxy.store_access import StoreAccess, StoreClock
from account_pool.store.sqlite_history import known_requests
from account_pool.store.store import (
    Numbered,
    RequestAnswers,
    Row,
    StateStore,
    StoreError,
    TableChanges,
    UnfitError,
)
from account_pool.supervision import where

Value = TypeVar("Value")

#: A row is written again when it was used so much later than the store knows, seconds.
_STEP_S = 1.0
#: How long counts are kept that were written, seconds, and how many requests among them: a
#: store that has lost its last writes gets them again.
WRITTEN_KEPT_S = 10.0
MAX_WRITTEN = 2000
#: What counts are called in the log.
_SUMS = "sums"


class Table:
    """How a table of the store differs from what it is kept of.

    Args:
        clocks: returns now, by the clock of *bindings* and by that of the store.
        urgent: called after each change.

    Attributes:
        changed: keys of the rows to be written.
        fresh: those of them that changed since `fresh_rows`, or the last write.
        written: rows of *bindings* as the store has them, by key.
    """

    def __init__(
        self,
        bindings: Sessions | Pins,
        clocks: Callable[[], tuple[float, float]],
        urgent: Callable[[], None],
    ) -> None:
        self.changed: set[str] = set()
        self.fresh: set[str] = set()
        self.written: dict[str, Row] = {}
        self._bindings = bindings
        self._clocks = clocks
        self._urgent = urgent
        #: what is being written; None: the row is gone
        self._taken: dict[str, Row | None] = {}
        bindings.changed = self._note

    def note_used(self) -> None:
        """Have rows written that were used since, of which there is no report."""
        for key, account, used_at in self._bindings.snapshot(*self._clocks()):
            known = self.written.get(key)
            if known is None or known[1] != account or used_at - known[2] > _STEP_S:
                self.changed.add(key)

    def fresh_rows(self) -> list[Row]:
        """Return what has just changed, once; rows that are gone come with the write."""
        clocks = self._clocks()
        rows = [self._bindings.row(key, *clocks) for key in self.fresh]
        self.fresh.clear()
        return [row for row in rows if row is not None]

    def adopt(self, rows: Collection[Row]) -> None:
        """Take over rows that other proxies have written."""
        clocks = self._clocks()
        self._bindings.adopt(rows, *clocks)
        for row in rows:
            if self._bindings.row(row[0], *clocks) is not None:
                self.written[row[0]] = row

    def drop(self, gone: Mapping[str, float]) -> None:
        """Take out rows that others have taken out, unless they were used here since."""
        self._bindings.drop(gone, *self._clocks())
        for key in gone:
            self.written.pop(key, None)

    def take(self) -> TableChanges:
        """Return what is to be written; `wrote` or `put_back` must follow."""
        clocks = self._clocks()
        self._taken = {key: self._bindings.row(key, *clocks) for key in self.changed}
        self.changed.clear()
        self.fresh.clear()
        return TableChanges(
            rows=[row for row in self._taken.values() if row is not None],
            gone={
                key: self.written[key][2]
                for key, row in self._taken.items()
                if row is None and key in self.written
            },
        )

    def wrote(self) -> None:
        """The store has what was taken."""
        taken, self._taken = self._taken, {}
        for key, row in taken.items():
            if row is None:
                self.written.pop(key, None)
            else:
                self.written[key] = row

    def put_back(self) -> None:
        """What was taken could not be written.

        What came and went without ever being written need not be: a store may fail for
        days, and conversations come by the thousand.
        """
        taken, self._taken = self._taken, {}
        self.changed.update(k for k, row in taken.items() if row is not None or k in self.written)

    def _note(self, key: str) -> None:
        self.changed.add(key)
        self.fresh.add(key)
        self._urgent()


class Counts(Struct, frozen=True):
    """Counts and requests that are added at once, and once.

    Attributes:
        number: identifies them; later ones have larger numbers.
        sums: what to add, by counter.
        ended: rows about requests that have ended.
    """

    number: Numbered
    sums: Mapping[str, Counted]
    ended: Sequence[RequestRow]


class Written(NamedTuple):
    """What has become of a batch.

    Attributes:
        saved: what the store has of it.
        unfit: which kinds of rows ("sessions", "an account") could not be written, with what is
            wrong with them.
        failed: why the store could not be used for the rest.
    """

    saved: PoolSnapshot
    unfit: Mapping[str, str]
    failed: StoreError | None


class Batch(Struct, frozen=True, kw_only=True):
    """What is written at once, row by row, so that it can be divided.

    Attributes:
        wall_at: when it was taken, on the clock of the store.
        number: identifies its counts, so that they are added once.
        left: what accounts that were removed had learnt until then; written before all others:
            else whoever adds one again would get what was known of it before.
        gone: accounts that were removed, or removed and added again; written before `accounts`,
            which the store must not merge with what it knew of them.
        accounts: accounts as they are.
        in_flight: requests of those accounts, if there are other proxies.
        rows: new and changed rows, with their table.
        removed: table, key and last known use of rows that are gone.
        counts: name of the counter, key and amounts to be added.
        ended: requests of which a row is written; like counts once.
        urgent: other proxies are to know at once.
    """

    wall_at: float
    number: Numbered | None
    left: Sequence[AccountSnapshot]
    gone: Sequence[AccountKey]
    accounts: Sequence[AccountSnapshot]
    in_flight: Sequence[tuple[AccountKey, int]]
    rows: Sequence[tuple[str, Row]]
    removed: Sequence[tuple[str, str, float]]
    counts: Sequence[tuple[str, CountKey, Mapping[str, float]]]
    ended: Sequence[RequestRow] = ()
    urgent: bool = False

    def write(self, store: StateStore) -> Written:
        """Write it; blocks. Raises StoreError where nothing was written."""
        saved: list[PoolSnapshot] = []
        unfit: dict[str, str] = {}
        failed: StoreError | None = None
        todo = [self]
        while todo:
            part = todo.pop()
            try:
                saved.append(part._exchange(store))
                continue
            except Exception as e:
                if isinstance(e, StoreError) and not isinstance(e, UnfitError):
                    if (part.counts or part.ended) and part.number is None:
                        # Some may be in the store: to add them again would be worse.
                        unfit[_SUMS] = type(e).__name__
                        continue
                    if not saved:
                        raise
                    failed = e
                    break
                if not len(part):
                    raise
                wrong = str(e) if isinstance(e, StoreError) else where(e)
            if len(part) == 1:
                unfit[part._kind()] = wrong
            else:
                todo += part._divided()
        merged = PoolSnapshot(
            accounts=tuple(account for one in saved for account in one.accounts),
            # Others had last written before the first part was.
            wall_at=saved[0].wall_at if saved else self.wall_at,
            replaced=frozenset().union(*(one.replaced for one in saved)),
        )
        return Written(merged, unfit, failed)

    def __len__(self) -> int:
        return sum(len(getattr(self, kind)) for kind in _KINDS)

    def _divided(self) -> list[Batch]:
        """Return its second part, and its first.

        Counts and rows of requests stay together as long as they may be in the store already:
        those that have a number are not added again, and once they are refused it is known that
        they are not there.
        """
        others = len(self) - len(self.counts) - len(self.ended)
        if self.number is not None and others:
            counts = replace(self._rows(others, len(self)), number=self.number)
            return [counts, self._rows(0, others)]
        middle = len(self) // 2
        return [self._rows(middle, len(self)), self._rows(0, middle)]

    def _rows(self, start: int, stop: int) -> Batch:
        """Return a part of it, without a number."""
        parts: dict[str, Any] = {}
        for kind in _KINDS:
            rows = getattr(self, kind)
            parts[kind] = rows[max(start, 0) : max(stop, 0)]
            start, stop = start - len(rows), stop - len(rows)
        return replace(self, number=None, **parts)

    def _kind(self) -> str:
        """Say what its only row is."""
        [kind] = [kind for kind in _KINDS if getattr(self, kind)]
        return _KINDS[kind] or str(getattr(self, kind)[0][0])

    def _exchange(self, store: StateStore) -> PoolSnapshot:
        rows: dict[str, list[Row]] = {}
        gone: dict[str, dict[str, float]] = {}
        counts: dict[str, Counted] = {}
        for table, row in self.rows:
            rows.setdefault(table, []).append(row)
        for table, key, used_at in self.removed:
            gone.setdefault(table, {})[key] = used_at
        for name, count_key, amounts in self.counts:
            counts.setdefault(name, {})[count_key] = dict(amounts)
        if self.left:
            store.exchange(self.left, wall_now=self.wall_at)
        return store.exchange(
            self.accounts,
            self.gone,
            wall_now=self.wall_at,
            lines={t: TableChanges(rows.get(t, ()), gone.get(t, {})) for t in {**rows, **gone}},
            counts=counts,
            batch=self.number,
            in_flight=dict(self.in_flight),
            requests=list(self.ended),
            urgent=self.urgent,
        )


#: The kinds of rows of a batch, in the order in which they are written, and what they are
#: called; "": by their table.
_KINDS = {
    "left": "an account",
    "gone": "an account",
    "accounts": "an account",
    "in_flight": "requests in flight",
    "rows": "",
    "removed": "",
    "counts": _SUMS,
    "ended": "a request",
}


class PendingWrites:
    """Collects what changes in the pool, the sessions, the pins and the counters.

    Args:
        service: what has them.
        clock: that of the store.
        changed: called after each change.
        urgent: called after one to a session or a pin, which must not be lost.

    Attributes:
        tables: by name ("sessions", "pins").
        push: called with rows, by table, that other proxies should know before they are
            written; None where there are no other workers.
    """

    def __init__(
        self,
        service: Service,
        clock: StoreClock,
        changed: Callable[[], None],
        urgent: Callable[[], None],
    ) -> None:
        self._service = service
        self._accounts = service.pool.accounts
        self._clock = clock
        self._changed = changed
        self._urgent = urgent
        self.push: Callable[[Mapping[str, list[Row]]], object] | None = None
        self._pushing = False
        #: accounts by the position they had; one that came back has another
        self._positions: dict[AccountKey, int] = {}
        #: accounts that were removed before all that they had learnt was taken
        self._left: dict[AccountKey, AccountSnapshot] = {}
        self._accounts.on_leaving = self._note_left
        self._number = Numbered(uuid4().hex, 0)
        #: counts that were taken, and may or may not be in the store
        self._counts: Counts | None = None
        #: others that may or may not be there, as they were taken
        self._again: deque[Counts] = deque()
        #: those that were written last, and when
        self._written: deque[tuple[float, Counts]] = deque()
        self.tables = {
            "sessions": Table(service.sessions, clock.both, self._note_urgent),
            "pins": Table(
                service.pins, lambda: (service.wall_now(), clock.wall()), self._note_urgent
            ),
        }
        for counter in service.counters.values():
            counter.changed = changed
        service.ended.changed = changed
        self._accounts.on_dirty = changed

    def begin(self, tables: Mapping[str, list[Row]]) -> None:
        """Begin with a store that has these *tables*: take them over, and write all we know.

        It may be older than what was written last. Counts have numbers: what it has of them is
        not added again.
        """
        taken = [counts for _, counts in self._written]
        if self._counts is not None:
            taken.append(self._counts)
        # In the order of their numbers: after a larger one, a smaller is taken for done.
        self._again = deque([*taken, *self._again])
        self._written.clear()
        self._counts = None
        for name, table in self.tables.items():
            table.written.clear()
            table.adopt(tables[name])
        self.note_used()
        self._accounts.dirty.update(state.key for state in self._accounts)

    def adopt(self, tables: Mapping[str, list[Row]]) -> None:
        """Take over rows that another proxy has pushed."""
        for name, rows in tables.items():
            self.tables[name].adopt(rows)

    def adopt_left(
        self,
        before: Mapping[AccountKey, AccountSnapshot],
        news: Mapping[AccountKey, AccountSnapshot],
    ) -> None:
        """Let accounts that were removed during a write know what others had learnt, too.

        What they do not take over would look as if they had ended it. *before*: as they were
        written.
        """
        for key in self._left.keys() & news.keys():
            self._left[key] = snapshot.merge(before[key], self._left[key], news[key])

    def note_used(self) -> None:
        """Have written when sessions and pins were used last."""
        self._service.pins.note_used(self._service.wall_now())
        for table in self.tables.values():
            table.note_used()

    def take(self, *, in_flight: bool, urgent: bool = False) -> Batch | None:
        """Return what has changed, None if nothing has; `wrote` or `put_back` must follow.

        *in_flight*: there are other proxies, which need to know it; *urgent*: at once.
        """
        accounts = self._accounts
        dirty = list(accounts.dirty)
        counts = self._counts = self._counts or self._take_counts()
        changes = {name: table.take() for name, table in self.tables.items() if table.changed}
        if not (dirty or changes or counts):
            return None
        accounts.dirty.clear()
        left, self._left = self._left, {}
        wall = self._clock.wall()
        return Batch(
            wall_at=wall,
            number=counts.number if counts else None,
            left=list(left.values()),
            gone=self._gone(dirty),
            accounts=snapshot.take(
                accounts, dirty, wall_now=wall, ahead=self._clock.ahead
            ).accounts,
            in_flight=[
                (key, state.in_flight if (state := accounts.find(key)) else 0)
                for key in (dirty if in_flight else ())
            ],
            rows=[(name, row) for name, table in changes.items() for row in table.rows],
            removed=[
                (n, key, at) for n, table in changes.items() for key, at in table.gone.items()
            ],
            counts=[
                (name, key, amounts)
                for name, sums in (counts.sums if counts else {}).items()
                for key, amounts in sums.items()
            ],
            ended=counts.ended if counts else (),
            urgent=urgent,
        )

    def wrote(self, batch: Batch, replaced: Iterable[AccountKey]) -> None:
        """*batch* is in the store. What the accounts *replaced* have made is not theirs."""
        if self._counts is not None:
            if self._counts.ended:
                self._service.rows_written()
            self._keep_written(self._counts)
            self._counts = None
            waiting = any(counter.waiting for counter in self._service.counters.values())
            if waiting or self._service.ended.waiting or self._again:
                self._changed()
        for table in self.tables.values():
            table.wrote()
        self._forget_pins(replaced)

    def put_back(self, batch: Batch, replaced: Iterable[AccountKey] = ()) -> None:
        """*batch* was not written, as far as is known. Its counts come again with their number.

        *replaced*: of what was written of it, as for `wrote`.
        """
        self._accounts.dirty.update(batch.gone, (account.key for account in batch.accounts))
        for table in self.tables.values():
            table.put_back()
        self._left |= {account.key: account for account in batch.left}
        for key in batch.gone:
            self._positions.pop(key, None)
        self._forget_pins(replaced)
        if batch.urgent:
            self._urgent()

    def _forget_pins(self, replaced: Iterable[AccountKey]) -> None:
        for key in replaced:
            self._service.pins.forget(key)

    @property
    def writes(self) -> int:
        """How many writes it takes until all counts are in the store, at most."""
        return len(self._again) + (self._counts is not None) + 1

    def uncertain(self, name: str) -> Counted:
        """Return the counts of *name* that were taken, and may not be in the store."""
        return self._counts.sums.get(name, {}) if self._counts else {}

    def known_ended(self) -> list[Sequence[RequestRow]]:
        """Return the requests that this proxy knows of: not written, or a short while ago."""
        taken = [counts for _, counts in self._written]
        taken += [*self._again, *([self._counts] if self._counts else ())]
        return [*(counts.ended for counts in taken), LazyRows(list(self._service.ended.waiting))]

    def _take_counts(self) -> Counts | None:
        """Return the counts that are written next, None if there are none."""
        if self._again:
            return self._again.popleft()
        counters = self._service.counters
        sums = {name: counter.take() for name, counter in counters.items() if counter.waiting}
        ended = self._service.ended.take()
        if not (sums or ended):
            return None
        self._number = self._number._replace(number=self._number.number + 1)
        return Counts(self._number, sums, LazyRows(ended))

    def _keep_written(self, counts: Counts) -> None:
        now, written = self._service.now(), self._written
        written.append((now, counts))
        rows = sum(len(one.ended) for _, one in written)
        while written and (now - written[0][0] > WRITTEN_KEPT_S or rows > MAX_WRITTEN):
            rows -= len(written.popleft()[1].ended)

    def _note_urgent(self) -> None:
        if self.push is not None and not self._pushing:
            # All that one event of the loop changes goes at once.
            self._pushing = True
            asyncio.get_running_loop().call_soon(self._push)
        self._urgent()

    def _push(self) -> None:
        self._pushing = False
        found = {name: table.fresh_rows() for name, table in self.tables.items()}
        tables = {name: rows for name, rows in found.items() if rows}
        if tables and self.push is not None:
            self.push(tables)

    def _note_left(self, state: AccountState) -> None:
        key, accounts = state.key, self._accounts
        if key in accounts.dirty and self._positions.get(key) == state.position:
            owner = accounts.owners.get(key)
            self._left[key] = snapshot.of_state(state, owner, self._clock.ahead)

    def _gone(self, dirty: Iterable[AccountKey]) -> list[AccountKey]:
        """Return which of *dirty* are no longer here, or not the same that were written."""
        gone = []
        for key in dirty:
            state = self._accounts.find(key)
            position = None if state is None else state.position
            if self._positions.get(key) != position:
                gone.append(key)
            if position is None:
                self._positions.pop(key, None)
            else:
                self._positions[key] = position
        return gone


class KnownHistory:
    """What this proxy itself knows of requests, whatever becomes of the store."""

    def __init__(self, service: Service, access: StoreAccess, pending: PendingWrites) -> None:
        self._service, self._access, self._pending = service, access, pending
        #: as they were read last, by name
        self._sums: dict[str, Counted] = {}

    def note(self, name: str, sums: Counted) -> None:
        """These *sums* were read."""
        self._sums[name] = {key: dict(amounts) for key, amounts in sums.items()}

    def counts(self, name: str) -> Counted:
        """Return the sums of *name* as they were read last, and what is not written yet."""
        sums = {key: dict(amounts) for key, amounts in self._sums.get(name, {}).items()}
        add_to(sums, self._service.counters[name].waiting)
        add_to(sums, self._pending.uncertain(name))
        return sums

    async def ask(self, question: Callable[[RequestAnswers], Value]) -> Value:
        """Return the answer to *question*, of what was read before and what is not written yet.

        Raises StoreError.
        """
        store, ended = self._access.store, self._pending.known_ended()

        def answer() -> Value:
            rows = list(chain.from_iterable(ended))
            return question(store.requests.known(rows) if store else known_requests(rows))

        return await asyncio.to_thread(answer)
