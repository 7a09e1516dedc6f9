"""A store that is forgotten at the end of the process: `pool_state=memory:`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from account_pool.core import claims
from account_pool.core.account import AccountKey
from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.core.snapshot import AccountSnapshot, PoolSnapshot, merge, of_another
from account_pool.core.usage_totals import Counted, add_to
from account_pool.store.state import News, Numbered, Row, TableChanges
from account_pool.store.tokens import Tokens


class MemoryTokens:
    """A `TokenStore` in memory."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[Tokens, int]] = {}
        self._claims: dict[str, Claim] = {}

    def load(self, family: str) -> Tokens | None:
        with self._lock:
            found = self._tokens.get(family)
            return None if found is None else found[0]

    def save(
        self, family: str, tokens: Tokens, *, replaces: Secret | None = None, fence: int = 0
    ) -> bool:
        with self._lock:
            if replaces is not None and family in self._tokens:
                stored, stored_fence = self._tokens[family]
                same = stored.refresh == replaces
                if not claims.may_save(stored_fence, fence, is_same_token=same):
                    return False
            self._tokens[family] = tokens, fence
            self._claims[family] = claims.answered(self._found(family), fence)
            return True

    def claim(self, family: str, owner: str, *, token: Secret, is_over: bool) -> Claim | Taken:
        with self._lock:
            asked = claims.ask(
                self._found(family),
                owner,
                token=token.digest(),
                now=self._clock(),
                is_gone=False,  # with its process the store is gone, too
                is_over=is_over,
            )
            if isinstance(asked, Claim):
                self._claims[family] = asked
            return asked

    def sending(self, family: str, fence: int, token: Secret) -> bool:
        with self._lock:
            found = self._found(family)
            sent = claims.send(found, fence, token=token.digest(), now=self._clock())
            if sent is not None:
                self._claims[family] = sent
            return sent is not None

    def release(self, family: str, fence: int, *, unknown: bool = False) -> None:
        with self._lock:
            self._claims[family] = claims.release(self._found(family), fence, unknown=unknown)

    def keep(self) -> None:
        """It is."""

    def close(self) -> None:
        """Nothing is open."""

    def _found(self, family: str) -> Claim:
        return self._claims.get(family, Claim())


class MemoryState:
    """A `StateStore` in memory: that of the only proxy which can see it."""

    def __init__(self) -> None:
        self._accounts: dict[AccountKey, AccountSnapshot] = {}
        #: what the pool knows of it; an account that came back knows nothing
        self._base: dict[AccountKey, AccountSnapshot] = {}
        self._tables: dict[str, dict[str, Row]] = {}
        self._counts: dict[str, Counted] = {}
        self._batches: dict[str, int] = {}
        self._wall_at = 0.0

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
        for key in gone:
            self._base.pop(key, None)
        mine = list(mine)
        found = {account.key: self._accounts.get(account.key) for account in mine}
        merged = tuple(merge(self._base.get(a.key), a, found[a.key]) for a in mine)
        replaced = frozenset(
            a.key for a in mine if a.key not in self._base and of_another(a, found[a.key])
        )
        for account in merged:
            self._accounts[account.key] = self._base[account.key] = account
        for table, changes in (lines or {}).items():
            self._write_lines(table, changes)
        is_new = batch is None or batch.number > self._batches.get(batch.proxy, 0)
        if batch is not None:
            self._batches[batch.proxy] = max(batch.number, self._batches.get(batch.proxy, 0))
        for name, added in (counts or {}).items() if is_new else ():
            add_to(self._counts.setdefault(name, {}), added)
        wall_at, self._wall_at = self._wall_at, wall_now
        return PoolSnapshot(accounts=merged, wall_at=wall_at, replaced=replaced)

    def now(self) -> float | None:
        return None

    def changed(self, *, wall_now: float) -> News:
        return News()

    def beat(self, in_flight: Mapping[AccountKey, int], *, wall_now: float) -> None:
        """There is nobody to be told."""

    def reap(self, proxies: Collection[str]) -> None:
        """There is no other."""

    def read_table(self, table: str) -> list[Row]:
        return sorted(self._tables.get(table, {}).values(), key=lambda row: row[2])

    def read_counts(self, name: str) -> Counted:
        return {key: dict(sums) for key, sums in self._counts.get(name, {}).items()}

    def sweep(self, present: Iterable[AccountKey], *, wall_now: float) -> None:
        """A process does not live that long."""

    def close(self) -> None:
        """Nothing is open."""

    def _write_lines(self, name: str, changes: TableChanges) -> None:
        table = self._tables.setdefault(name, {})
        for key, used_at in changes.gone.items():
            if key in table and table[key][2] <= used_at:
                del table[key]
        for row in changes.rows:
            if row[0] not in table or table[row[0]][2] <= row[2]:
                table[row[0]] = row
