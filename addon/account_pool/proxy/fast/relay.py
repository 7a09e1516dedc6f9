"""Whole chunks of a response that streams are copied through, not read and framed again.

Each piece of a chunked body is taken out of its frame, handed from the server's connection to
its stream and from there to the client's connection, and put into a frame like the one it came
in. Where a read has brought whole chunks and nothing else, they go to the client as they are,
once the stream has taken its copy of what is in them. Anything else is read as ever: a chunk in
parts, the last one, extensions, and all while the stream waits for something.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from h11._readers import ChunkedReader
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpStream
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection, Http1Server

from account_pool.proxy.fast.known import digest

#: Sources that this stands in for: mitmproxy 11.0.2 to 12.3.1, h11 0.14 to 0.16.
KNOWN = frozenset({"566fbfd5", "9ea4b8d3", "f696bd3f"})

#: The first line of a chunk that is not the last, without extensions, as most write it.
_SIZE = re.compile(rb"([1-9a-fA-F][0-9a-fA-F]{0,7})\r\n")


class Streams(Protocol):
    """The HTTP layer of a client."""

    context: Context
    connections: dict[Connection, Any]
    streams: dict[int, HttpStream]


def chunks(data: bytes) -> list[bytes] | None:
    """Return what is in *data*, if that is whole chunks and nothing else."""
    found = []
    at, end = 0, len(data)
    while at < end:
        size = _SIZE.match(data, at)
        if size is None:
            return None
        begin = size.end()
        at = begin + int(size[1], 16)
        if data[at : at + 2] != b"\r\n":
            return None
        found.append(data[begin:at])
        at += 2
    return found


def relayed(http: Streams, server: Http1Client, data: bytes) -> commands.SendData | None:
    """Return what sends on *data*, which came on *server*; None where it is to be read."""
    stream: Any = http.streams.get(server.stream_id or 0)
    copy = getattr(stream, "copy", None)
    if copy is None or stream._paused is not None or stream.usage_filter is not None:
        return None
    reader: Any = server.body_reader
    if (
        server.buf
        or stream.attempt_id != server.stream_id
        or not isinstance(reader, ChunkedReader)
        or reader._bytes_in_chunk
        or reader._bytes_to_discard
        or reader._reading_trailer
        or getattr(server.state, "__func__", None) is not Http1Connection.read_body
    ):
        return None
    client = http.context.client
    ours = http.connections[client]
    response = stream.flow.response
    framing = response.headers.get("transfer-encoding", "").lower()
    if (
        getattr(type(ours), "send", None) is not Http1Server.send
        or ours.stream_id != stream.stream_id
        or ours.response is not response
        or framing != "chunked"
    ):
        return None
    pieces = chunks(data)
    if not pieces:
        return None
    stream.heard = True
    for piece in pieces:
        copy.add(piece)
    return commands.SendData(client, data)


def is_as_known() -> bool:
    """Say whether chunks are read and written in the way that this leaves out."""
    return _source() in KNOWN


def _source() -> str:
    return digest(ChunkedReader.__call__, Http1Connection.read_body, Http1Server.send)
