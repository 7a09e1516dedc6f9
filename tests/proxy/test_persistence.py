"""What the pool learns is written in nobody's way, and read again."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from account_pool.core import instruments, snapshot
from account_pool.core.account import Account, AccountKey
from account_pool.core.credential import Secret
from account_pool.core.decisions import By, Decision, Kind
from account_pool.core.errors import NoUsableAccount
from account_pool.core.instruments import Ended, Mark
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.permits import Permit
from account_pool.proxy import pending_writes, persistence, store_access
from account_pool.proxy.persistence import Persistence
from account_pool.proxy.service import Service
from account_pool.proxy.store_access import StoreAccess
from account_pool.store.machine import Moment, Process
from account_pool.store.sqlite import MemoryStore, SqliteStore, SqliteTokens
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.store import (
    GRACE_S,
    DamagedError,
    RequestQuery,
    StoreError,
    TableChanges,
    Tokens,
    UnfitError,
)
from tests.patience import PATIENCE_S
from tests.proxy.helpers import FakeClock, service_of

FACTS = RequestFacts(provider="openai", kind="key", model="gpt-5")
LONE = Account(provider="openai", label="one", max_concurrent=1)
ONE, TWO = AccountKey("openai", "one"), AccountKey("openai", "two")
LIMIT = Outcome(
    cls=OutcomeClass.QUOTA, scope=Scope.ACCOUNT, cooldown_s=600.0, signal="429 code=quota"
)
GOOD = Outcome(cls=OutcomeClass.OK)
FORBIDDEN = Outcome(cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.ACCOUNT, signal="403 suspended")

Begin = Callable[..., tuple[Service, Persistence]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool.sqlite"


def at(clock: FakeClock) -> Moment:
    """The machine is up for as long as the clock runs, and was asleep before."""
    return Moment("one", clock.now() + slept[0], clock.wall_now())


#: seconds for which the machine slept: its monotonic clock stood still
slept = [0.0]


@pytest.fixture(autouse=True)
def awake() -> None:
    slept[0] = 0.0


@pytest.fixture
def begin(path: Path, clock: FakeClock) -> Iterator[Begin]:
    """Begin a proxy on the store: its service, and what keeps that."""
    made: list[Persistence] = []

    def make(*labels: str | Account) -> tuple[Service, Persistence]:
        service = service_of(*(labels or ("one", "two")), clock=clock)
        kept = persistence.begin(SqliteStore(path, clock=lambda: at(clock)), service)
        made.append(kept)
        return service, kept

    yield make
    for kept in made:
        kept.stop()


def cools(service: Service, key: AccountKey = ONE) -> float:
    """How long *key* cools, in whole seconds."""
    now = service.now()
    return round(max(service.pool.accounts.get(key).cooling_until(None, now) - now, 0.0))


def serve(service: Service) -> None:
    """Have the account ONE serve a request."""
    account = replace(FACTS, only=ONE)
    now = service.now()
    service.pool.release(service.pool.acquire(account, now=now), GOOD, now=now)


def limit(service: Service, key: AccountKey = ONE) -> None:
    service.pool.health.mark_cooldown(key, LIMIT, now=service.now())


async def test_what_was_written_is_there_without_an_ending(begin: Begin, clock: FakeClock) -> None:
    service, kept = begin()
    limit(service)
    service.pool.health.mark_failure(TWO, FORBIDDEN, now=service.now())
    await kept._round()
    again, _ = begin()
    assert cools(again) == 600
    disabled = again.pool.accounts.get(TWO).disabled
    assert disabled is not None and disabled.signal == "403 suspended"
    clock.advance(601)
    assert cools(again) == 0


def test_what_has_not_changed_is_taken_as_the_objects_it_was(
    begin: Begin, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account may cool for a hundred models: then nobody has to compare them."""
    ticks = itertools.count()

    def now() -> float:
        clock.advance(next(ticks) * 1e-5)  # from one look at the clock to the next
        return clock.time

    monkeypatch.setattr(clock, "now", now)
    service, kept = begin()
    limit(service)
    cooldowns = []
    for seconds in (0.1, 0.7, 1e5):
        clock.advance(seconds)
        service.pool.accounts.mark_dirty(ONE)
        batch = kept.pending.take(in_flight=False)
        assert batch is not None
        [account] = [one for one in batch.accounts if one.key == ONE]
        cooldowns.append(account.cooldowns[None])
    assert cooldowns[0] is cooldowns[1] is cooldowns[2]


def test_all_accounts_are_in_it_from_the_start(begin: Begin, path: Path) -> None:
    begin()
    with closing(sqlite3.connect(path)) as other:
        rows = other.execute("SELECT account, served FROM accounts ORDER BY account").fetchall()
    assert rows == [("openai/one", 0), ("openai/two", 0)]


def test_the_rest_is_written_at_the_end(begin: Begin) -> None:
    service, kept = begin()
    limit(service)
    kept.stop()
    assert cools(begin()[0]) == 600


