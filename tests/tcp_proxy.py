"""A TCP proxy on the loopback that treats what passes as a bad network does.

It runs in a thread of its own, so that what blocks can be tested as well as what does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

from tests.patience import PATIENCE_S

#: Ends a connection with a reset, and not in good order.
_RESET = struct.pack("ii", 1, 0)


class TcpProxy:
    """Passes on what clients and the server on *target* say, as long as nothing is set.

    Attributes:
        port: where it listens, on 127.0.0.1.
        delay_s: so much later does each part of an answer come, seconds.
        is_silent: what is sent goes nowhere, either way; connections stay open.
        cut_after: each connection is reset after so many more bytes of answers; None: never.
        accepted: how many connections there were.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.delay_s = 0.0
        self.is_silent = False
        self.cut_after: int | None = None
        self.accepted = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.refuse()
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def listen(self) -> None:
        """Accept connections, on the same port as before."""
        self._do(self._listen())

    def refuse(self) -> None:
        """Accept no more connections, and reset those that are open."""
        self._do(self._refuse())
        self.reset()

    def reset(self) -> None:
        """Reset the connections that are open."""
        self._do(self._each(_reset))

    def half_close(self) -> None:
        """End what the server says on the connections that are open; clients may go on."""
        self._do(self._each(lambda client: client.write_eof()))

    # -- in its thread

    def _do(self, work: object) -> None:
        assert asyncio.iscoroutine(work)
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._client, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(2):
            await asyncio.sleep(0)  # transports close what they have in a call of their own

    async def _each(self, do: object) -> None:
        assert callable(do)
        for client in list(self._clients):
            with contextlib.suppress(OSError, RuntimeError):
                do(client)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._clients.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server = None
        try:
            answers, server = await asyncio.open_connection("127.0.0.1", self.target)
            asks = asyncio.create_task(self._pass(reader, server))
            try:
                await self._answer(answers, writer)
            finally:
                asks.cancel()
                await asyncio.gather(asks, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._clients.discard(writer)
            for side in (writer, server):
                if side is not None:
                    _reset(side)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if not self.is_silent:
                    writer.write(data)
                    await writer.drain()
            if not self.is_silent:
                writer.write_eof()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self.cut_after
        while data := await reader.read(1 << 16):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.is_silent:
                continue
            # It may have been set, or be counted from, since this connection began.
            left = self.cut_after if left is None else left
            writer.write(data if left is None else data[:left])
            await writer.drain()
            if left is not None:
                left -= len(data)
                if left <= 0:
                    return


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
