"""Every spelling of "come back later", read into seconds from now.

Decides how long a hint asks to wait; which hint of an answer counts is the business
of `signals.py`. Every function is total: a hostile or garbled value is None, never
an exception, never negative, infinite or NaN.

The rules, in one place:
- numbers are read before dates: to a lenient date parser "2" is a day in 2001;
- a negative wait and a wait above `MAX_WAIT_S` are refused (None), not clamped;
- an instant in the past means "now" (0), not "unknown";
- `now` is wall clock, seconds since the epoch. None: unknown, and then no instant and
  no calendar day can be turned into a wait.

Sources: RFC 9110 10.2.3 (Retry-After), RFC 3339, the protobuf JSON mapping of
Duration, Go's time.Duration.String, https://ai.google.dev/gemini-api/docs/rate-limits
(days end at midnight Pacific); for zones see below.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from email.utils import parsedate_to_datetime
from urllib.parse import unquote

from account_pool.core.json_values import finite_number
from account_pool.core.meaning import LazyPattern, plain

#: The longest wait that is believed: a year and a day.
MAX_WAIT_S = 366 * 86_400.0

# What a bare number means when it may be an instant: seconds since the epoch from
# 2001 on, or milliseconds. Nothing in between is a wait either (30 years).
_EPOCH_S = (1e9, 1e11)
_EPOCH_MS = (1e12, 1e14)

# A header value longer than this is not a time.
_MAX_VALUE_CHARS = 64

_NextDay = Callable[[datetime], datetime]

_NUMBER = LazyPattern(r"[0-9]{1,40}(?:\.[0-9]{0,40})?")

_UNIT_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "msec": 1e-3,
    "millisecond": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hr": 3600.0,
    "hour": 3600.0,
    "d": 86_400.0,
    "day": 86_400.0,
    "w": 604_800.0,
    "week": 604_800.0,
}
_UNITS = "|".join(
    # Units of one letter and those below a millisecond have no plural.
    f"{unit}s?" if len(unit) > 2 or unit == "hr" else unit
    for unit in sorted(_UNIT_S, key=len, reverse=True)
)
# The blank after an article is required: "and" would be one day.
_COUNT = r"(?:[0-9]{1,15}(?:\.[0-9]{1,15})?\s*|\b(?:an?|one)\s+)"
_AMOUNT = rf"{_COUNT}(?:{_UNITS})(?![a-zµ])"
#: A duration in Go's or in English words; for `reset_sentences.py`.
DURATION = rf"{_AMOUNT}(?:[\s,]*(?:and\s+)?{_AMOUNT}){{0,5}}"
_DURATION_RE = LazyPattern(DURATION, re.IGNORECASE)
_PART_RE = LazyPattern(rf"({_COUNT})({_UNITS})(?![a-zµ])", re.IGNORECASE)


def believable(seconds: float | None) -> float | None:
    """Return *seconds* if it is a wait we believe. NaN fails every comparison."""
    return seconds if seconds is not None and 0.0 <= seconds <= MAX_WAIT_S else None


def _number(value: object) -> float | None:
    """Return a JSON number or the text of one; the largest of a repeated header."""
    if not isinstance(value, str):
        return finite_number(value)
    if len(value) > _MAX_VALUE_CHARS:
        return None
    parts = [part.strip() for part in value.split(",")]
    return max(map(float, parts)) if all(map(_NUMBER.fullmatch, parts)) else None


def seconds(value: object) -> float | None:
    """Read a number of seconds: `6311`, `"5.289"`, `1234`."""
    return believable(_number(value))


def milliseconds(value: object) -> float | None:
    """Read a number of milliseconds, such as `retry-after-ms: 22000`, as seconds."""
    given = _number(value)
    return None if given is None else believable(given / 1000)


def duration(value: object) -> float | None:
    """Read a duration with units, as seconds.

    Go (`6m0s`, `120ms`, `1h43m56s`), protobuf (`0.9002s`), with spaces (`6m 11.52s`)
    and in words (`9 hours 44 minutes`, `an hour and 5 minutes`).
    """
    if not isinstance(value, str) or len(value) > _MAX_VALUE_CHARS:
        return None
    text = value.strip()
    return sum_of_parts(text) if _DURATION_RE.fullmatch(text) else None


def sum_of_parts(text: str) -> float | None:
    """Add up what `DURATION` matched, in seconds."""
    total = 0.0
    for amount, unit in _PART_RE.findall(text):
        name = unit.lower()
        scale = _UNIT_S.get(name) or _UNIT_S[name.removesuffix("s")]
        total += scale * (float(amount) if amount[0].isdigit() else 1.0)
    return believable(total)


def instant(value: object, now: float | None, zone: tzinfo | None = None) -> float | None:
    """Read a moment and return the seconds until it; 0 if it has passed.

    *zone*: that of a date which names none; None: UTC.
    """
    if now is None:
        return None
    at = moment(value, zone)
    return None if at is None else believable(max(0.0, at - now))


def moment(value: object, zone: tzinfo | None = None) -> float | None:
    """Read a moment as seconds since the epoch.

    Seconds or milliseconds since the epoch (by magnitude), RFC 3339 with or without
    percent-encoding, or an HTTP-date. *zone*: that of a date which names none; None: UTC.
    """
    at = _epoch(value)
    if at is None and isinstance(value, str):
        at = _moment(value, zone)
    return at


def _epoch(value: object) -> float | None:
    given = _number(value)
    if given is None:
        return None
    if _EPOCH_S[0] <= given < _EPOCH_S[1]:
        return given
    return given / 1000 if _EPOCH_MS[0] <= given < _EPOCH_MS[1] else None


def _moment(text: str, zone: tzinfo | None) -> float | None:
    if len(text) > _MAX_VALUE_CHARS:
        return None
    text = unquote(text).strip()
    if text[:1].isdigit():
        return _rfc3339(text, zone)
    return http_date(text)


def _rfc3339(text: str, zone: tzinfo | None) -> float | None:
    for name in (" UTC", " GMT"):
        text = text.removesuffix(name)
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=zone or UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def http_date(text: str) -> float | None:
    """Read an HTTP-date (RFC 9110 5.6.7) as seconds since the epoch."""
    if len(text) > _MAX_VALUE_CHARS:
        return None
    try:
        at = parsedate_to_datetime(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def answer_now(headers: Mapping[str, str], wall_now: float) -> float | None:
    """Return the time at which an answer was given.

    Its own `date` header, so that a skewed clock on either side cancels out; else
    *wall_now*, the proxy's clock; None if that is unknown (0) as well.
    """
    at = http_date(headers.get("date", ""))
    if at is not None:
        return at
    return wall_now if 0.0 < wall_now < _EPOCH_S[1] else None


def retry_after(value: object, now: float | None, zone: tzinfo | None = None) -> float | None:
    """Read `retry-after`: seconds, whole or decimal, else a duration, else a date."""
    if (given := _number(value)) is not None:
        return believable(given)
    wait = duration(value)
    return instant(value, now, zone) if wait is None else wait


def reset(value: object, now: float | None, zone: tzinfo | None = None) -> float | None:
    """Read a reset whose vendor may mean a wait or a moment, in any spelling.

    A number from 2001 on is a moment, a smaller one a wait: `33011.5`, `1741305600000`,
    `1765944000`, `2m59.56s`, `2026-04-22T14%3A30%3A56Z`.
    """
    if _epoch(value) is not None:
        return instant(value, now)
    return retry_after(value, now, zone)


def until_utc_midnight(now: float | None) -> float | None:
    """Return the seconds until the next day begins in UTC."""
    return _until(now, UTC, lambda today: today + timedelta(days=1))


def until_utc_monday(now: float | None) -> float | None:
    """Return the seconds until the next Monday begins in UTC."""
    return _until(now, UTC, lambda today: today + timedelta(days=7 - today.weekday()))


def until_utc_month(now: float | None) -> float | None:
    """Return the seconds until the next month begins in UTC."""
    return _until(now, UTC, lambda today: (today.replace(day=1) + timedelta(32)).replace(day=1))


def until_pacific_midnight(now: float | None) -> float | None:
    """Return the seconds until the next day begins in Los Angeles, DST considered."""
    return _until(now, _pacific(), lambda today: today + timedelta(days=1))


@functools.cache
def _pacific() -> tzinfo:
    # Where there is no data, standard time is an hour late in summer, never early.
    return _zone("America/Los_Angeles") or timezone(timedelta(hours=-8))


def _until(now: float | None, zone: tzinfo, following: _NextDay) -> float | None:
    """Return the seconds until the day *following* today begins, by the zone's clock."""
    if now is None:
        return None
    try:
        today = datetime.fromtimestamp(now, zone).replace(hour=0, minute=0, second=0, microsecond=0)
        # Built from the calendar and only then turned into an instant: a day with a
        # change of clocks has 23 or 25 hours.
        begins = following(today.replace(tzinfo=None)).replace(tzinfo=zone)
        return believable(begins.timestamp() - now)
    except (ValueError, OverflowError, OSError):
        return None


