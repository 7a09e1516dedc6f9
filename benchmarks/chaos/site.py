"""What the connections of the scripted provider have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from benchmarks.chaos.acts import Incoming
from benchmarks.chaos.book import Book, Open
from benchmarks.chaos.breaking import reset, under_tls
from benchmarks.chaos.logins import Logins
from benchmarks.chaos.plan import HEADER, read_mark


@dataclass(slots=True)
class Site:
    """One provider.

    Attributes:
        sabotage: a wrong that this provider does on purpose, for tests of the oracles.
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
        """Return when the connection is closed, by whomever."""
        with suppress(OSError):
            await self.writer.wait_closed()

    def break_connection(self, how: str) -> None:
        """End the connection below TLS: `reset` or `fin`. What was open on it is collateral."""
        self.forget()
        if how == "reset":
            reset(self.writer)
        else:
            self.writer.transport.abort()

    def forget(self) -> None:
        """The connection is over: so is everything on it."""
        for nonce, opened in self.opened.values():
            self.site.book.note(nonce, "its connection ended")
            self.site.book.end(opened, left=True)
        self.opened.clear()

    def under_tls(self, data: bytes) -> None:
        under_tls(self.writer, data)
