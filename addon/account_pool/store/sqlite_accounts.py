"""What is kept of accounts, in the state database: their rows, and those of their cooldowns.

Functions over a connection; `sqlite_state.py` lends it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from math import inf

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import NEVER, Cause, Cooldown, Endings
from account_pool.core.headroom import Key, Window
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.snapshot import AccountSnapshot, DisablingSnapshot
from account_pool.core.state import Rows

#: By account, the text of each of its windows.
Texts = dict[AccountKey, Rows[Key, Window, str]]


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
            cause=_cause_of(cause),
            probed_at=_probed_at(cause),
        )
    endings = {
        account: Endings(*(-inf if at is None else float(at) for at in ended))
        for account, *ended in connection.execute(
            "SELECT account, disabling, benches, cooldowns FROM endings "
            "WHERE account IN (SELECT value FROM json_each(?))",
            wanted,
        )
    }
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
            disabled=disabled and DisablingSnapshot(cause=_cause_of(disabled), since=disabled_at),
            endings=endings.get(account, NEVER),
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


def write_accounts(
    connection: sqlite3.Connection,
    accounts: Collection[AccountSnapshot],
    write: int,
    wall_now: float,
    found: Mapping[AccountKey, AccountSnapshot],
    *,
    texts: Texts,
) -> None:
    """Write *accounts*, by the write of this number.

    *found* is what is there; *texts* is kept from write to write.
    """
    connection.executemany(
        "INSERT INTO accounts VALUES (?1, ?2, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) "
        "ON CONFLICT (account) DO UPDATE SET "
        "last_seen = ?2, served = ?3, owner = ?4, disabled = ?5, disabled_at = ?6, "
        "refused = ?7, write = ?8, source = ?9, windows = ?10",
        [
            (
                str(account.key),
                wall_now,
                account.served,
                _quoted(account.owner),
                (disabled := account.disabled) and _cause_text(disabled.cause),
                disabled and disabled.since,
                account.refused,
                write,
                account.source,
                _listed(account, texts) if account.windows else "[]",
            )
            for account in accounts
        ],
    )
    for account in accounts:
        before = found.get(account.key)
        if account.cooldowns or (before is not None and before.cooldowns):
            _write_cooldowns(connection, account, before.cooldowns if before else {})
        if account.endings != (before.endings if before else NEVER):
            connection.execute(
                "INSERT OR REPLACE INTO endings VALUES (?, ?, ?, ?)",
                (str(account.key), *(None if at == -inf else at for at in account.endings)),
            )


def _write_cooldowns(
    connection: sqlite3.Connection,
    account: AccountSnapshot,
    before: Mapping[str | None, Cooldown],
) -> None:
    name, after = str(account.key), account.cooldowns
    # An account may cool for a hundred models: what stays as it is, mostly the same object,
    # costs nothing.
    if ended := [
        _quoted(model)
        for model, c in before.items()
        if c is not (now := after.get(model)) and c != now
    ]:
        # In one step, which looks at the account's others once.
        connection.execute(
            "DELETE FROM cooldowns WHERE account = ? "
            "AND (model IN (SELECT value FROM json_each(?)) OR (model IS NULL AND ?))",
            (name, json.dumps(ended), None in ended),
        )
    if new := [
        (name, _quoted(c.model), c.since, c.until, c.streak, _cause_text(c.cause, c.probed_at))
        for model, c in after.items()
        if c is not (was := before.get(model)) and c != was
    ]:
        connection.executemany("INSERT INTO cooldowns VALUES (?, ?, ?, ?, ?, ?)", new)


def names(keys: Iterable[AccountKey]) -> str:
    return json.dumps([str(key) for key in keys])


def _quoted(text: str | None) -> str | None:
    """Return *text* as JSON: not all that JSON can hold fits into SQLite (`is_text`)."""
    return None if text is None else json.dumps(text)


def _unquoted(text: str | None) -> str | None:
    return None if text is None else str(json.loads(text))


def _listed(account: AccountSnapshot, texts: Texts) -> str:
    """Return the windows of *account* as JSON. Most did not change since the last time."""
    rows = texts.setdefault(account.key, Rows())
    return f"[{', '.join(rows.of(account.windows, _window_text).values())}]"


def _window_text(window: Window) -> str:
    """Return *window* as JSON, which knows no infinity: null."""
    reset_at = None if window.reset_at == inf else window.reset_at
    return json.dumps({**window._asdict(), "reset_at": reset_at})


def _windows(text: str) -> dict[Key, Window]:
    windows = [
        Window(**{**window, "reset_at": inf if window["reset_at"] is None else window["reset_at"]})
        for window in json.loads(text)
    ]
    return {(window.name, window.model): window for window in windows}


def cause_row(cause: Cause) -> dict[str, object]:
    """Return *cause* as values of JSON."""
    return {
        "signal": cause.signal,
        "class": cause.cls,
        "scope": cause.scope,
        "evidence": dict(cause.evidence),
        "hinted": cause.hinted,
        "unknown": cause.unknown,
        "money": cause.money,
    }


def _cause_text(cause: Cause, probed_at: float = -inf) -> str:
    return json.dumps({**cause_row(cause), "probed_at": None if probed_at == -inf else probed_at})


def _cause_of(text: str) -> Cause:
    value = json.loads(text)
    return Cause(
        signal=value["signal"],
        cls=OutcomeClass(value["class"]),
        scope=Scope(value["scope"]),
        evidence=value["evidence"],
        hinted=value["hinted"],
        unknown=value.get("unknown", False),
        money=value.get("money", False),
    )


def _probed_at(text: str) -> float:
    """Return when the deadline was last tried; files of earlier versions do not say it."""
    at = json.loads(text).get("probed_at")
    return -inf if at is None else float(at)
