"""Several proxies return to an account as carefully together as one of them alone."""

from __future__ import annotations

from itertools import count
from math import inf
from random import Random

import pytest
from benchmarks.storm.clock import Clock
from benchmarks.storm.fleet import ScriptedAccount
from benchmarks.storm.proxies import Proxies
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from account_pool.core import snapshot
from account_pool.core.decisions import By
from account_pool.core.errors import NoUsableAccount
from account_pool.core.lease import Lease, Ticket
from account_pool.core.members import Transition
from account_pool.core.outcome import Scope
from account_pool.core.permits import (
    ASK_AGAIN_S,
    HAD_AGAIN_S,
    MAX_ASKS,
    PERMIT_S,
    PROBE_PERMIT_S,
    PROBE_USE_S,
    Permit,
)
from account_pool.core.pool import MAX_HELD, Pool
from account_pool.core.state import ALONE_S, RAMP_S, STEP_S, Ramp
from tests.core.helpers import FACTS, OK, PROVIDER, key, keys_of, pool_of, quota, rate_limit

#: Seconds until another proxy knows what one has learnt, at most.
TOLD_S = 0.05


def shared(*labels: str, proxies: int = 2, chance: float = 0.5) -> Pool:
    pool = pool_of(*labels, chance=lambda: chance)
    pool.accounts.permits.share(proxies)
    return pool


def limit(pool: Pool, seconds: float = 60.0, *, now: float = 0.0) -> None:
    """Let an account cool until *seconds* later; chance adds a hundredth of that at 0.5."""
    pool.release(pool.acquire(FACTS, now=now), rate_limit(seconds), now=now)


def tell(from_: Pool, to: Pool, now: float) -> None:
    """Let *to* know all that *from_* does."""
    kept = snapshot.take(from_.accounts, wall_now=now, ahead=0.0)
    snapshot.restore(to.accounts, kept, now=now, wall_now=now, by=By.PROXY)


def returned(pool: Pool) -> float:
    """Return when the account is back."""
    return pool.accounts.get(key("one")).cooling_until(None, 0.0)


def may_go(pool: Pool, now: float) -> Lease | None:
    try:
        return pool.acquire(FACTS, now=now)
    except NoUsableAccount:
        return None


# -- an account that returns


def test_one_proxy_alone_holds_nothing_back_and_asks_nobody() -> None:
    pool = pool_of("one")
    asked: list[int] = []
    pool.accounts.permits.on_ask = lambda: asked.append(1)
    limit(pool)
    assert not pool.accounts.get(key("one")).ramps
    at = returned(pool)
    assert may_go(pool, at)
    assert not may_go(pool, at)
    assert may_go(pool, at + ALONE_S + STEP_S)
    assert asked == []
    assert not pool.accounts.permits.asks(at)


def test_who_has_the_permit_goes_and_who_waits_for_it_goes_at_once() -> None:
    pool = shared("one")
    asked: list[int] = []
    pool.accounts.permits.on_ask = lambda: asked.append(1)
    limit(pool)
    at = returned(pool)
    with pytest.raises(NoUsableAccount) as nobody:
        pool.acquire(FACTS, now=at)
    ticket = Ticket(facts=FACTS, give_up_at=at + 60.0)
    pool.admission.wait(ticket, nobody.value.retry_at)
    wanted = pool.accounts.permits.asks(at)
    assert asked == [1]
    assert list(wanted) == [Permit(key("one"), None)]
    assert not may_go(pool, at + 0.1)
    assert not pool.accounts.permits.asks(at), "it is asked for once"
    pool.accounts.permits.granted(wanted, at + 0.1)
    lease = pool.admission.stop_waiting(ticket)
    assert lease is not None
    assert not may_go(pool, at + 0.1)
    pool.answered(lease, now=at + 0.5)
    assert may_go(pool, at + 0.5)


