"""Reads along what a tool writes to stderr, and passes it on at once.

A tool looks whether its stderr is a terminal before it draws: where ours is one, it gets
a terminal of the same size. Stdin and stdout are never touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

#: The end of what was written: enough for the words a tool ends with.
KEPT_BYTES = 16 * 1024
#: A process that the tool left behind may hold its stderr for ever.
LAST_WORDS_S = 0.5
_STDERR = 2


class Tee:
    """The stderr of one tool.

    Attributes:
        end: the descriptor to give to the tool.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._copy, name="stderr of the tool", daemon=True)
        self._terminal = sys.platform != "win32" and os.isatty(_STDERR)
        self._ours, self.end = _terminal_like(_STDERR) if self._terminal else os.pipe()
        self._resized: object = None

    def __enter__(self) -> Tee:
        if self._terminal:
            self._resized = signal.signal(
                signal.SIGWINCH, lambda *_: _same_size(_STDERR, self._ours)
            )
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._resized is not None:
            signal.signal(signal.SIGWINCH, self._resized)  # type: ignore[arg-type]  # as it was
        if not self._thread.ident:
            os.close(self.end)
        else:
            self._thread.join(LAST_WORDS_S)
        if not self._thread.is_alive():
            os.close(self._ours)

    def begin(self) -> None:
        """Begin to read: the tool has its end by now."""
        os.close(self.end)
        self._thread.start()

    def text(self) -> str:
        """Return the end of what the tool wrote. Call it after the block."""
        return bytes(self._kept).decode(errors="replace")

    def _copy(self) -> None:
        # A terminal whose last user is gone ends with an error, a pipe with nothing.
        with contextlib.suppress(OSError):
            while chunk := os.read(self._ours, 65536):
                self._kept += chunk
                del self._kept[:-KEPT_BYTES]
                # Nobody may read it any more; the tool must not stand still for that.
                with contextlib.suppress(OSError):
                    _write(chunk)


def _write(chunk: bytes) -> None:
    while chunk:
        chunk = chunk[os.write(_STDERR, chunk) :]


def _terminal_like(descriptor: int) -> tuple[int, int]:
    """Return both ends of a new terminal, of the size of *descriptor*."""
    import pty  # noqa: PLC0415 - not on Windows
    import termios  # noqa: PLC0415 - the same

    ours, theirs = pty.openpty()
    # Line ends are the real terminal's business: made twice they would move the cursor.
    settings = termios.tcgetattr(theirs)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    _same_size(descriptor, theirs)
    return ours, theirs


def _same_size(shown: int, copy: int) -> None:
    import termios  # noqa: PLC0415 - not on Windows

    with contextlib.suppress(OSError, termios.error):
        termios.tcsetwinsize(copy, termios.tcgetwinsize(shown))
