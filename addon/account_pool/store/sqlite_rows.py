"""Accounts as rows of the state database, and the texts in them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cause, Cooldown
from account_pool.core.headroom import Key, Window
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.snapshot import AccountSnapshot, DisablingSnapshot


def read_accounts(
    connection: sqlite3.Connection, keys: Iterable[AccountKey]
) -> dict[AccountKey, AccountSnapshot]:
    """Return what is kept of *keys*. Raises LookupError, TypeError or ValueError."""
    wanted = (names(keys),)
    cooldowns: dict[str, dict[str | None, Cooldown]] = {}
    for account, model, since, until, streak, cause in connection.execute(
        "SELECT account, model, since, until, streak, cause FROM cooldowns "
        "WHERE account IN (SELECT value FROM json_each(?))",
        wanted,
    ):
        covered = _unquoted(model)
        cooldowns.setdefault(account, {})[covered] = Cooldown(
            model=covered,
            since=since,
            until=until,
            streak=streak,
            cause=_cause(cause),
            probed_at=_probed_at(cause),
        )
    rows = connection.execute(
        "SELECT account, served, owner, windows, disabled, disabled_at, refused, source "
        "FROM accounts "
        "WHERE account IN (SELECT value FROM json_each(?))",
        wanted,
    )
    return {
        (key := AccountKey.parse(account)): AccountSnapshot(
            key=key,
            cooldowns=cooldowns.get(account, {}),
            disabled=disabled and DisablingSnapshot(cause=_cause(disabled), since=disabled_at),
            refused=refused or "",
            owner=_unquoted(owner),
            windows=_windows(windows),
            served=served,
            source=source,
        )
        for (
            account,
            served,
            owner,
            windows,
            disabled,
            disabled_at,
            refused,
            source,
        ) in rows
    }


def write_account(
    connection: sqlite3.Connection, account: AccountSnapshot, write: int, wall_now: float
) -> None:
    """Write *account*, by the write of this number."""
    name, disabled = str(account.key), account.disabled
    connection.execute(
        "INSERT INTO accounts VALUES (:name, :now, :now, :served, :owner, "
        ":disabled, :disabled_at, :refused, :write, :source, :windows) "
        "ON CONFLICT (account) DO UPDATE SET "
        "last_seen = :now, served = :served, owner = :owner, disabled = :disabled, "
        "disabled_at = :disabled_at, refused = :refused, write = :write, source = :source, "
        "windows = :windows",
        {
            "name": name,
            "now": wall_now,
            "served": account.served,
            "owner": _quoted(account.owner),
            "windows": _listed(account.windows.values()),
            "disabled": disabled and _text(disabled.cause),
            "disabled_at": disabled and disabled.since,
            "refused": account.refused,
            "write": write,
            "source": account.source,
        },
    )
    connection.execute("DELETE FROM cooldowns WHERE account = ?", (name,))
    connection.executemany(
        "INSERT INTO cooldowns VALUES (?, ?, ?, ?, ?, ?)",
        (
            (name, _quoted(c.model), c.since, c.until, c.streak, _text(c.cause, c.probed_at))
            for c in account.cooldowns.values()
        ),
    )


def names(keys: Iterable[AccountKey]) -> str:
    return json.dumps([str(key) for key in keys])


def is_text(key: str) -> bool:
    """Say whether SQLite can hold *key*: clients choose it, and JSON has half characters."""
    return key.isascii() or key == key.encode(errors="replace").decode()


def _quoted(text: str | None) -> str | None:
    """Return *text* as JSON, for the same reason."""
    return None if text is None else json.dumps(text)


def _unquoted(text: str | None) -> str | None:
    return None if text is None else str(json.loads(text))


def _listed(windows: Iterable[Window]) -> str:
    """Return *windows* as JSON, which knows no infinity: null."""
    told = [window._asdict() for window in windows]
    return json.dumps(
        [{**w, "reset_at": None if w["reset_at"] == inf else w["reset_at"]} for w in told]
    )


def _windows(text: str) -> dict[Key, Window]:
    told = [
        Window(**{**window, "reset_at": inf if window["reset_at"] is None else window["reset_at"]})
        for window in json.loads(text)
    ]
    return {(window.name, window.model): window for window in told}


def _text(cause: Cause, probed_at: float = -inf) -> str:
    told: Mapping[str, Any] = {
        "signal": cause.signal,
        "class": cause.cls,
        "scope": cause.scope,
        "evidence": dict(cause.evidence),
        "hinted": cause.hinted,
        "unknown": cause.unknown,
        "money": cause.money,
        "probed_at": None if probed_at == -inf else probed_at,
    }
    return json.dumps(told)


def _cause(text: str) -> Cause:
    told = json.loads(text)
    return Cause(
        signal=told["signal"],
        cls=OutcomeClass(told["class"]),
        scope=Scope(told["scope"]),
        evidence=told["evidence"],
        hinted=told["hinted"],
        unknown=told.get("unknown", False),
        money=told.get("money", False),
    )


def _probed_at(text: str) -> float:
    """Return when the deadline was last tried; files of earlier versions do not say it."""
    at = json.loads(text).get("probed_at")
    return -inf if at is None else float(at)
