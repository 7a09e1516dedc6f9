"""What the headers of an answer say of windows.

Knows the families of headers, not the providers: a service that follows another one's API
mostly follows its headers too. What their values mean is read in `headroom_words.py`.
Sections named here are those of providers.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from account_pool.core import reset_hints
from account_pool.core.headroom import Window
from account_pool.core.headroom_words import (
    Asked,
    Reader,
    Told,
    counted,
    plan,
    snapshot,
    snapshot_parts,
    unified,
)

# What is longer is none of ours.
_MAX_NAME_BYTES = 100
_MAX_VALUE_BYTES = 500


def _snapshot(name: str, told: Told, asked: Asked) -> Window | None:
    return snapshot(name, snapshot_parts(told["query"]), asked)


#: The headers of each family: who reads their values, and how their names are spelled, with
#: the window and what is said of it. The first that matches counts.
_FAMILIES: tuple[tuple[Reader, re.Pattern[str]], ...] = (
    # Subscriptions of Claude (section 5): `5h`, `7d` of the account, `7d_opus` of a family.
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
_LIMIT_NAME = re.compile(r"x-(?P<limit>[a-z0-9-]+)-(?P<what>limit-name|active-limit)")


class _Part(NamedTuple):
    """One window, as the headers of an answer spell it.

    Attributes:
        read: what its values mean.
        name: of the window.
        at: what each header says, and where it stands among all.
    """

    read: Reader
    name: str
    at: tuple[tuple[str, int], ...]


class _Layout(NamedTuple):
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
        name = raw_name[:_MAX_NAME_BYTES].decode("latin-1").lower()
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
            told = found.groupdict()
            return read, told["window"] or "", told.get("what", "query")
    return None


def read(fields: Sequence[tuple[bytes, bytes]], asked: Asked) -> list[Window]:
    """Return the windows that *fields* (raw headers) tell of.

    Moments are read by the answer's own `date`, so that a skewed clock cancels out.
    """
    layout = _layout(tuple([name for name, _ in fields]))
    if not layout.parts:
        return []
    if layout.date is not None and (at := _date(fields[layout.date][1])) is not None:
        asked = Asked(asked.model, asked.now, at)
    windows = []
    for part in layout.parts:
        told = {what: fields[i][1][:_MAX_VALUE_BYTES].decode("latin-1") for what, i in part.at}
        if window := part.read(part.name, told, asked):
            windows.append(window)
    return windows


@lru_cache(maxsize=16)
def _date(value: bytes) -> float | None:
    return reset_hints.http_date(value.decode("latin-1"))
