"""How proxies divide `max_concurrent`."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.account import Account, AccountKey
from account_pool.core.credential import Credential, Secret
from account_pool.core.errors import NoUsableAccount
from account_pool.core.lease import Lease, RequestFacts
from account_pool.core.pool import Pool
from account_pool.core.shares import ME, RETURN_S, Ask, Share, Shares, fair, given_up, grant

KEY = AccountKey("openai", "work")
FACTS = RequestFacts(provider="openai", kind="api_key")
CREDENTIALS = {"api_key": Credential(kind="api_key", secret=Secret("sk-fake-work-000"))}


@pytest.mark.parametrize(
    ("limit", "wants", "slots"),
    [
        (8, {"a": 0}, {"a": 0}),
        (8, {"a": 9}, {"a": 8}),
        (8, {"a": 9, "b": 9}, {"a": 4, "b": 4}),
        (8, {"a": 2, "b": 9}, {"a": 2, "b": 6}),
        (7, {"a": 9, "b": 9}, {"a": 4, "b": 3}),
        (1, {"a": 0, "b": 1}, {"a": 0, "b": 1}),
        (2, {"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 0}),
    ],
)
def test_the_least_satisfied_get_more(limit, wants, slots):
    assert fair(limit, {p: Share(0, n, 1.0) for p, n in wants.items()}) == slots


def test_a_slot_for_too_many_is_for_who_waits_longest():
    shares = {"a": Share(1, 1, 7.0), "b": Share(0, 1, 5.0), "c": Share(0, 1, 6.0)}
    assert fair(1, shares) == {"a": 0, "b": 1, "c": 0}
    shares = {"a": Share(1, 1, 1.0), "b": Share(1, 1, 2.0), "c": Share(0, 1, 3.0)}
    assert fair(2, shares) == {"a": 0, "b": 1, "c": 1}


def test_what_is_idle_is_given_up_as_far_as_it_is_wanted():
    other = Share(0, 3, 1.0)
    assert given_up(8, {ME: Share(8, 0, 1.0), "b": other}) == 5
    assert given_up(8, {ME: Share(8, 7, 1.0), "b": other}) == 5
    assert given_up(8, {ME: Share(8, 2, 1.0), "b": other._replace(wants=9)}) == 2


def test_only_what_nobody_holds_is_granted():
    others = {"a": Share(5, 5, 1.0), "b": Share(2, 2, 1.0)}
    assert grant(Ask(8, 0, 4), others, 9.0) == Share(1, 4, 9.0)
    assert grant(Ask(7, 0, 4), others, 9.0) == Share(0, 4, 9.0)
    # It was taken for dead, and others have taken its slots.
    assert grant(Ask(8, 4, 4), {**others, ME: Share(4, 4, 1.0)}, 9.0) == Share(1, 4, 9.0)


class Store:
    """All shares of one account, as the state database keeps them."""

    def __init__(self) -> None:
        self.shares: dict[str, Share] = {}
        self.now = 0.0

    def of(self, me: str) -> dict[str, Share]:
        return {ME if proxy == me else proxy: share for proxy, share in self.shares.items()}


class Proxy:
    """A pool, what it holds, and the requests it has in flight."""

    def __init__(self, name: str, store: Store, limit: int, proxies: int) -> None:
        self.name, self.store, self.proxies = name, store, proxies
        self.pool = Pool()
        account = Account(provider="openai", label="work", max_concurrent=limit)
        self.pool.accounts.add(account, CREDENTIALS, now=0.0)
        self.shares = Shares(self.pool.accounts)
        self.leases: list[Lease] = []
        self.is_news = False

    def request(self) -> bool:
        try:
            self.leases.append(self.pool.acquire(FACTS, now=self.store.now))
        except NoUsableAccount:
            return False
        return True

    def finish(self) -> None:
        if self.leases:
            self.pool.release(self.leases.pop(), None, now=self.store.now)

    def begin_look(self) -> dict[AccountKey, Ask]:
        """Hear of the others; what follows may happen in between."""
        shares = self.store.of(self.name)
        if any(share.is_short for proxy, share in shares.items() if proxy != ME):
            self.shares.heard({KEY: shares})
        else:
            self.shares.heard({})
        return self.shares.asks(self.proxies, self.store.now)

    def end_look(self, asks: dict[AccountKey, Ask]) -> None:
        self.pool.accounts.dirty.clear()
        self.is_news = False
        if KEY in asks:
            self.store.now += 1.0
            share = grant(asks[KEY], self.store.of(self.name), self.store.now)
            self.store.shares[self.name] = share
            self.is_news = self.shares.granted({KEY: share}, now=self.store.now)

    def look(self) -> None:
        self.end_look(self.begin_look())


def proxies_on(store: Store, limit: int, count: int) -> list[Proxy]:
    proxies = [Proxy(name, store, limit, count) for name in "abcdef"[:count]]
    for proxy in proxies:
        proxy.look()
    return proxies


def test_two_that_are_short_do_not_wake_each_other_for_ever() -> None:
    store = Store()
    proxies = proxies_on(store, 2, 2)
    for _ in range(4):
        for proxy in proxies:
            proxy.request()
    told = [[(proxy.look(), proxy.is_news)[1] for proxy in proxies] for _ in range(4)]
    assert all(share.is_short for share in store.shares.values())
    assert (any(told[0]), told[1:]) == (True, [[False, False]] * 3)


@given(
    limit=st.integers(1, 9),
    count=st.integers(1, 4),
    steps=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(["request", "request", "finish", "begin", "end", "forget"]),
        ),
        max_size=120,
    ),
)
def test_all_together_never_exceed_it(limit, count, steps):
    proxies = proxies_on(store := Store(), limit, count)
    asked: dict[int, dict[AccountKey, Ask]] = {}
    for number, step in steps:
        proxy = proxies[number % count]
        match step:
            case "request":
                proxy.request()
            case "finish":
                proxy.finish()
            case "begin":
                asked.setdefault(number % count, proxy.begin_look())
            case "end" if number % count in asked:
                proxy.end_look(asked.pop(number % count))
            case "forget" if number % count not in asked:
                proxy.shares.forget(count, store.now)
        assert sum(len(p.leases) for p in proxies) <= limit
        assert sum(share.slots for share in store.shares.values()) <= limit
    # Whoever is alone with requests gets all of it in a few looks.
    for number, asks in asked.items():
        proxies[number].end_look(asks)
    for proxy in proxies:
        while proxy.leases:
            proxy.finish()
    store.now += RETURN_S
    busy = proxies[-1]
    for _ in range(3 * limit + 6):
        busy.request()
        for proxy in [*proxies, busy]:
            proxy.look()
    while busy.request():
        pass
    assert len(busy.leases) >= limit - (count - 1)


def test_what_is_given_up_is_not_used_while_the_store_is_asked():
    a, b = proxies_on(Store(), 1, 2)
    assert not a.request()
    a.look()
    assert not b.request()
    b.look()
    asks = a.begin_look()
    assert not a.request()
    a.end_look(asks)
    b.look()
    assert b.request()


def test_what_is_in_flight_is_given_up_once_it_ends():
    a, b = proxies_on(Store(), 2, 2)
    assert a.request()
    while not a.request():
        a.look()
        b.look()
    assert not b.request()
    b.look()
    a.look()
    b.look()
    assert not b.request()
    a.finish()
    assert not a.request(), "it is wanted elsewhere"
    a.look()
    b.look()
    assert b.request()


def test_each_begins_with_its_part_of_it():
    a, b = proxies_on(Store(), 8, 2)
    a.look()
    b.look()
    assert [sum(p.request() for _ in range(9)) for p in (a, b)] == [4, 4]


def test_one_that_is_alone_has_all_of_it():
    (only,) = proxies_on(Store(), 5, 1)
    assert sum(only.request() for _ in range(9)) == 5


def test_a_single_slot_goes_round():
    proxies = proxies_on(Store(), 1, 3)
    served: Counter[str] = Counter()
    for _ in range(60):
        for proxy in proxies:
            if proxy.leases:
                proxy.finish()
            if proxy.request():
                served[proxy.name] += 1
            proxy.look()
    assert min(served.values()) >= 8, served


def test_an_account_without_a_limit_is_not_divided():
    store = Store()
    proxy = Proxy("a", store, 3, 1)
    free = Account(provider="openai", label="free")
    proxy.pool.accounts.add(free, CREDENTIALS, now=0.0)
    proxy.look()
    assert not proxy.pool.accounts.get(free.key).full
    proxy.pool.accounts.replace(Account(provider="openai", label="work"), now=0.0)
    assert proxy.begin_look() == {KEY: Ask(0, 0, 0)}


def test_an_account_that_is_added_has_none_until_it_is_granted_one():
    store = Store()
    proxy = Proxy("a", store, 3, 1)
    proxy.look()
    other = Account(provider="anthropic", label="x", max_concurrent=2)
    proxy.pool.accounts.add(other, CREDENTIALS, now=0.0)
    assert proxy.pool.accounts.get(other.key).full
    assert proxy.begin_look()[other.key] == Ask(2, 0, 2)


def test_without_a_store_each_uses_an_even_part_of_what_was_never_granted():
    proxy = Proxy("a", Store(), 8, 2)
    proxy.shares.use_without_store(2, 0.0)
    assert sum(proxy.request() for _ in range(9)) == 4
    while proxy.leases:
        proxy.finish()
    proxy.look()
    proxy.shares.forget(2, 0.0)
    proxy.shares.use_without_store(4, 0.0)
    assert sum(proxy.request() for _ in range(9)) == 4, "that is what it held"


def test_who_is_back_first_takes_nothing_of_those_who_are_not_back_yet():
    """A store that was away for long takes all of them for dead."""
    store = Store()
    proxies = proxies_on(store, 6, 3)
    first, *others = proxies
    assert [share.slots for share in store.shares.values()] == [2, 2, 2]
    for proxy in proxies:
        while proxy.request():
            pass
    store.now += 60.0
    store.shares.clear()
    for proxy in proxies:
        proxy.shares.forget(3, store.now)
    first.proxies = 1
    for _ in range(9):
        first.look()
        first.request()
        assert sum(len(proxy.leases) for proxy in proxies) == 6
    for proxy in others:
        proxy.look()
    assert [share.slots for share in store.shares.values()] == [2, 2, 2]
    # In the end those who are not are dead.
    for proxy in others:
        del store.shares[proxy.name]
    store.now += RETURN_S
    for _ in range(9):
        first.look()
        first.request()
    assert len(first.leases) == 6


def test_what_is_granted_for_an_account_that_has_gone_meanwhile_is_given_back():
    store = Store()
    proxy = Proxy("a", store, 4, 2)
    asks = proxy.begin_look()
    proxy.pool.accounts.remove(KEY, now=0.0)
    proxy.end_look(asks)
    assert store.shares["a"].slots == 2
    proxy.look()
    assert store.shares["a"][:2] == (0, 0)
    assert proxy.begin_look() == {}
