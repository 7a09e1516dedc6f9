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
(days end at midnight Pacific).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from email.utils import parsedate_to_datetime
from urllib.parse import unquote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

#: The longest wait that is believed: a year and a day.
MAX_WAIT_S = 366 * 86_400.0

# What a bare number means when it may be an instant: seconds since the epoch from
# 2001 on, or milliseconds. Nothing in between is a wait either (30 years).
_EPOCH_S = (1e9, 1e11)
_EPOCH_MS = (1e12, 1e14)

# A header value longer than this is not a time; a sentence is searched this far.
_MAX_VALUE_CHARS = 64
_MAX_SENTENCE_CHARS = 4096

_NextDay = Callable[[datetime], datetime]

_NUMBER = re.compile(r"[0-9]{1,40}(?:\.[0-9]{0,40})?")

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
    # Units of one letter and "ms" have no plural.
    f"{unit}s?" if len(unit) > 2 else unit
    for unit in sorted(_UNIT_S, key=len, reverse=True)
)
# The blank after an article is required: "and" would be one day.
_COUNT = r"(?:[0-9]{1,15}(?:\.[0-9]{1,15})?\s*|\b(?:an?|one)\s+)"
_AMOUNT = rf"{_COUNT}(?:{_UNITS})(?![a-zµ])"
_DURATION = rf"{_AMOUNT}(?:[\s,]*(?:and\s+)?{_AMOUNT}){{0,5}}"
_DURATION_RE = re.compile(_DURATION, re.IGNORECASE)
_PART_RE = re.compile(rf"({_COUNT})({_UNITS})(?![a-zµ])", re.IGNORECASE)

# "2026-10-01 at 00:00 UTC", "2026-10-01T00:00:00.5Z"
_MOMENT = (
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:(?:\s+at\s+|T|\s+)([0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?))?"
    r"\s*(Z|UTC|GMT|[+-][0-9]{2}:?[0-9]{2})?"
)
_LEAD = (
    r"\b(?:again|retry|retrying|wait|resets?|access|available|renews?|replenished|resumes?"
    r"|lifted)\b"
    r"(?:[\s:,~]{1,3}(?:in|after|for|at|on|least|about|around|approximately|another|until"
    r"|within|the|next|again|will|be)\b){0,6}[\s:,~]{0,3}"
)
# "2.11:58:12" (Azure API Management): days, hours, minutes, seconds.
_CLOCK = (
    r"(?<=\bin )(?:(?P<days>[0-9]{1,3})\.)?(?P<hours>[0-9]{1,2}):(?P<minutes>[0-9]{2})"
    r":(?P<seconds>[0-9]{2})\b"
)
_SENTENCE_RE = re.compile(rf"{_LEAD}(?:(?P<wait>{_DURATION})|{_CLOCK}|{_MOMENT})", re.IGNORECASE)


def _believable(seconds: float) -> float | None:
    """Return *seconds* if it is a wait we believe. NaN fails every comparison."""
    return seconds if 0.0 <= seconds <= MAX_WAIT_S else None


