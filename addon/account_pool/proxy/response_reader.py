"""How far a response is read before it is known what it is.

A refusal (status 400 and up) is read to its end, so that it can be understood and, if
need be, delivered. A success is read up to its first committing event. Both are bounded
in bytes; the stream bounds them in time. What was read is held as it came, byte for
byte, and goes to the client if the response turns out to be the one to deliver. What is not
there to its end is never delivered as if it were.

Also what is no response at all, and what is made one. Any number of interim responses (100,
102, 103) may precede the final one (RFC 9110, 15.2). They are not handed on: mitmproxy sends
its own 100 to a client that expects it, and the rest is advice on an attempt whose response
the client may never see.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import msgspec
from mitmproxy import http
from mitmproxy.net.http.validate import validate_headers

from account_pool.core.outcome import UpstreamResponse
from account_pool.core.sse import EventParser, Gate, StreamVerdict, Verdict, gate_shape
from account_pool.core.usage import END_BYTES, Usage, of_answer
from account_pool.providers.base import Provider
from account_pool.proxy import decoding
from account_pool.proxy.decoding import Decoder, End
from account_pool.proxy.headers import IndexedHeaders

#: Longest refusal that is kept. The longest recorded one is under 3 KiB; some repeat the
#: whole request.
MAX_REFUSAL_BYTES = 8 * 1024 * 1024
#: How much more of a refusal is read before the attempt is cut off: beyond that a new
#: connection costs less than its rest.
MAX_DRAIN_BYTES = 1024 * 1024
#: Bound of the first-event gate, bytes.
MAX_GATE_BYTES = 65536

#: Longest body a refusal may unpack to.
MAX_PLAIN_BYTES = 16 * 1024 * 1024
#: How much of the beginning of a response is looked at for ids and the like.
MAX_HELD_PLAIN_BYTES = 4 * 1024 * 1024
#: How much of a refusal is looked at as a text.
MAX_TEXT_BYTES = 65536
#: How much of the beginning of a compressed response is unpacked to find what it took.
MAX_OPENING_BYTES = 64 * 1024


#: How many of the last events of a stream may tell that it failed.
LATE_EVENTS = 16
#: An item of an array that is an error.
_FAILED_ITEM = re.compile(rb'\{\s*"error"\s*:\s*\{')


class ResponseReader:
    """Reads one response.

    Attributes:
        response: its head, as it came.
        held: the raw body so far.
        complete: whether *held* is the whole body.
        broken: it ended before it was complete.
        encoding: its content-encoding, "" for none.
        in_stream: whether a refusal came inside a response that began as a success.
        first: what the head alone tells.
    """

    def __init__(self, response: http.Response, provider: Provider) -> None:
        self.response = response
        self.held: list[bytes] = []
        self.complete = self.broken = False
        self._size = 0
        self._drained = 0
        self._gate: Gate | None = None
        self._decision: StreamVerdict | None = None
        self._refusal = response.status_code >= 400
        self.in_stream = not self._refusal
        self._judge = provider.judge
        self._marks = provider.error_marks
        self._decoder: Decoder | None = None
        headers = response.headers
        if not isinstance(headers, IndexedHeaders):
            # mitmproxy asks the head for its framing a dozen times from here on.
            response.data.headers = headers = IndexedHeaders.of(headers.fields)
        content_type = headers.last(b"content-type")
        length = headers.last(b"content-length")
        self.encoding = headers.get("content-encoding", "").strip()
        if self.encoding and decoding.is_none(self.encoding):
            self.encoding = ""
        self._announced = int(length) if length.isascii() and length.isdigit() else -1
        shape = gate_shape(content_type)
        self._streams = shape == "sse"
        if shape is not None and 200 <= response.status_code < 300:
            self._gate = Gate(
                provider.judge, shape, max_bytes=MAX_GATE_BYTES, marks=provider.error_marks
            )
        if self.encoding and (self._gate is not None or self._refusal):
            most = MAX_PLAIN_BYTES if self._refusal else 2 * MAX_GATE_BYTES
            try:
                self._decoder = Decoder(self.encoding, max_bytes=most, streams=not self._refusal)
            except ValueError:
                # An encoding the client asked for and we cannot read: nothing can be
                # told from the body, so a success is taken for one.
                self._gate = None
        self._text = bytearray()
        self.first = Verdict.CONTINUE if self._refusal or self._gate is not None else Verdict.COMMIT

    def feed(self, data: bytes) -> Verdict:
        """Take in the next piece of the body."""
        self.held.append(data)
        self._size += len(data)
        if self._gate is not None:
            if self._decision is None:
                decoded = self._decode(data)
                self._decision = (
                    self._gate.expired() if decoded is None else self._gate.feed(decoded)
                )
            # All of it is here, and its end comes with it: a response in one piece costs
            # less to hand on than one that streams.
            return Verdict.CONTINUE if self._size == self._announced else self._decided()
        self._unpack(data)
        return Verdict.REFUSE if self._size > MAX_REFUSAL_BYTES else Verdict.CONTINUE

    def drain(self, data: bytes) -> bool:
        """Take in a piece of what is refused already; say whether to go on reading."""
        self.held.append(data)
        self._drained += len(data)
        self._unpack(data)
        return self._drained <= MAX_DRAIN_BYTES

    def end(self) -> Verdict:
        """The body has ended."""
        self.complete = True
        if self._gate is None:
            return Verdict.REFUSE
        self._decision = self._decision or self._gate.end()
        return self._decided()

    def expired(self) -> Verdict:
        """The time bound has come. What was decided before it stays."""
        if self._gate is None:
            return Verdict.REFUSE
        self._decision = self._decision or self._gate.expired()
        return self._decided()

    @property
    def may_follow(self) -> bool:
        """Whether the body may be handed on as it comes, and what still comes of it."""
        return not (self.complete or self.broken) and (not self.encoding or self.is_left_alone)

    @property
    def is_left_alone(self) -> bool:
        """Whether the body is handed on although it cannot be searched for a credential.

        Not what refuses a credential: that may quote it.
        """
        refuses_key = self.response.status_code in (401, 403)
        return decoding.is_left_alone(self.encoding) and not refuses_key

    def upstream_response(self, model: str | None, wall_now: float) -> UpstreamResponse:
        """Return what was read, as values for `Provider.classify`."""
        headers: dict[str, str] = {}
        for raw_name, raw_value in self.response.headers.fields:
            lower, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[lower] = f"{headers[lower]}, {value}" if lower in headers else value
        decision = self._decision
        body = bytes(self._text) if self.encoding else self._joined()
        text = body[:MAX_TEXT_BYTES].decode("utf-8", "replace")
        return UpstreamResponse(
            status=self.response.status_code,
            headers=headers,
            text=text,
            payload=decision.payload if decision else _json(body),
            in_stream=self.in_stream,
            event=decision.event if decision else None,
            model=model,
            wall_now=wall_now,
        )

    def _joined(self) -> bytes:
        if len(self.held) > 1:
            self.held = [b"".join(self.held)]
        return self.held[0] if self.held else b""

    def opening(self) -> bytes:
        """Return what is held of the body, decoded as far as it can be."""
        held = self._joined()
        if not self.encoding:
            return held
        try:
            return Decoder(self.encoding, max_bytes=MAX_HELD_PLAIN_BYTES).feed(held)
        except ValueError:
            return b""

    def plain(self) -> bytes:
        """Return the whole body decoded. Raises ValueError if it cannot be, or is a bomb."""
        held = self._joined()
        if not self.encoding:
            return held
        decoder, plain = self._decoder, bytes(self._text)
        if self.in_stream:
            decoder = Decoder(self.encoding, max_bytes=MAX_PLAIN_BYTES)
            plain = decoder.feed(held)
        if decoder is None or decoder.is_full:
            raise ValueError("the body cannot be unpacked, or is too large then")
        return plain

    def ended(
        self, body: bytes | bytearray, tail: bytes | bytearray
    ) -> tuple[Usage | None, StreamVerdict | None]:
        """Return what a good response took, and the error it ended with, where it says so.

        Args:
            body: from its beginning on, as it came.
            tail: its end without the content-encoding, where *body* is not all.
        """
        if self._gate is None:
            return None, None
        if self.encoding:
            body, tail = self._unpacked(body, tail)
        refused = self._refused_at_its_end(body, tail)
        return of_answer(body, tail), refused

    def _unpacked(
        self, body: bytes | bytearray, tail: bytes | bytearray
    ) -> tuple[bytes, bytes | bytearray]:
        """Return beginning and end of a body without its content-encoding."""
        if not tail:
            end = End(self.encoding, keep_bytes=END_BYTES)
            end.feed(body)
            tail = end.kept
        try:
            opening = Decoder(self.encoding, max_bytes=MAX_OPENING_BYTES)
            return opening.feed(bytes(body[:MAX_OPENING_BYTES])), tail
        except ValueError:
            return b"", tail

    def _refused_at_its_end(
        self, body: bytes | bytearray, tail: bytes | bytearray
    ) -> StreamVerdict | None:
        """Return the error that a stream which began well has ended with, if any."""
        end = bytes((tail or body)[-END_BYTES:])
        if self._streams:
            return self._last_event(_last_events(end))
        # Gemini streams an array where no events are asked for.
        array = body[:16].lstrip()[:1] == b"["
        return self._last_item(end) if array else None

    def _last_event(self, end: bytes) -> StreamVerdict | None:
        if not self._marks.search(end):
            return None
        parser = EventParser()
        for event in reversed([*parser.feed(end), *parser.end()]):
            value = _json(event.data.encode("utf-8", "replace"))
            if isinstance(value, dict) and self._judge(event.name, value) is Verdict.REFUSE:
                return StreamVerdict(Verdict.REFUSE, value, event.name)
        return None

    def _last_item(self, end: bytes) -> StreamVerdict | None:
        found = [*_FAILED_ITEM.finditer(end)]
        text = end[found[-1].start() :] if found else b""
        value = _json(text.rstrip(b"], \t\r\n"))
        if isinstance(value, dict) and self._judge(None, value) is Verdict.REFUSE:
            return StreamVerdict(Verdict.REFUSE, value)
        return None

    def late_response(
        self, decision: StreamVerdict, model: str | None, wall_now: float
    ) -> UpstreamResponse:
        """Return what *decision* refused with, as values for `Provider.classify`."""
        told = self.upstream_response(model, wall_now)
        return replace(told, payload=decision.payload, event=decision.event, in_stream=True)

    def _unpack(self, data: bytes) -> None:
        """Take the next piece of a refusal without its encoding, once: it is long work."""
        if self.encoding and self._refusal:
            self._text += self._decode(data) or b""
            if self._decoder is None or self._decoder.is_full:
                # It will not be read as a whole: many at once shall not fill the memory.
                self._text = self._text[:MAX_TEXT_BYTES]

    def _decode(self, data: bytes) -> bytes | None:
        """Return the decoded piece, None when the body cannot be read."""
        if not self.encoding:
            return data
        if self._decoder is None:
            return None
        try:
            return self._decoder.feed(data)
        except ValueError:
            self._decoder = None
            return None

    def _decided(self) -> Verdict:
        return Verdict.CONTINUE if self._decision is None else self._decision.verdict


def _last_events(end: bytes) -> bytes:
    """Return the last events of a stream, roughly `LATE_EVENTS` of them."""
    blank = b"\n\r\n" if b"\n\r\n" in end else b"\n\n"
    at = len(end)
    for _ in range(LATE_EVENTS):
        at = end.rfind(blank, 0, at)
        if at < 0:
            return end
    return end[at:]


def _json(body: bytes) -> Any:
    """Parse a body that looks like JSON; None otherwise."""
    if body.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    if len(body) > MAX_TEXT_BYTES:
        return None
    try:
        # NaN and broken characters are no JSON, but occur.
        return json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


# -- valid and interim responses

SWITCHING_PROTOCOLS = 101
#: What HTTP/2 clients take as a head. At more they end the connection, with all that is on it.
MAX_LIST_BYTES = 65536 - 100  # of which our status is a part
#: A name that clients take (RFC 9110, 5.6.2), and what they do not take in a value. A line
#: that was folded has it, too (RFC 9112, 5.2).
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-zA-Z]+")
_CONTROL = re.compile(rb"[\r\n\0]+[ \t]*")


def is_interim(status: int) -> bool:
    """Say whether another response follows one of *status* on the same connection."""
    return 100 <= status < 200 and status != SWITCHING_PROTOCOLS


def is_response(response: http.Response, request: http.Request) -> bool:
    """Say whether *response* can be the final response to *request*.

    A protocol is switched only where the client asked for that (RFC 9110, 7.8), and never
    over HTTP/2 (RFC 9113, 8.6). A status outside 100 to 599 is invalid (RFC 9110, 15).
    """
    if response.status_code == SWITCHING_PROTOCOLS:
        asked = _protocols(request)
        return bool(asked) and asked >= _protocols(response)
    return 200 <= response.status_code < 600


def unfold_fields(response: http.Response) -> None:
    """Put a space in place of what breaks a line (RFC 9110, 5.5).

    Clients end the connection at it, over HTTP/2 with all that is on it.
    """
    fields = response.headers.fields
    if _CONTROL.search(b"".join([value for _, value in fields])):
        response.headers.fields = tuple(
            (name, _CONTROL.sub(b" ", value).strip(b" \t")) for name, value in fields
        )
    if _CONTROL.search(response.data.reason):
        response.data.reason = _CONTROL.sub(b" ", response.data.reason)


def wrong_with(response: http.Response) -> str | None:
    """Return what mitmproxy's validate_inbound_headers refuses in *response*, if anything."""
    try:
        validate_headers(response)
    except ValueError as e:
        return str(e)
    return None


def is_too_long(response: http.Response) -> bool:
    """Say whether the head of *response* is more than an HTTP/2 client takes (RFC 9113, 6.5.2)."""
    sizes = (len(name) + len(value) + 32 for name, value in response.headers.fields)
    return sum(sizes) > MAX_LIST_BYTES


def drop_invalid_fields(response: http.Response) -> None:
    """Leave out of a refusal what is wrong with its head: what it says counts."""
    fields = response.headers.fields
    chunked = any(name.lower() == b"transfer-encoding" for name, _ in fields)
    response.headers.fields = tuple(
        (name, value)
        for name, value in fields
        if _TOKEN.fullmatch(name) and not (chunked and name.lower() == b"content-length")
    )


def _protocols(message: http.Message) -> set[str]:
    named = ",".join(message.headers.get_all("upgrade"))
    return {name.strip().lower() for name in named.split(",") if name.strip()}
