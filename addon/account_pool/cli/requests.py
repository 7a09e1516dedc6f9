"""`account-pool requests`: the requests that have ended, a line each.

`cells` is pure: a row of GET /requests in, columns out.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from account_pool.cli import api
from account_pool.cli.output import fail, money, note

#: Seconds between two questions of `--follow`.
_EVERY_S = 1.0
#: What GET /requests returns at once at most.
_AT_ONCE = 1000
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
    since: int | None = None
    try:
        while True:
            asked = {**which, "limit": min(lines, _AT_ONCE)}
            if since is not None:
                asked |= {"since": since, "limit": _AT_ONCE}
            value = api.ask(port, f"/requests?{urlencode(asked)}")
            if problem := value.get("problem"):
                return fail(problem)
            found = list(reversed(value.get("requests", [])))
            for line in map(json.dumps, found) if as_json else aligned(found, widths):
                print(line, flush=True)
            if not follow:
                if not found:
                    kept = value.get("kept_days", 0)
                    why = f"in the last {kept} days" if kept else "pool_requests_kept is 0"
                    note(f"no such request ({why})")
                return 0
            since = value.get("next", 0)
            if len(found) < _AT_ONCE:
                time.sleep(_EVERY_S)
    except api.NoAnswer as error:
        return fail(error)
    except KeyboardInterrupt:
        # The usual way to leave it.
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
    status = (
        row["status"]
        if row["http_status"] in (None, 200)
        else (f"{row['status']} {row['http_status']}")
    )
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
