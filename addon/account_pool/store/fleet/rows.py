"""What is kept of an account in the engine: JSON, of which another version may know more.

What another version wrote, and what has not changed, is written back as it was read. A part
that makes no sense is as good as not there; the rest of the row counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import inf, isfinite
from typing import Any, NamedTuple, TypeVar

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cause, Cooldown, Endings
from account_pool.core.headroom import Window
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.snapshot import AccountSnapshot, DisablingSnapshot
from account_pool.store.sqlite_accounts import cause_row

Part = TypeVar("Part")
#: A larger number is nobody's count.
_MOST = 2**53
#: One of more digits is larger than any float.
_MOST_DIGITS = 308


class ReadAccount(NamedTuple):
    """A row as it was read.

    Attributes:
        account: what it says.
        wrong: something in it makes no sense.
    """

    account: AccountSnapshot
    wrong: bool


def read_account(key: AccountKey, data: bytes) -> ReadAccount | None:
    """Return what *data* says of the account *key*; None: nothing that can be understood."""
    row = loads(data)
    if not isinstance(row, dict):
        return None
    wrong: list[object] = []
    cooldowns = [c for _, c in _parts(row.get("cooldowns", []), _cooldown, wrong)]
    windows = [w for _, w in _parts(row.get("windows", []), _window, wrong)]
    disabled = row.get("disabled")
    disablings = _parts([] if disabled is None else [disabled], _disabling, wrong)
    account = AccountSnapshot(
        key=key,
        cooldowns={cooldown.model: cooldown for cooldown in cooldowns},
        disabled=disablings[0][1] if disablings else None,
        endings=_either(_endings, row.get("endings", {}), Endings(), wrong),
        refused=_either(_text, row.get("refused", ""), "", wrong),
        owner=_either(_text_or_none, row.get("owner"), None, wrong),
        windows={(window.name, window.model): window for window in windows},
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


# -- parts of a row


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
        "cause": cause_row(cooldown.cause),
        "probed_at": None if cooldown.probed_at == -inf else cooldown.probed_at,
    }


def _window(row: Any) -> Window:
    return Window(
        name=_text(row["name"]),
        share=_number(row["share"]),
        told_at=_number(row["told_at"]),
        model=_text_or_none(row["model"]),
        reset_at=_number_or(row["reset_at"], inf),
        length_s=_number_or(row["length_s"], None),
        limit=_number_or(row["limit"], None),
        remaining=_number_or(row["remaining"], None),
    )


def _window_row(window: Window) -> dict[str, object]:
    return {**window._asdict(), "reset_at": None if window.reset_at == inf else window.reset_at}


def _disabling(row: Any) -> DisablingSnapshot:
    return DisablingSnapshot(cause=_cause(row["cause"]), since=_number(row["since"]))


def _disabling_row(disabling: DisablingSnapshot) -> dict[str, object]:
    return {"cause": cause_row(disabling.cause), "since": disabling.since}


def _endings(row: Any) -> Endings:
    return Endings(*(_number_or(row.get(what), -inf) for what in Endings._fields))


def _cause(row: Any) -> Cause:
    evidence: Mapping[str, str] = {_text(k): _text(v) for k, v in row["evidence"].items()}
    # A newer version may know more of them: what it found is a limit all the same.
    cls, scope = _text(row["class"]), _text(row["scope"])
    return Cause(
        signal=_text(row["signal"]),
        cls=OutcomeClass(cls) if cls in list(OutcomeClass) else OutcomeClass.RATE_LIMIT,
        scope=Scope(scope) if scope in list(Scope) else Scope.ACCOUNT,
        evidence=evidence,
        hinted=row["hinted"] is True,
        unknown=row["unknown"] is True,
        money=row["money"] is True,
    )
