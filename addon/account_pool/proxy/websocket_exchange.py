"""A WebSocket of the pool: it stays with its account, or a turn goes to another one inside it.

What the server says to the first `response.create` is held back until it is known, as the
head of any other response is: bounded in events, bytes and time. A limit is not handed on.
Another account is asked for a handshake of its own, and the message is sent there; the
client keeps its socket and sees the response only. Past the first turn, or where the message
names something that an account keeps, a limit is told (`websocket.py`); what begins a later
turn goes elsewhere before it is sent, if the account is limited by then.

Bytes are held, not messages, and read beside mitmproxy's layer, which so has nothing to
forget. Its side towards the server is made anew with the connection: compression has a
history. The client was promised extensions and a subprotocol at its own handshake: an
account that grants others cannot take over.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from mitmproxy import http
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.http import (
    RequestData,
    RequestEndOfMessage,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    SendHttp,
)
from mitmproxy.proxy.layers.websocket import (
    Fragmentizer,
    WebsocketConnection,
    WebsocketLayer,
    WebsocketMessageHook,
    WebSocketMessageInjected,
)
from mitmproxy.websocket import WebSocketMessage
from msgspec.structs import replace
from wsproto.connection import ConnectionType
from wsproto.events import CloseConnection, Message, TextMessage
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import Opcode
from wsproto.utilities import RemoteProtocolError, split_comma_header

from account_pool.core import websocket_moves
from account_pool.core.attempts import Attempts
from account_pool.core.instruments import Ended, Mark, Marks
from account_pool.core.lease import Lease
from account_pool.core.outcome import Outcome, OutcomeClass
from account_pool.core.request_rows import Status
from account_pool.core.sse import Verdict
from account_pool.core.steps import Send
from account_pool.core.usage import CountKey, Usage, of_frame
from account_pool.providers.base import LocalResponse, RequestHead
from account_pool.proxy.credential_swap import Outgoing
from account_pool.proxy.flow_view import MessageRetention
from account_pool.proxy.http_stream import AttemptRouter, StreamTimer
from account_pool.proxy.pooled_request import PooledRequest
from account_pool.proxy.response_reader import MAX_GATE_BYTES, ResponseReader
from account_pool.proxy.service import Service
from account_pool.proxy.websocket import (
    GOING_AWAY,
    TRY_AGAIN_LATER,
    GoingAway,
    WebsocketReader,
    closing_event,
    grow_in_place,
    is_limit,
)
from account_pool.supervision import log_and_continue, where

logger = logging.getLogger(__name__)

#: Messages that are held at most before the answer is known.
MAX_GATE_MESSAGES = 64
#: How long another account may take to accept a handshake.
HANDSHAKE_S = 30.0
#: What a handshake promises to its client.
_PROMISED = ("sec-websocket-extensions", "sec-websocket-protocol")


class UpgradedStream(Protocol):
    """The stream of a WebSocket, as far as that needs it: see `pooled_exchange.PooledExchange`."""

    service: Service
    layer: AttemptRouter
    context: Context
    child_layer: Layer | None
    stream_id: int
    flow: http.HTTPFlow
    call: PooledRequest | None
    attempts: Attempts | None
    attempt_id: int | None
    timer: StreamTimer

    # requests behind the socket
    def outgoing(self, lease: Lease) -> Outgoing | LocalResponse: ...
    def connect(
        self, address: tuple[str, int], tls: bool, avoided: frozenset[Connection] = ...
    ) -> Generator[commands.Command, Any, str | None]: ...
    def send_attempt(self, request: http.Request) -> list[commands.Command]: ...
    def cancel_attempt(self, reason: str) -> CommandGenerator[None]: ...
    def forget_attempt(self) -> None: ...
    def settle(self, *, served: bool, left: bool = False) -> None: ...
    def pass_on(self, event: events.Event) -> CommandGenerator[None]: ...
    def show_replay(self) -> None: ...


#: How a turn has ended, by the provider's last word.
_HOW_ENDED = {
    "completed": Status.OK,
    "done": Status.OK,
    "incomplete": Status.OK,
    "cancelled": Status.ABORTED,
}


@dataclass(slots=True, eq=False)
class WebsocketTurn:
    """A turn that runs. Times are monotonic seconds.

    Attributes:
        began_at: when its client began it.
        first_attempt: its first one, in the history of the socket.
        counted: as what it was counted.
        first_at: when the first message of its answer came.
        usage: what it took, as far as that was told.
    """

    began_at: float
    first_attempt: int
    counted: CountKey
    first_at: float | None = None
    usage: Usage | None = None


class PooledWebsocket:
    """What happens inside one WebSocket of the pool, once it carries messages.

    Attributes:
        stream: of the socket.
        request: its handshake.
        reader: of its messages.
        replay: of its first turn, if that can be sent elsewhere.
    """

    def __init__(self, stream: UpgradedStream) -> None:
        assert stream.call is not None
        self.stream, self.request = stream, stream.call
        self.reader = WebsocketReader(self.request.provider)
        self.replay: WebsocketReplay | None = None
        self._messages: MessageRetention | None = None
        self._turn: WebsocketTurn | None = None

    def handle(self, event: events.Event) -> CommandGenerator[None]:
        """Handle an event of the socket; an error of ours closes it."""
        replay = self.replay
        try:
            if isinstance(event, GoingAway):
                yield from self._close(GOING_AWAY)
            elif replay is None or replay.over:
                yield from self.relay(event)
            else:
                yield from replay.handle(event)
        except Exception as e:
            yield from self._fail(e)

    def _fail(self, error: Exception) -> CommandGenerator[None]:
        """An unexpected error in our code: the socket ends, and its account is free at once."""
        stream = self.stream
        logger.error(f"{self.request.provider.name}: internal error in a WebSocket: {where(error)}")
        stream.timer.clear()
        with log_and_continue:
            stream.settle(served=False)
        replay, self.replay = self.replay, None
        if replay is not None and not replay.over:
            yield from replay.fail()
        else:
            yield from self._close(TRY_AGAIN_LATER)

    def relay(self, event: events.Event) -> CommandGenerator[None]:
        """Give *event* to mitmproxy's layer of the socket."""
        if isinstance(self.stream.child_layer, WebsocketLayer):
            grow_in_place(self.stream.child_layer)
        return self._watched(self.stream.pass_on(event))

    def _watched(self, relay: CommandGenerator[None]) -> CommandGenerator[None]:
        """Relay, and close the socket when a message tells of a limit in time."""
        reply, closing = None, False
        while True:
            try:
                command = relay.send(reply)
            except StopIteration:
                break
            reply = yield command
            if isinstance(command, WebsocketMessageHook):
                with log_and_continue:
                    closing = self._look_at(command.flow) or closing
                    if self.stream.service.settings.view_kept:
                        self._messages = self._messages or MessageRetention()
                        self._messages.added(command.flow)
                if self.replay is not None and self.replay.elsewhere is not None:
                    # What follows of the message has no attempt to be sent with.
                    self.replay.hook = command
                    yield from self.stream.cancel_attempt("limited")
        if closing:
            yield from self._close(TRY_AGAIN_LATER)

    def _close(self, code: int) -> CommandGenerator[None]:
        stream = self.stream
        assert isinstance(stream.child_layer, WebsocketLayer)
        close = closing_event(stream.child_layer, stream.service.wall_now(), code)
        yield from stream.pass_on(close)

    def _look_at(self, flow: http.HTTPFlow) -> bool:
        """Look at a message that every addon has seen; say if the socket should close."""
        attempts, service = self.stream.attempts, self.stream.service
        if attempts is None or attempts.over:
            return False
        assert flow.websocket is not None
        message = flow.websocket.messages[-1]
        if message.from_client:
            if self.replay is not None:
                self.replay.client_said(message)
            self._client_said(attempts, message)
            return False
        turn = self._turn
        if turn is not None and turn.first_at is None:
            turn.first_at = service.now()
        if usage := of_frame(message.content):
            service.observer.served(attempts, self.reader.model, usage, requests=0)
            if turn is not None:
                turn.usage = usage
        lease, provider = attempts.lease, self.request.provider
        assert lease is not None
        service.observer.events(provider, lease, message.content, self.reader.model)
        outcome = self.reader.server_said(message.content, service.wall_now())
        if outcome is not None or self.reader.end:
            self._turn_ended(_HOW_ENDED.get(self.reader.end, Status.REFUSED))
        if outcome is None:
            return False
        now, model = service.now(), self.reader.model
        may_close = not self.reader.answered
        return websocket_moves.refused_inside(attempts, outcome, model, now, may_close=may_close)

    def _client_said(self, attempts: Attempts, message: WebSocketMessage) -> None:
        reader, service = self.reader, self.stream.service
        first, idle = not reader.begun, not reader.running
        if self.replay is not None and not self.replay.over:
            idle = False
        if not reader.client_said(message.content):
            return
        if idle and reader.turns_only and not self._names_something(message.content):
            send = (
                None if first else websocket_moves.next_turn(attempts, reader.model, service.now())
            )
            if first or send is not None:
                self.replay = WebsocketReplay(self, message, send)
        self._turn_ended(Status.ABORTED)
        counted = service.observer.served(attempts, reader.model, None)
        self._turn = WebsocketTurn(service.now(), len(attempts.history) - 1, counted)

    def ended(self) -> None:
        """The socket has ended, and with it a turn that still runs."""
        attempts = self.stream.attempts
        last = attempts.history[-1].outcome if attempts and attempts.history else None
        is_refused = last is not None and last.cls is not OutcomeClass.OK
        self._turn_ended(Status.REFUSED if is_refused else Status.ABORTED)

    def _turn_ended(self, status: Status) -> None:
        """Note the running turn, if there is one, as over."""
        turn, self._turn = self._turn, None
        if turn is None:
            return
        attempts, service = self.stream.attempts, self.stream.service
        assert attempts is not None
        now = service.now()
        marks: Marks = [(Mark.BEGAN, turn.began_at)]
        if turn.first_at is not None:
            marks.append((Mark.HANDED_ON, turn.first_at))
        service.ended.add(
            Ended(
                facts=replace(attempts.facts, model=self.reader.model),
                history=attempts.history[turn.first_attempt :],
                marks=marks,
                at=now,
                wall_at=service.wall_now(),
                http_status=None,
                whole=status is not Status.ABORTED,
                usage=turn.usage,
                counted=turn.counted,
                status=status,
            )
        )

    def _names_something(self, content: bytes) -> bool:
        """Say whether a message names what only the account knows that made it."""
        head = self.request.head
        asked = RequestHead(
            method="POST", host=head.host, port=head.port, path=head.path, headers={}, body=content
        )
        return bool(self.request.provider.conversation(asked).named)

    def learn_messages(self, messages: Iterable[WebSocketMessage]) -> None:
        """Learn what messages of the server say of the account, which nobody else will see."""
        attempts, observer = self.stream.attempts, self.stream.service.observer
        assert attempts is not None
        assert attempts.lease is not None
        for message in messages:
            observer.events(
                self.request.provider, attempts.lease, message.content, self.reader.model
            )


