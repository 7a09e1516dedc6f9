"""`account-pool status`: who serves, what is left of whom, who is on cooldown, why and until when.

On a terminal it is a screen that follows the proxy (`status_app.py`); elsewhere, or asked to,
lines. `render` and `fleet_lines` are pure: an answer of the proxy in, something for rich out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import urlencode

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from account_pool.admin.auth import TOKEN_FILE
from account_pool.cli import api, history, manage
from account_pool.cli.output import PIPE_COLUMNS, show, show_json
from account_pool.cli.processes import HOST, Places
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
    Json,
    attention,
    bar,
    cause_in_full,
    clean,
    details,
    file_of,
    fit,
    fit_middle,
    left_s,
    percent,
    served_words,
    share_of,
    state_of,
    state_word,
    style_of,
    summary_of,
    whole_cooldown,
    wrapped,
)
from account_pool.core.decision_text import duration
from account_pool.core.fleet import UNKNOWN

#: Seconds between two looks of `--watch`.
_EVERY_S = 2.0
#: Columns that reasons need beside the others, to be legible.
_WHY_WIDTH = 40
_ANY_WIDTH = 10_000
#: How many decisions are shown below, on the page of decisions, and on that of an account.
_LAST, _MANY, _SOME = 5, 200, 20
#: Days that the page of usage sums.
_DAYS = 30


def show_status(port: int, *, as_json: bool, once: bool, watch: bool, of_fleet: bool) -> int:
    """Show the accounts; again and again on a terminal, or if asked to *watch*.

    *of_fleet*: the proxies that share their state, once. Returns 0, or 1 without a pool.
    """
    try:
        with api.PoolConnection(port) as connection:
            ask = partial(ask_fleet, connection) if of_fleet else connection.accounts
            if watch:
                return _watch(ask, _fleet if of_fleet else _accounts, as_json=as_json)
            status = ask()
            if as_json:
                show_json(status)
            elif of_fleet:
                console = Console(highlight=False)
                show(_fleet(status, console), console)
            elif once or not _is_screen():
                _show_once(connection, status, port)
            else:
                _show_screen(status, port)
    except KeyboardInterrupt:
        pass  # the usual way to leave it
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


def _accounts(status: Mapping[str, Any], console: Console) -> RenderableType:
    return render(status, now=time.time(), bars=console.is_terminal)


def _fleet(answer: Mapping[str, Any], console: Console) -> RenderableType:
    width = console.width if console.is_terminal else PIPE_COLUMNS
    return Group(*fleet_lines(answer, width))


def _watch(
    ask: Callable[[], Mapping[str, Any]],
    shown: Callable[[Mapping[str, Any], Console], RenderableType],
    *,
    as_json: bool,
) -> int:
    """Print it every few seconds; a proxy that goes and comes back is a line each."""
    console = Console(highlight=False)
    status: Mapping[str, Any] | None = ask()
    while True:
        if status is not None and as_json:
            print(json.dumps(status), flush=True)
        elif status is not None:
            print(f"{datetime.now():%H:%M:%S}")
            show(shown(status, console), console)
            print(flush=True)
        time.sleep(_EVERY_S)
        was_there = status is not None
        try:
            status = ask()
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

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection = api.PoolConnection(port)

    def accounts(self) -> Mapping[str, Any]:
        return self._connection.accounts()

    def decisions(self) -> Sequence[Mapping[str, Any]]:
        return _decisions(self._connection, _SOME)

    def close(self) -> None:
        self._connection.cut_off()

    def change(self, change: Change) -> str:
        name = change.key.partition("/")[0] if change.verb is Verb.NEXT else change.key
        return manage.changed(change.verb.value, name, self._port)[1]

    def page(self, page: Page, width: int) -> Sequence[Text]:
        match page.kind:
            case PageKind.DECISIONS:
                return decision_lines(_decisions(self._connection, _MANY, page.account))
            case PageKind.USAGE:
                usage = self._connection.ask(f"/usage?days={_DAYS}&group=account")
                return _usage_lines(usage.get("groups", []), width)
            case PageKind.PROXIES:
                return fleet_lines(ask_fleet(self._connection), width)
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
            yield from (Text(clean(line)) for line in history.aligned(rows, []))
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
    """Return the last decisions, the newest first; none from a proxy that does not report them.

    They name their proxy where one is of another than that which is asked.
    """
    query = {"limit": limit, **({"account": account} if account else {})}
    try:
        rows: list[dict[str, Any]] = connection.ask(f"/decisions?{urlencode(query)}")["decisions"]
    except (api.NoAnswer, KeyError):
        return []
    if not history.is_named((row.get("proxy") for row in rows), connection.name):
        rows = [{**row, "proxy": ""} for row in rows]
    return rows


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
        return Text("the pool has no account: traffic passes through untouched")
    summary = Text("; ".join(filter(None, (summary_of(status["summary"]), file_of(status)))))
    in_order = sorted(accounts, key=lambda account: attention(account, now))
    rows = [row for account in in_order for row in _rows(account, bars)]
    # The newest last, as in a log.
    latest = [Text(), *reversed(decision_lines(decisions))] if decisions else []
    return Group(_Table(rows, now), Text(), summary, *latest)


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


# -- the proxies that share the state of the one that is asked, for `--fleet`
#
# The answer of GET /proxies in, lines out. What a proxy of another version leaves out is shown as
# unknown.

THIS = "this one"
#: Every other state is red.
_PROXY_STYLES = {"running": "green", "stopping": "yellow", "unknown": "yellow"}
_INDENT = 2


def ask_fleet(connection: api.PoolConnection) -> Mapping[str, Any]:
    """Return what GET /proxies answers. Raises NoAnswer."""
    try:
        answer = connection.ask("/proxies")
    except api.NoAnswer as error:
        if error.code == "not_found":
            raise api.NoAnswer(
                "this proxy is of an older version, which does not report others"
            ) from None
        raise
    if not isinstance(answer.get("proxies"), list):
        raise api.NoAnswer("what answers there does not report its proxies")
    return answer


def fleet_lines(answer: Json, width: int) -> list[Text]:
    """Return the proxies as a table where *width* has room for one, else some lines each."""
    proxies = [one for one in answer.get("proxies", ()) if isinstance(one, Mapping)]
    columns = _fleet_columns(proxies)
    widths = [max(cell.cell_len for cell in column) for column in columns]
    if sum(widths) + 2 * (len(widths) - 1) <= width:
        lines = _fleet_table(proxies, columns, widths, width)
    else:
        lines = _fleet_sentences(proxies, width)
    said = [Text(_fleet_summary(answer)), *_remarks(answer)]
    return [*lines, Text(), *(part for text in said for part in wrapped(text, width))]


def _fleet_columns(proxies: Sequence[Json]) -> list[list[Text]]:
    """Return the cells of each column, its title first; what all have alike has none."""
    columns = [
        [Text("proxy"), *(Text(_said(one, "name")) for one in proxies)],
        [Text("state"), *map(_proxy_state, proxies)],
        [Text("version"), *(Text(_said(one, "version")) for one in proxies)],
    ]
    if len({one.get("mitmproxy") for one in proxies}) > 1:
        columns.append([Text("mitmproxy"), *(Text(_said(one, "mitmproxy")) for one in proxies)])
    if any(one.get("workers") not in (1, None) for one in proxies):
        columns.append([Text("workers"), *(Text(str(_count(one, "workers"))) for one in proxies)])
    return [
        *columns,
        [Text("up for"), *(Text(_up_for(one)) for one in proxies)],
        [Text("in flight"), *(Text(str(_count(one, "in_flight"))) for one in proxies)],
        [Text("heartbeat"), *(Text(_heartbeat(one)) for one in proxies)],
    ]


def _fleet_table(
    proxies: Sequence[Json], columns: Sequence[Sequence[Text]], widths: Sequence[int], width: int
) -> list[Text]:
    problems = ["", *(clean(one.get("problem") or "") for one in proxies)]
    room = width - sum(widths) - 2 * len(widths)
    beside = any(problems) and max(map(cell_len, problems)) <= room
    lines: list[Text] = []
    for number, problem in enumerate(problems):
        line = Text(style="" if number else "dim")
        for column, cells in enumerate(columns):
            line.append("  " if column else "").append_text(cells[number])
            line.append(" " * (widths[column] - cells[number].cell_len))
        if beside:
            line.append(f"  {problem if number else 'problem'}")
        line.rstrip()
        lines.append(line)
        if problem and not beside:
            lines += _indented(Text(problem, "yellow"), width)
    return lines


def _fleet_sentences(proxies: Sequence[Json], width: int) -> list[Text]:
    lines: list[Text] = []
    differ = len({one.get("mitmproxy") for one in proxies}) > 1
    for one in proxies:
        workers = _count(one, "workers")
        parts: list[Text | str] = [
            _proxy_state(one),
            f"version {_said(one, 'version')}",
            f"mitmproxy {_said(one, 'mitmproxy')}" if differ else "",
            f"{workers} workers" if workers > 1 else "",
            f"up for {_up_for(one)}" if _up_for(one) else "",
            f"{_count(one, 'in_flight')} in flight",
            _heartbeat(one) if one.get("this") else f"heartbeat {_heartbeat(one) or UNKNOWN}",
        ]
        lines.append(Text(fit_middle(_said(one, "name"), width), "bold"))
        for line in _packed([part for part in parts if part], width - _INDENT):
            lines += _indented(line, width)
        if problem := one.get("problem"):
            lines += _indented(Text(clean(problem), "yellow"), width)
    return lines


def _packed(parts: Iterable[Text | str], width: int) -> list[Text]:
    """Return *parts* in as few lines of *width* as they need; none is divided if it fits."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + 2 + len(part) < width:
            lines[-1].append(", ").append(part)
        else:
            if lines:
                lines[-1].append(",")
            lines.append(Text().append(part))
    return lines