def test_who_gets_no_answer_goes_a_second_later() -> None:
    pool = shared("one")
    limit(pool)
    at = returned(pool)
    with pytest.raises(NoUsableAccount) as nobody:
        pool.acquire(FACTS, now=at)
    retry_at = nobody.value.retry_at
    assert retry_at is not None
    assert at + ALONE_S <= retry_at <= at + ALONE_S + 2 * STEP_S
    assert not may_go(pool, retry_at - 0.001)
    assert may_go(pool, retry_at)
    assert not may_go(pool, retry_at)


def test_another_account_is_asked_meanwhile() -> None:
    pool = shared("one", "two")
    limit(pool)
    at = returned(pool)
    assert pool.acquire(FACTS, now=at).key.label == "two"


def test_who_holds_back_goes_on_when_another_was_served() -> None:
    mine, theirs = shared("one"), shared("one")
    limit(mine)
    tell(mine, theirs, 0.0)
    at = returned(mine)
    assert not may_go(mine, at)
    assert not may_go(theirs, at)
    mine.accounts.permits.granted(mine.accounts.permits.asks(at), at)
    lease = mine.acquire(FACTS, now=at)
    urgent: list[int] = []
    mine.accounts.on_urgent = lambda: urgent.append(1)
    mine.answered(lease, now=at + 0.3)
    assert urgent, "others wait for it"
    tell(mine, theirs, at + 0.3)
    assert not may_go(theirs, at + 0.3)
    assert may_go(theirs, at + 0.3 + 2 * STEP_S)


def test_who_holds_back_does_so_for_the_next_cooldown_when_another_was_refused() -> None:
    mine, theirs = shared("one"), shared("one")
    limit(mine)
    tell(mine, theirs, 0.0)
    at = returned(mine)
    assert not may_go(theirs, at)
    mine.accounts.permits.granted({Permit(key("one"), None): _held(mine)}, at)
    mine.release(mine.acquire(FACTS, now=at), rate_limit(60.0), now=at + 0.2)
    tell(mine, theirs, at + 0.2)
    assert not may_go(theirs, at + 2.0)
    again = theirs.accounts.get(key("one")).cooling_until(None, at + 1.0)
    assert again > at + 60.0
    assert not may_go(theirs, again)
    assert list(theirs.accounts.permits.asks(again)) == [Permit(key("one"), None)]


def _held(pool: Pool) -> Ramp:
    return pool.accounts.get(key("one")).ramps[None]


def test_without_a_store_nobody_is_waited_for() -> None:
    pool = shared("one")
    limit(pool)
    at = returned(pool)
    assert not may_go(pool, at)
    pool.accounts.permits.share(1)
    assert may_go(pool, at)
    assert not may_go(pool, at)


def test_who_joins_holds_back_what_cooled_before() -> None:
    pool = pool_of("one")
    limit(pool)
    pool.accounts.permits.share(3)
    assert not may_go(pool, returned(pool))


@pytest.mark.parametrize("end", ["clear", "enable"])
def test_what_a_person_ends_is_not_held_back(end: str) -> None:
    pool = shared("one")
    limit(pool)
    if end == "clear":
        pool.accounts.clear_cooldown(key("one"), now=1.0)
    else:
        with Transition(pool.accounts, pool.accounts.get(key("one")), By.HAND, 1.0) as change:
            change.end_cooldowns()
    assert may_go(pool, 1.0)


def test_no_more_are_asked_for_at_once_than_may_be_and_the_rest_goes_a_second_later() -> None:
    pool = shared("one")
    names = [f"model-{number}" for number in range(MAX_ASKS + 5)]
    facts = [replace(FACTS, model=name) for name in names]
    for one in facts:
        pool.release(pool.acquire(one, now=0.0), rate_limit(60.0, scope=Scope.MODEL), now=0.0)
    for one in facts:
        with pytest.raises(NoUsableAccount):
            pool.acquire(one, now=70.0)
    assert len(pool.accounts.permits.asks(70.0)) == MAX_ASKS
    for one in facts:
        assert pool.acquire(one, now=70.0 + ALONE_S + STEP_S)


