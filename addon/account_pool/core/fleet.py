"""The proxies that share one store: what each says of itself, and the fleet as one of them sees it.

What a proxy says goes with its heartbeat, as text that any version can read: what is missing,
new or wrong in it is unknown, and no more. The store keeps it a while longer than the proxy,
so that one that has stopped is missed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from hashlib import sha256
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from account_pool.core.json_values import finite_number
from account_pool.core.meaning import LazyPattern

#: How long a proxy is shown after its last heartbeat, seconds.
SHOWN_S = 600.0
#: How many proxies are read at most, those that were heard of last.
MAX_PROXIES = 500
#: Characters of a text, and of a problem; what is longer is cut.
MAX_TEXT, MAX_PROBLEM = 100, 300
#: Longer texts are of no proxy of ours.
MAX_BYTES = 16_384
_MAX_WORKER = 4096
UNKNOWN = "unknown"
_ACCOUNTS = LazyPattern(r"([0-9]{1,9}) [0-9a-f]{16}")


class AboutProxy(Struct, frozen=True, kw_only=True):
    """What a proxy says of itself.

    Attributes:
        name: its host, and its port.
        instance: names this run of it; workers of one launcher have the same.
        worker: its number among those; 0: it is alone.
        version: of the account pool.
        mitmproxy: version of that.
        uptime_s: since it was started, workers since their launcher was.
        stopping: it finishes what is in flight, and ends.
        problem: what keeps it from working as it should.
        accounts: how many it has, and a fingerprint of their names; "": it does not say.
    """

    name: str = ""
    instance: str = ""
    worker: int = 0
    version: str = ""
    mitmproxy: str = ""
    uptime_s: float | None = None
    stopping: bool = False
    problem: str | None = None
    accounts: str = ""

    def as_text(self) -> str:
        """Return it to be stored; `read_about` reads it."""
        return json.dumps(asdict(_bounded(self)), ensure_ascii=False, separators=(",", ":"))


def read_about(text: object) -> AboutProxy:
    """Return what a proxy has said, whatever *text* (str or bytes) is."""
    if not isinstance(text, str | bytes) or len(text) > MAX_BYTES:
        return AboutProxy()
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return AboutProxy()
    return _bounded(_of(said)) if isinstance(said, dict) else AboutProxy()


_TEXTS = ("name", "instance", "version", "mitmproxy", "accounts")


def _of(said: Mapping[str, Any]) -> AboutProxy:
    worker, problem = said.get("worker"), said.get("problem")
    return AboutProxy(
        **{name: _text(said.get(name)) for name in _TEXTS},
        worker=worker if type(worker) is int and 0 <= worker <= _MAX_WORKER else 0,
        uptime_s=finite_number(said.get("uptime_s")),
        stopping=said.get("stopping") is True,
        problem=problem if isinstance(problem, str) else None,
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _bounded(about: AboutProxy) -> AboutProxy:
    """Return *about* as it may be shown on a terminal, and kept by anybody."""

    def cut(text: str, most: int = MAX_TEXT) -> str:
        return "".join(c for c in text[:most] if c.isprintable())

    uptime_s = about.uptime_s
    return replace(
        about,
        **{name: cut(getattr(about, name)) for name in _TEXTS},
        uptime_s=round(uptime_s, 6) if uptime_s is not None and 0 <= uptime_s < 1e10 else None,
        problem=None if about.problem is None else cut(about.problem, MAX_PROBLEM),
    )


class ProxyRow(Struct, frozen=True, kw_only=True):
    """A process on the store, as the store knows it.

    Attributes:
        proxy: its id there.
        about: what it has said last.
        seen_s: since its last heartbeat; None: that is not known.
        in_flight: its requests in flight, when it reported them last.
        is_running: it counts as running.
        is_me: it is the one that asks.
    """

    proxy: str
    about: AboutProxy
    seen_s: float | None
    in_flight: int = 0
    is_running: bool
    is_me: bool = False


def replaced_by(me: AboutProxy, rows: Iterable[ProxyRow]) -> list[str]:
    """Return the ids of those of *rows* that *me* has taken the place of: nobody misses them."""
    return [
        row.proxy
        for row in rows
        if not (row.is_running or row.is_me)
        and me.name == row.about.name != ""
        and (me.instance != row.about.instance or me.worker == row.about.worker)
    ]


class ProxyState(StrEnum):
    """What a proxy does."""

    RUNNING = "running"
    STOPPING = "stopping"
    #: it has stopped its heartbeat without an end in good order
    GONE = "gone"
    #: the store cannot be asked
    UNKNOWN = UNKNOWN


class ProxyView(Struct, frozen=True, kw_only=True):
    """One proxy, workers taken together.

    Attributes:
        key: tells it from all others.
        name: the same, for people.
        is_this: it is the one that is asked.
        version, mitmproxy: "unknown" where it has not said them; of workers that differ all.
        started_s, seen_s: since it was started, and since its last heartbeat (of workers the
            last of any); None: that is not known.
        workers: how many processes serve for it.
        same_accounts: it has the accounts that this one has; None: that is not known.
    """

    key: str
    name: str
    is_this: bool
    state: ProxyState
    version: str
    mitmproxy: str
    started_s: float | None
    seen_s: float | None
    in_flight: int
    workers: int
    problem: str | None
    same_accounts: bool | None


def view_fleet(
    rows: Iterable[ProxyRow],
    me: AboutProxy,
    in_flight: int,
    *,
    since_s: float = 0.0,
    is_known: bool = True,
) -> list[ProxyView]:
    """Return the proxies, this one first and those that are gone last.

    Args:
        rows: as the store had them *since_s* seconds ago.
        me: this process, with its requests *in_flight*, as they are now.
        is_known: the store can be asked: else of the others is known only what was.
    """
    later = [_later(row, since_s) for row in rows if not row.is_me]
    mine = ProxyRow(
        proxy=me.instance, about=me, seen_s=0.0, in_flight=in_flight, is_running=True, is_me=True
    )
    groups: dict[str, dict[int, ProxyRow]] = {}
    for row in sorted([*later, mine], key=_freshness):
        # The same process with another id, or another in its place: the last one counts.
        groups.setdefault(row.about.instance or row.proxy, {})[row.about.worker] = row
    views = [_view(key, list(workers.values()), is_known, me) for key, workers in groups.items()]
    there = {view.name for view in views if view.state is not ProxyState.GONE}
    shown = [view for view in views if view.is_this or _is_missed(view, there)]
    return sorted(_told_apart(shown), key=lambda v: (not v.is_this, v.state == "gone", v.name))


def _is_missed(view: ProxyView, there: Collection[str]) -> bool:
    """Say whether *view* is there, or was a moment ago and no other is in its place."""
    replaced = view.state is ProxyState.GONE and view.name in there
    return not replaced and (view.seen_s or 0.0) < SHOWN_S


def _later(row: ProxyRow, since_s: float) -> ProxyRow:
    return row if row.seen_s is None else replace(row, seen_s=row.seen_s + since_s)


def _freshness(row: ProxyRow) -> tuple[bool, bool, float]:
    return row.is_me, row.is_running, -(row.seen_s or 0.0)


def _view(key: str, workers: Sequence[ProxyRow], is_known: bool, me: AboutProxy) -> ProxyView:
    running = [row for row in workers if row.is_running]
    is_this = any(row.is_me for row in workers)
    if not is_known and not is_this:
        state = ProxyState.UNKNOWN
    elif not running:
        state = ProxyState.GONE
    elif all(row.about.stopping for row in running):
        state = ProxyState.STOPPING
    else:
        state = ProxyState.RUNNING
    counted = running or workers
    latest = max(counted, key=_freshness)
    seen = [row.seen_s for row in counted if row.seen_s is not None]
    problem, same = _problem(workers, len(running)), None
    theirs, ours = (_ACCOUNTS.fullmatch(one.accounts) for one in (latest.about, me))
    if running and theirs and ours:
        same = theirs[0] == ours[0]
        if not (same or problem):
            counts = f": {theirs[1]}, not {ours[1]}" if theirs[1] != ours[1] else ", but as many"
            problem = f"its accounts are not those of {me.name}{counts}"
    return ProxyView(
        key=sha256(key.encode(errors="replace")).hexdigest()[:12],
        name=latest.about.name or UNKNOWN,
        is_this=is_this,
        state=state,
        version=_each(row.about.version for row in counted),
        mitmproxy=_each(row.about.mitmproxy for row in counted),
        started_s=_started_s(latest),
        seen_s=min(seen, default=None),
        in_flight=sum(row.in_flight for row in running),
        workers=len(counted),
        problem=problem,
        same_accounts=same,
    )


def _started_s(row: ProxyRow) -> float | None:
    uptime_s = row.about.uptime_s
    return None if uptime_s is None else uptime_s + (row.seen_s or 0.0)


def _each(texts: Iterable[str]) -> str:
    return ", ".join(sorted({text or UNKNOWN for text in texts}))


def _problem(workers: Sequence[ProxyRow], running: int) -> str | None:
    for row in sorted(workers, key=lambda row: row.about.worker):
        problem = row.about.problem
        if running and not row.is_running:
            problem = "it has stopped its heartbeat"
        if problem:
            return f"worker {row.about.worker}: {problem}" if row.about.worker else problem
    return None


def _told_apart(views: Sequence[ProxyView]) -> list[ProxyView]:
    """Return *views* with names of their own: containers may have one host name."""
    names = [view.name for view in views]
    return [
        replace(view, name=f"{view.name} ({view.key[:4]})") if names.count(view.name) > 1 else view
        for view in views
    ]


def versions(views: Iterable[ProxyView]) -> list[str]:
    """Return the versions of the account pool that run, each once."""
    alive = (ProxyState.RUNNING, ProxyState.STOPPING)
    return sorted({view.version for view in views if view.state in alive})
