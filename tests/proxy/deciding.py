"""Proxies that decide something, and share that."""

from __future__ import annotations

from typing import Any

from account_pool.core.account import AccountKey
from account_pool.core.decisions import By, Decision, Decisions, Kind
from account_pool.proxy.decision_log import SharedDecisions
from account_pool.store.store import StateStore
from tests.core.helpers import ClocksAhead

ONE = AccountKey("openai", "one")


class Proxy:
    """The decisions of a proxy, and its part in the log."""

    def __init__(self, name: str) -> None:
        self.decisions = Decisions()
        self.decisions.clocks = ClocksAhead(1e9)
        self.shared = SharedDecisions(lambda: 1e9 + 100.0, lambda: name)
        self.shared.follow(self.decisions)

    def decide(self, kind: Kind = Kind.MOVE, **fields: Any) -> Decision:
        at = {"at": 10.0, "by": By.ANSWER, "provider": "openai", "account": ONE}
        return self.decisions.add(Decision(kind=kind, **{**at, **fields}))

    def sees(self, store: StateStore | None) -> list[tuple[int, str, str]]:
        rows = self.shared.own().rows if store is None else self.shared.sync(store).rows
        return [(row["number"], row["proxy"], row["reason"]) for row in rows]
