"""The events of one client are handled one after another, without a lock or a task for each hook.

mitmproxy runs each hook in a task, which ends with an event of its own. Here a hook runs
where the layers ask for it; only if one of its functions awaits something, or the flow was
intercepted, does the rest run in a task. Its end is put into a queue, and handled when
the layers are through with the event before it: that is what mitmproxy's lock is for.
Nothing waits for that queue, so no event is lost by a cancellation (`proxy.client_handler`).
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import Any, Protocol

from mitmproxy.flow import Flow
from mitmproxy.hooks import Hook, UpdateHook
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO
from mitmproxy.utils import asyncio_utils

from account_pool.proxy.fast.known import digest
from account_pool.proxy.fast.table import HookTable, Rest, finish, start

#: Sources that this stands in for: mitmproxy 11.0.2, and 12.0 to 12.3.1.
KNOWN = frozenset({"2bf6a723", "661de754"})

_UPDATE = UpdateHook([])
#: Hooks that one client may run before others have their turn.
TURN = 100
#: Tasks of hooks: a loop alone does not keep them, and their client may have gone.
_RUNNING: set[asyncio.Task[None]] = set()
#: mitmproxy 11 does not ask who keeps a task.
_KEEPS_REF = "keep_ref" in inspect.signature(asyncio_utils.create_task).parameters


class Way(Protocol):
    """Another way for events than through all layers."""

    def run(self, event: events.Event) -> None:
        """Handle *event*; raises nothing."""


class EventQueue:
    """Stands in for `server_event` and `hook_task` of *handler*, that of one client.

    Attributes:
        may_shorten: events may go another way than through all layers (`fast.short`).
        way: that way, once it is known.
    """

    __slots__ = ("_hooks", "_is_running", "_queue", "_table", "handler", "may_shorten", "way")

    def __init__(self, handler: ProxyConnectionHandler, table: HookTable) -> None:
        self.handler = handler
        self._table = table
        self._queue: collections.deque[tuple[events.Event, Context]] = collections.deque()
        self._is_running = False
        self._hooks = 0
        self.may_shorten = False
        self.way: Way | None = None

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
        data = _data_of(kind)(hook)
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


@cache
def _data_of(kind: Any) -> Callable[[Any], Any]:
    """Return what reads the one argument of hooks of this *kind*; mitmproxy looks for it anew."""
    (field,) = fields(kind)
    return attrgetter(field.name) if kind.args is Hook.args else _argument


def _argument(hook: commands.StartHook) -> Any:
    (data,) = hook.args()
    return data


async def _raise(error: BaseException) -> None:
    raise error


def put_into(handler: object, table: HookTable) -> EventQueue | None:
    """Let an `EventQueue` handle the events of *handler*, before its first one.

    Returns it, or None: it is only for a client that is connected to a proxy's port, and
    where mitmproxy handles events in the way that this does.
    """
    if type(handler) is not ProxyConnectionHandler or not is_as_known():
        return None
    if {function.__name__ for function in _functions()} & {*vars(handler)}:
        return None  # Another addon's.
    queue = EventQueue(handler, table)
    handler.server_event = queue.server_event  # type: ignore[method-assign]
    return queue


def _functions() -> tuple[Callable[..., Any], ...]:
    """Return what this stands in for, and what it builds on."""
    return (
        ConnectionHandler.server_event,
        ConnectionHandler.hook_task,
        ProxyConnectionHandler.handle_hook,
    )


def is_as_known() -> bool:
    """Say whether mitmproxy handles events in the way that this does."""
    return digest(*_functions(), Flow.wait_for_resume) in KNOWN
