"""Every spelling of "come back later", and hostile ones."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core import reset_hints, reset_sentences
from account_pool.core.reset_hints import MAX_WAIT_S

NOW = datetime(2026, 10, 1, 10, tzinfo=UTC).timestamp()


def at(*args: int) -> float:
    return datetime(*args, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("6311", 6311),
        (" 30 ", 30),
        ("5.289", 5.289),  # Groq
        ("33011.5", 33011.5),
        ("0", 0),
        ("30, 45", 45),  # a repeated header
        ("Wed, 21 Oct 2026 07:28:00 GMT", 20 * 86400 - 2 * 3600 - 1920),
        ("Wednesday, 21-Oct-26 07:28:00 GMT", 20 * 86400 - 2 * 3600 - 1920),  # RFC 850
        ("Wed, 21 Oct 2025 07:28:00 GMT", 0),
        ("2026-10-01T10:00:30Z", 30),
        ("22s", 22),
        (22, 22),
        # hostile
        ("9999999999999999999999999999999", None),
        ("-5", None),
        ("+5", None),
        ("", None),
        ("soon", None),
        ("1e400", None),
        ("nan", None),
        ("inf", None),
        ("٣", None),
        ("5; 6", None),
        (None, None),
        (True, None),
        (float("inf"), None),
        (float("nan"), None),
        (-1, None),
        (10**400, None),
        ([], None),
        ("Wed, 99 Oct 2026 07:28:00 GMT", None),
        ("Wed, 21 Oct 9999 07:28:00 GMT", None),  # above 366 days
        ("1765944000", None),  # no wait; `reset` reads it as a moment
    ],
)
def test_retry_after(value: object, expected: float | None) -> None:
    assert reset_hints.retry_after(value, NOW) == expected


def test_a_number_is_never_read_as_a_date() -> None:
    assert reset_hints.retry_after("2", NOW) == 2


def test_without_a_clock_only_relative_hints_count() -> None:
    assert reset_hints.retry_after("Wed, 21 Oct 2026 07:28:00 GMT", None) is None
    assert reset_hints.retry_after("7", None) == 7
    assert reset_hints.until_utc_midnight(None) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120ms", 0.12),  # OpenAI
        ("6m0s", 360),
        ("2m59.56s", 179.56),  # Groq
        ("7.66s", 7.66),
        ("1h23m45.6s", 5025.6),
        ("6m 11.52s", 371.52),
        ("539.477544ms", 0.539477544),  # Code Assist
        ("1h43m56s", 6236),
        ("156h14m36s", 562476),
        ("0.9002s", 0.9002),  # protobuf
        ("65205s", 65205),
        ("22 seconds", 22),
        ("12 hours", 43200),
        ("9 hours 44 minutes", 35040),
        ("2 days, 3 hours and 1 minute", 2 * 86400 + 3 * 3600 + 60),
        ("an hour", 3600),
        ("one minute", 60),
        ("1 HOUR", 3600),
        ("5", None),
        ("-5s", None),
        ("5 months", None),
        ("5sx", None),
        ("and", None),
        ("999999999999999h", None),
        ("1s" * 100, None),
        (5, None),
    ],
)
def test_duration(value: object, expected: float | None) -> None:
    got = reset_hints.duration(value)
    assert got == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (NOW + 60, 60),
        (int(NOW) + 60, 60),
        (str(int(NOW) + 60), 60),
        (str(int(NOW + 60) * 1000), 60),  # OpenRouter: milliseconds
        (NOW - 60, 0),
        ("2026-10-01T10:01:00Z", 60),  # Anthropic
        ("2026-10-01T10%3A01%3A00Z", 60),  # Copilot
        ("2026-10-01T10:01:00.288792+00:00", 60.288792),
        ("2026-10-01 10:01:00 UTC", 60),
        ("2026-10-01T12:01:00+02:00", 60),
        ("2025-10-01T10:01:00Z", 0),
        (0, None),
        (1234, None),
        (1e18, None),
        ("9999-12-31T23:59:59Z", None),
        ("0001-01-01T00:00:00+14:00", 0),
        ("2026-13-01T00:00:00Z", None),
        ("%zz", None),
        ({}, None),
    ],
)
def test_instant(value: object, expected: float | None) -> None:
    got = reset_hints.instant(value, NOW)
    assert got == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("33011.5", 33011.5),  # Cerebras
        (str(int(NOW) + 9), 9),  # Claude Code, Codex
        (str(int(NOW + 9) * 1000), 9),
        ("2m59.56s", 179.56),
        ("2026-10-01T10%3A00%3A09Z", 9),
        ("999999999", None),  # neither a wait nor an instant
    ],
)
def test_reset_takes_a_wait_or_a_moment(value: str, expected: float | None) -> None:
    got = reset_hints.reset(value, NOW)
    assert got == (None if expected is None else pytest.approx(expected))


def test_milliseconds() -> None:
    assert reset_hints.milliseconds("22000") == 22
    assert reset_hints.milliseconds("1574.5") == pytest.approx(1.5745)
    assert reset_hints.milliseconds("9" * 30) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Limit 30000, Used 29937. Please try again in 644ms. Visit https://x", 0.644),
        ("Please try again in 1.574s.", 1.574),
        ("please try again in 6m0s", 360),
        ("Please try again in 6m 11.52s. Need more?", 371.52),
        ("... Please retry in 56.185908122s.", 56.185908122),
        ("Please retry in 900.2ms", 0.9002),
        ("Your quota will reset after 1h43m56s.", 6236),
        ("Please retry after 86400 seconds. Please go here", 86400),
        ("You've exceeded your weekly rate limit. Please wait 12 hours.", 43200),
        ("Please wait 9 hours 44 minutes before", 35040),
        ("wait at least 30 seconds", 30),
        ("Try again in an hour.", 3600),
        ("You will regain access on 2026-10-02 at 00:00 UTC.", 50400),
        ("Resets at 2026-10-01T10:05:00Z", 300),
        ("resets on 2026-10-02", 50400),
        ("Out of call volume quota. Quota will be replenished in 01:58:12.", 7092),
        ("Quota will be replenished in 2.11:58:12.", 215892),
        # a window, an amount or an empty promise, not a wait
        ("available at 14:30:00", None),
        ("Sorry, you've exceeded your 5 hour session limits.", None),
        ("which is limited to 40 API calls / minute.", None),
        ("Please try again later. 5 minutes ago it worked", None),
        ("Please wait before trying again.", None),
        ("try again in -5s", None),
        ("wait 10 messages", None),
        ("try again in 99999999999999h", None),
        ("", None),
        (None, None),
    ],
)
def test_sentence(text: object, expected: float | None) -> None:
    got = reset_sentences.sentence(text, NOW)
    assert got == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (at(2026, 10, 1, 10), 21 * 3600),  # 07:00Z in summer
        (at(2026, 12, 1, 7, 59), 60),  # 08:00Z in winter
        (at(2026, 12, 1, 8), 86400),
        # Clocks go forward on 2026-03-08 at 10:00Z: that day has 23 hours ...
        (at(2026, 3, 8, 8), 23 * 3600),
        # ... and back on 2026-11-01 at 09:00Z: that one has 25.
        (at(2026, 11, 1, 7), 25 * 3600),
    ],
)
def test_pacific_midnight_knows_daylight_saving(now: float, expected: float) -> None:
    assert reset_hints.until_pacific_midnight(now) == expected


def test_calendar_in_utc() -> None:
    assert reset_hints.until_utc_midnight(at(2026, 10, 1, 23, 59)) == 60
    assert reset_hints.until_utc_monday(at(2026, 10, 4, 23)) == 3600
    assert reset_hints.until_utc_monday(at(2026, 10, 5)) == 7 * 86400


@pytest.mark.parametrize("now", [float("nan"), float("inf"), 1e300, -1e300])
def test_calendar_survives_a_broken_clock(now: float) -> None:
    assert reset_hints.until_pacific_midnight(now) is None


def test_the_answers_own_date_is_preferred() -> None:
    headers = {"date": "Thu, 14 Aug 2025 01:10:47 GMT"}
    assert reset_hints.answer_now(headers, NOW) == at(2025, 8, 14, 1, 10, 47)
    assert reset_hints.answer_now({"date": "yesterday"}, NOW) == NOW
    assert reset_hints.answer_now({}, 0.0) is None


READERS = [
    reset_hints.retry_after,
    reset_hints.reset,
    reset_hints.instant,
    reset_sentences.sentence,
    lambda value, _now: reset_hints.duration(value),
    lambda value, _now: reset_hints.seconds(value),
    lambda value, _now: reset_hints.milliseconds(value),
]
HOSTILE = st.one_of(
    st.text(),
    st.text("0123456789.:-+eET hmsday,% ZGMT/", max_size=70),
    st.integers(),
    st.floats(),
    st.none(),
    st.lists(st.integers(), max_size=2),
    st.from_regex(r"(try again in|wait|resets at) [0-9]{1,30}[.: ]?[0-9a-z:-]{0,20}"),
)


@given(HOSTILE, st.one_of(st.none(), st.floats(), st.just(NOW)))
def test_whatever_is_read_is_a_believable_wait(value: object, now: float | None) -> None:
    for read in READERS:
        wait = read(value, now)
        assert wait is None or 0 <= wait <= MAX_WAIT_S


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_calendar_is_total(now: float) -> None:
    for until in (
        reset_hints.until_utc_midnight,
        reset_hints.until_utc_monday,
        reset_hints.until_pacific_midnight,
    ):
        wait = until(now)
        assert wait is None or 0 <= wait <= 32 * 86400


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations_are_read_as_go_writes_them(h: int, m: int, s: int, ms: int) -> None:
    total = h * 3600 + m * 60 + s + ms / 1000
    got = reset_hints.duration(f"{h}h{m}m{s}.{ms:03}s")
    assert got == (pytest.approx(total) if total <= MAX_WAIT_S else None)


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("tokens per min (TPM): Limit 200000", 60),
        ("40 API calls / minute", 60),
        ("Requests per Second (actual/limit): 2/2", 1),
        ("per-minute rate limit", 60),
        ("Tokens per hour limit exceeded", 3600),
        ("tokens per day (TPD)", 86400),
        ("on RPD", 86400),
        ("ITPM", 60),
        ("free-models-per-day. 1000 free requests per minute", 86400),
        ("5 hour session limits", 18000),
        ("your 7-day rate limit", 604800),
        ("weekly rate limit", 604800),
        ("monthly", 2678400),
        ("see https://example.com/security or /minutiae", None),
        ("a second account, a minimal one", None),
        ("limit reached", None),
        ("Rate limit of 50 per 86400s exceeded for UserByModelByDay", 86400),
        ("exceeded for UserByModelByMinute", 60),
        ("your usage limit for this billing cycle", 2678400),
        ("2 weeks of usage", 1209600),
        ("已达到 5 小时的使用上限", 18000),
        ("本周额度已用尽", 604800),
        ("All requests of this month have been used", 2678400),
        ("You've hit your limit for this week", 604800),
        ("每分钟请求数超限", 60),
    ],
)
def test_window(text: str, window: float | None) -> None:
    assert reset_hints.window_s(text) == window
