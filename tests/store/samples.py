"""Accounts to be kept, and how tests write and read them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec.structs import replace
from tests.store.backends import WALL

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cooldown, Endings
from account_pool.core.headroom import Window
from account_pool.core.outcome import Cause, OutcomeClass, Scope
from account_pool.core.snapshot import AccountSnapshot, DisablingSnapshot
from account_pool.store.store import News, Row, StateStore, TableChanges

WORK, HOME = AccountKey("openai", "work"), AccountKey("openai", "home")
CAUSE = Cause(
    signal="429 code=x",
    cls=OutcomeClass.QUOTA,
    scope=Scope.MODEL,
    evidence={"retry-after": "60", "odd": "\xff"},
    hinted=True,
    unknown=True,
    money=True,
)
COOLS = Cooldown(
    model=None, since=WALL, until=WALL + 60.125, streak=2, cause=CAUSE, probed_at=WALL + 30.5
)
# A client may ask for a model with half a character in its name.
ODD = replace(COOLS, model="gpt-5\ud800")
HOURS = Window("5h", 0.25, WALL, reset_at=WALL + 7)
TOKENS = Window("tokens", 0.5, WALL, model="gpt-*", limit=10.0, remaining=5.0)
FULL = AccountSnapshot(
    key=WORK,
    cooldowns={None: COOLS, ODD.model: ODD},
    disabled=DisablingSnapshot(cause=CAUSE, since=WALL - 5),
    endings=Endings(disabling=WALL - 7.5, cooldowns=WALL - 8),
    refused="abc",
    owner="org-1",
    windows={("5h", None): HOURS, ("tokens", "gpt-*"): TOKENS},
    served=3,
)
PLAIN = AccountSnapshot(key=HOME, served=1)
UNKNOWN = AccountSnapshot(key=WORK)


def keep(store: StateStore, *accounts: AccountSnapshot, at: float = WALL) -> list[AccountSnapshot]:
    return list(store.exchange(accounts, (), wall_now=at).accounts)


def news(store: StateStore, at: float = WALL) -> News:
    return store.changed(wall_now=at)


def write(
    store: StateStore, table: str, rows: Collection[Row], gone: Mapping[str, float] | None = None
) -> None:
    store.exchange((), wall_now=WALL, lines={table: TableChanges(rows, gone or {})})
