"""What the store keeps of a pool, and how several proxies share it.

A store is told what this proxy knows and answers with what is true for all of them
(`core/snapshot.py` says how that is found). Everything a proxy has to say goes in one
`exchange`, which is done as a whole or not at all: a compare-and-swap over one round trip.
What others have done is one cheap question, `changed`. What a proxy has in flight is a
lease that ends by itself when the proxy is not seen any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from account_pool.core.account import AccountKey
from account_pool.core.counts import Counted
from account_pool.core.snapshot import AccountSnapshot, PoolSnapshot

#: How often a proxy says that it is there (`StateStore.beat`), seconds.
BEAT_S = 5.0
#: How long it counts as there after it has said so, seconds. Then it is dead, or hangs.
GRACE_S = 15.0

#: A line of a book: key, account as `provider/label`, wall clock of its last use.
Row = tuple[str, str, float]


class Lines(NamedTuple):
    """Changes of a book.

    Attributes:
        rows: lines that are new or changed.
        gone: keys to be taken out, with the last use this proxy knows: a line that another
            has used since stays.
    """

    rows: Collection[Row] = ()
    gone: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherProxy:
    """Another proxy on the same store. Times are wall clock.

    Attributes:
        host, pid: the machine and the process.
        started_at: when it was seen first.
        seen_at: when it was seen last.
    """

    id: str
    host: str
    pid: int
    started_at: float
    seen_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What others have done since this was asked last.

    Attributes:
        accounts: those that may have been changed: exchange them.
        lines: lines that are new or changed, by book.
        gone: keys that were taken out, by book, with the last use that was known of them.
        elsewhere: requests in flight on all other proxies, by account; None: as before.
        proxies: who they are; None: as before.
    """

    accounts: Collection[AccountKey] = frozenset()
    gone: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lines: Mapping[str, list[Row]] = field(default_factory=dict)
    elsewhere: Mapping[AccountKey, int] | None = None
    proxies: Collection[OtherProxy] | None = None


class Numbered(NamedTuple):
    """Which counts these are: the same again are added once.

    Attributes:
        proxy: of what process.
        number: grows.
    """

    proxy: str
    number: int


class StateStore(Protocol):
    """Keeps what a pool has learnt.

    Its methods block, and are called by one thread at a time. All raise StoreError, or
    DamagedError when what is kept makes no sense; none of it is done then.

    Books: "sessions" (the account a conversation is bound to) and "pins" (the account
    that issued an id).
    """

    def exchange(
        self,
        mine: Iterable[AccountSnapshot],
        gone: Collection[AccountKey] = (),
        *,
        wall_now: float,
        lines: Mapping[str, Lines] | None = None,
        counts: Mapping[str, Counted] | None = None,
        batch: Numbered | None = None,
        in_flight: Mapping[AccountKey, int] | None = None,
    ) -> PoolSnapshot:
        """Merge *mine* with what is there, keep the result and return it.

        Args:
            gone: accounts this proxy has no more, or anew. What is kept of them stays for
                others, and for the day they come back.
            lines: changes by book; of two of a key the one used later stays.
            counts: amounts to be added, by name.
            batch: their number: a write whose answer was lost can be repeated.
            in_flight: requests of this proxy, for accounts where that has changed.

        Of the answer `wall_at` is the time of the last write before this.
        """
        ...

    def now(self) -> float | None:
        """Return how late it is by the clock that all proxies share; None: the wall clock.

        All times that are passed in, and in what is kept, are of this clock.
        """
        ...

    def changed(self, *, wall_now: float) -> News:
        """Return what others have done since this was asked last. Cheap if nothing."""
        ...

    def beat(self, in_flight: Mapping[AccountKey, int], *, wall_now: float) -> None:
        """Say that this proxy is there with these requests, and reap those that are not.

        Every BEAT_S seconds. What a proxy had in flight ends GRACE_S after its last beat.
        """
        ...

    def reap(self, proxies: Collection[str]) -> None:
        """Forget the proxies with these ids: they are known to be dead."""
        ...

    def read_book(self, book: str) -> list[Row]:
        """Return all lines of *book*, the least recently used first."""
        ...

    def read_counts(self, name: str) -> Counted:
        """Return the sums of all proxies that were added under *name*."""
        ...

    def sweep(self, present: Iterable[AccountKey], *, wall_now: float) -> None:
        """Drop what is too old for anybody; the accounts *present* are in use."""
        ...

    def close(self) -> None:
        """Give the file back; this proxy is not there any more."""
        ...
