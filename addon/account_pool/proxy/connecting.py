"""Whoever waits for a connection is told, also where opening it fails as mitmproxy expects not.

A server may reset a connection so soon that nobody can say any more whose it is. mitmproxy
then trips over the name that is missing (`ConnectionHandler.open_connection`), its task
ends without a word, and the request behind it waits for ever. Stands on a private part of
mitmproxy; where that is not as it was known, `proxy.sweep` gives up after a minute, except
for the connection behind a CONNECT.
"""

from __future__ import annotations

import logging
from typing import Any

from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events

from account_pool.supervision import where

logger = logging.getLogger(__name__)

CLOSED = "connection closed"


def watch(handler: Any) -> bool:
    """Have *handler*, of one client, tell of each connection how opening it has ended.

    Returns whether that is done; where mitmproxy opens connections otherwise, nothing is
    changed.
    """
    opens = getattr(handler, "open_connection", None)
    if not callable(opens) or not hasattr(handler, "server_event"):
        return False

    async def open_connection(command: commands.OpenConnection) -> None:
        connection = command.connection
        try:
            await opens(command)
        except Exception as e:
            if connection.timestamp_end is not None:
                raise  # it was open, and that was told
            unnamed = connection.state is ConnectionState.OPEN and not connection.peername
            error = CLOSED if unnamed else "internal error"
            level, why = (logging.INFO, error) if unnamed else (logging.ERROR, where(e))
            logger.log(level, f"error establishing server connection: {why}")
            connection.state, connection.error = ConnectionState.CLOSED, error
            io = handler.transports.pop(connection, None)
            if io is not None and io.writer is not None:
                io.writer.close()
            await handler.server_event(events.OpenConnectionCompleted(command, error))

    handler.open_connection = open_connection
    return True
