"""What is said of a store that cannot be used, and how long it is left alone."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from account_pool.proxy import store_access
from account_pool.proxy.store_access import StoreAccess, StoreClock
from account_pool.store.sqlite import SqliteStore
from account_pool.store.store import FullError, MovedError, StoreError
from tests.proxy.helpers import FakeClock


class EngineStore(SqliteStore):
    """Is on a server, as far as messages go."""

    server = "engine.example:6379"


REFUSED = StoreError("the state engine engine.example:6379 refused the connection; start it")
SILENT = StoreError("the state engine engine.example:6379 does not answer; check it")

OTHER = MovedError("the state engine engine.example:6379 was started again")


@pytest.fixture
def access(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> StoreAccess:
    caplog.set_level(logging.INFO)
    return StoreAccess(EngineStore(Path("none")), now=clock.now, chance=lambda: 0.5)


def test_an_engine_that_is_away_is_one_line_however_it_is(
    access: StoreAccess, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (SILENT, REFUSED, SILENT, REFUSED):
        access.report(error)
    assert caplog.messages == [
        f"account-pool: {SILENT}; this proxy is alone, and cooldowns and sessions are kept in "
        "memory only until it can be written again"
    ]
    assert access.problem == str(REFUSED), "what is wrong now"
    access.used()
    access.used()
    assert caplog.messages[1:] == [
        "account-pool: the state engine engine.example:6379 can be written again"
    ]
    assert access.problem is None


def test_a_late_answer_of_an_engine_is_not_said(
    access: StoreAccess, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        access.failed(SILENT)
        clock.advance(store_access.SAID_AFTER_S - 0.5)
        access.failed(REFUSED)
        assert access.problem is None and access.failures == 2
        access.used()
        clock.advance(1.0)
    assert not caplog.messages


def test_an_engine_that_stays_away_is_said(
    access: StoreAccess, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        access.failed(SILENT)
        clock.advance(store_access.SAID_AFTER_S / 2)
    assert access.problem == str(SILENT) and access.failures == 3
    access.used()
    assert [store_access._IN_MEMORY in line for line in caplog.messages] == [True, False]
    # One that did not answer for as long has no second try to wait for.
    access.failed(access.too_long, lasted_s=store_access.SAID_AFTER_S)
    assert access.problem == str(access.too_long)


def test_one_that_was_away_at_the_start_is_said_at_once(access: StoreAccess) -> None:
    with access.reporting("restored"):
        raise SILENT
    assert access.problem == str(SILENT)
    access.failed(REFUSED)
    assert access.problem == str(REFUSED), "it is not taken back"


def test_what_is_wrong_with_a_file_is_said_at_once(clock: FakeClock) -> None:
    access = StoreAccess(SqliteStore(Path("none")), now=clock.now, chance=lambda: 0.5)
    access.failed(StoreError("the disk is full"))
    assert access.problem == "the disk is full"


def test_one_that_needs_another_remedy_is_another_line(
    access: StoreAccess, caplog: pytest.LogCaptureFixture
) -> None:
    access.report(SILENT)
    access.report(FullError("the state engine engine.example:6379 is out of memory"))
    assert len(caplog.messages) == 2


def test_what_else_is_wrong_later_is_told_once(
    access: StoreAccess, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    refuses = StoreError("the state engine engine.example:6379 refuses the user or the password")
    access.report(SILENT)
    for _ in range(5):
        clock.advance(store_access.QUIET_S)
        for error in (refuses, SILENT):
            access.report(error)
    assert [str(refuses) in line for line in caplog.messages] == [False, True]


def test_an_engine_that_comes_and_goes_fills_no_log(
    access: StoreAccess, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        access.report(SILENT)
        access.used()
        clock.advance(1.0)
    assert len(caplog.messages) == 2
    access.report(SILENT)
    assert access.problem == str(SILENT)
    clock.advance(store_access.QUIET_S)
    access.report(SILENT)
    assert len(caplog.messages) == 3, "it stayed away"
    access.used()
    assert len(caplog.messages) == 4


def test_two_servers_that_take_turns_are_neither_asked_nor_told_of_all_the_time(
    access: StoreAccess, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for is_paused in (False, False, *[True] * 50):
        access.report_moved(OTHER)
        assert bool(access.failures) is is_paused
        access.used()
        clock.advance(1.0)
    assert len(caplog.messages) == 4
    clock.advance(store_access.QUIET_S)
    access.report_moved(OTHER)
    assert not access.failures and len(caplog.messages) == 5


def test_proxies_do_not_come_back_together(clock: FakeClock) -> None:
    chances = iter((0.0, 1.0, 0.0, 1.0))
    engine = StoreAccess(EngineStore(Path("none")), now=clock.now, chance=lambda: next(chances))
    for _ in range(2):
        engine.report(SILENT)
        pauses = engine.pause_s, engine.pause_s
        assert pauses == (0.5 * store_access.ENGINE_PAUSE_S, 1.5 * store_access.ENGINE_PAUSE_S)


def test_a_file_is_left_alone_for_longer_and_longer(clock: FakeClock) -> None:
    access = StoreAccess(SqliteStore(Path("none")), now=clock.now, chance=lambda: 0.5)
    pauses = []
    for _ in range(2000):
        access.report(StoreError("the disk is full"))
        pauses.append(access.pause_s)
    assert pauses[:5] == [5.0, 10.0, 20.0, 40.0, 60.0]
    assert pauses[-1] == 60.0, "for days"


def test_what_takes_too_long_is_named(access: StoreAccess) -> None:
    assert "engine.example:6379" in str(access.too_long)
    assert "disk" not in str(access.too_long)


def test_deadlines_stay_where_they_are_when_a_store_is_opened_anew(clock: FakeClock) -> None:
    """They would look as changed by this proxy, and by each other that does the same."""
    store: Any = SimpleNamespace(now=lambda: clock.now() + 5000.0)
    of_store = StoreClock(clock.now, clock.wall_now)
    of_store.follow(store)
    assert of_store.ahead == 5000.0
    store.now = lambda: clock.now() + 5000.003
    of_store.follow(store)
    assert of_store.ahead == 5000.0
    store.now = lambda: clock.now() + 7000.0
    of_store.follow(store)
    assert of_store.ahead == 7000.0, "of another machine"