def _indented(text: Text, width: int) -> list[Text]:
    indent = " " * _INDENT
    return [Text(indent).append_text(part) for part in wrapped(text, width - _INDENT)]


def _proxy_state(one: Json) -> Text:
    state = _said(one, "state")
    return Text(state, _PROXY_STYLES.get(state, "red"))


def _said(one: Json, name: str) -> str:
    return clean(one.get(name) or UNKNOWN)


def _count(one: Json, name: str) -> int:
    count = one.get(name)
    return count if isinstance(count, int) else 0


def _up_for(one: Json) -> str:
    return "" if one.get("state") == "gone" else _ago(one.get("started_s"))


def _heartbeat(one: Json) -> str:
    """Return when the last one was; of the proxy that is asked that says nothing."""
    ago = _ago(one.get("seen_s"))
    return THIS if one.get("this") is True else f"{ago} ago" if ago else ""


def _ago(seconds: object) -> str:
    return duration(max(round(seconds), 1)) if isinstance(seconds, int | float) else ""


def _fleet_summary(answer: Json) -> str:
    summary = answer.get("summary") or {}
    counts = [
        f"{number} {state}"
        for state in ("running", "stopping", "gone", "unknown")
        if (number := _count(summary, state)) or state == "running"
    ]
    in_flight = _count(summary, "in_flight")
    requests = f"{in_flight} request{'' if in_flight == 1 else 's'} in flight"
    store = answer.get("store") or {}
    kept = " ".join(clean(store[name]) for name in ("kind", "server") if store.get(name))
    return ", ".join([*counts, requests]) + (f"; state: {kept}" if kept else "")


def _remarks(answer: Json) -> list[Text]:
    store, versions = answer.get("store") or {}, answer.get("versions") or ()
    remarks = []
    if len(versions) > 1:
        remarks.append(f"they run different versions: {', '.join(map(clean, versions))}")
    if store.get("problem"):
        remarks.append(clean(store["problem"]))
    if store.get("is_known") is False and len(answer["proxies"]) > 1:
        remarks.append("what the others do is not known until the state can be read")
    return [Text(f"! {remark}", "yellow") for remark in remarks]
