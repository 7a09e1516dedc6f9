"""What the store does not know yet of a pool: taken for one write, put back if that fails."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

from account_pool.core.account import AccountKey
from account_pool.core.errors import UnknownAccount
from account_pool.core.snapshot import AccountSnapshot, PoolSnapshot
from account_pool.core.state import AccountState
from account_pool.core.usage_totals import Counted
from account_pool.proxy.books import Book, Taken
from account_pool.proxy.service import Service
from account_pool.store.store import Numbered, Row, StateStore, StoreError, TableChanges, UnfitError
from account_pool.supervision import where

#: What is kept beside the accounts, by the name of its book.
BOOKS = ("sessions", "pins")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is written at once.

    Attributes:
        mine: accounts as they are.
        gone: accounts that are no longer here, or anew.
        lines, taken: changes by book, as the store and as the book wants them.
        counts, number: by name, and which they are.
        in_flight: requests, where others do not know of them.
    """

    mine: PoolSnapshot
    gone: Collection[AccountKey]
    lines: Mapping[str, TableChanges]
    taken: Mapping[str, Taken]
    counts: Mapping[str, Counted]
    number: Numbered | None
    in_flight: Mapping[AccountKey, int]

    def write(self, store: StateStore) -> Written:
        """Write it; return what is true then. Blocks. Raises StoreError."""
        try:
            return Written(self._exchange(store))
        except StoreError as e:
            if not isinstance(e, UnfitError):
                raise
        except Exception:  # noqa: S110 - found and told below
            pass
        return self._write_apart(store)

    def _exchange(self, store: StateStore) -> PoolSnapshot:
        return store.exchange(
            self.mine.accounts,
            self.gone,
            wall_now=self.mine.wall_at,
            lines=self.lines,
            counts=self.counts,
            batch=self.number,
            in_flight=self.in_flight,
        )

    def _write_apart(self, store: StateStore) -> Written:
        """Write all but what cannot be written, which is looked for by halves."""
        saved: list[PoolSnapshot] = []
        unfit: dict[str, str] = {}
        todo = [self._parts()]
        while todo:
            parts = todo.pop()
            try:
                saved.append(self._of(parts)._exchange(store))
            except StoreError as e:
                if not isinstance(e, UnfitError):
                    if not any(part.counts for part in parts) or not saved:
                        raise
                    # Some sums may be in the store: to add them again would be worse.
                    unfit[_COUNTS] = type(e).__name__
                elif len(parts) == 1:
                    unfit[parts[0].what] = str(e)
                else:
                    todo += _halves(parts)
            except Exception as e:
                if len(parts) == 1:
                    unfit[parts[0].what] = where(e)
                else:
                    todo += _halves(parts)
        return Written(_together(saved, self.mine), unfit)

    def _parts(self) -> list[_Part]:
        """Return what can be written by itself; sums come last."""
        with_account = {account.key for account in self.mine.accounts}
        parts = [
            _Part("an account", accounts=(a,), gone=(a.key,) if a.key in self.gone else ())
            for a in self.mine.accounts
        ]
        parts += [_Part("an account", gone=(k,)) for k in self.gone if k not in with_account]
        parts += [
            _Part("requests in flight", in_flight={key: n}) for key, n in self.in_flight.items()
        ]
        for book, lines in self.lines.items():
            parts += [_Part(book, lines={book: TableChanges([row], {})}) for row in lines.rows]
            parts += [
                _Part(book, lines={book: TableChanges([], {k: at})}) for k, at in lines.gone.items()
            ]
        for name, counted in self.counts.items():
            parts += [_Part(_COUNTS, counts={name: {k: sums}}) for k, sums in counted.items()]
        return parts

    def _of(self, parts: Sequence[_Part]) -> Batch:
        """Return a batch of *parts* only."""
        lines: dict[str, TableChanges] = {}
        counts: dict[str, Counted] = {}
        for part in parts:
            for book, more in part.lines.items():
                known = lines.get(book, TableChanges([], {}))
                lines[book] = TableChanges([*known.rows, *more.rows], {**known.gone, **more.gone})
            for name, counted in part.counts.items():
                counts.setdefault(name, {}).update(counted)
        accounts = tuple(account for part in parts for account in part.accounts)
        return Batch(
            mine=replace(self.mine, accounts=accounts),
            gone=[key for part in parts for key in part.gone],
            lines=lines,
            taken={},
            counts=counts,
            # As a whole they were not written, and nothing of it comes again.
            number=None,
            in_flight={key: n for part in parts for key, n in part.in_flight.items()},
        )


