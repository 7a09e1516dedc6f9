"""What a client would read in a streamed answer, and whether it has begun.

`EventParser` turns the bytes of an event stream into events, whatever the chunks
(WHATWG HTML, section 9.2, "Server-sent events"). `Gate` reads the start of a
successful answer until a provider's judge says that it has begun or that it is a
refusal after all; past any bound it has begun. Neither knows a provider or a clock,
and both get content that is already decompressed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Literal

import msgspec
from msgspec import Struct

from account_pool.core.json_values import NOT_READ

Shape = Literal["sse", "json", "html", "text"]

#: An event that grows beyond this is dropped: nobody's stream needs it.
MAX_EVENT_BYTES = 4 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")

# Characters that open, close or quote something in JSON.
_JSON_MARK = re.compile(rb'["\\{}\[\]]')
_STRING_MARK = re.compile(rb'["\\]')
# An object without such a member cannot be an error envelope, whatever its size.
# `"error":null` is part of every good answer of OpenAI's Responses API.
HAS_ERROR = re.compile(rb'"error"\s*:\s*[^n\s]|"(?:type|object)"\s*:\s*"error"')
#: The same for services that fail without one: `{"base_resp": {"status_code": 1008}}`,
#: `{"code": 1113, "msg": ...}`.
HAS_FAILURE = re.compile(
    HAS_ERROR.pattern + rb'|"(?:status_?code|(?:err(?:or)?_?)?[Cc]ode)"\s*:\s*(?:"[^"]|[1-9])'
    rb'|"Error"\s*:\s*\{|"(?:msg|errmsg)"\s*:|"success"\s*:\s*false'
    rb'|"status"\s*:\s*"(?:error|fail)'
)
_JSON_BLANK = b" \t\r\n"
#: What may come before anything: blanks, a byte order mark.
_BLANK = _JSON_BLANK + _BOM
#: Types of a body that may be an object all the same; the last are of objects, one a line.
_UNTOLD = frozenset({"", "text/plain", "application/x-ndjson", "application/jsonl"})

#: How a page begins. What is no page, whatever its type says, is handed over: relays exist that
#: send their event streams as text/html.
_PAGE = re.compile(r"\s*<(?:!doctype\s+html|html)[\s>]", re.IGNORECASE)
#: How much of it is looked at.
_PAGE_CHARS = 256


def is_page(text: str) -> bool:
    """Say whether *text* begins as an HTML document does."""
    return _PAGE.match(text.removeprefix("\ufeff")) is not None


class Verdict(Enum):
    """What one event says about the start of its stream."""

    #: the answer has begun: hand it to the client
    COMMIT = "commit"
    #: it says nothing yet: `message_start`, `ping`, `response.created`, empty choices
    CONTINUE = "continue"
    #: it ends the stream with an error: classify it
    REFUSE = "refuse"


#: (name of the event or None, its JSON value or None if it is not JSON) -> Verdict
Judge = Callable[[str | None, Any], Verdict]


class StreamEvent(Struct, frozen=True):
    """One event: its name, None for the default "message", and its data lines."""

    name: str | None
    data: str


class StreamVerdict(Struct, frozen=True):
    """The verdict on the start of a response.

    Attributes:
        verdict: COMMIT or REFUSE.
        payload: the JSON value that refused (its text if it is not JSON), else None.
        event: the name of the event that refused, if it had one.
    """

    verdict: Verdict
    payload: Any = None
    event: str | None = None


_COMMIT = StreamVerdict(Verdict.COMMIT)

# (name, data); no data: an answer of which it is certain that it does not refuse
_Item = tuple[str | None, str | bytes | None]


class EventParser:
    """Reads an event stream incrementally: any chunks give the same events.

    Holds at most *max_event_bytes* of an unfinished event; one that grows beyond is
    dropped whole and reading goes on with the next.
    """

    __slots__ = ("_data", "_line", "_max", "_name", "_oversized", "_size", "_skip_lf", "_started")

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._line = bytearray()  # an unfinished line
        self._data: list[bytes] = []  # data lines of the unfinished event
        self._name: bytes | None = None
        self._size = 0  # bytes held of the unfinished event
        self._oversized = False
        self._started = False
        self._skip_lf = False  # the chunk ended with \r: a \n to come belongs to it

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Return the events that *data* completes."""
        return list(self.read(data))

    def read(self, data: bytes) -> Iterator[StreamEvent]:
        """Yield the events that *data* completes, each as soon as it is.

        Leaving early loses the rest of *data*: only for a reader that then stops.
        """
        if self._skip_lf and data:
            self._skip_lf = False
            data = data.removeprefix(b"\n")
        position = 0
        for end in _LINE_END.finditer(data):
            start, position = position, end.end()
            if position == len(data) and end[0] == b"\r":
                self._skip_lf = True
            if self._line:
                self._hold(data[start : end.start()])
                line = bytes(self._line)
                self._line.clear()
            else:
                line = data[start : end.start()]
            event = self._take(line)
            if event is not None:
                yield event
        if position < len(data):
            self._hold(data[position:])

    def end(self) -> list[StreamEvent]:
        """Return what a stream cut off before its last empty line still says."""
        line = bytes(self._line)
        self._line.clear()
        events = [self._take(line), self._take(b"")] if line else [self._take(b"")]
        return [event for event in events if event is not None]

    def _hold(self, part: bytes) -> None:
        """Keep *part* of an unfinished line, but no more of it than the bound."""
        if len(self._line) + len(part) > self._max:
            self._oversized = True
            # One byte is enough to know later that the line was not empty.
            part = b"" if self._line else part[:1]
        self._line += part

    def _take(self, line: bytes) -> StreamEvent | None:
        """Add a complete line; return the event if it was the empty one that ends it."""
        if not self._started:
            self._started = True
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        if field == b"data":
            self._size += len(line)
            if self._size <= self._max and not self._oversized:
                self._data.append(value.removeprefix(b" "))
                return None
        elif field == b"event" and len(line) <= self._max:
            self._name = value.removeprefix(b" ")
        if max(len(line), self._size) > self._max:
            self._oversized = True
            self._data.clear()
        # Comments (an empty field name), `id`, `retry` and unknown fields say nothing.
        return None

    def _dispatch(self) -> StreamEvent | None:
        data, name, oversized = self._data, self._name, self._oversized
        self._name, self._size, self._oversized = None, 0, False
        if not data:
            return None
        self._data = []
        if oversized:
            return None
        text = b"\n".join(data).decode("utf-8", "replace")
        return StreamEvent(name.decode("utf-8", "replace") if name else None, text)


