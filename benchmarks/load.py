"""The clients: a process that holds sets of connections and sends what it is told through them.

It reads the proxy's CPU time itself, right before the first request of a measurement
and right after the last answer, so that nothing else is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection

from benchmarks.client import Client, Reply, Route
from benchmarks.cpu import cpu_seconds
from benchmarks.instructions import Instructions

#: no measurement takes longer; one that does is stuck
_TIMEOUT_S = 120.0
#: in which a proxy notices that the last connections were closed
_CLOSING_S = 0.05


@dataclass(frozen=True, slots=True)
class Open:
    """Open *count* connections along *route* and keep them under *name*."""

    name: str
    route: Route
    count: int


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connections kept under *name*."""

    name: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send *requests* through the connections kept under *name*.

    Attributes:
        pid: the process whose CPU time is read around it; None for none.
        lockstep: begin one request per connection at once, and the next when all of
            them are done; otherwise each connection goes on as soon as it is free.
        fresh: send each request through a connection of its own along the same route,
            as many at once as are kept; opening and closing it is counted as well.
    """

    name: str
    requests: Sequence[bytes]
    pid: int | None = None
    lockstep: bool = False
    fresh: bool = False


@dataclass(slots=True)
class Sent:
    """What came of a `Send`: replies in the order of its requests."""

    replies: list[Reply] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float | None = None
    instructions: int | None = None

    @property
    def not_ok(self) -> int:
        """How many answers were not a 200."""
        return sum(reply.status != 200 for reply in self.replies)


class Load:
    """The connections of this process, by name."""

    def __init__(self) -> None:
        self._clients: dict[str, list[Client]] = {}
        self._routes: dict[str, Route] = {}

    async def obey(self, command: Open | Close | Send) -> Sent | None:
        """Do what *command* says."""
        match command:
            case Open(name, route, count):
                # A few at a time: a listening socket has only so long a queue.
                clients = self._clients.setdefault(name, [])
                self._routes[name] = route
                while missing := min(count - len(clients), 16):
                    clients += await asyncio.gather(
                        *(Client.connect(route) for _ in range(missing))
                    )
                return None
            case Close(name):
                for client in self._clients.pop(name):
                    client.close()
                return None
            case Send():
                return await self._send(command)

    async def _send(self, command: Send) -> Sent:
        sent = Sent([Reply() for _ in command.requests])
        if command.pid is None:
            await self._send_all(command, sent)
            return sent
        with Instructions(command.pid) as instructions:
            cpu_before = cpu_seconds(command.pid)
            await self._send_all(command, sent)
            cpu_after = cpu_seconds(command.pid)
            sent.instructions = instructions.read()
        if cpu_before is not None and cpu_after is not None:
            sent.cpu_s = cpu_after - cpu_before
        return sent

    async def _send_all(self, command: Send, sent: Sent) -> None:
        clients = self._clients[command.name]
        work = partial(_anew, self._routes[command.name]) if command.fresh else _work
        numbered = list(enumerate(command.requests))
        started = time.perf_counter()
        waves = (
            [numbered[n : n + len(clients)] for n in range(0, len(numbered), len(clients))]
            if command.lockstep
            else [numbered]
        )
        for wave in waves:
            todo = iter(wave)
            await asyncio.gather(*(work(client, todo, sent.replies) for client in clients))
        sent.wall_s = time.perf_counter() - started
        if command.fresh:
            await asyncio.sleep(_CLOSING_S)


async def _work(client: Client, todo: Iterable[tuple[int, bytes]], replies: list[Reply]) -> None:
    for number, request in todo:
        replies[number] = await client.send(request)


async def _anew(
    route: Route, _: Client, todo: Iterable[tuple[int, bytes]], replies: list[Reply]
) -> None:
    for number, request in todo:
        client = await Client.connect(route)
        replies[number] = await client.send(request)
        client.close()


def run(commands: Connection) -> None:
    """Obey commands from the pipe until it closes; answer each with its result or its error."""
    loop = asyncio.new_event_loop()
    load = Load()
    while True:
        try:
            command = commands.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            result = loop.run_until_complete(asyncio.wait_for(load.obey(command), _TIMEOUT_S))
        except Exception as error:  # whatever it is, the run must hear of it
            commands.send(RuntimeError(f"{type(command).__name__}: {error!r}"))
        else:
            commands.send(result)
