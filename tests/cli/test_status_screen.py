"""The screen of `account-pool status`: what it shows at a size, and what keys do."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.text import Text

from account_pool.cli.status_screen import (
    Asked,
    Change,
    PageKind,
    StatusScreen,
    Verb,
    _wrapped,
)
from account_pool.core.decision_text import duration
from tests.cli.pools import (
    ACCOUNTS,
    DECISIONS,
    NOW,
    POOL,
    account,
    cooldown,
    cooling,
    iso,
    status,
    window,
)

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
MANY = status(account(f"openai/account-{n:03}", served=n) for n in range(300))


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def screen(pool=POOL, **settings) -> StatusScreen:
    shown = StatusScreen(pool, NOW, "127.0.0.1:8080", ["admin token  fake"], **settings)
    shown.draw(80, 24, NOW)
    return shown


def drawn(shown: StatusScreen, width=80, height=24, now=NOW) -> list[str]:
    return [line.plain.rstrip() for line in shown.draw(width, height, now)]


def press(shown: StatusScreen, *keys: str):
    """Press keys; one letter each, or named as Textual names them. Returns what the last asks."""
    asked = None
    for key in keys:
        asked = shown.key(key, key if len(key) == 1 else None)
        shown.draw(80, 24, NOW)
    return asked


def test_it_is_as_in_the_documentation():
    shown = screen(decisions=DECISIONS)
    press(shown, "j", "j")
    text = "\n".join(drawn(shown))
    assert f"```text\n{text}\n```" in DOCS.read_text("utf-8"), text


NARROW = """\
3 of 7 available, 2 in flight
/home/ann/.co…account-pool/accounts.yaml
  account          left state
> gemini/spare          no credential
  openai/old            disabled
  openai/work        0% back in 38 s
  claude-code/max    0% partly, 5 h
  claude-code/team  12% available
  openai/private    62% available
  openai/holiday        off
── gemini/spare ────────────────────────
credential: the variable GEMINI_API_KEY
  is not set
today: nothing served
0 in flight, 0 conversations
── decisions ───────────────────────────
11:59:50 openai/work: 429 rate_limit, on
  cooldown for 48 s (gpt-5) ->
  openai/private