class WebsocketReplay:
    """Holds back the response to the first message of a socket, and sends that elsewhere.

    Args:
        websocket: what it is of.
        create: the message that began the turn.
        elsewhere: it goes there at once, and has not been sent anywhere.

    Attributes:
        over: everything goes its usual way from here on.
        spoiled: the client has said more: that message alone is not what it said.
        elsewhere: where it goes once other addons have seen the message; None from then on.
        hook: in which they see the last one.
    """

    def __init__(
        self, websocket: PooledWebsocket, create: WebSocketMessage, elsewhere: Send | None = None
    ) -> None:
        self.over = False
        self.spoiled = False
        self._websocket = websocket
        self._stream = stream = websocket.stream
        self._said = [create]
        self.elsewhere = elsewhere
        self.hook: WebsocketMessageHook | None = None
        self._held: list[bytes] = []
        self._size = 0
        self._messages: list[WebSocketMessage] = []
        self._pieces: list[bytes] = []
        self._parser = self._side(stream.context.server)
        #: of the response to another handshake, while one is under way
        self._reader: ResponseReader | None = None
        self._opening = False
        #: what the client did meanwhile
        self._queued: list[events.Event] = []

    def handle(self, event: events.Event) -> CommandGenerator[None]:
        """Handle an event of the socket in place of mitmproxy's layer."""
        if isinstance(event, events.Wakeup):
            return self._stream.timer.woke(event)
        if self.elsewhere is not None:
            return self._while_leaving(self.elsewhere, event)
        return self._while_opening(event) if self._opening else self._while_holding(event)

    def client_said(self, message: WebSocketMessage) -> None:
        """The client says more before the turn is answered."""
        self.spoiled = True
        if self.elsewhere is not None:
            # It came with the first, and is not sent to the account that is left either.
            self._said.append(message)

    def _while_leaving(self, send: Send, event: events.Event) -> CommandGenerator[None]:
        stream = self._stream
        yield from self._websocket.relay(event)
        assert stream.flow.websocket is not None
        ended = stream.flow.websocket.timestamp_end is not None
        if ended or stream.attempts is None or stream.attempts.over:
            # It has ended in the same breath.
            self.over, self.elsewhere = True, None
            stream.settle(served=False)
        elif isinstance(event, events.CommandCompleted) and event.command is self.hook:
            self.elsewhere = None
            yield from self._open(send)

    # -- the response is held back

    def _while_holding(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, ResponseData):
            if not self._held:
                gate_s = self._stream.service.settings.gate_s
                yield from self._stream.timer.set(gate_s, self._release)
            yield from self._hold(event.data)
            return
        if isinstance(event, ResponseEndOfMessage | ResponseProtocolError):
            yield from self._release()
        yield from self._websocket.relay(event)

    def _hold(self, data: bytes) -> CommandGenerator[None]:
        self._held.append(data)
        self._size += len(data)
        try:
            self._parser.receive_data(data)
            for event in self._parser.events():
                if isinstance(event, CloseConnection):
                    yield from self._release()
                elif isinstance(event, Message):
                    yield from self._piece(event)
                if self.over or self._opening:
                    return
        except RemoteProtocolError:
            # For mitmproxy to say.
            yield from self._release()
            return
        if self._size > MAX_GATE_BYTES or len(self._messages) > MAX_GATE_MESSAGES:
            yield from self._release()

    def _piece(self, event: Message[Any]) -> CommandGenerator[None]:
        """Take a piece of a message; the last one tells what the message is."""
        is_text = isinstance(event, TextMessage)
        self._pieces.append(event.data.encode() if is_text else bytes(event.data))
        if not event.message_finished:
            return
        content, self._pieces = b"".join(self._pieces), []
        kind = Opcode.TEXT if is_text else Opcode.BINARY
        self._messages.append(WebSocketMessage(kind, False, content))
        reader = self._websocket.reader
        outcome = reader.server_said(content, self._stream.service.wall_now())
        if outcome is not None:
            yield from self._refused(outcome)
        elif reader.answered or not reader.running:
            yield from self._release()

    def _release(self) -> CommandGenerator[None]:
        """Hand on what was held, as it came."""
        self.over = True
        self._stream.timer.clear()
        held, self._held = self._held, []
        for data in held:
            yield from self._websocket.relay(ResponseData(self._stream.stream_id, data))

    # -- elsewhere

    def _refused(self, outcome: Outcome) -> CommandGenerator[None]:
        send = None
        if not (self.spoiled or self._said[0].dropped):
            with log_and_continue:
                self._websocket.learn_messages(self._messages)
            send = self._move(outcome)
        if send is None:
            # Nothing has changed: it is treated as in any later turn.
            yield from self._release()
            return
        yield from self._open(send)

    def _move(self, outcome: Outcome | None) -> Send | None:
        stream = self._stream
        assert stream.attempts is not None
        return websocket_moves.move(
            stream.attempts, outcome, self._websocket.reader.model, stream.service.now()
        )

    def _open(self, send: Send) -> CommandGenerator[None]:
        """Ask the account of *send* for a handshake behind the open socket."""
        stream = self._stream
        stream.timer.clear()
        yield from stream.cancel_attempt("refused")
        self._opening, self._reader = True, None
        outgoing = stream.outgoing(send.lease)
        if isinstance(outgoing, LocalResponse) or (
            yield from stream.connect(
                outgoing.address, outgoing.tls, frozenset(stream.layer.connections)
            )
        ):
            yield from self._failed(None)
            return
        self._socket.server_ws = self._side(stream.context.server)
        yield from stream.timer.set(HANDSHAKE_S, lambda: self._failed(None))
        yield from stream.send_attempt(outgoing.request)
        stream.show_replay()

    def _while_opening(self, event: events.Event) -> CommandGenerator[None]:
        stream = self._stream
        match event:
            case ResponseHeaders():
                self._reader = ResponseReader(event.response, self._websocket.request.provider)
            case ResponseData() if self._reader is not None:
                if self._reader.feed(event.data) is Verdict.REFUSE:
                    yield from self._failed(self._handshake_outcome())
            case ResponseEndOfMessage() if self._reader is not None:
                if self._is_accepted(self._reader):
                    yield from self._opened(self._reader)
                else:
                    self._reader.end()
                    yield from self._failed(self._handshake_outcome())
            case ResponseProtocolError() | ResponseEndOfMessage():
                stream.forget_attempt()
                yield from self._failed(self._handshake_outcome())
            case RequestEndOfMessage() | RequestProtocolError():
                self.over = True
                stream.timer.clear()
                stream.settle(served=False, left=True)
                yield from stream.cancel_attempt("client left")
                yield from self._websocket.relay(event)
            case RequestData() | events.MessageInjected():
                self._queued.append(event)
            case _:
                yield from self._websocket.relay(event)

    def _is_accepted(self, reader: ResponseReader) -> bool:
        promised, granted = self._stream.flow.response, reader.response
        assert promised is not None
        return granted.status_code == 101 and all(
            promised.headers.get(name) == granted.headers.get(name) for name in _PROMISED
        )

    def _handshake_outcome(self) -> Outcome | None:
        """Return what the refused handshake says against its account, if it says anything."""
        reader, stream = self._reader, self._stream
        if reader is None or reader.response.status_code < 400:
            return None
        answer = reader.upstream_response(self._websocket.reader.model, stream.service.wall_now())
        outcome = self._websocket.request.provider.classify(answer)
        return outcome if is_limit(outcome) else None

    def _opened(self, reader: ResponseReader) -> CommandGenerator[None]:
        """The other account takes the socket over: send it what the client has said."""
        stream = self._stream
        assert stream.attempts is not None
        stream.timer.clear()
        stream.attempts.committed(stream.service.now())
        lease = stream.attempts.lease
        assert lease is not None
        stream.service.observer.head(self._websocket.request.provider, lease, reader.response)
        self._parser = self._side(stream.context.server)
        side = self._socket.server_ws
        for message in (m for m in self._said if not m.dropped):
            for piece in Fragmentizer([], message.is_text)(message.content):
                assert stream.attempt_id is not None
                data = RequestData(stream.attempt_id, side.send(piece))
                yield SendHttp(data, stream.context.server)
        self._held, self._messages, self._size = [], [], 0
        self._opening = False
        queued, self._queued = self._queued, []
        for event in queued:
            yield from self._websocket.handle(event)

    def _failed(self, outcome: Outcome | None) -> CommandGenerator[None]:
        """Ask yet another account; if there is none, hand on the refusal, and close."""
        stream = self._stream
        yield from stream.cancel_attempt("refused")
        send = self._move(outcome)
        if send is not None:
            yield from self._open(send)
            return
        yield from self._give_up()

    def fail(self) -> CommandGenerator[None]:
        """An error of ours, whatever was under way: nothing more is tried."""
        if self._opening:
            yield from self._stream.cancel_attempt("internal error")
        yield from self._give_up()

    def _give_up(self) -> CommandGenerator[None]:
        """Hand on what the provider said, and close."""
        stream = self._stream
        self.over = True
        stream.timer.clear()
        stream.settle(served=False)
        for message in self._messages:
            yield from self._websocket.relay(WebSocketMessageInjected(stream.flow, message))
        yield from self._websocket.relay(closing_event(self._socket, stream.service.wall_now()))

    # -- the socket

    @property
    def _socket(self) -> WebsocketLayer:
        socket = self._stream.child_layer
        assert isinstance(socket, WebsocketLayer)
        return socket

    def _side(self, connection: Connection) -> WebsocketConnection:
        """Return a side towards the server, as mitmproxy's layer makes it at its start."""
        response = self._stream.flow.response
        assert response is not None
        extensions = []
        granted = response.headers.get("sec-websocket-extensions", "")
        for name in split_comma_header(granted.encode("ascii", "replace")) if granted else ():
            if name.split(";", 1)[0].strip() == PerMessageDeflate.name:
                extensions.append(PerMessageDeflate())
                extensions[-1].finalize(name)
        return WebsocketConnection(ConnectionType.CLIENT, extensions, conn=connection)
