"""How the proxy ends: requests in flight finish first, for a while, and none begins.

SIGTERM, Ctrl-C and `q` in the console call `Master.shutdown`, which `Drain` replaces. The
first call stops listening, has new requests answered with 503 (`stream.py`), and waits; a
second one ends the wait. A terminal that is closed counts once, however often that is
reported. What has no end that could be seen is not waited for: tunnels that are not decrypted,
and WebSockets between two turns, which are closed as going away.

All of it has one deadline, that of the drain; what comes after counts from there: SIGTERM is
followed by SIGKILL (`stop_grace_period` in compose.yaml).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mitmproxy.log import ALERT
from mitmproxy.websocket import WebSocketMessage
from wsproto.frame_protocol import Opcode

from account_pool.proxy.service import Service
from account_pool.supervision import log_and_continue, tasks

if TYPE_CHECKING:
    from mitmproxy.master import Master

    from account_pool.proxy.stream import PoolHttpStream

logger = logging.getLogger(__name__)

#: How often it is checked whether all has finished, seconds.
LOOK_S = 0.05
#: How many times once all clients were disconnected; what is left then is not waited for.
CUT_LOOKS = 20
#: How long a step may take that usually takes no time, seconds.
STEP_S = 1.0
#: How long after the drain the response to a refresh of a login is waited for, and the last
#: write of what the pool has learnt, seconds. The process has ended `AFTER_S` after it.
ANSWER_S, WRITE_S, AFTER_S = 4.0, 6.0, 8.0


class Drain:
    """Ends *master*, once the requests of *service* in flight have finished.

    Args:
        refreshing: returns whether a login is being refreshed.
        write: writes all that was learnt, and returns then.
    """

    def __init__(
        self,
        master: Master,
        service: Service,
        *,
        refreshing: Callable[[], bool],
        write: Callable[[], Awaitable[object]],
    ) -> None:
        self._master = master
        self._service = service
        self._refreshing = refreshing
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._end_now: Callable[[], object] = master.shutdown
        self._task: asyncio.Task[object] | None = None
        self._cutting: asyncio.Task[object] | None = None
        self._over_at = math.inf

    @property
    def over_at(self) -> float:
        """When it was over, or should have been, monotonic seconds; now if it never began."""
        return min(self._over_at, self._service.now())

    def install(self) -> None:
        """Replace `Master.shutdown`, which mitmproxy looks up when it is called."""
        self._master.shutdown = self.shutdown  # type: ignore[method-assign]

    def uninstall(self) -> None:
        """Restore `Master.shutdown`; wait for nothing."""
        if self._master.__dict__.get("shutdown") == self.shutdown:
            del self._master.shutdown
        if self._task is not None:
            self._task.cancel()

    def shutdown(self) -> None:
        """Drain, then end; at the second call end at once. Thread-safe, as mitmproxy's is."""
        self._loop.call_soon_threadsafe(self._asked)

    def begin(self) -> None:
        """Drain, then end; does nothing if that has begun. Call it in the event loop."""
        if not self._service.stopping:
            self._asked()

    def _asked(self) -> None:
        self._service.stop()
        now, drain_s = self._service.now(), self._service.settings.drain_s
        if self._task is None and drain_s > 0:
            self._over_at = now + drain_s
            self._task = tasks.once("shutdown", self._run)
            return
        self._over_at = min(self._over_at, now)
        if self._task is not None:
            self._task.cancel()
        self._cutting = tasks.once("shutdown at once", self._cut)

    async def _run(self) -> None:
        with log_and_continue:
            # Before the first wait: a proxy that is killed meanwhile loses nothing.
            writing = tasks.once("last writing before the shutdown", self._write_safely)
            await _shortly(self._stop_listening())
            await self._wait()
            await _shortly(self._close_sockets())
            writing.cancel()
        # Whatever has failed, the proxy ends.
        await self._cut()

    async def _cut(self) -> None:
        """Disconnect all clients, as mitmproxy's shutdown does, and end."""
        with log_and_continue:
            if self._service.turn_away():
                await asyncio.sleep(LOOK_S)  # their responses are sent
            for _ in range(CUT_LOOKS):
                # They were told to end, and say so to their clients.
                if not any(stream.is_streaming for stream in self._streams()):
                    break
                await asyncio.sleep(LOOK_S)
            for handler in self._handlers():
                io = handler.transports.get(handler.client)
                if io is not None and io.handler is not None:
                    io.handler.cancel("the proxy ends")
            for _ in range(CUT_LOOKS):
                if not self._handlers():
                    break
                await asyncio.sleep(LOOK_S)
        self._end_now()

    async def _write_safely(self) -> None:
        with log_and_continue:
            await self._write()

    async def _stop_listening(self) -> None:
        proxyserver = self._proxyserver()
        for server in list(proxyserver.servers) if proxyserver is not None else ():
            if server.is_running:
                with log_and_continue:
                    await server.stop()

    async def _wait(self) -> None:
        """Wait for what is in flight, until the deadline."""
        drain_s = self._service.settings.drain_s
        if self._is_futile() and self._service.turn_away():
            await asyncio.sleep(LOOK_S)
        left = self._in_flight()
        if not left:
            return
        logger.log(
            ALERT,
            f"account-pool: shutting down: {left} may take {drain_s:g} s; a second signal ends "
            "it at once",
        )
        while left and self._service.now() < self._over_at:
            if self._is_futile():
                self._service.turn_away()
            await asyncio.sleep(LOOK_S)
            left = self._in_flight()
        if self._service.turn_away():
            await asyncio.sleep(LOOK_S)
            left = self._in_flight()
        if left:
            logger.warning(f"account-pool: cut off after {drain_s:g} s: {left}")

    def _is_futile(self) -> bool:
        """Return whether all requests are held for an account, and none returns in time."""
        held, looks_at = self._service.held()
        return held == self._requests() and looks_at >= self._over_at

    def _requests(self) -> int:
        return sum(stream.under_way for stream in self._streams())

    def _in_flight(self) -> str:
        """Return in words what is in flight; "" if nothing is."""
        requests = self._requests()
        if requests:
            return "1 request" if requests == 1 else f"{requests} requests"
        if self._refreshing():
            return "the refresh of a login"
        return "an answer" if self._is_writing() else ""

    def _streams(self) -> Iterator[PoolHttpStream]:
        """Return the requests of all clients that are not answered yet."""
        for layer in list(self._service.layers):
            # Attempts are routed to the same streams, by negative ids.
            yield from [s for i, s in layer.streams.items() if i > 0]  # type: ignore[misc]

    def _is_writing(self) -> bool:
        """Return whether something is sent to a client that has not read it yet."""
        for handler in self._handlers():
            io = handler.transports.get(handler.client)
            transport = getattr(io.writer, "transport", None) if io is not None else None
            if transport is not None and transport.get_write_buffer_size():
                return True
        # Of HTTP/2, what a client has not opened its window for is kept in front of it.
        for layer in list(self._service.layers):
            connection: Any = layer.connections.get(layer.context.client)
            kept = getattr(getattr(connection, "h2_conn", None), "stream_buffers", {})
            if any(kept.values()):
                return True
        return False

    async def _close_sockets(self) -> None:
        from account_pool.proxy.websocket import GoingAway  # noqa: PLC0415 - there may be none

        handlers = {handler.client: handler for handler in self._handlers()}
        nothing = WebSocketMessage(Opcode.TEXT, False, b"")
        for stream in list(self._streams()):
            handler = handlers.get(stream.context.client)
            if handler is not None and stream.is_open_socket:
                with log_and_continue:
                    await handler.server_event(GoingAway(stream.flow, nothing))

    def _handlers(self) -> list[Any]:
        proxyserver = self._proxyserver()
        return [] if proxyserver is None else list(proxyserver.connections.values())

    def _proxyserver(self) -> Any:
        return self._master.addons.get("proxyserver")


async def _shortly(step: Awaitable[object]) -> None:
    """Wait for *step*, for `STEP_S` at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(STEP_S):
            await step
