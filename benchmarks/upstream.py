"""The provider: a lean HTTP/1.1 server over TLS, in a process of its own.

It must never be what limits a measurement, so it parses just what the proxies send.
What a request gets is in the request: the credential `sk-bench-trips-K` is refused from
its request K+1 on, for a minute; the header `x-bench`
(see `requests.Wish`) tells the shape of a good answer. `GET /bench/stats` returns what
the server saw, `POST /bench/reset` forgets it, `POST /bench/next` sends the next event of
the stream that was held last.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import ssl
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection

from benchmarks import replies
from benchmarks.certs import Certificates
from benchmarks.requests import Wish

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CREDENTIAL = re.compile(rb"\r\nauthorization: *Bearer ([^\r]*)", re.IGNORECASE)
_WISH = re.compile(rb"\r\nx-bench: *([^\r]*)", re.IGNORECASE)
_TRIPS = re.compile(r"sk-bench-(trips|counts)-(\d+)")
_TRIPPED_MS = 60_000


@dataclass(slots=True)
class Seen:
    """What the server saw of one credential.

    Attributes:
        requests: how many it has answered or is answering.
        refused: how many of them with 429.
        in_flight: how many are open now.
        peak: the most that were open at once.
        at_trip: how many were open when the first 429 left, itself included.
    """

    requests: int = 0
    refused: int = 0
    in_flight: int = 0
    peak: int = 0
    at_trip: int = 0


@dataclass(slots=True)
class Ledger:
    """All the server saw, by credential.

    Attributes:
        digests: SHA-256 of the body of each stream that was sent, by its name.
        bodies: how many bodies of requests had each SHA-256.
        held: what sends the events that are waiting to be asked for.
    """

    credentials: defaultdict[str, Seen] = field(default_factory=lambda: defaultdict(Seen))
    digests: dict[str, str] = field(default_factory=dict)
    bodies: Counter[str] = field(default_factory=Counter)
    held: deque[Callable[[], None]] = field(default_factory=deque)

    def open(self, credential: str) -> int | None:
        """Count a request in. Return the reset to refuse it with (ms), None to serve it."""
        seen = self.credentials[credential]
        seen.requests += 1
        seen.in_flight += 1
        seen.peak = max(seen.peak, seen.in_flight)
        trips = _TRIPS.match(credential)
        return _TRIPPED_MS if trips and seen.requests > int(trips[2]) else None

    def remaining(self, credential: str) -> int:
        """Return what responses to *credential* say is left now: plenty, if it does not count."""
        counts = _TRIPS.match(credential)
        if counts is None or counts[1] == "trips":
            return replies.PLENTY
        return max(int(counts[2]) - self.credentials[credential].requests, 0)

    def refuse(self, credential: str) -> None:
        """Count a 429 at the moment it leaves."""
        seen = self.credentials[credential]
        seen.refused += 1
        seen.at_trip = seen.at_trip or seen.in_flight

    def close(self, credential: str) -> None:
        """Count a request out."""
        self.credentials[credential].in_flight -= 1

    def as_json(self) -> bytes:
        credentials = {name: asdict(seen) for name, seen in self.credentials.items()}
        seen = {"credentials": credentials, "digests": self.digests, "bodies": self.bodies}
        return json.dumps(seen).encode()

    def reset(self) -> None:
        self.digests.clear()
        self.bodies.clear()
        self.credentials.clear()


class Server(asyncio.Protocol):
    """One connection: one request at a time, kept alive."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._credential: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = bytes(self._buffer[:head_end])
        length = _LENGTH.search(head)
        end = head_end + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) < end:
            return
        body = hashlib.sha256(memoryview(self._buffer)[head_end + 4 : end]).hexdigest()
        del self._buffer[:end]
        if b" /bench/" in head[:20]:
            self._control(head)
        else:
            self._ledger.bodies[body] += 1
            self._answer(head)

    def _control(self, head: bytes) -> None:
        if head.startswith(b"POST /bench/next"):
            self._ledger.held.popleft()()
        elif head.startswith(b"POST"):
            self._ledger.reset()
        body = self._ledger.as_json()
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    def _answer(self, head: bytes) -> None:
        credential = _CREDENTIAL.search(head)
        self._credential = credential[1].decode() if credential else "none"
        reset_ms = self._ledger.open(self._credential)
        remaining = self._ledger.remaining(self._credential)
        asked = _WISH.search(head)
        wish = Wish.parse(asked[1].decode()) if asked else Wish()
        if wish.delay_ms:
            self._loop.call_later(wish.delay_ms / 1000, self._reply, wish, reset_ms, remaining)
        else:
            self._reply(wish, reset_ms, remaining)

    def _reply(self, wish: Wish, reset_ms: int | None, remaining: int) -> None:
        if self._credential is None:
            return  # the connection was closed meanwhile
        if wish.chunks and reset_ms is None:
            self._stream(wish)
            return
        if reset_ms is None:
            self._transport.write(replies.json_answer(wish.size, remaining))
        else:
            self._ledger.refuse(self._credential)
            self._transport.write(replies.limit_answer(reset_ms))
        self._end()

    def _end(self) -> None:
        if self._credential is not None:
            self._ledger.close(self._credential)
            self._credential = None

    def _stream(self, wish: Wish) -> None:
        events = replies.events(wish.name, wish.chunks)
        self._ledger.digests[wish.name] = hashlib.sha256(b"".join(events)).hexdigest()
        frames = [replies.chunk(event) for event in events]
        self._transport.write(replies.stream_head() + frames[0])
        frames[-1] += replies.chunk(b"")
        start = self._loop.time()
        self._ledger.held.clear()
        for n, frame in enumerate(frames[1:], start=1):
            send = partial(self._send, frame, n == len(frames) - 1)
            if wish.held and n >= wish.held:
                self._ledger.held.append(send)
            else:
                self._loop.call_at(start + n * wish.interval_ms / 1000, send)

    def _send(self, frame: bytes, last: bool) -> None:
        # The client side may have left in the middle of the stream.
        if self._credential is None:
            return
        self._transport.write(frame)
        if last:
            self._end()


def run(certificates: Certificates, ready: Connection) -> None:
    """Serve until the process is ended; send the port through *ready* first."""
    asyncio.run(_serve(certificates, ready))


async def _serve(certificates: Certificates, ready: Connection) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    context.set_alpn_protocols(["http/1.1"])
    ledger = Ledger()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Server(ledger), "127.0.0.1", 0, ssl=context, backlog=1024
    )
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()