def test_each_request_asks_for_one_account() -> None:
    pool = shared("one", "two", "three")
    for label in ("one", "two", "three"):
        pool.health.mark_cooldown(key(label), rate_limit(60.0), now=0.0)
    assert not may_go(pool, 70.0)
    assert not may_go(pool, 70.0)
    assert [permit.key.label for permit in pool.accounts.permits.asks(70.0)] == ["one", "two"]


def test_of_many_accounts_that_are_held_back_no_more_are_passed_than_may_be() -> None:
    labels = [f"{number:03}" for number in range(MAX_HELD + 2)]
    pool = shared(*labels)
    for label in labels:
        pool.health.mark_cooldown(key(label), rate_limit(60.0), now=0.0)
    pool.accounts.get(key(labels[-1])).ramps.clear()
    lease = may_go(pool, 70.0)
    assert lease is not None
    assert lease.key.label == labels[MAX_HELD]


def test_the_name_of_a_permit_is_text_whatever_the_model_is_called() -> None:
    name = Permit(key("one"), "gpt-\ud800\n").name
    assert name.isascii()
    assert name.isprintable()


# -- accounts that take over


def test_those_who_hear_of_a_limit_move_one_by_one() -> None:
    mine, theirs = shared("one", "two"), shared("one", "two")
    limit(mine)
    tell(mine, theirs, 0.0)
    assert theirs.acquire(FACTS, now=0.1).key.label == "two"
    assert not may_go(theirs, 0.1)


@pytest.mark.parametrize(
    ("mine", "others", "slower"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 2.0),
        (5, 15, 4.0),
        (1, 60, 4.0),
        (0, 60, 4.0),
        (9, 1, 10 / 9),
    ],
)
def test_requests_grow_by_what_this_proxy_has_of_those_in_flight(
    mine: int, others: int, slower: float
) -> None:
    pool = shared("one", proxies=4)
    for _ in range(mine):
        pool.acquire(FACTS, now=0.0)
    pool.accounts.set_in_flight_remote({key("one"): others}, now=0.0)
    assert pool.accounts.permits.slower(PROVIDER) == pytest.approx(slower)


def test_ramps_that_are_over_do_not_pile_up_behind_one_that_is_held_back() -> None:
    pool = shared("one")
    held = replace(FACTS, model="held")
    pool.release(pool.acquire(held, now=0.0), rate_limit(1e6, scope=Scope.MODEL), now=0.0)
    state, members = pool.accounts.get(key("one")), pool.accounts.members[PROVIDER]
    for number in range(1000):
        now = 100.0 + number * RAMP_S
        members.switched.note(f"model-{number}", now, 1.0)
        facts = replace(FACTS, model=f"model-{number}")
        pool.release(pool.acquire(facts, now=now), OK, now=now)
    assert len(state.ramps) < 300
    assert state.ramps["held"].is_held


def test_nor_do_those_of_an_account_of_which_this_proxy_only_hears() -> None:
    mine, theirs = shared("one"), shared("one")
    for number in range(1000):
        now = number * 2 * RAMP_S
        facts = replace(FACTS, model=f"model-{number}")
        mine.release(mine.acquire(facts, now=now), rate_limit(1e6, scope=Scope.MODEL), now=now)
        tell(mine, theirs, now)
        mine.accounts.clear_cooldown(key("one"), now=now + 1.0)
        tell(mine, theirs, now + 1.0)
    assert len(theirs.accounts.get(key("one")).ramps) < 300


