"""What the scripted provider sees and does on any connection, over either protocol.

`Book` notes attempts, credentials, and how many requests an account has at once; `Site` decides
what is done with a request, and `perform` does it; `Connection` is what both protocols share.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from benchmarks.chaos import replies
from benchmarks.chaos.breaking import GARBAGE, reset, under_tls
from benchmarks.chaos.faults import Row
from benchmarks.chaos.logins import Logins
from benchmarks.chaos.plan import CLIENT, HEADER, read_mark
from benchmarks.chaos.replies import Headers, Said

#: Seconds between two steps of an answer that takes its time.
STEP_S = 0.02
#: A smuggled response: a client that gets it has another's.
TWICE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 25\r\n\r\n"
    b'{"smuggled":"nobody\'s  "}'
)
#: How much later the end of a request that its proxy has left may be seen, seconds: that and
#: the next request come over different connections.
GRACE_S = 2.0


# -- what it sees


@dataclass(slots=True, eq=False)
class Open:
    """A request that has not ended."""

    nonce: str
    credential: str
    #: it ended because the proxy went away, not because it was answered
    left: bool = False


@dataclass(slots=True)
class Book:
    """What the provider saw.

    Attributes:
        allowed: credentials by vendor.
        limits: how many requests a credential may have at once.
        history: what happened to each request, by nonce.
        broken_rules: of HTTP/2, by the proxy.
        leaks: credentials where they do not belong.
        crowds: accounts that had more requests at once than they allow.
    """

    allowed: dict[str, set[str]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    history: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    attempts: Counter[str] = field(default_factory=Counter)
    broken_rules: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    crowds: list[str] = field(default_factory=list)
    _open: defaultdict[str, set[Open]] = field(default_factory=lambda: defaultdict(set))

    def begin(self, nonce: str, vendor: str, credential: str, everything: str) -> tuple[Open, int]:
        """Note an attempt; return it, and its number. *everything* is all its headers."""
        self.attempts[nonce] += 1
        if credential not in self.allowed[vendor]:
            self.leaks.append(f"{nonce}: a credential that is none of {vendor}'s accounts")
        if CLIENT in everything:
            self.leaks.append(f"{nonce}: the client's own credential went upstream")
        if everything.count(credential) > 1:
            self.leaks.append(f"{nonce}: a credential in more than its place")
        request = Open(nonce, credential)
        at_once = self._open[credential]
        at_once.add(request)
        limit = self.limits.get(credential)
        if limit is not None and len(at_once) > limit:
            self._look_again(frozenset(at_once), limit)
        return request, self.attempts[nonce]

    def end(self, request: Open, *, left: bool = False) -> None:
        """Note that an attempt is over. Only the first call counts."""
        if request in self._open[request.credential]:
            request.left = left
            self._open[request.credential].discard(request)

    def note(self, nonce: str, what: str) -> None:
        self.history[nonce].append(what)

    def _look_again(self, crowd: frozenset[Open], limit: int) -> None:
        """Note the crowd, of more than *limit*, unless its proxy turns out to have left some."""

        def look() -> None:
            really = [request for request in crowd if not request.left]
            if len(really) > limit:
                self.crowds.append(f"{len(really)} at once instead of {limit}: {really[0].nonce}")

        asyncio.get_running_loop().call_later(GRACE_S, look)


# -- what it does


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as the provider got it.

    Attributes:
        attempt: how often it has come, with this time.
    """

    row: Row
    nonce: str
    shape: str
    vendor: str
    credential: str
    attempt: int


class Wire(Protocol):
    """Where a response goes. What is sent after a break is lost."""

    async def head(self, status: int, headers: Headers, length: int | None) -> None: ...
    async def data(self, data: bytes) -> None: ...
    async def end(self) -> None: ...
    async def say(self, said: Said) -> None:
        """Send a whole answer."""

    async def special(self, verb: str, argument: str, request: Incoming) -> None:
        """Do what only one of the protocols can."""

    def break_off(self, how: str) -> None:
        """Break: `reset` and `fin` the connection, `rst` the stream where there are streams."""

    def under_tls(self, data: bytes) -> None:
        """Write below TLS."""


