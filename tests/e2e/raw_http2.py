"""A provider that speaks HTTP/2 frame by frame over TLS, for what no orderly server does."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from hyperframe.frame import Frame

from tests.upstream.certificates import Certificate

BODY = b'{"id":"chatcmpl-1","choices":[{"message":{"content":"hello"}}]}'
#: Closes with a reset: on, and for no time.
_LINGER = struct.pack("ii", 1, 0)


class Peer(asyncio.Protocol):
    """One connection. `asked` holds its complete requests: stream id and credential.

    While it is `deaf`, what comes is lost on its way. `pings` counts PINGs.
    """

    def __init__(self, server: RawHttp2) -> None:
        self._server = server
        self.number = len(server.peers)
        server.peers.append(self)
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.asked: list[tuple[int, str]] = []
        self.began: dict[int, str] = {}
        self.closed = self.deaf = False
        self.pings = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.h2.initiate_connection()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            return
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.RequestReceived():
                    headers = {str(name): str(value) for name, value in event.headers}
                    key = headers.get("authorization", "")
                    self.began[event.stream_id] = key.removeprefix("Bearer ")
                case h2.events.DataReceived():
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    self.asked.append((event.stream_id, self.began[event.stream_id]))
                    self._server.script(self, event.stream_id)
                case h2.events.PingReceived():
                    self.pings += 1
                case _:
                    pass
            if self.closed:
                return
        self.flush()

    def flush(self) -> None:
        if not self.closed and (data := self.h2.data_to_send()):
            self.transport.write(data)

    def answer(self, stream_id: int, body: bytes = BODY) -> None:
        self.h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/json")])
        self.h2.send_data(stream_id, body, end_stream=True)
        self.flush()

    def send(self, *frames: Frame) -> None:
        """Send frames that h2 would not send now, or not in this order."""
        self.flush()
        self.transport.write(b"".join(frame.serialize() for frame in frames))

    def close(self) -> None:
        self.flush()
        self.transport.close()

    def abort(self) -> None:
        """End the connection with a TCP reset."""
        self.closed = True
        raw: socket.socket = self.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        self.transport.abort()


class RawHttp2:
    """Calls *script* with each connection and the id of each complete request on it."""

    def __init__(
        self,
        certificate: Certificate,
        script: Callable[[Peer, int], None],
    ) -> None:
        self.script = script
        self.peers: list[Peer] = []
        self._tls = certificate.server_context(["h2"])

    async def __aenter__(self) -> RawHttp2:
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(
            lambda: Peer(self), "127.0.0.1", 0, ssl=self._tls
        )
        self.port: int = self._listening.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._listening.close()
        for peer in self.peers:
            if not peer.closed:
                peer.transport.abort()
