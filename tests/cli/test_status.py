"""The table of `account-pool status`, from what the proxy answers."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from account_pool.cli.status import _usage_lines, render
from tests.cli.pools import NOW, account, cooldown, cooling, status, window

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
