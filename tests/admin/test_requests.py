"""What the API answers about requests that have ended."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from account_pool.admin.requests import MAX_BUCKETS, MONTH_S, grouped
from account_pool.core.prices import PriceRule, Prices
from account_pool.store.store import StoreError
from tests.admin.helpers import FakeKnown, code, told
from tests.store.request_samples import row, write

#: 2023-11-14 22:30:00 UTC; now is 2023-11-14 22:30:00
NOW = 1_700_001_000.0
REFUSED = "the state engine x refused the connection"


async def test_rows(proxy):
    write(proxy.store, row(NOW - 10), row(NOW - 5, cost_usd=0.25, covered=1, input_tokens=None))
    answer = told(await proxy.ask("/requests"))
    assert [one["number"] for one in answer["requests"]] == [2, 1]
    assert (answer["next"], answer["older"], answer["kept_days"]) == (2, None, 30)
    assert answer["requests"][1] == {
        "number": 1,
        "at": "2023-11-14T22:29:50.000Z",
        "provider": "openai",
        "account": "openai/one",
        "model": "gpt-5",
        "endpoint": "/v1/responses",
        "tool": "codex",
        "session": "0123abcd",
        "status": "ok",
        "http_status": 200,
        "attempts": 1,
        "failovers": 0,
        "wait_s": 0.0,
        "first_byte_s": 0.5,
        "duration_s": 2.0,
        "tokens": {"input": 100, "cached": 40, "cache_write": 0, "output": 10, "reasoning": 5},
        "cost_usd": None,
        "price": None,
        "saved": False,
        "premium_requests": None,
    }
    assert answer["requests"][0]["tokens"]["input"] is None
    assert answer["requests"][0]["saved"] is True


async def test_pages_end_and_followers_miss_nothing(proxy):
    write(proxy.store, *[row(NOW)] * 5)
    seen, before = [], ""
    while True:
        answer = told(await proxy.ask(f"/requests?limit=2{before}"))
        seen += [one["number"] for one in answer["requests"]]
        if answer["older"] is None:
            break
        before = f"&before={answer['older']}"
    assert seen == [5, 4, 3, 2, 1]
    seen, since = [], 0
    for _ in range(3):
        answer = told(await proxy.ask(f"/requests?limit=2&since={since}"))
        seen += reversed([one["number"] for one in answer["requests"]])
        since = answer["next"]
    assert (seen, since) == ([1, 2, 3, 4, 5], 5)
    # One who followed another history, which had more.
    answer = told(await proxy.ask("/requests?limit=2&since=9"))
    assert ([one["number"] for one in answer["requests"]], answer["next"]) == ([2, 1], 2)


async def test_filters(proxy):
    write(proxy.store, row(NOW - 3600), row(NOW, tool="claude-code", status="refused"))
    for query, numbers in (
        ("tool=codex", [1]), ("status=refused", [2]), ("from=2023-11-14T22:00:00Z", [2]),
        ("to=2023-11-14T22:00:00Z", [1]), ("from=2023-11-15", []), ("account=gemini", []),
        ("from=2023-11-15T00:00:00%2B02:00", [2]), ("model=gpt-5&account=openai/one", [2, 1]),
    ):  # fmt: skip
        found = told(await proxy.ask(f"/requests?{query}"))["requests"]
        assert [one["number"] for one in found] == numbers, query


@pytest.mark.parametrize(
    "query", ["from=yesterday", "status=good", "limit=0", "limit=1001", "since=-1", "from_=1"]
)
async def test_what_is_asked_wrongly(proxy, query):
    answer = await proxy.ask(f"/requests?{query}")
    assert (answer.status, code(answer)) == (422, "invalid")


async def test_what_is_wrong_is_said_in_our_words(proxy):
    message = told(await proxy.ask("/requests?from=yesterday"))["error"]["message"]
    assert message.startswith("from: write a day or an instant, such as 2026-08-01")


async def test_a_store_that_cannot_be_used_says_so(proxy):
    proxy.store = None
    proxy.service.state_problem = lambda: "the state database x is locked"
    for path in ("/requests", "/requests/series"):
        answer = told(await proxy.ask(path))
        assert answer["problem"] == "the state database x is locked"
    assert told(await proxy.ask("/usage?group=tool"))["problem"] == answer["problem"]


async def test_without_the_store_it_says_what_it_knows_itself(proxy, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise StoreError(REFUSED)

    async def refuse_sums() -> None:
        refuse()

    proxy.store_problem = refuse_sums
    sums = {("2023-11-14", "openai/one", "gpt-5"): {"requests": 2.0, "input_tokens": 7.0}}
    proxy.known = FakeKnown([row(NOW - 10), row(NOW - 5, tool="curl")], sums)
    for name in ("read", "sums", "series"):
        monkeypatch.setattr(proxy.store.requests, name, refuse)
    answer = told(await proxy.ask("/requests"))
    assert [one["tool"] for one in answer["requests"]] == ["curl", "codex"]
    assert (answer["problem"], answer["next"]) == (REFUSED, 0)
    # Who follows gets none of them again and again.
    answer = told(await proxy.ask("/requests?since=17"))
    assert (answer["requests"], answer["next"], answer["problem"]) == ([], 17, REFUSED)
    answer = told(await proxy.ask("/requests/series"))
    assert (sum(one["requests"] for one in answer["buckets"]), answer["problem"]) == (2, REFUSED)
    answer = told(await proxy.ask("/usage?group=tool"))
    assert {one["tool"] for one in answer["groups"]} == {"codex", "curl"}
    assert answer["problem"] == REFUSED
    answer = told(await proxy.ask("/usage"))
    assert (answer["days"][0]["requests"], answer["problem"]) == (2, REFUSED)


@pytest.mark.parametrize(
    "kind, problem",
    [(None, "the pool has no account yet"), ("engine", "the state is being opened")],
)
async def test_a_store_that_is_not_open_and_has_no_problem(proxy, kind, problem):
    proxy.store = None
    proxy.service.fleet.kind = kind
    assert told(await proxy.ask("/requests"))["problem"] == problem
    assert told(await proxy.ask("/requests?since=7"))["next"] == 7


async def test_a_question_that_fails(proxy, monkeypatch):
    def fail(*_: object) -> None:
        raise StoreError("the state database x takes too long")

    monkeypatch.setattr(proxy.store.requests, "read", fail)
    answer = told(await proxy.ask("/requests"))
    assert (answer["requests"], answer["problem"]) == ([], "the state database x takes too long")


async def test_a_series_has_every_step(proxy):
    write(proxy.store, row(NOW - 10), row(NOW - 3 * 86_400))
    answer = told(await proxy.ask("/requests/series"))
    buckets = answer["buckets"]
    assert (len(buckets), answer["step_s"]) == (96, 900)
    assert buckets[-1]["at"] == "2023-11-14T22:30:00.000Z"
    assert [one["requests"] for one in buckets[-3:]] == [0, 1, 0]
    assert buckets[-2]["duration_s"] == {"p50": 2.0, "p95": 2.0}
    assert buckets[-2]["tokens"]["input"] == 100
    assert buckets[0]["first_byte_s"] is None
    named = told(await proxy.ask("/requests/series?from=2023-11-14&to=2023-11-15&step=3600"))
    assert (len(named["buckets"]), named["from"]) == (24, "2023-11-14T00:00:00.000Z")
    assert sum(one["ok"] for one in named["buckets"]) == 1


async def test_a_series_of_too_many_steps_has_longer_ones(proxy):
    answer = told(await proxy.ask("/requests/series?from=2000-01-01&to=2020-01-01&step=1"))
    assert len(answer["buckets"]) <= MAX_BUCKETS
    assert answer["step_s"] > 300_000


# -- usage


async def test_usage_by_day_comes_from_the_sums(proxy):
    for day, key, model in (
        ("2023-11-14", "openai/one", "gpt-5"),
        ("2023-11-14", "gemini/one", "gemini-3"),
        ("2023-11-12", "openai/two", "gpt-5"),
    ):
        proxy.sums[day, key, model] = {"requests": 1, "input_tokens": 10}
    for query, names in (
        ("group=account", ["openai/one", "gemini/one", "openai/two"]),
        ("group=provider", ["openai", "gemini"]),
        ("group=day", ["2023-11-14", "2023-11-12"]),
        ("group=day&from=2023-11-13", ["2023-11-14"]),
        ("group=day&from=2023-11-01&to=2023-11-14", ["2023-11-12"]),
        ("group=model&account=openai", ["gpt-5"]),
        ("group=account&model=gemini-3", ["gemini/one"]),
    ):
        answer = told(await proxy.ask(f"/usage?{query}"))
        assert [one[answer["group"]] for one in answer["groups"]] == names, query
    assert told(await proxy.ask("/usage"))["groups"] == []


async def test_usage_by_tool_and_hour_comes_from_the_rows(proxy):
    write(proxy.store, row(NOW), row(NOW - 7200), row(NOW, tool="claude-code", input_tokens=9_000))
    tools = told(await proxy.ask("/usage?group=tool"))
    assert [(one["tool"], one["requests"]) for one in tools["groups"]] == [
        ("claude-code", 1), ("codex", 2),
    ]  # fmt: skip
    hours = told(await proxy.ask("/usage?group=hour&tool=codex"))
    assert [(one["hour"], one["input_tokens"]) for one in hours["groups"]] == [
        ("2023-11-14T22:00:00Z", 100), ("2023-11-14T20:00:00Z", 100),
    ]  # fmt: skip
    # Of one tool only, by day too.
    assert [one["requests"] for one in hours["days"]] == [2]
    part = told(await proxy.ask("/usage?group=account&from=2023-11-14T21:00:00Z"))
    assert [one["requests"] for one in part["groups"]] == [2]


def test_groups_are_sums():
    counted = {
        ("2023-11-14", "openai/one", "gpt-5", ""): {"requests": 1, "input_tokens": 5},
        ("2023-11-13", "openai/two", "gpt-5", ""): {"requests": 2, "input_tokens": 6},
    }
    [one] = grouped(counted, "model")
    assert (one["model"], one["requests"], one["input_tokens"]) == ("gpt-5", 3, 11)


# -- cost


async def test_what_has_no_price_is_listed(proxy):
    proxy.sums["2023-11-14", "openai/one", "gpt-5"] = {
        "requests": 3, "input_tokens": 9, "cost_usd": 1.5, "priced_requests": 2,
    }  # fmt: skip
    proxy.sums["2023-11-14", "openai/one", "mine"] = {"requests": 4}
    answer = told(await proxy.ask("/usage?group=model"))
    [first, second] = answer["groups"]
    assert (first["cost_usd"], first["unpriced_requests"]) == (1.5, 1)
    assert (second["cost_usd"], second["unpriced_requests"]) == (None, 4)
    assert answer["unpriced"] == [
        {"provider": "openai", "model": "mine", "requests": 4},
        {"provider": "openai", "model": "gpt-5", "requests": 1},
    ]


async def test_what_subscriptions_saved(proxy):
    rules = (PriceRule(account="claude-code/max", monthly_usd=100.0),)
    proxy.service.prices = lambda: Prices(rules)
    for account in ("claude-code/max", "codex/plus", "openai/one"):
        proxy.sums["2023-11-14", account, "m"] = {
            "requests": 1, "saved_usd": 7.0, "priced_requests": 1,
        }  # fmt: skip
    now = proxy.clock.wall_now()
    from_at = datetime.fromtimestamp(now - MONTH_S / 2, UTC).isoformat().replace("+", "%2B")
    asked = f"/usage?from={from_at}&group=account"
    write(proxy.store, row(now, account="claude-code/max", cost_usd=7.0, covered=1))
    [half] = told(await proxy.ask(asked))["subscriptions"]
    assert half == {
        "account": "claude-code/max", "saved_usd": 7.0, "monthly_usd": 100.0, "flat_usd": 50.0,
    }  # fmt: skip
    both = told(await proxy.ask("/usage"))["subscriptions"]
    assert [(one["account"], one["flat_usd"] is None) for one in both] == [
        ("claude-code/max", False), ("codex/plus", True),
    ]  # fmt: skip
