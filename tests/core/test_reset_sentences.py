"""When an account is back, in English and Chinese prose, with and without a time zone."""

from datetime import UTC, datetime, timedelta, timezone, tzinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core import reset_hints
from account_pool.core.reset_hints import MAX_WAIT_S
from account_pool.core.reset_sentences import sentence

#: A Thursday, 18:00 in Beijing.
NOW = datetime(2026, 10, 1, 10, tzinfo=UTC).timestamp()
BEIJING = timezone(timedelta(hours=8))
HOUR, DAY = 3600, 86400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Claude Code: "You've hit your session limit · resets 4:20pm (UTC)"
        ("You've hit your session limit · resets 4:20pm (UTC)", 6 * HOUR + 1200),
        ("session limit reached · resets 3am (Asia/Shanghai)", 9 * HOUR),
        ("You've hit your weekly limit · resets Aug 3, 11pm (UTC)", 0),  # not next year
        ("weekly limit · resets Oct 5, 3pm (Europe/Berlin)", 4 * DAY + 3 * HOUR),
        ("You've hit your daily limit · resets midnight (UTC)", 14 * HOUR),
        ("Resets at 9:59am (UTC)", 0),  # just now
        ("Resets at 9:50am (UTC)", 23 * HOUR + 50 * 60),
        ("resets tomorrow at 3:30 PM (UTC)", 29.5 * HOUR),
        ("Your limit resets on October 2, 2026 at 10:00 AM UTC.", DAY),
        ("try again on 2 Oct 2026 10:00 UTC", DAY),
        ("It resets Sep 30 (UTC)", 0),
        ("Your quota resets on Monday.", 3 * DAY + 14 * HOUR),
        # Ark: a Go time
        ("It will reset at 2026-10-01 23:59:59 +0800 CST. Please", 5 * HOUR + 3599),
        ("Weekly/Monthly Limit Exhausted. Your limit will reset at 2026-10-01 10:05:00", 300),
        ("will reset at 2026-10-01 18:05:00 (UTC+8)", 300),
        ("will reset at 2026-10-01 18:05 Beijing time", 300),
        ("resets at 2026-10-01T15:00:00Z (2056)", 5 * HOUR),
        ("Resets at 2026/10/01 10:05", 300),
        ("Monthly usage limit reached. Resets in 19hr 5min. To continue", 19 * HOUR + 300),
        ("Weekly usage limit reached. Resets in 2 days.", 2 * DAY),
        ("Please wait 52220 seconds before retrying.", 52220),
        ("Claude AI usage limit reached|1790848860", 60),
        ("try again in 5 hours", 5 * HOUR),
        # what else stands between the word and the time
        ("Please retry your request after 30 seconds.", 30),
        ("Please retry the request in 20s", 20),
        ("Please retry your request after Thu, 01 Oct 2026 10:20:00 GMT.", 1200),
        ("Rate limit resets in: 00:45:10", 2710),
        ("Rate limited; resets_at=2026-10-01T10:20:00Z", 1200),
        ("This request took 30 seconds", None),
        ("Retry this request with 30 messages", None),
        # Chinese
        ("已达到 5 小时的使用上限。您的限额将在 2026-10-01 12:00:00 重置。", 2 * HOUR),
        ("您的配额将于2026年10月1日12:00重置", 2 * HOUR),
        ("请求过于频繁,请 5 分钟后再试", 300),
        ("请等待30秒后重试", 30),
        ("额度将在 3 小时 20 分钟后重置", 3 * HOUR + 1200),
        ("本周额度已用尽,重置时间:2026-10-05 00:00:00", 3 * DAY + 14 * HOUR),
        ("今日额度已用完,请明天再试", 14 * HOUR),
        ("每日零点重置", 14 * HOUR),
        ("下周一重置", 3 * DAY + 14 * HOUR),
        ("月度额度用尽,下月1日恢复", 30 * DAY + 14 * HOUR),
        # a window, not a wait
        ("已达到 5 小时的使用上限", None),
        ("5 hour session limits", None),
        ("Your quota will reset when the current 7-day window ends.", None),
        # weekdays with a time, and before a date (2026-10-01 is a Thursday)
        ("try again on Monday at 9 AM (UTC)", 3 * DAY + 23 * HOUR),
        ("resets Tue 9am (UTC)", 4 * DAY + 23 * HOUR),
        ("resets Thu 3pm (UTC)", 5 * HOUR),
        ("resets Thu 9am (UTC)", 6 * DAY + 23 * HOUR),
        ("resets on Monday, October 5 at 3pm (UTC)", 4 * DAY + 5 * HOUR),
        # sums of words, and a timedelta as Python writes it
        ("try again in 2 hrs and 5 mins", 2 * HOUR + 300),
        ("Quota resets in 1 day, 2:03:04", DAY + 2 * HOUR + 184),
        ("try again in 0:05:00", 300),
        # other words that announce a time
        ("available again from Oct 5", 3 * DAY + 14 * HOUR),
        ("Requests are blocked until 2026-10-01T10:05:00Z", 300),
        ("We will be back at 2026-10-01 10:05 UTC", 300),
        ("Next request allowed at 2026-10-01T10:05:00Z", 300),
        ("it will be available in less than a minute", 60),
        ("Upgrade or come back tomorrow.", 14 * HOUR),
        ("cooldown: 30 seconds remaining", 30),
        ("60 requests are allowed in 1 hour", None),
        ("your plan is valid until 2026-12-01", None),
        # a header in the sentence; a number before a word is something else
        ("Rate limited. Retry after: 120", 120),
        ("Too many requests (retry-after=30)", 30),
        ('failed: {"retry_after": 12.5, "x": 1}', 12.5),
        ("Retry after 30.", 30),
        ("Retry after 30.\nMore", 30),
        ("reset_after: 12.5s", 12.5),
        ("Retry after 2 minutes.", 120),
        ("Retry after 3 attempts", None),
        ("Retry after 1790848860", 60),
        # Chinese: a day of the year is no wait of days
        ("额度将于10月5日重置", 3 * DAY + 14 * HOUR),
        ("10月5日 12:00(北京时间)恢复", 3 * DAY + 18 * HOUR),
        ("9月30日重置", 0),
        ("2月29日重置", None),
        # a time of day without a zone could be any
        ("resets 3am", None),
        ("available at 14:30:00", None),
        ("created at 2026-10-01 12:00:00", None),
        ("resets at 2026-13-45 99:99:99", None),
        ("resets Feb 31 (UTC)", None),
    ],
)
def test_in_a_sentence(text: str, expected: float | None) -> None:
    assert sentence(text, NOW) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Your limit will reset at 2026-10-01 18:05:00", 300),
        ("您的限额将在 2026-10-01 18:05:00 重置。", 300),
        ("您的限额将在 2026-10-01 18:05:00 重置。(UTC+8)", 300),
        ("resets 7pm", HOUR),
        ("请明天再试", 6 * HOUR),
        # What is named comes before what is usual.
        ("Your limit will reset at 2026-10-01T10:05:00Z", 300),
        ("resets 11am (UTC)", HOUR),
        ("will reset at 2026-10-01 06:05:00 (America/New_York)", 300),
    ],
)
def test_the_vendors_own_zone(text: str, expected: float) -> None:
    assert sentence(text, NOW, BEIJING) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        *(("Z", 0), ("UTC", 0), ("GMT", 0), ("+08:00", 8), ("+0800", 8), ("-0530", -5.5)),
        *(("UTC+8", 8), ("GMT-3", -3), ("UTC+5:30", 5.5), ("(Asia/Shanghai)", 8)),
        *(("Asia/Tokyo", 9), ("Beijing time", 8), ("北京时间", 8), ("PST", -8), ("PT", -7)),
    ],
)
def test_zones(text: str, hours: float) -> None:
    found = reset_hints.time_zone(text)
    assert found is not None
    assert found.utcoffset(datetime(2026, 10, 1)) == timedelta(hours=hours)


@pytest.mark.parametrize("text", ["", "Mars/Phobos", "+99:00", "CST", "x" * 99, "../etc/passwd"])
def test_no_zones(text: str) -> None:
    assert reset_hints.time_zone(text) is None


@given(
    st.text(
        alphabet="resets at in 0123456789-:/年月日时分秒后重置将在请 pmAPM()UTC+CST,·", max_size=120
    )
    | st.text(max_size=200),
    st.none() | st.floats() | st.just(NOW),
    st.none() | st.just(BEIJING) | st.just(UTC),
)
def test_whatever_is_read_is_a_believable_wait(
    text: str, now: float | None, zone: tzinfo | None
) -> None:
    wait = sentence(text, now, zone)
    assert wait is None or 0 <= wait <= MAX_WAIT_S
