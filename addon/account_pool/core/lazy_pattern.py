"""A regular expression that is compiled when it is first used.

The vocabulary of refusals takes 30 ms to compile; a proxy that starts has seen none yet.
"""

from __future__ import annotations

import re


class LazyPattern:
    """`re.compile` with the cost at the first search; the same result from then on."""

    __slots__ = ("_compiled", "_flags", "_text")

    def __init__(self, text: str, flags: int = 0) -> None:
        self._text = text
        self._flags = flags
        self._compiled: re.Pattern[str] | None = None

    @property
    def compiled(self) -> re.Pattern[str]:
        if self._compiled is None:
            self._compiled = re.compile(self._text, self._flags)
        return self._compiled

    def search(self, text: str) -> re.Match[str] | None:
        return self.compiled.search(text)

    def match(self, text: str) -> re.Match[str] | None:
        return self.compiled.match(text)
