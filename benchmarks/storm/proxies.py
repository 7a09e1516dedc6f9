"""Several proxies on one store, in simulated time: each is the real core, as is what they merge."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from random import Random

from account_pool.core import snapshot
from account_pool.core.account import AccountKey
from account_pool.core.decisions import By
from account_pool.core.snapshot import AccountSnapshot, PoolSnapshot, merge
from benchmarks.storm.clock import Clock
from benchmarks.storm.fleet import ScriptedAccount, Served, Told
from benchmarks.storm.ways import Pooled


class Proxies:
    """*count* proxies; a conversation stays on one of them.

    Args:
        told_after_s: each exchanges what it knows every so many seconds, in turns, so that the
            others know it so much later at the mean; None: they share nothing.
        permits: they return to accounts together (`core/permits.py`).
    """

    def __init__(
        self,
        clock: Clock,
        chance: Random,
        accounts: list[ScriptedAccount],
        strategy: str,
        *,
        count: int,
        told_after_s: float | None,
        permits: bool = True,
    ) -> None:
        self._proxies = [Pooled(clock, chance, accounts, strategy) for _ in range(count)]
        if count > 1 and told_after_s is not None:
            self._store = _Store(clock, told_after_s)
            for proxy in self._proxies:
                self._store.join(proxy, count)
                if permits:
                    proxy.pool.accounts.permits.share(count)

    def ask(self, conversation: int, served: Served, told: Told) -> None:
        self._proxies[conversation % len(self._proxies)].ask(conversation, served, told)

    def cut_off(self, number: int, *, until: float) -> None:
        """Have the proxy of that *number* reach the store no more, until then."""
        self._store.sides[number].cut_off(until)


class _Store:
    """What the proxies write into; an exchange is one step, as in a real one."""

    def __init__(self, clock: Clock, every_s: float) -> None:
        self.clock, self.every_s = clock, every_s
        self._rows: dict[AccountKey, AccountSnapshot] = {}
        self._turns: dict[str, float] = {}
        self.sides: list[_Side] = []

    def join(self, proxy: Pooled, count: int) -> None:
        first_s = self.every_s * len(self.sides) / count
        self.sides.append(_Side(self, proxy, first_s))
        proxy.pool.accounts.proxies = count

    def take_turn(self, name: str, every_s: float) -> bool:
        """As `NoticeStore` says."""
        if self.clock.now - self._turns.get(name, -inf) < every_s:
            return False
        self._turns[name] = self.clock.now
        return True

    def exchange(
        self, side: _Side, base: dict[AccountKey, AccountSnapshot], mine: Iterable[AccountSnapshot]
    ) -> list[AccountSnapshot]:
        """Merge what *side* has with what is here; the others come for what is new."""
        merged = [merge(base.get(a.key), a, self._rows.get(a.key)) for a in mine]
        new = [account for account in merged if account != self._rows.get(account.key)]
        self._rows.update((account.key, account) for account in new)
        for other in self.sides if new else ():
            if other is not side:
                other.note_news([account.key for account in new])
        return merged


class _Side:
    """What one proxy has of the store, as `proxy/persistence.py` keeps it."""

    def __init__(self, store: _Store, proxy: Pooled, first_s: float) -> None:
        self._accounts = proxy.pool.accounts
        self._store, self._clock, self._first_s = store, store.clock, first_s
        self._base: dict[AccountKey, AccountSnapshot] = {}
        self.in_flight: dict[AccountKey, int] = {}
        self._planned = False
        self._is_away_until, self._proxies = -inf, 1
        self._accounts.on_dirty = self._accounts.permits.on_ask = self._plan

    def cut_off(self, until: float) -> None:
        """The store is away until then; that is noticed when it is used."""
        self._is_away_until = until

    def note_news(self, keys: Iterable[AccountKey]) -> None:
        """Others have written *keys*."""
        self._accounts.dirty.update(keys)
        self._plan()

    def _note_in_flight(self) -> None:
        self.in_flight = {state.key: state.in_flight for state in self._accounts}
        sums: dict[AccountKey, int] = {}
        for other in self._store.sides:
            for key, requests in other.in_flight.items() if other is not self else ():
                sums[key] = sums.get(key, 0) + requests
        self._accounts.set_in_flight_remote(sums, now=self._clock.now)

    def _plan(self) -> None:
        if self._planned:
            return
        self._planned = True
        every_s = self._store.every_s
        rounds = (self._clock.now - self._first_s) // every_s + 1
        self._clock.at(self._first_s + rounds * every_s, self._exchange)

    def _exchange(self) -> None:
        now, accounts = self._clock.now, self._accounts
        self._planned = False
        if now < self._is_away_until:
            if accounts.permits.proxies > 1:
                self._proxies = accounts.permits.proxies
                accounts.permits.share(1)
            self._clock.at(self._is_away_until, self._plan)
            return
        if self._proxies > 1:
            accounts.permits.share(self._proxies)
            self._proxies = 1
        mine = snapshot.take(accounts, accounts.dirty, wall_now=now, ahead=0.0).accounts
        accounts.dirty.clear()
        self._note_in_flight()
        merged = self._store.exchange(self, self._base, mine)
        self._base.update((account.key, account) for account in merged)
        news = tuple(new for new, old in zip(merged, mine, strict=True) if new != old)
        if news:
            kept = PoolSnapshot(accounts=news, wall_at=now)
            snapshot.restore(accounts, kept, now=now, wall_now=now, by=By.PROXY)
        asks = accounts.permits.asks(now).items()
        granted = {p: ramp for p, ramp in asks if self._store.take_turn(p.name, p.lasts_s)}
        accounts.permits.granted(granted, now)
