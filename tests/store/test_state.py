"""What every store of what a pool has learnt promises: in a file, in memory, in an engine."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from tests.store.backends import WALL, Backend
from tests.store.samples import CAUSE, COOLS, FULL, HOME, PLAIN, UNKNOWN, WORK, keep, news, write

from account_pool.core.cooldown import Endings
from account_pool.core.notifications import Event, Subject, Verdict
from account_pool.core.outcome import OutcomeClass
from account_pool.core.shares import ME, Ask, Share
from account_pool.core.snapshot import AccountSnapshot
from account_pool.store.agreed import (
    COUNTS_KEPT_S,
    GONE_KEPT_S,
    ROUNDED_S,
    TABLE_KEPT_S,
)
from account_pool.store.store import GRACE_S, News, StateStore, StoreError


def test_everything_is_there_after_a_restart(backend: Backend) -> None:
    store = backend.open()
    assert keep(store, FULL, PLAIN) == [FULL, PLAIN]
    store.close()
    found = backend.open().exchange([UNKNOWN], (), wall_now=WALL + 1)
    assert found.accounts == (FULL,)
    assert found.wall_at == WALL


def test_of_many_cooldowns_those_that_end_are_gone_after_a_restart(backend: Backend) -> None:
    store = backend.open()
    models = (None, "m", 'a "model"', "gpt-5\ud800", "[1]", "other")
    cooldowns = {model: replace(COOLS, model=model) for model in models}
    cooling = replace(UNKNOWN, cooldowns=cooldowns)
    for kept in (models, models[1:], ("m", "other"), ("other", None), ()):
        left = replace(UNKNOWN, cooldowns={model: cooldowns[model] for model in kept})
        keep(store, cooling)
        assert keep(store, left) == [left]
        store.close()
        store = backend.open()
        assert keep(store, UNKNOWN) == [left]
        keep(store, UNKNOWN)


def test_one_adopts_what_the_other_has_written(two) -> None:
    one, other = two
    keep(one, UNKNOWN)
    keep(other, UNKNOWN)
    news(one), news(other)
    assert news(one) == News()
    cooling = replace(UNKNOWN, cooldowns={None: COOLS})
    keep(one, cooling, at=WALL + 1)
    told = news(other)
    assert (told.accounts, told.wrote_at) == ({WORK}, WALL + 1)
    assert news(other) == News()
    assert keep(other, UNKNOWN) == [cooling]
    assert news(one) == News(), "adopting writes nothing"


def test_what_one_releases_does_not_come_back_from_the_other(two) -> None:
    one, other = two
    cooling = replace(UNKNOWN, cooldowns={None: COOLS})
    keep(one, cooling)
    keep(other, UNKNOWN)
    keep(one, UNKNOWN)
    assert keep(other, replace(cooling, served=5)) == [replace(UNKNOWN, served=5)]
    assert keep(one, UNKNOWN) == [replace(UNKNOWN, served=5)]


@pytest.mark.parametrize("is_known", [True, False], ids=["both knew it", "learnt apart"])
@pytest.mark.parametrize("is_first", [True, False], ids=["written before", "written after"])
def test_what_began_before_it_was_ended_by_hand_is_over(two, is_first, is_known) -> None:
    one, other = two
    if is_known:
        known = replace(FULL, refused="", owner=None, served=0)
        keep(one, known), keep(other, UNKNOWN)
    later = {m: replace(c, since=WALL + 1, until=WALL + 99) for m, c in FULL.cooldowns.items()}
    older = replace(FULL, cooldowns=later, disabled=replace(FULL.disabled, since=WALL + 1))
    # What is left of its allowances is forgotten as well.
    told = {name: w._replace(told_at=WALL + 1) for name, w in FULL.windows.items()}
    older = replace(older, windows=told, refused="", owner=None, served=0)
    ended = replace(UNKNOWN, endings=Endings(WALL + 2, WALL + 2, WALL + 2))
    writes = [(one, ended), (other, older)]
    for store, account in reversed(writes) if is_first else writes:
        [found] = keep(store, account)
    assert found == ended
    newer = replace(COOLS, since=WALL + 3)
    keep(other, ended)
    [found] = keep(other, replace(ended, cooldowns={None: newer}, disabled=FULL.disabled))
    # Who has heard of the ending knows what came after it, by whatever clock.
    assert (found.disabled, found.cooldowns) == (FULL.disabled, {None: newer})
    [heard] = keep(one, ended)
    assert (heard.disabled, heard.cooldowns) == (FULL.disabled, {None: newer})


def test_of_a_benched_account_enabling_ends_the_bench_and_no_limit(two) -> None:
    one, other = two
    bench = replace(COOLS, model="m", cause=replace(CAUSE, cls=OutcomeClass.FORBIDDEN_ACCOUNT))
    limit = replace(COOLS, cause=replace(CAUSE, unknown=False))
    keep(one, replace(UNKNOWN, endings=Endings(disabling=WALL + 1, benches=WALL + 1)))
    [found] = keep(other, replace(UNKNOWN, cooldowns={"m": bench, None: limit}))
    assert found.cooldowns == {None: limit}


def test_an_account_that_comes_back_is_as_it_was(state) -> None:
    keep(state, FULL)
    assert state.exchange([], [WORK], wall_now=WALL).accounts == ()
    assert keep(state, UNKNOWN) == [FULL], "not a release by one who knew of it"


def test_one_that_goes_and_comes_back_at_once_too(state) -> None:
    keep(state, FULL)
    assert state.exchange([UNKNOWN], [WORK], wall_now=WALL).accounts == (FULL,)


def test_a_write_that_fails_counts_nothing_twice(backend: Backend, state) -> None:
    keep(state, replace(UNKNOWN, served=2))
    with backend.failing(state), pytest.raises(StoreError, match="cannot be written"):
        keep(state, replace(UNKNOWN, served=5))
    assert keep(state, replace(UNKNOWN, served=6)) == [replace(UNKNOWN, served=6)]


def test_tables_keep_the_latest_row_of_a_key(two) -> None:
    one, other = two
    for table in TABLE_KEPT_S:
        write(one, table, [("a", "openai/work", WALL), ("b", "openai/work", WALL - 1)])
        write(other, table, [("a", "openai/home", WALL + 1), ("odd\ud800", "x/y", WALL)])
        write(one, table, [("a", "openai/work", WALL)], gone={"b": WALL - 1})
        assert one.read_table(table) == [("a", "openai/home", WALL + 1)]


def test_a_line_another_has_used_since_stays(state) -> None:
    write(state, "sessions", [("a", "openai/work", WALL), ("b", "openai/work", WALL)])
    write(state, "sessions", [("b", "openai/work", WALL + 9)])
    write(state, "sessions", [], gone={"a": WALL, "b": WALL, "unknown": WALL})
    assert state.read_table("sessions") == [("b", "openai/work", WALL + 9)]


def test_a_key_that_moves_at_the_moment_of_its_last_use_is_moved(state) -> None:
    write(state, "sessions", [("a", "openai/work", WALL)])
    write(state, "sessions", [("a", "openai/home", WALL)])
    assert state.read_table("sessions") == [("a", "openai/home", WALL)]


def test_what_is_taken_out_is_news_once_also_if_two_do_it(two) -> None:
    """Else each would tell the other for ever, and the line would never be swept."""
    one, other = two
    write(one, "sessions", [("a", "openai/work", WALL)])
    news(one), news(other)
    write(one, "sessions", [], gone={"a": WALL})
    assert news(other).gone == {"sessions": {"a": WALL}}
    write(other, "sessions", [], gone={"a": WALL})
    assert news(one).gone == news(other).gone == {}


def test_times_that_differ_by_their_rounding_are_the_same_use(two) -> None:
    one, other = two
    write(one, "sessions", [("a", "openai/work", WALL + ROUNDED_S / 2)])
    write(other, "sessions", [], gone={"a": WALL})
    assert one.read_table("sessions") == []
    # Whoever still has it has not used it since.
    write(one, "sessions", [("a", "openai/work", WALL + ROUNDED_S)])
    assert one.read_table("sessions") == []
    write(one, "sessions", [("a", "openai/work", WALL + 1)])
    assert one.read_table("sessions") == [("a", "openai/work", WALL + 1)]


def test_what_was_taken_out_is_known_for_a_while(backend: Backend) -> None:
    one, late, later = (backend.open() for _ in range(3))
    write(one, "pins", [("a", "openai/work", WALL), ("b", "openai/work", WALL)])
    news(late), news(later)
    write(one, "pins", [], gone={"a": WALL})
    left = [("b", "openai/work", WALL)]
    one.sweep([], wall_now=WALL + GONE_KEPT_S - 1)
    assert (news(late).gone, late.read_table("pins")) == ({"pins": {"a": WALL}}, left)
    one.sweep([], wall_now=WALL + GONE_KEPT_S + 1)
    assert (news(later).gone, later.read_table("pins")) == ({}, left)


def test_what_one_binds_is_news_to_the_other(two) -> None:
    one, other = two
    news(one), news(other)
    bound = ("a", "openai/work", WALL)
    write(one, "sessions", [bound])
    assert news(other).lines == {"sessions": [bound]}
    assert news(other) == news(one) == News()
    write(other, "sessions", [("a", "openai/home", WALL + 1)])
    assert news(one).lines == {"sessions": [("a", "openai/home", WALL + 1)]}


def test_old_rows_are_swept(two) -> None:
    one, other = two
    keep(one, FULL, PLAIN)
    for table in TABLE_KEPT_S:
        write(one, table, [("old", "openai/work", WALL), ("new", "openai/work", WALL + 1e8)])
    one.exchange((), wall_now=WALL, counts={"usage": {("2026-08-01", "old"): {"n": 1}}})
    late = WALL + COUNTS_KEPT_S
    one.exchange((), wall_now=late, counts={"usage": {("2027-09-05", "new"): {"n": 1}}})
    one.sweep([HOME], wall_now=late + 1)
    assert keep(other, UNKNOWN, AccountSnapshot(key=HOME)) == [UNKNOWN, PLAIN]
    assert [[row[0] for row in one.read_table(table)] for table in TABLE_KEPT_S] == [["new"]] * 2
    assert list(one.read_counts("usage")) == [("2027-09-05", "new")]


# -- counters


def test_counters_add_up(state) -> None:
    key = ("2026-08-01", "openai/work", "gpt-5\ud800")
    for counts in ({key: {"requests": 1, "tokens": 7}}, {key: {"requests": 1, "cost": 0.5}}):
        state.exchange((), wall_now=WALL, counts={"usage": counts})
    state.exchange((), wall_now=WALL, counts={"other": {key: {"requests": 9}}})
    assert state.read_counts("usage") == {key: {"requests": 2, "tokens": 7, "cost": 0.5}}
    assert state.read_counts("nothing") == {}


def test_counters_of_all_proxies_add_up(two) -> None:
    for store in two:
        store.exchange((), wall_now=WALL, counts={"usage": {("a",): {"requests": 2}}})
    assert [store.read_counts("usage") for store in two] == [{("a",): {"requests": 4}}] * 2


def test_what_fails_is_not_done_in_part(backend: Backend, state) -> None:
    keep(state, FULL)
    more = {"usage": {("a",): {"requests": 1}}}
    with backend.failing(state), pytest.raises(StoreError):
        state.exchange([PLAIN], wall_now=WALL, counts=more)
    assert state.read_counts("usage") == {}


# -- other proxies


def test_others_know_what_one_has_in_flight(two) -> None:
    one, other = two
    one.beat({WORK: 2}, wall_now=WALL)
    one.exchange((), wall_now=WALL, in_flight={HOME: 1})
    told = news(other)
    assert told.in_flight_remote == {WORK: 2, HOME: 1}
    assert told.proxies is not None and len(told.proxies) == 1
    one.exchange((), wall_now=WALL, in_flight={WORK: 0})
    assert news(other).in_flight_remote == {WORK: 0, HOME: 1}
    assert news(one).in_flight_remote == {}


@pytest.mark.parametrize("later", [GRACE_S, -3600.0], ids=["after a grace", "clock set back"])
def test_what_a_dead_proxy_held_is_free(two, later: float) -> None:
    dead, other = two
    dead.beat({WORK: 2}, wall_now=WALL)
    assert news(other).in_flight_remote == {WORK: 2}
    other.beat({}, wall_now=WALL + later / 2 if later > 0 else WALL)
    assert news(other, WALL).in_flight_remote == {WORK: 2}
    other.beat({}, wall_now=WALL + later)
    assert news(other, WALL + later) == News(in_flight_remote={}, proxies=())


def test_one_that_hung_is_there_again(two) -> None:
    hung, other = two
    hung.beat({WORK: 2}, wall_now=WALL)
    assert hung.beat({WORK: 2}, wall_now=WALL)
    other.beat({}, wall_now=WALL + GRACE_S)
    assert not hung.beat({WORK: 1}, wall_now=WALL + GRACE_S + 1)
    assert news(other, WALL + GRACE_S + 1).in_flight_remote == {WORK: 1}


def test_one_that_ends_or_is_known_to_be_dead_holds_nothing(two) -> None:
    one, other = two
    one.beat({WORK: 2}, wall_now=WALL)
    (proxy,) = news(other).proxies or ()
    other.reap([proxy])
    other.beat({}, wall_now=WALL)
    assert news(other).proxies == ()
    one.beat({WORK: 2}, wall_now=WALL)
    assert news(other).in_flight_remote == {WORK: 2}
    one.close()
    assert news(other) == News(in_flight_remote={}, proxies=())


# -- shares of max_concurrent


def share(store: StateStore, limit: int, slots: int, wants: int, at: float = WALL) -> int:
    """Return what *store* holds of an account when it asks."""
    return store.share({WORK: Ask(limit, slots, wants)}, wall_now=at)[WORK].slots


def test_all_together_never_hold_more_than_there_is(backend: Backend) -> None:
    one, other, third = stores = [backend.open() for _ in range(3)]
    for store in stores:
        store.beat({}, wall_now=WALL)
    assert share(one, 5, 0, 4) == 4
    assert share(other, 5, 0, 4) == 1
    assert share(third, 5, 0, 4) == 0
    assert share(one, 5, 2, 2) == 2
    assert share(third, 5, 0, 4) == 2, "what is free, as it is a fair part"
    assert share(other, 5, 1, 4) == 1
    assert share(one, 0, 0, 0) == 0
    assert share(other, 5, 1, 4) + share(third, 5, 2, 4) == 5


def test_who_wants_more_is_told_to_those_who_hold_it(two) -> None:
    one, other = two
    one.beat({}, wall_now=WALL), other.beat({}, wall_now=WALL)
    share(one, 2, 0, 2)
    assert news(other).shares is None
    assert share(other, 2, 0, 1, WALL + 1) == 0
    told = news(one).shares
    assert told is not None and told.keys() == {WORK}
    assert told[WORK][ME] == Share(2, 2, WALL)
    assert [share for proxy, share in told[WORK].items() if proxy != ME] == [Share(0, 1, WALL + 1)]
    share(one, 2, 1, 1)
    assert share(other, 2, 0, 1) == 1
    assert news(one).shares is None


@pytest.mark.parametrize("end", ["closes", "is reaped", "stops its heartbeat"])
def test_a_share_ends_with_its_proxy(two, end: str) -> None:
    one, other = two
    one.beat({}, wall_now=WALL), other.beat({}, wall_now=WALL)
    later = WALL
    assert share(one, 3, 0, 3) == 3
    assert share(other, 3, 0, 3) == 0
    if end == "closes":
        one.close()
    elif end == "is reaped":
        other.reap(news(other).proxies or ())
    else:
        later += GRACE_S
    other.beat({}, wall_now=later)
    assert share(other, 3, 0, 3, later) == 3
    if end != "closes":
        # It had only hung: it is told that it holds nothing, and asks anew.
        assert not one.beat({}, wall_now=later)
        assert share(one, 3, 0, 3, later) == 0
        assert share(other, 3, 3, 3, later) == 3


# -- another credential under the same name

OLD, NEW = replace(FULL, source="old"), replace(UNKNOWN, source="new")


def test_what_was_learnt_with_another_credential_is_dropped(state) -> None:
    keep(state, OLD)
    state.exchange([], [WORK], wall_now=WALL)
    found = state.exchange([NEW], wall_now=WALL)
    assert found.accounts == (replace(NEW, served=OLD.served),)
    assert found.replaced == {WORK}
    assert state.exchange(found.accounts, wall_now=WALL).replaced == frozenset()


def test_two_with_other_credentials_do_not_write_in_turns(two) -> None:
    one, other = two
    keep(one, OLD)
    (mine,) = keep(other, NEW)
    assert (mine.cooldowns, mine.source) == ({}, "new")
    news(one), news(other)
    assert keep(one, OLD) == [replace(OLD, served=OLD.served)]
    assert news(other) == News()


def test_who_has_taken_over_the_new_credential_shares_again(two) -> None:
    one, other = two
    for store in two:
        keep(store, replace(OLD, served=0))
    keep(one, NEW)
    cooling = replace(NEW, cooldowns={None: COOLS})
    keep(one, cooling)
    assert keep(other, NEW) == [cooling]


# -- what the owner was notified of


def test_of_two_proxies_one_tells(two) -> None:
    one, other = two
    gone = Subject(Event.DISABLED, str(WORK))
    assert one.notices.note([gone], [], wall_now=WALL) == {gone: Verdict.TELL}
    assert other.notices.note([gone], [], wall_now=WALL) == {gone: Verdict.KNOWN}
    assert other.notices.noted() == [gone]
    assert other.notices.note([], [gone], wall_now=WALL + 1) == {gone: Verdict.TELL}
    assert one.notices.note([], [gone], wall_now=WALL + 1) == {gone: Verdict.KNOWN}
    assert one.notices.note([gone], [], wall_now=WALL + 2) == {gone: Verdict.LATER}
    assert one.notices.noted() == []


def test_a_turn_is_taken_by_one_and_comes_again(two) -> None:
    one, other = two
    assert one.notices.take_turn("look-up", 300.0, wall_now=WALL)
    assert not other.notices.take_turn("look-up", 300.0, wall_now=WALL + 299.0)
    assert other.notices.take_turn("another", 300.0, wall_now=WALL)
    assert other.notices.take_turn("look-up", 300.0, wall_now=WALL + 300.0)
    # The clock was set back.
    assert one.notices.take_turn("look-up", 300.0, wall_now=WALL - 9000.0)