async def perform(act: str, wire: Wire, request: Incoming, book: Book) -> None:
    """Do what *act* says; return when there is nothing more to send."""
    verb, _, argument = act.partition(":")
    nonce, vendor = request.nonce, request.vendor
    good = replies.good(request.shape, nonce, vendor)
    match verb:
        case "good" | "tls-garbage-after":
            await wire.say(good)
            book.note(nonce, f"{request.attempt}: answered well")
            if verb != "good":
                wire.under_tls(GARBAGE)
        case "refuse":
            await wire.say(replies.refusal(argument, nonce, vendor, request.credential))
        case "pieces":
            said = replies.refusal(argument, nonce, vendor, request.credential)
            await _slowly(wire, said, at_once=40)
        case "trickle":
            await _slowly(wire, good, at_once=150)
            book.note(nonce, f"{request.attempt}: answered well")
        case "reset" | "fin" | "rst":
            wire.break_off(act)
        case "garbage":
            await wire.special(verb, argument, request)
        case "tls-garbage":
            wire.under_tls(GARBAGE)
            if argument == "open":
                await asyncio.Event().wait()
            wire.break_off("fin")
        case "silence":
            await asyncio.Event().wait()
        case "cut-head":
            await wire.head(good.status, good.headers, None)
            await asyncio.sleep(STEP_S)
            wire.break_off(argument)
        case "cut":
            await wire.head(good.status, good.headers, None)
            for piece in good.pieces[: max(3, len(good.pieces) // 2)]:
                await wire.data(piece)
            await asyncio.sleep(STEP_S)
            wire.break_off(argument)
        case "length":
            length = len(good.body) + int(argument)
            await wire.head(good.status, good.headers, length)
            await wire.data(good.body)
            await wire.special("length-over", argument, request)
        case "status":
            await wire.say(replace(good, status=int(argument)))
        case "late-error":
            await wire.say(replies.late_error(nonce, vendor))
        case _:
            await wire.special(verb, argument, request)


async def _slowly(wire: Wire, said: Said, at_once: int) -> None:
    """Send an answer with a pause after every few bytes."""
    await wire.head(said.status, said.headers, None)
    body = said.body
    for at in range(0, len(body), at_once):
        await wire.data(body[at : at + at_once])
        await asyncio.sleep(STEP_S / 10)
    await wire.end()


# -- a connection


@dataclass(slots=True)
class Site:
    """One provider.

    Attributes:
        sabotage: what this provider does wrong on purpose, for tests of the oracles.
    """

    book: Book
    logins: Logins
    sabotage: str = ""
    connections: int = 0
    _requests: int = 0
    _told: list[str] = field(default_factory=list)

    def act(self, request: Incoming) -> str:
        """Return what is done with *request*."""
        self._requests += 1
        act = request.row.act(request.attempt)
        if self.logins.has_ended(request.credential):
            act = "refuse:401-expired"
        if self.sabotage == "silent" and self._requests % 20 == 0:
            act = "silence"
        if self.sabotage == "stubborn" and request.attempt > 1:
            act = "refuse:400-request"
        self.book.note(request.nonce, f"{request.attempt}: {act}")
        return act

    def nonce(self, nonce: str) -> str:
        """Return the nonce to answer with: that of the request."""
        if self.sabotage == "crossed":
            self._told.append(nonce)
            return self._told[-2] if len(self._told) % 10 == 0 else nonce
        return nonce


class Connection:
    """A connection of a proxy to the provider."""

    def __init__(
        self, site: Site, vendor: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.site, self.vendor, self.reader, self.writer = site, vendor, reader, writer
        self.opened: dict[int, tuple[str, Open]] = {}
        site.connections += 1
        self.number = site.connections

    def begin(self, fields: Mapping[str, str]) -> tuple[Incoming, Open]:
        """Note a request by its header fields."""
        row, nonce, shape, vendor = read_mark(fields[HEADER])
        credential = fields.get("x-api-key") or fields.get("authorization", "")
        credential = credential.removeprefix("Bearer ")
        everything = "\n".join(fields.values())
        opened, attempt = self.site.book.begin(nonce, self.vendor, credential, everything)
        self.opened[id(opened)] = nonce, opened
        nonce = self.site.nonce(nonce)
        return Incoming(row, nonce, shape, vendor, credential, attempt), opened

    async def gone(self) -> None:
        """Return when the connection is closed, by either side."""
        with suppress(OSError):
            await self.writer.wait_closed()

    def break_connection(self, how: str) -> None:
        """End the connection below TLS, by *how*: `reset` or `fin`."""
        self.forget()
        if how == "reset":
            reset(self.writer)
        else:
            self.writer.transport.abort()

    def forget(self) -> None:
        """Note that the connection has ended, and every request on it."""
        for nonce, opened in self.opened.values():
            self.site.book.note(nonce, "its connection ended")
            self.site.book.end(opened, left=True)
        self.opened.clear()

    def under_tls(self, data: bytes) -> None:
        under_tls(self.writer, data)
