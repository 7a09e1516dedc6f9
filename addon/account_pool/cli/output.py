"""What commands print: an answer on stdout, as a table or as JSON; all else on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table


class Failed(Exception):
    """A command cannot do what it was asked for; the text says why, and what can be done."""


#: Wide enough for everything: whoever reads a pipe wants whole names, not a layout.
PIPE_COLUMNS = 1000


def show(renderable: RenderableType, console: Console | None = None) -> None:
    """Print *renderable*: what fits a terminal, and whole lines into a pipe."""
    from rich.console import Console  # noqa: PLC0415 - errors and JSON need none of it

    console = console or Console(highlight=False)
    if console.is_terminal:
        console.print(renderable)
        return
    console.width = PIPE_COLUMNS
    with console.capture() as captured:
        console.print(renderable)
    # Tables are padded to their width.
    for line in captured.get().splitlines():
        print(line.rstrip())


def show_json(value: object) -> None:
    """Print *value* as JSON, for `--json`."""
    print(json.dumps(value, indent=2))


def table(*titles: str) -> Table:
    """Return an empty table, whose texts are never cut."""
    from rich.table import Table  # noqa: PLC0415 - as above

    made = Table(box=None, pad_edge=False)
    for title in titles:
        made.add_column(title, overflow="fold")
    return made


def answer(value: object, text: str, *, as_json: bool) -> int:
    """Print what a command has done: *value* as JSON, or *text*. Returns 0."""
    if as_json:
        show_json(value)
    else:
        print(text)
    return 0


def money(usd: float) -> str:
    """Return an amount that may be a small part of a cent."""
    return "<$0.0001" if 0 < usd < 0.0001 else f"${usd:,.4f}"


def note(text: object) -> None:
    """Print *text* on stderr, as all that is not the answer of a command."""
    print(f"account-pool: {text}", file=sys.stderr)


def fail(why: object, code: int = 1) -> int:
    """Print why a command failed, and return its exit code."""
    note(why)
    return code


def warn(*warnings: object) -> None:
    """Print what looks wrong and stops nothing."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
