"""What one client's handler does with what it receives, up to the hooks that this leads to.

The table (step `table`): mitmproxy walks over all addons for each hook, asks each whether it
has that hook, and does so once more for `update`. What its own addons and ours answer changes
only with the addons: it is looked up once, again whenever an addon came or went, and every
second, as anybody may have set a hook on one of them. Addons of others may change at any time,
by what they do in a hook: they are asked each time, by mitmproxy's own way of asking. Functions
come in groups, one for each addon of the chain with its children: an exception in one skips the
rest of its group, as in mitmproxy. Two of mitmproxy's own, and one of ours, are called only
where they may do anything (`_spared`).

The queue (step `inline`): mitmproxy runs each hook in a task, which ends with an event of its
own. Here a hook runs where the layers ask for it; only if one of its functions awaits something,
or the flow was intercepted, does the rest run in a task. Its end is put into a queue, and
handled when the layers are through with the event before it: that is what mitmproxy's lock is
for. Nothing waits for that queue, so no event is lost by a cancellation (`proxy.client_handler`).

What is received (step `direct`): asyncio puts it into a buffer and wakes the task of the
connection, which hands it to the layers, and then waits until those take more whom that was
written to. Here the layers get it where it is received, as long as that task waits for nothing
else; and the task is woken only where there may be somebody to wait for. All else goes through
the buffer, and takes its usual course: slow readers, ends and half-closed ends, errors. The
task waits in the same place as ever, so there is one way in which a connection ends.

All connections are read into the same memory. asyncio takes 256 KiB for each read and gives the
rest back: that costs more than the read, and wherever something small comes to lie in such a gap,
the next read needs a new one. A proxy grew by 2 MB in 50,000 requests that left nothing behind.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import inspect
import itertools
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextvars import Context
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from mitmproxy import exceptions
from mitmproxy.addonmanager import AddonManager
from mitmproxy.connection import Connection
from mitmproxy.flow import Flow
from mitmproxy.hooks import Hook, UpdateHook
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.server import ConnectionIO
from mitmproxy.utils import asyncio_utils

from account_pool.proxy.fast.known import (
    argument_of,
    is_map_local,
    is_of_replays,
    is_onboarding,
    is_our_script,
    knows_reading,
    knows_walk,
)

#: Whose addons they are; that is where such errors have always been logged.
logger = logging.getLogger("mitmproxy.addonmanager")

#: Seconds for which a table serves.
TABLE_S = 1.0

Function = Callable[..., Any]
Group = Iterable[Function]

#: What mitmproxy reads at most at once, and asyncio.
READ_BYTES, RECEIVED_BYTES = 65535, 256 * 1024

#: What takes part in a walk. Where another addon has put something in its place, it stays.
_WALK = ("trigger_event", "handle_lifecycle", "invoke_addon", "_iter_hooks")

_NOTHING: Iterator[Function] = iter(())


class Rest(NamedTuple):
    """A hook that has come to an awaitable.

    Attributes:
        awaitable: of the function that was called last.
        functions: those after it, of the same group.
        groups: those after that one.
    """

    awaitable: Awaitable[object]
    functions: Iterator[Function] = iter(())
    groups: Iterator[Group] = iter(())


class _Asked:
    """An addon with its children that may change at any time."""

    __slots__ = ("_addon", "_event", "_manager")

    def __init__(self, manager: AddonManager, addon: object, event: Hook) -> None:
        self._manager, self._addon = manager, addon
        # Of the same name, without the flow that it is about.
        self._event = object.__new__(type(event))

    def __iter__(self) -> Iterator[Function]:
        return (function for _, function in self._manager._iter_hooks(self._addon, self._event))


class _Mixed:
    """An addon that does not change, some of whose children may."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[Group]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[Function]:
        return itertools.chain.from_iterable(self._parts)


