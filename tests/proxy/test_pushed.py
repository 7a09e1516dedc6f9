"""What one proxy writes is known to the others at once, on a store that can notify them."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from account_pool.core.account import Account, AccountKey
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.snapshot import PoolSnapshot
from account_pool.proxy import persistence
from account_pool.proxy.persistence import Persistence
from account_pool.proxy.service import Service
from account_pool.proxy.store_access import Wake
from account_pool.store.sqlite import SqliteStore
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.store import News, StateStore, StoreError
from tests.patience import PATIENCE_S
from tests.proxy.helpers import service_of

ONE = AccountKey("openai", "one")
LIMIT = Outcome(
    cls=OutcomeClass.QUOTA, scope=Scope.ACCOUNT, cooldown_s=600.0, signal="429 code=quota"
)

Begin = Callable[[], tuple[Service, "NotifyingState", Persistence]]


class NotifyingState(SqliteState):
    """Calls the others on its file, each from a thread of its own, when one writes.

    Attributes:
        looks: how often was asked what others have written.
        urgent: of each write, whether others were to know at once.
    """

    def __init__(self, path: Path, others: list[NotifyingState]) -> None:
        super().__init__(path)
        self.looks = 0
        self.urgent: list[bool] = []
        self.wake: Callable[[], None] | None = None
        self._others = others
        others.append(self)

    def listen(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def changed(self, *, wall_now: float) -> News:
        self.looks += 1
        return super().changed(wall_now=wall_now)

    def exchange(self, *args: Any, urgent: bool = False, **how: Any) -> PoolSnapshot:
        done = super().exchange(*args, **how, urgent=urgent)
        self.urgent.append(urgent)
        if urgent:
            self.notify()
        return done

    def notify(self) -> None:
        for other in self._others:
            if other is not self and other.wake is not None:
                thread = threading.Thread(target=other.wake)
                thread.start()
                thread.join()


class NotifyingStore(SqliteStore):
    def __init__(self, path: Path, others: list[NotifyingState]) -> None:
        super().__init__(path)
        self._others = others

    def state(self) -> StateStore:
        return NotifyingState(self._path, self._others)


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Begin a proxy that never looks by itself, nor writes after a pause."""
    for name in ("LOOK_S", "URGENT_S", "WRITE_S"):
        monkeypatch.setattr(persistence, name, math.inf if name == "LOOK_S" else 2 * PATIENCE_S)
    states: list[NotifyingState] = []
    made: list[Persistence] = []

    def make() -> tuple[Service, NotifyingState, Persistence]:
        service = service_of("one", "two")
        kept = persistence.begin(NotifyingStore(tmp_path / "pool.sqlite", states), service)
        made.append(kept)
        state = kept.access.store
        assert isinstance(state, NotifyingState)
        return service, state, kept

    yield make
    for kept in made:
        kept.stop()


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():
            await asyncio.sleep(0)


async def in_its_pause(kept: Persistence, state: NotifyingState) -> None:
    """Wait for the pause after a round."""
    rounds: list[object] = []
    pause = kept._pause

    async def note() -> None:
        rounds.append(1)
        await pause()

    kept._pause = note  # type: ignore[method-assign]
    if kept._task is None:
        kept.start()
    before = state.looks
    kept.look()
    await until(lambda: rounds and state.looks > before)
    kept._pause = pause  # type: ignore[method-assign]


def limit(service: Service) -> None:
    service.pool.health.mark_cooldown(ONE, LIMIT, now=service.now())


def is_cooling(service: Service) -> bool:
    now = service.now()
    return service.pool.accounts.get(ONE).cooling_until(None, now) > now


async def test_a_cooldown_waits_for_no_pause_and_others_hear_of_it(begin: Begin) -> None:
    (mine, my_state, here), (theirs, their_state, there) = begin(), begin()
    for kept, state in ((here, my_state), (there, their_state), (here, my_state)):
        await in_its_pause(kept, state)
    assert here.others
    before = len(my_state.urgent)
    limit(mine)
    await until(lambda: is_cooling(theirs))
    assert my_state.urgent[before:] == [True]
    theirs.pool.accounts.clear_cooldown(ONE, now=theirs.now())
    await until(lambda: not is_cooling(mine))


