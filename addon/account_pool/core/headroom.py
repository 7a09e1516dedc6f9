"""How much of its allowance an account has left, from the headers of any answer.

Knows the families of headers, not the providers: `x-ratelimit-*` (OpenAI and many who
followed), `anthropic-ratelimit-*`, Copilot's `x-quota-snapshot-*` and
`x-usage-ratelimit-*` (providers.md, sections 1.5, 2.3 and 4).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs

from account_pool.core import reset_hints

_LIMITS = re.compile(
    r"(?P<family>x|anthropic)-ratelimit-"
    r"(?:(?P<what>limit|remaining|reset)-(?P<kind>[a-z-]+)"
    r"|(?P<kind2>requests|tokens|input-tokens|output-tokens)-(?P<what2>limit|remaining|reset))\Z"
)
_SNAPSHOT = re.compile(r"x-(?:quota-snapshot|usage-ratelimit)-[a-z0-9_-]+\Z")


@dataclass(frozen=True, slots=True)
class Headroom:
    """The tightest window an answer tells of.

    Attributes:
        share: what remains of it, 0 to 1.
        reset_s: seconds until it is whole again; None when the answer does not say.
    """

    share: float
    reset_s: float | None = None


def read(fields: Iterable[tuple[bytes, bytes]], wall_now: float) -> Headroom | None:
    """Return the smallest remaining share in *fields* (raw headers), None if none is told.

    Total: whatever a header holds, nothing is raised.
    """
    windows = [*_windows(fields, wall_now)]
    return min(windows, key=lambda window: window.share, default=None)


def _windows(fields: Iterable[tuple[bytes, bytes]], wall_now: float) -> Iterator[Headroom]:
    parts: dict[str, dict[str, str]] = {}
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if match := _LIMITS.match(name):
            kind, what = match["kind"] or match["kind2"], match["what"] or match["what2"]
            parts.setdefault(kind, {})[what] = value
        elif _SNAPSHOT.match(name) and (window := _snapshot(value, wall_now)):
            yield window
    for told in parts.values():
        limit, remaining = _number(told.get("limit")), _number(told.get("remaining"))
        if limit and remaining is not None:
            share = min(max(remaining / limit, 0.0), 1.0)
            yield Headroom(share, _reset(told.get("reset"), wall_now))


def _snapshot(value: str, wall_now: float) -> Headroom | None:
    """Read Copilot's `ent=300&rem=29.7&rst=2026-05-01T00:00:00Z`; `rem` is a percentage."""
    told = {key: values[0] for key, values in parse_qs(value).items()}
    percent = _number(told.get("rem"))
    if percent is None or told.get("ent") == "-1":
        return None  # unlimited
    return Headroom(min(max(percent / 100, 0.0), 1.0), _reset(told.get("rst"), wall_now))


def _reset(text: str | None, wall_now: float) -> float | None:
    return None if text is None else reset_hints.reset(text, wall_now)


def _number(text: str | None) -> float | None:
    """Return a plain number; None for anything else, infinities included."""
    if text is None or not re.fullmatch(r"\d{1,15}(\.\d{1,6})?", text.strip()):
        return None
    return float(text)