def test_the_end_does_not_wait_for_a_disk_longer_than_it_may(
    begin: Begin, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    service, kept = begin()
    limit(service)
    goes_on = threading.Event()
    kept._thread.submit(goes_on.wait)
    kept.stop(by=clock.now())
    goes_on.set()
    assert "takes too long to write" in caplog.text


async def test_it_writes_by_itself_when_something_has_changed(begin: Begin, path: Path) -> None:
    service, kept = begin()
    kept.start()
    limit(service)
    other = SqliteState(path)
    unknown = snapshot.take(service_of("one").pool.accounts, wall_now=0, ahead=0).accounts
    while not other.exchange(unknown, [ONE], wall_now=0).accounts[0].cooldowns:
        # The other thread writes meanwhile.
        await asyncio.sleep(0)
    other.close()


async def test_one_takes_over_what_another_has_learnt_and_released(begin: Begin) -> None:
    (mine, here), (theirs, there) = begin(), begin()
    limit(mine)
    await here._round()
    await there._round()
    assert cools(theirs) == 600
    theirs.pool.accounts.clear_cooldown(ONE, now=theirs.now())
    await there._round()
    await here._round()
    assert cools(mine) == 0
    for _ in range(3):
        await here._round()
        await there._round()
    assert (cools(mine), cools(theirs)) == (0, 0)
    assert not mine.pool.accounts.dirty and not theirs.pool.accounts.dirty


async def test_what_another_has_begun_and_ended_is_not_brought_back(
    begin: Begin, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks at a clock the system may run something else, for milliseconds."""

    def now() -> float:
        clock.advance(0.002)
        return clock.time

    monkeypatch.setattr(clock, "now", now)
    (here, ours), (there, theirs) = begin(), begin()
    here.pool.health.mark_failure(ONE, FORBIDDEN, now=here.now())
    limit(here, TWO)
    for proxy in (ours, theirs):
        await proxy._round()
    assert there.pool.accounts.get(ONE).disabled is not None
    assert cools(there, TWO) == 600
    for key in (ONE, TWO):
        here.pool.accounts.clear_cooldown(key, now=here.now())
    for proxy in (ours, theirs, ours):
        await proxy._round()
    for service in (here, there):
        assert service.pool.accounts.get(ONE).disabled is None
        assert cools(service, TWO) == 0


@pytest.mark.parametrize("is_late", [True, False], ids=["it lands last", "it lands first"])
@pytest.mark.parametrize("what", ["enable", "clear"])
async def test_an_older_write_does_not_undo_what_a_person_has_done_since(
    begin: Begin, clock: FakeClock, what: str, is_late: bool
) -> None:
    """A proxy may be cut off for minutes, and has then learnt for itself what was ended since."""
    (here, ours), (there, theirs) = begin(), begin()
    goes_on = threading.Event()
    for service, proxy in ((here, ours), (there, theirs)):
        clock.advance(1)
        service.pool.health.mark_failure(ONE, FORBIDDEN, now=service.now())
        if what == "clear":
            limit(service)
        if proxy is theirs and is_late:
            proxy._thread.submit(goes_on.wait)
            proxy._begin_write()
        else:
            await proxy._round()
    clock.advance(1)
    accounts = here.pool.accounts
    end = accounts.enable if what == "enable" else accounts.clear_cooldown
    end(ONE, now=here.now(), by=By.HAND)
    ours._begin_write()
    ours._finish_write()
    goes_on.set()
    theirs._finish_write()
    for _ in range(2):
        for service, proxy in ((here, ours), (there, theirs)):
            await proxy._round()
            assert service.pool.accounts.get(ONE).disabled is None
            assert cools(service) == 0
    for service in (here, there, begin()[0]):
        assert service.pool.accounts.get(ONE).disabled is None
        assert cools(service) == 0


async def test_what_is_learnt_after_a_person_has_ended_it_counts(
    begin: Begin, clock: FakeClock
) -> None:
    """Also where the proxy that learns it, and writes first, has not heard of that yet."""
    (here, ours), (there, theirs) = begin(), begin()
    for service, proxy in ((here, ours), (there, theirs)):
        service.pool.health.mark_failure(ONE, FORBIDDEN, now=service.now())
        limit(service)
        await proxy._round()
    clock.advance(1)
    here.pool.accounts.clear_cooldown(ONE, now=here.now())
    clock.advance(1)
    there.pool.health.mark_failure(ONE, FORBIDDEN, now=there.now())
    there.pool.health.mark_cooldown(ONE, LIMIT, now=there.now(), started_at=there.now())
    for proxy in (theirs, ours, theirs):
        await proxy._round()
    for service in (here, there):
        assert service.pool.accounts.get(ONE).disabled is not None
        assert cools(service) == 600


async def test_accounts_that_only_another_has_are_left_to_it(begin: Begin) -> None:
    (mine, here), (_, there) = begin(), begin("two")
    limit(mine)
    await here._round()
    await there._round()
    await there._round()
    assert cools(begin()[0]) == 600


async def test_an_account_that_was_removed_is_as_it_was_when_it_comes_back(begin: Begin) -> None:
    service, kept = begin()
    limit(service)
    await kept._round()
    account = service.pool.accounts.remove(ONE, now=service.now())
    await kept._round()
    for _ in range(2):
        service.pool.accounts.add(account, now=service.now())
        await kept._round()
        assert cools(service) == 600
        # The second time it is away for less than a write.
        service.pool.accounts.remove(ONE, now=service.now())
    await kept._round()
    assert cools(begin()[0]) == 600


@pytest.mark.parametrize("is_away", [False, True], ids=["", "away"])
@pytest.mark.parametrize("is_written", [False, True], ids=["at once", "later"])
async def test_what_an_account_learnt_just_before_it_was_removed_is_known_of_it(
    begin: Begin, is_away: bool, is_written: bool
) -> None:
    """It came back disabled where it had been enabled a moment before its removal."""
    service, kept = begin()
    accounts = service.pool.accounts
    service.pool.health.mark_failure(ONE, FORBIDDEN, now=service.now())
    await kept._round()
    accounts.enable(ONE, now=service.now(), by=By.HAND)
    limit(service)
    account = accounts.remove(ONE, now=service.now())
    if is_away:
        there, kept.access.store = kept.access.store, Picky(None, lambda *_: True, StoreError())
        kept._begin_write()
        with pytest.raises(StoreError):
            kept._finish_write()
        kept.access.store = there
    if is_written:
        await kept._round()
    accounts.add(account, now=service.now())
    await kept._round()
    for one in (service, begin()[0]):
        assert one.pool.accounts.get(ONE).disabled is None
        assert cools(one) == 600


async def test_one_that_is_removed_during_a_write_undoes_nothing_of_others(begin: Begin) -> None:
    (here, ours), (there, theirs) = begin(), begin()
    there.pool.health.mark_failure(ONE, FORBIDDEN, now=there.now())
    await theirs._round()
    serve(here)
    ours._begin_write()
    assert ours._work is not None
    ours._work[1].result()
    limit(here)
    here.pool.accounts.remove(ONE, now=here.now())
    ours._finish_write()
    for proxy in (ours, theirs):
        await proxy._round()
    for service in (there, begin()[0]):
        assert service.pool.accounts.get(ONE).disabled is not None
        assert cools(service) == 600


async def test_one_that_comes_back_with_another_credential_is_new(begin: Begin) -> None:
    service, kept = begin()
    limit(service)
    service.pool.accounts.get(ONE).source = "old"
    service.pins.remember(ONE, "resp_1", service.wall_now())
    await kept._round()
    again = service_of("one", "two")
    again.pool.accounts.get(ONE).source = "new"
    restored = persistence.begin(kept.access.source, again)
    restored.stop()
    assert cools(again) == 0
    assert again.pins.owner("openai", "resp_1") is None
    third = service_of("one", "two")
    third.pool.accounts.get(ONE).source = "new"
    restored = persistence.begin(kept.access.source, third)
    restored.stop()
    assert third.pins.owner("openai", "resp_1") is None


async def test_sessions_and_pins_are_kept(begin: Begin, clock: FakeClock) -> None:
    service, kept = begin()
    service.sessions.bind("a", ONE, service.now())
    service.sessions.bind("gone", TWO, service.now())
    service.pins.remember(TWO, "resp_1", service.wall_now())
    await kept._round()
    service.sessions.close_session("gone")
    await kept._round()
    again, _ = begin()
    session = again.sessions.peek("a", again.now())
    assert session is not None and session.account == ONE
    assert again.sessions.peek("gone", again.now()) is None
    assert again.pins.owner("openai", "resp_1") == TWO


async def test_a_session_that_is_used_is_not_idle_after_a_restart(
    begin: Begin, clock: FakeClock
) -> None:
    service, kept = begin()
    service.sessions.bind("a", ONE, service.now())
    await kept._round()
    for _ in range(40):
        clock.advance(60)
        service.sessions.get("a", service.now())
        await kept._round()
    assert begin()[0].sessions.peek("a", service.now()) is not None


async def test_a_machine_that_slept_has_not_stopped_the_clock_of_the_vendor(
    begin: Begin, clock: FakeClock
) -> None:
    service, kept = begin()
    limit(service)
    await kept._round()
    slept[0] = 500.0
    kept._check_clock()
    assert cools(service) == 100
    await kept._round()
    again = service_of("one", clock=clock)
    persistence.begin(kept.access.source, again).stop()
    assert cools(again) == 100


@pytest.mark.parametrize("hours", [-5, -1, 1, 5])
async def test_a_wall_clock_that_is_set_changes_no_deadline_here_or_elsewhere(
    begin: Begin, clock: FakeClock, hours: int
) -> None:
    service, kept = begin()
    limit(service)
    service.sessions.bind("a", ONE, service.now())
    service.pins.remember(TWO, "resp_1", service.wall_now())
    await kept._round()
    clock.advance(100)
    service.wall_now = lambda: clock.wall_now() + hours * 3600
    kept._check_clock()
    await kept._round()
    assert cools(service) == 500
    # Another, whose clock is wrong from the start, and one that begins when ours is.
    for wrong in (hours, -hours):
        other = service_of("one", "two", clock=clock)
        other.wall_now = lambda wrong=wrong: clock.wall_now() + wrong * 3600
        there = persistence.begin(kept.access.source, other)
        await there._round()
        assert cools(other) == 500
        session = other.sessions.peek("a", other.now())
        assert session is not None and session.used_at == pytest.approx(clock.now() - 100)
        assert other.pins.owner("openai", "resp_1") == TWO
        await kept._round()
        assert len(kept.others) == 1
        there.stop()


async def test_a_session_that_was_closed_does_not_come_back_from_another(
    begin: Begin, clock: FakeClock
) -> None:
    (mine, here), (theirs, there) = begin(), begin()
    for key in ("closed", "used"):
        mine.sessions.bind(key, ONE, mine.now())
    mine.pins.remember(ONE, "resp_1", mine.wall_now())
    await here._round()
    await there._round()
    assert theirs.pins.owner("openai", "resp_1") == ONE
    theirs.pins.note_used(theirs.wall_now() - 1)
    clock.advance(5)
    theirs.sessions.get("used", theirs.now())
    for key in ("closed", "used"):
        mine.sessions.close_session(key)
    mine.pins.forget(ONE)
    await here._round()
    # It may have been about to write all that it knows, as after its store had failed.
    there.pending.tables["sessions"].written.clear()
    there.pending.note_used()
    await there._round()
    await here._round()
    for service in (mine, theirs, begin()[0]):
        assert service.sessions.peek("closed", service.now()) is None
        assert service.sessions.peek("used", service.now()) is not None
        assert service.pins.owner("openai", "resp_1") is None


async def test_a_session_that_another_has_closed_is_forgotten_on_a_busy_machine(
    begin: Begin, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not used there since, however much time lies between two looks at the clock."""
    (mine, here), (theirs, there) = begin(), begin()
    ticks = itertools.count()

    def now() -> float:
        clock.advance(next(ticks) * 1e-3)
        return clock.time

    monkeypatch.setattr(mine, "now", now)
    monkeypatch.setattr(theirs, "now", now)
    for kept in (here, there):
        monkeypatch.setattr(kept, "_now", now)
        monkeypatch.setattr(kept._clock, "_now", now)
    mine.sessions.bind("chat", ONE, mine.now())
    await here._round()
    await there._round()
    assert theirs.sessions.peek("chat", theirs.now()) is not None
    theirs.sessions.close_session("chat")
    await there._round()
    await here._round()
    assert mine.sessions.peek("chat", mine.now()) is None


async def test_pins_that_are_named_are_not_swept(begin: Begin, clock: FakeClock) -> None:
    service, kept = begin()
    for thing in ("daily", "never"):
        service.pins.remember(ONE, thing, service.wall_now())
    await kept._round()
    for _ in range(40):
        clock.advance(86_400)
        service.pins.owner("openai", "daily")
        await kept._round()
    again, _ = begin()
    assert again.pins.owner("openai", "daily") == ONE
    assert again.pins.owner("openai", "never") is None


@contextmanager
def without_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is written reaches the file, and nobody is told so."""
    exchange = SqliteState.exchange

    def lost(*args: Any, **how: Any) -> None:
        exchange(*args, **how)
        raise StoreError("nobody knows")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteState, "exchange", lost)
        yield


async def test_counts_whose_write_was_not_answered_are_added_once(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, kept = begin()
    await kept._round()
    service.counters["usage"].add(("today",), {"requests": 1})
    with without_answers(monkeypatch):
        for _ in range(3):
            await failed(kept)
            service.counters["usage"].add(("today",), {"requests": 1})
    for _ in range(2):
        await kept._round()
    assert await kept.read_counts("usage") == {("today",): {"requests": 4}}
    service.counters["usage"].add(("today",), {"requests": 1})
    kept.stop()
    assert await begin()[1].read_counts("usage") == {("today",): {"requests": 5}}


def end_request(service: Service, model: str = "gpt-5") -> None:
    """A request ends."""
    facts, now = replace(FACTS, model=model), service.now()
    service.ended.add(
        Ended(facts, (), [(Mark.BEGAN, now)], now, service.wall_now(), 503, whole=True)
    )


async def rows(kept: Persistence) -> list[str | None]:
    """The models of the rows in the file, in the order of their ends."""
    page = await kept.ask(lambda store: store.requests.read(RequestQuery(limit=1000)))
    assert page is not None
    return [row.model for _, row in reversed(page.rows)]


async def test_rows_whose_write_was_not_answered_are_there_once(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, kept = begin()
    await kept._round()
    end_request(service, "a")
    with without_answers(monkeypatch):
        for name in "bcd":
            await failed(kept)
            end_request(service, name)
    for _ in range(2):
        await kept._round()
    assert await rows(kept) == ["a", "b", "c", "d"]
    end_request(service, "e")
    kept.stop()
    assert await rows(begin()[1]) == ["a", "b", "c", "d", "e"]


async def test_what_is_too_much_for_a_store_that_hangs_is_told(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service, kept = begin()
    await kept._round()
    monkeypatch.setattr(instruments, "MAX_WAITING", 3)
    for number in range(5):
        end_request(service, str(number))
    # At once, however long it hangs.
    assert caplog.text.count("requests wait to be written") == 1
    await kept._round()
    assert await rows(kept) == ["0", "1", "2"]
    assert caplog.text.count("2 requests are missing from GET /requests") == 1
    await kept._round()
    assert caplog.text.count("missing") == 1


async def test_a_row_that_cannot_be_made_keeps_no_other_back(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    service, kept = begin()
    await kept._round()
    for name in ("a", None, "b"):
        end_request(service, name or "x")
        if name is None:
            service.ended.waiting[-1] = service.ended.waiting[-1]._replace(marks=None)
    service.usages.count(ONE, "gpt-5", None, service.wall_now())
    await kept._round()
    assert await rows(kept) == ["a", "b"]
    assert "of a request something cannot be written" in caplog.text
    sums = await kept.read_counts("usage")
    assert [amounts["requests"] for amounts in sums.values()] == [1]


def decided(kept: Persistence) -> list[tuple[str, str]]:
    assert kept.access.store is not None
    rows = kept._service.decided.sync(kept.access.store).rows
    return [(row["kind"], row["by"]) for row in rows]


async def test_decisions_are_written_by_themselves_and_once(begin: Begin, path: Path) -> None:
    service, kept = begin()
    limit(service)
    assert service.decided.waiting
    await kept._round()
    assert not service.decided.waiting
    with closing(SqliteState(path)) as store:
        assert len(store.decisions.read(0).rows) == 1
    service.pool.health.mark_failure(TWO, FORBIDDEN, now=service.now())
    kept.stop()
    _, again = begin()
    # What it has taken over from the earlier run is recorded already.
    assert decided(again) == [("cooldown", "a refusal"), ("disable", "a refusal")]


async def test_a_decision_about_a_request_alone_is_written_too(begin: Begin) -> None:
    service, kept = begin()
    kept.start()
    await kept.write()
    fields = {"kind": Kind.MOVE, "at": service.now(), "by": By.ANSWER, "provider": "openai"}
    service.pool.decisions.add(Decision(**fields))
    async with asyncio.timeout(PATIENCE_S):
        while service.decided.waiting:
            await asyncio.sleep(0)


async def test_old_rows_go_and_with_0_all(begin: Begin, clock: FakeClock) -> None:
    service, kept = begin()
    end_request(service, "old")
    await kept._round()
    clock.advance(29 * 86_400)
    end_request(service, "new")
    await kept._round()
    assert await rows(kept) == ["old", "new"]
    clock.advance(2 * 86_400)
    await kept._round()
    assert await rows(kept) == ["new"]
    service.ended.kept_days = 0
    end_request(service, "unwanted")
    clock.advance(persistence.PRUNE_S)
    await kept._round()
    assert await rows(kept) == []


async def test_without_a_store_nothing_is_answered(begin: Begin) -> None:
    _, kept = begin()
    kept.access.close()
    assert await kept.ask(lambda store: store.requests.read(RequestQuery())) is None


async def test_without_a_store_it_is_known_what_was_read_and_what_is_not_written(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, kept = begin()

    def refuse(*_args: object, **_when: object) -> None:
        raise StoreError("the disk is full")

    def end(model: str) -> None:
        now, facts = service.now(), RequestFacts(provider="openai", kind="key", model=model)
        marks = [(Mark.BEGAN, now)]
        service.ended.add(Ended(facts, (), marks, now, service.wall_now(), 503, whole=True))
        service.counters["usage"].add(("2026-08-01", "openai/one", model), {"requests": 1.0})

    async def known() -> list[str | None]:
        page = await kept.known.ask(lambda requests: requests.read(RequestQuery()))
        return [found.model for _, found in page.rows]

    end("written")
    await kept._round()
    assert len(await kept.read_counts("usage")) == 1
    monkeypatch.setattr(SqliteState, "exchange", refuse)
    monkeypatch.setattr(SqliteState, "read_counts", refuse)
    end("refused")
    await failed(kept)
    end("waits")
    for _ in range(2):
        with pytest.raises(StoreError):
            await kept.read_counts("usage")
        assert {key[2] for key in kept.known.counts("usage")} == {"written", "refused", "waits"}
        assert await known() == ["waits", "refused", "written"]
        kept.access.close()


async def test_a_disk_that_hangs_stops_no_start_and_is_used_once_it_answers(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    goes_on, read, opened = threading.Event(), StoreAccess.read, []

    def hang(access: StoreAccess, wall: float) -> Any:
        assert goes_on.wait(PATIENCE_S)
        opened.append(read(access, wall))
        return opened[-1]

    monkeypatch.setattr(StoreAccess, "read", hang)
    with monkeypatch.context() as at_once:
        at_once.setattr(persistence, "START_S", 0.01)
        service, kept = begin()
    assert "the state database takes too long to write; check the disk" in caplog.text
    limit(service)
    goes_on.set()
    await kept._round()
    assert [page[0] is kept.access.store for page in opened] == [False, True]
    with pytest.raises(StoreError):
        opened[0][0].read_table("sessions")
    assert kept.access.problem is None
    kept.stop()
    assert cools(begin()[0])


async def test_a_disk_that_hangs_keeps_the_proxy_from_its_end_for_a_while_only(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service, kept = begin()
    goes_on = threading.Event()

    def hang(state: SqliteState, *_args: object, **_when: object) -> None:
        with state._database._lock:
            assert goes_on.wait(PATIENCE_S)

    monkeypatch.setattr(SqliteState, "exchange", hang)
    monkeypatch.setattr(persistence, "STOP_TIMEOUT_S", 0.01)
    monkeypatch.setattr(persistence, "CLOSE_S", 0.01)
    limit(service)
    kept._begin_write()
    await asyncio.wait_for(asyncio.to_thread(kept.stop), PATIENCE_S)
    assert "takes too long to write" in caplog.text
    threads = kept._thread._threads
    assert threads and all(thread.daemon for thread in threads)
    goes_on.set()
    await asyncio.to_thread(threads[0].join, PATIENCE_S)
    assert not threads[0].is_alive()


async def test_a_disk_that_hangs_keeps_nobody_who_asks_it(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, kept = begin()
    loop, held, goes_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    names: list[str] = []

    def hang(_store: object) -> None:
        names.append(threading.current_thread().name)
        loop.call_soon_threadsafe(held.set)
        goes_on.wait(PATIENCE_S)

    try:
        monkeypatch.setattr(persistence, "ASK_S", 0.01)
        for _ in range(2 * persistence.QUESTIONS):
            with pytest.raises(StoreError, match="takes too long"):
                await kept.ask(hang)  # type: ignore[arg-type]
        # Threads of the event loop look up the names of hosts: none may be kept.
        await asyncio.wait_for(held.wait(), PATIENCE_S)
        assert 1 <= len(names) <= persistence.QUESTIONS
        assert all(name.startswith("account-pool-question") for name in names)
        # Nor do those wait for ever who have something done in its turn.
        kept._thread.submit(hang, None)
        told = kept.notices
        for asked in (
            told.noted(), told.note([], []), told.take_turn("a", 1.0), kept.read_counts("usage")
        ):  # fmt: skip
            with pytest.raises(StoreError, match="takes too long"):
                await asyncio.wait_for(asked, PATIENCE_S)
    finally:
        goes_on.set()


async def test_a_store_that_fails_is_told_once_and_tried_again(
    begin: Begin, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    service, kept = begin()
    exchange = SqliteState.exchange

    def full(*_args: object, **_when: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(SqliteState, "exchange", full)
    limit(service)
    service.sessions.bind("a", ONE, service.now())
    service.counters["usage"].add(("today",), {"requests": 1})
    for _ in range(3):
        await failed(kept)
    assert caplog.text.count("the disk is full") == 1
    assert caplog.text.count("in memory only until it can be written again") == 1
    monkeypatch.setattr(SqliteState, "exchange", exchange)
    await kept._round()
    assert "the state database can be written again" in caplog.text
    again, other = begin()
    assert cools(again) == 600
    assert again.sessions.peek("a", again.now()) is not None
    assert await other.read_counts("usage") == {("today",): {"requests": 1}}


@pytest.mark.parametrize("step", ["changed", "exchange"])
async def test_a_disk_that_hangs_is_told_while_it_does(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    service, kept = begin(LONE)
    released, does = threading.Event(), getattr(SqliteState, step)

    def hangs(*args: Any, **how: Any) -> Any:
        assert released.wait(PATIENCE_S)
        return does(*args, **how)

    async def told(problem: str | None) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while kept.access.problem != problem:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(SqliteState, step, hangs)
    try:
        with monkeypatch.context() as at_once:
            at_once.setattr(persistence, "LATE_S", 0.0)
            kept.start()
            limit(service)
            await told(str(kept.access.too_long))
    finally:
        released.set()
    await told(None)
    assert caplog.text.count(str(kept.access.too_long)) == 1
    await kept.write()
    assert cools(begin()[0]) == 600


async def test_news_that_could_not_be_taken_over_are_read_again(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine, here), (theirs, there) = begin(), begin()
    await there._round()
    limit(mine)
    mine.sessions.bind("a", ONE, mine.now())
    await here._round()
    take_over = there._take_over

    def fail(_news: object) -> None:
        monkeypatch.setattr(there, "_take_over", take_over)
        raise MemoryError

    monkeypatch.setattr(there, "_take_over", fail)
    there._note_urgent()
    with pytest.raises(MemoryError):
        await there._run()
    await there._round()
    assert cools(theirs) == 600
    assert theirs.sessions.peek("a", theirs.now()) is not None


async def failed(kept: Persistence) -> None:
    """One round that fails, and what is made of it."""
    with pytest.raises(StoreError) as failure:
        await kept._round()
    await kept._failed(failure.value)


async def test_a_disk_that_is_full_for_a_while_loses_nothing(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service, kept = begin()
    database = kept.access.store._database._connection  # type: ignore[union-attr]
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(2000):
        service.sessions.bind(f"conversation-{number:0200}", ONE, service.now())
    limit(service)
    assert kept.access.problem is None
    await failed(kept)
    assert "cannot be written: the disk is full; free some space" in caplog.text
    assert kept.access.problem is not None and "the disk is full" in kept.access.problem
    database.execute("PRAGMA max_page_count = 100000")
    await kept._round()
    assert kept.access.problem is None
    again, _ = begin()
    assert (cools(again), len(again.sessions)) == (600, 2000)


async def test_a_disk_that_is_full_for_days_does_not_fill_the_memory(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, kept = begin()
    service.sessions.bind("kept", ONE, service.now())
    await kept._round()

    def full(*_args: object, **_when: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(SqliteState, "exchange", full)
    limit(service)
    for number in range(20):
        for key in ("kept", f"passing-{number}"):
            service.sessions.bind(key, ONE, service.now())
            await failed(kept)
            service.sessions.close_session(key)
            await failed(kept)
    assert kept.pending.tables["sessions"].changed == {"kept"}


async def test_a_damaged_file_is_put_aside_and_a_new_one_begun(
    begin: Begin, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for number, aside in enumerate(("pool.sqlite.damaged", "pool.sqlite.damaged-2")):
        path.write_text("no database\n" * 1000)
        service, kept = begin()
        assert f"is not a database: it was kept as {path.with_name(aside)}" in caplog.text
        assert path.with_name(aside).read_text().startswith("no database")
        limit(service)
        kept.stop()
        assert cools(begin()[0]) == 600, number
        path.unlink()


async def test_a_file_that_is_damaged_while_it_is_used_is_put_aside(
    begin: Begin, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service, kept = begin()
    limit(service)
    service.sessions.bind("a", ONE, service.now())
    await kept._round()
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE cooldowns SET cause = '{}'")
        other.commit()
    limit(service)
    await failed(kept)
    assert f"is damaged: it was kept as {path}.damaged, and a new one was created" in caplog.text
    await kept._round()
    again, _ = begin()
    assert cools(again) == 600
    assert again.sessions.peek("a", again.now()) is not None


async def test_a_disk_that_damages_each_new_file_is_not_filled_with_them(
    begin: Begin, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    service, kept = begin()

    def damaged(*_args: object, **_when: object) -> None:
        raise DamagedError("the state database is damaged", "keep it")

    monkeypatch.setattr(SqliteState, "exchange", damaged)
    for _ in range(store_access.MAX_ASIDES + 3):
        limit(service)
        await failed(kept)
    assert len(list(path.parent.glob("pool.sqlite.damaged*-wal"))) <= store_access.MAX_ASIDES
    assert caplog.text.count("and a new one was created") == store_access.MAX_ASIDES
    assert caplog.text.count("is damaged; keep it") == 1
    assert kept.access.failures == 3


async def test_a_damaged_file_that_keeps_logins_stays(
    begin: Begin, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tokens = SqliteTokens(path)
    tokens.save("family", Tokens(access=None, refresh=Secret("rt-fake")))
    tokens.close()
    service, kept = begin()
    limit(service)
    await kept._round()
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE cooldowns SET cause = '{}'")
        other.commit()
    limit(service)
    await failed(kept)
    assert "is damaged but holds logins; stop every proxy" in caplog.text
    assert path.exists() and not path.with_name("pool.sqlite.damaged").exists()


async def test_a_file_that_was_deleted_is_begun_anew(
    begin: Begin, path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service, kept = begin()
    limit(service)
    await kept._round()
    path.unlink()
    await failed(kept)
    assert "was moved, deleted or replaced" in caplog.text
    assert kept.access.failures == 0, "there is nothing to wait for"
    await kept._round()
    assert cools(begin()[0]) == 600


async def test_a_file_that_was_replaced_gets_counts_once(begin: Begin, path: Path) -> None:
    """Each proxy writes what it knows: not what another has written already."""
    older = path.with_name("older.sqlite")
    (mine, here), (theirs, there) = begin(), begin()
    for is_saved in (True, False):
        for service in (mine, theirs):
            serve(service)
            service.counters["usage"].add(("today",), {"requests": 1})
        for kept in (here, there, here):
            await kept._round()
        if is_saved:
            with closing(sqlite3.connect(path)) as now, closing(sqlite3.connect(older)) as then:
                now.backup(then)
    serve(mine)
    mine.counters["usage"].add(("today",), {"requests": 1})
    older.replace(path)
    for kept in (here, there):
        await failed(kept)
    for kept in (here, there) * 4:
        await kept._round()
    assert await here.read_counts("usage") == {("today",): {"requests": 5}}
    assert [service.pool.accounts.get(ONE).served for service in (mine, theirs)] == [5, 5]


async def test_a_file_that_is_lost_twice_gets_all_counts(
    begin: Begin, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time while counts are written once more."""
    service, kept = begin()
    for _ in range(3):
        service.counters["usage"].add(("today",), {"requests": 1})
        await kept._round()
    path.unlink()
    await failed(kept)
    with without_answers(monkeypatch):
        await failed(kept)
    path.unlink()
    await failed(kept)
    for _ in range(3):
        await kept._round()
    assert await kept.read_counts("usage") == {("today",): {"requests": 3}}


async def test_the_end_waits_for_counts_behind_those_that_are_written_once_more(
    begin: Begin, path: Path
) -> None:
    service, kept = begin()
    for _ in range(3):
        service.counters["usage"].add(("today",), {"requests": 1})
        await kept._round()
    path.unlink()
    await failed(kept)
    await kept._round()
    service.counters["usage"].add(("today",), {"requests": 1})
    kept.stop()
    assert await begin()[1].read_counts("usage") == {("today",): {"requests": 4}}


async def test_what_was_written_is_kept_for_a_while_only(begin: Begin, clock: FakeClock) -> None:
    service, kept = begin()
    for _ in range(3):
        service.counters["usage"].add(("today",), {"requests": 1})
        await kept._round()
    assert len(kept.pending._written) == 3
    clock.advance(pending_writes.WRITTEN_KEPT_S + 1)
    service.counters["usage"].add(("today",), {"requests": 1})
    await kept._round()
    assert len(kept.pending._written) == 1


async def test_a_store_is_closed_by_its_thread(
    begin: Begin, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be on the other side of a network."""
    _, kept = begin()
    close, threads = SqliteState.close, []

    def note(self: SqliteState) -> None:
        threads.append(threading.current_thread())
        close(self)

    monkeypatch.setattr(SqliteState, "close", note)
    path.unlink()
    await failed(kept)
    assert threads and threading.main_thread() not in threads


async def test_a_newer_file_is_left_alone_until_it_can_be_used(
    begin: Begin, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    begin()[1].stop()
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("INSERT INTO schema VALUES (99)")
        newer.commit()
    before = path.read_bytes()
    service, kept = begin()
    assert "was written by a newer version" in caplog.text
    assert "in memory only until" in caplog.text
    limit(service)
    service.counters["usage"].add(("today",), {"requests": 1})
    assert kept.known.counts("usage") == {("today",): {"requests": 1}}
    await failed(kept)
    assert path.read_bytes() == before
    with closing(sqlite3.connect(path)) as older:
        older.execute("DELETE FROM schema WHERE version = 99")
        older.commit()
    await kept._round()
    assert "the state database can be written again" in caplog.text
    assert cools(begin()[0]) == 600


# -- two proxies


async def test_sessions_and_pins_of_one_are_known_to_the_other(begin: Begin) -> None:
    (mine, here), (theirs, there) = begin(), begin()
    mine.sessions.bind("a", ONE, mine.now())
    mine.pins.remember(TWO, "resp_1", mine.wall_now())
    await here._round()
    await there._round()
    session = theirs.sessions.peek("a", theirs.now())
    assert session is not None and session.account == ONE
    assert theirs.pins.owner("openai", "resp_1") == TWO
    assert not any(book.changed for book in there.pending.tables.values()), (
        "that is no change of theirs"
    )


async def test_the_latest_move_of_a_session_stands_but_not_under_a_request(
    begin: Begin, clock: FakeClock
) -> None:
    (mine, here), (theirs, there) = begin(), begin()
    for key in ("idle", "busy"):
        session = mine.sessions.bind(key, ONE, mine.now())
        await here._round()
        await there._round()
    session.begin(mine.now())
    clock.advance(1)
    for key in ("idle", "busy"):
        theirs.sessions.bind(key, TWO, theirs.now())
    await there._round()
    await here._round()
    found = {key: mine.sessions.peek(key, mine.now()) for key in ("idle", "busy")}
    assert {key: s and s.account for key, s in found.items()} == {"idle": TWO, "busy": ONE}


async def test_one_that_is_idle_here_and_used_there_is_not_forgotten_there(
    begin: Begin, clock: FakeClock
) -> None:
    (mine, here), (theirs, there) = begin(), begin()
    mine.sessions.bind("a", ONE, mine.now())
    await here._round()
    await there._round()
    for _ in range(31):
        clock.advance(61)
        theirs.sessions.get("a", theirs.now())
        await there._round()
    mine.sessions.sweep(mine.now())
    await here._round()
    assert begin()[0].sessions.peek("a", theirs.now()) is not None


async def test_max_concurrent_holds_for_both(begin: Begin) -> None:
    (mine, here), (theirs, there) = begin(LONE), begin(LONE)
    await here._round()
    await there._round()
    await here._round()
    lease = mine.pool.acquire(FACTS, now=mine.now())
    await here._round()
    await there._round()
    assert theirs.pool.accounts.get(ONE).in_flight_remote == 1
    with pytest.raises(NoUsableAccount):
        theirs.pool.acquire(FACTS, now=theirs.now())
    mine.pool.release(lease, None, now=mine.now())
    # It is asked for, given up, and taken.
    await there._round()
    await here._round()
    with pytest.raises(NoUsableAccount):
        mine.pool.acquire(FACTS, now=mine.now())
    await there._round()
    theirs.pool.release(theirs.pool.acquire(FACTS, now=theirs.now()), None, now=theirs.now())


async def test_what_a_killed_proxy_held_is_free_after_a_grace(
    begin: Begin, clock: FakeClock
) -> None:
    (mine, here), (theirs, there) = begin(LONE), begin(LONE)
    mine.pool.acquire(FACTS, now=mine.now())
    await here._round()
    await there._round()
    assert theirs.pool.accounts.get(ONE).in_flight_remote == 1
    assert len(there.others) == 1
    assert theirs.pool.accounts.proxies == 2
    clock.advance(GRACE_S)
    await there._round()
    assert theirs.pool.accounts.get(ONE).in_flight_remote == 0
    assert there.others == ()


async def test_one_that_hung_does_not_use_what_others_have_taken(
    begin: Begin, clock: FakeClock
) -> None:
    (mine, here), (theirs, there) = begin(LONE), begin(LONE)
    await here._round()
    await there._round()
    clock.advance(GRACE_S)
    with pytest.raises(NoUsableAccount):
        theirs.pool.acquire(FACTS, now=theirs.now())
    await there._round()
    theirs.pool.acquire(FACTS, now=theirs.now())
    await here._round()
    with pytest.raises(NoUsableAccount):
        mine.pool.acquire(FACTS, now=mine.now())


@pytest.mark.parametrize(("elsewhere", "held"), [(False, 0), (True, 1)])
async def test_what_a_proxy_held_that_is_known_to_be_dead_is_free_at_once(
    begin: Begin, path: Path, clock: FakeClock, elsewhere: bool, held: int
) -> None:
    dead = SqliteState(path, clock=lambda: at(clock))
    dead.beat({ONE: 1}, wall_now=dead.now() or clock.wall_now())
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    # Containers may have one host name, and numbers of their own.
    was = replace(Process.this(), pid=process.pid, **({"space": "another"} if elsewhere else {}))
    with closing(sqlite3.connect(path)) as other:
        for table in ("proxies", "in_flight"):
            other.execute(
                f"UPDATE {table} SET proxy = ? WHERE proxy = ?", (was.owner("it"), dead._me)
            )
        other.commit()
    service, kept = begin(LONE)
    await kept._round()
    assert service.pool.accounts.get(ONE).in_flight_remote == held
    dead._database.close()


async def test_counters_are_of_all_proxies(begin: Begin) -> None:
    (mine, here), (theirs, there) = begin(), begin()
    for service in (mine, theirs):
        service.counters["usage"].add(("today", "openai/one"), {"requests": 2, "tokens": 10})
    await there._round()
    both = {("today", "openai/one"): {"requests": 4, "tokens": 20}}
    assert await here.read_counts("usage") == both
    await here._round()
    assert await here.read_counts("usage") == both


async def test_what_must_not_be_lost_is_not_held_back(begin: Begin) -> None:
    service, kept = begin()
    await kept._round()
    service.pool.release(service.pool.acquire(FACTS, now=service.now()), None, now=service.now())
    assert not kept._urgent.is_set(), "a count may wait"
    for learn in (
        lambda: limit(service),
        lambda: service.pool.accounts.clear_cooldown(ONE, now=service.now()),
        lambda: service.sessions.bind("a", ONE, service.now()),
        lambda: service.pins.remember(ONE, "resp_1", service.wall_now()),
    ):
        learn()
        assert kept._urgent.is_set()
        await kept._round()
        assert not kept._urgent.is_set()


async def test_in_memory_it_counts_and_remembers_who_comes_back() -> None:
    service = service_of("one", "two")
    kept = persistence.begin(MemoryStore(), service)
    limit(service)
    service.counters["usage"].add(("today",), {"requests": 1})
    await kept._round()
    account = service.pool.accounts.remove(ONE, now=service.now())
    await kept._round()
    service.pool.accounts.add(account, now=service.now())
    await kept._round()
    assert cools(service) == 600
    assert await kept.read_counts("usage") == {("today",): {"requests": 1}}
    kept.stop()


def test_who_is_out_of_use_since_before_is_said(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service, kept = begin()
    service.pool.health.mark_failure(TWO, FORBIDDEN, now=service.now())
    kept.stop()
    begin()
    assert (
        "openai/two has been disabled since an earlier run: 403 suspended; pool.clear"
        in caplog.text
    )


# -- what cannot be written


class Picky:
    """A store that cannot write some rows, however often it is asked."""

    def __init__(self, store, unfit: Callable[..., bool], error: Exception) -> None:
        self._store, self._unfit, self._error = store, unfit, error
        self.asked = 0

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    def exchange(self, mine, gone=(), **more):
        self.asked += 1
        if self._unfit(mine, more):
            raise self._error
        return self._store.exchange(mine, gone, **more)


@pytest.mark.parametrize("error", [ValueError("sk-fake-secret"), UnfitError("IntegrityError")])
async def test_a_row_that_cannot_be_written_keeps_no_other_back(begin, clock, caplog, error):
    service, kept = begin()
    await kept._round()

    def unfit(mine, more) -> bool:
        rows = more["lines"].get("sessions", TableChanges()).rows if more["lines"] else ()
        return any(row[0] == "bad:openai" for row in rows)

    kept.access.store = store = Picky(kept.access.store, unfit, error)
    for key in ("a:openai", "bad:openai", "b:openai"):
        service.sessions.bind(key, ONE, clock.now())
    limit(service, TWO)
    service.usages.count(ONE, "gpt-5", None, service.wall_now())
    caplog.clear()
    await kept._round()
    again, _ = begin()
    assert set(again.sessions) == {"a:openai", "b:openai"}
    assert cools(again, TWO) == 600
    sums = await kept.read_counts("usage")
    assert [amounts["requests"] for amounts in sums.values()] == [1]
    assert len(caplog.messages) == 1
    assert "of sessions something cannot be written" in caplog.text
    assert kept.access.problem == "cannot be written: something of sessions"
    assert "sk-fake" not in caplog.text
    # It is neither tried again for ever nor told again.
    asked = store.asked
    await kept._round()
    assert store.asked == asked
    service.sessions.bind("bad:openai", TWO, clock.now())
    service.sessions.bind("c:openai", TWO, clock.now())
    await kept._round()
    assert len(caplog.messages) == 1


async def test_a_write_of_nothing_that_fails_is_an_error_of_ours(begin):
    """It was divided for ever."""
    _, kept = begin()
    await kept._round()
    kept.access.store = Picky(kept.access.store, lambda *_: True, ValueError())
    kept._accounts.dirty.add(AccountKey("openai", "of another proxy"))
    with pytest.raises(ValueError, match=r"^$"):
        await kept._round()


async def test_a_disk_that_fails_while_they_are_looked_for_loses_nothing(begin, clock):
    service, kept = begin()
    await kept._round()
    kept.access.store = picky = Picky(kept.access.store, lambda *_: True, ValueError())
    real = picky.exchange

    def exchange(mine, gone=(), **more):
        if picky.asked:
            raise StoreError("the disk is full")
        return real(mine, gone, **more)

    picky.exchange = exchange
    service.sessions.bind("a:openai", ONE, clock.now())
    service.usages.count(ONE, "gpt-5", None, service.wall_now())
    with pytest.raises(StoreError):
        await kept._round()
    kept.access.store = picky._store
    await kept._round()
    again, _ = begin()
    assert list(again.sessions) == ["a:openai"]
    assert [a["requests"] for a in (await kept.read_counts("usage")).values()] == [1]


async def test_counts_that_come_again_are_added_once_beside_a_row_that_cannot_be_written(
    begin, clock, monkeypatch
):
    service, kept = begin()
    await kept._round()
    store = kept.access.store
    for day in ("today", "yesterday"):
        service.counters["usage"].add((day,), {"requests": 1})
    with without_answers(monkeypatch):
        await failed(kept)
    kept.access.store = Picky(store, lambda _mine, more: bool(more["lines"]), ValueError())
    service.sessions.bind("bad:openai", ONE, clock.now())
    await kept._round()
    sums = await kept.read_counts("usage")
    assert sums == {("today",): {"requests": 1}, ("yesterday",): {"requests": 1}}


async def test_what_others_have_learnt_outlives_a_disk_that_fails_halfway(begin, clock):
    """What came back with the first part looked as if this proxy had released it."""
    (service, kept), (other, its) = begin(), begin()
    for one in (kept, its):
        await one._round()
    limit(other)
    await its._round()
    store = kept.access.store

    class Failing(Picky):
        def exchange(self, mine, gone=(), **more):
            if self.asked and more["lines"]:
                raise StoreError("the disk is full")
            return super().exchange(mine, gone, **more)

    kept.access.store = Failing(store, lambda _mine, more: bool(more["lines"]), ValueError())
    service.sessions.bind("a:openai", ONE, clock.now())
    await failed(kept)
    kept.access.store = store
    for one in (kept, its):
        await one._round()
    assert [cools(one) for one in (service, other, begin()[0])] == [600, 600, 600]
    assert list(begin()[0].sessions) == ["a:openai"]


async def test_an_error_of_ours_ends_a_round_and_not_the_keeping(begin, clock, caplog, monkeypatch):
    """The writer used to end for good, without a word."""
    service, kept = begin()
    failed = asyncio.Event()

    def changed(**_how):
        failed.set()
        raise ValueError("sk-fake-secret")

    with monkeypatch.context() as patch:
        patch.setattr(kept.access.store, "changed", changed)
        patch.setattr("account_pool.supervision.PAUSE_S", 0.0)
        kept.start()
        async with asyncio.timeout(PATIENCE_S):
            await failed.wait()
    limit(service)
    async with asyncio.timeout(PATIENCE_S):
        while not cools(begin()[0]):
            await asyncio.sleep(0)
    assert "keeping the state failed: ValueError at " in caplog.text
    assert "sk-fake" not in caplog.text


def test_sqlite_tells_a_row_from_a_file(path: Path) -> None:
    state = SqliteState(path)
    rows = [("a", "openai/one", 1.0), ("b", "openai/one", None)]
    with pytest.raises(UnfitError):
        state.exchange([], wall_now=1.0, lines={"sessions": TableChanges(rows)})
    with pytest.raises(UnfitError):
        state.exchange([], wall_now=1.0, lines={"sessions": TableChanges([("a", object(), 1.0)])})
    assert state.read_table("sessions") == []
    state.close()


async def test_what_is_bound_is_pushed_before_it_is_written(begin: Begin) -> None:
    (mine, here), (theirs, there) = begin(), begin()
    there_rows: list[object] = []
    pushed = asyncio.Event()

    def push(tables: Any) -> None:
        there_rows.append(tables)
        there.pending.adopt(tables)
        pushed.set()

    here.pending.push = push
    for session in ("a:openai", "b:openai"):
        mine.sessions.bind(session, ONE, mine.now())
    async with asyncio.timeout(PATIENCE_S):
        await pushed.wait()
    assert len(there_rows) == 1, "both at once"
    found = [theirs.sessions.peek(session, theirs.now()) for session in ("a:openai", "b:openai")]
    assert [session and session.account for session in found] == [ONE, ONE]


async def test_what_others_have_written_waits_for_no_pause(begin: Begin) -> None:
    (mine, here), (theirs, there) = begin(), begin()
    announced = asyncio.Event()

    def announce() -> None:
        announced.set()
        there.look()

    here.announce = announce
    there.start()
    here.start()
    limit(mine)
    async with asyncio.timeout(PATIENCE_S):
        await announced.wait()
        while not cools(theirs):
            await asyncio.sleep(0)


async def test_the_shares_of_a_dead_proxy_are_free_once_that_is_known(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine, here), (theirs, there) = begin(LONE), begin(LONE)
    mine.pool.acquire(FACTS, now=mine.now())
    await here._round()
    await there._round()
    monkeypatch.setattr(persistence, "is_gone", lambda proxy: proxy in there.others)
    there.look(died=True)
    with pytest.raises(NoUsableAccount):
        theirs.pool.acquire(FACTS, now=theirs.now())
    await there._round()
    theirs.pool.acquire(FACTS, now=theirs.now())


async def test_workers_without_a_usable_file_divide_evenly(path: Path, clock: FakeClock) -> None:
    path.mkdir()
    service = service_of(Account(provider="openai", label="one", max_concurrent=6), clock=clock)
    kept = persistence.begin(SqliteStore(path), service, workers=3)
    for _ in range(2):
        service.pool.acquire(FACTS, now=service.now())
    with pytest.raises(NoUsableAccount):
        service.pool.acquire(FACTS, now=service.now())
    kept.stop()


# -- who tries an account first that returns


def tries(service: Service) -> bool:
    """Have a request ask for the only account; say whether it may be sent there."""
    try:
        service.pool.acquire(FACTS, now=service.now())
    except NoUsableAccount:
        return False
    return True


async def test_one_proxy_of_two_tries_an_account_that_returns(
    begin: Begin, clock: FakeClock
) -> None:
    (mine, here), (theirs, there) = begin("one"), begin("one")
    limit(mine)
    for kept in (here, there, here):
        await kept._round()
    clock.advance(620.0)
    for kept in (here, there, here):  # a proxy that was silent so long is dead
        await kept._round()
    assert not tries(mine)
    assert not tries(theirs)
    await here._round()
    await there._round()
    assert (tries(mine), tries(theirs)) == (True, False)
    clock.advance(2.0)
    assert tries(theirs), "it has not heard how that went"


async def test_who_waits_for_a_permit_of_a_store_that_fails_goes_at_once(
    begin: Begin, clock: FakeClock
) -> None:
    (mine, here), (_, there) = begin("one"), begin("one")
    limit(mine)
    for kept in (here, there, here):
        await kept._round()
    clock.advance(620.0)
    for kept in (here, there, here):
        await kept._round()
    assert not tries(mine)
    await here._failed(StoreError("it is away"))
    assert tries(mine)


async def test_permits_count_that_were_given_before_the_store_failed(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, kept = begin("one")
    store, permits = kept.access.store, service.pool.accounts.permits
    assert store is not None
    first, second = (Permit(ONE, model, probes=True) for model in ("a", "b"))
    got: list[Permit] = []

    def take_turn(*_: object, **__: object) -> bool:
        if got or turns.pop():
            raise StoreError("it is away")
        return True

    turns = [True, False]
    monkeypatch.setattr(store.notices, "take_turn", take_turn)
    monkeypatch.setattr(permits, "asks", lambda _now: {first: None, second: None})
    monkeypatch.setattr(permits, "granted", lambda given, _now: got.extend(given))
    with pytest.raises(StoreError, match="it is away"):
        await kept._round()
    assert got == [first]


async def test_an_engine_that_cannot_be_put_aside_is_said_once_that_has_lasted(
    begin: Begin,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, kept = begin("one")
    source = kept.access.source
    monkeypatch.setattr(type(source), "server", "engine.example:6379", raising=False)

    def put_aside() -> str:
        raise StoreError("the state engine does not answer")

    monkeypatch.setattr(source, "put_aside", put_aside)
    caplog.clear()
    await kept._failed(DamagedError("it is damaged", "keep it"))
    assert "does not answer" not in caplog.text
    assert kept.access.failures == 1
    clock.advance(store_access.SAID_AFTER_S)
    await kept._failed(DamagedError("it is damaged", "keep it"))
    assert "does not answer" in caplog.text


async def test_one_proxy_alone_asks_for_no_permit(
    begin: Begin, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_turn(*_: object, **__: object) -> bool:
        raise AssertionError("it is asked")

    service, kept = begin("one")
    store = kept.access.store
    assert store is not None
    monkeypatch.setattr(store.notices, "take_turn", take_turn)
    limit(service)
    await kept._round()
    clock.advance(620.0)
    assert tries(service)
    await kept._round()
