"""What a pool has learnt, in the engine of a fleet, shared by all proxies that name it.

Everything is read and decided here, by the functions that a file uses as well, and written where
what was read is still there: else it is decided once more (`link.py`). All times are of the
engine's clock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from typing import NamedTuple

from account_pool.core.account import AccountKey
from account_pool.core.fleet import AboutProxy, ProxyRow
from account_pool.core.request_rows import RequestRow
from account_pool.core.shares import Ask, Share
from account_pool.core.snapshot import AccountSnapshot, PoolSnapshot
from account_pool.core.usage import Counted
from account_pool.store.account_rows import account_key, dumps, loads, read_account, write_account
from account_pool.store.agreed import (
    ACCOUNT_KEPT_S,
    BATCH_KEPT_S,
    COUNTS_KEPT_S,
    GONE_KEPT_S,
    TABLE_KEPT_S,
    Agreed,
    is_text,
)
from account_pool.store.fleet.engine import Listener
from account_pool.store.fleet.history import FleetRequests
from account_pool.store.fleet.link import (
    MAX_PAGES,
    TRIES,
    Accepted,
    Beside,
    Change,
    Line,
    Link,
    Refused,
    StoredRow,
    decoded,
    triples,
)
from account_pool.store.fleet.proxies import FleetNotices, FleetProxies
from account_pool.store.store import (
    GRACE_S,
    DecisionLog,
    News,
    Numbered,
    Row,
    StoreError,
    TableChanges,
    UnfitError,
)

#: Rows that are written at once; while they are, the engine serves nobody else.
AT_ONCE = 200
#: How long rows stay of proxies that were forgotten and have written since, seconds.
PROXY_KEPT_S = 86400.0


class KnownAccount(NamedTuple):
    """An account as the engine has it: its row, and what that says."""

    row: StoredRow = StoredRow()
    account: AccountSnapshot | None = None


class FleetState:
    """A `StateStore` in an engine."""

    def __init__(
        self,
        link: Link,
        counted: dict[AccountKey, int],
        requests: FleetRequests,
        decisions: DecisionLog,
    ) -> None:
        """Use *link*; nothing is asked yet.

        *counted*: how many requests this process and the engine agreed that accounts have served,
        whatever state was opened then.
        """
        link.begin()
        self.requests = requests
        self.decisions = decisions
        self.notices = FleetNotices(link)
        self._link = link
        self._proxies = FleetProxies(link)
        self._listener: Listener | None = None
        #: whoever is dead has written nothing: look, whether or not anything has changed
        self._look_anyway = True
        self._wrote_at = 0.0
        self._agreed = Agreed(counted)
        #: accounts as the engine has them, as far as is known
        self._stored: dict[AccountKey, KnownAccount] = {}

    # -- what a pool has learnt

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
        requests: Sequence[RequestRow] = (),
        urgent: bool = False,
    ) -> PoolSnapshot:
        accounts = list(mine)
        for key in gone:
            self._agreed.leave(key)
        changed, sums = list(_lines(lines or {})), list(_sums(counts or {}))
        flight = self._proxies.flight(in_flight or {})
        calls = self.requests.added(requests, batch, self._link)
        merged: list[AccountSnapshot] = []
        replaced: set[AccountKey] = set()
        wall_at: float | None = None
        size = max(len(accounts), len(changed), 1)
        for start in range(0, size, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            beside, more = Beside(lines=changed[part]), list[Change]()
            if part.stop >= size:
                told = self._proxies.me if urgent else ""
                beside = beside._replace(batch=batch, sums=sums, calls=calls, told=told)
                more = flight
            saved = self._exchange(accounts[part], gone, more, beside)
            merged += saved.accounts
            replaced |= saved.replaced
            wall_at = saved.wall_at if wall_at is None else wall_at
        self._agreed.note(merged)
        return PoolSnapshot(
            accounts=tuple(merged), wall_at=wall_at or 0.0, replaced=frozenset(replaced)
        )

    def _exchange(
        self,
        mine: Sequence[AccountSnapshot],
        gone: Collection[AccountKey],
        more: Sequence[Change],
        beside: Beside,
    ) -> PoolSnapshot:
        """Write a part; our pool does not know yet what others have made of *mine*."""
        is_known = self._link.seen is not None and not self._link.is_uncertain
        for tried in range(TRIES):
            known = [self._stored.get(a.key, KnownAccount()) for a in mine]
            merged = tuple(
                self._agreed.merged(a, k.account) for a, k in zip(mine, known, strict=True)
            )
            rows = [
                Change("a", str(a.key), k.row.version, self._data(a, k))
                for a, k in zip(merged, known, strict=True)
            ]
            writes = more or any(row.data for row in rows) or any(beside._replace(told=""))
            done: Accepted | Refused
            if writes or tried or not is_known:
                done = self._link.commit(
                    [*rows, *more], beside, accepted=lambda: self._agreed.note(mine)
                )
            else:
                # All that is news to our pool was looked for: each proxy would ask once more.
                done = Accepted(0, 0, self._wrote_at)
            if isinstance(done, Accepted):
                version = done.before
                for change, account in zip(rows, merged, strict=True):
                    if change.data:
                        version += 1
                        row = StoredRow(version, 0.0, change.data)
                        self._stored[account.key] = KnownAccount(row, account)
                replaced = frozenset(
                    a.key
                    for a, k in zip(mine, known, strict=True)
                    if self._agreed.is_replaced(a, k.account)
                )
                self._agreed.note(mine)
                return PoolSnapshot(accounts=merged, wall_at=done.wrote_at, replaced=replaced)
            for _, name, row in done.stale:
                if (key := account_key(name)) is not None:
                    self._note_account(key, row)
            # They may be back, where an earlier write turned out to have been accepted.
            for account in mine:
                if account.key in gone:
                    self._agreed.leave(account.key)
        raise self._link.busy()

    def now(self) -> float | None:
        return self._link.engine.now()

    def listen(self, wake: Callable[[], None]) -> None:
        def heard(proxy: str) -> None:
            if proxy != self._proxies.me:
                wake()

        if self._listener is None:
            self._listener = self._link.engine.listen(heard)

    def changed(self, *, wall_now: float) -> News:
        rows, is_news = self._look()
        if not is_news:
            return News()
        accounts: set[AccountKey] = set()
        lines: dict[str, list[Row]] = {}
        gone: dict[str, dict[str, float]] = {}
        for table, name, row in rows:
            if table in TABLE_KEPT_S:
                line = self._line(table, name, row)
                if line is not None and line.is_gone:
                    gone.setdefault(table, {})[name] = row.at
                elif line is not None:
                    lines.setdefault(table, []).append((name, line.account, row.at))
            elif table == "a":
                if (key := account_key(name)) is not None:
                    self._note_account(key, row)
                    accounts.add(key)
                else:
                    self._link.tell_damaged("an account", name)
            else:
                self._proxies.note(table, name, row)
        for of_table in lines.values():
            of_table.sort(key=lambda line: line[2])
        return News(
            accounts=accounts,
            lines=lines,
            gone=gone,
            in_flight_remote=self._proxies.in_flight(),
            shares=self._proxies.short() or None,
            proxies=self._proxies.ids(),
            wrote_at=self._wrote_at if accounts or lines or gone else None,
        )

    def _look(self) -> tuple[list[tuple[str, str, StoredRow]], bool]:
        """Return rows that have changed since the last look, and whether anything has.

        What was there before the first one is not new, but for what is about proxies.
        """
        seen = self._link.seen
        i: int | str = "" if seen is None else seen
        j = seen or 0
        rows: list[tuple[str, str, StoredRow]] = []
        for _ in range(MAX_PAGES):
            anyway = int(self._look_anyway or bool(rows))
            reply = self._link.call("look", self._link.history, i, j, GRACE_S, anyway)
            match reply:
                case [b"ok", bytes(), bytes()]:
                    return [], False
                case [b"ok", bytes(history), last, i_to, j_to, at, list(live), list(found)]:
                    rows += triples(found)
                    i, j = int(i_to or last), int(j_to or last)
                case _:
                    break
            if not i_to and not j_to:
                self._link.history = history or self._link.history
                self._link.seen = int(last)
                self._look_anyway, self._wrote_at = False, float(at)
                self._proxies.note_live([decoded(proxy) for proxy in live])
                return rows, True
        raise self._link.strange("look")

    # -- other proxies

    def beat(
        self,
        in_flight: Mapping[AccountKey, int],
        *,
        wall_now: float,
        about: AboutProxy | None = None,
    ) -> bool:
        # Who is dead has written nothing: look, whether or not others have.
        self._look_anyway = True
        return self._proxies.beat(in_flight, about)

    def proxies(self, *, wall_now: float) -> list[ProxyRow]:
        return self._proxies.rows()

    def forget(self, proxies: Collection[str]) -> None:
        self._proxies.reap(proxies, and_forget=True)

    def share(self, asks: Mapping[AccountKey, Ask], *, wall_now: float) -> dict[AccountKey, Share]:
        granted: dict[AccountKey, Share] = {}
        keys = list(asks)
        for start in range(0, len(keys), AT_ONCE):
            part = {key: asks[key] for key in keys[start : start + AT_ONCE]}
            granted |= self._proxies.share(part, wall_now)
        return granted

    def reap(self, proxies: Collection[str]) -> None:
        self._proxies.reap(proxies)
        self._look_anyway = True

    # -- tables and sums

    def read_table(self, table: str) -> list[Row]:
        rows: dict[str, Row] = {}
        for name, row in self._link.pages(table):
            line = self._line(table, name, row)
            if line is not None and not line.is_gone:
                rows[name] = name, line.account, row.at
        return sorted(rows.values(), key=lambda row: row[2])

    def read_counts(self, name: str) -> Counted:
        sums: Counted = {}
        for found in self._link.parts("sums", name):
            for key, fields in zip(found[::2], found[1::2], strict=False):
                parts, amounts = loads(key), _amounts(fields)
                is_key = isinstance(parts, list) and all(isinstance(part, str) for part in parts)
                if is_key and amounts is not None:
                    sums[tuple(parts)] = amounts
                else:
                    self._link.tell_damaged(f"sums of {name}", key)
        return sums

    def sweep(self, present: Iterable[AccountKey], *, wall_now: float) -> None:
        names = [str(key) for key in present]
        for start in range(0, len(names), AT_ONCE):
            for table in ("a", "share"):
                self._link.call("touch", table, *names[start : start + AT_ONCE])
        for table in ("f", "who"):
            self._link.call("touch", table, self._proxies.me)
        kept = dict.fromkeys(("a", "share", "notices", "turns"), ACCOUNT_KEPT_S)
        kept |= dict.fromkeys(("f", "who"), PROXY_KEPT_S)
        for table, kept_s in (kept | TABLE_KEPT_S | {"b": BATCH_KEPT_S}).items():
            cursor: object = b"0"
            for _ in range(MAX_PAGES):
                gone_s = GONE_KEPT_S if table in TABLE_KEPT_S else ""
                cursor = self._link.call("sweep", table, decoded(cursor), kept_s, gone_s)
                if cursor in (b"0", None):
                    break
        for _ in range(MAX_PAGES):
            if not self._link.call("sweep_sums", COUNTS_KEPT_S):
                break
        self._stored.clear()

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        with contextlib.suppress(StoreError):
            self._proxies.reap([self._proxies.me], and_forget=True)
        self.requests.close()
        self._link.engine.close()

    # -- what is in a row

    def _note_account(self, key: AccountKey, row: StoredRow) -> None:
        read = read_account(key, row.data) if row.version else None
        if row.version and (read is None or read.wrong):
            self._link.tell_damaged("an account", key)
        self._stored[key] = KnownAccount(row, read.account if read else None)

    def _data(self, account: AccountSnapshot, known: KnownAccount) -> bytes:
        """Return the row of *account*, b"" if it need not be written."""
        if not self._agreed.is_new(account, known.account):
            return b""
        try:
            return write_account(account, known.row.data)
        except ValueError as error:
            raise UnfitError(type(error).__name__) from None

    def _line(self, table: str, name: str, row: StoredRow) -> _Line | None:
        gone_at, _, account = row.data.partition(b" ")
        text = decoded(account)
        if account_key(text) is None:
            self._link.tell_damaged(table, name)
            return None
        return _Line(text, gone_at != b"-")


class _Line(NamedTuple):
    account: str
    is_gone: bool


def _lines(tables: Mapping[str, TableChanges]) -> Iterator[Line]:
    for table, changes in tables.items():
        for key, used_at in changes.gone.items():
            if is_text(key):
                yield table, key, _finite(used_at), ""
        for key, account, used_at in changes.rows:
            if is_text(key):
                yield table, key, _finite(used_at), account


def _sums(counts: Mapping[str, Counted]) -> Iterator[tuple[str, bytes, str, float]]:
    for name, added in counts.items():
        for key, amounts in added.items():
            for field, amount in amounts.items():
                yield name, dumps(key), field, _finite(amount)


def _finite(number: float) -> float:
    if not isfinite(number):
        raise UnfitError("a number that is none")
    return number


def _amounts(fields: object) -> dict[str, float] | None:
    """Return amounts by field; None where one is no number."""
    amounts: dict[str, float] = {}
    parts = fields if isinstance(fields, list) else []
    for field, amount in zip(parts[::2], parts[1::2], strict=False):
        try:
            whole = amount.lstrip(b"-").isdigit()
            number = int(amount) if whole else float(amount)
            if not isfinite(number):
                return None
        except (ValueError, OverflowError):
            return None
        amounts[decoded(field)] = number
    return amounts
