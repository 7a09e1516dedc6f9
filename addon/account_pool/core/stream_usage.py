"""Has OpenAI's chat streams say what they took, and takes that out again (`pool_count_streams`).

A stream says its tokens only where `stream_options` asks for it
(https://platform.openai.com/docs/api-reference/chat/create#chat-create-stream_options): one
event more before the end, and `"usage":null` in each of the others. Its client, which has
not asked, gets the bytes that it would have got.
"""

from __future__ import annotations

import re

import msgspec

#: An event that is longer is handed on as it is, and all that follows it.
MAX_EVENT_BYTES = 1024 * 1024
_END = re.compile(rb"\r?\n\r?\n|\r\r")
_NULL = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')
_ADDED = b'"stream_options":{"include_usage":true}'
_SPACE = b" \t\r\n"


class _Asked(msgspec.Struct):
    stream: bool = False
    stream_options: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_ASKED, _CHUNK = msgspec.json.Decoder(_Asked), msgspec.json.Decoder(_Chunk)
_NOT_READ = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def with_usage(body: bytes) -> bytes | None:
    """Return the request *body* with the question for its usage, all else as it is.

    None: it is no stream, or says something about `stream_options` itself.
    """
    try:
        asked = _ASKED.decode(body)
    except _NOT_READ:
        return None
    if not asked.stream or asked.stream_options is not msgspec.UNSET:
        return None
    kept = body.rstrip(_SPACE)
    # It has a member at least: stream.
    return kept[:-1] + b"," + _ADDED + b"}" + body[len(kept) :]


class UsageFilter:
    """Takes the answer to that question out of a stream.

    Attributes:
        taken: the event with the usage, once it has come.
    """

    def __init__(self) -> None:
        self.taken = b""
        self._held = bytearray()
        self._gave_up = False

    def feed(self, data: bytes) -> bytes:
        """Return what goes on of *data* and what was held back; whole events."""
        if self._gave_up:
            return data
        self._held += data
        out, at = [], 0
        for end in _END.finditer(self._held):
            out.append(self._event(bytes(self._held[at : end.end()])))
            at = end.end()
        del self._held[:at]
        if len(self._held) > MAX_EVENT_BYTES:
            self._gave_up = True
            out.append(self.end())
        return b"".join(out)

    def end(self) -> bytes:
        """The stream has ended: return what is still held back."""
        held = bytes(self._held)
        self._held.clear()
        return held

    def _event(self, event: bytes) -> bytes:
        if b'"usage"' not in event:
            return event
        chunk = _read(event)
        if chunk is None or chunk.usage is msgspec.UNSET:
            return event
        if bytes(chunk.usage) == b"null":
            return _without_null(event)
        if chunk.choices == [] and not self.taken:
            self.taken = event
            return b""
        return event


def _without_null(event: bytes) -> bytes:
    """Return *event* without the member of its object; others inside it stay."""
    for found in _NULL.finditer(event):
        without = event[: found.start()] + event[found.end() :]
        chunk = _read(without)
        if chunk is not None and chunk.usage is msgspec.UNSET:
            return without
    return event


def _read(event: bytes) -> _Chunk | None:
    """Return the object in *event*; None if it is none, or in more than one line."""
    lines = [line for line in event.splitlines() if line.startswith(b"data:")]
    try:
        return _CHUNK.decode(lines[0][5:]) if len(lines) == 1 else None
    except _NOT_READ:
        return None
