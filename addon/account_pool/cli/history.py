"""`account-pool usage`, `requests`, `decisions` and `logs`: what a proxy has served and said."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlencode

from rich.console import Console
from rich.table import Table

from account_pool.cli import api
from account_pool.cli.output import Failed, fail, money, note, show, show_json, table
from account_pool.cli.processes import Places, running_ports
from account_pool.cli.status_view import percent
from account_pool.core.account import AccountKey
from account_pool.core.decision_text import duration
from account_pool.filesystem import require_file

#: What usage can be summed by: `group` of GET /usage.
GROUPS = ("account", "provider", "model", "day", "hour", "tool")
#: The columns after the group, in their order.
AMOUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens")
#: Columns that are there where one has something in it, and what they are called.
COSTS = {"cost_usd": "cost", "saved_usd": "saved", "premium_requests": "premium"}
#: Decisions that are known again when they come again.
_REMEMBERED = 5_000
#: What GET /requests and /decisions return at once at most.
_AT_ONCE = 1000
#: Seconds between two questions of `--follow`.
_EVERY_S = 1.0


def show_usage(port: int, which: Mapping[str, str], *, by: str, as_json: bool, as_csv: bool) -> int:
    """Print what was served, summed by one of GROUPS. Returns 0, or 1.

    *which* are parameters of GET /usage: days, from, to, account, model, tool.
    """
    value = api.ask(port, f"/usage?{urlencode({**which, 'group': by})}")
    sums, problem = value.get("groups", []), value.get("problem")
    if problem:
        note(_partial(problem))
    if as_json:
        days = {"days": int(which["days"])} if "days" in which else {}
        show_json({"by": by, **which, **days, "usage": sums, "problem": problem})
    elif as_csv:
        columns = (by, *AMOUNTS, *COSTS, "unpriced_requests")
        writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sums)
    elif sums:
        console = Console(highlight=False)
        show(as_table(sums, by, console.width if console.is_terminal else None), console)
        _note_prices(value)
    else:
        note(f"nothing was served{_asked(which)}")
    return 0


def _partial(problem: str) -> str:
    """Say that only a part is shown."""
    return f"{problem}; only what this proxy itself knows is shown"


#: What narrows usage, in the order in which it is said.
_ASKED = {
    "account": "by {}",
    "model": "for {}",
    "tool": "to {}",
    "days": "in the last {} days",
    "from": "since {}",
    "to": "before {}",
}


def _asked(which: Mapping[str, str]) -> str:
    """Return *which* as the end of a sentence: ` by openai/work in the last 30 days`."""
    words = [text.format(which[name]) for name, text in _ASKED.items() if name in which]
    return "".join(f" {word}" for word in words).replace("in the last 1 days", "today")


def _note_prices(value: Mapping[str, Any]) -> None:
    """Say what subscriptions cost for what they saved, and what has no price."""
    for one in value.get("subscriptions", []):
        if one["flat_usd"] is not None:
            saved, flat = one["saved_usd"], one["flat_usd"]
            note(
                f"{one['account']}: ${saved:,.2f} at list prices, ${flat:,.2f} of its subscription"
            )
    if unpriced := value.get("unpriced", []):
        models = ", ".join(f"{row['model']} ({row['requests']:,})" for row in unpriced[:8])
        more = f" and {len(unpriced) - 8} more" if len(unpriced) > 8 else ""
        note(f"no price is known for requests of {models}{more}: the cost is without them")


def show_left(port: int, account: str | None, *, as_json: bool) -> int:
    """Have providers asked what accounts have left, and print it. Returns 0, or 1.

    *account* is `provider/label`, a provider for all of its accounts, or None for all.
    """
    body = {} if account is None else {"provider": account}
    if account is not None and "/" in account:
        key = _key(account)
        body = {"provider": key.provider, "label": key.label}
    value = api.change(port, "/usage/refresh", body)
    if as_json:
        show_json(value)
        return 0
    shown = table("account", "left", "reported")
    for one in value["accounts"]:
        shown.add_row(one["key"], _left(one["headroom"]), _reported(one["look_up"]))
    show(shown)
    return 0


def _key(account: str) -> AccountKey:
    """Return the account that somebody has named. Raises Failed."""
    try:
        return AccountKey.parse(account)
    except ValueError as error:
        raise Failed(str(error)) from None


def _left(windows: Iterable[Mapping[str, Any]]) -> str:
    """Return `5h 62%, 7d 81%`, rounded down; `-` where nothing is known."""
    parts = []
    for one in windows:
        of_model = f" {one['model']}" if one["model"] not in (None, one["window"]) else ""
        parts.append(f"{one['window']}{of_model} {percent(one['remaining'])}")
    return ", ".join(parts) or "-"


def _reported(look_up: Mapping[str, Any] | None) -> str:
    """Return when a provider was last asked about an account, and what else it said."""
    if look_up is None:
        return "with responses only"
    parts = [] if look_up["age_s"] is None else [f"{duration(look_up['age_s'])} ago"]
    if (left := look_up["reset_credits"]) is not None:
        parts.append("1 reset left" if left == 1 else f"{left} resets left")
    parts += [look_up["problem"]] if look_up["problem"] else []
    return "; ".join(parts) or "being asked"


def as_table(sums: Sequence[Mapping[str, Any]], by: str, width: int | None = None) -> Table:
    """Return *sums* as a table, with a line of totals where there is more than one row.

    Where that needs more than *width* columns, headers and names are broken, never numbers.
    """
    costs = [name for name in COSTS if any(row.get(name) for row in sums)]
    names = [*AMOUNTS, *costs]
    rows = [[str(row[by]), *(amount(name, row.get(name, 0)) for name in names)] for row in sums]
    if len(sums) > 1:
        totals = [amount(name, sum(row.get(name) or 0 for row in sums)) for name in names]
        rows.append(["total", *totals])
    titles = [by, *(COSTS.get(name, name.replace("_", " ")) for name in names)]
    columns = list(zip(titles, *rows, strict=True))
    needed = sum(max(map(len, column)) for column in columns) + len(names)
    narrow = width is not None and needed > width
    table = Table(box=None, pad_edge=False)
    table.add_column(by, overflow="fold")
    for title, *numbers in columns[1:]:
        least = max(map(len, (*title.split(), *numbers)))
        table.add_column(title, justify="right", width=least if narrow else None)
    for row in rows:
        table.add_row(*row)
    return table


def amount(name: str, value: float | None) -> str:
    if value is None:
        return "?"  # no price is known
    if name == "premium_requests":
        return f"{value:,.2f}"
    return money(value) if name in COSTS else f"{value:,}"


def show_decisions(
    port: int, *, lines: int, follow: bool, account: str | None, kind: str | None, as_json: bool
) -> int:
    """Print the last *lines* decisions, the newest last, then what comes. Returns 0, or 1.

    As JSON: one object a line, so that what follows can be read as it comes.
    """
    seen, proxies, is_alone = dict[object, None](), set[object](), False
    key = str(_key(account)) if account else None
    wanted = {name: value for name, value in (("account", key), ("kind", kind)) if value}
    with suppress(KeyboardInterrupt), api.PoolConnection(port) as connection:
        for value in _answers(connection, "decisions", {"limit": lines, **wanted}):
            if value.get("alone") and not is_alone:
                note("the state cannot be read now: what other proxies decide is missing")
            is_alone = bool(value.get("alone"))
            # Some come again: those that the store has not got.
            found = [row for row in value.get("decisions", []) if row.get("id") not in seen]
            # An older proxy reports neither.
            seen.update((row["id"], None) for row in found if "id" in row)
            proxies |= {row.get("proxy") for row in found}
            for old in list(islice(seen, max(len(seen) - _REMEMBERED, 0))):
                del seen[old]
            named = is_named(proxies, connection.name)
            for decision in reversed(found):
                line = _line(decision, named=named)
                print(json.dumps(decision) if as_json else line, flush=True)
            if not follow:
                if not found:
                    about = (f" about {key}" if key else "") + (f" of kind {kind}" if kind else "")
                    note(f"no decision{about} so far")
                break
    return 0


def _answers(
    connection: api.PoolConnection, what: str, query: Mapping[str, object]
) -> Iterator[Mapping[str, Any]]:
    """Yield what the pool answers about *what*, then what is new, for ever.

    Where it does not answer, but for the first time, it may be started again just now: why it
    does not is said once. Ctrl-C is the usual way to leave. Raises NoAnswer.
    """
    value: Mapping[str, Any] | None = connection.ask(f"/{what}?{urlencode(query)}")
    while value is not None:
        yield value
        if len(value.get(what, [])) < _AT_ONCE:
            time.sleep(_EVERY_S)
        since = {**query, "limit": _AT_ONCE, "since": value.get("next", 0)}
        value, said = None, set[str]()
        while value is None:
            try:
                value = connection.ask(f"/{what}?{urlencode(since)}")
            except api.NoAnswer as error:
                if (why := str(error)) not in said:
                    note(why)
                    said.add(why)
                time.sleep(_EVERY_S)


def is_named(proxies: Iterable[object], own: Callable[[], str]) -> bool:
    """Say whether decisions of those *proxies* name theirs: not all are of the one asked.

    *own* returns the name of that one, "" where it is not known.
    """
    names = {str(name) for name in proxies if name}  # an older proxy names none
    if len(names) != 1:
        return len(names) > 1
    # What follows its host and port is the number of a worker.
    return own() not in ("", names.pop().partition("/")[0])


def _line(decision: Mapping[str, Any], *, named: bool) -> str:
    at = datetime.fromisoformat(decision["at"]).astimezone()
    proxy = f"[{decision['proxy']}] " if named and "proxy" in decision else ""
    return f"{at:%Y-%m-%d %H:%M:%S} {proxy}{decision['text']}"


_LOOK_S = 0.2
#: What mitmdump says of each connection.
_CONNECTION = re.compile(r"^\[[\d:.]+\]\[[^\]]+\S* (?:client|server) (?:dis)?connect\b")


def show_logs(port: int, *, lines: int, follow: bool, path_only: bool, everything: bool) -> int:
    """Print the last *lines* of the log, then what comes. Returns 0, or 1 without a log.

    Connections that come and go are left out, unless *everything* is asked for.
    """
    log = Places.usual(port).log
    wanted = None if everything else lambda line: _CONNECTION.search(line) is None
    if path_only:
        print(log)
        return 0
    try:
        with _open(log) as file:
            _print(deque(filter(wanted, file), lines))
            while follow:
                # A line may come in pieces.
                _print(filter(wanted, iter(file.readline, "")))
                time.sleep(_LOOK_S)
                if _set_aside(file, log):
                    return show_logs(
                        port, lines=lines, follow=True, path_only=False, everything=everything
                    )
    except FileNotFoundError:
        elsewhere = "One you started yourself says everything where you started it"
        if others := running_ports(log.parent):
            elsewhere = f"It has one at port {' and '.join(map(str, others))}: name it with -p"
        return fail(
            f"{log} does not exist: `account-pool run` has not started a proxy at port {port}. "
            f"{elsewhere}"
        )
    except KeyboardInterrupt:
        # The usual way to leave it.
        return 0
    except BrokenPipeError:
        # `| head` has seen enough; what is left must not be flushed into it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _open(log: Path) -> TextIO:
    require_file(log)
    return log.open(encoding="utf-8", errors="replace")


def _print(texts: Iterable[str]) -> None:
    sys.stdout.writelines(texts)
    sys.stdout.flush()


def _set_aside(file: TextIO, log: Path) -> bool:
    """Say whether *file* is not the log any more: it grew large, and a proxy started."""
    return log.exists() and not os.path.samestat(os.fstat(file.fileno()), log.stat())


# -- requests, a line each

_AGO = re.compile(r"(\d{1,5})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
#: Columns whose text stands at the right.
_RIGHT = frozenset({5, 6, 7, 8})


def instant(text: str) -> str:
    """Return *text*, an instant or how long ago (30m, 24h, 7d), as the REST API takes it.

    Raises ValueError where it is neither.
    """
    found = _AGO.fullmatch(text)
    if found is None:
        try:
            datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"{text}: write a day, an instant, or how long ago, such as 2026-08-01, "
                "2026-08-01T13:00:00Z or 24h (m, h and d)"
            ) from None
        return text
    ago = timedelta(**{_UNITS[found[2]]: int(found[1])})
    return (datetime.now(UTC) - ago).isoformat(timespec="seconds")


def show_requests(
    port: int, which: Mapping[str, str], *, lines: int, follow: bool, as_json: bool
) -> int:
    """Print the last *lines* requests, the newest last, then what comes. Returns 0, or 1.

    As JSON: one object a line. *which* are parameters of GET /requests: from, to, account,
    model, tool, status.
    """
    widths: list[int] = []
    noted: str | None = None
    with suppress(KeyboardInterrupt), api.PoolConnection(port) as connection:
        for value in _answers(connection, "requests", {**which, "limit": lines}):
            found = list(reversed(value.get("requests", [])))
            if problem := value.get("problem"):
                if not (found or follow):
                    return fail(problem)
                if problem != noted:
                    note(_partial(problem))
            noted = problem
            for line in map(json.dumps, found) if as_json else aligned(found, widths):
                print(line, flush=True)
            if not follow:
                if not found:
                    kept = value.get("kept_days", 0)
                    why = f"rows are kept for {kept} days" if kept else "pool_requests_kept is 0"
                    note(f"no such request ({why})")
                break
    return 0


def aligned(rows: Iterable[Mapping[str, Any]], widths: list[int]) -> list[str]:
    """Return a line for each of *rows*; *widths* are those of the columns so far, and grow."""
    table = [cells(row) for row in rows]
    for row in table:
        widths += [0] * (len(row) - len(widths))
        widths[:] = map(max, widths, map(len, row))
    return [
        "  ".join(
            cell.rjust(width) if n in _RIGHT else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of a row of GET /requests, in local time."""
    at = datetime.fromisoformat(row["at"]).astimezone()
    tokens = row["tokens"]
    status = row["status"]
    if row["http_status"] not in (None, 200):
        status += f" {row['http_status']}"
    sent = row["attempts"]
    return [
        f"{at:%Y-%m-%d %H:%M:%S}",
        status,
        row["account"] or row["provider"],
        row["model"] or row["endpoint"],
        row["tool"],
        f"{sent}x" if sent != 1 else "",
        "" if tokens["input"] is None else f"{tokens['input']:,}+{tokens['output']:,}",
        _seconds(row["duration_s"]),
        _cost(row),
    ]


def _cost(row: Mapping[str, Any]) -> str:
    if row["cost_usd"] is None:
        return ""
    shown = money(row["cost_usd"])
    return f"({shown})" if row["saved"] else shown


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else f"{value // 60:.0f} min {value % 60:.0f} s"
