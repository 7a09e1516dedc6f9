"""What a proxy says of itself goes with its heartbeat, and what it knows of others is theirs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from account_pool.core.account import Account, AccountKey
from account_pool.core.fleet import SHOWN_S, ProxyRow
from account_pool.core.lease import RequestFacts
from account_pool.proxy import fleet, persistence
from account_pool.proxy.persistence import Persistence
from account_pool.proxy.service import Service
from account_pool.store.machine import Moment
from account_pool.store.sqlite import MemoryStore, SqliteStore
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.store import BEAT_S, GRACE_S, StoreError
from account_pool.supervision import Failed, tasks
from account_pool.workers import worker
from tests.proxy.helpers import FakeClock, service_of

FACTS = RequestFacts(provider="openai", kind="key", model="gpt-5")
Begin = Callable[..., tuple[Service, Persistence]]


@pytest.fixture
def begin(tmp_path: Path, clock: FakeClock) -> Iterator[Begin]:
    """Begin a proxy on the store that listens at a port."""
    made: list[Persistence] = []

    def moment() -> Moment:
        return Moment("one", clock.now(), clock.wall_now())

    def make(port: int, *labels: str) -> tuple[Service, Persistence]:
        service = service_of(*(labels or ("one", "two")), clock=clock)
        service.fleet.started_at, service.fleet.port = clock.now(), port
        kept = persistence.begin(SqliteStore(tmp_path / "pool.sqlite", clock=moment), service)
        # As the addon does.
        service.state_problem = lambda: kept.access.problem
        made.append(kept)
        return service, kept

    yield make
    for kept in made:
        kept.stop()


def seen(service: Service) -> dict[int, str]:
    """The states of the proxies by port, in their order."""
    return {int(v.name.rpartition(":")[2]): v.state.value for v in service.fleet.views()}


def test_alone_it_is_what_it_is(clock: FakeClock) -> None:
    service = service_of("one", clock=clock)
    [me] = service.fleet.views()
    assert me.is_this and me.state == "running" and me.name and ":" not in me.name
    assert (service.fleet.kind, service.fleet.is_known) == (None, False)


async def test_two_know_of_each_other(begin: Begin, clock: FakeClock) -> None:
    (mine, here), (theirs, there) = begin(8080), begin(8081)
    await here._round()
    await there._round()
    # Whoever was there first notices, and asks.
    clock.advance(1)
    await here._round()
    await here._round()
    assert (seen(mine), seen(theirs)) == (
        {8080: "running", 8081: "running"}, {8081: "running", 8080: "running"},
    )  # fmt: skip
    assert mine.fleet.kind == "file"
    lease = theirs.pool.acquire(FACTS, now=clock.now())
    await there._round()
    clock.advance(BEAT_S)
    await here._round()
    other = mine.fleet.views()[1]
    assert (other.in_flight, other.started_s, other.seen_s) == (1, BEAT_S + 1, BEAT_S)
    theirs.pool.release(lease, None, now=clock.now())
    # One that ends in good order is not missed.
    there.stop()
    await here._round()
    await here._round()
    assert seen(mine) == {8080: "running"}


async def test_what_changes_is_said_before_the_next_heartbeat(begin: Begin) -> None:
    (mine, here), (theirs, there) = begin(8080), begin(8081)
    await here._round()
    await there._round()
    theirs.stopping = True
    await there._round()
    here.look()
    mine.fleet.lost()
    await here._round()
    assert seen(mine) == {8080: "running", 8081: "stopping"}


async def test_one_that_dies_is_missed_for_a_while(begin: Begin, clock: FakeClock) -> None:
    (mine, here), (theirs, there) = begin(8080), begin(8081)
    await here._round()
    await there._round()
    clock.advance(GRACE_S)
    await here._round()
    assert seen(mine) == {8080: "running", 8081: "gone"}
    clock.advance(SHOWN_S)
    await here._round()
    assert seen(mine) == {8080: "running"}
    assert theirs.fleet.views()[0].is_this


async def test_without_the_store_it_says_that_it_does_not_know(
    begin: Begin, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine, here), (_, there) = begin(8080), begin(8081)
    await there._round()
    await here._round()
    assert mine.fleet.is_known
    with monkeypatch.context() as broken:

        def full(*_args: object, **_how: object) -> None:
            raise StoreError("the disk is full")

        broken.setattr(SqliteState, "changed", full)
        with pytest.raises(StoreError) as failed:
            await here._round()
        await here._failed(failed.value)
        assert seen(mine) == {8080: "running", 8081: "unknown"}
        assert mine.fleet.views()[0].problem == "the disk is full"
    await here._round()
    assert seen(mine) == {8080: "running", 8081: "running"}
    # One whose rounds have stopped knows nothing either.
    clock.advance(fleet.STALE_S)
    assert seen(mine) == {8080: "running", 8081: "unknown"}


async def test_a_late_answer_of_an_engine_makes_no_other_unknown(
    begin: Begin, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine, here), (_, there) = begin(8080), begin(8081)
    await there._round()
    await here._round()
    monkeypatch.setattr(SqliteStore, "server", "engine.example:6379")
    for second, state in ((0.0, "running"), (1.0, "running"), (2.0, "unknown")):
        clock.advance(min(second, 1.0))
        await here._failed(StoreError("it does not answer"))
        assert seen(mine) == {8080: "running", 8081: state}
        assert (mine.state_problem() is None) is (state == "running")
        assert mine.fleet.has_news, "it asks as soon as it can"
    await here._round()
    assert seen(mine) == {8080: "running", 8081: "running"}


async def test_in_memory_it_is_alone_and_knows_it(clock: FakeClock) -> None:
    service = service_of("one", clock=clock)
    kept = persistence.begin(MemoryStore(), service)
    await kept._round()
    assert len(service.fleet.views()) == 1
    assert (service.fleet.kind, service.fleet.is_known) == ("memory", True)
    kept.stop()


def test_a_task_that_has_ended_is_a_problem(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_of("one", clock=clock)
    monkeypatch.setattr(tasks, "failed", {"a": Failed(running=True), "b": Failed(failures=1)})
    assert service.fleet.about().problem == "a background task has ended: b"


def test_a_worker_says_which(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    about = {
        "number": 3, "count": 4, "launcher": 7, "instance": "of all", "channel": 0, "started_at": 1,
    }  # fmt: skip
    monkeypatch.setattr(worker, "LINK", worker.Link(about))
    service = service_of("one", clock=clock)
    said = service.fleet.about(now=5.0)
    assert (said.worker, said.instance, said.uptime_s) == (3, "of all", 4.0)


async def test_proxies_whose_accounts_differ_are_told_so_once(
    begin: Begin, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    (mine, here), (theirs, there) = begin(8080), begin(8081, "two", "three", "one")

    async def rounds(seconds: float) -> list[str]:
        caplog.clear()
        for _ in range(int(seconds / BEAT_S) + 1):
            for kept in (here, there, here):
                await kept._round()
            clock.advance(BEAT_S)
        return [r.getMessage() for r in caplog.records if "same accounts" in r.getMessage()]

    assert await rounds(0.5 * fleet.DIFFER_S) == []
    assert mine.fleet.views()[1].same_accounts is False
    told = await rounds(3 * fleet.DIFFER_S)
    ports = sorted(re.findall(r":(\d+) and this proxy", line)[0] for line in told)
    assert ports == ["8080", "8081"], "each says it of the other, once"
    # What differs for a moment only, as while a file is given to all, is not told.
    theirs.pool.accounts.remove(AccountKey("openai", "three"), now=clock.now())
    assert await rounds(BEAT_S) == []
    assert mine.fleet.views()[1].same_accounts is True
    theirs.pool.accounts.add(Account(provider="openai", label="three"), now=clock.now())
    assert await rounds(BEAT_S) == []
    mine.pool.accounts.add(Account(provider="openai", label="three"), now=clock.now())
    assert await rounds(3 * fleet.DIFFER_S) == []
    assert mine.state_problem() is None


def test_what_many_differ_from_is_one_line(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    service = service_of("one", clock=clock)
    about = replace(service.fleet.about(), accounts="9 0123456789abcdef")
    rows = [
        ProxyRow(
            proxy=f"p{n}",
            about=replace(about, name=f"host{n}:8080", instance=f"{n}"),
            seen_s=1.0,
            is_running=True,
        )
        for n in range(8)
    ]
    for _ in range(3):
        service.fleet.heard(rows, clock.now())
        clock.advance(fleet.DIFFER_S)
    [line] = [r.getMessage() for r in caplog.records]
    assert "host0:8080, host1:8080, host2:8080, host3:8080, host4:8080 and 3 more and this" in line