async def test_how_old_news_are_is_measured(begin: Begin) -> None:
    (mine, _, here), (theirs, _, there) = begin(), begin()
    await there._round()
    before = theirs.measured.lag.count
    limit(mine)
    await here._round()
    await there._round()
    assert theirs.measured.lag.count == before + 1
    await there._round()
    assert theirs.measured.lag.count == before + 1


async def test_a_proxy_without_others_writes_after_its_pause(begin: Begin) -> None:
    service, state, kept = begin()
    await in_its_pause(kept, state)
    before = len(state.urgent)
    limit(service)
    assert kept._urgent.is_set()
    assert not kept._at_once.is_set()
    assert len(state.urgent) == before


async def test_a_share_that_is_used_up_is_written_soon_and_not_at_once(begin: Begin) -> None:
    """While all is busy, that is at each request."""
    (service, state, kept), (_, their_state, there) = begin(), begin()
    for one, of_one in ((kept, state), (there, their_state), (kept, state)):
        await in_its_pause(one, of_one)
    account = Account(provider="openai", label="one", max_concurrent=4)
    service.pool.accounts.replace(account, now=service.now())
    service.pool.accounts.set_shares({ONE: 1.0}, now=service.now())
    service.pool.accounts.note_share_used(service.pool.accounts.get(ONE))
    assert kept._urgent.is_set()
    assert not kept._at_once.is_set()


async def test_what_others_hear_by_a_look_is_not_pushed(begin: Begin) -> None:
    """Each answer changes how much an account has served: that would wake all the time."""
    service, state, kept = begin()
    await kept._round()
    before = len(state.urgent)
    service.counters["usage"].add(("today",), {"requests": 1})
    service.pool.accounts.mark_dirty(ONE)
    await kept._round()
    assert state.urgent[before:] == [False]


@pytest.mark.parametrize("how", ["heard", "urgent"])
async def test_nothing_urgent_waits_for_the_end_of_a_long_pause(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(persistence, "URGENT_S", persistence.GAP_S)
    service, state, kept = begin()
    await in_its_pause(kept, state)
    await until(lambda: kept._is_rested)
    before = state.looks
    if how == "heard":
        assert state.wake is not None
        state.wake()
    else:
        service.sessions.bind("a", ONE, service.now())
    await until(lambda: state.looks > before)


async def test_a_storm_of_news_is_one_look(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    _, state, kept = begin()
    reading, goes_on = threading.Event(), threading.Event()
    changed = NotifyingState.changed

    def slow(self: NotifyingState, *, wall_now: float) -> News:
        news = changed(self, wall_now=wall_now)
        reading.set()
        assert goes_on.wait(PATIENCE_S)
        return news

    await in_its_pause(kept, state)
    monkeypatch.setattr(NotifyingState, "changed", slow)
    before = state.looks
    assert state.wake is not None
    state.wake()
    await until(reading.is_set)
    woken: list[object] = []
    monkeypatch.setattr(state.wake, "_woken", lambda: (woken.append(1), kept.look()))
    for _ in range(1000):
        state.wake()
    await until(lambda: woken)
    goes_on.set()
    await until(lambda: state.looks == before + 2)
    await asyncio.sleep(4 * persistence.GAP_S)
    assert state.looks == before + 2, "one that was read then, one for all that came meanwhile"
    assert len(woken) == 1


async def test_what_could_not_be_written_is_as_urgent_later(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, state, kept = begin()
    await kept._round()
    before = len(state.urgent)

    def away(*_args: object, **_how: object) -> None:
        raise StoreError("nobody answers")

    limit(service)
    with monkeypatch.context() as broken:
        broken.setattr(SqliteState, "exchange", away)
        with pytest.raises(StoreError):
            await kept._round()
    await kept._round()
    assert state.urgent[before:] == [True]


def test_a_call_after_the_end_does_nothing() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    Wake(loop, loop.stop)()