# -- the zone beside a date: RFC 3339, the IANA time zone database, and the abbreviations of
# North American and European clients (RFC 2822, section 4.3)

_OFFSET = LazyPattern(r"(?:UTC|GMT)?\s*([+-])(\d{1,2})(?::?(\d{2}))?", re.IGNORECASE)
_NAME = LazyPattern(r"[A-Za-z]{2,20}(?:/[A-Za-z_+-]{2,24}){1,2}")

#: Hours from UTC. CST is left out: it is China's and Chicago's.
_ABBREVIATIONS = {
    name: float(hours)
    for hours, names in {
        "-8": "PST",
        "-7": "PDT MST",
        "-6": "MDT",
        "-5": "CDT EST",
        "-4": "EDT",
        "1": "BST CET",
        "2": "CEST EET",
        "3": "EEST MSK",
        "5.5": "IST",
        "8": "SGT HKT",
        "9": "JST KST",
        "10": "AEST",
        "11": "AEDT",
    }.items()
    for name in names.split()
}
_PLACES = {
    "PT": "America/Los_Angeles",
    "PACIFIC": "America/Los_Angeles",
    "PACIFIC TIME": "America/Los_Angeles",
    "ET": "America/New_York",
    "EASTERN TIME": "America/New_York",
    "BEIJING": "Asia/Shanghai",
    "BEIJING TIME": "Asia/Shanghai",
    "CHINA STANDARD TIME": "Asia/Shanghai",
    "北京时间": "Asia/Shanghai",
}

