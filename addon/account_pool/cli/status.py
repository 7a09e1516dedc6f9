"""`account-pool status`: who serves, who cools, why and until when; live on a terminal.

`render` is pure: the answer of GET /account-pool in, something for rich out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from account_pool.admin.auth import TOKEN_FILE
from account_pool.cli import api
from account_pool.cli.output import fail, show, show_json
from account_pool.cli.places import Places
from account_pool.config.accounts_file import shown
from account_pool.core.decision_text import MAX_VALUES, duration

#: Seconds between two looks.
_EVERY_S = 1.0
_BAR_WIDTH = 16
#: Columns that reasons need beside the others, to be legible.
_WHY_WIDTH = 40
_ANY_WIDTH = 10_000
#: How many decisions are shown below.
_LAST = 5
_STYLES = {"available": "green", "full": "yellow", "cooling": "yellow"}
#: How states are shown, where not as the JSON spells them.
STATES = {"cooling": "on cooldown", "no_credential": "no credential"}
#: Everything else needs its owner.
_NEEDS_OWNER = "red"


def show_status(port: int, *, as_json: bool, once: bool) -> int:
    """Show the accounts, again and again on a terminal. Returns 0, or 1 without a pool."""
    console = Console(highlight=False)
    try:
        if as_json:
            show_json(api.accounts(port))
        elif once or not console.is_terminal:
            _show_once(console, port)
        else:
            _show_live(console, port)
    except api.NoAnswer as error:
        return fail(error)
    except KeyboardInterrupt:
        # The usual way to leave it.
        return 0
    return 0


def _show_once(console: Console, port: int) -> None:
    show(_view(port, bars=console.is_terminal), console)
    if console.is_terminal:
        console.print(_access(port))


def _show_live(console: Console, port: int) -> None:
    view, access = _view(port, bars=True), _access(port)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(Group(view, access), refresh=True)
            time.sleep(_EVERY_S)
            try:
                view = _view(port, bars=True)
            except api.NoAnswer as error:
                # It may be started again just now.
                view = Text(str(error), style=_NEEDS_OWNER)


def _view(port: int, *, bars: bool) -> RenderableType:
    return render(api.accounts(port), _decisions(port), bars=bars)


def _decisions(port: int) -> Sequence[Mapping[str, Any]]:
    """Return the last decisions, the newest first; none from a proxy that does not report them."""
    try:
        decisions: list[Mapping[str, Any]] = api.ask(port, f"/decisions?limit={_LAST}")["decisions"]
    except (api.NoAnswer, KeyError):
        return []
    return decisions


def render(
    status: Mapping[str, Any], decisions: Sequence[Mapping[str, Any]] = (), *, bars: bool
) -> RenderableType:
    """Return what GET /account-pool answered as a table, with a summary and *decisions*."""
    accounts: Sequence[Mapping[str, Any]] = status["accounts"]
    if not accounts:
        return Text("the pool has no account: traffic passes untouched")
    summary = Text(f"{_summary(status['summary'])}{_source(status)}")
    rows = [row for account in accounts for row in _rows(account)]
    return Group(_Table(rows, bars), Text(), summary, *_decision_lines(decisions))


def _source(status: Mapping[str, Any]) -> str:
    """Name the file the accounts are of, where the proxy says it."""
    path = status.get("accounts_file")
    return f"; {shown(Path(path))}" if isinstance(path, str) else ""


def _decision_lines(decisions: Sequence[Mapping[str, Any]]) -> list[Text]:
    """Return the decisions as lines, the newest last as in a log."""
    lines = []
    for decision in reversed(decisions):
        at = datetime.fromisoformat(decision["at"]).astimezone()
        lines.append(Text(f"{at:%H:%M:%S} {decision['text']}", style="dim"))
    return [Text(), *lines] if lines else []


@dataclass(frozen=True, slots=True)
class _Row:
    """An account, or a model of it that is on cooldown.

    Attributes:
        cooldown: of the account as a whole, or of the model.
        in_flight, served: None for a model.
    """

    name: str
    state: str
    style: str
    why: Text
    cooldown: Mapping[str, Any] | None
    in_flight: int | None = None
    served: int | None = None


def _rows(account: Mapping[str, Any]) -> list[_Row]:
    """Return the row of an account, and one for each model of it that cools."""
    cooldowns = sorted(account["cooldowns"], key=lambda c: (c["model"] is not None, c["until_at"]))
    whole = [c for c in cooldowns if c["model"] is None]
    first = whole[-1] if whole else None
    row = _Row(
        account["key"],
        STATES.get(account["state"], account["state"]),
        _STYLES.get(account["state"], _NEEDS_OWNER),
        _why(first) if first else Text(account["reason"] or ""),
        first,
        account["in_flight"],
        account["served"],
    )
    models = [c for c in cooldowns if c["model"] is not None]
    state, style = STATES["cooling"], _STYLES["cooling"]
    return [row, *(_Row(f"  {c['model']}", state, style, _why(c), c) for c in models)]


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows as a table where that has room, else each with its reasons below."""

    rows: Sequence[_Row]
    bars: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._table()
        whole = console.measure(table, options=options.update_width(_ANY_WIDTH)).maximum
        longest = max(row.why.cell_len for row in self.rows)
        if whole - longest + min(longest, _WHY_WIDTH) <= options.max_width:
            yield table
        else:
            yield from self._lines()

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for title in ("account", "state", "in flight", "served", "available in"):
            table.add_column(title, no_wrap=True, overflow="fold")
        if self.bars:
            table.add_column("", width=_BAR_WIDTH)
        table.add_column("why")
        for row in self.rows:
            counts = ("" if n is None else str(n) for n in (row.in_flight, row.served))
            left = _remaining(row.cooldown, self.bars)
            table.add_row(row.name, Text(row.state, row.style), *counts, *left, row.why)
        return table

    def _lines(self) -> Iterator[RenderableType]:
        width = max(len(row.name) for row in self.rows)
        for row in self.rows:
            counts = [
                f"{number} {what}"
                for number, what in ((row.in_flight, "in flight"), (row.served, "served"))
                if number
            ]
            if row.cooldown is not None:
                counts.insert(0, f"for {duration(float(row.cooldown['remaining_s']))}")
            more = "".join(f", {count}" for count in counts).replace(", for", " for", 1)
            yield Text.assemble(f"{row.name:<{width}}  ", (row.state, row.style), more)
            if row.why:
                yield Padding(row.why, (0, 0, 0, 4))


