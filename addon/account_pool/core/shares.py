"""How the proxies on a store divide `max_concurrent`, so that all together never exceed it.

Each proxy holds a share of an account: slots that it alone may fill. The store grants one only
from what nobody holds (`grant`), so the sum is never above the limit, whoever knows what. A
proxy that has used up its share asks for more (it *wants* more than it holds). The others see
that, and give up what is more than fair: at once what is idle, the rest as requests end. A
slot that is wanted where there are fewer than proxies goes round.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite
from typing import NamedTuple

from account_pool.core.account import AccountKey
from account_pool.core.accounts import Accounts
from account_pool.core.state import AccountState

#: How long those come back one after the other who have lost a store together, seconds.
RETURN_S = 15.0
#: Names this proxy among those that hold shares.
ME = ""


class Share(NamedTuple):
    """What a proxy holds of an account.

    Attributes:
        slots: requests that it may have in flight.
        wants: how many it would have.
        asked_at: since when it waits for one, by the clock of the store; else when it was
            granted one last.
    """

    slots: int
    wants: int
    asked_at: float

    @property
    def is_short(self) -> bool:
        return self.wants > self.slots


class Ask(NamedTuple):
    """What a proxy asks the store for.

    Attributes:
        limit: `max_concurrent` of the account.
        slots: what it goes on to hold, if it holds that now.
        wants: how many it would have.
    """

    limit: int
    slots: int
    wants: int


def fair(limit: int, shares: Mapping[str, Share]) -> dict[str, int]:
    """Return how many of *limit* slots each should hold, at most what it wants.

    Who has the least comes first. Of more proxies than slots those that have none come before
    those that have, who has waited longest before others; who has held one longest gives it up.
    """

    def rank(proxy: str) -> tuple[bool, float, str]:
        share = shares[proxy]
        return share.slots > 0, -share.asked_at if share.slots else share.asked_at, proxy

    slots = dict.fromkeys(sorted(shares), 0)
    hungry = sorted((proxy for proxy in slots if shares[proxy].wants), key=rank)
    left = limit
    while left and hungry:
        for proxy in hungry[:left]:
            slots[proxy] += 1
        left -= min(left, len(hungry))
        hungry = [proxy for proxy in slots if shares[proxy].wants > slots[proxy]]
    return slots


def given_up(limit: int, shares: Mapping[str, Share]) -> int:
    """Return how many slots this proxy (`ME`) is to hold, as others want what it holds."""
    missing = sum(s.wants - s.slots for p, s in shares.items() if p != ME and s.is_short)
    slots = shares[ME].slots
    return min(slots, max(fair(limit, shares)[ME], slots - missing))


def grant(ask: Ask, shares: Mapping[str, Share], now: float) -> Share:
    """Return what the proxy that asks holds from *now* on.

    Args:
        shares: all that is held, its own (`ME`) too.
        now: on the clock of the store.
    """
    mine = shares.get(ME, Share(0, 0, now))
    others = {proxy: share for proxy, share in shares.items() if proxy != ME}
    free = max(ask.limit - sum(share.slots for share in others.values()), 0)
    slots = min(ask.slots, free)
    asked_at = mine.asked_at
    if ask.wants > slots:
        asked_at = asked_at if mine.is_short else now
        wanted = {**others, ME: Share(slots, ask.wants, asked_at)}
        slots = max(slots, min(fair(ask.limit, wanted)[ME], free))
    if slots > mine.slots:
        asked_at = now
    return Share(slots, ask.wants, asked_at)


class Shares:
    """Those that one proxy holds.

    Args:
        accounts: the accounts of the pool.
    """

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        #: as the store has them
        self._held: dict[AccountKey, Share] = {}
        #: of the accounts of which somebody else is short
        self._of_all: Mapping[AccountKey, Mapping[str, Share]] = {}
        #: of which this proxy never had what is its part
        self._new: set[AccountKey] = set()
        #: others have written since the last question
        self._heard = False
        #: those of which it had one, whatever became of the store
        self._once: set[AccountKey] = set()
        #: all accounts are to be asked for
        self._all = True
        #: how many proxies had shares that the store has lost, and when all are back, or dead
        self._before, self._all_back_at = 1, -inf

    def heard(self, shares: Mapping[AccountKey, Mapping[str, Share]]) -> None:
        """Take over what all hold of the accounts of which another proxy is short."""
        self._of_all, self._heard = shares, True

    def forget(self, proxies: int, now: float) -> None:
        """The store has nothing of ours any more: all is to be asked for again.

        Nor may it have anything of the others. Until they are back this proxy takes no more than
        it held, or its part: they use what they held.

        Args:
            proxies: how many there were.
        """
        if now >= self._all_back_at:
            self._before = 1
        self._before, self._all_back_at = max(proxies, self._before), now + RETURN_S
        self._held.clear()
        self._of_all, self._all = {}, True

    def use_without_store(self, proxies: int, now: float) -> None:
        """Use an even part of each account of which the store never granted anything.

        The rest stays as it is: what was granted is nobody else's.
        """
        shares: dict[AccountKey, float] = {}
        for state in self._accounts:
            limit = state.account.max_concurrent
            if limit is not None and state.key not in self._once:
                shares[state.key] = max(limit // proxies, 1)
        self._accounts.set_shares(shares, now=now)

    def asks(self, proxies: int, now: float) -> dict[AccountKey, Ask]:
        """Return what to ask the store for; what is given up is not used any more.

        Args:
            proxies: how many there are.
            now: monotonic seconds.
        """
        changed = {s.key for s in self._accounts} if self._all else self._accounts.dirty
        # Whatever was granted for what has no limit here any more is to be given back.
        again = [k for k, s in self._held.items() if s.is_short or self._limit(k) is None]
        asks: dict[AccountKey, Ask] = {}
        lower: dict[AccountKey, float] = {}
        for key in {*changed, *self._accounts.starved, *again, *self._of_all}:
            state, held, limit = self._accounts.find(key), self._held.get(key), self._limit(key)
            if state is None or limit is None:
                if held is not None:
                    asks[key] = Ask(0, 0, 0)
                continue
            ask = self._ask(state, limit, held, proxies)
            if key in self._once and now < self._all_back_at:
                most = max(ask.slots, limit // self._before)
                ask = ask._replace(wants=min(ask.wants, most))
            asks[key] = ask
            if held is not None and ask.slots < state.share:
                lower[key] = ask.slots
        self._accounts.set_shares(lower, now=now)
        # Slots that are filled cannot be given up yet.
        asks = {
            key: ask._replace(slots=max(ask.slots, self._in_flight(key)))
            for key, ask in asks.items()
        }
        heard, self._heard = self._heard, False
        asks = {key: ask for key, ask in asks.items() if self._is_worth_it(key, ask, heard)}
        self._all = self._all and bool(asks)
        return asks

    def granted(self, shares: Mapping[AccountKey, Share], *, now: float) -> bool:
        """Use what the store has granted. Return whether others can hold more, or less, by it."""
        self._all = False
        is_news = False
        usable: dict[AccountKey, float] = {}
        for key, share in shares.items():
            state, before = self._accounts.find(key), self._held.get(key)
            self._held[key] = share
            known = before or Share(0, 0, share.asked_at)
            is_news |= (share.slots, share.is_short) != (known.slots, known.is_short)
            if state is None or state.account.max_concurrent is None:
                # What was asked for before it went is held until it is given back.
                if not (share.slots or share.wants):
                    del self._held[key]
                    self._once.discard(key)
                continue
            self._once.add(key)
            # What is held beyond its share is in flight yet.
            if before is None or share.slots > before.slots or share.slots < state.share:
                usable[key] = share.slots
            if share.slots:
                self._accounts.starved.discard(key)
            if not share.is_short:
                self._new.discard(key)
        self._accounts.set_shares(usable, now=now)
        return is_news

    def _ask(self, state: AccountState, limit: int, held: Share | None, proxies: int) -> Ask:
        """Return what to ask for *state*, of which this proxy holds *held*."""
        if held is None:
            self._new.add(state.key)
            slots = int(state.share) if isfinite(state.share) else state.in_flight
            return Ask(limit, min(slots, limit), max(slots, limit // proxies))
        slots = min(int(state.share), limit)
        wants = state.in_flight
        if wants >= slots and (wants or state.key in self._accounts.starved):
            # More than one: a burst is not to ask for each of its requests.
            wants = min(wants + max(1, wants // 2), limit)
        if state.key in self._new:
            wants = max(wants, limit // proxies)
        shares = self._of_all.get(state.key)
        if shares is not None and any(s.is_short for proxy, s in shares.items() if proxy != ME):
            mine = Share(slots, wants, shares.get(ME, held).asked_at)
            slots = given_up(limit, {**shares, ME: mine})
        return Ask(limit, slots, wants)

    def _is_worth_it(self, key: AccountKey, ask: Ask, heard: bool) -> bool:
        """Say whether *ask* changes what the store has, or may get more than the last one."""
        held = self._held.get(key)
        if held is None or ask.slots != held.slots:
            return True
        is_short = ask.wants > ask.slots
        return is_short != held.is_short or (is_short and heard)

    def _limit(self, key: AccountKey) -> int | None:
        state = self._accounts.find(key)
        return None if state is None else state.account.max_concurrent

    def _in_flight(self, key: AccountKey) -> int:
        state = self._accounts.find(key)
        return 0 if state is None else state.in_flight