class Gate:
    """Holds the start of a successful answer until it is known what it is.

    A JSON object in which *marks* does not occur is no error; nothing is built of it.
    Feed it until it returns a `StreamVerdict`; call `end` when the answer ends before, and
    `expired` when the caller's time is up. Comments and empty lines count towards the
    bytes only. After a decision a gate must not be used again.
    """

    __slots__ = ("_events", "_judge", "_max_bytes", "_max_events", "_size", "_source")

    def __init__(
        self,
        judge: Judge,
        shape: Shape,
        *,
        max_events: int = 64,
        max_bytes: int = 65_536,
        marks: re.Pattern[bytes] = HAS_ERROR,
    ) -> None:
        self._judge = judge if shape != "html" else _refuse
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._events = 0
        self._size = 0
        self._source: _Events | _Document | _Page | _Text
        match shape:
            case "sse":
                self._source = _Events(marks)
            case "json":
                self._source = _Document(marks)
            case "html":
                self._source = _Page()
            case "text":
                self._source = _Text(marks)

    def feed(self, data: bytes) -> StreamVerdict | None:
        """Take more of the answer; return the decision once there is one."""
        self._size += len(data)
        decision = self._decide(self._source.read(data))
        # What came is judged before the bound, so that one large chunk with a
        # refusal in front of it is seen.
        if decision is None and (self._events >= self._max_events or self._size >= self._max_bytes):
            return _COMMIT
        return decision

    def end(self) -> StreamVerdict:
        """Decide by what there is: the answer is complete."""
        return self._decide(self._source.end()) or _COMMIT

    def expired(self) -> StreamVerdict:
        """Decide that the time is up: hand over what there is."""
        return _COMMIT

    def _decide(self, items: Iterator[_Item]) -> StreamVerdict | None:
        for name, data in items:
            if data is None:
                return _COMMIT
            if self._events >= self._max_events:
                return _COMMIT
            self._events += 1
            try:
                value = msgspec.json.decode(data)
            except NOT_READ:
                value = None
            verdict = self._judge(name, value)
            if verdict is Verdict.COMMIT:
                return _COMMIT
            if verdict is Verdict.REFUSE:
                text = data if isinstance(data, str) else data.decode("utf-8", "replace")
                return StreamVerdict(verdict, text if value is None else value, name)
        return None


def _refuse(_name: str | None, _value: Any) -> Verdict:
    return Verdict.REFUSE