c clear  / filter  ? help  q quit"""


def test_a_narrow_pane():
    assert "\n".join(drawn(screen(decisions=DECISIONS), 40, 20)) == NARROW


@pytest.mark.parametrize("pool", [POOL, MANY, status([])], ids=["usual", "many", "empty"])
@pytest.mark.parametrize("lost", ["", "no proxy answers"])
def test_it_fits_every_size(pool, lost):
    shown = screen(pool, lost=lost, decisions=DECISIONS)
    for width in (1, 2, 9, 20, 39, 59, 60, 61, 79, 99, 100, 140):
        for height in (1, 2, 3, 5, 7, 8, 10, 12, 20, 44):
            shown.say("openai/work: no longer on cooldown", NOW)
            lines = shown.draw(width, height, NOW)
            assert len(lines) == height
            assert all(line.cell_len <= width for line in lines)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_wide_characters_keep_columns_in_line(width):
    keys = ["gemini/团队-很长的名字-标签-再长一点", "gemini/short", "gemini/한국어"]
    shown = screen(status(account(key, headroom=[window("5h", 0.5, 60)]) for key in keys))
    lines = [line for line in drawn(shown, width) if "gemini/" in line and "50%" in line]
    assert len({cell_len(line[: line.index("50%")]) for line in lines}) == 1
    assert len(lines) == 3


def test_what_needs_attention_is_on_top():
    pool = status(
        [
            account("a/fine"),
            account("a/low", headroom=[window("5h", 0.1, 60)]),
            account("a/lower", headroom=[window("5h", 0.02, 60)]),
            account("a/off", state="off"),
            cooling("a/later", 500),
            cooling("a/sooner", 5),
            account("a/partly", cooldowns=[cooldown(5, "gpt-5")]),
            account("a/full", state="full"),
            account("a/failing", problem="the refresh was refused"),
            account("a/doubted", asked_last=[cooldown(60)]),
            account("a/gone", state="disabled"),
            account("a/unheard", state="of a newer version"),
        ]
    )
    lines = drawn(screen(pool), 80, 60)
    names = [line.split("a/")[1].split()[0] for line in lines[3:15]]
    assert names == [
        *("gone", "unheard", "failing", "sooner", "later"),
        *("partly", "doubted", "full", "lower", "low", "fine", "off"),
    ]


def test_the_selected_account_stays_selected_wherever_it_moves():
    shown = screen()
    press(shown, "j", "j", "j", "j")
    assert shown.selected == "claude-code/team"
    gone = [{**one, "state": "disabled"} if "team" in one["key"] else one for one in ACCOUNTS]
    shown.seen(status(gone), [], NOW)
    drawn(shown)
    assert shown.selected == "claude-code/team"
    shown.seen(status(ACCOUNTS[:2]), [], NOW)
    drawn(shown)
    assert shown.selected == "openai/work"  # it is no longer there: the first one


def test_who_has_not_moved_stays_on_top():
    shown = screen(status([account("a/one"), account("a/two")]))
    assert shown.selected == "a/one"
    shown.seen(status([account("a/one"), cooling("a/two", 5)]), [], NOW)
    drawn(shown)
    assert shown.selected == "a/two"


def test_300_accounts_scroll():
    shown = screen(MANY)
    assert any(line.endswith(" 1-10 of 300 ──") for line in drawn(shown))
    press(shown, "end")
    assert shown.selected == "openai/account-299"
    assert any(line.startswith("> available openai/account-299") for line in drawn(shown))
    assert any(line.endswith(" 291-300 of 300 ──") for line in drawn(shown))
    press(shown, "pageup", "up")
    assert shown.selected == "openai/account-288"
    press(shown, "g", "pagedown", "k")
    assert shown.selected == "openai/account-009"


def test_the_filter():
    shown = screen()
    press(shown, "/", "o", "p", "e", "n", "q", "backspace", " ", "c", "o", "o", "l")
    lines = drawn(shown)
    assert [line for line in lines if "openai/work" in line]
    assert not [line for line in lines if "openai/private" in line]
    assert lines[-1].startswith("/open cool")
    # Afterwards keys are commands again, and it stays.
    assert press(shown, "enter", "c") == Change(Verb.CLEAR, "openai/work")
    assert any("'open cool': 1 of 7" in line for line in drawn(shown))
    press(shown, "escape")
    assert any("openai/private" in line for line in drawn(shown))


def test_bars_take_no_room_where_nothing_is_known():
    titles = drawn(screen(status([account("a/b")])))[2]
    assert titles == "  state     account left back in why"


def test_a_filter_that_nothing_matches():
    shown = screen()
    press(shown, "/", *"zzz", "enter")
    assert any("no account matches 'zzz'; Esc shows all" in line for line in drawn(shown))
    assert press(shown, "c") is None
    assert press(shown, "enter") is None
    press(shown, "j", "end", "pageup")


def test_what_is_pasted_belongs_to_the_filter():
    shown = screen()
    shown.paste("work")
    assert shown.words == ""
    press(shown, "/")
    shown.paste("work\n\x1b[31m")
    assert shown.words == "work  [31m"


@pytest.mark.parametrize(
    ("key", "verb"),
    [("n", Verb.NEXT), ("c", Verb.CLEAR), ("d", Verb.DISABLE), ("e", Verb.ENABLE)],
)
def test_keys_that_change_something(key, verb):
    assert press(screen(), "j", key) == Change(verb, "openai/old")


def test_it_says_what_has_happened_for_a_while():
    shown = screen(MANY)
    before = drawn(shown)
    shown.say("openai/work: no longer on cooldown", NOW)
    # Nothing else moves.
    assert drawn(shown) == [*before[:-2], "openai/work: no longer on cooldown", before[-1]]
    assert "openai/work: no longer on cooldown" not in drawn(shown, now=NOW + 60)


def test_pages():
    shown = screen()
    assert press(shown, "l") is Asked.READ
    assert shown.page is not None and shown.page.kind is PageKind.DECISIONS
    assert "reading ..." in drawn(shown)
    assert press(shown, "a") is Asked.READ
    assert shown.page.account == "gemini/spare"
    assert press(shown, "u") is Asked.READ
    assert shown.page.kind is PageKind.USAGE
    assert press(shown, "q") is None
    assert shown.page is None
    assert press(shown, "j", "enter") is Asked.READ
    assert (shown.page.kind, shown.page.account) == (PageKind.ACCOUNT, "openai/old")
    press(shown, "escape", "?")
    assert "admin token  fake" in drawn(shown)
    assert press(shown, "q", "q") is Asked.QUIT


def test_a_long_page_scrolls():
    shown = screen()
    shown.key("?", "?")
    title, *rest = drawn(shown, 40, 12)[2:]
    assert title.endswith("lines below")
    shown.key("end", None)
    assert "admin token  fake" in drawn(shown, 40, 12)
    shown.key("home", None)
    assert drawn(shown, 40, 12)[2:] == [title, *rest]


def test_a_proxy_that_does_not_answer():
    shown = screen(lost="no proxy answers")
    lines = drawn(shown, now=NOW + 150)
    assert lines[1] == "no answer since 12:00:00 (2 min); below is what was true then"
    # Cooldowns end without it.
    assert any("openai/work" in line and " 1 s " in line for line in lines)
    shown.seen(POOL, [], NOW + 200)
    assert "no answer" not in drawn(shown, now=NOW + 200)[1]


def test_warnings_are_told():
    lines = drawn(screen({**POOL, "warnings": ["the clock is 3 min behind", "another"]}))
    assert lines[2].startswith("! the clock is 3 min behind")
    assert lines[2].endswith("(+1)")
    alone = {**POOL, "warnings": ["the clock is 3 min behind"], "state_problem": "no engine"}
    assert drawn(screen(alone))[2].startswith("! no engine")


def test_an_empty_pool_says_so():
    assert any("no account" in line for line in drawn(screen(status([]))))


def test_nothing_that_a_server_has_sent_reaches_the_terminal_as_a_command():
    said = cooldown(5, signal="429 \x1b]0;title\x07 \u202ereversed", evidence={"x": "\x1b[2J"})
    shown = screen(status([account("a/b", state="cooling", cooldowns=[said])]))
    for key in ("", "enter"):
        if key:
            press(shown, key)
        assert all(line.isprintable() for line in drawn(shown))


def test_what_an_older_proxy_does_not_say_is_not_missed():
    old = {name: one for name, one in account("a/b").items() if name in ("key", "state")}
    lines = drawn(screen({"accounts": [old], "summary": {}}))
    assert any("available a/b" in line for line in lines)


def test_a_failover_is_told_once():
    told = {"text": "openai/work: 429, on cooldown for 48 s -> openai/private", "at": iso(-1)}
    twice = [{**told, "kind": "cooldown", "by": "a refusal"}, {**told, "kind": "move"}]
    lines = drawn(screen(decisions=[*twice, {**told, "kind": "cooldown", "by": "hand"}]))
    assert sum("on cooldown for 48 s" in line for line in lines) == 2


def test_of_several_proxies_a_decision_names_its_own():
    rows = [{"text": f"a/{n}: waits", "at": iso(-1), "proxy": f"host:{n}"} for n in (8080, 8081)]
    unnamed = "\n".join(drawn(screen(decisions=[{**rows[0], "proxy": ""}])))
    assert "a/8080: waits" in unnamed and "host:8080" not in unnamed
    both = "\n".join(drawn(screen(decisions=rows)))
    assert "host:8080 a/8080: waits" in both and "host:8081 a/8081: waits" in both


def test_what_is_wrapped_has_all_its_characters_and_no_more():
    said = "env KEY: the variable is not set; set it where the proxy is started, " + "x" * 90
    for width in range(12, 90):
        first, *rest = (line.plain.rstrip() for line in _wrapped([Text(said)], width))
        lines = [first, *(line[2:] for line in rest)]
        assert "".join(lines).replace(" ", "") == said.replace(" ", "")
        assert [line for line in lines if "  " in line or "x x" in line] == []
        assert [line for line in rest if line[:2] != "  " or cell_len(line) > width] == []


def test_details_have_everything():
    one = account(
        "openai/one",
        state="cooling",
        cooldowns=[cooldown(38, evidence={"retry-after": "38", "x-limit": "9"})],
        asked_last=[cooldown(600, signal="401: no", **{"class": "auth_invalid"})],
        headroom=[window("5h", 0.129, 7200), window("tokens", 0.0, 30, "gpt-5")],
        in_flight=1,
        oldest_s=75.0,
        broken=2,
        max_concurrent=4,
        reserve={"5h": 0.1},
        models=["gpt-*"],
        priority=1,
        sessions=3,
    )
    text = "\n".join(drawn(screen(status([one])), 100, 30))
    for part in (
        "on cooldown for 38 s, until 12:00:38: 429 code=rate_limit_exceeded (retry-after: 38, x-l",
        "asked last for 10 min, until 12:10:00: 401: no",
        f"5h           █░░░░░░░░░  12% left, resets in {duration(7200)}",
        "tokens gpt-5 ░░░░░░░░░░   0% left, resets in 30 s",
        "1 in flight (the oldest for 75 s), 3 conversations, 2 broken connections, priority 1, "
        "max_concurrent",
        "reserve 5h 10%, models gpt-*, credential ready",
    ):
        assert part in text, text


def test_a_deadline_of_another_day_has_its_day():
    until = cooldown(3 * 86400)
    text = "\n".join(drawn(screen(status([account("a/b", state="cooling", cooldowns=[until])]))))
    assert "until Tue 24 Nov 12:00" in text
    assert iso(0) == "2026-11-21T12:00:00Z"