#: What may stand for a zone after a date in a sentence, parentheses aside.
ZONE = (
    r"Z\b|(?:UTC|GMT)(?:\s?[+-]\d{1,2}(?::?\d{2})?)?(?![A-Za-z])|[+-]\d{2}:?\d{2}\b"
    r"|[A-Z][A-Za-z]{2,19}(?:/[A-Z][A-Za-z_+-]{1,23}){1,2}"
    r"|(?:Beijing|Pacific|Eastern|China Standard)(?: Time)?\b|北京时间"
    rf"|(?:{'|'.join(_ABBREVIATIONS)}|PT|ET)\b"
)


@functools.lru_cache(maxsize=64)
def time_zone(text: str) -> tzinfo | None:
    """Return the zone *text* names, None if there is none such."""
    name = text.strip().strip("()")
    upper = name.upper()
    if upper in ("Z", "UTC", "GMT"):
        return UTC
    if found := _OFFSET.fullmatch(name):
        away = timedelta(hours=int(found[2]), minutes=int(found[3] or 0))
        if away > timedelta(hours=14):
            return None
        return timezone(-away if found[1] == "-" else away)
    if (hours := _ABBREVIATIONS.get(upper)) is not None:
        return timezone(timedelta(hours=hours))
    name = _PLACES.get(upper, name)
    if not _NAME.fullmatch(name):
        return None
    if (zone := _zone(name)) is None and name == "Asia/Shanghai":
        return timezone(timedelta(hours=8))  # China has had one offset since 1991.
    return zone


