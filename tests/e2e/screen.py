"""A terminal whose screen can be read: what a program has drawn on it, as a person sees it."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios

import pyte

from tests.e2e.on_terminal import Terminal


class Screen(Terminal):
    """A terminal of *columns* and *rows*, as xterm has them."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self._drawn = pyte.Screen(columns, rows)
        self._feed = pyte.ByteStream(self._drawn)
        self._seen = 0
        self._size(columns, rows)

    @property
    def lines(self) -> list[str]:
        """The lines as they are, without spaces at their ends."""
        # What a wide character hides is an empty cell of its own.
        return [line.rstrip() for line in self._drawn.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def sent(self) -> bytes:
        """All that the program has sent."""
        return self._screen

    def press(self, keys: str) -> None:
        """Type *keys*."""
        os.write(self._outside, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Change the size, as a person who drags a window's corner."""
        self._size(columns, rows)
        self._drawn.resize(rows, columns)
        os.kill(self.pid, signal.SIGWINCH)

    async def until(self, *parts: str) -> None:
        """Wait until all of *parts* are on it. Its caller bounds how long."""
        while not all(part in self.text for part in parts):
            self._written.clear()
            if self.returncode is not None:
                raise AssertionError(f"it ended with {self.returncode}:\n{self.text}")
            await self._written.wait()

    def _size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._inside, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self) -> None:
        super()._read()
        self._feed.feed(self._screen[self._seen :])
        self._seen = len(self._screen)


async def on_screen(columns: int, rows: int, *command: str, env: dict[str, str]) -> Screen:
    """Return a screen on which *command* has been started."""
    screen = Screen(columns, rows)
    await screen.start(command, own=True, hangups=True, env={"TERM": "xterm-256color", **env})
    return screen