def test_who_is_held_back_for_a_cooldown_that_is_forgotten_goes_on_as_others() -> None:
    pool = shared("one")
    limit(pool)
    at = returned(pool) + snapshot.STREAK_KEPT_S + 1.0
    kept = snapshot.take(pool.accounts, wall_now=at, ahead=0.0)
    snapshot.restore(pool.accounts, kept, now=at, wall_now=at, by=By.CLOCK)
    assert not pool.accounts.get(key("one")).cooldowns
    assert not may_go(pool, at)
    pool.accounts.permits.granted(pool.accounts.permits.asks(at), at)
    assert may_go(pool, at)
    assert not may_go(pool, at)
    # The first is not answered for long.
    assert may_go(pool, at + ALONE_S + STEP_S)


def test_what_is_in_flight_is_counted_once_for_the_news_of_many_accounts() -> None:
    labels = [f"{number}" for number in range(9)]
    mine, theirs = shared(*labels), shared(*labels)
    for label in labels:
        mine.health.mark_cooldown(key(label), rate_limit(60.0), now=0.0)
    counted: list[str] = []
    slower = theirs.accounts.permits.slower
    theirs.accounts.permits.slower = lambda name: counted.append(name) or slower(name)  # type: ignore[method-assign, func-returns-value]
    tell(mine, theirs, 0.0)
    assert counted == [PROVIDER]


def test_others_know_at_once_whom_a_request_probes() -> None:
    pool = shared("one")
    limit(pool, 1e6)
    urgent: list[int] = []
    pool.accounts.on_urgent = lambda: urgent.append(1)
    lease = pool.acquire_anyway(FACTS, now=100.0)
    assert lease is not None and lease.probe
    assert urgent
    assert key("one") in pool.accounts.dirty


# -- any number of them, in simulated time


class Strict(ScriptedAccount):
    """Refuses everybody, or hangs; notes when it was asked."""

    def __init__(self, refuses_for_s: float) -> None:
        super().__init__("one", [])
        self.refuses_for_s = refuses_for_s
        self.asked: list[float] = []

    def ask(self, now: float) -> tuple[float, bool] | None:
        self.asked.append(now)
        return self.refuses_for_s, False


