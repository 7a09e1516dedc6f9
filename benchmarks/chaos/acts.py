"""Carries out one act of the provider on one request, over either protocol."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Protocol

from benchmarks.chaos import replies
from benchmarks.chaos.book import Book
from benchmarks.chaos.breaking import GARBAGE
from benchmarks.chaos.faults import Row
from benchmarks.chaos.replies import Headers, Said

#: Seconds between two steps of an answer that takes its time.
STEP_S = 0.02
#: A smuggled answer: whoever gets it has somebody else's.
TWICE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 25\r\n\r\n"
    b'{"smuggled":"nobody\'s  "}'
)


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
    """Where an answer goes. Whatever is sent after a break goes nowhere."""

    async def head(self, status: int, headers: Headers, length: int | None) -> None: ...
    async def data(self, data: bytes) -> None: ...
    async def end(self) -> None: ...
    async def say(self, said: Said) -> None:
        """Send a whole answer."""

    async def special(self, verb: str, argument: str, request: Incoming) -> None:
        """Do what only this protocol can."""

    def break_off(self, how: str) -> None:
        """Break: `reset` and `fin` the connection, `rst` the stream where there are streams."""

    def under_tls(self, data: bytes) -> None:
        """Write below TLS."""


async def perform(act: str, wire: Wire, request: Incoming, book: Book) -> None:
    """Do what *act* says. Returns when nothing more is to be sent."""
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
