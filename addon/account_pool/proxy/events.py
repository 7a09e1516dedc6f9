"""What streams and the layers around them say to each other beside mitmproxy's own events.

Our events and endings of attempts, the one hook of our own, and the codes in which mitmproxy
11 and 12 differ. Defined in the package and not in `pool.py`: a reload of the script would
define the hook twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from mitmproxy.connection import Connection
from mitmproxy.net.http import status_codes
from mitmproxy.proxy import events
from mitmproxy.proxy.commands import StartHook
from mitmproxy.proxy.layers import http
from mitmproxy.proxy.layers.http import (
    GetHttpConnection,
    HttpEvent,
    RequestHeaders,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)

from account_pool.admin.http import AdminRequest, AdminResponse
from account_pool.core.steps import Refresh, Wait
from account_pool.providers.base import LocalResponse

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


class EventHandled(events.Event):
    """The event that a stream was handling is over for everybody."""


class GetFreshConnection(GetHttpConnection):
    """Get a connection that is none of those `avoided`."""

    avoided: frozenset[Connection] = frozenset()

    def connection_spec_matches(self, connection: Connection) -> bool:
        return connection not in self.avoided and super().connection_spec_matches(connection)


@dataclass
class WholeRequest(RequestHeaders):
    """A request with its body and its end, for an HTTP/1 connection of ours (`http1`).

    Three events would pass through every layer in between, one after the other.
    """

    content: bytes = b""


@dataclass
class WholeResponse(ResponseHeaders):
    """A response to an attempt with its body and its end, from an HTTP/1 connection of ours.

    Attributes:
        parts: the events that it stands for.
    """

    parts: tuple[ResponseHeaders, ResponseData, ResponseEndOfMessage] = field(kw_only=True)


class InterimResponse(HttpEvent):
    """An interim response has come: whoever sent it has the request."""


class _Ending(ResponseProtocolError):
    """An attempt has ended, and more is known of it than that its connection broke."""

    def __init__(self, stream_id: int, message: str) -> None:
        super().__init__(stream_id, message, SERVER_ERROR)


class NotProcessed(_Ending):
    """The request did not leave, or its server said that it did not process it."""


class Withdrawn(_Ending):
    """The request did not leave, and shall not leave here: its account, say, was refused."""


class Silent(_Ending):
    """Nothing came for so long that nothing more is expected."""


class Chunks(msgspec.Struct, eq=False):
    """A response of the admin pages that goes on.

    Attributes:
        source: its chunks, as they come.
        unread: returns whether the client has not read yet what it was sent.
    """

    source: AsyncGenerator[bytes]
    unread: Callable[[], bool]


class Pause(msgspec.Struct, eq=False):
    """What a stream waits for.

    Attributes:
        step: a wait, a refresh, the name of a provider whose local response is wanted, a
            request to the proxy itself, or the response to one that goes on.
        refreshed: set by the addon: the credential has changed; None: its renewal goes on.
        response: set by the addon: the local response.
        reply: set by the addon: the response to a request to the proxy itself.
        chunk: set by the addon: more of that response; nothing: it has ended.
        taken: set by the addon that does it.
        failed: set by the addon: the error that ended the pause.
        woken: ends a wait at once: the client has left, or the pool has changed.
    """

    step: Wait | Refresh | str | AdminRequest | Chunks
    refreshed: bool | None = False
    response: LocalResponse | None = None
    reply: AdminResponse | None = None
    chunk: bytes = b""
    taken: bool = False
    failed: Exception | None = None
    woken: asyncio.Event = msgspec.field(default_factory=asyncio.Event)


@dataclass
class PoolPauseHook(StartHook):
    """Fired when a request cannot go on at once; a plain failover needs none, each is a walk."""

    pause: Pause
