"""How a TCP connection is reset."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST, whatever is still on its way."""
    sock = writer.get_extra_info("socket")
    # None: it has ended already.
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
