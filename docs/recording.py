"""Records the demo: `python docs/recording.py` writes demo.svg beside itself.

The picture is text: each line appears when the demo printed it, and pauses longer than two
seconds are cut. Where a viewer wants no motion all of it is there at once.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

WIDTH, TALLEST = 100, 60
PICTURE = Path(__file__).with_name("demo.svg")
LONGEST_PAUSE_S = 2.0
_HEAD_S = 0.4


class Line(NamedTuple):
    """A line of a terminal, with its colours, and when it began, seconds from the start."""

    at: float
    text: str


def record(command: list[str], environment: dict[str, str]) -> list[Line]:
    """Run *command* on a terminal of its own and return what it printed.

    Raises subprocess.CalledProcessError if it fails.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", TALLEST, WIDTH, 0, 0))
    begin = time.monotonic()
    printed: list[tuple[float, bytes]] = []
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # that is how a terminal ends
                break
            if not piece:
                break
            printed.append((time.monotonic() - begin, piece))
    os.close(ours)
    if process.returncode:
        raise subprocess.CalledProcessError(
            process.returncode, command, b"".join(piece for _, piece in printed)
        )
    lines, rest = [], b""
    for at, piece in printed:
        *whole, rest = (rest + piece).split(b"\n")
        lines += [Line(at, line.decode().rstrip("\r")) for line in whole]
    return lines


def record_demo() -> list[Line]:
    """Record the demo as one sees it who has installed it."""
    root = Path(__file__).parent.parent
    folder = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "HOME": home,
            "PATH": os.pathsep.join((str(folder), os.environ["PATH"])),
            "PYTHONPATH": str(root / "addon"),
            "TERM": "xterm-256color",
            "COLUMNS": str(WIDTH),
        }
        lines = record([str(folder / "account-pool"), "demo"], environment)
    return [Line(at, _without_places(text, (root, folder))) for at, text in lines]


def _without_places(text: str, folders: tuple[Path, ...]) -> str:
    for folder in folders:
        text = text.replace(f"{folder}{os.sep}", "")
    return text


def drawn(lines: list[Line], title: str) -> str:
    """Return *lines* as an SVG in which each appears in its time."""
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    appears: list[float] = []
    clock, before = _HEAD_S, lines[0].at
    for at, text in lines:
        clock += min(at - before, LONGEST_PAUSE_S)
        before = at
        rows = Text.from_ansi(text).wrap(console, WIDTH) if text else [Text()]
        for row in rows:
            console.print(row, no_wrap=True, crop=False)
            appears.append(clock)
    svg = console.export_svg(title=title, unique_id="demo")
    timed = re.sub(
        r'<text class="([^"]+)"([^>]*url\(#demo-line-(\d+)\))',
        lambda found: (
            f'<text class="{found[1]} line" style="animation-delay:'
            f'{appears[int(found[3])]:.2f}s"{found[2]}'
        ),
        svg,
    )
    motion = """
    .line { animation: appear 1ms both; }
    @keyframes appear { from { visibility: hidden; } to { visibility: visible; } }
    @media (prefers-reduced-motion: reduce) { .line { animation: none; } }
    """
    # Fonts of another host are none of a picture's business.
    without_fonts = re.sub(r"@font-face\s*\{[^}]*\}", "", timed)
    return without_fonts.replace("<style>", f"<style>{motion}", 1)


if __name__ == "__main__":
    PICTURE.write_text(drawn(record_demo(), "account-pool demo"), encoding="utf-8")
