"""Reads points in time as people and files write them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from account_pool.core.credential import is_plausible_end
from account_pool.credentials.errors import CredentialError

#: A number above this is in milliseconds: as seconds it would be after the year 5000.
_MILLISECONDS_FROM = 1e11


def read_instant(value: Any) -> float | None:
    """Return *value* as seconds since the epoch, None for None.

    Takes seconds, milliseconds, a date of YAML, or RFC 3339; without a zone it is UTC.
    Raises CredentialError.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = _parsed(value.strip())
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e14:
        return value / 1000 if value >= _MILLISECONDS_FROM else float(value)
    raise CredentialError(
        "expires_at is not a point in time", "write it as 2026-12-01T00:00:00Z, or leave it out"
    )


def doubt(expires_at: float, wall_now: float) -> str | None:
    """Say why an end that is told of a token is not believed; None if it may be true."""
    if is_plausible_end(expires_at, wall_now):
        return None
    when = "in the far future"
    if expires_at <= wall_now:
        when = f"on {datetime.fromtimestamp(expires_at, UTC):%Y-%m-%d %H:%M} UTC already"
    return f"its token ends {when}, by what is said of it"


def _parsed(text: str) -> datetime | float | None:
    # A number first: some of them are dates as well to `fromisoformat`.
    for parse in (float, datetime.fromisoformat):
        try:
            return parse(text)
        except ValueError:
            continue
    return None
