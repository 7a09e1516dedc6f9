"""mitmproxy's HTTP/1 connections, which read the head of a message at half the cost.

`http.Request` and `http.Response` check the type of each of their fields when they are
made, by way of six exceptions that are raised and caught. That takes 25 us a message,
and every exception keeps the frames around it alive until the garbage collector comes:
together more than all the rest of this package does with a request. The values come from
mitmproxy's own parser, which is used here as it is. Whatever is not in order (or not yet
complete) is left to the base class. All of this stands on private parts of mitmproxy and
h11: it is imported by `http_layer.own_http`, and left alone where `check` fails.

Some things are mended on the way. Trailers end a message as if they were not there;
mitmproxy's own classes stop at them. Interim responses (100, 102, 103) are read over;
mitmproxy's own client takes the first for the response, and throws the response away. Blank
lines before a message are read over; mitmproxy waits behind them. What a server sends
without an end is not collected for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain, product
from operator import methodcaller
from typing import Any, TypeVar, cast

import h11
from h11._readers import ChunkedReader, ContentLengthReader
from h11._receivebuffer import ReceiveBuffer
from mitmproxy import connection, http
from mitmproxy.net.http import http1
from mitmproxy.net.http.http1 import read
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import (
    HttpClient,
    HttpEvent,
    ReceiveHttp,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import (
    Http1Client,
    Http1Connection,
    Http1Server,
    make_body_reader,
)

from account_pool.proxy.events import SERVER_ERROR, InterimResponse, WholeRequest, WholeResponse
from account_pool.proxy.headers import Fields, IndexedHeaders, is_interim

#: The longest head of a response, and the longest line of a chunked body, in bytes: more than
#: the clients of LLM APIs take.
MAX_HEAD_BYTES = 256 * 1024

#: Of a connection to a server and what came on it: may that go to the client as it is?
Relay = Callable[[Http1Client, bytes], object]

_T = TypeVar("_T", http.Request, http.Response)
#: A message and the length of its body, as `http1.expected_http_body_size` tells it.
_Head = tuple[_T, int | None]


class _Quick(Http1Connection):
    """What both sides have in common.

    Attributes:
        relay: says which chunks are sent on as they came (`fast.short`).
        is_chunked: the body of the last message that came is, or was.
    """

    relay: Relay | None = None
    is_chunked = False

    def read_body(self, event: events.Event) -> CommandGenerator[None]:
        # Comes here once for a message, whoever has read its head.
        reader: Any = self.body_reader
        self.is_chunked = type(reader) is ChunkedReader
        if self.is_chunked:
            self.body_reader = _Chunks()
            if self.relay is not None:
                self._handle_event = self._in_chunks  # type: ignore[method-assign]  # so long
        elif type(reader) is ContentLengthReader and reader._remaining > len(self.buf):
            self._handle_event = self._in_body  # type: ignore[method-assign]  # while it comes
        self.state = super().read_body
        return self.state(event)

    def mark_done(self, *, request: bool = False, response: bool = False) -> CommandGenerator[None]:
        self.request_done = self.request_done or request
        self.response_done = self.response_done or response
        if self.request_done and self.response_done:
            if self.buf or not _is_kept(self.request, self.response):
                return super().mark_done()
            self.request_done = self.response_done = False
            self.request = self.response = None
            self.state = self.read_headers
            self.begin_next()
        elif self.request_done:
            self.wait_for_response()
        return NOTHING

    def begin_next(self) -> None:
        """Be ready for the next request."""
        raise NotImplementedError

    def wait_for_response(self) -> None:
        """The request is complete."""

    def _in_body(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.DataReceived) and self._is_body(event.data):
            return self._read_whole(event)
        if not isinstance(event, HttpEvent):
            del self._handle_event
        return super()._handle_event(event)

    def _is_body(self, data: bytes) -> bool:
        """Say whether *data* is a part of the body, and nothing of it is still to be read."""
        reader: Any = self.body_reader
        reads = getattr(self.state, "__func__", None) is Http1Connection.read_body
        return reads and not self.buf and 0 < len(data) <= reader._remaining

    def _read_whole(self, event: events.DataReceived) -> CommandGenerator[None]:
        """Hand on what came as it is; h11 copies each byte of it four times."""
        reader: Any = self.body_reader
        reader._remaining -= len(event.data)
        over = not reader._remaining
        if over:
            del self._handle_event
        assert self.stream_id is not None
        yield ReceiveHttp(self.ReceiveData(self.stream_id, event.data))
        if over:
            yield from super().read_body(event)

    def _in_chunks(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            if self.relay is not None and self.relay(cast(Any, self), event.data):
                return _one(commands.SendData(self.context.client, event.data))
            return self._read_chunks(event)
        if not isinstance(event, HttpEvent):
            del self._handle_event
        return super()._handle_event(event)

    def _read_chunks(self, event: events.DataReceived) -> CommandGenerator[None]:
        yield from super()._handle_event(event)
        if getattr(self.state, "__func__", None) is not Http1Connection.read_body:
            self.__dict__.pop("_handle_event", None)


#: What generates no command, for a way that is taken twice a request.
NOTHING = cast(CommandGenerator[None], ())


def _is_kept(request: http.Request | None, response: http.Response | None) -> bool:
    """Say whether a connection plainly goes on after these two; mitmproxy decides the rest."""
    assert request is not None and response is not None
    asked, said = request.data, response.data
    if not asked.http_version == said.http_version == b"HTTP/1.1":
        return False
    if asked.method == b"CONNECT" or said.status_code < 200:
        return False
    for headers in (asked.headers, said.headers):
        if headers.get("connection", "keep-alive").lower() != "keep-alive":
            return False
    coding: str | None = said.headers.get("transfer-encoding")
    return "content-length" in said.headers if coding is None else coding == "chunked"


def _one(command: commands.Command) -> CommandGenerator[None]:
    yield command


class _Chunks(ChunkedReader):
    """Leaves out the trailers, as a recipient may (RFC 9110, 6.5.1), and waits for no long line."""

    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        read = super().__call__(buf)
        if read is None and len(buf) > MAX_HEAD_BYTES:
            raise h11.RemoteProtocolError("a line between chunks is too long")
        return h11.EndOfMessage() if type(read) is h11.EndOfMessage and read.headers else read


class QuickServer(_Quick, Http1Server):
    """The connection to a client."""

    def begin_next(self) -> None:
        self.stream_id += 2

    def wait_for_response(self) -> None:
        self.state = self.wait

    def read_headers(self, event: events.ConnectionEvent) -> CommandGenerator[None]:
        complete = isinstance(event, events.DataReceived) and b"\r\n\r\n" in event.data
        head = _taken(self, _request) if complete else None
        if head is None:
            yield from super().read_headers(event)
            return
        self.request, size = head
        yield ReceiveHttp(RequestHeaders(self.stream_id, self.request, size == 0))
        self.body_reader = make_body_reader(size)
        self.state = self.read_body
        yield from self.state(event)


class QuickClient(_Quick, Http1Client):
    """The connection to a server."""

    def begin_next(self) -> None:
        self.stream_id = None

    def send(self, event: HttpEvent) -> CommandGenerator[None]:
        head = super().send(event)
        if type(event) is not WholeRequest:
            return head
        # Chained: a generator of ours would be resumed for every command.
        body = super().send(RequestData(event.stream_id, event.content)) if event.content else ()
        end = super().send(RequestEndOfMessage(event.stream_id))
        return cast(Any, chain(head, body, end))

    def read_headers(self, event: events.ConnectionEvent) -> CommandGenerator[None]:
        request, stream_id = self.request, self.stream_id
        if request is None or stream_id is None or not isinstance(event, events.DataReceived):
            # Nobody has asked for anything, or nothing more will come.
            yield from super().read_headers(event)
            return
        while (head := _taken(self, lambda lines: _response(lines, request))) is not None:
            if head[0].status_code >= 200 or not is_interim(head[0].status_code):
                break
            if stream_id < 0:
                yield ReceiveHttp(InterimResponse(stream_id))
        else:
            if len(self.buf) > MAX_HEAD_BYTES:
                why = "the head of the answer is too long"
                yield commands.CloseConnection(self.conn)
                yield ReceiveHttp(ResponseProtocolError(stream_id, why, SERVER_ERROR))
            else:
                yield from super().read_headers(event)
            return
        self.response, size = head
        if stream_id < 0 and self.request_done and size and 0 < size <= len(self.buf):
            content = bytes(self.buf.maybe_extract_at_most(size) or b"")
            parts = (
                ResponseHeaders(stream_id, self.response, False),
                ResponseData(stream_id, content),
                ResponseEndOfMessage(stream_id),
            )
            self.is_chunked = False
            yield ReceiveHttp(WholeResponse(stream_id, self.response, False, parts=parts))
            yield from self.mark_done(response=True)
            return
        yield ReceiveHttp(ResponseHeaders(stream_id, self.response, size == 0))
        self.body_reader = make_body_reader(size)
        self.state = self.read_body
        yield from self.state(event)


def quick_server(chosen: layer.Layer) -> layer.Layer:
    """Return ours in place of the HTTP/1 that mitmproxy has just begun; else *chosen*."""
    return _in_place(chosen, QuickServer) if type(chosen) is Http1Server else chosen


def make_client_quick(outermost: layer.Layer, relay: Relay | None = None) -> bool:
    """Put ours in place of the HTTP/1 at the end of a connection that has just opened.

    Returns whether it is one.
    """
    at: Any = outermost
    while not (at is None or isinstance(at, HttpClient)):
        at = getattr(at, "child_layer", None)
    if at is None or type(getattr(at, "child_layer", None)) is not Http1Client:
        return False
    quick: Any = _in_place(at.child_layer, QuickClient)
    quick.relay, at.child_layer = relay, quick
    at._handle_event = at.child_layer.handle_event
    return True


class Differs(Exception):
    """Ours do not read a message as mitmproxy's do."""


