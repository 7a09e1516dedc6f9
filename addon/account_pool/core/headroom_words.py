"""What is said of one window, by a header or an event, and the window that it makes.

Each family of words has a reader here: `remaining` of a `limit`, `used-percent`, `rem`.
Total: whatever a value is, nothing is raised, and what cannot be read is not told. Sections
named here are those of providers.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import inf
from typing import NamedTuple

from account_pool.core import reset_hints
from account_pool.core.headroom import Window

# What is longer is none of ours.
_MAX_NAME_CHARS = 100
_MAX_VALUE_CHARS = 500
_MAX_NUMBER = 1e15
_MAX_DIGITS = 15
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")

_UNIT_S = {
    "second": 1.0,
    "minute": 60.0,
    "hour": 3600.0,
    "day": 86_400.0,
    "week": 604_800.0,
    "month": 2_592_000.0,
}
_LETTER_S = {"m": 60.0, "h": 3600.0, "d": 86_400.0}


class Asked(NamedTuple):
    """What an answer belongs to, and when it came.

    Attributes:
        model: that of the request, None if it named none: what is counted per model then
            counts for the account, for there is nothing narrower.
        now: monotonic seconds.
        wall_now: seconds since the epoch; None: unknown.
    """

    model: str | None
    now: float
    wall_now: float | None


_COUNTS = ("requests", "tokens", "input-tokens", "output-tokens")
_PER = ("minute", "hour", "day", "month")
#: What providers call windows that they count in requests or tokens (sections 2.3, 4, 8).
COUNTED_WINDOWS = (
    *_COUNTS,
    *(f"{count}-{per}" for count in _COUNTS[:2] for per in _PER),
    *_PER,
)

#: What is said of one window, by the word that says it: `limit`, `reset`.
Told = Mapping[str, object]
#: (name of the window, what is told, of which answer) -> the window
Reader = Callable[[str, Told, Asked], Window | None]


# -- what the words of a family mean


def counted(name: str, told: Told, asked: Asked) -> Window | None:
    """Read `limit`, `remaining` and `reset`, counted for the model that was asked for.

    A limit without what remains says nothing, nor does the reverse, unless that is 0.
    """
    limit, remaining = _number(told.get("limit")), _number(told.get("remaining"))
    if remaining is None or limit == 0.0 or (limit is None and remaining > 0.0):
        return None
    return Window(
        name=name or "requests",
        share=min(remaining / limit, 1.0) if limit else 0.0,
        told_at=asked.now,
        model=asked.model,
        reset_at=_reset_at(told.get("reset"), asked),
        length_s=_UNIT_S.get(name.rpartition("-")[2]),
        limit=limit,
        remaining=remaining,
    )


#: Of a window that is spent, whatever its share (section 5).
_REJECTED = frozenset({"rejected", "rate_limited", "blocked", "queueing_hard", "payment_required"})


def unified(name: str, told: Told, asked: Asked) -> Window | None:
    """Read `utilization` (0 to 1, may exceed 1), `status` and `reset` (epoch seconds)."""
    used = _number(told.get("utilization"))
    if str(told.get("status")).strip().lower() in _REJECTED:
        used = 1.0
    if used is None:
        return None
    length, _, family = name.partition("_")
    return Window(
        name=length,
        share=_left(used),
        told_at=asked.now,
        # A code name (`7d_oi`) is part of no model's name, and covers none.
        model=f"*{family}*" if family else None,
        reset_at=_reset_at(told.get("reset"), asked),
        length_s=float(length[:-1]) * _LETTER_S[length[-1]],
    )


def plan(name: str, told: Told, asked: Asked) -> Window | None:
    """Read a window of the account (`codex-primary`), or of a named limit."""
    limit, _, slot = name.rpartition("-")
    if limit == "codex":
        return planned(slot, told, None, asked)
    # The answer says by which limit the request was counted. The others have a name that is
    # a model's ("GPT-5.3-Codex-Spark") or that of a feature, which covers none.
    active = str(told.get("active-limit")).strip().lower().replace("_", "-")
    counts = active == limit and asked.model is not None
    model = asked.model if counts else str(told.get("limit-name", limit)).strip().lower()
    return planned(slot, told, model, asked)


def planned(slot: str, told: Told, model: str | None, asked: Asked) -> Window | None:
    """Read `used-percent`, `window-minutes`, and `reset-at` or `reset-after-seconds`."""
    used = _number(told.get("used-percent"))
    if used is None:
        return None
    minutes = _number(told.get("window-minutes"))
    reset_at = _reset_at(told.get("reset-at"), asked)
    if (reset_at <= asked.now or reset_at == inf) and "reset-after-seconds" in told:
        # By a clock that is wrong the moment may have passed while the wait is right.
        reset_at = _reset_at(told["reset-after-seconds"], asked)
    return Window(
        name=_length_name(minutes) if minutes else slot,
        share=_left(used / 100.0),
        told_at=asked.now,
        model=model,
        reset_at=reset_at,
        length_s=minutes * 60.0 if minutes else None,
    )


#: What Copilot calls its windows, in headers and in frames; the others are of a month.
_SNAPSHOTS = {
    "session": ("5h", 18_000.0),
    "5hour-session-ratelimits": ("5h", 18_000.0),
    "weekly": ("7d", 604_800.0),
    "weekly-session-ratelimits": ("7d", 604_800.0),
}
#: What an editor completes is counted apart, and is no request that names a model.
_COMPLETIONS = "completions"


#: What a frame calls the parts of a snapshot.
_LONG_NAMES = {
    "ent": "entitlement",
    "ovPerm": "overage_permitted",
    "rem": "percent_remaining",
    "rst": "reset_date",
}


def snapshot_parts(value: object) -> Told:
    """Return the parts of a snapshot: `ent=300&rem=29.7&rst=2026-05-01T00:00:00Z`, or an object.

    What is encoded in a part is left to those who read it.
    """
    if isinstance(value, str):
        pairs = (part.partition("=") for part in value[:_MAX_VALUE_CHARS].split("&"))
        return {name: told for name, _, told in pairs}
    told = value if isinstance(value, dict) else {}
    return {short: told.get(long) for short, long in _LONG_NAMES.items()}


def snapshot(name: str, told: Told, asked: Asked) -> Window | None:
    """Read the parts of a snapshot: `rem` is a percentage, `ent=-1` says that it has no limit."""
    percent = _number(told.get("rem"))
    if percent is None or str(told.get("ent")) in ("-1", "-1.0"):
        return None
    name = name.lower()[:_MAX_NAME_CHARS]
    short, length_s = _SNAPSHOTS.get(name, (name, _UNIT_S["month"]))
    return Window(
        name=short,
        share=min(percent / 100.0, 1.0),
        told_at=asked.now,
        model=_COMPLETIONS if short == _COMPLETIONS else None,
        reset_at=_reset_at(told.get("rst"), asked),
        length_s=length_s,
    )


# -- values


def _left(used: float) -> float:
    # Without the last digits of a difference: 98 % used leaves 0.02, not less.
    return round(max(1.0 - used, 0.0), 6)


def _length_name(minutes: float) -> str:
    """Return how people call a window: `30m`, `5h`, `7d`."""
    for unit, size in (("d", 1440.0), ("h", 60.0)):
        if minutes >= size and minutes % size == 0:
            return f"{minutes / size:.0f}{unit}"
    return f"{minutes:.0f}m"


def _number(value: object) -> float | None:
    """Return what is not negative and finite, as a header or as a JSON number."""
    if isinstance(value, str):
        # Most are whole numbers, for which a pattern costs several times as much.
        plain = value.isdigit() and value.isascii() and len(value) <= _MAX_DIGITS
        return float(value) if plain or _NUMBER.fullmatch(value := value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _MAX_NUMBER else None


def _reset_at(value: object, asked: Asked) -> float:
    """Return when a window is whole again, infinity when that cannot be read."""
    if not isinstance(value, str):
        value = _number(value)
        if value is None:
            return inf
    wait, moment = _reset(value)
    if moment is not None and asked.wall_now is not None:
        wait = max(moment - asked.wall_now, 0.0)
    return inf if wait is None or wait > reset_hints.MAX_WAIT_S else asked.now + wait


@lru_cache(maxsize=1024)
def _reset(value: str | float) -> tuple[float | None, float | None]:
    """Return (wait in seconds, None) or (None, moment in seconds since the epoch).

    Remembered: the same come again and again, a window of a week has one reset.
    """
    wait = reset_hints.reset(value, None)
    return wait, reset_hints.moment(value) if wait is None else None