class _Late:
    """Addons that were added since the table was made, in the middle of a walk."""

    __slots__ = ("_chain", "_event", "_known", "_manager")

    def __init__(self, manager: AddonManager, event: Hook) -> None:
        self._manager, self._chain, self._known = manager, manager.chain, len(manager.chain)
        self._event = object.__new__(type(event))

    def __iter__(self) -> Iterator[Function]:
        if len(self._chain) == self._known:
            return _NOTHING
        late = itertools.islice(self._chain, self._known, None)
        return itertools.chain.from_iterable(_Asked(self._manager, x, self._event) for x in late)


class HookTable:
    """Stands in for the walk of one addon manager, from `install` to `uninstall`."""

    def __init__(self, manager: AddonManager) -> None:
        self._manager = manager
        self._chain: list[object] = []
        self._length = self._names = 0
        self._until = 0.0
        self._groups: dict[str, tuple[Group, ...]] = {}

    def install(self) -> bool:
        """Serve from now on; False where mitmproxy is not as it is known."""
        if self.is_installed:
            return True
        manager = self._manager
        if type(manager) is not AddonManager or not knows_walk() or {*_WALK} & {*vars(manager)}:
            return False
        manager.trigger_event = self.trigger_event  # type: ignore[method-assign]
        return True

    def uninstall(self) -> None:
        """Leave the manager as it was."""
        if vars(self._manager).get("trigger_event") == self.trigger_event:
            del self._manager.trigger_event

    @property
    def is_installed(self) -> bool:
        """Whether hooks come here, and nothing of somebody else's is in between."""
        own = vars(self._manager)
        return own.get("trigger_event") == self.trigger_event and not {*_WALK[1:]} & {*own}

    async def trigger_event(self, event: Hook) -> None:
        """Trigger *event* across all addons, as `AddonManager.trigger_event` does."""
        args = event.args()
        if (rest := start(self.walk(event), args)) is not None:
            await finish(rest, args)

    def walk(self, event: Hook) -> Iterator[Group]:
        """Return the functions for *event* in their order, those added meanwhile as well."""
        manager = self._manager
        # Each way in which mitmproxy adds or removes an addon changes one of the first three.
        if (
            manager.chain is not self._chain
            or len(self._chain) != self._length
            or len(manager.lookup) != self._names
            or time.monotonic() > self._until
        ):
            self._chain, self._until = manager.chain, time.monotonic() + TABLE_S
            self._length, self._names = len(self._chain), len(manager.lookup)
            self._groups = {}
        groups = self._groups.get(event.name)
        if groups is None:
            found = [group for addon in self._chain if (group := self._group(addon, event))]
            groups = self._groups[event.name] = (*found, _Late(manager, event))
        return iter(groups)

    def _group(self, addon: object, event: Hook) -> Group:
        try:
            function = getattr(addon, event.name, None)
            if not _is_known(addon) or (function and not callable(function)):
                return _Asked(self._manager, addon, event)
            own = (_spared(self._manager, addon, function),) if function else ()
            below = [self._group(child, event) for child in getattr(addon, "addons", ())]
        except Exception:
            return _Asked(self._manager, addon, event)  # It comes again where it counts.
        if all(isinstance(group, tuple) for group in below):
            return tuple(itertools.chain(own, *below))
        return _Mixed([own, *below])


def _is_known(addon: object) -> bool:
    """Say whether *addon* is of a kind that does not change its hooks while it serves."""
    if type(addon) is ModuleType:
        return is_our_script(addon)
    return type(addon).__module__.startswith(("mitmproxy.", "account_pool."))


def _spared(manager: AddonManager, addon: Any, function: Function) -> Function:
    """Return *function*, a hook of *addon*; or what calls it only where it may do anything.

    Three hooks see late that a request is not theirs. One of them is a coroutine: for its
    sake, the rest of the hook would run in a task, with each request.
    """
    if is_onboarding(addon, function):
        return lambda flow: (
            function(flow)
            if addon.host in (flow.request.host_header or flow.request.host)
            else None
        )
    if is_map_local(addon, function):
        return lambda flow: function(flow) if addon.replacements else None
    if is_of_replays(addon, function):
        playback: Any = manager.lookup.get("serverplayback")
        return lambda flow: (
            function(flow) if flow.is_replay or getattr(playback, "flowmap", None) else None
        )
    return function