def check() -> None:
    """Read a request and a response with mitmproxy's and with ours.

    Raises Differs, or whatever else comes of a mitmproxy or an h11 that was changed.
    """
    if _tried(Http1Server, Http1Client) != _tried(QuickServer, QuickClient):
        raise Differs


#: What mitmproxy reads for us: a field that goes on in the next line.
_FOLDED = b"X: 1\r\n 2\r\n"
_BODIES = (
    (b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",),
    (b"Content-Length: 4\r\n\r\n", b"hi", b"hi"),
)


def _tried(server: type[Http1Server], client: type[Http1Client]) -> list[object]:
    """Return what the two kinds of connections say to a message each."""
    found: list[object] = []
    context = Context(connection.Client(peername=("", 0), sockname=("", 0)), cast(Any, None))
    context.server.state = connection.ConnectionState.OPEN
    heads: tuple[tuple[Callable[[Context], Any], bytes], ...]
    heads = ((server, b"POST /x HTTP/1.1\r\nHost: a\r\n"), (client, b"HTTP/1.1 200 OK\r\n"))
    for (kind, head), (body, *more) in product(heads, _BODIES):
        side = kind(context)
        came = [events.DataReceived(side.conn, data) for data in (head + _FOLDED + body, *more)]
        fed: list[events.Event] = [events.Start(), *came]
        if kind is client:
            asked = RequestHeaders(1, http.Request.make("GET", "http://a/"), True)
            fed[1:1] = [asked, RequestEndOfMessage(1)]
        found += [_shape(command) for event in fed for command in side.handle_event(event)]
    return found


def _shape(command: Any) -> object:
    """Return what *command* is, without the instants in it."""
    event = getattr(command, "event", command)
    message = getattr(event, "request", None) or getattr(event, "response", None)
    if message is None:
        return type(event), getattr(event, "data", None)
    data = {k: v for k, v in vars(message.data).items() if k != "timestamp_start"}
    return type(event), event.end_stream, data


def _in_place(chosen: Any, ours: Callable[[Any], Http1Connection]) -> Http1Connection:
    # Layers append themselves to the context when they are made.
    chosen.context.layers.remove(chosen)
    quick = ours(chosen.context)
    quick.state = quick.read_headers  # where the other one was told to start
    return quick


def _taken(
    connection: Http1Connection, parse: Callable[[list[bytes]], _Head[_T]]
) -> _Head[_T] | None:
    """Take a head off the buffer of *connection*; None if it is not complete, or odd.

    What is odd stays there, for the base class to find as well, and to say so.
    """
    buffered = bytes(connection.buf)
    size = buffered.find(b"\r\n\r\n")
    lines = buffered[:size].split(b"\r\n") if size > 0 else [b""]
    if lines[0] and buffered.count(b"\n", 0, size) == len(lines) - 1:
        connection.buf.maybe_extract_at_most(size + 4)
    else:  # as h11 does: it may end its lines otherwise, or have blank ones before (RFC 9112, 2.2)
        found: list[bytearray] | None = []
        while found == []:
            buffered = bytes(connection.buf)
            found = connection.buf.maybe_extract_lines()
        if found is None:
            return None
        lines = [bytes(line) for line in found]
    try:
        return parse(lines)
    except ValueError:
        pass
    connection.buf = type(connection.buf)()
    connection.buf += buffered
    return None


def _request(lines: list[bytes]) -> _Head[http.Request]:
    host, port, method, scheme, authority, path, version = read._read_request_line(lines[0])
    request = http.Request.__new__(http.Request)
    request.data = http.RequestData.__new__(http.RequestData)
    _fill(request.data, version, lines)
    request.data.__dict__.update(
        host=host, port=port, method=method, scheme=scheme, authority=authority, path=path
    )
    return request, http1.expected_http_body_size(request)


def _response(lines: list[bytes], request: http.Request) -> _Head[http.Response]:
    version, status_code, reason = read._read_response_line(lines[0])
    response = http.Response.__new__(http.Response)
    response.data = http.ResponseData.__new__(http.ResponseData)
    _fill(response.data, version, lines)
    response.data.__dict__.update(status_code=status_code, reason=reason)
    return response, http1.expected_http_body_size(request, response)


def _fill(data: http.MessageData, version: bytes, lines: list[bytes]) -> None:
    """Set what every message has."""
    data.http_version = version
    data.headers = IndexedHeaders.of(_fields(lines[1:]))
    data.content = data.trailers = None
    data.timestamp_start, data.timestamp_end = time.time(), None


_SPLIT = methodcaller("partition", b":")


def _fields(lines: list[bytes]) -> Fields:
    """Return what mitmproxy reads in *lines*, without its checks of each type."""
    if not lines:
        return ()
    names, colons, values = zip(*map(_SPLIT, lines), strict=True)
    begins = b"\n".join([b"", *names])
    if b"" in names or b"" in colons or b"\n " in begins or b"\n\t" in begins:
        return read._read_headers(lines).fields  # folded, or wrong
    return tuple(zip(names, map(bytes.strip, values), strict=True))
