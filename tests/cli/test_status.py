"""The table of `account-pool status`, from what the proxy answers."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from account_pool.cli.status import render

SUMMARY = {"total": 2, "available": 1, "cooling_down": 1, "disabled": 0, "in_flight": 3}


def account(**settings):
    return {
        "key": "openai/work",
        "provider": "openai",
        "state": "available",
        "reason": "",
        "in_flight": 0,
        "served": 7,
        "cooldowns": [],
        **settings,
    }


def cooldown(model=None, remaining_s=30.0, **settings):
    return {
        "model": model,
        "class": "rate_limit",
        "signal": "429 code=rate_limit_exceeded",
        "evidence": {"retry-after": "120"},
        "since_at": "2026-11-01T00:00:00Z",
        "until_at": "2026-11-01T00:02:00Z",
        "remaining_s": remaining_s,
        **settings,
    }


def shown(*accounts, bars=True, decisions=(), width=160) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    status = {"accounts": list(accounts), "summary": SUMMARY}
    console.print(render(status, decisions, bars=bars))
    return console.file.getvalue()


def test_an_account_that_cools_says_why_and_how_long_still():
    text = shown(account(state="cooling", cooldowns=[cooldown()]))
    for part in (
        "openai/work",
        "on cooldown",
        "30 s",
        "429 code=rate_limit_exceeded",
        "retry-after",
    ):
        assert part in text
    assert "1 of 2 available, 1 on cooldown, 0 disabled, 3 requests in flight" in text


@pytest.mark.parametrize(("remaining_s", "full"), [(120.0, 0), (60.0, 8), (0.0, 16)])
def test_the_bar_grows_as_the_cooldown_passes(remaining_s, full):
    text = shown(account(state="cooling", cooldowns=[cooldown(remaining_s=remaining_s)]))
    # Without colours rich draws only what is over.
    assert text.count("━") == full


def test_models_that_cool_have_a_line_of_their_own():
    text = shown(account(cooldowns=[cooldown("gpt-5"), cooldown("gpt-4")]))
    lines = text.splitlines()
    assert "available" in next(line for line in lines if "openai/work" in line)
    assert sum("on cooldown" in line and "gpt-" in line for line in lines) == 2


LONG = "openai/private-with-a-rather-long-label"


@pytest.mark.parametrize("width", [50, 60, 80, 100, 160])
def test_keys_and_reasons_are_whole_at_any_width(width):
    why = "401 code=invalid_api_key: the key is not accepted"
    text = shown(
        account(key=LONG, cooldowns=[cooldown("gpt-5-nano")]),
        account(state="disabled", reason=why),
        width=width,
    )
    assert "…" not in text
    assert LONG in text
    for word in why.split():
        assert word in text
    # Nothing is squeezed into a column of a few letters.
    assert len(text.splitlines()) <= 16


def test_where_there_is_little_room_reasons_stand_below():
    text = shown(
        account(in_flight=2),
        account(key="openai/other", state="cooling", served=0, cooldowns=[cooldown()]),
        width=70,
    )
    assert text.splitlines()[:4] == [
        "openai/work   available, 2 in flight, 7 served",
        "openai/other  on cooldown for 30 s",
        "    429 code=rate_limit_exceeded (retry-after: 120)".ljust(70),
        "",
    ]


def test_of_much_evidence_the_beginning_is_shown():
    many = {f"x-{n}": str(n) for n in range(9)}
    text = shown(account(state="cooling", cooldowns=[cooldown(evidence=many)]))
    assert "x-2: 2)" in text
    assert "x-3" not in text


def test_into_a_pipe_go_no_bars():
    assert "━" not in shown(account(state="cooling", cooldowns=[cooldown()]), bars=False)


def test_texts_of_others_are_not_markup():
    assert "[red]x[/red]" in shown(account(state="disabled", reason="[red]x[/red]"))


def test_the_last_decisions_stand_below_the_newest_last():
    told = [{"at": f"2026-11-01T00:00:0{n}Z", "text": f"decision {n}"} for n in (3, 2, 1)]
    lines = shown(account(), decisions=told).splitlines()
    assert [line.split(" ", 1)[1] for line in lines[-3:]] == [f"decision {n}" for n in (1, 2, 3)]


def test_an_empty_pool_says_so():
    assert "no account" in shown()
