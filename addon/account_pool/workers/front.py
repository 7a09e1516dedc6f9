"""Who serves a connection: the launcher accepts it, and a worker gets it.

Each connection goes to the worker that has the fewest: a connection may last for hours, and
what the kernel spreads over several sockets by chance or by who wakes first stays uneven for
as long. While no worker can take more, connections wait in the kernel, and none is lost with
a worker that dies.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable, Iterable
from itertools import count

from msgspec import Struct, field

from account_pool.workers.channel import Channel

#: What a worker asks to listen at: host, port, and the how manieth time.
Address = tuple[str, int, int]

#: Connections accepted in a row before anything else of the loop has its turn.
IN_A_ROW = 16
#: Until `accept` is tried again for which the system had no room, seconds.
RETRY_S = 1.0
#: How often that is said at most, seconds.
SAY_S = 60.0


class Seat(Struct, kw_only=True, eq=False):
    """What the front knows of a worker: where it listens, how many connections it has and can have.

    *given* is when it was given one last, as a number that grows.
    """

    channel: Channel
    listens: set[Address] = field(default_factory=set)
    connections: int = 0
    room: float = math.inf
    given: int = 0

    def takes(self, address: Address) -> bool:
        """Say whether it can be given a connection to *address*."""
        return (
            address in self.listens and self.connections < self.room and not self.channel.is_behind
        )


class Front:
    """Listens for all workers: *seats* returns those that serve, *say* writes a line to the log."""

    def __init__(self, seats: Callable[[], Iterable[Seat]], say: Callable[[str], object]) -> None:
        self._seats, self._say = seats, say
        self._say_at = -math.inf
        self._sockets: dict[Address, list[socket.socket]] = {}
        self._given = count(1)
        self._binding = asyncio.Lock()
        self._accepting: set[socket.socket] = set()
        #: accepted, and given back by a worker that is about to end
        self._homeless: list[tuple[Address, socket.socket]] = []
        self._loop = asyncio.get_running_loop()
        self._closed = False

    async def listen(self, address: Address, backlog: int) -> list[tuple[object, ...]]:
        """Listen at *address*, if that is not done; return the names of its sockets.

        Raises OSError as asyncio does.
        """
        async with self._binding:
            if address not in self._sockets:
                host, port, _ = address
                server = await self._loop.create_server(
                    asyncio.Protocol, host, port, start_serving=False
                )
                sockets = [bound.dup() for bound in server.sockets]
                server.close()
                for bound in sockets:
                    bound.setblocking(False)
                    bound.listen(backlog)
                self._sockets[address] = sockets
        return [bound.getsockname() for bound in self._sockets[address]]

    def look(self) -> None:
        """Accept where a worker can take a connection, and nowhere else."""
        homeless, self._homeless = self._homeless, []
        for address, connection in homeless:
            self.give(address, connection)
        for address, sockets in list(self._sockets.items()):
            wanted = self._best(address) is not None
            for bound in sockets:
                if wanted and bound not in self._accepting:
                    self._accepting.add(bound)
                    self._loop.add_reader(bound, self._accept, address, bound)
                elif not wanted and bound in self._accepting:
                    self._pause(bound)

    def give(self, address: Address, connection: socket.socket) -> None:
        """Give *connection* to a worker; keep it until there is one."""
        seat = self._best(address)
        if seat is not None:
            seat.connections += 1
            seat.given = next(self._given)
            seat.channel.send({"do": "serve", "at": address}, connection)
        elif self._closed:
            connection.close()
        else:
            self._homeless.append((address, connection))

    def unlisten(self, seats: Iterable[Seat]) -> None:
        """Close what none of *seats*, which are all there are, listens at any more."""
        wanted = set().union(*(seat.listens for seat in seats))
        for address in self._sockets.keys() - wanted:
            self._close(address)

    def close(self) -> None:
        """Listen nowhere any more."""
        self._closed = True
        for address in list(self._sockets):
            self._close(address)
        for _, connection in self._homeless:
            connection.close()
        self._homeless.clear()

    def _accept(self, address: Address, bound: socket.socket) -> None:
        for _ in range(IN_A_ROW):
            if self._best(address) is None:
                self._pause(bound)
                return
            try:
                connection, _ = bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as e:
                # No descriptors, no memory: the connection waits in the kernel.
                if self._loop.time() >= self._say_at:
                    self._say_at = self._loop.time() + SAY_S
                    self._say(f"no connection can be accepted: {e.strerror}; they wait")
                self._pause(bound)
                self._loop.call_later(RETRY_S, self.look)
                return
            self.give(address, connection)

    def _best(self, address: Address) -> Seat | None:
        takes = [seat for seat in self._seats() if seat.takes(address)]
        return min(takes, key=lambda seat: (seat.connections, seat.given), default=None)

    def _pause(self, bound: socket.socket) -> None:
        self._accepting.discard(bound)
        self._loop.remove_reader(bound)

    def _close(self, address: Address) -> None:
        for bound in self._sockets.pop(address):
            self._pause(bound)
            bound.close()