def start(groups: Iterator[Group], args: Any) -> Rest | None:
    """Call the functions of *groups* until one returns an awaitable; None: all were called."""
    for group in groups:
        functions = iter(group)
        try:
            for function in functions:
                result = function(*args)
                if result is not None and inspect.isawaitable(result):
                    return Rest(result, functions, groups)
        except exceptions.AddonHalt:
            return None
        except exceptions.OptionsError:
            raise
        except Exception as error:
            _log(error)
    return None


async def finish(rest: Rest | None, args: Any) -> None:
    """Await what *rest* has come to, and call what is left."""
    while rest is not None:
        try:
            await rest.awaitable
            for function in rest.functions:
                result = function(*args)
                if result is not None and inspect.isawaitable(result):
                    await result
        except exceptions.AddonHalt:
            return
        except exceptions.OptionsError:
            raise
        except Exception as error:
            _log(error)
        rest = start(rest.groups, args)


def _log(error: Exception) -> None:
    """Log as mitmproxy's `safecall` does: with the addon's part of the traceback."""
    traceback = error.__traceback__
    assert traceback is not None
    logger.error(
        "Addon error: %s", error, exc_info=(type(error), error, traceback.tb_next or traceback)
    )


# -- the events of one client

_UPDATE = UpdateHook([])
#: Hooks that one client may run before others have their turn.
TURN = 100
#: Tasks of hooks: a loop alone does not keep them, and their client may have gone.
_RUNNING: set[asyncio.Task[None]] = set()
#: mitmproxy 11 does not ask who keeps a task.
_KEEPS_REF = "keep_ref" in inspect.signature(asyncio_utils.create_task).parameters


class Way(Protocol):
    """Another way for events than through all layers."""

    #: what `copied` goes on with; None: each event is to be handled
    copying: Any

    def run(self, event: events.Event) -> None:
        """Handle *event*; raises nothing."""

    def copied(self, event: events.DataReceived) -> events.Event | None:
        """Handle what no layer need see; else return what is to be handled. Raises nothing."""

    def is_unsent(self) -> bool: ...


