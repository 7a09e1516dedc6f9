"""SIGHUP, and the terminal the proxy was started in, which may be closed while it runs.

SIGHUP means: read accounts.yaml again, as for other servers. It also means that the terminal
was closed, which ends a proxy that was started in it, as it always has.

A write to a closed terminal fails, for which mitmdump exits at once. A read returns its end,
and the console reads there again and again: older ones (urwid before 3) never return to the
event loop, and so never see a signal.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

#: Input, output, errors.
STANDARD = (0, 1, 2)
#: Undoes `on_sighup`. Argument: the process ends, and no SIGHUP may cut that short.
Undo = Callable[[bool], object]


class Terminal:
    """What standard input, output and errors are, where that is a terminal."""

    def __init__(self, numbers: tuple[int, int, int] = STANDARD) -> None:
        """Note which of the descriptors *numbers* are a terminal now."""
        self._input, *_ = numbers
        self._of_terminal = [number for number in numbers if os.isatty(number)]

    @property
    def is_gone(self) -> bool:
        """Return whether there was a terminal that is closed now."""
        return not all(map(os.isatty, self._of_terminal))

    def write_nowhere(self) -> None:
        """If it is gone, discard what is written to it. Safe in a signal handler."""
        for number in self._of_terminal:
            if number == self._input or os.isatty(number):
                continue
            # Fails if the process is out of descriptors (`descriptors.py`).
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)

    def let_go(self) -> None:
        """If it is gone, stop writing to it and reading from it. Needs the running event loop."""
        if self.is_gone:
            self.write_nowhere()
            asyncio.get_running_loop().remove_reader(self._input)

    def watch(self, screen: Any, gone: Callable[[], object]) -> None:
        """Call *gone* instead of reading from it, once it is gone.

        SIGHUP may not come: it may be ignored, or another process may control the terminal.

        Args:
            screen: the console's, of urwid; anything else is left alone.
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


def on_sighup(
    reload: Callable[[], object], end: Callable[[], object], at_once: Callable[[], object]
) -> Undo:
    """Call *reload* at a SIGHUP, or *end* if our terminal is gone; return what undoes it.

    Both are called by the event loop; *at_once* is called before, in the signal handler, and
    must raise nothing. Does nothing where there is no SIGHUP, or in another thread than the main.
    """
    number = getattr(signal, "SIGHUP", None)
    if number is None:
        return _nothing
    # `nohup` has it ignored: its user wants the proxy to outlive the terminal.
    in_terminal = _has_terminal() and signal.getsignal(number) is not signal.SIG_IGN

    def hung_up() -> None:
        if in_terminal and not _has_terminal():
            end()
        else:
            reload()

    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(number, hung_up)
    except (NotImplementedError, RuntimeError, ValueError):
        return _nothing
    # The loop still calls its own handler: it hears of every signal by a descriptor.
    signal.signal(number, lambda *_: at_once())
    signal.siginterrupt(number, False)

    def undo(ends: bool) -> None:
        if not loop.is_closed():
            loop.remove_signal_handler(number)
            if ends:
                signal.signal(number, signal.SIG_IGN)

    return undo


def _nothing(_ends: bool) -> None:
    """There is nothing to undo."""


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
