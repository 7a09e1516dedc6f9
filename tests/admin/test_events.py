"""GET /events: what is sent, to whom, and that nobody's slowness costs the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from account_pool.admin import events
from account_pool.admin.auth import Rules
from account_pool.admin.events import Board, Broadcaster, Change
from account_pool.admin.http import ApiError
from tests.admin.helpers import TOKEN, FakeProxy, admin_request, code
from tests.patience import PATIENCE_S

HEALTH = {"instance": "a", "uptime_s": 1.0}


def pool(**states: str) -> dict[str, Any]:
    """What GET /account-pool says of accounts in these states."""
    accounts = [
        {
            "key": key,
            "state": state,
            "look_up": {"age_s": 1.0},
            "cooldowns": [{"until_at": "2026", "remaining_s": 3.0}],
        }
        for key, state in states.items()
    ]
    return {"accounts": accounts, "summary": {"total": len(accounts)}}


def fleet(seen_s: float = 1.0, **more: Any) -> dict[str, Any]:
    """What GET /proxies says of one that runs and one that is gone."""
    proxies = [
        {"key": "a", "state": "running", "seen_s": seen_s, "seen_at": f"1970-{seen_s}", **more},
        {
            "key": "b",
            "state": "gone",
            "seen_s": 60 + seen_s,
            "seen_at": "1970",
            "started_s": seen_s,
        },
    ]
    return {"proxies": proxies, "versions": ["1.0"]}


def decision(number: int, **more: Any) -> dict[str, Any]:
    return {"number": number, "id": f"a-{number}", "kind": "move", **more}


def read_events(data: bytes) -> list[tuple[str, Any]]:
    """Read server-sent events; comments say nothing."""
    found = []
    for block in data.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


class TestBoard:
    def test_only_what_differs_is_sent(self):
        board = Board()
        board.update(pool(one="available", two="available"), HEALTH, fleet(), [decision(1)])
        change = board.update(
            pool(one="cooling", two="available"),
            {**HEALTH, "uptime_s": 2.0},
            fleet(),
            [decision(1)],
        )
        assert list(change.accounts) == ["one"]
        assert (change.latest, change.decisions) == ({}, {})

    def test_what_counts_down_is_neither_sent_nor_a_difference(self):
        board = Board()
        board.update(pool(one="cooling"), HEALTH, fleet(), [])
        later = pool(one="cooling")
        later["accounts"][0]["cooldowns"][0]["remaining_s"] = 2.0
        later["accounts"][0]["look_up"]["age_s"] = 2.0
        assert not board.update(later, HEALTH, fleet(), [])
        assert board.everything().accounts["one"]["cooldowns"] == [{"until_at": "2026"}]

    def test_a_heartbeat_is_no_difference_and_what_a_proxy_does_is_one(self):
        board = Board()
        board.update(pool(), HEALTH, fleet(), [])
        assert not board.update(pool(), HEALTH, fleet(2.0), [])
        change = board.update(pool(), HEALTH, fleet(3.0, in_flight=1), [])
        assert list(change.latest) == ["proxies"]
        running, gone = change.latest["proxies"]["proxies"]
        assert running == {"key": "a", "state": "running", "in_flight": 1}
        assert gone == {"key": "b", "state": "gone", "seen_at": "1970"}

    def test_a_removed_account_and_a_decision_that_changed(self):
        board = Board()
        board.update(pool(one="full", two="full"), HEALTH, fleet(), [decision(1), decision(2)])
        change = board.update(
            pool(two="full"), HEALTH, fleet(), [decision(1, ended_at="x"), decision(2)]
        )
        assert change.accounts == {"one": None}
        assert list(change.decisions) == ["a-1"]
        name, said = read_events(change.events())[1]
        assert (name, said) == ("accounts", {"all": False, "accounts": [], "removed": ["one"]})

    def test_a_decision_that_another_proxy_had_made_before_is_withdrawn(self):
        board = Board()
        board.update(pool(), HEALTH, fleet(), [decision(1), decision(2)])
        change = board.update(pool(), HEALTH, fleet(), [{**decision(1), "times": 2}])
        assert read_events(change.events()) == [
            ("withdrawn", {"ids": ["a-2"]}),
            ("decision", {**decision(1), "times": 2}),
        ]
        assert list(board.everything().decisions) == ["a-1"]

    def test_older_decisions_than_are_read_are_not_withdrawn(self):
        board, last = Board(), events.MAX_DECISIONS
        rows = [decision(number) for number in range(last + 2)]
        board.update(pool(), HEALTH, fleet(), rows[:last])
        # Two more have come, and of those in between one is another's.
        change = board.update(pool(), HEALTH, fleet(), [rows[1], *rows[3:]])
        assert [name for name, row in change.decisions.items() if row is None] == ["a-2"]


def test_what_a_slow_client_has_missed_is_merged_and_bounded():
    unsent = Change()
    for number in range(3 * events.MAX_DECISIONS):
        state = {"key": "one", "state": f"{number}"}
        unsent.add(Change(accounts={"one": state}, decisions={f"a-{number}": decision(number)}))
    sent = read_events(unsent.events())
    assert next(said for name, said in sent if name == "accounts")["accounts"] == [state]
    numbers = [said["number"] for name, said in sent if name == "decision"]
    assert numbers == list(range(2 * events.MAX_DECISIONS, 3 * events.MAX_DECISIONS))
    assert sent[-1] == ("lost", {})


def test_what_is_withdrawn_before_a_slow_client_has_read_it():
    unsent = Change(decisions={"a-1": decision(1)})
    unsent.add(Change(decisions={"a-1": None}))
    assert read_events(unsent.events()) == [("withdrawn", {"ids": ["a-1"]})]
    unsent.add(Change(whole=True, decisions={"a-3": decision(3)}))
    assert [name for name, _ in read_events(unsent.events())] == ["accounts", "decision"]


def test_a_pool_that_takes_long_to_read_is_read_less_often():
    assert events.pause_s(1.0, 0.01) == 1.0
    assert events.pause_s(1.0, 0.1) == 2.0
    assert events.pause_s(1.0, 10.0) == events.LONGEST_PAUSE_S


def test_line_breaks_end_no_event():
    told = Change(decisions={"a-1": decision(1, text="a\n\nevent: bye\r\u2028")}).events()
    assert [name for name, _ in read_events(told)] == ["decision"]


class Reads:
    """Stands for the pool, and counts how often it is read."""

    def __init__(self) -> None:
        self.pool, self.decisions, self.count = pool(one="available"), [], 0
        self.error: Exception | None = None

    async def __call__(self) -> Any:
        self.count += 1
        if self.error is not None:
            raise self.error
        return self.pool, HEALTH, fleet(), self.decisions


@pytest.fixture
def reads(monkeypatch) -> Reads:
    """A pool whose broadcaster waits for what happens, and never just for time."""
    monkeypatch.setattr(events, "HEARTBEAT_S", PATIENCE_S)
    monkeypatch.setattr(events, "LOOK_S", PATIENCE_S)
    monkeypatch.setattr(events, "AGAIN_S", 0)
    return Reads()


async def take(stream: AsyncGenerator[bytes]) -> list[tuple[str, Any]]:
    """Return the next events of *stream*, past lines without a meaning."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := read_events(await anext(stream))):
            pass
    return found


