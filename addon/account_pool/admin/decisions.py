"""The last decisions as JSON: `Decision.as_dict()`, with instants, and its line in the log."""

from __future__ import annotations

from typing import Any

from account_pool.admin.bodies import DecisionsQuery
from account_pool.admin.views import iso
from account_pool.core.decision import Decision
from account_pool.core.decisions import Decisions
from account_pool.proxy.told import line

#: Members that are instants.
_INSTANTS = ("at", "until", "ended_at")


def decisions_view(decisions: Decisions, wanted: DecisionsQuery, now: float) -> dict[str, Any]:
    """Return the *wanted* ones, the newest first, and the number to ask on from."""
    rows: list[dict[str, Any]] = []
    for decision in decisions:
        if decision.number <= wanted.since or len(rows) >= wanted.limit:
            break
        if _is_wanted(decision, wanted):
            rows.append(_row(decision, now))
    return {"decisions": rows, "next": decisions.made}


def _is_wanted(decision: Decision, wanted: DecisionsQuery) -> bool:
    if wanted.kind is not None and decision.kind != wanted.kind:
        return False
    return wanted.account is None or wanted.account in (str(decision.account), str(decision.to))


def _row(decision: Decision, now: float) -> dict[str, Any]:
    told: dict[str, Any] = decision.as_dict(now)
    instants = {name: None if told[name] is None else iso(told[name]) for name in _INSTANTS}
    return {**told, **instants, "text": line(decision)}
