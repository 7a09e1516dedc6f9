"""How a TCP connection is reset, and TLS on it broken."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from contextlib import suppress

GARBAGE = b"\x00\xff\x16\x03 this is no answer at all \r\n\r\n" * 3


def under_tls(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write past the TLS of a connection."""
    sock = writer.get_extra_info("socket")
    # None: it has ended already.
    if sock is not None:
        with suppress(OSError):
            os.write(sock.fileno(), data)


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST, whatever is still on its way."""
    sock = writer.get_extra_info("socket")
    # None: it has ended already.
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
