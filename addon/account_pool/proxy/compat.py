"""What differs between mitmproxy 11.0.2 and 12.x, and what a later one may lack."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mitmproxy import ctx
from mitmproxy.connection import Client
from mitmproxy.net.http import status_codes
from mitmproxy.proxy.layers import http

logger = logging.getLogger(__name__)

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


def quick_http1() -> ModuleType | None:
    """Return `http1`, or None where the private parts it stands on are not as it knows them."""
    try:
        from account_pool.proxy import http1  # noqa: PLC0415 - may fail

        http1.check()
    except Exception as e:
        logger.info(f"account-pool: mitmproxy's own HTTP/1 is used ({type(e).__name__})")
        return None
    return http1


def own_http2() -> ModuleType | None:
    """Return `http2`, or None where the private parts it stands on are not as it knows them."""
    try:
        from account_pool.proxy import http2  # noqa: PLC0415 - may fail

        http2.check()
    except Exception as e:
        logger.info(f"account-pool: mitmproxy's own HTTP/2 is used ({type(e).__name__})")
        return None
    return http2
