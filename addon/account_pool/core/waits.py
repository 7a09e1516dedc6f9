"""Where an answer names the moment it is worth coming back.

Each function finds one spelling in the facts, in seconds from now, or None; the values
themselves are read by `reset_hints.py`. A provider lists those its vendor uses, best
first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from account_pool.core import reset_hints, reset_sentences
from account_pool.core.error_facts import ErrorFacts

#: Finds one spelling of a wait in the facts, seconds.
Wait = Callable[[ErrorFacts], float | None]

_WINDOW_NAMES = {1.0: "second", 60.0: "minute", 3600.0: "hour", 86_400.0: "day"}


def retry_after_ms(facts: ErrorFacts) -> float | None:
    """`retry-after-ms`: OpenAI, Azure."""
    return reset_hints.milliseconds(facts.headers.get("retry-after-ms"))


def retry_after(facts: ErrorFacts) -> float | None:
    """`retry-after`."""
    return reset_hints.retry_after(facts.headers.get("retry-after"), facts.now, facts.zone)


def prose(facts: ErrorFacts) -> float | None:
    """The sentence: "Please try again in 1.574s"."""
    return reset_sentences.sentence(facts.message, facts.now, facts.zone)


def body_reset(facts: ErrorFacts) -> float | None:
    """Fields of the error object: a wait before a moment, which may be outdated."""
    for holder in (facts.error, _metadata(facts)):
        for key in ("resets_in_seconds", "reset_after_seconds", "retry_after_seconds"):
            if (wait := reset_hints.seconds(holder.get(key))) is not None:
                return wait
        for key in ("retry_after", "resets_at", "reset_at"):
            if (wait := reset_hints.reset(holder.get(key), facts.now, facts.zone)) is not None:
                return wait
    return None


def _metadata(facts: ErrorFacts) -> Mapping[str, Any]:
    metadata = facts.error.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def spent_window(facts: ErrorFacts) -> float | None:
    """The latest reset among the windows of which nothing remains.

    `x-ratelimit-remaining-tokens: 0` goes with `x-ratelimit-reset-tokens`.
    """
    return _latest(
        reset_hints.reset(facts.headers.get(name.replace("remaining", "reset")), facts.now)
        for name, value in facts.headers.items()
        if "remaining" in name and reset_hints.seconds(value) == 0
    )


def named_window(facts: ErrorFacts) -> float | None:
    """The reset header of the window the message names, the right unit before others.

    "Tokens per hour limit exceeded" goes with `x-ratelimit-reset-tokens-hour`.
    """
    window = _WINDOW_NAMES.get(facts.window_s or 0.0)
    if window is None:
        return None
    names = [n for n in facts.headers if "reset" in n and n.endswith("-" + window)]
    text = facts.message.lower()
    exact = [n for n in names if any(u in n and u in text for u in ("token", "request"))]
    return _latest(reset_hints.reset(facts.headers[n], facts.now) for n in exact or names)


def lone_reset(facts: ErrorFacts) -> float | None:
    """A `...ratelimit-reset` that is the only one, so that it must be the one meant."""
    names = [n for n in facts.headers if "ratelimit" in n and "reset" in n]
    return reset_hints.reset(facts.headers[names[0]], facts.now) if len(names) == 1 else None


#: Explicit waits before sentences before what must be concluded from windows.
USUAL_WAITS: tuple[Wait, ...] = (
    body_reset,
    retry_after_ms,
    retry_after,
    prose,
    named_window,
    spent_window,
    lone_reset,
)


def first_wait(facts: ErrorFacts, waits: Iterable[Wait]) -> float | None:
    """Return the first wait that is not over; 0 if all that are named are; else None."""
    over = None
    for wait in waits:
        seconds = wait(facts)
        if seconds:
            return seconds
        over = seconds if seconds is not None else over
    return over


def _latest(waits: Iterable[float | None]) -> float | None:
    return max((wait for wait in waits if wait is not None), default=None)