async def test_all_clients_are_told_of_one_reading(reads):
    broadcaster = Broadcaster(reads)
    async with aclosing(broadcaster.listen()) as first, aclosing(broadcaster.listen()) as second:
        assert [name for name, _ in await take(first)] == [
            "health", "summary", "proxies", "accounts",
        ]  # fmt: skip
        assert reads.count == 1
        told = dict(await take(second))
        assert told["accounts"]["all"] is True
        reads.pool = pool(one="cooling")
        broadcaster.stir()
        for stream in (first, second):
            ((name, said),) = await take(stream)
            assert (name, said["all"], said["accounts"][0]["state"]) == (
                "accounts",
                False,
                "cooling",
            )
        assert reads.count == 2
    assert broadcaster._clients == set()


async def test_nobody_listens_and_nothing_is_read(reads):
    broadcaster = Broadcaster(reads)
    async with aclosing(broadcaster.listen()) as stream:
        await take(stream)
    broadcaster.stir()
    async with aclosing(broadcaster.listen()) as stream:
        # What was known grew old: all of it is read again.
        reads.pool = pool(two="full")
        broadcaster.stir()
        said = dict(await take(stream))["accounts"]
    assert said["all"] is True


async def test_a_silent_pool_sends_lines_without_meaning(reads, monkeypatch):
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.001)
    broadcaster = Broadcaster(reads)
    async with aclosing(broadcaster.listen()) as stream, asyncio.timeout(PATIENCE_S):
        await take(stream)
        assert await anext(stream) == b": still here\n\n"


async def test_the_end_is_told(reads):
    broadcaster = Broadcaster(reads)
    async with aclosing(broadcaster.listen()) as stream:
        await take(stream)
        broadcaster.stop()
        assert (await take(stream))[-1][0] == "bye"
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_so_many_and_no_more(reads, monkeypatch):
    monkeypatch.setattr(events, "MAX_CLIENTS", 1)
    broadcaster = Broadcaster(reads)
    async with aclosing(broadcaster.listen()) as stream:
        await take(stream)
        with pytest.raises(ApiError, match="listen already"):
            broadcaster.listen()
    await broadcaster.listen().aclose()


# -- through the admin server


async def test_the_pool_is_told_and_a_decision_at_once(proxy: FakeProxy):
    response = await proxy.ask("/events")
    assert response.status == 200
    assert dict(response.headers)[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert response.chunks is not None
    async with aclosing(response.chunks) as stream:
        told = dict(await take(stream))
        assert [one["key"] for one in told["accounts"]["accounts"]] == ["openai/one", "openai/two"]
        assert [one["this"] for one in told["proxies"]["proxies"]] == [True]
        assert (
            await proxy.ask("/account-pool/disable", {"provider": "openai", "label": "one"})
        ).status == 200
        found: dict[str, Any] = {}
        while not {"accounts", "decision"} <= found.keys():
            found |= dict(await take(stream))
        assert found["accounts"]["accounts"][0]["state"] == "disabled"
        assert found["decision"]["kind"] == "disable"
        proxy.service.stop()
        while "bye" not in found:
            found |= dict(await take(stream))


async def test_the_token_is_asked_for_and_rules_that_change_end_a_stream(proxy: FakeProxy):
    proxy.rules = Rules(guarded=True)
    refused = await proxy.ask("/events")
    assert (refused.status, code(refused)) == (401, "no_token")
    assert (await proxy.ask("/events", token=TOKEN)).chunks is not None
    proxy.rules = Rules()
    response = await proxy.ask("/events")
    assert response.chunks is not None
    async with aclosing(response.chunks) as stream:
        await take(stream)
        proxy.rules = Rules(guarded=True)
        await proxy.ask("/account-pool/disable", {"provider": "openai", "label": "one"})
        with pytest.raises(StopAsyncIteration):
            await take(stream)


async def test_head_has_no_stream(proxy: FakeProxy):
    response = await proxy.server.answer(admin_request("/events", method="HEAD"))
    assert (response.status, response.chunks) == (200, None)
