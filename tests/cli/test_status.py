"""The table of `account-pool status`, from what the proxy answers."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from account_pool.cli import api
from account_pool.cli.status import _decisions, _usage_lines, ask_fleet, fleet_lines, render
from account_pool.cli.status_screen import Asked, PageKind, StatusScreen
from tests.cli.pools import NOW, POOL, account, cooldown, cooling, status, window

ONE = "openai/work"


def shown(*accounts, bars=True, decisions=(), width=160) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(status(accounts), decisions, now=NOW, bars=bars))
    return console.file.getvalue()


def test_an_account_that_cools_says_why_and_how_long_still():
    text = shown(cooling(ONE, 30), account("openai/other", in_flight=3))
    for part in (ONE, "on cooldown", "30 s", "429 code=rate_limit_exceeded", "retry-after"):
        assert part in text
    assert "1 of 2 available, 1 on cooldown, 0 disabled, 3 requests in flight" in text


def test_what_is_left():
    one = account(ONE, headroom=[window("5h", 0.629, 60), window("7d", 0.9, 60)])
    assert "██████░░░░ 62% 5h" in shown(one)
    assert "62% 5h" in shown(one, bars=False)
    assert "62% 5h left" in shown(one, account("a/b", reason="x" * 90), width=70)


def test_what_needs_attention_comes_first():
    text = shown(account("a/fine"), account("a/gone", state="disabled"))
    assert text.index("a/gone") < text.index("a/fine")


def test_models_that_cool_have_a_line_of_their_own():
    text = shown(account(ONE, cooldowns=[cooldown(30, "gpt-5"), cooldown(30, "gpt-4")]))
    lines = text.splitlines()
    assert "partly" in next(line for line in lines if ONE in line)
    assert sum("on cooldown" in line and "gpt-" in line for line in lines) == 2


LONG = "openai/private-with-a-rather-long-label"


@pytest.mark.parametrize("width", [50, 60, 80, 100, 160])
def test_keys_and_reasons_are_whole_at_any_width(width):
    why = "401 code=invalid_api_key: the key is not accepted"
    text = shown(
        account(LONG, cooldowns=[cooldown(30, "gpt-5-nano")]),
        account(ONE, state="disabled", reason=why),
        width=width,
    )
    assert "…" not in text
    assert LONG in text
    for word in why.split():
        assert word in text
    # Nothing is squeezed into a column of a few letters.
    assert len(text.splitlines()) <= 16


def test_where_there_is_little_room_reasons_stand_below():
    text = shown(account(ONE, in_flight=2, served=7), cooling("openai/other", 30), width=70)
    assert text.splitlines()[:4] == [
        "openai/other  on cooldown for 30 s",
        "    429 code=rate_limit_exceeded (retry-after: 120)".ljust(70),
        "openai/work   available, 2 in flight, 7 served",
        "",
    ]


def test_of_much_evidence_the_beginning_is_shown():
    many = {f"x-{n}": str(n) for n in range(9)}
    text = shown(account(ONE, state="cooling", cooldowns=[cooldown(30, evidence=many)]))
    assert "x-2: 2)" in text
    assert "x-3" not in text


def test_into_a_pipe_go_no_bars():
    assert "█" not in shown(account(ONE, headroom=[window("5h", 0.5, 60)]), bars=False)


def test_texts_of_others_are_not_markup():
    assert "[red]x[/red]" in shown(account(ONE, state="disabled", reason="[red]x[/red]"))


def test_the_last_decisions_stand_below_the_newest_last():
    told = [{"at": f"2026-11-01T00:00:0{n}Z", "text": f"decision {n}"} for n in (3, 2, 1)]
    lines = shown(account(ONE), decisions=told).splitlines()
    assert [line.split(" ", 1)[1] for line in lines[-3:]] == [f"decision {n}" for n in (1, 2, 3)]


def test_an_empty_pool_says_so():
    assert "no account" in shown()


@pytest.mark.parametrize(("width", "first"), [(120, "account "), (50, "openai/work: ")])
def test_usage_is_a_table_or_sentences(width, first):
    sums = {"requests": 2, "input_tokens": 3456, "cached_tokens": 0, "output_tokens": 99}
    lines = _usage_lines([{"account": ONE, **sums, "cost_usd": 0.25}], width)
    text = "\n".join(line.plain for line in lines)
    assert text.startswith(first)
    for part in ("openai/work", "3,456", "99", "0.25"):
        assert part in text
    assert [line.plain for line in _usage_lines([], width)] == ["nothing was served"]


class NamedProxy:
    """A connection to the proxy `here`, or to one that does not say its name."""

    def __init__(self, named: str, *proxies: str) -> None:
        self.named = named
        self.rows = [{"at": "2026-08-01T12:00:00Z", "text": "a", "proxy": p} for p in proxies]

    def ask(self, _path: str) -> dict:
        return {"decisions": self.rows}

    def name(self) -> str:
        return self.named


@pytest.mark.parametrize(
    ("connection", "shown"),
    [
        (NamedProxy("here", "here", "here"), ["", ""]),
        (NamedProxy("here", "there"), ["there"]),
        (NamedProxy("here", "here", "there"), ["here", "there"]),
        (NamedProxy("here", "here/1"), [""]),
        (NamedProxy("", "there"), [""]),
    ],
    ids=["own", "another", "several", "a worker", "not known"],
)
def test_decisions_name_their_proxy_where_it_is_another(connection, shown):
    assert [row["proxy"] for row in _decisions(connection)] == shown


# -- the proxies of `--fleet`, from what GET /proxies answers

Json = dict[str, Any]


def proxy(name: str, **more: Any) -> Json:
    usual = {
        "key": name, "name": name, "this": False, "state": "running", "version": "0.2.0",
        "mitmproxy": "12.3.1", "started_at": None, "started_s": 18_180.4, "seen_at": None,
        "seen_s": 2.2, "in_flight": 0, "workers": 1, "problem": None,
    }  # fmt: skip
    return {**usual, **more}


def answer(*proxies: Json, **more: Any) -> Json:
    states = [one["state"] for one in proxies]
    summary = {state: states.count(state) for state in ("running", "stopping", "gone", "unknown")}
    return {
        "proxies": list(proxies),
        "summary": {**summary, "in_flight": sum(one["in_flight"] for one in proxies)},
        "versions": sorted({one["version"] for one in proxies if one["state"] == "running"}),
        "store": {"kind": "file", "problem": None, "is_known": True},
        **more,
    }


HERE = proxy("build-1.example.com:8080", this=True, seen_s=0.0, in_flight=1)
FLEET = answer(
    HERE,
    proxy("build-2.example.com:8080", in_flight=12),
    proxy("build-3.example.com:8080", state="gone", seen_s=130.0, started_s=9_000.0),
)


def fleet_shown(answer: Json, width: int = 80) -> list[str]:
    lines = fleet_lines(answer, width)
    assert all(line.cell_len <= width for line in lines)
    return [line.plain for line in lines]


def test_at_80_columns_it_is_a_table():
    assert fleet_shown(FLEET, 80) == [
        "proxy                     state    version  up for     in flight  heartbeat",
        "build-1.example.com:8080  running  0.2.0    5 h 3 min  1          this one",
        "build-2.example.com:8080  running  0.2.0    5 h 3 min  12         2 s ago",
        "build-3.example.com:8080  gone     0.2.0               0          2 min ago",
        "",
        "2 running, 1 gone, 13 requests in flight; state: file",
    ]


def test_at_40_columns_each_has_some_lines():
    assert fleet_shown(FLEET, 40) == [
        "build-1.example.com:8080",
        "  running, version 0.2.0,",
        "  up for 5 h 3 min, 1 in flight,",
        "  this one",
        "build-2.example.com:8080",
        "  running, version 0.2.0,",
        "  up for 5 h 3 min, 12 in flight,",
        "  heartbeat 2 s ago",
        "build-3.example.com:8080",
        "  gone, version 0.2.0, 0 in flight,",
        "  heartbeat 2 min ago",
        "",
        "2 running, 1 gone, 13 requests in",
        "flight; state: file",
    ]


FULL = "the state database state.sqlite cannot be written: the disk is full; free some space"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200, 1000])
def test_names_and_problems_are_whole_at_any_width(width):
    mixed = answer(HERE, proxy("b", problem=FULL, version="0.3.0", mitmproxy="11.0.2", workers=4))
    text = " ".join(" ".join(fleet_shown(mixed, width)).split())
    for part in ("12.3.1", "11.0.2", "they run different versions: 0.2.0, 0.3.0", *FULL.split()):
        assert part in text
    if width > 24:
        assert HERE["name"] in text


def test_into_a_pipe_go_whole_lines():
    lines = fleet_shown(answer(HERE, proxy("b", problem=FULL)), 1000)
    assert lines[0].endswith("heartbeat  problem") and lines[2].endswith(f"2 s ago    {FULL}")


def test_with_the_state_out_of_reach_it_says_what_it_does_not_know():
    store = {"kind": "file", "problem": FULL, "is_known": False}
    lines = fleet_shown(answer(HERE, proxy("b", state="unknown"), store=store), 200)
    assert f"! {FULL}" in lines
    assert "! what the others do is not known until the state can be read" in lines
    assert "1 running, 1 unknown, 1 request in flight; state: file" in lines
    engine = {**store, "kind": "engine", "server": "state.example:6379"}
    lines = fleet_shown(answer(HERE, proxy("b", state="unknown"), store=engine), 200)
    assert lines[4].endswith("; state: engine state.example:6379")
    # Alone there is nothing to be known.
    alone = "\n".join(fleet_shown(answer(HERE, store={**store, "problem": None})))
    assert "not known" not in alone


@pytest.mark.parametrize(
    "odd",
    [
        {"proxies": [{}, None, 7]},
        {"proxies": [{"name": "a\x1b[31mb", "seen_s": "x", "in_flight": None, "problem": 7}]},
        {"proxies": [], "summary": None, "store": None, "versions": None},
    ],
)
def test_what_another_version_says_is_shown_as_far_as_it_is_known(odd):
    for width in (30, 100):
        assert "\x1b" not in "".join(fleet_shown(odd, width))


class Connection(api.PoolConnection):
    def __init__(self, said: Json | api.NoAnswer) -> None:
        super().__init__(8080)
        self.said = said

    def ask(self, path: str) -> Json:
        assert path == "/proxies"
        if isinstance(self.said, api.NoAnswer):
            raise self.said
        return self.said


def test_it_is_asked_for():
    assert ask_fleet(Connection(FLEET)) is FLEET
    for said, text in (
        (api.NoAnswer("there is no such endpoint", "not_found"), "older version"),
        (api.NoProxy("no proxy answers"), "no proxy answers"),
        ({"proxies": "none"}, "does not report"),
    ):
        with pytest.raises(api.NoAnswer, match=text):
            ask_fleet(Connection(said))


def test_a_key_of_the_screen_opens_it():
    screen = StatusScreen(POOL, NOW)
    assert screen.key("p", "p") is Asked.READ
    assert screen.page is not None and screen.page.kind is PageKind.PROXIES
    screen.page.lines = fleet_lines(FLEET, 80)
    drawn = [line.plain for line in screen.draw(80, 20, NOW)]
    assert "proxies that share this state" in drawn
    assert any(line.startswith("build-2.example.com:8080  running") for line in drawn)