@dataclass(frozen=True, slots=True)
class Written:
    """What is true after a batch was written.

    Attributes:
        saved: as the store answered.
        unfit: what of it could not be written, with what was wrong.
    """

    saved: PoolSnapshot
    unfit: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Part:
    """The least of a batch that is written by itself."""

    what: str
    accounts: tuple[AccountSnapshot, ...] = ()
    gone: tuple[AccountKey, ...] = ()
    lines: Mapping[str, TableChanges] = field(default_factory=dict)
    counts: Mapping[str, Counted] = field(default_factory=dict)
    in_flight: Mapping[AccountKey, int] = field(default_factory=dict)


_COUNTS = "sums"


def _halves(parts: list[_Part]) -> list[list[_Part]]:
    """Return both halves, the first one last: it is taken first."""
    middle = len(parts) // 2
    return [parts[middle:], parts[:middle]]


def _together(saved: Sequence[PoolSnapshot], mine: PoolSnapshot) -> PoolSnapshot:
    """Return what is true of all. Others had written last before the first of ours."""
    if not saved:
        return replace(mine, accounts=())
    return PoolSnapshot(
        accounts=tuple(account for one in saved for account in one.accounts),
        wall_at=saved[0].wall_at,
        replaced=frozenset().union(*(one.replaced for one in saved)),
    )