def _zone(name: str) -> tzinfo | None:
    """Return a zone by its IANA name; None if it is unknown, or its data is missing."""
    try:
        from zoneinfo import ZoneInfo  # noqa: PLC0415 - 3 ms, and few responses name a zone

        return ZoneInfo(name)
    except (LookupError, ValueError, OSError, ImportError):
        return None


# -- the window a sentence names

# The first one counts, later ones advertise upgrades.
_WINDOW = LazyPattern(
    r"\b(?P<count>[0-9]{1,3})[\s-]?(?P<unit>hour|day|week|month)s?\b"
    r"|(?:\bper|/)[\s-]*(?P<per>sec|min|hour|day|week|month)(?:onds?|utes?|s)?\b"
    r"|\bper\s(?P<seconds>[0-9]{1,7})\s?s(?:econds)?\b"
    r"|\b(?P<every>hourly|daily|weekly|monthly|billing (?:cycle|period)|this (?:week|month))\b"
    r"|\b(?:[RTI]|[IO]T)P(?P<short>[SMHD])\b"
    # UserByModelByDay
    r"|(?<=[a-z])By(?P<by>Second|Minute|Hour|Day|Week|Month)\b"
    r"|(?P<count_zh>[0-9]{1,3})\s?个?(?P<unit_zh>小时|天|日|周|月)(?!\s?\d)"
    r"|(?P<every_zh>每秒|每分钟|每小时|每日|每天|今日|当日|当天|每周|本周|每月|本月|月度)",
    re.IGNORECASE,
)
_WINDOW_S = {
    **dict.fromkeys(("s", "sec", "second", "每秒"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "每分钟"), 60.0),
    **dict.fromkeys(("h", "hour", "hourly", "小时", "每小时"), 3600.0),
    **dict.fromkeys(("d", "day", "daily"), 86_400.0),
    **dict.fromkeys(("天", "日", "每日", "每天", "今日", "当日", "当天"), 86_400.0),
    **dict.fromkeys(("week", "weekly", "this week", "周", "每周", "本周"), 604_800.0),
    **dict.fromkeys(("month", "monthly", "this month"), 2_678_400.0),
    **dict.fromkeys(("billing cycle", "billing period"), 2_678_400.0),
    **dict.fromkeys(("月", "每月", "本月", "月度"), 2_678_400.0),
}


#: A number of seconds to wait. What a message means hangs on none: with the same one in its place a
#: sentence that was read is known again.
SECONDS = LazyPattern(
    r"\b((?:in|after|for) (?:[0-9]{1,3}h)?(?:[0-9]{1,3}m)?)[0-9]{1,9}(?:\.[0-9]{1,9})?"
    r"(?= ?(?:m?s|(?:milli)?sec(?:ond)?s?)\b)",
    re.IGNORECASE,
)
SAME_SECONDS = r"\g<1>9"


@functools.lru_cache(maxsize=16)
def window_s(text: str) -> float | None:
    """Return the length of the first window *text* names, in seconds.

    "tokens per min (TPM)", "40 API calls / minute", "5 hour session limits", "TPD".
    """
    found = _WINDOW.search(plain(text))
    if not found:
        return None
    if found["count"] or found["count_zh"]:
        unit = found["unit"] or found["unit_zh"]
        return float(found["count"] or found["count_zh"]) * _WINDOW_S[unit.lower()]
    if found["seconds"]:
        return float(found["seconds"])
    name = found["per"] or found["every"] or found["short"] or found["by"] or found["every_zh"]
    return _WINDOW_S[name.lower()]
