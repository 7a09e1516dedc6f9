"""SIGHUP means: read accounts.yaml again, as for other servers.

It also means that the terminal was closed, which ends a proxy that was started in it, as
it always has.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable


def listen(reload: Callable[[], object], end: Callable[[], object]) -> Callable[[], None]:
    """Call *reload* at a SIGHUP, or *end* if our terminal is gone; return what undoes it.

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
    return lambda: _undo(loop, number)


def _undo(loop: asyncio.AbstractEventLoop, number: int) -> None:
    if not loop.is_closed():
        loop.remove_signal_handler(number)


def _nothing() -> None:
    """There is nothing to be undone."""


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
