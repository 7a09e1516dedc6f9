"""What is said of a store that cannot be used, and how long it is left alone."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from account_pool.core.credential import Secret
from account_pool.proxy import store_access
from account_pool.proxy.store_access import LateTokens, StoreAccess, StoreClock, open_tokens
from account_pool.store.sqlite import SqliteStore, SqliteTokens
from account_pool.store.store import FullError, MovedError, StoreError, Tokens, TokenStore
from tests.patience import PATIENCE_S
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


# -- the half that keeps logins


class SlowStore(SqliteStore):
    """Is on a disk that does not answer until `goes_on` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.goes_on = threading.Event()
        self.problem: StoreError | None = None

    def tokens(self) -> TokenStore:
        assert self.goes_on.wait(PATIENCE_S)
        if self.problem is not None:
            raise self.problem
        return super().tokens()


def test_logins_on_a_disk_that_hangs_keep_nobody_and_are_used_once_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_access, "OPEN_S", 0.01)
    slow = SlowStore(tmp_path / "state.sqlite")
    late = open_tokens(slow)
    assert "the state database takes too long to open; check the disk" in caplog.text
    late.keep()  # as at the end of the proxy
    late.close()
    calls: list[Callable[[], object]] = [
        lambda: late.load("login"),
        lambda: late.claim("login", "me", token=Secret("rt-fake"), is_over=True),
        lambda: late.save("login", Tokens(access=None, refresh=Secret("rt-fake"))),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="takes too long to open"):
            call()
    monkeypatch.setattr(store_access, "OPEN_S", PATIENCE_S)
    slow.goes_on.set()
    claim = late.claim("login", "me", token=Secret("rt-fake"), is_over=True)
    assert late.sending("login", claim.fence, Secret("rt-fake"))
    newest = Tokens(access=Secret("fake-access"), refresh=Secret("rt-fake-2"))
    assert late.save("login", newest, replaces=Secret("rt-fake"), fence=claim.fence)
    late.release("login", claim.fence)
    late.keep()
    found = late.load("login")
    assert found is not None and found.refresh == newest.refresh
    late.close()


def test_what_is_wrong_with_logins_is_said_each_time_until_it_is_mended(tmp_path: Path) -> None:
    slow = SlowStore(tmp_path / "state.sqlite")
    slow.problem = StoreError("the state database cannot be opened")
    slow.goes_on.set()
    with pytest.raises(StoreError, match="cannot be opened"):
        open_tokens(slow)
    late = LateTokens(slow)
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be opened"):
            late.load("login")
    slow.problem = None
    # One more that was begun before may still say so.
    with contextlib.suppress(StoreError):
        late.load("login")
    assert late.load("login") is None


def test_logins_that_are_there_at_once_are_used_as_they_are(tmp_path: Path) -> None:
    tokens = open_tokens(SqliteStore(tmp_path / "state.sqlite"))
    assert isinstance(tokens, SqliteTokens)
    tokens.close()
