"""How responses report windows: in headers, JSON events and bodies.

Knows families of spellings, not providers: a service that follows another one's API mostly
follows its headers too. Each family has a reader, which makes the window of what was said
of it: `remaining` of a `limit`, `used-percent`, `rem`. Total: whatever a value is, nothing
is raised, and what cannot be read is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from math import inf
from typing import Any

from msgspec import Struct

from account_pool.core import reset_hints
from account_pool.core.headroom import Window
from account_pool.core.json_values import decoded, members
from account_pool.core.meaning import LazyPattern

# Bounds on what is read of a hostile response.
_MAX_NAME_CHARS = 100
_MAX_VALUE_CHARS = 500
_MAX_NUMBER = 1e15
_MAX_DIGITS = 15
_MAX_ITEMS = 16
_MAX_HEADERS = 64
_NUMBER = LazyPattern(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")

_UNIT_S = {
    "second": 1.0,
    "minute": 60.0,
    "hour": 3600.0,
    "day": 86_400.0,
    "week": 604_800.0,
    "month": 2_592_000.0,
}
#: By the letter behind the length of a window: `5h`, `7d`.
LETTER_S = {"m": 60.0, "h": 3600.0, "d": 86_400.0}


class ResponseContext(Struct, frozen=True):
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
#: What providers call windows that they count in requests or tokens.
COUNTED_WINDOWS = (
    *_COUNTS,
    *(f"{count}-{per}" for count in _COUNTS[:2] for per in _PER),
    *_PER,
)

#: What is said of one window, by the word that says it: `limit`, `reset`.
Parts = Mapping[str, object]
#: (name of the window, what is parts, of which answer) -> the window
Reader = Callable[[str, Parts, ResponseContext], Window | None]


# -- what the words of a family mean


def counted(name: str, parts: Parts, context: ResponseContext) -> Window | None:
    """Read `limit`, `remaining` and `reset`, counted for the model that was asked for.

    A limit without what remains says nothing, nor does the reverse, unless that is 0.
    """
    limit, remaining = _number(parts.get("limit")), _number(parts.get("remaining"))
    if remaining is None or limit == 0.0 or (limit is None and remaining > 0.0):
        return None
    return Window(
        name=name or "requests",
        share=min(remaining / limit, 1.0) if limit else 0.0,
        told_at=context.now,
        model=context.model,
        reset_at=_reset_at(parts.get("reset"), context),
        length_s=_UNIT_S.get(name.rpartition("-")[2]),
        limit=limit,
        remaining=remaining,
    )


#: Of a window of a Claude subscription that is spent, whatever its share. `allowed_warning` and
#: `queueing_soft` still serve.
REJECTED = frozenset({"rejected", "rate_limited", "blocked", "queueing_hard", "payment_required"})


def unified(name: str, parts: Parts, context: ResponseContext) -> Window | None:
    """Read `utilization` (0 to 1, may exceed 1), `status` and `reset` (epoch seconds)."""
    used = _number(parts.get("utilization"))
    if str(parts.get("status")).strip().lower() in REJECTED:
        used = 1.0
    if used is None:
        return None
    length, _, family = name.partition("_")
    return Window(
        name=length,
        share=_left(used),
        told_at=context.now,
        # A code name (`7d_oi`) is part of no model's name, and covers none.
        model=f"*{family}*" if family else None,
        reset_at=_reset_at(parts.get("reset"), context),
        length_s=float(length[:-1]) * LETTER_S[length[-1]],
    )


def plan(name: str, parts: Parts, context: ResponseContext) -> Window | None:
    """Read a window of the account (`codex-primary`), or of a named limit."""
    limit, _, slot = name.rpartition("-")
    if limit == "codex":
        return planned(slot, parts, None, context)
    # The answer says by which limit the request was counted. The others have a name that is
    # a model's ("GPT-5.3-Codex-Spark") or that of a feature, which covers none.
    active = str(parts.get("active-limit")).strip().lower().replace("_", "-")
    counts = active == limit and context.model is not None
    model = context.model if counts else str(parts.get("limit-name", limit)).strip().lower()
    return planned(slot, parts, model, context)


def planned(slot: str, parts: Parts, model: str | None, context: ResponseContext) -> Window | None:
    """Read `used-percent`, `window-minutes`, and `reset-at` or `reset-after-seconds`."""
    used = _number(parts.get("used-percent"))
    if used is None:
        return None
    minutes = _number(parts.get("window-minutes"))
    reset_at = _reset_at(parts.get("reset-at"), context)
    if (reset_at <= context.now or reset_at == inf) and "reset-after-seconds" in parts:
        # By a clock that is wrong the moment may have passed while the wait is right.
        reset_at = _reset_at(parts["reset-after-seconds"], context)
    return Window(
        name=_length_name(minutes) if minutes else slot,
        share=_left(used / 100.0),
        told_at=context.now,
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


def snapshot_parts(value: object) -> Parts:
    """Return the parts of a snapshot: `ent=300&rem=29.7&rst=2026-05-01T00:00:00Z`, or an object.

    What is encoded in a part is left to those who read it.
    """
    if isinstance(value, str):
        pairs = (part.partition("=") for part in value[:_MAX_VALUE_CHARS].split("&"))
        return {name: said for name, _, said in pairs}
    parts = value if isinstance(value, dict) else {}
    return {short: parts.get(long) for short, long in _LONG_NAMES.items()}


def snapshot(name: str, parts: Parts, context: ResponseContext) -> Window | None:
    """Read the parts of a snapshot: `rem` is a percentage, `ent=-1` says that it has no limit."""
    percent = _number(parts.get("rem"))
    if percent is None or str(parts.get("ent")) in ("-1", "-1.0"):
        return None
    name = name.lower()[:_MAX_NAME_CHARS]
    short, length_s = _SNAPSHOTS.get(name, (name, _UNIT_S["month"]))
    return Window(
        name=short,
        share=min(percent / 100.0, 1.0),
        told_at=context.now,
        model=_COMPLETIONS if short == _COMPLETIONS else None,
        reset_at=_reset_at(parts.get("rst"), context),
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


def _reset_at(value: object, context: ResponseContext) -> float:
    """Return when a window is whole again, infinity when that cannot be read."""
    if not isinstance(value, str):
        value = _number(value)
        if value is None:
            return inf
    wait, moment = _reset(value)
    if moment is not None and context.wall_now is not None:
        wait = max(moment - context.wall_now, 0.0)
    return inf if wait is None or wait > reset_hints.MAX_WAIT_S else context.now + wait


@lru_cache(maxsize=1024)
def _reset(value: str | float) -> tuple[float | None, float | None]:
    """Return (wait in seconds, None) or (None, moment in seconds since the epoch).

    Remembered: the same come again and again, a window of a week has one reset.
    """
    wait = reset_hints.reset(value, None)
    return wait, reset_hints.moment(value) if wait is None else None


# -- headers


def _snapshot(name: str, parts: Parts, context: ResponseContext) -> Window | None:
    return snapshot(name, snapshot_parts(parts["query"]), context)


#: The headers of each family: who reads their values, and how their names are spelled, with
#: the window and what is said of it. The first that matches counts.
_FAMILIES: tuple[tuple[Reader, re.Pattern[str]], ...] = (
    # Subscriptions of Claude: `5h`, `7d` of the account, `7d_opus` of a family.
    (
        unified,
        re.compile(
            r"anthropic-ratelimit-unified-(?P<window>[0-9]{1,3}[mhd](?:_\w+)?)"
            r"-(?P<what>utilization|status|reset)"
        ),
    ),
    # OpenAI (2.3) and who followed it (8), the window in the name with some (Cerebras,
    # Mistral); Anthropic's keys (4) put the word last.
    (
        counted,
        re.compile(
            r"(?:x-|anthropic-)?ratelimit(?:bysize)?(?!-unified-)(?:-(?P<window>[a-z0-9-]+?))?"
            r"-(?P<what>limit|remaining|reset)"
        ),
    ),
    (
        counted,
        re.compile(
            r"(?:x-|anthropic-)?ratelimit(?:bysize)?-(?P<what>limit|remaining|reset)"
            r"-(?P<window>[a-z0-9-]+)"
        ),
    ),
    # Plans of ChatGPT (3.4): two windows of the account, and two of each named limit.
    (
        plan,
        re.compile(
            r"x-(?P<window>[a-z0-9-]+-(?:primary|secondary))"
            r"-(?P<what>used-percent|window-minutes|reset-at|reset-after-seconds)"
        ),
    ),
    # GitHub Copilot (1.5): quotas of a month, and windows above half of their use.
    (_snapshot, re.compile(r"x-(?:quota-snapshot|usage-ratelimit)-(?P<window>[\w-]+)")),
)
#: What names the limits of a plan: each its own, and the account's the one in force.
_LIMIT_NAME = LazyPattern(r"x-(?P<limit>[a-z0-9-]+)-(?P<what>limit-name|active-limit)")


class _Part(Struct, frozen=True):
    """One window, as the headers of an answer spell it.

    Attributes:
        read: what its values mean.
        name: of the window.
        at: what each header says, and where it stands among all.
    """

    read: Reader
    name: str
    at: tuple[tuple[str, int], ...]


class _Layout(Struct, frozen=True):
    """What the headers of an answer tell of: windows, and where its `date` stands."""

    parts: tuple[_Part, ...]
    date: int | None


@lru_cache(maxsize=256)
def _layout(names: tuple[bytes, ...]) -> _Layout:
    """Recognise the headers of these *names*.

    Remembered: a provider sends the same names with each answer, and to recognise them costs
    more than to read the values.
    """
    windows: dict[tuple[Reader, str], dict[str, int]] = {}
    limits: dict[str, dict[str, int]] = {}
    date = None
    for index, raw_name in enumerate(names):
        name = raw_name[:_MAX_NAME_CHARS].decode("latin-1").lower()
        if name == "date":
            date = index
        elif found := _LIMIT_NAME.fullmatch(name):
            limits.setdefault(found["limit"], {})[found["what"]] = index
        elif place := _place(name):
            read, window, what = place
            windows.setdefault((read, window), {})[what] = index
    parts = []
    for (read, window), at in windows.items():
        if read is plan:
            at |= {**limits.get("codex", {}), **limits.get(window.rpartition("-")[0], {})}
        parts.append(_Part(read, window, tuple(at.items())))
    return _Layout(tuple(parts), date)


def _place(name: str) -> tuple[Reader, str, str] | None:
    """Return whose header *name* is, of which window, and what it says of it."""
    for read, spelling in _FAMILIES:
        if found := spelling.fullmatch(name):
            parts = found.groupdict()
            return read, parts["window"] or "", parts.get("what", "query")
    return None


def from_headers(fields: Sequence[tuple[bytes, bytes]], context: ResponseContext) -> list[Window]:
    """Return the windows that *fields* (raw headers) tell of.

    Moments are read by the answer's own `date`, so that a skewed clock cancels out.
    """
    layout = _layout(tuple([name for name, _ in fields]))
    if not layout.parts:
        return []
    if layout.date is not None and (at := _date(fields[layout.date][1])) is not None:
        context = ResponseContext(context.model, context.now, at)
    windows = []
    for part in layout.parts:
        parts = {what: fields[i][1][:_MAX_VALUE_CHARS].decode("latin-1") for what, i in part.at}
        if window := part.read(part.name, parts, context):
            windows.append(window)
    return windows


@lru_cache(maxsize=16)
def _date(value: bytes) -> float | None:
    return reset_hints.http_date(value.decode("latin-1"))


# -- events and bodies: only where a provider says that it sends them (`Provider.headroom_marks`)


def from_events(content: bytes, marks: tuple[bytes, ...], context: ResponseContext) -> list[Window]:
    """Return the windows that *content* reports: one frame, or some events of a stream.

    *marks*: one of them stands in every event that tells of any.
    """
    windows: list[Window] = []
    for line in content.split(b"\n"):
        if any(mark in line for mark in marks):
            windows += from_event(decoded(line.removeprefix(b"data:")), context)
    return windows


def from_event(event: Any, context: ResponseContext) -> list[Window]:
    """Return the windows that one event tells of."""
    if not isinstance(event, dict):
        return []
    return [window for read_one in _READERS for window in read_one(event, context)]


# -- kinds of events


def _codex(event: Mapping[str, Any], context: ResponseContext) -> Iterator[Window]:
    """`codex.rate_limits` of Codex (3.4), in a stream or a frame.

    Without a name it is about the account; names are those of openai/codex
    `codex-rs/codex-api/src/rate_limits.rs`, the second one is that of a model.
    """
    if event.get("type") != "codex.rate_limits":
        return
    limit, name = event.get("metered_limit_name"), event.get("limit_name")
    named = next((text for text in (name, limit) if isinstance(text, str)), "codex")
    model = None if "codex" in (limit, named) else named[:_MAX_NAME_CHARS].lower()
    limits = members(event.get("rate_limits"))
    for slot in ("primary", "secondary"):
        parts = {key.replace("_", "-"): value for key, value in members(limits.get(slot)).items()}
        if window := planned(slot, parts, model, context):
            yield window


def _copilot(event: Mapping[str, Any], context: ResponseContext) -> Iterator[Window]:
    """`copilot_quota_snapshots` of Copilot (1.4, 1.5), beside whatever the frame is about."""
    snapshots = members(event.get("copilot_quota_snapshots"))
    for name, value in islice(snapshots.items(), _MAX_ITEMS):
        if window := snapshot(name, snapshot_parts(value), context):
            yield window


def _headers_inside(event: Mapping[str, Any], context: ResponseContext) -> Iterator[Window]:
    """Frames of Codex that carry headers: errors, `codex.response.metadata` (3.4)."""
    headers = islice(members(event.get("headers")).items(), _MAX_HEADERS)
    fields = [
        (name.encode(errors="replace"), str(value).encode(errors="replace"))
        for name, value in headers
        if isinstance(value, str | int | float)
    ]
    yield from from_headers(fields, context)


_READERS: tuple[Callable[[Mapping[str, Any], ResponseContext], Iterator[Window]], ...] = (
    _codex,
    _copilot,
    _headers_inside,
)
