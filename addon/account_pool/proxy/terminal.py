"""The terminal the proxy was started in, which may be closed while it runs.

Whoever writes to it then gets an error, for which mitmdump exits at once. Whoever reads
from it is at its end, and the console reads there again and again: older ones (urwid
before 3) never come back to the event loop, and so hear of no signal any more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

#: Input, output, errors.
STANDARD = (0, 1, 2)


class Terminal:
    """What standard input, output and errors are, where that is a terminal."""

    def __init__(self, numbers: tuple[int, int, int] = STANDARD) -> None:
        """Look what *numbers*, which are descriptors, are now."""
        self._input, *_ = numbers
        self._of_terminal = [number for number in numbers if os.isatty(number)]

    @property
    def is_gone(self) -> bool:
        """Say whether there was a terminal and is none any more."""
        return not all(map(os.isatty, self._of_terminal))

    def write_nowhere(self) -> None:
        """If it is gone, have what is written to it vanish. For a signal handler, too."""
        for number in self._of_terminal:
            if number == self._input or os.isatty(number):
                continue
            # Without a descriptor to spare (`descriptors.py`) it stays as it is.
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)

    def let_go(self) -> None:
        """If it is gone, neither write to it nor read from it. In the event loop."""
        if self.is_gone:
            self.write_nowhere()
            asyncio.get_running_loop().remove_reader(self._input)

    def watch(self, screen: Any, gone: Callable[[], object]) -> None:
        """Have *gone* called in place of reading from it, once it is gone.

        There need not be a signal: it may be ignored, or another process have the terminal.

        Args:
            screen: urwid's, of the console; anything else is left alone.
        """
        read = getattr(screen, "get_available_raw_input", None)
        if read is None:
            return

        def read_unless_gone() -> Any:
            if not self.is_gone:
                return read()
            gone()
            return []

        screen.get_available_raw_input = read_unless_gone
