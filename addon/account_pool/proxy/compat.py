"""What differs between mitmproxy 11.0.2 and 12.x, and what a later one may lack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mitmproxy import ctx
from mitmproxy.connection import Client
from mitmproxy.net.http import status_codes
from mitmproxy.proxy.layers import http

#: Cancels a stream upstream. mitmproxy 12 has an enum, 11 used status codes.
CANCEL: Any
#: Ends a client's stream after headers were sent.
SERVER_ERROR: Any
#: Ends a request whose head is not understood.
BAD_REQUEST: Any

_codes = getattr(http, "ErrorCode", None)
if _codes is not None:
    CANCEL = _codes.CANCEL
    SERVER_ERROR = _codes.GENERIC_SERVER_ERROR
    BAD_REQUEST = _codes.REQUEST_VALIDATION_FAILED
else:
    CANCEL = status_codes.CLIENT_CLOSED_REQUEST
    SERVER_ERROR = status_codes.BAD_GATEWAY
    BAD_REQUEST = status_codes.BAD_REQUEST


def handler_of(client: Client) -> Any:
    """Return what handles *client*; None where mitmproxy does not list it, or not at all."""
    connections = getattr(ctx.master.addons.get("proxyserver"), "connections", None)
    return connections.get(client.id) if isinstance(connections, Mapping) else None
