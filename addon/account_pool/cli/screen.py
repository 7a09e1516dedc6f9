"""Prints what fits a terminal, and whole lines into a pipe."""

from __future__ import annotations

from rich.console import Console, RenderableType

#: Wide enough for everything: whoever reads a pipe wants whole names, not a layout.
_PIPE_COLUMNS = 1000


def show(renderable: RenderableType, console: Console | None = None) -> None:
    """Print *renderable* on standard output."""
    console = console or Console(highlight=False)
    if console.is_terminal:
        console.print(renderable)
        return
    console.width = _PIPE_COLUMNS
    with console.capture() as captured:
        console.print(renderable)
    # Tables are padded to their width.
    for line in captured.get().splitlines():
        print(line.rstrip())
