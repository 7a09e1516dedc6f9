"""What a script is made of: a request as it came, a reply to give, how it went.

How they become bytes is for `provider.py`. A `Journal` keeps all exchanges of one
provider, in order.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Headers = tuple[tuple[str, str], ...]
Message = str | bytes

#: Where clients put their credential, in the order they are looked at.
CREDENTIAL_HEADERS = ("authorization", "x-api-key", "x-goog-api-key", "api-key")

#: Of a larger body only hash and size are kept: uploads may be bigger than memory.
KEPT_BODY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Pause:
    """A step of a body: nothing is sent for so many seconds."""

    seconds: float


#: One thing to do while a body is sent: bytes to send at once, a pause, or an event
#: to wait for (how a test says "not before the client has the last chunk").
Step = bytes | Pause | asyncio.Event


class Framing(Enum):
    """How HTTP/1.1 marks the end of a body. HTTP/2 has one way only."""

    #: content-length
    LENGTH = "length"
    #: transfer-encoding: chunked
    CHUNKED = "chunked"
    #: the end of the connection
    CLOSE = "close"


class Fault(Enum):
    """What goes wrong instead of an answer, or during one."""

    #: the connection is closed in good order before anything is answered
    HANG_UP = "hang up"
    #: TCP reset (HTTP/2: RST_STREAM) before anything is answered
    RESET = "reset"
    #: HTTP/2 says that the request was not processed; HTTP/1.1 hangs up
    REFUSED = "refused"
    #: all steps are sent, then the connection (HTTP/2: the stream) is reset
    BREAK = "break"
    #: nothing is ever answered
    SILENCE = "silence"


class Ending(Enum):
    """How an exchange ended, seen from the provider."""

    #: everything the script asked for was sent
    ANSWERED = "answered"
    #: it failed as the script asked for
    FAULT = "fault"
    #: the other side left before that
    LEFT = "left"


@dataclass(slots=True, kw_only=True)
class Request:
    """A request exactly as it was received.

    Attributes:
        number: of this request at the provider, from 1, in order of arrival.
        turn: of this request among those with the same credential, from 1.
        connection: number of the connection it came on, from 1.
        on_connection: of this request on its connection, from 1.
        http_version: "1.1" or "2".
        host: Host header or `:authority`.
        path: with the query.
        headers: names in the case and order received; without pseudo headers.
        credential: the secret it carried, "" if none.
        body: complete, or b"" beyond `KEPT_BODY_BYTES`.
        body_size: bytes received so far.
        complete: the end of the request was received.
    """

    number: int
    turn: int
    connection: int
    on_connection: int
    http_version: str
    method: str
    host: str
    path: str
    headers: Headers
    credential: str
    body: bytes = b""
    body_size: int = 0
    complete: bool = False
    _hash: Any = field(default_factory=hashlib.sha256, repr=False)
    _parts: list[bytes] = field(default_factory=list, repr=False)

    @property
    def body_sha256(self) -> str:
        digest: str = self._hash.hexdigest()
        return digest

    def receive(self, data: bytes) -> None:
        """Take the next piece of the body."""
        self.body_size += len(data)
        self._hash.update(data)
        if self.body_size <= KEPT_BODY_BYTES:
            self._parts.append(data)
        else:
            self._parts.clear()

    def finish(self) -> None:
        """Take the end of the body."""
        self.body = b"".join(self._parts)
        self.complete = True

    def header(self, name: str) -> str | None:
        """Return the first value of a header, whatever the case of its name."""
        return find_header(self.headers, name)

    def json(self) -> Any:
        """Return the body as JSON. Raises ValueError if it is none."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What to answer.

    Attributes:
        not_before: until then nothing of it is sent, not even the status.
        steps: the body. With `Framing.LENGTH` and no content-length header, the sum
            of its bytes is announced.
        fault: what goes wrong, if anything.
        hang_up: close the connection after the answer without announcing it.
        socket: with status 101, what a WebSocket message is answered with.
    """

    status: int = 200
    headers: Headers = ()
    not_before: asyncio.Event | None = None
    steps: Sequence[Step] = ()
    framing: Framing = Framing.CHUNKED
    fault: Fault | None = None
    hang_up: bool = False
    socket: Callable[[Message], Sequence[Message]] | None = None

    @property
    def body(self) -> bytes:
        """All bytes of the body, as a client that waits for the end receives them."""
        return b"".join(step for step in self.steps if isinstance(step, bytes))


Script = Callable[[Request], Reply]


@dataclass(slots=True, kw_only=True, eq=False)
class Exchange:
    """One request and what became of it.

    Attributes:
        messages: WebSocket messages received.
        ending: None while it lasts.
    """

    request: Request
    on_change: Callable[[], None] = field(repr=False)
    reply: Reply | None = None
    messages: list[Message] = field(default_factory=list)
    ending: Ending | None = None

    async def play(self, steps: Sequence[Step], send: Callable[[bytes], Awaitable[None]]) -> None:
        """Do the steps of a body in order."""
        for step in steps:
            match step:
                case Pause(seconds):
                    await asyncio.sleep(seconds)
                case asyncio.Event():
                    await step.wait()
                case bytes():
                    await send(step)
            self.on_change()

    def note_message(self, message: Message) -> None:
        """Keep a WebSocket message."""
        self.messages.append(message)
        self.on_change()

    def end(self, ending: Ending) -> None:
        """Note how it ended. Only the first note counts: leaving after the end is fine."""
        if self.ending is None:
            self.ending = ending
            self.on_change()


def find_header(headers: Headers, name: str) -> str | None:
    """Return the first value of *name*, None without one."""
    wanted = name.lower()
    return next((value for key, value in headers if key.lower() == wanted), None)


def find_credential(headers: Headers, path: str) -> str:
    """Return the secret a request carries, without its scheme; "" without one."""
    for name in CREDENTIAL_HEADERS:
        if value := find_header(headers, name):
            return value.rpartition(" ")[2]
    return dict(parse_qsl(urlsplit(path).query)).get("key", "")


#: What a loaded machine needs for anything that happens at all; it only bounds a hang.
WAIT_S = 180.0


class Journal:
    """The record of a provider. One per provider; all its connections write to it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.exchanges: list[Exchange] = []
        #: Exceptions of the script: a test that ignores them would test nothing.
        self.errors: list[Exception] = []
        #: Called with an exchange as soon as its reply is known.
        self.on_reply: Callable[[Exchange], None] = lambda _exchange: None
        self.connections = 0
        self._turns: Counter[str] = Counter()
        self._changed = asyncio.Event()

    @property
    def requests(self) -> list[Request]:
        return [exchange.request for exchange in self.exchanges]

    @property
    def credentials(self) -> list[str]:
        """The credential of each request, in order of arrival."""
        return [request.credential for request in self.requests]

    @property
    def statuses(self) -> list[tuple[str, int]]:
        """Credential and status of each exchange that was answered so far."""
        return [(e.request.credential, e.reply.status) for e in self.exchanges if e.reply]

    def connect(self) -> int:
        """Number a new connection."""
        self.connections += 1
        return self.connections

    def begin(
        self,
        *,
        connection: int,
        on_connection: int,
        http_version: str,
        method: str,
        host: str,
        path: str,
        headers: Headers,
    ) -> Exchange:
        """Note a request whose headers have arrived."""
        credential = find_credential(headers, path)
        self._turns[credential] += 1
        request = Request(
            number=len(self.exchanges) + 1,
            turn=self._turns[credential],
            connection=connection,
            on_connection=on_connection,
            http_version=http_version,
            method=method,
            host=host,
            path=path,
            headers=headers,
            credential=credential,
        )
        exchange = Exchange(request=request, on_change=self._notify)
        self.exchanges.append(exchange)
        self._notify()
        return exchange

    def receive(self, exchange: Exchange, data: bytes) -> None:
        """Note a piece of a request's body."""
        exchange.request.receive(data)
        self._notify()

    def answer(self, exchange: Exchange) -> Reply:
        """Note the end of a request and return what the script says to it."""
        exchange.request.finish()
        try:
            exchange.reply = self.script(exchange.request)
        except Exception as error:
            # Any mistake in a script: keep it for the test, and let the client see one.
            self.errors.append(error)
            exchange.reply = Reply(status=599, steps=(b"the script failed",))
        self.on_reply(exchange)
        self._notify()
        return exchange.reply

    async def until(self, happened: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Return as soon as *happened()* is true. Raises TimeoutError after *timeout_s*."""
        async with asyncio.timeout(timeout_s):
            while not happened():
                await self._changed.wait()

    async def until_answered(self, count: int) -> None:
        """Return when *count* exchanges have ended, however they ended."""
        await self.until(lambda: sum(e.ending is not None for e in self.exchanges) >= count)

    async def until_ended(self, index: int) -> Ending:
        """Return how exchange number *index* (from 0) ended, as soon as it has."""
        await self.until(
            lambda: len(self.exchanges) > index and self.exchanges[index].ending is not None
        )
        ending = self.exchanges[index].ending
        assert ending is not None
        return ending

    def _notify(self) -> None:
        # Wakes everyone who waits; they look for themselves whether it was for them.
        self._changed.set()
        self._changed = asyncio.Event()
