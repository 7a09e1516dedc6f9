"""How the proxy ends: what is under way finishes first, for a while, and nothing begins.

Whoever ends mitmproxy (SIGTERM, Ctrl-C, `q` in the console) calls `Master.shutdown`;
`Drain` stands in its place. Asked once, it stops listening, has new requests answered with
503 (`stream.py`), and waits; asked again, it waits no more. A terminal that is closed asks
once, however often that is said. What nobody could see an end of is not waited for:
tunnels that are not decrypted, and WebSockets between two turns, which are told that the
proxy goes away.

All of it has one deadline, that of the drain, from which whatever comes after counts: whoever
sends SIGTERM kills later (`stop_grace_period` in compose.yaml).
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
from account_pool.proxy.websocket import GoingAway
from account_pool.supervision import log_and_continue, tasks

if TYPE_CHECKING:
    from mitmproxy.master import Master

    from account_pool.proxy.stream import PoolHttpStream

logger = logging.getLogger(__name__)

#: How often is looked whether all has finished, seconds.
LOOK_S = 0.05
#: How often, once all clients were hung up on: what is not told by then is not waited for.
CUT_LOOKS = 20
#: How long a step lasts at most that mostly takes no time, seconds.
STEP_S = 1.0
#: How long after the drain the answer to a refresh of a login is waited for, and the last
#: write of what the pool has learnt, seconds. The process has ended `AFTER_S` after it.
ANSWER_S, WRITE_S, AFTER_S = 4.0, 6.0, 8.0


class Drain:
    """Ends *master*, once what *service* has under way has finished.

    Args:
        refreshing: says whether a login is being refreshed.
        write: has all that was learnt written, and returns then.
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
        """When it was over, or should have been: what comes after counts from there.

        Monotonic seconds; now, if nobody has asked for it.
        """
        return min(self._over_at, self._service.now())

    def install(self) -> None:
        """Stand in the place of `Master.shutdown`, which mitmproxy looks up when it is called."""
        self._master.shutdown = self.shutdown  # type: ignore[method-assign]

    def uninstall(self) -> None:
        """Leave everything as it was; wait for nothing."""
        if self._master.__dict__.get("shutdown") == self.shutdown:
            del self._master.shutdown
        if self._task is not None:
            self._task.cancel()

    def shutdown(self) -> None:
        """Drain, then end; at the second call end at once. Thread-safe, as mitmproxy's is."""
        self._loop.call_soon_threadsafe(self._asked)

    def begin(self) -> None:
        """Drain, then end; does nothing where that has begun. Call it in the loop."""
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
            # Before the first wait: what is killed meanwhile has lost nothing.
            writing = tasks.once("last writing before the shutdown", self._write_and_tell)
            await _shortly(self._stop_listening())
            await self._wait()
            await _shortly(self._close_sockets())
            writing.cancel()
        # Whatever failed, the proxy ends.
        await self._cut()

    async def _cut(self) -> None:
        """Hang up on all clients, as mitmproxy does when told to, and end."""
        with log_and_continue:
            if self._service.turn_away():
                await asyncio.sleep(LOOK_S)  # they are answered
            for handler in self._handlers():
                io = handler.transports.get(handler.client)
                if io is not None and io.handler is not None:
                    io.handler.cancel("the proxy ends")
            for _ in range(CUT_LOOKS):
                if not self._handlers():
                    break
                await asyncio.sleep(LOOK_S)
        self._end_now()

    async def _write_and_tell(self) -> None:
        with log_and_continue:
            await self._write()

    async def _stop_listening(self) -> None:
        proxyserver = self._proxyserver()
        for server in list(proxyserver.servers) if proxyserver is not None else ():
            if server.is_running:
                with log_and_continue:
                    await server.stop()

    async def _wait(self) -> None:
        """Wait for what is under way, at most as long as is allowed."""
        drain_s = self._service.settings.drain_s
        if self._is_futile() and self._service.turn_away():
            await asyncio.sleep(LOOK_S)
        left = self._under_way()
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
            left = self._under_way()
        if self._service.turn_away():
            await asyncio.sleep(LOOK_S)
            left = self._under_way()
        if left:
            logger.warning(f"account-pool: cut off after {drain_s:g} s: {left}")

    def _is_futile(self) -> bool:
        """Say whether what is held for an account is all there is, and none returns in time."""
        held, looks_at = self._service.held()
        return held == self._requests() and looks_at >= self._over_at

    def _requests(self) -> int:
        return sum(stream.under_way for stream in self._streams())

    def _under_way(self) -> str:
        """Return in words what is under way; "" if nothing is."""
        requests = self._requests()
        if requests:
            return "1 request" if requests == 1 else f"{requests} requests"
        if self._refreshing():
            return "the refresh of a login"
        return "an answer" if self._is_writing() else ""

    def _streams(self) -> Iterator[PoolHttpStream]:
        """Return the requests of all clients, those that have been answered not among them."""
        for layer in list(self._service.layers):
            # Attempts are routed to the same streams, by negative ids.
            yield from [s for i, s in layer.streams.items() if i > 0]  # type: ignore[misc]

    def _is_writing(self) -> bool:
        """Say whether a client has not taken yet what it was sent."""
        for handler in self._handlers():
            io = handler.transports.get(handler.client)
            transport = getattr(io.writer, "transport", None) if io is not None else None
            if transport is not None and transport.get_write_buffer_size():
                return True
        return False

    async def _close_sockets(self) -> None:
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
    """Wait for *step*, at most as long as is worth it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(STEP_S):
            await step
