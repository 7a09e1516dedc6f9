"""Reads the time zone a vendor names beside a date: `Z`, `+08:00`, `UTC+8`, `Asia/Shanghai`.

Total: what is not known is None. Sources: RFC 3339, the IANA time zone database; the
abbreviations are those of North American and European clients (RFC 2822 section 4.3).
"""

from __future__ import annotations

import functools
import re
from datetime import UTC, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_OFFSET = re.compile(r"(?:UTC|GMT)?\s*([+-])(\d{1,2})(?::?(\d{2}))?", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z]{2,20}(?:/[A-Za-z_+-]{2,24}){1,2}")

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
def zone(text: str) -> tzinfo | None:
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
    return named(name) if _NAME.fullmatch(name) else None


def named(name: str) -> tzinfo | None:
    """Return a zone by its IANA name; None if it is unknown or its data is missing."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # Slim containers and Windows have no data; China has had one offset since 1991.
        return timezone(timedelta(hours=8)) if name == "Asia/Shanghai" else None