class EventQueue:
    """Stands in for `server_event` and `hook_task` of *handler*, that of one client.

    And for its `handle_connection`, from `read_at_once` on.

    Attributes:
        may_shorten: events may go another way than through all layers (`fast.short`).
        way: that way, once it is known.
    """

    __slots__ = (
        "_handle_connection", "_hooks", "_is_running", "_queue", "_table", "handler",
        "may_shorten", "way",
    )  # fmt: skip

    def __init__(self, handler: ProxyConnectionHandler, table: HookTable) -> None:
        self.handler = handler
        self._handle_connection = handler.handle_connection
        self._table = table
        self._queue: collections.deque[tuple[events.Event, Context]] = collections.deque()
        self._is_running = False
        self._hooks = 0
        self.may_shorten = False
        self.way: Way | None = None

    def read_at_once(self) -> bool:
        """Let the layers get at once what is received; return whether they do.

        To be called before a connection of the client is read.
        """
        if "handle_connection" in vars(self.handler) or not knows_reading():
            return False
        self.handler.handle_connection = self.handle_connection  # type: ignore[method-assign]
        return True

    async def handle_connection(self, connection: Connection) -> None:
        """Handle *connection* by mitmproxy's own function, whose reads are shorter."""
        io: Any = self.handler.transports[connection]
        if not self._is_as_known(connection, io):
            await self._handle_connection(connection)
            return
        transport, protocol = io.writer.transport, io.writer.transport.get_protocol()
        received = _Received(self, connection, io)
        transport.set_protocol(received)
        io.reader.read = received.read
        try:
            await self._handle_connection(connection)
        finally:
            # One that is closed tells its protocol of that, and forgets it.
            if transport.get_protocol() is received and not transport.is_closing():
                transport.set_protocol(protocol)
            vars(io.reader).pop("read", None)

    def _is_as_known(self, connection: Connection, io: ConnectionIO) -> bool:
        """Say whether *connection* is read as it is known, and nobody looks on."""
        if self.handler.server_event != self.server_event:
            return False  # Another addon looks at each event.
        if connection.transport_protocol != "tcp" or type(io.reader) is not asyncio.StreamReader:
            return False
        if type(io.writer) is not asyncio.StreamWriter or "read" in vars(io.reader):
            return False
        protocol = io.writer.transport.get_protocol()
        known = type(protocol) is asyncio.StreamReaderProtocol
        return known and "data_received" not in vars(protocol) and not io.writer.is_closing()

    async def server_event(self, event: events.Event) -> None:
        """Handle *event*, as `ConnectionHandler.server_event` does. Never suspends."""
        self.handle(event)

    def handle(self, event: events.Event, context: Context | None = None) -> None:
        """Handle *event* and what follows from it at once; after those that are there.

        *context* is what it comes from, by default that of the caller; it stays as it is.
        """
        queue = self._queue
        queue.append((event, contextvars.copy_context() if context is None else context.copy()))
        if self._is_running:
            return
        self._is_running, self._hooks = True, 0
        try:
            while queue:
                event, context = queue.popleft()
                way = self.way
                context.run(self.hand_on if way is None else way.run, event)
        finally:
            self._is_running = False

    def hand_on(self, event: events.Event) -> None:
        """Hand *event* to the layers, and do what they ask for."""
        handler = self.handler
        handler.timeout_watchdog.register_activity()
        try:
            for command in handler.layer.handle_event(event):
                self.carry_out(command)
        except Exception:
            self.crashed()

    def crashed(self) -> None:
        """Say so, as mitmproxy does."""
        self.handler.log("mitmproxy has crashed!", logging.ERROR, exc_info=True)

    def carry_out(self, command: commands.Command) -> None:
        """Do what a layer has asked for."""
        handler = self.handler
        if isinstance(command, commands.StartHook):
            # What hooks leave in context variables is found by those that follow from it only.
            context = contextvars.copy_context()
            context.run(self._run_hook, command, context)
        elif isinstance(command, commands.OpenConnection):
            assert command.connection not in handler.transports
            task = self._create_task(
                handler.open_connection(command),
                f"server connection handler {command.connection.address}",
            )
            handler.transports.setdefault(command.connection, ConnectionIO(handler=task))
        elif isinstance(command, commands.RequestWakeup):
            handler.wakeup_timer.add(
                self._create_task(handler.wakeup(command), f"wakeup timer ({command.delay:.1f}s)")
            )
        elif isinstance(command, commands.Log):
            handler.log(command.message, command.level)
        elif not isinstance(command, commands.ConnectionCommand):
            raise RuntimeError(f"Unexpected command: {command}")
        elif (io := handler.transports.get(command.connection)) is None:
            pass  # The connection has already been closed.
        elif isinstance(command, commands.SendData):
            assert io.writer
            if not io.writer.is_closing():
                io.writer.write(command.data)
        elif isinstance(command, commands.CloseTcpConnection):
            handler.close_connection(command.connection, command.half_close)
        elif isinstance(command, commands.CloseConnection):
            handler.close_connection(command.connection, half_close=False)
        else:
            raise RuntimeError(f"Unexpected command: {command}")

    def _run_hook(self, hook: commands.StartHook, context: Context) -> None:
        self._hooks += 1
        rest: Awaitable[None] | None
        try:
            rest = self._begin(hook)
        except BaseException as error:
            # It ends the task of this hook, as in mitmproxy, and not what the layers do next.
            rest = _raise(error)
        if rest is None and self._hooks % TURN == 0:
            rest = asyncio.sleep(0)
        if rest is not None:
            task = self._create_task(self._finish_hook(hook, rest), f"handle_hook({hook.name})")
            _RUNNING.add(task)
            task.add_done_callback(_RUNNING.discard)
        elif hook.blocking:
            self._queue.append((events.HookCompleted(hook), context))
        else:
            self.handler.timeout_watchdog.register_activity()

    def _begin(self, hook: commands.StartHook) -> Awaitable[None] | None:
        """Run *hook*. Returns what is left of it, or None."""
        kind: Any = type(hook)
        data = argument_of(kind)(hook)
        rest = start(self._table.walk(hook), (data,))
        if not isinstance(data, Flow):
            return None if rest is None else finish(rest, (data,))
        updates = None
        if rest is None:
            updates = start(self._table.walk(_UPDATE), ([data],))
            if updates is None and not data.intercepted:
                return None
        return self._go_on(data, rest, updates)

    async def _go_on(self, flow: Flow, rest: Rest | None, updates: Rest | None) -> None:
        if rest is not None:
            await finish(rest, (flow,))
            updates = start(self._table.walk(_UPDATE), ([flow],))
        await finish(updates, ([flow],))
        await flow.wait_for_resume()

    async def _finish_hook(self, hook: commands.StartHook, rest: Awaitable[None]) -> None:
        with self.handler.timeout_watchdog.disarm():
            await rest
        if hook.blocking:
            self.handle(events.HookCompleted(hook))

    def _create_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        more = {"keep_ref": False} if _KEEPS_REF else {}
        return asyncio_utils.create_task(
            coroutine, name=name, client=self.handler.client.peername, **more
        )


