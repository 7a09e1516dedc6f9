"""The table of `pool.status`: every account, who waits, and the last decisions.

Lines of text in columns: mitmproxy's console and mitmweb show a list of lines, and scripts
get what people read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice

from account_pool.core import headroom
from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cooldown
from account_pool.core.decision_text import MAX_VALUES, asked_last, duration, evidence, line
from account_pool.core.decisions import Decision, Decisions, Kind, one_line
from account_pool.core.sessions import Sessions
from account_pool.core.state import AccountState

#: Decisions that are shown.
LAST = 20

_HEAD = ("account", "state", "in flight", "served", "sessions", "left", "why")


def lines(
    states: Iterable[AccountState],
    sessions: Sessions,
    decisions: Decisions,
    now: float,
    *,
    whole: bool = False,
) -> list[str]:
    """Return the table of the accounts *states*, and the decisions about them.

    *whole*: with every header value that is known, not only the first `MAX_VALUES`.
    """
    most = None if whole else MAX_VALUES
    states = list(states)
    homes = Counter(s.account for key in sessions if (s := sessions.peek(key, now)) is not None)
    table = _columns([_HEAD, *(_row(state, homes, most, now) for state in states)])
    providers = {state.key.provider for state in states}
    keys = {state.key for state in states}
    of_these = [d for d in decisions if d.provider in providers and _is_about(d, keys)]
    held = [d for d in of_these if d.kind is Kind.WAIT and d.ended_at is None]
    if held:
        table += ["", f"{len(held)} waiting now:", *(_entry(d, now) for d in reversed(held))]
    if of_these:
        last = list(islice(of_these, LAST))
        table += ["", "last decisions, newest first:", *(_entry(d, now) for d in last)]
    return table


def _is_about(decision: Decision, keys: set[AccountKey]) -> bool:
    return decision.account is None or bool({decision.account, decision.to} & keys)


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # The last column is not padded.
    widths[-1] = 0
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _row(
    state: AccountState, homes: Counter[AccountKey], most: int | None, now: float
) -> tuple[str, ...]:
    verdict, why = _state(state, most, now)
    return (
        str(state.key),
        verdict,
        _in_flight(state),
        str(state.served),
        str(homes[state.key]),
        headroom.shown(state.headroom.windows.values(), now) or "-",
        "; ".join(why),
    )


def _in_flight(state: AccountState) -> str:
    there = f" + {state.in_flight_remote} elsewhere" if state.in_flight_remote else ""
    return f"{state.in_flight}{there}"


def _state(state: AccountState, most: int | None, now: float) -> tuple[str, list[str]]:
    """Return the state of an account, and the reasons."""
    active = sorted(
        (c for c in state.holds() if c.active(now)),
        key=lambda c: (c.model or "", c.until),
    )
    models = [
        f"{one_line(c.model)} {_cools(c, now)}: {evidence(c.cause, most)}"
        for c in active
        if c.model
    ]
    models += [
        f"{asked_last(v.until - now, v.covered)}: {evidence(v.cause, most)}"
        for v in state.verdicts.values()
        if v.active(now)
    ]
    if not state.account.enabled:
        return "off", ["enabled: false in accounts.yaml"]
    if state.disabled is not None:
        since = duration(now - state.disabled_at)
        return f"disabled {since} ago", [evidence(state.disabled, most)]
    if not state.credentials:
        return "no credential", [state.problem or "being fetched"]
    if state.problem:
        models.append(state.problem)
    whole = next((c for c in active if c.model is None), None)
    if whole is not None:
        ours = [] if whole.cause.hinted else ["no reset was named"]
        return _cools(whole, now), [evidence(whole.cause, most), *ours, *models]
    return ("full" if state.full else "available"), models


def _cools(cooldown: Cooldown, now: float) -> str:
    return f"on cooldown for {duration(cooldown.until - now)}"


def _entry(decision: Decision, now: float) -> str:
    """Return one decision with its time of day, and how it ended if that is known."""
    at = f"{datetime.fromtimestamp(decision.wall_at).astimezone():%H:%M:%S}"
    text = f"{at}  {decision.kind.value:8}  {line(decision)}"
    return text + "".join(_marks(decision, now))


def _marks(decision: Decision, now: float) -> Iterator[str]:
    if decision.times > 1:
        yield f" [{decision.times} times]"
    if decision.kind in (Kind.COOLDOWN, Kind.DISABLE):
        if decision.ended_at is not None and decision.released_by is not None:
            after = duration(decision.ended_at - decision.at)
            yield f" [ended after {after}, by {decision.released_by.value}]"
        elif decision.kind is Kind.COOLDOWN and decision.is_over(now):
            yield " [over]"
