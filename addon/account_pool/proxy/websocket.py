"""A WebSocket that stays with its account: what its frames say of limits.

The account of a socket is fixed at the handshake; limits arrive as frames, long after. Those
in its first turn can be replayed (`websocket_exchange.py`). Later, and before anything of an
answer has come, the socket is closed behind the limit, and its client opens another one,
on another account. Messages are read only, and none is ever made up: a client that cannot
parse one waits in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.websocket import (
    WebsocketConnection,
    WebsocketEndHook,
    WebsocketLayer,
    WebSocketMessageInjected,
)
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Event, Message
from wsproto.frame_protocol import CloseReason

from account_pool.core.json_values import NOT_READ, decoded
from account_pool.core.outcome import Outcome, OutcomeClass, UpstreamResponse
from account_pool.core.sse import HAS_ERROR, Verdict
from account_pool.providers.base import Provider
from account_pool.proxy.pooled_request import MAX_MODEL_CHARS

#: The status of a Close frame (RFC 6455, 7.4; IANA: "try again later").
TRY_AGAIN_LATER = 1013
#: The same, of an end that goes down.
GOING_AWAY = 1001
#: The longest message, unpacked. It is kept to its end, as is a request.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
#: Frames that one of many is handed on in (RFC 6455, 5.4, leaves that to us).
MAX_FRAMES = 1000
#: What ends a turn says so where it begins.
_HEAD_BYTES = 256
_ENDS = re.compile(
    rb'"type"\s*:\s*"(?:error|response\.(completed|failed|incomplete|cancelled|done))"'
)
_LIMITS = frozenset({OutcomeClass.RATE_LIMIT, OutcomeClass.QUOTA, OutcomeClass.FORBIDDEN_ACCOUNT})


class _Create(msgspec.Struct):
    type: str = ""
    model: str | None = None


_CREATE = msgspec.json.Decoder(_Create)


class WebsocketReader(msgspec.Struct):
    """Reads the messages of one socket.

    Attributes:
        model: that of the running turn, if the client named one.
        answered: something of the turn's response has come, and be it that it failed.
        begun: there was a turn.
        running: a turn has begun and not ended yet.
        turns_only: the client has said nothing but what begins a turn.
        end: how the turn ends with the last message, such as "completed"; "" if it does not.
    """

    provider: Provider
    model: str | None = None
    answered: bool = False
    begun: bool = False
    running: bool = False
    turns_only: bool = True
    end: str = ""

    def client_said(self, content: bytes) -> bool:
        """A message of the client: `response.create` begins a turn. Says if one began."""
        try:
            create = _CREATE.decode(content)
        except NOT_READ:
            create = _Create()
        if create.type != "response.create":
            self.turns_only = False
            return False
        self.answered, self.begun, self.running, self.end = False, True, True, ""
        self.model = (create.model or "")[:MAX_MODEL_CHARS] or self.model
        return True

    def server_said(self, content: bytes, wall_now: float) -> Outcome | None:
        """Return what a message says against the account; None if nothing."""
        found = _ENDS.search(content, 0, _HEAD_BYTES)
        self.end = (found[1] or b"failed").decode() if found else ""
        if found:
            self.running = False
        if self.answered and not HAS_ERROR.search(content):
            return None
        value = decoded(content)
        match self.provider.judge(None, value):
            case Verdict.CONTINUE:
                return None
            case Verdict.COMMIT:
                self.answered = True
                return None
        answer = UpstreamResponse(
            status=101, payload=value, in_stream=True, model=self.model, wall_now=wall_now
        )
        outcome = self.provider.classify(answer)
        if is_limit(outcome):
            return outcome
        self.answered = True
        return None


def is_limit(outcome: Outcome) -> bool:
    """Say whether *outcome* is about the account of a socket."""
    return outcome.cls in _LIMITS


class _Frames(list[bytes]):
    """What has come of the frames of a message. Each grows in place.

    mitmproxy adds to bytes, which copies all that came before, for every 64 KiB of a
    message: 20 MB took two seconds of the loop. A message of many frames goes on with few:
    each costs the same, however little it holds.
    """

    def append(self, data: bytes) -> None:
        if len(self) == MAX_FRAMES:
            return  # the last one grows on
        super().append(bytearray(data))  # type: ignore[arg-type]  # it is only added to


class _InPlace(WebsocketConnection):
    """A side of a socket whose messages grow in place, up to a bound."""

    _held_bytes = 0

    def events(self) -> Iterator[Event]:
        """As wsproto's, which lets a message grow for ever, or unpack to whatever size."""
        for event in super().events():
            if isinstance(event, Message):
                self._held_bytes += len(event.data)
                if self._held_bytes > MAX_MESSAGE_BYTES:
                    yield CloseConnection(CloseReason.MESSAGE_TOO_BIG, "the message is too long")
                    return
                if event.message_finished:
                    self._held_bytes = 0
            yield event

    @property
    def frame_buf(self) -> list[bytes]:
        return self._frames

    @frame_buf.setter
    def frame_buf(self, frames: list[bytes]) -> None:
        self._frames = _Frames()
        for data in frames:
            self._frames.append(data)


def grow_in_place(socket: WebsocketLayer) -> None:
    """Let long messages of *socket* cost what they are long, not the square of it.

    What is too long is closed with.
    """
    for side in (socket.client_ws, socket.server_ws):
        if type(side) is WebsocketConnection:
            frames = side.__dict__.pop("frame_buf")
            side.__class__ = _InPlace
            side.frame_buf = frames


class GoingAway(WebSocketMessageInjected):
    """Tells a WebSocket from outside to close, because the proxy ends."""


class _Close(events.DataReceived):
    """Comes after what a socket has still to do.

    An event that its layer knows: if the socket has closed by then, nothing happens.
    """


def closing_event(
    socket: WebsocketLayer, wall_now: float, code: int = TRY_AGAIN_LATER
) -> events.Event:
    """Return the event upon which *socket* closes with *code*, once.

    Written as frames of our own on both sides: the provider may be in the middle of one.
    """
    relay, close = socket._handle_event, _Close(socket.context.server, b"")

    def handle(event: events.Event) -> CommandGenerator[None]:
        return _closed(socket, wall_now, code) if event is close else relay(event)

    if socket.flow.live:
        # Until it closes: mitmproxy's layer puts another in its place then.
        socket._handle_event = handle
    return close


def _closed(socket: WebsocketLayer, wall_now: float, code: int) -> CommandGenerator[None]:
    """As mitmproxy's layer does when it reads a Close frame of the server."""
    data = socket.flow.websocket
    assert data is not None
    data.timestamp_end, data.closed_by_client = wall_now, False
    data.close_code, data.close_reason = code, ""
    for side in (socket.server_ws, socket.client_ws):
        if side.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            yield side.send2(CloseConnection(code=code))
        yield commands.CloseConnection(side.conn)
    yield WebsocketEndHook(socket.flow)
    socket.flow.live = False
    socket._handle_event = socket.done
