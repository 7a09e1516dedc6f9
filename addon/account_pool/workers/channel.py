"""Messages between the launcher and a worker, some with a connection.

A pair of Unix sockets that keeps the bounds of what is sent (SOCK_SEQPACKET). A message is
JSON in one or more packets, each marked as the last one or not; a connection goes with the
last one (SCM_RIGHTS).
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

Message = dict[str, Any]

#: Bytes of a packet: several of them fit into what the kernel keeps for a socket.
PACKET = 32 * 1024
#: Packets read in a row before anything else of the loop has its turn.
IN_A_ROW = 64
_MORE, _LAST = b"+", b"."


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a new channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel:
    """One end, which is the channel's from then on, read and written by the running event loop.

    Args:
        receive: called with each message and its connection, which is its own from then on.
        closed: called once the other end is closed.
    """

    def __init__(
        self,
        end: socket.socket,
        receive: Callable[[Message, socket.socket | None], object],
        closed: Callable[[], object] = lambda: None,
    ) -> None:
        end.setblocking(False)
        self._end = end
        self._receive, self._closed = receive, closed
        self._queue: deque[tuple[bytes, Message, socket.socket | None]] = deque()
        self._parts: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end, self._read)

    @property
    def is_behind(self) -> bool:
        """Whether something waits because the other end does not read."""
        return bool(self._queue)

    def send(self, message: Message, connection: socket.socket | None = None) -> None:
        """Send *message*, now or once the other end has read. Closes *connection* here."""
        body = json.dumps(message, separators=(",", ":")).encode()
        pieces = [body[at : at + PACKET] for at in range(0, len(body), PACKET)]
        for piece in pieces[:-1]:
            self._queue.append((_MORE + piece, message, None))
        self._queue.append((_LAST + pieces[-1], message, connection))
        self._write()

    def close(self) -> list[tuple[Message, socket.socket]]:
        """Close it; return the connections that were not sent, with their messages."""
        self._loop.remove_reader(self._end)
        self._loop.remove_writer(self._end)
        self._end.close()
        unsent = [(message, c) for _, message, c in self._queue if c is not None]
        self._queue.clear()
        return unsent

    def _write(self) -> None:
        while self._queue:
            packet, _, connection = self._queue[0]
            try:
                if connection is None:
                    self._end.send(packet)
                else:
                    socket.send_fds(self._end, [packet], [connection.fileno()])
            except BlockingIOError:
                self._loop.add_writer(self._end, self._write)
                return
            except OSError:
                return  # the other end is gone: whoever waits for its end takes what is left
            self._queue.popleft()
            if connection is not None:
                connection.close()
        self._loop.remove_writer(self._end)

    def _read(self) -> None:
        for _ in range(IN_A_ROW):
            # A handler may have closed it.
            if self._end.fileno() < 0:
                return
            try:
                packet, connection = _packet(self._end)
            except BlockingIOError:
                return
            except OSError:
                packet, connection = b"", None
            if not packet:
                self._loop.remove_reader(self._end)
                self._closed()
                return
            self._parts.append(packet[1:])
            if packet[:1] == _LAST:
                body, self._parts = b"".join(self._parts), []
                self._receive(json.loads(body), connection)


def unread(end: socket.socket) -> Iterator[tuple[Message, socket.socket]]:
    """Yield the connections, with their messages, that a dead process did not read at *end*."""
    end.setblocking(False)
    while True:
        try:
            packet, connection = _packet(end)
        except OSError:
            return
        if not packet:
            return
        if connection is not None:
            # One packet each; what else there is may have lost its beginning.
            with suppress(ValueError):
                yield json.loads(packet[1:]), connection
                continue
            connection.close()


def _packet(end: socket.socket) -> tuple[bytes, socket.socket | None]:
    packet, descriptors, _, _ = socket.recv_fds(end, PACKET + 1, 1, socket.MSG_CMSG_CLOEXEC)
    return packet, socket.socket(fileno=descriptors[0]) if descriptors else None
