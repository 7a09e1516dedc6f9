"""Rows about requests as lines for people."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from account_pool.cli import api, history
from account_pool.cli.history import aligned, cells, instant, show_left

ROW = {
    "number": 1, "at": "2026-08-01T12:00:00.000Z", "provider": "openai", "account": "openai/work",
    "model": "gpt-5", "endpoint": "/v1/responses", "tool": "codex", "session": None, "status": "ok",
    "http_status": 200, "attempts": 1, "failovers": 0, "wait_s": 0.0, "first_byte_s": 0.5,
    "duration_s": 2.0, "cost_usd": None, "saved": False, "premium_requests": None,
    "tokens": {"input": 1200, "cached": 0, "cache_write": 0, "output": 34, "reasoning": 0},
}  # fmt: skip
NOTHING = dict.fromkeys(ROW["tokens"])


def test_a_line():
    assert cells(ROW)[1:] == ["ok", "openai/work", "gpt-5", "codex", "", "1,200+34", "2.0 s", ""]


@pytest.mark.parametrize(
    ("changes", "column", "text"),
    [
        ({"status": "refused", "http_status": 429}, 1, "refused 429"),
        ({"status": "aborted", "http_status": None}, 1, "aborted"),
        ({"account": None}, 2, "openai"),
        ({"model": None}, 3, "/v1/responses"),
        ({"attempts": 3}, 5, "3x"),
        ({"tokens": NOTHING}, 6, ""),
        ({"duration_s": 125.0}, 7, "2 min 5 s"),
        ({"cost_usd": 0.12345}, 8, "$0.1235"),
        ({"cost_usd": 0.5, "saved": True}, 8, "($0.5000)"),
        ({"cost_usd": 0.000002}, 8, "<$0.0001"),
        ({"cost_usd": 0.0}, 8, "$0.0000"),
    ],
)
def test_what_is_different(changes, column, text):
    assert cells({**ROW, **changes})[column] == text


def test_columns_stay_where_they_are():
    widths: list[int] = []
    rows = [ROW, {**ROW, "account": "openai/a-longer-label"}]
    first, second = aligned(rows, widths)
    assert first.index("gpt-5") == second.index("gpt-5")
    [third] = aligned([ROW], widths)
    assert third == first


def test_how_long_ago():
    at = datetime.fromisoformat(instant("24h"))
    assert abs(datetime.now(UTC) - timedelta(hours=24) - at) < timedelta(minutes=1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", instant("7d"))
    assert instant("2026-08-01") == "2026-08-01"


def test_whoever_follows_sees_each_once(monkeypatch, capsys):
    answers = [
        {"requests": [{**ROW, "number": 2}, ROW], "next": 2, "older": None, "kept_days": 30},
        {"requests": [], "next": 2, "older": None, "kept_days": 30},
        {"requests": [{**ROW, "number": 3, "tool": "curl"}], "next": 3, "kept_days": 30},
    ]
    asked: list[str] = []

    def ask(_connection: object, path: str) -> dict[str, object]:
        asked.append(path)
        if not answers:
            raise KeyboardInterrupt
        return answers.pop(0)

    monkeypatch.setattr(api.PoolConnection, "ask", ask)
    monkeypatch.setattr(history, "_EVERY_S", 0)
    assert history.show_requests(1, {"tool": "x"}, lines=5, follow=True, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[5] for line in lines] == ["codex", "codex", "curl"]
    assert asked == [
        "/requests?tool=x&limit=5",
        *(f"/requests?tool=x&limit=1000&since={since}" for since in (2, 2, 3)),
    ]


@pytest.mark.parametrize("show", ["requests", "decisions"])
def test_whoever_follows_waits_for_a_proxy_that_is_started_again(monkeypatch, capsys, show):
    decision = {"id": 1, "at": "2026-08-01T12:00:00Z", "text": "the first"}
    answers = [
        {"requests": [ROW], "decisions": [decision], "next": 1},
        api.NoProxy("no proxy answers"),
        api.NoProxy("no proxy answers"),
        api.NoAnswer("it does not answer in time"),
        {
            "requests": [{**ROW, "number": 2}],
            "decisions": [{**decision, "id": 2, "text": "the second"}],
            "next": 2,
        },
    ]
    asked: list[str] = []

    def ask(_connection: object, path: str) -> dict[str, object]:
        asked.append(path.partition("since=")[2])
        if not answers:
            raise KeyboardInterrupt
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    monkeypatch.setattr(api.PoolConnection, "ask", ask)
    monkeypatch.setattr(history, "_EVERY_S", 0)
    if show == "requests":
        assert history.show_requests(1, {}, lines=5, follow=True, as_json=False) == 0
    else:
        every = {"account": None, "kind": None}
        assert history.show_decisions(1, lines=5, follow=True, as_json=False, **every) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert said.err == "account-pool: no proxy answers\naccount-pool: it does not answer in time\n"
    assert asked[1:] == ["1", "1", "1", "1", "2"]


def test_whoever_follows_keeps_one_connection(monkeypatch):
    """A new one is two lines in the log of the proxy."""
    used: list[object] = []

    def call(connection: object, *_asked: object, **_how: object) -> dict[str, object]:
        used.append(connection)
        if len(used) == 4:
            raise KeyboardInterrupt
        return {"requests": [], "next": 1}

    monkeypatch.setattr(api, "_call", call)
    monkeypatch.setattr(history, "_EVERY_S", 0)
    assert history.show_requests(1, {}, lines=5, follow=True, as_json=False) == 0
    assert used == used[:1] * 4


def test_a_store_that_cannot_be_asked_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(
        api.PoolConnection, "ask", lambda *_: {"requests": [], "problem": "it is locked"}
    )
    assert history.show_requests(1, {}, lines=5, follow=False, as_json=False) == 1
    assert capsys.readouterr().err == "account-pool: it is locked\n"


@pytest.mark.parametrize("as_json", [True, False])
def test_what_the_proxy_knows_without_its_store_is_shown_as_a_part(monkeypatch, capsys, as_json):
    told = {"requests": [ROW], "groups": [{"tool": "curl"}], "problem": "it is locked"}
    monkeypatch.setattr(api.PoolConnection, "ask", lambda *_: told)
    part = "it is locked; only what this proxy itself knows is shown\n"
    assert history.show_requests(1, {}, lines=5, follow=False, as_json=as_json) == 0
    out, err = capsys.readouterr()
    assert ("codex" in out, err.endswith(part)) == (True, True)
    assert history.show_usage(1, {}, by="tool", as_json=as_json, as_csv=not as_json) == 0
    out, err = capsys.readouterr()
    assert ("curl" in out, err.endswith(part)) == (True, True)


def test_whoever_follows_is_told_once_that_the_store_is_away(monkeypatch, capsys):
    answers = [{"requests": [], "next": 2, "problem": "it is away"}] * 3

    def ask(_connection: object, _path: str) -> dict[str, object]:
        if not answers:
            raise KeyboardInterrupt
        return answers.pop()

    monkeypatch.setattr(api.PoolConnection, "ask", ask)
    monkeypatch.setattr(history.time, "sleep", lambda _seconds: None)
    assert history.show_requests(1, {}, lines=5, follow=True, as_json=False) == 0
    assert capsys.readouterr().err.count("it is away") == 1


@pytest.mark.parametrize(
    ("account", "body"),
    [
        (None, {}),
        ("openai", {"provider": "openai"}),
        ("openai/work", {"provider": "openai", "label": "work"}),
    ],
)
def test_what_is_left_is_asked_for_all_of_a_provider_or_one(monkeypatch, capsys, account, body):
    asked: list[object] = []

    def change(_port: int, path: str, sent: object) -> dict[str, object]:
        asked.append((path, sent))
        return {"accounts": []}

    monkeypatch.setattr(history.api, "change", change)
    assert show_left(1, account, as_json=True) == 0
    assert asked == [("/usage/refresh", body)]
    assert json.loads(capsys.readouterr().out) == {"accounts": []}