@given(
    count=st.integers(2, 6),
    refuses_for_s=st.floats(2.0, 9.0),
    wanted=st.lists(st.floats(0.0, 20.0), min_size=5, max_size=40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_one_of_all_proxies_at_a_time_tries_an_account_that_returns(
    count: int, refuses_for_s: float, wanted: list[float], seed: int
) -> None:
    clock, one = Clock(), Strict(refuses_for_s)
    fleet = Proxies(clock, Random(seed), [one], "fill-first", count=count, told_after_s=TOLD_S)
    # All know that it cools before any other wants it.
    fleet.ask(0, _unserved, lambda _: None)
    for number, at in enumerate(wanted):
        clock.at(1.0 + at, lambda n=number: fleet.ask(n, _unserved, lambda _: None))
    clock.run(29.0)  # then the first has waited as long as it may, and is sent
    gaps = [later - earlier for earlier, later in zip(one.asked, one.asked[1:], strict=False)]
    assert not gaps or min(gaps) >= refuses_for_s - 0.5


def _unserved(_account: str, _sent_at: float) -> None:
    raise AssertionError("it refuses everybody")


@given(proxies=st.integers(2, 16), after_s=st.floats(0.0, 3600.0), chance=st.floats(0.0, 1.0))
def test_an_account_whose_holder_dies_is_tried_by_another_within_seconds(
    proxies: int, after_s: float, chance: float
) -> None:
    """It never says how it went; those who were not let first do not hear of it."""
    other = shared("one", proxies=proxies, chance=chance)
    other.accounts.set_in_flight_remote({key("one"): 1000}, now=0.0)
    limit(other)
    at = returned(other) + after_s
    assert not may_go(other, at)
    assert other.accounts.permits.asks(at)  # and refused: another has it
    assert may_go(other, at + ALONE_S + proxies * STEP_S)


def test_a_permit_is_not_for_longer_than_others_wait() -> None:
    assert PERMIT_S <= ALONE_S < inf


# -- an account whose far deadline is due to be probed

HOUR = 3600.0


def due(*others: str, proxies: int = 2) -> Pool:
    """Return a pool whose account `one` cools for a day, which is a guess."""
    pool = shared("one", *others, proxies=proxies)
    pool.health.mark_cooldown(key("one"), quota(24 * HOUR), now=0.0)
    return pool


def test_alone_it_probes_at_once() -> None:
    pool = due("two", proxies=1)
    assert pool.acquire_probe(FACTS, now=HOUR)


def test_who_has_the_permit_probes_and_others_do_once_it_is_over() -> None:
    pool = due("two")
    asked: list[int] = []
    pool.accounts.permits.on_ask = lambda: asked.append(1)
    assert not pool.acquire_probe(FACTS, now=HOUR)
    assert not pool.acquire_probe(FACTS, now=HOUR)
    assert asked == [1]
    wanted = pool.accounts.permits.asks(HOUR)
    assert list(wanted) == [Permit(key("one"), probes=True)]
    assert not pool.accounts.permits.asks(HOUR + 1.0)
    # It is refused, and asked for again.
    assert not pool.acquire_probe(FACTS, now=HOUR + 1.0)
    wanted = pool.accounts.permits.asks(HOUR + ASK_AGAIN_S)
    pool.accounts.permits.granted(wanted, HOUR + ASK_AGAIN_S)
    lease = pool.acquire_probe(FACTS, now=HOUR + ASK_AGAIN_S + 30.0)
    assert lease and lease.probe
    assert not pool.acquire_probe(FACTS, now=HOUR + ASK_AGAIN_S + 30.0)


def test_a_permit_is_used_while_nobody_else_can_have_it() -> None:
    pool = due("two")
    assert not pool.acquire_probe(FACTS, now=HOUR)
    pool.accounts.permits.granted(pool.accounts.permits.asks(HOUR), HOUR + 40.0)
    assert not pool.acquire_probe(FACTS, now=HOUR + PROBE_USE_S)
    assert PROBE_USE_S < PROBE_PERMIT_S < HAD_AGAIN_S
    assert not pool.accounts.permits.asks(HOUR + PROBE_PERMIT_S), "others may have it"
    again = HOUR + HAD_AGAIN_S
    pool.accounts.permits.granted(pool.accounts.permits.asks(again), again)
    assert pool.acquire_probe(FACTS, now=again)


def test_nobody_asks_for_what_another_has_probed() -> None:
    mine, theirs = due("two"), due("two")
    for pool in (mine, theirs):
        assert not pool.acquire_probe(FACTS, now=HOUR)
    mine.accounts.permits.granted(mine.accounts.permits.asks(HOUR), HOUR)
    assert mine.acquire_probe(FACTS, now=HOUR)
    tell(mine, theirs, HOUR)
    assert not theirs.accounts.permits.asks(HOUR)
    assert not theirs.acquire_probe(FACTS, now=HOUR + 1.0)
    # The next one is another matter.
    assert not theirs.acquire_probe(FACTS, now=2 * HOUR)
    assert theirs.accounts.permits.asks(2 * HOUR)


def test_without_a_store_it_probes_without_a_permit() -> None:
    pool = due("two")
    assert not pool.acquire_probe(FACTS, now=HOUR)
    pool.accounts.permits.share(1)
    assert pool.acquire_probe(FACTS, now=HOUR)
    assert not pool.accounts.permits.asks(HOUR)


def test_a_permit_outlasts_a_store_that_fails_for_a_moment() -> None:
    """Nobody else gets it meanwhile, and this proxy would ask for it in vain."""
    pool = due("two")
    assert not pool.acquire_probe(FACTS, now=HOUR)
    pool.accounts.permits.granted(pool.accounts.permits.asks(HOUR), HOUR)
    pool.accounts.permits.share(1)
    pool.accounts.permits.share(2)
    assert pool.acquire_probe(FACTS, now=HOUR)


def test_one_account_that_another_may_probe_keeps_no_other_back() -> None:
    pool = due("two", "three")
    pool.health.mark_cooldown(key("two"), quota(24 * HOUR), now=0.0)
    assert not pool.acquire_probe(FACTS, now=HOUR)
    wanted = pool.accounts.permits.asks(HOUR)
    assert len(wanted) == 2
    pool.accounts.permits.granted({Permit(key("two"), probes=True): None}, HOUR)
    lease = pool.acquire_probe(FACTS, now=HOUR)
    assert lease and lease.key == key("two")


def test_an_account_that_is_removed_and_added_again_has_no_old_permit() -> None:
    pool = due("two")
    assert not pool.acquire_probe(FACTS, now=HOUR)
    pool.accounts.permits.granted(pool.accounts.permits.asks(HOUR), HOUR)
    account = pool.accounts.get(key("one")).account
    pool.accounts.remove(key("one"), now=HOUR)
    pool.accounts.add(account, keys_of("one"), now=HOUR)
    pool.health.mark_cooldown(key("one"), quota(24 * HOUR), now=0.0)
    assert not pool.acquire_probe(FACTS, now=HOUR)


class Far(Strict):
    """Is limited until *end*."""

    def __init__(self, end: float) -> None:
        super().__init__(end)
        self.end = end

    def ask(self, now: float) -> tuple[float, bool] | None:
        self.asked.append(now)
        return self.end - now, True


@given(
    # Seconds between two requests of each proxy; None: it has none.
    paces=st.lists(st.none() | st.floats(8.0, 200.0), min_size=2, max_size=5),
    cuts=st.lists(
        st.tuples(st.integers(0, 4), st.floats(-60.0, 300.0), st.floats(1.0, 300.0)), max_size=3
    ),
    told_s=st.floats(0.01, 1.0),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_all_proxies_that_reach_each_other_probe_an_account_once_when_it_is_due(
    paces: list[float | None], cuts: list[tuple[int, float, float]], told_s: float, seed: int
) -> None:
    clock, random, far = Clock(), Random(seed), Far(24 * HOUR)
    other = ScriptedAccount("two", [])
    size, numbers = len(paces), count(1)
    fleet = Proxies(clock, random, [far, other], "fill-first", count=size, told_after_s=told_s)

    def ask(proxy: int) -> None:
        conversation = next(numbers) * size + proxy
        fleet.ask(conversation, lambda *_: None, _told)

    def work(proxy: int, pace_s: float, until: float) -> None:
        if clock.now < until:
            ask(proxy)
            clock.after(pace_s * random.uniform(0.5, 1.5), lambda: work(proxy, pace_s, until))

    ask(0)
    clock.run(HOUR - 100.0)
    assert len(far.asked) == 1
    began = far.asked[0]
    for due_at in (HOUR, 2 * HOUR):
        for proxy, pace_s in enumerate(paces):
            if pace_s is not None:
                for number in range(5):  # all in one moment, and again and again
                    clock.at(due_at + number * told_s / 3, lambda p=proxy: ask(p))  # type: ignore[misc]
                clock.at(due_at, lambda p=proxy, s=pace_s: work(p, s, clock.now + 1500.0))  # type: ignore[misc]
        for proxy, after_s, for_s in cuts:
            at, until = due_at + after_s, due_at + after_s + for_s
            clock.at(at, lambda p=proxy, u=until: fleet.cut_off(p % size, until=u))  # type: ignore[misc]
        clock.run(due_at + 1800.0)
    for due_at in (HOUR, 2 * HOUR):
        probes = [at for at in far.asked if began + due_at <= at < began + 2 * due_at]
        cut = {proxy % size for proxy, *_ in cuts}
        assert len(probes) <= 1 + len(cut)
        # Whoever has requests every few seconds has one while it has the permit.
        if any(pace_s is not None and pace_s < 20.0 for pace_s in paces):
            assert probes and probes[0] < due_at + 1500.0


def _told(_wait_s: float) -> None:
    raise AssertionError("another account serves")