def _number(value: object) -> float | None:
    """Return a JSON number or the text of one; the largest of a repeated header."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return None
    if not isinstance(value, str) or len(value) > _MAX_VALUE_CHARS:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    return max(float(part) for part in parts)


def seconds(value: object) -> float | None:
    """Read a number of seconds: `6311`, `"5.289"`, `1234`."""
    number = _number(value)
    return None if number is None else _believable(number)


def milliseconds(value: object) -> float | None:
    """Read a number of milliseconds, such as `retry-after-ms: 22000`, as seconds."""
    number = _number(value)
    return None if number is None else _believable(number / 1000)


def duration(value: object) -> float | None:
    """Read a duration with units, as seconds.

    Go (`6m0s`, `120ms`, `1h43m56s`), protobuf (`0.9002s`), with spaces (`6m 11.52s`)
    and in words (`9 hours 44 minutes`, `an hour and 5 minutes`).
    """
    if not isinstance(value, str) or len(value) > _MAX_VALUE_CHARS:
        return None
    text = value.strip()
    return _sum(text) if _DURATION_RE.fullmatch(text) else None


def _sum(text: str) -> float | None:
    total = 0.0
    for amount, unit in _PART_RE.findall(text):
        name = unit.lower()
        scale = _UNIT_S.get(name) or _UNIT_S[name.removesuffix("s")]
        total += scale * (float(amount) if amount[0].isdigit() else 1.0)
    return _believable(total)


def instant(value: object, now: float | None) -> float | None:
    """Read a moment and return the seconds until it; 0 if it has passed."""
    if now is None:
        return None
    at = moment(value)
    return None if at is None else _believable(max(0.0, at - now))


def moment(value: object) -> float | None:
    """Read a moment as seconds since the epoch.

    Seconds or milliseconds since the epoch (by magnitude), RFC 3339 with or without
    percent-encoding, or an HTTP-date. No zone means UTC.
    """
    at = _epoch(value)
    if at is None and isinstance(value, str):
        at = _moment(value)
    return at


def _epoch(value: object) -> float | None:
    number = _number(value)
    if number is None:
        return None
    if _EPOCH_S[0] <= number < _EPOCH_S[1]:
        return number
    if _EPOCH_MS[0] <= number < _EPOCH_MS[1]:
        return number / 1000
    return None


def _moment(text: str) -> float | None:
    if len(text) > _MAX_VALUE_CHARS:
        return None
    text = unquote(text).strip()
    if text[:1].isdigit():
        return _rfc3339(text)
    return http_date(text)


def _rfc3339(text: str) -> float | None:
    for name in (" UTC", " GMT"):
        text = text.removesuffix(name)
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
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


def retry_after(value: object, now: float | None) -> float | None:
    """Read `retry-after`: seconds, whole or decimal, else a duration, else a date."""
    if _number(value) is not None:
        return seconds(value)
    wait = duration(value)
    return instant(value, now) if wait is None else wait


def reset(value: object, now: float | None) -> float | None:
    """Read a reset whose vendor may mean a wait or a moment, in any spelling.

    A number from 2001 on is a moment, a smaller one a wait: `33011.5`, `1741305600000`,
    `1765944000`, `2m59.56s`, `2026-04-22T14%3A30%3A56Z`.
    """
    if _epoch(value) is not None:
        return instant(value, now)
    return retry_after(value, now)


def sentence(text: object, now: float | None) -> float | None:
    """Find the wait in a vendor's prose; the first one that is said.

    "Please try again in 1.574s", "wait 9 hours 44 minutes", "retry after 22 seconds",
    "Quota will be replenished in 01:58:12", "You will regain access on 2026-10-01 at 00:00
    UTC". A duration counts only after such a lead: "5 hour session limits" or "40 calls /
    minute" name a window.
    """
    if not isinstance(text, str):
        return None
    found = _SENTENCE_RE.search(text[:_MAX_SENTENCE_CHARS])
    if not found:
        return None
    if found["wait"]:
        return _sum(found["wait"])
    if found["hours"]:
        days, hours, minutes, whole = found.group("days", "hours", "minutes", "seconds")
        clock = timedelta(int(days or 0), int(whole), 0, 0, int(minutes), int(hours))
        return _believable(clock.total_seconds())
    date, time, zone = found.groups()[-3:]
    zone = "+00:00" if zone is None or zone.upper() in ("Z", "UTC", "GMT") else zone
    return instant(f"{date}T{time or '00:00'}{zone}", now)


def until_utc_midnight(now: float | None) -> float | None:
    """Return the seconds until the next day begins in UTC."""
    return _until(now, UTC, lambda today: today + timedelta(days=1))


def until_utc_monday(now: float | None) -> float | None:
    """Return the seconds until the next Monday begins in UTC."""
    return _until(now, UTC, lambda today: today + timedelta(days=7 - today.weekday()))


def until_pacific_midnight(now: float | None) -> float | None:
    """Return the seconds until the next day begins in Los Angeles, DST considered."""
    return _until(now, _pacific(), lambda today: today + timedelta(days=1))


@functools.cache
def _pacific() -> tzinfo:
    try:
        return ZoneInfo("America/Los_Angeles")
    except (ZoneInfoNotFoundError, OSError):
        # No time zone data (slim container, Windows without tzdata): standard time is
        # an hour late in summer, never early.
        return timezone(timedelta(hours=-8))


def _until(now: float | None, zone: tzinfo, following: _NextDay) -> float | None:
    """Return the seconds until the day *following* today begins, by the zone's clock."""
    if now is None:
        return None
    try:
        today = datetime.fromtimestamp(now, zone).replace(hour=0, minute=0, second=0, microsecond=0)
        # Built from the calendar and only then turned into an instant: a day with a
        # change of clocks has 23 or 25 hours.
        begins = following(today.replace(tzinfo=None)).replace(tzinfo=zone)
        return _believable(begins.timestamp() - now)
    except (ValueError, OverflowError, OSError):
        return None
