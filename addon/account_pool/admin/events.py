"""GET /events: what the dashboard shows, as server-sent events (WHATWG HTML, section 9.2).

The pool is read once for all clients, a second after the last time or when something is
decided, and only what differs is sent. What a client has not taken yet is merged, so a slow
one costs no more memory than the pool has accounts and `MAX_DECISIONS` decisions.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf

from account_pool.admin.http import ApiError
from account_pool.admin.views import Json
from account_pool.core.fleet import ProxyState
from account_pool.supervision import tasks

MEDIA_TYPE = "text/event-stream"
#: How many may listen at once; a browser needs one, for all its tabs.
MAX_CLIENTS = 32
#: Decisions that are sent to begin with, and kept for a client that does not read on.
MAX_DECISIONS = 200
#: The pool is read so often while somebody listens, at most so soon again, and a line without
#: meaning is sent after so much silence, seconds. Middleboxes cut what is silent for a minute.
LOOK_S, AGAIN_S, HEARTBEAT_S = 1.0, 0.2, 15.0

#: What is shown is no older than this, seconds.
LONGEST_PAUSE_S = 5.0

_RUNNING = ProxyState.RUNNING.value
_HEARTBEAT = b": still here\n\n"
#: They count down or up: whoever shows them goes by the instants, and an idle pool sends nothing.
_COUNTING = frozenset(
    {"remaining_s", "resets_s", "oldest_s", "uptime_s", "age_s", "started_s", "seen_s"}
)


@dataclass(slots=True)
class Change:
    """What differs from what was sent before.

    Attributes:
        whole: it is not a difference but all there is.
        accounts: by key, as in GET /account-pool but for what counts down; None: removed.
        latest: `health`, `summary` and `proxies`, where they differ.
        decisions: new or changed ones by id, as in GET /decisions; None: it is no decision of its
            own any more (another proxy has decided the same before).
        lost: older decisions are missing.
    """

    whole: bool = False
    accounts: dict[str, Json | None] = field(default_factory=dict)
    latest: dict[str, Json] = field(default_factory=dict)
    decisions: dict[str, Json | None] = field(default_factory=dict)
    lost: bool = False

    def __bool__(self) -> bool:
        return bool(self.whole or self.accounts or self.latest or self.decisions or self.lost)

    def add(self, later: Change) -> None:
        """Become the difference up to *later*, which begins where this one ends."""
        if later.whole:
            self.whole, self.accounts, self.decisions = True, {}, {}
        self.accounts |= later.accounts
        self.latest |= later.latest
        self.decisions |= later.decisions
        over = len(self.decisions) - MAX_DECISIONS
        for name in self._in_order()[: max(over, 0)]:
            del self.decisions[name]
            self.lost = True
        self.lost |= later.lost

    def events(self) -> bytes:
        """Return it as server-sent events."""
        told = [_event(name, said) for name, said in self.latest.items()]
        if self.whole or self.accounts:
            there = [account for account in self.accounts.values() if account is not None]
            gone = [key for key, account in self.accounts.items() if account is None]
            said = {"all": self.whole, "accounts": there, "removed": [] if self.whole else gone}
            told.append(_event("accounts", said))
        if withdrawn := [name for name, row in self.decisions.items() if row is None]:
            told.append(_event("withdrawn", {"ids": withdrawn}))
        rows = (self.decisions[name] for name in self._in_order())
        told += [_event("decision", row) for row in rows if row is not None]
        if self.lost:
            told.append(_event("lost", {}))
        return b"".join(told)

    def _in_order(self) -> list[str]:
        """Return the ids of decisions, the oldest first, and what is none any more last."""
        return sorted(self.decisions, key=lambda name: _number(self.decisions[name]))


def _number(row: Json | None) -> float:
    return inf if row is None else float(row["number"])


class Board:
    """What was read last, and so what a client that comes now must be told."""

    def __init__(self) -> None:
        self._shown = Change(whole=True)

    def everything(self) -> Change:
        """Return all there is."""
        shown = self._shown
        return Change(True, {**shown.accounts}, {**shown.latest}, {**shown.decisions})

    def update(self, pool: Json, health: Json, proxies: Json, decisions: Iterable[Json]) -> Change:
        """Take what GET /account-pool, /health, /proxies, /decisions say; return what differs."""
        shown, change = self._shown, Change()
        accounts = {account["key"]: _steady(account) for account in pool["accounts"]}
        change.accounts = {
            **{key: new for key, new in accounts.items() if shown.accounts.get(key) != new},
            **{key: None for key in shown.accounts if key not in accounts},
        }
        summary = {key: value for key, value in pool.items() if key != "accounts"}
        for one in proxies["proxies"]:
            if one["state"] == _RUNNING:
                del one["seen_at"]  # it is now
        latest = {"health": _steady(health), "summary": summary, "proxies": _steady(proxies)}
        change.latest = {k: v for k, v in latest.items() if shown.latest.get(k) != v}
        by_id = {row["id"]: row for row in decisions}
        # Older ones than those that were read are decisions all the same.
        oldest = min(map(_number, by_id.values())) if len(by_id) >= MAX_DECISIONS else 0
        change.decisions = {
            **{n: r for n, r in by_id.items() if shown.decisions.get(n) != r},
            **{
                n: None
                for n, r in shown.decisions.items()
                if n not in by_id and _number(r) >= oldest
            },
        }
        self._shown = Change(True, {**accounts}, latest, {**by_id})
        return change


def _steady(value: Json) -> Json:
    """Take what counts out of *value*, which was made for us, and return it."""
    for name in _COUNTING & value.keys():
        del value[name]
    for inner in value.values():
        for one in inner if isinstance(inner, list) else (inner,):
            if isinstance(one, dict):
                for name in _COUNTING & one.keys():
                    del one[name]
    return value


def pause_s(least_s: float, took_s: float) -> float:
    """Return how long to leave the pool alone after reading it took *took_s* seconds.

    At least *least_s*; with thousands of accounts more, so that it is a twentieth of one core, but
    not long: what it waited for may have been another worker.
    """
    return max(least_s, min(20 * took_s, LONGEST_PAUSE_S))


def _event(name: str, said: Json) -> bytes:
    # JSON escapes line breaks.
    return f"event: {name}\ndata: {json.dumps(said, separators=(',', ':'))}\n\n".encode()


@dataclass(slots=True, eq=False)
class _Client:
    unsent: Change = field(default_factory=Change)
    stirred: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, change: Change) -> None:
        self.unsent.add(change)
        self.stirred.set()

    def take(self) -> bytes:
        self.stirred.clear()
        unsent, self.unsent = self.unsent, Change()
        return unsent.events()


class Broadcaster:
    """Reads the pool while somebody listens, and sends what differs to all who do.

    *read* returns what GET /account-pool, /health, /proxies and /decisions say, of all workers.
    """

    def __init__(self, read: Callable[[], Awaitable[tuple[Json, Json, Json, list[Json]]]]) -> None:
        self._read = read
        self._clients: set[_Client] = set()
        self._board: Board | None = None
        self._stirred = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._stopped = False

    def stir(self) -> None:
        """Something has changed: read the pool soon."""
        self._stirred.set()

    def stop(self) -> None:
        """The proxy ends: so does every stream, with an event that says so."""
        self._stopped = True
        for client in self._clients:
            client.stirred.set()

    def listen(self) -> AsyncGenerator[bytes]:
        """Return the events for one more client; closing it ends its part. Raises ApiError."""
        if len(self._clients) >= MAX_CLIENTS:
            raise ApiError(503, "too_many_streams", f"{MAX_CLIENTS} clients listen already")
        return self._events()

    async def _events(self) -> AsyncGenerator[bytes]:
        client = _Client()
        if self._board is not None:
            client.add(self._board.everything())
        self._clients.add(client)
        if self._reading is None or self._reading.done():
            self._reading = tasks.supervised("reading the pool for /events", self._look)
        try:
            # The head goes out at once, whatever reading takes.
            yield _HEARTBEAT
            while not self._stopped:
                with suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_S):
                        await client.stirred.wait()
                yield client.take() or _HEARTBEAT
            yield _event("bye", {"reason": "stopping"})
        finally:
            self._clients.discard(client)

    async def _look(self) -> None:
        """Read and send, until nobody listens."""
        try:
            while self._clients:
                self._stirred.clear()
                began_at = time.monotonic()
                read = await self._read()
                begins = self._board is None
                board = self._board = self._board or Board()
                change = board.update(*read)
                change.whole = begins
                if change:
                    for client in self._clients:
                        client.add(change)
                took_s = time.monotonic() - began_at
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s(LOOK_S, took_s)):
                        await self._stirred.wait()
                    # Decisions come in groups.
                    await asyncio.sleep(pause_s(AGAIN_S, took_s))
        finally:
            # What is known grows old while nobody listens.
            self._board = None
