"""Finds in a vendor's prose when an account is back: English and Chinese.

"Please try again in 1.574s", "resets 3am (Asia/Shanghai)", "will reset at 2026-08-03
23:59:59 +0800 CST", "将在 2026-08-25 07:41:44 重置", "请 5 分钟后再试". A duration or a date counts
only beside a word that says so: "5 hour session limits" names a window. Every function
is total: what cannot be read is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo

from account_pool.core.meaning import LazyPattern, plain
from account_pool.core.reset_hints import DURATION, ZONE, believable, sum_of_parts, time_zone

# A sentence is searched this far, and so far behind a word that announces a time.
_MAX_SENTENCE_CHARS = 4096
_MAX_TIME_CHARS = 80
#: A time of day that has just passed means now: its next one is a day away.
_JUST_PASSED = timedelta(minutes=2)
#: A day of the year that passed less than this long ago means now, not next year.
_LATELY = timedelta(days=183)
_DAY = timedelta(days=1)
_I = re.IGNORECASE

# -- what announces a time

_LEAD = LazyPattern(
    r"\breached\||\b(?:again|retry|retrying|wait|resets?(?:_(?:at|in|time))?|refresh(?:es|ed)?"
    r"|access|available"
    r"|renew(?:s|ed)?|replenished|restored|resumes?|lifted|unlocks?|cool[- ]?down(?: period)?"
    # Words that mean something else without what follows.
    r"|back(?=\s(?:after|at|by|in|on|tomorrow)\b)|allowed(?=\s(?:after|again|at|from|until)\b)"
    r"|(?:blocked|limited|locked|paused|restricted|throttled|unavailable)(?=\suntil\b))\b"
    r"(?:[\s:,~·]{1,3}(?:in|after|for|at|on|by|from|least|less|than|about|around|approximately"
    r"|another|until|within|the|next|again|will|be|is|time|your|this|requests?|it)\b){0,6}"
    r"[\s:=,~·]{0,3}",
    _I,
)
# A header that is quoted, or its name in a sentence: "retry_after: 30", "Retry after 30."
_NUMBER = LazyPattern(
    r"\b(?:retry|resets?|wait)[ _-]?after(?:[ _-]?(?:seconds?|secs?))?['\"]?\s?[:=]?\s?"
    r"(?P<seconds>[0-9]{1,7}(?:\.[0-9]{1,6})?)\s?s?(?=['\",;)}\]]|\.?\s*$|\.\s)",
    re.IGNORECASE | re.MULTILINE,
)
# 重置: reset, 恢复: restore, 刷新: refresh, 解除/解封: lift, 重试/再试: try again, 可用: available.
_BACK = r"(?:重置|恢复|刷新|更新|解除|解封|解锁|重试|再试|再次|可用|使用|继续|重新|释放)"
_BEFORE = LazyPattern(
    rf"(?:{_BACK}|等待|需等|还需|剩余|请(?!求))[^。;!\d]{{0,8}}$|(?:将在|将于|请于|请在|预计)[^。\d]{{0,3}}$"
)
_BEHIND = LazyPattern(rf"^[^。;!\d]{{0,6}}?{_BACK}")

# -- spellings of a time

_DURATION = LazyPattern(DURATION, _I)
# "2.11:58:12" (Azure API Management), "2 days, 11:58:12" (Python): days, hours, minutes, seconds.
_COUNTDOWN = LazyPattern(
    r"(?:(?P<days>[0-9]{1,3})(?:\.|\sdays?,\s))?(?P<hours>[0-9]{1,2}):(?P<minutes>[0-9]{2})"
    r":(?P<seconds>[0-9]{2})\b"
)
_ZONE = rf"\s?\(?(?P<zone>{ZONE})?"
_DATE = (
    r"(?P<year>20[0-9]{2})(?:[-/]|\s?年\s?)(?P<month>[0-9]{1,2})(?:[-/]|\s?月\s?)"
    r"(?P<day>[0-9]{1,2})(?!\d)\s?日?"
)
_CLOCK = (
    r"(?P<hour>[0-9]{1,2})\s?(?:[:]|时|点)\s?(?P<minute>[0-9]{2})?"
    r"(?:\s?[:分]\s?(?P<second>[0-9]{2})?(?:\.[0-9]{1,9})?)?秒?"
)
_MOMENT = LazyPattern(rf"{_DATE}(?:(?:\s?at\s|T|,?\s?){_CLOCK})?{_ZONE}")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = rf"(?i:{'|'.join(_MONTHS)})[a-z]{{0,6}}\.?"
_TIME_OF_DAY = (
    r"(?:(?P<hour>[0-9]{1,2})(?::(?P<minute>[0-9]{2}))?(?::(?P<second>[0-9]{2}))?"
    r"\s?(?P<half>[aApP])\.?[mM]\b\.?"
    r"|(?P<hour24>[0-9]{1,2}):(?P<minute24>[0-9]{2})(?::(?P<second24>[0-9]{2}))?"
    r"|(?P<midnight>(?i:midnight)))"
)
_WEEKDAY = r"(?i:mon|tues?|wed(?:nes)?|thu(?:rs?)?|fri|sat(?:ur)?|sun)(?i:day)?\b\.?"
_DAY_OF_YEAR = LazyPattern(
    rf"(?:{_WEEKDAY},?\s)?(?:(?P<month>{_MONTH})\s(?P<day>[0-9]{{1,2}})(?!\d)(?:st|nd|rd|th)?"
    rf"|(?P<day2>[0-9]{{1,2}})(?:st|nd|rd|th)?\s(?:of\s)?(?P<month2>{_MONTH}))"
    rf"(?:,?\s(?P<year>20[0-9]{{2}})\b)?(?:,?\s?(?:\bat\s)?{_TIME_OF_DAY})?{_ZONE}"
)
_OF_DAY = LazyPattern(rf"(?P<tomorrow>(?i:tomorrow),?(?:\sat)?\s?)?{_TIME_OF_DAY}{_ZONE}")
_NEXT = LazyPattern(
    rf"(?i:next )?(?P<weekday>{_WEEKDAY})(?:,?\s(?:at\s)?{_TIME_OF_DAY}{_ZONE})?"
    r"|(?P<tomorrow>(?i:tomorrow))\b"
)
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EPOCH = LazyPattern(r"(?P<epoch>1[0-9]{9})\b")

_CHINESE_UNITS = {"周": 604_800, "星期": 604_800, "天": 86_400, "日": 86_400, "小时": 3600}
_CHINESE_UNITS |= {"钟头": 3600, "分钟": 60, "分": 60, "秒钟": 1, "秒": 1}
_CHINESE_PART_TEXT = rf"([0-9]{{1,6}}(?:\.[0-9]{{1,3}})?)\s?个?({'|'.join(_CHINESE_UNITS)})"
_CHINESE_PART = LazyPattern(_CHINESE_PART_TEXT)
# Not the day of a date: 12月1日 is December 1.
_CHINESE_WAIT = LazyPattern(
    rf"(?<![月0-9.])(?>(?:{_CHINESE_PART_TEXT}[\s,零又]?){{1,4}})(?![前内的])"
)
_CHINESE_DATE = LazyPattern(
    r"(?<![年0-9])(?P<month>[0-9]{1,2})\s?月\s?(?P<day>[0-9]{1,2})\s?[日号]"
    rf"(?:\s?{_CLOCK}{_ZONE})?"
)
_CHINESE_NEXT = LazyPattern(
    r"(?P<day>明天|明日|次日|每日|每天)(?:凌晨|零点|0\s?[点时]|00:00)?|下周一|(?P<month>下个?月(?:1|一)?[日号]?)"
)


def sentence(text: object, now: float | None, zone: tzinfo | None = None) -> float | None:
    """Return the seconds until the first return that *text* announces, None if none.

    *zone*: that of dates which name none; None: UTC, and a time of day that names no
    zone is then not believed.
    """
    if not isinstance(text, str):
        return None
    text = plain(text[:_MAX_SENTENCE_CHARS])
    found = [*_english(text, now, zone), *_chinese(text, now, zone)]
    return min(found, key=lambda one: one[0])[1] if found else None


def _english(
    text: str, now: float | None, zone: tzinfo | None
) -> Iterator[tuple[int, float | None]]:
    """Yield where the first time stands that an English word announces, and the wait."""
    if found := _NUMBER.search(text):
        yield found.start(), believable(float(found["seconds"]))
    for lead in _LEAD.finditer(text):
        rest = text[lead.end() : lead.end() + _MAX_TIME_CHARS]
        if lead[0].rstrip(" :").lower().endswith(" in") and (found := _COUNTDOWN.match(rest)):
            yield lead.start(), _countdown(found)
            return
        if found := _DURATION.match(rest):
            yield lead.start(), sum_of_parts(found[0])
            return
        for pattern, read in _SPELLINGS:
            if (found := pattern.match(rest)) and (at := _at(read, found, now, zone)) is not None:
                yield lead.start(), at
                return


def _chinese(
    text: str, now: float | None, zone: tzinfo | None
) -> Iterator[tuple[int, float | None]]:
    """Yield the same where a Chinese word before or behind the time announces it."""
    if text.isascii():
        return
    for pattern, read in _CHINESE_SPELLINGS:
        for found in pattern.finditer(text):
            before = text[max(0, found.start() - 14) : found.start()]
            behind = text[found.end() : found.end() + 14]
            if not _BEFORE.search(before) and not _BEHIND.search(behind):
                continue
            wait = _parts(found) if read is None else _at(read, found, now, zone)
            if wait is not None:
                yield found.start(), wait
                break


# -- reading what was found

_Read = Callable[["re.Match[str]", datetime], "datetime | None"]


def _at(read: _Read, found: re.Match[str], now: float | None, zone: tzinfo | None) -> float | None:
    """Return the seconds until what *read* makes of *found*; 0 if it has passed."""
    if now is None:
        return None
    named = found.groupdict().get("zone")
    there = time_zone(named) if named else zone
    if there is None and read is _time_of_day and not (named or zone):
        return None
    try:
        at = read(found, datetime.fromtimestamp(now, there or UTC))
        return None if at is None else believable(max(0.0, at.timestamp() - now))
    except (ValueError, OverflowError, OSError):
        return None


def _moment(found: re.Match[str], today: datetime) -> datetime | None:
    date = (int(found["year"]), int(found["month"]), int(found["day"]))
    clock = (int(found["hour"] or 0), int(found["minute"] or 0), int(found["second"] or 0))
    return datetime(*date, *clock, tzinfo=today.tzinfo)


def _day_of_year(found: re.Match[str], today: datetime) -> datetime | None:
    month = _MONTHS.index((found["month"] or found["month2"])[:3].lower()) + 1
    day = int(found["day"] or found["day2"])
    year = int(found["year"] or today.year)
    at = datetime(year, month, day, *_clock(found), tzinfo=today.tzinfo)
    return at if found["year"] else _this_or_next_year(at, today)


def _this_or_next_year(at: datetime, today: datetime) -> datetime:
    return at.replace(year=at.year + 1) if today - at > _LATELY else at


def _time_of_day(found: re.Match[str], today: datetime) -> datetime | None:
    hour, minute, second = _clock(found)
    at = today.replace(hour=hour, minute=minute, second=second, microsecond=0)
    if found["tomorrow"] or today - at > _JUST_PASSED or (found["midnight"] and at < today):
        return _following(at, 1)
    return at


def _clock(found: re.Match[str]) -> tuple[int, int, int]:
    """Return hour, minute and second; midnight where no time is named."""
    if found["hour"]:
        hour = int(found["hour"]) % 12 + (12 if found["half"].lower() == "p" else 0)
        return hour, int(found["minute"] or 0), int(found["second"] or 0)
    return int(found["hour24"] or 0), int(found["minute24"] or 0), int(found["second24"] or 0)


def _next_day(found: re.Match[str], today: datetime) -> datetime | None:
    if found["tomorrow"]:
        return _midnight(today, 1)
    ahead = (_WEEKDAYS.index(found["weekday"][:3].lower()) - today.weekday()) % 7
    if not (found["hour"] or found["hour24"]):
        return _midnight(today, ahead or 7)
    hour, minute, second = _clock(found)
    at = _following(today.replace(hour=hour, minute=minute, second=second, microsecond=0), ahead)
    return _following(at, 7) if today - at > _JUST_PASSED else at


def _chinese_date(found: re.Match[str], today: datetime) -> datetime | None:
    clock = (int(found["hour"] or 0), int(found["minute"] or 0), int(found["second"] or 0))
    month, day = int(found["month"]), int(found["day"])
    return _this_or_next_year(datetime(today.year, month, day, *clock, tzinfo=today.tzinfo), today)


def _chinese_next(found: re.Match[str], today: datetime) -> datetime | None:
    if found["day"]:
        return _midnight(today, 1)
    if found["month"]:
        return _midnight((today.replace(day=1) + 31 * _DAY).replace(day=1), 0)
    return _midnight(today, 7 - today.weekday())


def _midnight(today: datetime, days: int) -> datetime:
    return _following(today.replace(hour=0, minute=0, second=0, microsecond=0), days)


def _following(at: datetime, days: int) -> datetime:
    """Return the same time of day *days* later by the calendar, whatever the clocks do."""
    return (at.replace(tzinfo=None) + days * _DAY).replace(tzinfo=at.tzinfo)


def _countdown(found: re.Match[str]) -> float | None:
    days, hours, minutes, whole = found.group("days", "hours", "minutes", "seconds")
    clock = timedelta(int(days or 0), int(whole), 0, 0, int(minutes), int(hours))
    return believable(clock.total_seconds())


def _parts(found: re.Match[str]) -> float | None:
    parts = _CHINESE_PART.findall(found[0])
    return believable(sum(float(amount) * _CHINESE_UNITS[unit] for amount, unit in parts))


_SPELLINGS: tuple[tuple[LazyPattern[str], _Read], ...] = (
    (_MOMENT, _moment),
    (_DAY_OF_YEAR, _day_of_year),
    (_OF_DAY, _time_of_day),
    (_NEXT, _next_day),
    (_EPOCH, lambda found, _today: datetime.fromtimestamp(int(found["epoch"]), UTC)),
)
_CHINESE_SPELLINGS: tuple[tuple[LazyPattern[str], _Read | None], ...] = (
    (_MOMENT, _moment),
    (_CHINESE_DATE, _chinese_date),
    (_CHINESE_WAIT, None),
    (_CHINESE_NEXT, _chinese_next),
)
