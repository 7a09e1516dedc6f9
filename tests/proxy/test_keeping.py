"""What the pool learns is written in nobody's way, and read again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from account_pool.core.account import AccountKey
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.proxy import keeping
from account_pool.proxy.keeping import Keeping
from account_pool.proxy.service import Service
from account_pool.store.errors import StoreError
from account_pool.store.sqlite_state import SqliteState
from tests.proxy.helpers import FakeClock, service_of

ONE, TWO = AccountKey("openai", "one"), AccountKey("openai", "two")
LIMIT = Outcome(
    cls=OutcomeClass.QUOTA, scope=Scope.ACCOUNT, cooldown_s=600.0, signal="429 code=quota"
)
FORBIDDEN = Outcome(cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.ACCOUNT, signal="403 suspended")

Begin = Callable[..., tuple[Service, Keeping]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool.sqlite"


@pytest.fixture
def begin(path: Path, clock: FakeClock) -> Iterator[Begin]:
    """Begin a proxy on the store: its service, and what keeps that."""
    made: list[Keeping] = []

    def make(*labels: str) -> tuple[Service, Keeping]:
        service = service_of(*(labels or ("one", "two")), clock=clock)
        kept = keeping.begin(path, service)
        assert kept is not None
        made.append(kept)
        return service, kept

    yield make
    for kept in made:
        kept.stop()


def cools(service: Service, key: AccountKey = ONE) -> float:
    """How long *key* cools, in whole seconds."""
    now = service.now()
    return round(max(service.pool.get(key).cooling_until(None, now) - now, 0.0))


def limit(service: Service, key: AccountKey = ONE) -> None:
    service.pool.mark_cooldown(key, LIMIT, now=service.now())


async def test_what_was_written_is_there_without_an_ending(begin: Begin, clock: FakeClock) -> None:
    service, kept = begin()
    limit(service)
    service.pool.mark_failure(TWO, FORBIDDEN, now=service.now())
    await kept._round()
    again, _ = begin()
    assert cools(again) == 600
    disabled = again.pool.get(TWO).disabled
    assert disabled is not None and disabled.signal == "403 suspended"
    clock.advance(601)
    assert cools(again) == 0


def test_the_rest_is_written_at_the_end(begin: Begin) -> None:
    service, kept = begin()
    limit(service)
    kept.stop()
    assert cools(begin()[0]) == 600


async def test_it_writes_by_itself_when_something_has_changed(begin: Begin) -> None:
    service, kept = begin()
    kept.start()
    limit(service)
    other = SqliteState(kept._store._database.path)  # type: ignore[attr-defined]
    while (
        not other.exchange(
            service_of("one").pool.snapshot(now=0, wall_now=0).accounts, (), wall_now=0
        )
        .accounts[0]
        .cooldowns
    ):
        other._base.clear()
        # The other thread writes meanwhile.
        await asyncio.sleep(0)
    other.close()


async def test_one_takes_over_what_another_has_learnt_and_released(begin: Begin) -> None:
    (mine, here), (theirs, there) = begin(), begin()
    limit(mine)
    await here._round()
    await there._round()
    assert cools(theirs) == 600
    theirs.pool.clear_cooldown(ONE, now=theirs.now())
    await there._round()
    await here._round()
    assert cools(mine) == 0
    for _ in range(3):
        await here._round()
        await there._round()
    assert (cools(mine), cools(theirs)) == (0, 0)
    assert not mine.pool.touched and not theirs.pool.touched


async def test_accounts_that_only_another_has_are_left_to_it(begin: Begin) -> None:
    (mine, here), (_, there) = begin(), begin("two")
    limit(mine)
    await here._round()
    await there._round()
    await there._round()
    assert cools(begin()[0]) == 600


async def test_an_account_that_was_removed_is_forgotten(begin: Begin) -> None:
    service, kept = begin()
    limit(service)
    await kept._round()
    service.pool.remove(ONE)
    await kept._round()
    assert cools(begin()[0]) == 0


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
    service.wall_now = lambda: clock.wall_now() + 500
    kept._mind_the_clock()
    assert cools(service) == 100
    service.wall_now = lambda: clock.wall_now() - 5000
    kept._mind_the_clock()
    assert cools(service) == 100
    await kept._round()
    again = service_of("one", clock=clock)
    again.wall_now = service.wall_now
    restored = keeping.begin(kept._store._database.path, again)  # type: ignore[attr-defined]
    assert restored is not None
    restored.stop()
    assert cools(again) == 100


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
    for _ in range(3):
        await kept._round()
    assert caplog.text.count("the disk is full") == 1
    assert caplog.text.count("in memory only until it can be written again") == 1
    monkeypatch.setattr(SqliteState, "exchange", exchange)
    await kept._round()
    assert "the state is kept again" in caplog.text
    again, _ = begin()
    assert cools(again) == 600
    assert again.sessions.peek("a", again.now()) is not None


def test_a_file_that_cannot_be_used_is_said_and_nothing_is_kept(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path.write_text("no database\n" * 1000)
    assert keeping.begin(path, service_of("one")) is None
    assert "is not a database; keep it" in caplog.text
    assert "kept in memory only" in caplog.text


def test_who_is_out_of_use_since_before_is_said(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service, kept = begin()
    service.pool.mark_failure(TWO, FORBIDDEN, now=service.now())
    kept.stop()
    begin()
    assert "openai/two is disabled since an earlier run: 403 suspended; pool.clear" in caplog.text
