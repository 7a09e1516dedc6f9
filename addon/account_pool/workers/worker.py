"""A worker: a mitmdump whose connections come from the launcher.

What mitmproxy would listen at is asked of the launcher, which listens for all; each
connection that it passes on is served as if it had been accepted here.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

from account_pool.supervision import tasks
from account_pool.workers.channel import Channel, Message
from account_pool.workers.front import Address

#: Set for a worker: what its launcher says of it, in JSON.
VARIABLE = "ACCOUNT_POOL_WORKER"
#: Descriptors that a worker needs for other things than connections, and for each of those.
OTHER_DESCRIPTORS, PER_CONNECTION = 64, 2
#: How long after its drain a worker has ended whose launcher is gone, seconds.
GRACE_S = 10.0

Factory = Callable[[], asyncio.BaseProtocol]


class _Name:
    """In the place of a socket that listens, of which mitmproxy wants to know the name."""

    def __init__(self, name: list[object]) -> None:
        self._name = tuple(name)

    def getsockname(self) -> tuple[object, ...]:
        return self._name


class Listening:
    """What `create_server` returns: the launcher listens for it. Its sockets have names only."""

    def __init__(self, names: list[list[object]], close: Callable[[], object]) -> None:
        self.sockets = tuple(_Name(name) for name in names)
        self._close = close

    def close(self) -> None:
        self.sockets = ()
        self._close()

    async def wait_closed(self) -> None:
        """Connections are not waited for."""

    def is_serving(self) -> bool:
        return bool(self.sockets)


class Link:
    """The launcher, as a worker sees it.

    Attributes:
        number, count: which worker this is, from 1, and of how many.
        launcher: the process id of the launcher.
        instance: a name of this run of the launcher.
        started_at: when that began, monotonic seconds.
        drain_s: how long requests may go on when this worker ends.
        end: called when the worker is to end, with whether at once.
        heard: called with what other workers tell.
        say: called with what another worker asks; returns it.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.number, self.count = int(about["number"]), int(about["count"])
        self.launcher, self.instance = int(about["launcher"]), str(about["instance"])
        self.started_at = float(about["started_at"])
        self.drain_s = 10.0
        self.end: Callable[[bool], object] = lambda _at_once: os.kill(os.getpid(), signal.SIGTERM)
        self.heard: Callable[[Message], object] = lambda _message: None
        self.say: Callable[[str], Awaitable[Any]] = _nothing
        self._descriptor = int(about["channel"])
        self._channel: Channel | None = None
        self._factories: dict[Address, Factory] = {}
        self._listening: dict[Address, asyncio.Future[list[list[object]]]] = {}
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = count(1)

    # -- connections

    async def listen(
        self, factory: Factory, host: str | None, port: int, backlog: int
    ) -> Listening:
        """Have the launcher listen at *host* and *port*. Raises OSError as asyncio does."""
        number = 1
        while (address := (host or "", port, number)) in self._factories:
            number += 1
        self._factories[address] = factory
        said = self._listening[address] = asyncio.get_running_loop().create_future()
        self._send({"do": "listen", "at": address, "backlog": backlog})
        try:
            names = await said
        except BaseException:
            self._unlisten(address)
            raise
        finally:
            self._listening.pop(address, None)
        return Listening(names, partial(self._unlisten, address))

    def closed(self) -> None:
        """A connection has ended."""
        self._send({"do": "closed"})

    def _unlisten(self, address: Address) -> None:
        if self._factories.pop(address, None) is not None:
            self._send({"do": "unlisten", "at": address})

    def _serve(self, message: Message, connection: socket.socket) -> None:
        host, port, number = message["at"]
        factory = self._factories.get((host, port, number))
        if factory is None:
            # It was on its way while we stopped listening.
            self._channel_now().send({"do": "returned", "at": message["at"]}, connection)
            return
        connection.setblocking(False)
        try:
            connection.getpeername()
        except OSError:
            connection.close()  # it has left
            self.closed()
            return
        loop = asyncio.get_running_loop()
        tasks.once("taking a connection", lambda: loop.connect_accepted_socket(factory, connection))

    # -- to the launcher and the others

    def ready(self, drain_s: float, descriptors: float) -> None:
        """Say that this worker serves.

        *drain_s*: as above; *descriptors*: how many files it may have open.
        """
        self.drain_s = drain_s
        room = max((descriptors - OTHER_DESCRIPTORS) / PER_CONNECTION, 1)
        self._send({"do": "ready", "drain_s": drain_s, "room": room})

    def note_drain(self, drain_s: float) -> None:
        """Say that requests may go on for so long when this worker ends."""
        if drain_s != self.drain_s:
            self.drain_s = drain_s
            self._send({"do": "drain_s", "drain_s": drain_s})

    def stopping(self) -> None:
        """Say that this worker takes no connections any more."""
        self._send({"do": "stopping"})

    def tell(self, message: Message) -> None:
        """Tell the others."""
        self._send({"do": "tell", "message": message})

    async def ask(self, what: str, *, mine: Any = None) -> dict[str, Any]:
        """Return what each of the others says, by its number; none of one that hangs or cannot.

        *mine* is what this one would say; with it, the sums that those reported last who have
        ended, or say none now, come as "ended".
        """
        number = next(self._numbers)
        said = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send({"do": "ask", "number": number, "what": what, "mine": mine})
        try:
            answers: dict[str, Any] = await said
        finally:
            del self._asked[number]
        return answers

    # -- the channel

    def _send(self, message: Message) -> None:
        self._channel_now().send(message)

    def _channel_now(self) -> Channel:
        """Return the channel, which is read once the event loop runs."""
        if self._channel is None:
            end = socket.socket(fileno=self._descriptor)
            self._channel = Channel(end, self._received, partial(self.end, False))
            threading.Thread(
                target=self._end_with_launcher,
                args=(end,),
                daemon=True,
                name="account-pool-launcher",
            ).start()
        return self._channel

    def _received(self, message: Message, connection: socket.socket | None) -> None:
        match message["do"]:
            case "serve":
                if connection is None:
                    self.closed()  # the kernel had no descriptor for it, and has closed it
                else:
                    self._serve(message, connection)
            case "listening" | "cannot_listen":
                host, port, number = message["at"]
                said = self._listening.get((host, port, number))
                if said is None or said.done():
                    pass  # called off
                elif message["do"] == "listening":
                    said.set_result(message["names"])
                else:
                    said.set_exception(OSError(message["errno"], message["error"]))
            case "end":
                self.end(message["at_once"])
            case "say":
                tasks.once("answering another worker", partial(self._say, message))
            case "said":
                if (asked := self._asked.get(message["number"])) is not None and not asked.done():
                    asked.set_result(message["by"])
            case _:
                self.heard(message)

    async def _say(self, message: Message) -> None:
        said = None
        try:
            said = await self.say(message["what"])
        finally:  # whoever asks does not wait for what cannot be said
            self._send({"do": "said", "number": message["number"], "said": said})

    def _end_with_launcher(self, end: socket.socket) -> None:
        """End the process once the launcher is gone, even if its loop hangs."""
        gone = select.poll()
        gone.register(end, 0)  # a hang-up is always reported
        gone.poll()
        time.sleep(self.drain_s + GRACE_S)
        os._exit(1)


async def _nothing(_what: str) -> None:
    return None


#: Of this process; None where it is no worker.
LINK: Link | None = None