async def _raise(error: BaseException) -> None:
    raise error


# -- what is received


@cache
def _memory(_thread: int) -> memoryview:
    """Return where the loop of a thread reads into: one connection at a time."""
    return memoryview(bytearray(RECEIVED_BYTES))


class _Received(asyncio.BufferedProtocol):
    """Takes what one connection receives, in place of *protocol*, which is told all else.

    Made by the task of that connection.
    """

    __slots__ = (
        "_connection", "_context", "_loop", "_owes_drain", "_protocol", "_queue", "_read",
        "_reader", "_task", "_view",
    )  # fmt: skip

    def __init__(self, queue: EventQueue, connection: Connection, io: Any) -> None:
        self._queue, self._connection, self._reader = queue, connection, io.reader
        self._protocol: asyncio.StreamReaderProtocol = io.writer.transport.get_protocol()
        self._read, self._view = io.reader.read, _memory(threading.get_ident())
        self._task: Any = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._owes_drain = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Hand what was read to the layers; into the buffer what comes before its turn."""
        data = bytes(self._view[:nbytes])
        at = 0
        while at < len(data):
            # Its task waits for data: there is none before this, and it was not cancelled.
            waiter = self._reader._waiter
            if waiter is None or waiter.done() or asyncio.current_task() is not None:
                self._protocol.data_received(data[at:])
                return
            way = self._queue.way
            # The short way has no use for pieces: what comes there is encrypted.
            end = at + READ_BYTES if way is None else len(data)
            came = events.DataReceived(self._connection, bytes(data[at:end]))
            at = end
            event = came if way is None or way.copying is None else way.copied(came)
            if event is not None:
                # Hooks find the task of the connection, as where it does this by itself.
                asyncio.tasks._enter_task(self._loop, self._task)
                try:
                    self._queue.handle(event, self._context)
                finally:
                    asyncio.tasks._leave_task(self._loop, self._task)
            if self._is_unsent() if way is None or event is not None else way.is_unsent():
                self._owes_drain = True
                self._reader._wakeup_waiter()

    async def read(self, n: int = -1) -> bytes:
        """Read as the reader does; before that, wait until those take more who were sent to."""
        while True:
            data: bytes = await self._read(n)
            if not self._owes_drain:
                return data
            self._owes_drain = False
            await self._queue.handler.drain_writers()
            if data or self._reader.at_eof():
                return data

    def _is_unsent(self) -> bool:
        for io in self._queue.handler.transports.values():
            if (writer := io.writer) is not None and (
                type(writer) is not asyncio.StreamWriter or is_unsent(writer.transport)
            ):
                return True
        return False


def is_unsent(transport: asyncio.WriteTransport) -> bool:
    """Say whether a drain may wait for who reads from *transport*, or find them gone."""
    unsent = transport.get_write_buffer_size()
    limit = transport.get_write_buffer_limits()[0] if unsent else 0
    return unsent > limit or transport.is_closing()
