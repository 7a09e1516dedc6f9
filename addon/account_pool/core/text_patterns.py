"""Patterns over the prose of vendors, and one spelling of what looks alike in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any


class LazyPattern:
    """`re.compile` with the cost at the first search; the same functions from then on.

    The vocabulary of refusals takes 30 ms to compile; a proxy that starts has seen none yet.
    Nor does it need those of every provider.
    """

    def __init__(self, pattern: str, flags: int = 0) -> None:
        self.pattern = pattern
        self._flags = flags

    @cached_property
    def compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern, self._flags)

    @cached_property
    def search(self) -> Callable[[str], re.Match[str] | None]:
        return self.compiled.search

    @cached_property
    def match(self) -> Callable[[str], re.Match[str] | None]:
        return self.compiled.match

    @cached_property
    def fullmatch(self) -> Callable[[str], re.Match[str] | None]:
        return self.compiled.fullmatch

    @cached_property
    def findall(self) -> Callable[[str], list[Any]]:
        return self.compiled.findall

    @cached_property
    def sub(self) -> Callable[[str, str], str]:
        return self.compiled.sub


#: Full-width forms (Chinese punctuation and digits), typographic apostrophes, hard blanks.
_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_ASCII |= {0x2018: 0x27, 0x2019: 0x27, 0x00A0: 0x20, 0x3000: 0x20}


def plain(text: str) -> str:
    """Return *text*, of the same length, with one spelling for what looks alike."""
    return text if text.isascii() else text.translate(_ASCII)
