"""Sends a flow that is replayed by a layer of ours.

Depends on mitmproxy's own replay (`addons/clientplayback.py`), and is imported when there is
something to replay: where a version of mitmproxy has no such thing, only replays fail.
"""

from __future__ import annotations

import asyncio
import time

from mitmproxy import connection, ctx, http
from mitmproxy.addons.clientplayback import MockServer, ReplayHandler
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import (
    ReceiveHttp,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.mode_specs import ProxyMode

from account_pool.proxy.events import CANCEL
from account_pool.proxy.http_layer import PoolHttpLayer
from account_pool.proxy.service import Service


class CutOff(Exception):
    """The response ended before it was complete."""


class _Client(MockServer):
    """Requests a flow, as mitmproxy's replays do, and keeps the response.

    Attributes:
        response: None until its head has come.
        over: set when nothing more comes.
    """

    def __init__(self, flow: http.HTTPFlow, context: Context) -> None:
        super().__init__(flow, context)
        self.response: http.Response | None = None
        self.over = asyncio.Event()
        self._body = bytearray()
        self._complete = False

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        match event:
            case ResponseHeaders():
                self.response = event.response
            case ResponseData():
                self._body += event.data
            case ResponseTrailers():
                assert self.response is not None
                self.response.trailers = event.trailers
            case ResponseEndOfMessage():
                self._complete = True
                self.over.set()
            case ResponseProtocolError():
                self.over.set()
            case events.ConnectionClosed():
                if not self.over.is_set():
                    yield ReceiveHttp(RequestProtocolError(1, "replay ended", CANCEL))
            case _:
                yield from super()._handle_event(event)

    def whole(self) -> http.Response:
        """Return the response. Raises CutOff."""
        if self.response is None or not self._complete:
            raise CutOff
        response = self.response.copy()
        response.stream = False
        response.data.content = bytes(self._body)
        return response


class Replay(ReplayHandler):
    """Sends a copy of a flow by a layer of ours."""

    def __init__(self, flow: http.HTTPFlow, service: Service) -> None:
        super().__init__(_copy(flow), ctx.options)
        self._service = service
        plain, context = self.layer, self.layer.context
        # Layers append themselves to the context when they are made.
        context.layers.remove(plain)
        self.layer = PoolHttpLayer(context, plain.mode, service)
        self._client = _Client(self.flow, context.fork())
        self.layer.connections[context.client] = self._client

    async def answered(self) -> http.Response:
        """Return the complete response. Raises CutOff."""
        try:
            await self.server_event(events.Start())
            await self._client.over.wait()
        finally:
            await self._close()
        return self._client.whole()

    async def handle_hook(self, hook: commands.StartHook) -> None:
        # Other addons see the flow that was replayed, not this one. Nor is it held for
        # approval: who replays it has approved it.
        if not isinstance(hook.args()[0], http.HTTPFlow):
            await ctx.master.addons.handle_lifecycle(hook)

    async def _close(self) -> None:
        await self.server_event(events.ConnectionClosed(self.client))
        self._service.client_gone(self.client)
        for timer in self.wakeup_timer:
            timer.cancel()
        handlers = [io.handler for io in self.transports.values() if io.handler]
        for handler in handlers:
            handler.cancel()
        if handlers:
            await asyncio.wait(handlers)


def _copy(flow: http.HTTPFlow) -> http.HTTPFlow:
    """Return what is sent instead of *flow*, as the request of a client on this machine."""
    here = ("127.0.0.1", 0)
    mode = ProxyMode.parse(ctx.options.mode[0]) if ctx.options.mode else ProxyMode.parse("regular")
    client = connection.Client(
        peername=here, sockname=here, timestamp_start=time.time(), proxy_mode=mode
    )
    copy = http.HTTPFlow(client, connection.Server(address=None))
    copy.request = flow.request.copy()
    copy.id, copy.is_replay = flow.id, flow.is_replay
    return copy
