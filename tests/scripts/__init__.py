"""What the vendors' servers are known to say, one module per API; here is what they share."""

from __future__ import annotations

from dataclasses import replace

from mitmproxy.net.encoding import encode

from tests.upstream.exchange import Framing, Reply, Script


def always(reply: Reply) -> Script:
    """Return a script that gives the same reply to everyone."""
    return lambda _request: reply


def encoded(reply: Reply, encoding: str) -> Reply:
    """Return *reply* with its whole body compressed: gzip, br, zstd or deflate."""
    return replace(
        reply,
        headers=(*reply.headers, ("content-encoding", encoding)),
        steps=(encode(reply.body, encoding),),
    )


def framed(reply: Reply, framing: Framing, *headers: tuple[str, str]) -> Reply:
    """Return *reply* with another framing and more headers."""
    return replace(reply, framing=framing, headers=reply.headers + headers)