def _remaining(cooldown: Mapping[str, Any] | None, bars: bool) -> list[RenderableType]:
    """Return how long it still takes, and how much of it is over as a bar."""
    if cooldown is None:
        return ["", ""] if bars else [""]
    left_s = float(cooldown["remaining_s"])
    shown: list[RenderableType] = [duration(left_s)]
    if bars:
        total_s = max(_length_s(cooldown), left_s, 1e-9)
        shown.append(ProgressBar(total=total_s, completed=total_s - left_s, width=_BAR_WIDTH))
    return shown


def _length_s(cooldown: Mapping[str, Any]) -> float:
    since, until = (datetime.fromisoformat(cooldown[key]) for key in ("since_at", "until_at"))
    return (until - since).total_seconds()


def _why(cooldown: Mapping[str, Any]) -> Text:
    values = [f"{name}: {value}" for name, value in cooldown["evidence"].items()]
    evidence = ", ".join(values[:MAX_VALUES])
    said = cooldown["signal"] or cooldown["class"]
    return Text(f"{said} ({evidence})" if evidence else said)


def _summary(summary: Mapping[str, Any]) -> str:
    return (
        f"{summary['available']} of {summary['total']} available, {summary['cooling_down']} "
        f"on cooldown, {summary['disabled']} disabled, {summary['in_flight']} requests in flight"
    )


def _access(port: int) -> Text:
    """Return where the dashboard is, and the token to change things with."""
    token = api.local_token(port) or f"in the file {TOKEN_FILE} beside the state database"
    return Text(f"dashboard: {Places.usual(port).url}/   admin token: {token}", style="dim")
