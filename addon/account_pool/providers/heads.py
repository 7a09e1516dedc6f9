"""What several providers read from a request, none of which may fail on garbage."""

from __future__ import annotations

import msgspec

from account_pool.providers.base import RequestHead


class _Body(msgspec.Struct):
    model: str | None = None


_DECODER = msgspec.json.Decoder(_Body)


def body_model(head: RequestHead) -> str | None:
    """Return `model` of a JSON body without building the rest of it."""
    if not head.body or head.body[:1] not in b"{ \t\r\n":
        return None
    try:
        return _DECODER.decode(head.body).model or None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def bearer(head: RequestHead) -> str:
    """Return the token of `Authorization`, whatever the scheme; "" if none."""
    _scheme, _, token = head.headers.get("authorization", "").strip().partition(" ")
    return token.strip()


def is_websocket(head: RequestHead) -> bool:
    """Say whether the request asks for a WebSocket (RFC 6455 4.2.1)."""
    return head.headers.get("upgrade", "").strip().lower() == "websocket"
