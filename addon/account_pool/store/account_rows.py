"""What is kept of an account: rows of a state database; one row in an engine, which is JSON.

Another version may know more. A cause of a class or a scope that is not known here is a limit all
the same; what it says besides is left out, and in an engine written back as it was read.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from math import inf, isfinite
from typing import Any, NamedTuple, TypeVar

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import NEVER, Cooldown, Endings
from account_pool.core.headroom import Key, Window
from account_pool.core.outcome import Cause, OutcomeClass, Scope
from account_pool.core.snapshot import AccountSnapshot, DisablingSnapshot
from account_pool.core.state import Rows, replaced

#: By account, the text of each of its windows.
Texts = dict[AccountKey, Rows[Key, Window, str]]
Part = TypeVar("Part")
#: A larger number is nobody's count.
_MOST = 2**53
#: One of more digits is larger than any float.
_MOST_DIGITS = 308


# -- in a state database. Functions over a connection; `sqlite_state.py` lends it.


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
        covered, said = _unquoted(model), json.loads(cause)
        cooldowns.setdefault(account, {})[covered] = Cooldown(
            model=covered,
            since=since,
            until=until,
            streak=streak,
            cause=_cause(said),
            # Files of earlier versions do not say it.
            probed_at=_number_or(said.get("probed_at"), -inf),
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
            disabled=disabled
            and DisablingSnapshot(cause=_cause(json.loads(disabled)), since=disabled_at),
            endings=endings.get(account, NEVER),
            refused=refused or "",
            owner=_unquoted(owner),
            windows=_by_key(w for _, w in _parts(json.loads(windows), _window, [])),
            served=served,
            source=source,
        )
        for account, served, owner, windows, disabled, disabled_at, refused, source in rows
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
    if ended := [
        (name, _quoted(model))
        for model in replaced(before, after)
        if before[model] != after.get(model)
    ]:
        connection.executemany("DELETE FROM cooldowns WHERE account = ? AND model IS ?", ended)
    if new := [
        (name, _quoted(c.model), c.since, c.until, c.streak, _cause_text(c.cause, c.probed_at))
        for model in replaced(after, before)
        if (c := after[model]) != before.get(model)
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
    return json.dumps(_window_row(window))


def _cause_text(cause: Cause, probed_at: float = -inf) -> str:
    return json.dumps({**_cause_row(cause), "probed_at": None if probed_at == -inf else probed_at})


# -- in an engine
#
# A part that makes no sense is as good as not there; the rest of the row counts. What has not
# changed is written back as it was read.


class ReadAccount(NamedTuple):
    """An account as its row says it; *wrong*: something in that makes no sense."""

    account: AccountSnapshot
    wrong: bool


def read_account(key: AccountKey, data: bytes) -> ReadAccount | None:
    """Return what *data* says of the account *key*; None: nothing that can be understood."""
    row = loads(data)
    if not isinstance(row, dict):
        return None
    wrong: list[object] = []
    cooldowns = [c for _, c in _parts(row.get("cooldowns", []), _cooldown, wrong)]
    disabled = row.get("disabled")
    disablings = _parts([] if disabled is None else [disabled], _disabling, wrong)
    account = AccountSnapshot(
        key=key,
        cooldowns={cooldown.model: cooldown for cooldown in cooldowns},
        disabled=disablings[0][1] if disablings else None,
        endings=_either(_endings, row.get("endings", {}), Endings(), wrong),
        refused=_either(_text, row.get("refused", ""), "", wrong),
        owner=_either(_text_or_none, row.get("owner"), None, wrong),
        windows=_by_key(w for _, w in _parts(row.get("windows", []), _window, wrong)),
        served=_either(_count, row.get("served", 0), 0, wrong),
        source=_either(_text, row.get("source", ""), "", wrong),
    )
    return ReadAccount(account, bool(wrong))


def write_account(account: AccountSnapshot, before: bytes = b"") -> bytes:
    """Return the row of *account*, which replaces the row *before*."""
    known = loads(before)
    row: dict[str, Any] = known if isinstance(known, dict) else {}
    cooldowns = {c.model: (part, c) for part, c in _parts(row.get("cooldowns"), _cooldown, [])}
    windows = {(w.name, w.model): (part, w) for part, w in _parts(row.get("windows"), _window, [])}
    disablings = _parts([row.get("disabled")], _disabling, [])
    disabled = account.disabled
    row.update(
        served=account.served,
        owner=account.owner,
        source=account.source,
        refused=account.refused,
        cooldowns=[
            _as_read(c, cooldowns.get(c.model), _cooldown_row) for c in account.cooldowns.values()
        ],
        windows=[
            _as_read(w, windows.get((w.name, w.model)), _window_row)
            for w in account.windows.values()
        ],
        disabled=disabled
        and _as_read(disabled, disablings[0] if disablings else None, _disabling_row),
    )
    endings = row.pop("endings", None)
    endings = dict(endings) if isinstance(endings, dict) else {}
    for what, at in account.endings._asdict().items():
        endings.pop(what, None)
        if at != -inf:
            endings[what] = at
    if endings:
        row["endings"] = endings
    return dumps(row)


def dumps(value: object) -> bytes:
    """Return *value* as JSON. Raises ValueError for a number that it does not know."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def account_key(name: str) -> AccountKey | None:
    """Return the account *name*; None: it is none."""
    try:
        return AccountKey.parse(name)
    except ValueError:
        return None


