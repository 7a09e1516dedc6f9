"""What the store keeps of a pool, and how several proxies share it.

A proxy sends the store what it knows, and gets back the merged state of all proxies
(`core/snapshot.py` merges). Everything goes in one `exchange`, which is done as a whole or
not at all: a compare-and-swap in one round trip. `changed` is a cheap query for what others
have done. What a proxy has in flight is a lease that ends by itself once the proxy is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from account_pool.core.account import AccountKey
from account_pool.core.snapshot import AccountSnapshot, PoolSnapshot
from account_pool.core.usage_totals import Counted

#: How often a proxy sends a heartbeat (`StateStore.beat`), seconds.
BEAT_S = 5.0
#: How long a proxy counts as running after a heartbeat, seconds. After that it is dead, or
#: hangs.
GRACE_S = 15.0

#: A row of a table: key, account as `provider/label`, last use in seconds since the epoch.
Row = tuple[str, str, float]


class TableChanges(NamedTuple):
    """Changes of a table.

    Attributes:
        rows: rows that are new or changed.
        gone: keys to be removed, with the last use that this proxy knows: a row that another
            has used since stays.
    """

    rows: Collection[Row] = ()
    gone: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherProxy:
    """Another proxy on the same store. Times are seconds since the epoch.

    Attributes:
        host, pid: its machine and process.
        started_at: its first heartbeat.
        seen_at: its last heartbeat.
    """

    id: str
    host: str
    pid: int
    started_at: float
    seen_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What other proxies have done since the last query.

    Attributes:
        accounts: accounts that may have changed: exchange them.
        lines: rows that are new or changed, by table.
        gone: keys that were removed, by table, with the last use known of them.
        in_flight_remote: requests in flight on all other proxies, by account; None: as before.
        proxies: the other proxies; None: as before.
    """

    accounts: Collection[AccountKey] = frozenset()
    gone: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lines: Mapping[str, list[Row]] = field(default_factory=dict)
    in_flight_remote: Mapping[AccountKey, int] | None = None
    proxies: Collection[OtherProxy] | None = None


class Numbered(NamedTuple):
    """Identifies a batch of counts, which is added once however often it is sent.

    Attributes:
        proxy: the process that sends it.
        number: grows with each batch.
    """

    proxy: str
    number: int


class StateStore(Protocol):
    """Keeps what a pool has learnt.

    Its methods block, and are called by one thread at a time. All raise StoreError, or
    DamagedError if the stored data makes no sense; nothing is changed then.

    Tables: "sessions" (the account that a conversation is bound to) and "pins" (the account
    that issued an id).
    """

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
    ) -> PoolSnapshot:
        """Merge *mine* with what is stored, store the result and return it.

        Args:
            gone: accounts that this proxy no longer has, or has again. What is stored of them
                stays, for other proxies and for when they come back.
            lines: changes by table; of two rows with one key the one used later stays.
            counts: amounts to be added, by name.
            batch: their number, so that a write with an unknown result can be repeated.
            in_flight: requests of this proxy, for accounts where their number has changed.

        `wall_at` of the result is the time of the last write before this one.
        """
        ...

    def now(self) -> float | None:
        """Return the time on the clock that all proxies share; None: that is the wall clock.

        All times that are passed in or stored are times of this clock.
        """
        ...

    def changed(self, *, wall_now: float) -> News:
        """Return what others have done since the last call. Cheap if that is nothing."""
        ...

    def beat(self, in_flight: Mapping[AccountKey, int], *, wall_now: float) -> None:
        """Send a heartbeat with the requests in flight, and forget proxies that stopped theirs.

        Call it every BEAT_S seconds. What a proxy had in flight ends GRACE_S after its last one.
        """
        ...

    def reap(self, proxies: Collection[str]) -> None:
        """Forget the proxies with these ids: they are known to be dead."""
        ...

    def read_table(self, table: str) -> list[Row]:
        """Return all rows of *table*, least recently used first."""
        ...

    def read_counts(self, name: str) -> Counted:
        """Return the sums over all proxies under *name*."""
        ...

    def sweep(self, present: Iterable[AccountKey], *, wall_now: float) -> None:
        """Delete what is too old to be used; the accounts *present* are in use."""
        ...

    def close(self) -> None:
        """Close the file; this proxy is gone for the others."""
        ...
