"""What all proxies on one store have decided, as one of them knows it.

A decision goes to the store as text that any version can read, with times on the store's
clock. What comes from there is data of another process: bounded, and read field by field, so
that what is missing, new or wrong in it is unknown, and no more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from account_pool.core.decision_text import line
from account_pool.core.decisions import KEPT, By, Decision, Kind, one_line
from account_pool.core.json_values import finite_number

#: What a proxy has taken over: the one that has decided it, or an earlier run, has recorded it.
ECHOES = frozenset({By.PROXY, By.RESTART})
#: Proxies that decide the same of an account within so many seconds (each is refused, or reads
#: accounts.yaml again) have decided one thing.
SAME_S = 5.0
#: Longer records are of no proxy of ours.
MAX_RECORD_CHARS = 16_384
MAX_TEXT_CHARS, MAX_EVIDENCE = 2_000, 50

#: Keys of `Decision.as_dict` by what they hold; all but `number`, and those that are required.
_TEXTS = (
    "account", "to", "model", "class", "scope", "signal", "reason", "effect", "covers", "session",
    "released_by",
)  # fmt: skip
_NUMBERS = ("until", "told_s", "ended_at", "waited_s")
_FLAGS = ("unknown", "reset_named")
_TIMES = ("at", "until", "ended_at")
#: What becomes of accounts, not of requests.
_OF_ACCOUNTS = frozenset({Kind.COOLDOWN, Kind.RELEASE, Kind.DISABLE, Kind.ENABLE, Kind.SUSPECT})
#: What a decision of this kind ends.
_ENDS = {Kind.RELEASE: Kind.COOLDOWN, Kind.ENABLE: Kind.DISABLE}

# `json.dumps` makes an encoder for each call that wants no blanks.
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode

#: A decision by the keys of `Decision.as_dict`, with `text`.
Record = dict[str, Any]


class LoggedDecision(NamedTuple):
    """A decision for the log that proxies share.

    Attributes:
        origin: the run of a proxy that has made it.
        own: its number there. Both together identify it.
        proxy: the name of that proxy, for people.
        record: as `record_of` writes it.
    """

    origin: str
    own: int
    proxy: str
    record: str


class DecisionsShown(NamedTuple):
    """Decisions of all proxies.

    Attributes:
        rows: the oldest first, as `Decision.as_dict` has them, with `id`, `proxy` and `text`;
            `number` and `ends` are numbers of the log. Times are those of our wall clock.
        upto: the largest number that stays as it is: what has a larger one may get another.
    """

    rows: list[Record]
    upto: int


def record_of(decision: Decision, ahead_s: float) -> str:
    """Return *decision* for the log; *ahead_s* is what the store's clock is ahead of our own."""
    record = decision.as_dict(-math.inf, ahead_s)  # whether time has ended it shows later
    del record["number"]
    return _ENCODE({**record, "text": line(decision)})


def read_record(text: object) -> Record | None:
    """Return the record that *text* holds, with all keys; None if it is none."""
    if not isinstance(text, str | bytes) or len(text) > MAX_RECORD_CHARS:
        return None
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or (at := _number(said.get("at"))) is None:
        return None
    record: Record = {"at": at}
    for name in ("kind", "by", "provider", "text"):
        value = _text(said.get(name))
        if value is None:
            return None
        record[name] = value
    record |= {name: _text(said.get(name)) for name in _TEXTS}
    record |= {name: _number(said.get(name)) for name in _NUMBERS}
    record |= {name: v if isinstance(v := said.get(name), bool) else None for name in _FLAGS}
    evidence = said.get("evidence")
    named = evidence.items() if isinstance(evidence, dict) else ()
    record["evidence"] = {
        one_line(name): text
        for name, value in list(named)[:MAX_EVIDENCE]
        if (text := _text(value)) is not None
    }
    record["ends"] = _count(said.get("ends"))
    record["times"] = _count(said.get("times")) or 1
    return record


class DecisionHistory:
    """The decisions of all proxies that are kept, by number. It is never changed.

    Attributes:
        log: names the log they are from; None before one was read.
        upto: the number of the last change that was read.
    """

    def __init__(
        self,
        log: str | None = None,
        upto: int = 0,
        rows: Mapping[int, tuple[LoggedDecision, Record]] | None = None,
    ) -> None:
        self.log, self.upto = log, upto
        self._rows = rows or {}

    def read(
        self, log: str, upto: int, changed: Iterable[tuple[int, LoggedDecision]]
    ) -> DecisionHistory:
        """Return it with what has *changed* since `upto`; another log takes its place."""
        rows = dict(self._rows) if log == self.log else {}
        for number, logged in changed:
            if (record := read_record(logged.record)) is not None:
                rows[number] = logged, record
        return DecisionHistory(log, upto, {n: rows[n] for n in sorted(rows)[-KEPT:]})

    def shown(
        self, waiting: Sequence[LoggedDecision] = (), *, ahead_s: float, wall_now: float
    ) -> DecisionsShown:
        """Return the decisions for people, each once.

        *waiting* are decisions that the store has not got, in order: they follow, or take the place
        of the one they change. The store's clock is *ahead_s* ahead of ours.
        """
        numbers = {(row.origin, row.own): n for n, (row, _) in self._rows.items()}
        rows, upto = dict(self._rows), max(self._rows, default=0)
        # Before a log was read they have their own numbers.
        is_read = self.log is not None
        last = upto if is_read or not waiting else waiting[0].own - 1
        for logged in waiting:
            if (record := read_record(logged.record)) is not None:
                last += (key := (logged.origin, logged.own)) not in numbers
                rows[numbers.setdefault(key, last)] = logged, record
        shown: dict[int, Record] = {}
        latest: dict[tuple[Any, ...], tuple[str, Record]] = {}
        for number, (logged, record) in rows.items():
            row = {"number": number, "id": f"{logged.origin}-{logged.own}", **record}
            row["proxy"] = one_line(logged.proxy)
            for name in _TIMES:
                if row[name] is not None:
                    row[name] = round(row[name] - ahead_s, 3)
            about = (row["kind"], row["account"], row["covers"])
            origin, before = latest.get(about, ("", row))
            if origin not in ("", logged.origin) and _is_same(before, row):
                before["times"] += row["times"]
                continue
            shown[number], latest[about] = row, (logged.origin, row)
            # What another has begun has no number of ours.
            own = numbers.get((logged.origin, row["ends"]), 0)
            _, begun = latest.get((_ENDS.get(row["kind"]), *about[1:]), ("", None))
            ended = shown.get(own, begun)
            row["ends"] = None if ended is None else ended["number"]
            if ended is not None and ended["ended_at"] is None:
                ended["ended_at"], ended["released_by"] = row["at"], row["by"]
        for row in shown.values():
            is_over = row["until"] is not None and row["until"] <= wall_now
            if row["kind"] == Kind.COOLDOWN and row["ended_at"] is None and is_over:
                row["ended_at"], row["released_by"] = row["until"], By.TIME.value
        return DecisionsShown(list(shown.values()), upto if is_read else last)


def _is_same(before: Record, row: Record) -> bool:
    lasts = before["ended_at"] is None and abs(before["at"] - row["at"]) < SAME_S
    return lasts and row["kind"] in _OF_ACCOUNTS


def _text(value: object) -> str | None:
    return one_line(value, MAX_TEXT_CHARS) if isinstance(value, str) else None


def _number(value: object) -> float | None:
    found = finite_number(value)
    # Seconds since the epoch at most.
    return found if found is not None and 0 <= found < 1e11 else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None