def loads(data: bytes) -> Any:
    """Return what is in *data*; None where that is no JSON, or none that could be.

    A number that no float can be is None: all others can be computed with, and written.
    """
    try:
        return json.loads(data, parse_constant=_no_number, parse_float=_float, parse_int=_int)
    except (ValueError, RecursionError):
        return None


def _float(text: str) -> float | None:
    number = float(text)
    return number if isfinite(number) else None


def _int(text: str) -> int | None:
    return int(text) if len(text) <= _MOST_DIGITS else None


def _no_number(name: str) -> None:
    raise ValueError(name)


def _parts(
    parts: object, read: Callable[[Any], Part], wrong: list[object]
) -> list[tuple[object, Part]]:
    """Return the *parts* that can be read, each as it is and as it was read."""
    if not isinstance(parts, list):
        wrong.append(parts)
        return []
    found = []
    for part in parts:
        try:
            found.append((part, read(part)))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            wrong.append(part)
    return found


def _as_read(
    part: Part, known: tuple[object, Part] | None, write: Callable[[Part], object]
) -> object:
    """Return how *part* is written: as it was read, if it is the one *known*."""
    return known[0] if known is not None and known[1] == part else write(part)


def _either(
    read: Callable[[Any], Part], value: object, otherwise: Part, wrong: list[object]
) -> Part:
    found = _parts([value], read, wrong)
    return found[0][1] if found else otherwise


# -- the values in both. They raise LookupError, TypeError, ValueError or AttributeError.


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST:
        raise TypeError
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    number = float(value)
    if not isfinite(number):
        raise ValueError
    return number


def _number_or(value: object, none: Part) -> float | Part:
    return none if value is None else _number(value)


def _cooldown(row: Any) -> Cooldown:
    return Cooldown(
        model=_text_or_none(row["model"]),
        since=_number(row["since"]),
        until=_number(row["until"]),
        streak=_count(row["streak"]),
        cause=_cause(row["cause"]),
        probed_at=_number_or(row["probed_at"], -inf),
    )


def _cooldown_row(cooldown: Cooldown) -> dict[str, object]:
    return {
        "model": cooldown.model,
        "since": cooldown.since,
        "until": cooldown.until,
        "streak": cooldown.streak,
        "cause": _cause_row(cooldown.cause),
        "probed_at": None if cooldown.probed_at == -inf else cooldown.probed_at,
    }


def _window(row: Any) -> Window:
    return Window(
        name=_text(row["name"]),
        share=_number(row["share"]),
        told_at=_number(row["told_at"]),
        model=_text_or_none(row.get("model")),
        reset_at=_number_or(row.get("reset_at"), inf),
        length_s=_number_or(row.get("length_s"), None),
        limit=_number_or(row.get("limit"), None),
        remaining=_number_or(row.get("remaining"), None),
    )


def _window_row(window: Window) -> dict[str, object]:
    return {**window._asdict(), "reset_at": None if window.reset_at == inf else window.reset_at}


def _disabling(row: Any) -> DisablingSnapshot:
    return DisablingSnapshot(cause=_cause(row["cause"]), since=_number(row["since"]))


def _disabling_row(disabling: DisablingSnapshot) -> dict[str, object]:
    return {"cause": _cause_row(disabling.cause), "since": disabling.since}


def _endings(row: Any) -> Endings:
    return Endings(*(_number_or(row.get(what), -inf) for what in Endings._fields))


def _by_key(windows: Iterable[Window]) -> dict[Key, Window]:
    return {(window.name, window.model): window for window in windows}


def _cause_row(cause: Cause) -> dict[str, object]:
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


def _cause(row: Any) -> Cause:
    evidence = {_text(k): _text(v) for k, v in dict(row["evidence"]).items()}
    cls, scope = _text(row["class"]), _text(row["scope"])
    return Cause(
        signal=_text(row["signal"]),
        cls=OutcomeClass(cls) if cls in list(OutcomeClass) else OutcomeClass.RATE_LIMIT,
        scope=Scope(scope) if scope in list(Scope) else Scope.ACCOUNT,
        evidence=evidence,
        hinted=row["hinted"] is True,
        # Earlier versions do not say these.
        unknown=row.get("unknown") is True,
        money=row.get("money") is True,
    )
