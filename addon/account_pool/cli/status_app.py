"""Draws `status_screen.py` on a terminal, with Textual: it reads keys, follows the size, and
leaves the terminal as it was.

The proxy is asked in threads, so that one that does not answer delays no key.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ClassVar, Protocol

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from account_pool.cli.api import NoAnswer
from account_pool.cli.status_screen import Asked, Change, Page, StatusScreen
from account_pool.cli.status_view import Json

#: Seconds between two looks at least, and how many times as long as an answer took, with a
#: limit: ten thousand accounts are not asked for each second.
EVERY_S = 1.0
_TIMES_AS_LONG = 10.0
_AT_MOST_S = 30.0
#: After so many seconds without an answer the screen says so; the question goes on.
SILENT_S = 3.0


def pause_s(took_s: float | None, least_s: float) -> float:
    """Return how long to wait after an answer that took *took_s*; None: there was none."""
    return max(least_s, min((took_s or 0.0) * _TIMES_AS_LONG, _AT_MOST_S))


class Source(Protocol):
    """Whom the screen asks, in threads. Each raises NoAnswer if it gets none."""

    def accounts(self) -> Json:
        """Return the answer of GET /account-pool."""

    def decisions(self) -> Sequence[Json]:
        """Return the last decisions, the newest first."""

    def page(self, page: Page, width: int) -> Sequence[Text]:
        """Return the lines of a page, whose tables fit *width*."""

    def change(self, change: Change) -> str:
        """Do it, and return what has happened."""

    def close(self) -> None:
        """Let what is being asked fail at once."""


class _Lines(Widget, can_focus=True):
    """Lines as wide as the screen. Only those that have changed are sent to the terminal."""

    DEFAULT_CSS = "_Lines { width: 100%; height: 100%; background: ansi_default; }"

    def __init__(
        self, on_key: Callable[[str, str | None], None], on_size: Callable[[], None]
    ) -> None:
        super().__init__()
        self._lines: Sequence[Text] = ()
        self._report, self._resized = on_key, on_size

    def show(self, lines: Sequence[Text]) -> None:
        before, self._lines = self._lines, lines
        width = self.size.width
        changed = [
            Region(0, y, width, 1)
            for y in range(max(len(before), len(lines)))
            if before[y : y + 1] != lines[y : y + 1]
        ]
        if changed:
            self.refresh(*changed)

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y >= len(self._lines):
            return Strip.blank(width)
        segments = self._lines[y].render(self.app.console)
        return Strip(segments).adjust_cell_length(width)

    def on_resize(self) -> None:
        self._resized()

    def on_key(self, event: events.Key) -> None:
        # Nothing else on the screen is to take it.
        event.stop()
        self._report(event.key, event.character)


class StatusApp(App[None]):
    """The screen, on a terminal: the proxy is asked every *every_s* seconds at most."""

    ENABLE_COMMAND_PALETTE = False
    CSS = "Screen { background: ansi_default; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "quit", priority=True),
        Binding("ctrl+z", "suspend_process", priority=True),
    ]

    def __init__(self, source: Source, screen: StatusScreen, every_s: float = EVERY_S) -> None:
        # The terminal's own colours: its user has chosen what can be read on it.
        super().__init__(ansi_color=True)
        self.status = screen
        self._source, self._every_s = source, every_s
        self._look_now = asyncio.Event()
        # Since when an answer is waited for, by the monotonic clock.
        self._asked_at: float | None = None
        self._lines = _Lines(self._press, self.draw)

    def compose(self) -> ComposeResult:
        yield self._lines

    def on_mount(self) -> None:
        self._lines.focus()
        with suppress(NotImplementedError, RuntimeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.exit)
        self.set_interval(1.0, self.draw)  # times go on while nothing answers
        self.run_worker(self._keep_looking(), exclusive=False)

    def on_unmount(self) -> None:
        self._source.close()

    def on_paste(self, event: events.Paste) -> None:
        self.status.paste(event.text)
        self.draw()

    def draw(self) -> None:
        """Show what there is to show now."""
        if self._asked_at is not None and time.monotonic() > self._asked_at + SILENT_S:
            self.status.lost = "the proxy does not answer"
        self._lines.show(self.status.draw(*self._lines.size, time.time()))

    async def look(self) -> None:
        """Ask the proxy once, and show what it says."""
        self._asked_at = time.monotonic()
        try:
            status = await asyncio.to_thread(self._source.accounts)
            decisions = await asyncio.to_thread(self._source.decisions)
            self.status.seen(status, decisions, time.time())
        except NoAnswer as error:
            self.status.lost = str(error)
        self._asked_at = None
        if (page := self.status.page) is not None and not self.status.lost:
            try:
                lines = await asyncio.to_thread(self._source.page, page, self.size.width)
            except NoAnswer as error:
                # An older proxy does not know all of it.
                lines = [Text(str(error))]
            page.lines = lines or page.lines
        self.draw()

    async def _keep_looking(self) -> None:
        while True:
            started = time.monotonic()
            self._look_now.clear()
            await self.look()
            took_s = None if self.status.lost else time.monotonic() - started
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s(took_s, self._every_s)):
                    await self._look_now.wait()

    def _press(self, name: str, character: str | None) -> None:
        match asked := self.status.key(name, character):
            case Asked.QUIT:
                self.exit()
            case Asked.READ:
                self._look_now.set()
            case Change():
                self.run_worker(self._change(asked), exclusive=False)
            case None:
                pass
        self.draw()

    async def _change(self, change: Change) -> None:
        try:
            said = await asyncio.to_thread(self._source.change, change)
        except NoAnswer as error:
            said = str(error)
        self.status.say(said, time.time())
        self._look_now.set()
        self.draw()
