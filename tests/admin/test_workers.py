"""What several workers say, put together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from account_pool.admin import metrics
from account_pool.admin.models import PinnedSession, SessionKey
from account_pool.admin.routes import ENDPOINTS
from account_pool.admin.workers import FOLLOWED, MERGED, follow, merge_metrics, values
from account_pool.core.account import AccountKey
from account_pool.workers import worker
from tests.admin.helpers import FakeProxy, admin_request

LIMIT_50 = SimpleNamespace(limit=50)


def test_every_change_is_followed() -> None:
    changes = {e.name for e in ENDPOINTS if e.method == "POST"}
    assert changes == FOLLOWED.keys() | {"reveal", "link", "redeem_link", "refresh"}
    assert MERGED.keys() <= {e.name for e in ENDPOINTS if e.method == "GET"}


def health(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "size": 3, "busy": 1, "ready": True, "stopping": False, "failed_tasks": [],
        "state_problem": None, "notify": [], "busy_accounts": ["openai/a"],
        "worker": {"number": number, "pid": number, "uptime_s": 1.0, "busy": 1}, **fields,
    }  # fmt: skip


def test_health_counts_an_account_once() -> None:
    task = {"name": "keeping", "failures": 1, "error": "E", "running": True}
    other = health(
        1, busy_accounts=["openai/a", "openai/b"], failed_tasks=[task], state_problem="full"
    )
    merged = MERGED["health"](health(2), [other], None)
    assert (merged["size"], merged["busy"], merged["state_problem"]) == (3, 2, "full")
    assert merged["failed_tasks"] == [{**task, "name": "worker 1: keeping"}]
    assert [worker["number"] for worker in merged["workers"]] == [1, 2]
    assert not {"worker", "busy_accounts"} & merged.keys()


async def test_a_worker_that_was_started_again_says_since_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {
        "number": 2, "count": 2, "launcher": 7, "instance": "of all", "channel": 0,
        "started_at": -3600,
    }  # fmt: skip
    monkeypatch.setattr(worker, "LINK", worker.Link(about))
    proxy = FakeProxy(tmp_path, "one", link=worker.LINK)
    proxy.clock.advance(5)
    said = await proxy.server.answer_worker(admin_request("/health").for_workers())
    assert said["worker"]["uptime_s"] == 5.0
    assert said["uptime_s"] == proxy.clock.now() + 3600
    proxy.added.close()


def test_health_knows_which_notification_did_not_arrive() -> None:
    hook = {"target": "https://hooks.example.com", "problem": None}
    failed = {**hook, "problem": "it answered with status 404"}
    merged = MERGED["health"](health(1, notify=[hook]), [health(2, notify=[failed])], None)
    assert merged["notify"] == [failed]


def account(**fields: Any) -> dict[str, Any]:
    return {
        "key": "openai/a", "provider": "openai", "in_flight": 2, "departures": 1, "broken": 0,
        "oldest_s": None, "max_concurrent": 8, "state": "full", "reason": "max_concurrent: 8",
        "served": 7, "look_up": None, **fields,
    }  # fmt: skip


def pool(**fields: Any) -> dict[str, Any]:
    summary = {"total": 1, "in_flight": 2}
    return {
        "accounts": [account(**fields)],
        "summary": summary,
        "providers": {"openai": summary},
    }


def test_what_is_in_flight_adds_up_and_what_all_know_does_not() -> None:
    merged = MERGED["accounts"](pool(), [pool(in_flight=3, oldest_s=4.0)], None)
    (one,) = merged["accounts"]
    assert (one["in_flight"], one["departures"], one["served"], one["oldest_s"]) == (5, 2, 7, 4.0)
    assert (one["state"], one["reason"]) == ("available", ""), "its share is used up, not the limit"
    assert merged["summary"] == merged["providers"]["openai"] == {"total": 1, "in_flight": 5}
    merged = MERGED["accounts"](pool(), [pool(in_flight=6)], None)
    assert merged["accounts"][0]["state"] == "full"


def test_the_pool_says_which_worker_is_alone() -> None:
    mine, other = {**pool(), "state_problem": None}, {**pool(), "state_problem": "no answer"}
    assert MERGED["accounts"](mine, [other], None)["state_problem"] == "no answer"
    assert "state_problem" not in MERGED["accounts"](pool(), [pool()], None), "of one provider"


def decision(id_: str, at: str, by: str = "a refusal") -> dict[str, Any]:
    return {"id": id_, "at": at, "number": 1, "kind": "cooldown", "by": by}


def test_of_decisions_each_worker_knows_all() -> None:
    """All of them write into one log."""
    mine = {"decisions": [decision("a-1", "2026-08-01")], "next": 1, "alone": False}
    theirs = {"decisions": [decision("b-1", "2026-08-02")], "next": 2, "alone": False}
    assert MERGED["decisions"](mine, [theirs], LIMIT_50) == mine


def test_without_the_log_each_worker_has_its_own_decisions() -> None:
    taken_over = decision("a-2", "2026-08-04", "another proxy")
    mine = {"decisions": [taken_over, decision("a-1", "2026-08-01")], "next": 2, "alone": True}
    theirs = {"decisions": [decision("b-1", "2026-08-03")], "next": 9, "alone": True}
    merged = MERGED["decisions"](mine, [theirs], LIMIT_50)
    assert [row["id"] for row in merged["decisions"]] == ["b-1", "a-1"]
    assert merged["next"] == 2
    lonely = MERGED["decisions"]({**mine, "decisions": [taken_over]}, [], LIMIT_50)
    assert lonely["decisions"] == [taken_over], "it is from no worker"


async def test_who_follows_says_that_it_does(proxy) -> None:
    """The one that was asked has said it already, by hand."""
    asked = SimpleNamespace(provider="openai", label="one")
    context: Any = SimpleNamespace(actions=proxy.actions())
    for name in ("disable", "enable", "disable", "clear_cooldown"):
        await follow(name, context, asked)
    decisions = [(d.kind, d.by) for d in reversed([*proxy.service.pool.decisions])]
    assert decisions == [
        ("disable", "another proxy"), ("enable", "another proxy"),
        ("disable", "another proxy"), ("enable", "another proxy"),
    ]  # fmt: skip


def test_a_session_is_said_once() -> None:
    def one(idle_s: float, turns: int, key: str = "a") -> dict[str, Any]:
        return {"key": key, "idle_s": idle_s, "turns": turns}

    mine = {"sessions": [one(3.0, 0), one(9.0, 0, "b")], "total": 2}
    theirs = {"sessions": [one(1.0, 1)], "total": 2}
    merged = MERGED["sessions"](mine, [theirs], LIMIT_50)
    assert merged == {"sessions": [one(1.0, 1), one(9.0, 0, "b")], "total": 2}


def families(amount: float, label: str = "a") -> list[Any]:
    counter = CounterMetricFamily("account_pool_requests", "r", labels=("account",))
    counter.add_metric((label,), amount)
    histogram = HistogramMetricFamily("account_pool_wait_seconds", "w", labels=("provider",))
    histogram.add_metric(("openai",), [("1.0", amount), ("+Inf", amount)], amount)
    flying = GaugeMetricFamily("account_pool_in_flight", "f", labels=("account",))
    flying.add_metric(("a",), amount)
    oldest = GaugeMetricFamily("account_pool_in_flight_oldest_seconds", "o", labels=("account",))
    oldest.add_metric(("a",), amount)
    return [counter, histogram, flying, oldest, GaugeMetricFamily("account_pool_up", "u", value=1)]


def test_metrics_of_workers_add_up() -> None:
    ended = {"sums": values(families(100, "a"))["sums"], "now": {}}
    others = [values(families(2)), values(families(5, "b")), ended]
    text = metrics.written(merge_metrics(families(1), others)).decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == [
        'account_pool_requests_total{account="a"} 103.0',
        'account_pool_requests_total{account="b"} 5.0',
        'account_pool_wait_seconds_bucket{le="1.0",provider="openai"} 108.0',
        'account_pool_wait_seconds_bucket{le="+Inf",provider="openai"} 108.0',
        'account_pool_wait_seconds_count{provider="openai"} 108.0',
        'account_pool_wait_seconds_sum{provider="openai"} 108.0',
        'account_pool_in_flight{account="a"} 8.0',
        'account_pool_in_flight_oldest_seconds{account="a"} 5.0',
        "account_pool_up 1.0",
    ]


async def test_a_session_is_pinned_at_all_workers(proxy):
    """Also at one that has not heard of it."""
    context = SimpleNamespace(actions=proxy.actions())
    asked = PinnedSession(provider="openai", label="two", key="abc:openai:gpt-5")
    await follow("pin_session", context, asked)
    two = AccountKey("openai", "two")
    assert proxy.service.pins.session_owner("openai", "abc") == two
    await follow("pin_session", context, PinnedSession(provider="openai", label="two", session="x"))
    assert proxy.service.pins.session_owner("openai", "x") == two
    await follow("close_session", context, SessionKey(key="abc:openai"))
    assert not proxy.service.pins.pinned_to("openai", "abc")