class _Page:
    """A page, where one comes: its beginning is the only item."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def read(self, data: bytes) -> Iterator[_Item]:
        self._buffer += data
        text = self._buffer[:_PAGE_CHARS].decode("utf-8", "ignore")  # what is cut
        if is_page(text):
            yield None, text
        elif len(text) >= _PAGE_CHARS or text.lstrip("\ufeff \t\r\n")[:1] not in ("", "<"):
            yield None, None

    def end(self) -> Iterator[_Item]:
        return iter(())


class _Text:
    """The items of a body that does not say what it is: of an object, if it begins one.

    Gateways send their errors without a type, which net/http of Go makes text/plain, or with
    the type of the stream that was asked for.
    """

    __slots__ = ("_document", "_marks")

    def __init__(self, marks: re.Pattern[bytes]) -> None:
        self._marks = marks
        self._document: _Document | None = None

    def read(self, data: bytes) -> Iterator[_Item]:
        if self._document is None:
            data = data.lstrip(_BLANK)
            if data and not data.startswith(b"{"):
                yield None, None
            if not data.startswith(b"{"):
                return
            self._document = _Document(self._marks)
        yield from self._document.read(data)

    def end(self) -> Iterator[_Item]:
        return iter(()) if self._document is None else self._document.end()


class _Events:
    """The items of an event stream, or of an object that came in its place."""

    __slots__ = ("_begun", "_parser", "_text")

    def __init__(self, marks: re.Pattern[bytes]) -> None:
        self._parser = EventParser()
        self._text = _Text(marks)
        self._begun: bytes | None = None

    def read(self, data: bytes) -> Iterator[_Item]:
        if self._begun is None:
            self._begun = data.lstrip(_BLANK)[:1] or None
        if self._begun == b"{":
            yield from self._text.read(data)
            return
        for event in self._parser.read(data):
            yield event.name, event.data

    def end(self) -> Iterator[_Item]:
        if self._begun == b"{":
            yield from self._text.end()
            return
        for event in self._parser.end():
            yield event.name, event.data


class _Document:
    """The items of a JSON answer: the object itself, those of an array, or one a line.

    Gemini streams an array piece by piece when `alt=sse` is not asked for
    (`[{...}`, `,{...}`, `]`); each item is one as soon as it is complete.
    """

    __slots__ = ("_buffer", "_depth", "_in_string", "_marks", "_position", "_start")

    def __init__(self, marks: re.Pattern[bytes]) -> None:
        self._marks = marks
        self._buffer = bytearray()
        self._position = 0  # read up to here
        self._depth = 0
        self._in_string = False
        self._start = 0  # of the item that is open

    def read(self, data: bytes) -> Iterator[_Item]:
        self._buffer += data
        first = self._buffer.lstrip(_JSON_BLANK)[:1]
        if first == b"[":
            yield from self._array_items()
        elif first and _is_json(self._buffer):
            yield None, bytes(self._buffer) if self._marks.search(self._buffer) else None
        elif first == b"{":
            yield from self._lines()

    def end(self) -> Iterator[_Item]:
        first = self._buffer.lstrip(_JSON_BLANK)[:1]
        if first == b"{" and self._marks.search(self._buffer):
            yield None, bytes(self._buffer)

    def _lines(self) -> Iterator[_Item]:
        while (end := self._buffer.find(b"\n", self._position)) >= 0:
            line = bytes(self._buffer[self._position : end])
            if line.strip() and not _is_json(line):
                return  # an object on several lines
            self._position = end + 1
            if line.strip():
                yield None, line if self._marks.search(line) else None

    def _array_items(self) -> Iterator[_Item]:
        buffer = self._buffer
        while True:
            mark = (_STRING_MARK if self._in_string else _JSON_MARK).search(buffer, self._position)
            if mark is None:
                # An escaped character may lie beyond the end: it is skipped for good.
                self._position = max(self._position, len(buffer))
                return
            self._position = mark.end()
            match mark[0]:
                case b"\\":
                    # Skips the escaped character, also when it has not come yet.
                    self._position += 1
                case b'"':
                    self._in_string = not self._in_string
                case b"{" | b"[":
                    self._depth += 1
                    if self._depth == 2:
                        self._start = mark.start()
                case _:
                    self._depth -= 1
                    if self._depth == 1:
                        yield None, bytes(buffer[self._start : self._position])


def _is_json(text: bytes | bytearray) -> bool:
    """Say whether *text* is one object that is complete."""
    if not text.rstrip(_JSON_BLANK).endswith(b"}"):
        return False
    try:
        # Checks the syntax without building anything.
        msgspec.json.decode(text, type=msgspec.Raw)
    except NOT_READ:
        return False
    return True


def gate_shape(content_type: str) -> Shape | None:
    """Return how an answer of *content_type* is read, None if it cannot refuse.

    A page or a text can where the client expects none.
    Audio, images and the like are handed over as they come.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return "sse"
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return "json"
    if kind in ("text/html", "application/xhtml+xml"):
        return "html"
    return "text" if kind in _UNTOLD else None
