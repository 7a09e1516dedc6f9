"""SIGHUP means: read accounts.yaml again, as for other servers.

It also means that the terminal was closed, which ends a proxy that was started in it, as
it always has.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

#: Undoes it; True: the process ends, and no hangup is to cut that short.
Undo = Callable[[bool], object]


def listen(
    reload: Callable[[], object], end: Callable[[], object], at_once: Callable[[], object]
) -> Undo:
    """Call *reload* at a SIGHUP, or *end* if our terminal is gone; return what undoes it.

    Both are called in the loop, *at_once* before, wherever our code is: it raises nothing.
    Nothing happens where there is no such signal, or this is no main thread.
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
    # The loop is told all the same: of each signal that has a handler.
    signal.signal(number, lambda *_: at_once())
    signal.siginterrupt(number, False)

    def undo(ends: bool) -> None:
        if not loop.is_closed():
            loop.remove_signal_handler(number)
            if ends:
                signal.signal(number, signal.SIG_IGN)

    return undo


def _nothing(_ends: bool) -> None:
    """There is nothing to be undone."""


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
