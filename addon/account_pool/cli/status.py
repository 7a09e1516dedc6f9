"""`account-pool status`: who serves, what is left of whom, who is on cooldown, why and until when.

On a terminal it is a screen that follows the proxy (`status_app.py`); elsewhere, or asked to,
lines. `render` is pure: the answer of GET /account-pool in, something for rich out.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from account_pool.admin.auth import TOKEN_FILE
from account_pool.cli import api, history, manage, requests
from account_pool.cli.output import fail, show, show_json
from account_pool.cli.places import HOST, Places
from account_pool.cli.status_screen import (
    Change,
    Page,
    PageKind,
    StatusScreen,
    Verb,
    decision_lines,
)
from account_pool.cli.status_view import (
    BAR_WIDTH,
    STATES,
    attention,
    bar,
    cause_in_full,
    clean,
    details,
    file_of,
    fit,
    left_s,
    percent,
    served_words,
    share_of,
    state_of,
    state_word,
    style_of,
    summary_of,
    whole_cooldown,
)
from account_pool.core.account import AccountKey
from account_pool.core.decision_text import duration

#: Seconds between two looks of `--watch`.
_EVERY_S = 2.0
#: Columns that reasons need beside the others, to be legible.
_WHY_WIDTH = 40
_ANY_WIDTH = 10_000
#: How many decisions are shown below, on the page of decisions, and on that of an account.
_LAST, _MANY, _SOME = 5, 200, 20
#: Days that the page of usage sums.
_DAYS = 30


def show_status(port: int, *, as_json: bool, once: bool, watch: bool) -> int:
    """Show the accounts; again and again on a terminal, or if asked to *watch*.

    Returns 0, or 1 without a pool.
    """
    connection = api.PoolConnection(port, api.ASK_S, with_token=True)
    try:
        with contextlib.closing(connection):
            if watch:
                return _watch(connection, port, as_json=as_json)
            status = connection.accounts()
            if as_json:
                show_json(status)
            elif once or not _is_screen():
                _show_once(connection, status, port)
            else:
                _show_screen(status, port)
    except api.NoAnswer as error:
        return fail(error)
    except KeyboardInterrupt:
        # The usual way to leave it.
        return 0
    return 0


def _is_screen() -> bool:
    """Say whether there is a terminal that keys come from and lines can be moved about on."""
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    return on_terminal and os.environ.get("TERM") not in ("dumb", "unknown")


def _show_once(connection: api.PoolConnection, status: Mapping[str, Any], port: int) -> None:
    console = Console(highlight=False)
    show(render(status, _decisions(connection), now=time.time(), bars=console.is_terminal), console)
    if console.is_terminal:
        console.print(Text("\n".join(_access(port)), style="dim"))


def _watch(connection: api.PoolConnection, port: int, *, as_json: bool) -> int:
    """Print it every few seconds; a proxy that goes and comes back is a line each."""
    console = Console(highlight=False)
    status: Mapping[str, Any] | None = connection.accounts()
    while True:
        if status is not None and as_json:
            print(json.dumps(status), flush=True)
        elif status is not None:
            print(f"{datetime.now():%H:%M:%S}")
            show(render(status, now=time.time(), bars=console.is_terminal), console)
            print(flush=True)
        time.sleep(_EVERY_S)
        was_there = status is not None
        try:
            status = connection.accounts()
        except api.NoAnswer as error:
            # It may be started again just now.
            status = None
            if was_there:
                print(f"{datetime.now():%H:%M:%S} {error}", file=sys.stderr, flush=True)


def _show_screen(status: Mapping[str, Any], port: int) -> None:
    from account_pool.cli.status_app import StatusApp  # noqa: PLC0415 - for this screen alone

    screen = StatusScreen(status, time.time(), f"{HOST}:{port}", _access(port))
    # Without it the mouse is the terminal's: what is on the screen can be selected and copied.
    StatusApp(_Proxy(port), screen).run(mouse=False)


class _Proxy:
    """What the screen asks the proxy for."""

    failure = api.NoAnswer

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection = api.PoolConnection(port, api.ASK_S, with_token=True)

    def accounts(self) -> Mapping[str, Any]:
        return self._connection.accounts()

    def decisions(self) -> Sequence[Mapping[str, Any]]:
        return _decisions(self._connection, _SOME)

    def close(self) -> None:
        self._connection.cut_off()

    def change(self, change: Change) -> str:
        if change.verb is Verb.NEXT:
            _, said = manage.skipped(change.key.partition("/")[0], self._port)
        else:
            key = AccountKey.parse(change.key)
            _, said = manage.changed(change.verb.value, key, self._port)
        return said

    def page(self, page: Page, width: int) -> Sequence[Text]:
        match page.kind:
            case PageKind.DECISIONS:
                return decision_lines(_decisions(self._connection, _MANY, page.account))
            case PageKind.USAGE:
                usage = self._connection.ask(f"/usage?days={_DAYS}&group=account")
                return _usage_lines(usage.get("groups", []), width)
            case PageKind.ACCOUNT:
                return list(self._account(str(page.account)))
            case PageKind.HELP:
                return page.lines or ()

    def _account(self, key: str) -> Iterator[Text]:
        """Yield what is known of one account: its conversations and decisions, too."""
        now = time.time()
        for account in self.accounts()["accounts"]:
            if account["key"] == key:
                yield from details(account, now)
        sessions = self._connection.ask("/sessions?limit=1000").get("sessions", [])
        if theirs := [one for one in sessions if one["account"] == key]:
            yield from (Text(), Text("conversations", "bold"))
            yield from (_session(one) for one in theirs[:_SOME])
        asked = urlencode({"account": key, "limit": _SOME})
        if rows := self._connection.ask(f"/requests?{asked}").get("requests"):
            yield from (Text(), Text("requests", "bold"))
            yield from (Text(clean(line)) for line in requests.aligned(rows, []))
        yield from (Text(), Text("decisions", "bold"))
        yield from decision_lines(_decisions(self._connection, _SOME, key))


def _session(session: Mapping[str, Any]) -> Text:
    idle = "in flight" if session["turns"] else f"idle for {duration(session['idle_s'])}"
    return Text.assemble((idle, "dim"), f"  {clean(session['key'])}")


def _usage_lines(sums: Sequence[Mapping[str, Any]], width: int) -> list[Text]:
    """Return sums by account as a table; as sentences where that needs more than *width*."""
    console = Console(width=_ANY_WIDTH, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(history.as_table(sums, "account"))
    lines = [Text(line.rstrip()) for line in captured.get().splitlines()]
    if not sums or max(line.cell_len for line in lines) <= width:
        return lines if sums else [Text("nothing was served")]
    return [Text(f"{clean(one['account'])}: {served_words(one)}{_costs(one)}") for one in sums]


def _costs(sums: Mapping[str, Any]) -> str:
    known = [(name, title) for name, title in history.COSTS.items() if sums.get(name)]
    return "".join(f", {title} {history.amount(name, sums[name])}" for name, title in known)


def _decisions(
    connection: api.PoolConnection, limit: int = _LAST, account: str | None = None
) -> Sequence[Mapping[str, Any]]:
    """Return the last decisions, the newest first; none from a proxy that does not report them."""
    query = {"limit": limit, **({"account": account} if account else {})}
    try:
        decisions: list[Mapping[str, Any]] = connection.ask(f"/decisions?{urlencode(query)}")[
            "decisions"
        ]
    except (api.NoAnswer, KeyError):
        return []
    return decisions


def render(
    status: Mapping[str, Any],
    decisions: Sequence[Mapping[str, Any]] = (),
    *,
    now: float,
    bars: bool,
) -> RenderableType:
    """Return what GET /account-pool answered as a table, with a summary and *decisions*.

    What needs attention comes first. *now*: seconds since the epoch.
    """
    accounts: Sequence[Mapping[str, Any]] = status["accounts"]
    if not accounts:
        return Text("the pool has no account: traffic passes untouched")
    summary = Text("; ".join(filter(None, (summary_of(status["summary"]), file_of(status)))))
    in_order = sorted(accounts, key=lambda account: attention(account, now))
    rows = [row for account in in_order for row in _rows(account, bars)]
    return Group(_Table(rows, now), Text(), summary, *_decision_lines(decisions))


def _decision_lines(decisions: Sequence[Mapping[str, Any]]) -> list[Text]:
    """Return the decisions as lines, the newest last as in a log."""
    return [Text(), *reversed(decision_lines(decisions))] if decisions else []


@dataclass(frozen=True, slots=True)
class _Row:
    """An account, or a model of it that is on cooldown.

    Attributes:
        left: of the tightest window.
        cooldown: of the account as a whole, or of the model.
        in_flight, served: None for a model.
    """

    name: str
    state: str
    style: str
    left: Text
    why: Text
    cooldown: Mapping[str, Any] | None
    in_flight: int | None = None
    served: int | None = None


def _rows(account: Mapping[str, Any], bars: bool) -> list[_Row]:
    """Return the row of an account, and one for each model of it that is on cooldown."""
    first = whole_cooldown(account)
    row = _Row(
        clean(account["key"]),
        state_word(account),
        style_of(state_of(account)),
        _left(account, bars),
        Text(cause_in_full(first) if first else clean(account["reason"] or "")),
        first,
        account["in_flight"],
        account["served"],
    )
    state, style = STATES["cooling"], style_of("cooling")
    models = [
        _Row(f"  {clean(c['model'])}", state, style, Text(), Text(cause_in_full(c)), c)
        for c in sorted(account["cooldowns"], key=lambda c: c["until_at"] or "")
        if c["model"] is not None
    ]
    return [row, *models]


def _left(account: Mapping[str, Any], bars: bool) -> Text:
    """Return `42% 5h`, after a bar where there are *bars*."""
    share = share_of(account)
    if share is None:
        return Text()
    drawn = bar(share, BAR_WIDTH).append(" ") if bars else Text()
    return drawn.append(f"{percent(share)} {clean(account['tightest']['window'])}")


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows as a table where that has room, else each with its reasons below."""

    rows: Sequence[_Row]
    now: float

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
        for title in ("account", "state", "left", "back in", "in flight", "served"):
            table.add_column(title, no_wrap=True, overflow="fold")
        table.add_column("why")
        for row in self.rows:
            counts = ("" if n is None else str(n) for n in (row.in_flight, row.served))
            state = Text(row.state, row.style)
            table.add_row(row.name, state, row.left, self._back_in(row), *counts, row.why)
        return table

    def _back_in(self, row: _Row) -> str:
        return "" if row.cooldown is None else duration(left_s(row.cooldown, self.now))

    def _lines(self) -> Iterator[RenderableType]:
        width = max(cell_len(row.name) for row in self.rows)
        for row in self.rows:
            counts = [
                f"{number} {what}"
                for number, what in ((row.in_flight, "in flight"), (row.served, "served"))
                if number
            ]
            if row.cooldown is not None:
                counts.insert(0, f"for {self._back_in(row)}")
            more = "".join(f", {count}" for count in counts).replace(", for", " for", 1)
            name = fit(row.name, width)
            left = Text.assemble("  ", row.left, " left") if row.left else ""
            yield Text.assemble(f"{name}  ", (row.state, row.style), more, left)
            if row.why:
                yield Padding(row.why, (0, 0, 0, 4))


def _access(port: int) -> list[str]:
    """Return where the dashboard is, and the token to change things with."""
    token = api.local_token(port) or f"in the file {TOKEN_FILE} beside the state database"
    return [f"dashboard    {Places.usual(port).url}/", f"admin token  {token}"]
