"""This process: its terminal closes, it is out of file descriptors, it collects garbage.

SIGHUP means: read accounts.yaml again, as for other servers. It also means that the terminal
was closed, which ends a proxy that was started in it, as it always has. A write to a closed
terminal fails, for which mitmdump exits at once. A read returns its end, and the console reads
there again and again: older ones (urwid before 3) never return to the event loop, and so never
see a signal.

Out of descriptors: that is logged once a minute with the remedy; the proxy recovers by itself.
asyncio reports each `accept` that fails for it to the loop's exception handler, a hundred times
in a row, and schedules as many retries in a second: soon the proxy would do nothing else.

No garbage is collected while much is made that stays.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


# -- its terminal

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
            # Fails if the process is out of descriptors.
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
        return lambda _ends: None
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
        return lambda _ends: None
    # The loop still calls its own handler: it hears of every signal by a descriptor.
    signal.signal(number, lambda *_: at_once())
    signal.siginterrupt(number, False)

    def undo(ends: bool) -> None:
        if not loop.is_closed():
            loop.remove_signal_handler(number)
            if ends:
                signal.signal(number, signal.SIG_IGN)

    return undo


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


# -- its file descriptors

#: How asyncio reports it (selector_events.py, 3.11 to 3.14), and the name of its retry.
ACCEPT = "socket.accept() out of system resource"
RETRY = "_start_serving"
#: How often it is logged at most, seconds.
LOG_S = 60.0
#: How many are asked for; the first that the system grants. A request needs two, so this is
#: more than mitmproxy serves; older versions of macOS allow 10,240.
ENOUGH = (65_536, 10_240)
#: Of `struct tcp_info`: eight bytes, four other numbers, `tcpi_unacked`.
_TCP_INFO = struct.Struct("@8x16xI")


def raise_limit() -> None:
    """Raise the limit of file descriptors as far as this user may, up to `ENOUGH`."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for enough in ENOUGH:
        limit = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
        if soft == resource.RLIM_INFINITY or soft >= limit:
            return
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return


class Shortage:
    """Logs connections that cannot be accepted; all else is for the former handler."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._loop: asyncio.AbstractEventLoop | None = None
        self._former: Any = None
        self._log_at = now()
        #: the most that waited since it was logged last
        self._waited = 0
        #: the next try of each listening socket
        self._retries: dict[int, asyncio.TimerHandle] = {}

    def install(self) -> None:
        """Become the exception handler of the running loop, until `uninstall`."""
        self._loop = asyncio.get_running_loop()
        self._former = self._loop.get_exception_handler()
        self._loop.set_exception_handler(self._handle)

    def uninstall(self) -> None:
        """Restore the former handler. Retries that are scheduled still run."""
        if self._loop is not None and self._loop.get_exception_handler() == self._handle:
            self._loop.set_exception_handler(self._former)

    def _handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        listener = context.get("socket")
        if context.get("message") == ACCEPT and listener is not None:
            if listener.fileno() not in self._retries:
                self._log(context.get("exception"), queued(listener))
            self._retry_once(loop, listener)
        elif self._former is not None:
            self._former(loop, context)
        else:
            loop.default_exception_handler(context)

    def _retry_once(self, loop: asyncio.AbstractEventLoop, listener: Any) -> None:
        """Schedule only one of the retries that asyncio is about to, by `call_later`."""

        def call_later(delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
            del loop.call_later
            if getattr(callback, "__name__", "") != RETRY:
                return loop.call_later(delay, callback, *args, context=context)
            number = listener.fileno()
            if number not in self._retries:
                self._retries[number] = loop.call_later(delay, again, number, callback, args)
            return self._retries[number]

        def again(number: int, callback: Any, args: Any) -> None:
            del self._retries[number]
            # Else it was closed meanwhile: the proxy ends.
            if listener.fileno() == number:
                callback(*args)

        # A loop that is not Python's own may have fixed attributes.
        with suppress(AttributeError):
            loop.call_later = call_later  # type: ignore[method-assign, assignment]

    def _log(self, error: BaseException | None, waiting: int | None) -> None:
        """Log it, unless that was done a moment ago or *waiting* is 0: no client is kept out."""
        self._waited = max(self._waited, waiting or 0)
        if waiting == 0 or self._now() < self._log_at:
            return
        self._log_at = self._now() + LOG_S
        count, self._waited = self._waited, 0
        who = "1 connection" if count == 1 else f"{count or 'new'} connections"
        logger.warning(f"account-pool: {_what(error)}: {who} had to wait{_remedy(error)}")


def queued(listener: Any) -> int | None:
    """Return how many connections *listener* has that are not accepted; None if unknown."""
    if sys.platform != "linux":
        return None
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        # Of a socket that listens this is the length of its queue (tcp_get_info).
        (count,) = _TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return None
    return int(count)


def _what(error: BaseException | None) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EMFILE and resource is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"out of file descriptors (limit {soft})"
    return f"the system is out of resources ({os.strerror(number) if number else error})"


def _remedy(error: BaseException | None) -> str:
    return "; raise it with ulimit -n" if getattr(error, "errno", None) == errno.EMFILE else ""


# -- its memory

#: So many objects that were made at once are worth to be spared: 1,000 accounts have them.
MANY_OBJECTS = 20_000


@contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage while many objects are made that stay, nor among them later.

    A collection stops everything: with 10,000 accounts for 100 ms, several times while they
    are read, and again and again later.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_count()[0] > MANY_OBJECTS:
            gc.freeze()
        if collects:
            gc.enable()
