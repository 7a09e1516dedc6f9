"""What the store keeps of a pool, and the protocol of a store that several proxies share.

A store is asked with what this proxy knows and answers with what is true for all of them
(`core/saved.py` says how that is found). One over the network implements the same four
questions: `exchange` is its compare-and-swap, `changed` its notification of changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from account_pool.core.account import AccountKey
from account_pool.core.saved import Saved, SavedAccount

#: A line of a book: key, account as `provider/label`, wall clock of its last use.
Row = tuple[str, str, float]
#: What is kept beside the accounts: which account a session is bound to, and which one
#: issued an id.
BOOKS = ("sessions", "pins")


class StateStore(Protocol):
    """Keeps what a pool has learnt.

    Its methods block, and are called by one thread at a time. All raise StoreError.
    """

    def exchange(
        self, mine: Iterable[SavedAccount], gone: Collection[AccountKey], *, wall_now: float
    ) -> Saved:
        """Merge *mine* with what is there, keep the result and return it.

        Args:
            gone: accounts of which nothing is to be kept.

        Of the answer `wall_at` is the time of the last write before this.
        """
        ...

    def changed(self) -> Collection[AccountKey]:
        """Return the accounts that may have been changed since this was asked last. Cheap."""
        ...

    def read_book(self, book: str) -> list[Row]:
        """Return all lines of *book*, the least recently used first."""
        ...

    def write_book(self, book: str, rows: Iterable[Row], gone: Iterable[str] = ()) -> None:
        """Write lines of *book*; take those with the keys *gone* out."""
        ...

    def sweep(self, present: Iterable[AccountKey], *, wall_now: float) -> None:
        """Drop what is too old for anybody; the accounts *present* are in use."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...
