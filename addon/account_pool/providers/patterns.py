"""Regular expressions a user wrote, bounded so that no answer makes one run for ever.

Python's `re` backtracks: a repetition inside a repetition takes exponential time on text
that almost matches. Those are refused when the file is read; what is left runs on a
short text only.
"""

from __future__ import annotations

import re

MAX_PATTERN_CHARS = 200
#: How much of a message or header is searched.
MAX_TEXT_CHARS = 1024
#: Each open repetition (*, +, {n,}) may cost another pass over the text.
MAX_OPEN_REPEATS = 2

_REPEAT = re.compile(r"[*+]|\{\d*(?P<comma>,)?\d*\}|\?")


def compile_pattern(text: str) -> re.Pattern[str]:
    """Return the pattern; case makes no difference. Raises ValueError that says why not."""
    if len(text) > MAX_PATTERN_CHARS:
        raise ValueError(f"is longer than {MAX_PATTERN_CHARS} characters")
    try:
        pattern = re.compile(text, re.IGNORECASE)
    except re.error as error:
        where = "" if error.pos is None else f" at character {error.pos + 1}"
        raise ValueError(f"is not a regular expression: {error.msg}{where}") from None
    except (OverflowError, RecursionError):
        raise ValueError("is not a regular expression") from None
    _check_repeats(text)
    return pattern


def search(pattern: re.Pattern[str], text: str) -> bool:
    """Say whether *pattern* occurs in the beginning of *text*."""
    return pattern.search(text[:MAX_TEXT_CHARS]) is not None


def _check_repeats(text: str) -> None:
    """Refuse a repeated group that repeats or chooses inside. Raises ValueError."""
    varies = [False]
    count, i = 0, 0
    while i < len(text):
        char, closed_varying = text[i], False
        if char == "[":
            i = _end_of_class(text, i)
        elif char == "\\":
            i += 1
        elif char == "(":
            varies.append(False)
            # What follows a "(?" is no repetition.
            i += 1 if text[i + 1 : i + 2] == "?" else 0
        elif char == ")" and len(varies) > 1:
            closed_varying = varies.pop()
            varies[-1] = varies[-1] or closed_varying
        elif char == "|":
            varies[-1] = True
        i += 1
        repeat = _REPEAT.match(text, i) if char not in "(|^" else None
        if repeat is None:
            continue
        i = repeat.end()
        if closed_varying and repeat[0] != "?":
            raise ValueError(
                "repeats a group that repeats or chooses inside, which can take for ever"
            )
        is_open = repeat[0] in "*+" or repeat["comma"] is not None
        varies[-1] = varies[-1] or is_open or repeat[0] == "?"
        count += is_open
        if text[i : i + 1] in ("?", "+"):
            i += 1  # lazy or possessive: part of the repetition
    if count > MAX_OPEN_REPEATS:
        raise ValueError(f"has more than {MAX_OPEN_REPEATS} of *, + and {{n,m}}")


def _end_of_class(text: str, start: int) -> int:
    """Return where the class [...] that begins at *start* ends."""
    i = start + 1
    i += text[i : i + 1] == "^"
    i += text[i : i + 1] == "]"
    while i < len(text) and text[i] != "]":
        i += 2 if text[i] == "\\" else 1
    return i