class Unwritten:
    """Collects what changes in the pool, the sessions, the pins and the counters.

    Args:
        service: whose they are.
        wall: returns now, on the wall clock of what is kept.
        changed: called after each change.
        urgent: called after one that must not be lost.
    """

    def __init__(
        self,
        service: Service,
        wall: Callable[[], float],
        changed: Callable[[], None],
        urgent: Callable[[], None],
    ) -> None:
        self._service = service
        self._pool = pool = service.pool
        self._wall = wall
        self._changed, self._urgent = changed, urgent
        #: accounts by the position they had; one that came back has another
        self._positions: dict[AccountKey, int] = {}
        #: requests in flight, as others were told
        self._told: dict[AccountKey, int] = {}
        #: the counts that were taken last
        self._number = Numbered(uuid4().hex, 0)
        #: counts of which nobody knows whether they were added, with their number
        self._again: tuple[Numbered, Mapping[str, Counted]] | None = None
        self.books = {"sessions": self._sessions(), "pins": self._pins()}
        for counts in service.counters.values():
            counts.changed = changed
        self.unsubscribe = pool.subscribe(changed)

    def meet(self, books: Mapping[str, list[Row]]) -> None:
        """Begin with a store that has these *books*: take them over, and write all we know."""
        self._positions.clear()
        for name, book in self.books.items():
            book.written = {row[0]: row for row in books[name]}
            book.adopt(books[name])
        self.note_used()
        self._pool.dirty.update(state.key for state in self._pool.accounts())

    def note_used(self) -> None:
        """Have written when sessions and pins were used last."""
        self._service.pins.note_used(self._service.wall_now())
        for book in self.books.values():
            book.note_used()

    def in_flight(self) -> Mapping[AccountKey, int]:
        """Return all requests in flight, to be told to the others."""
        held = {state.key: state.in_flight for state in self._pool.accounts()}
        self._told = {key: requests for key, requests in held.items() if requests}
        return dict(self._told)

    def take(self, to_read: Collection[AccountKey], *, tell: bool) -> Batch | None:
        """Return what has changed, None if nothing has; `wrote` or `put_back` must follow.

        Args:
            to_read: accounts that others may have changed.
            tell: there are others who want to know what is in flight.
        """
        pool = self._pool
        touched = frozenset(pool.dirty)
        keys = touched.union(to_read)
        taken = {name: book.take() for name, book in self.books.items() if book.changed}
        counters = self._service.counters
        if self._again is None:
            counts = {name: book.take() for name, book in counters.items() if book.waiting}
            if counts:
                self._number = self._number._replace(number=self._number.number + 1)
                self._again = self._number, counts
        if not (keys or taken or self._again):
            return None
        number, added = self._again or (None, {})
        pool.dirty.clear()
        pool.urgent = False
        return Batch(
            mine=pool.snapshot(keys, now=self._service.now(), wall_now=self._wall()),
            gone=self._not_as_before(touched),
            lines={name: self.books[name].lines(lines) for name, lines in taken.items()},
            taken=taken,
            counts=added,
            number=number,
            in_flight=self._untold(touched) if tell else {},
        )

    def wrote(self, batch: Batch, replaced: Iterable[AccountKey]) -> None:
        """*batch* is in the store. What the accounts *replaced* have made is not theirs."""
        if batch.number is not None:
            self._again = None
            if any(counter.waiting for counter in self._service.counters.values()):
                self._changed()
        for name, taken in batch.taken.items():
            self.books[name].wrote(taken)
        for key in replaced:
            self._service.pins.forget(key)

    def uncertain(self, name: str) -> Counted:
        """Return the counts of *name* that were taken, and may not be in the store."""
        return {} if self._again is None else self._again[1].get(name, {})

    def put_back(self, batch: Batch) -> None:
        """*batch* could not be written, or nobody knows: its counts come again as they are."""
        self._pool.dirty.update(batch.gone, (account.key for account in batch.mine.accounts))
        for name, taken in batch.taken.items():
            self.books[name].put_back(taken)
        for key in batch.gone:
            self._positions.pop(key, None)

    def _sessions(self) -> Book:
        sessions, now, wall = self._service.sessions, self._service.now, self._wall
        book = Book(
            row=lambda key: sessions.row(key, now(), wall()),
            rows=lambda: sessions.snapshot(now(), wall()),
            take_over=lambda rows: sessions.adopt(rows, now(), wall()),
            forget=lambda gone: sessions.drop(gone, now(), wall()),
        )
        sessions.changed = self._noting(book)
        return book

    def _pins(self) -> Book:
        pins, wall = self._service.pins, self._service.wall_now

        def kept(row: Row, sign: int = 1) -> Row:
            """Pins have wall time, and the store a clock of its own."""
            shift = sign * round(self._wall() - wall(), 3)
            return row[0], row[1], round(row[2] + shift, 3)

        book = Book(
            row=lambda pin: None if (row := pins.row(pin)) is None else kept(row),
            rows=lambda: [kept(row) for row in pins.snapshot()],
            take_over=lambda rows: pins.adopt(kept(row, -1) for row in rows),
            forget=lambda gone: pins.drop(
                {pin: kept((pin, "", at), -1)[2] for pin, at in gone.items()}
            ),
        )
        pins.changed = self._noting(book)
        return book

    def _noting(self, book: Book) -> Callable[[str], None]:
        """Return what is to be told the keys of the changes of *book*."""

        def changed(key: str) -> None:
            book.changed.add(key)
            self._urgent()

        return changed

    def _not_as_before(self, touched: Iterable[AccountKey]) -> set[AccountKey]:
        """Return which of *touched* are no longer here, or not the same that were written."""
        changed = set()
        for key, state in self._states(touched):
            position = None if state is None else state.position
            if self._positions.get(key) != position:
                changed.add(key)
            if position is None:
                self._positions.pop(key, None)
            else:
                self._positions[key] = position
        return changed

    def _untold(self, touched: Iterable[AccountKey]) -> dict[AccountKey, int]:
        """Return the requests in flight of which others do not know."""
        held = {key: state.in_flight if state else 0 for key, state in self._states(touched)}
        untold = {key: n for key, n in held.items() if n != self._told.get(key, 0)}
        self._told.update(untold)
        return untold

    def _states(
        self, keys: Iterable[AccountKey]
    ) -> Iterator[tuple[AccountKey, AccountState | None]]:
        for key in keys:
            try:
                yield key, self._pool.get(key)
            except UnknownAccount:
                yield key, None
