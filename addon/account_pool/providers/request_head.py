"""What a provider sees of a request, and what several of them read from it.

Nothing here fails on malformed input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec


@dataclass(slots=True, kw_only=True)
class RequestHead:
    """A request as a provider sees it. Not to be changed by one. `repr()` shows no credential.

    Not frozen: one is made per request, a frozen one costs several times as much, and
    its body comes later than its head.

    Attributes:
        method: upper case.
        host, port: where the connection goes, never the Host header.
        path: without the query.
        query: without "?", "" if none.
        headers: by lower-case name, first value of each.
        body: the complete body with its content-encoding removed; b"" when there is
            none, or when it is streamed through unread.
        read: what `body_of` has parsed, so that it is parsed once.
    """

    method: str
    host: str
    port: int
    path: str
    query: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    read: tuple[bytes, object] | None = field(default=None, repr=False, compare=False)


_NOTHING = msgspec.Raw(b"")
#: Begins a pattern of paths: one with a step up ("..") in any spelling is another path to a
#: server. https://www.rfc-editor.org/rfc/rfc3986#section-5.2.4; many decode first.
NO_STEP = r"(?!(?is:.*(?:[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?:[/\\;]|%2f|%5c|\Z)))"


class Body(msgspec.Struct):
    """The members of a JSON body that are used; long ones are located, not parsed.

    Each belongs to one API or several (`sessions.py` says which). A member of the wrong type
    is accepted, so that malformed input fails no request.
    """

    model: str | None = None
    agent: Any = None
    store: Any = None
    prompt_cache_key: Any = None
    session_id: Any = None
    previous_response_id: Any = None
    previous_interaction_id: Any = None
    environment: Any = None
    conversation: Any = None
    container: Any = None
    metadata: msgspec.Raw = _NOTHING
    cachedContent: Any = None  # noqa: N815 - the names of Google
    cached_content: Any = None
    systemInstruction: msgspec.Raw = _NOTHING  # noqa: N815
    system_instruction: msgspec.Raw = _NOTHING
    contents: msgspec.Raw = _NOTHING
    system: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    tools: msgspec.Raw = _NOTHING
    request: msgspec.Raw = _NOTHING


_DECODER = msgspec.json.Decoder(Body)


def body_of(head: RequestHead) -> Body | None:
    """Return the body, parsed once; None if it is not a JSON object."""
    if not head.body or head.body[:1] not in b"{ \t\r\n":
        return None
    known = head.read
    if isinstance(known, tuple) and known[0] is head.body:
        return cast("Body | None", known[1])
    body = body_from(head.body)
    head.read = (head.body, body)
    return body


def body_from(text: bytes | msgspec.Raw) -> Body | None:
    """Return *text* parsed; None if it is not a JSON object."""
    try:
        return _DECODER.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def body_model(head: RequestHead) -> str | None:
    """Return `model` of a JSON body without building the rest of it."""
    body = body_of(head)
    return (body.model or None) if body is not None else None


def bearer(head: RequestHead) -> str:
    """Return the token of `Authorization`, whatever the scheme; "" if none."""
    _scheme, _, token = head.headers.get("authorization", "").strip().partition(" ")
    return token.strip()


def is_websocket(head: RequestHead) -> bool:
    """Return whether the request asks for a WebSocket (RFC 6455 4.2.1)."""
    return head.headers.get("upgrade", "").strip().lower() == "websocket"
