"""The events of one client are handled one after another, without a lock or a task for each hook.

mitmproxy runs each hook in a task, which ends with an event of its own. Here a hook runs
where the layers ask for it; only if one of its functions awaits something, or the flow was
intercepted, does the rest run in a task. Its end is put into a queue, and handled when
the layers are through with the event before it: that is what mitmproxy's lock is for.
Nothing waits for that queue, so no event is lost by a cancellation (`proxy.event_lock`).
"""

from __future__ import annotations

import asyncio
import collections
import functools
import inspect
import logging
from collections.abc import Coroutine
from typing import Any

from mitmproxy.flow import Flow
from mitmproxy.hooks import UpdateHook
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO
from mitmproxy.utils import asyncio_utils

from account_pool.proxy.fast.known import digest
from account_pool.proxy.fast.table import HookTable, Rest, finish, start

#: Sources that this stands in for: mitmproxy 11.0.2, and 12.0 to 12.3.1.
KNOWN = frozenset({"2bf6a723", "661de754"})

_UPDATE = UpdateHook([])
#: mitmproxy 11 keeps a reference to each task by itself.
_KEEPS_REF = "keep_ref" in inspect.signature(asyncio_utils.create_task).parameters


class EventQueue:
    """Stands in for `server_event` and `hook_task` of the handler of one client."""

    __slots__ = ("_handler", "_is_running", "_queue", "_table", "_tasks")

    def __init__(self, handler: ProxyConnectionHandler, table: HookTable) -> None:
        self._handler = handler
        self._table = table
        self._queue: collections.deque[events.Event] = collections.deque()
        self._is_running = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def server_event(self, event: events.Event) -> None:
        """Handle *event*, as `ConnectionHandler.server_event` does. Never suspends."""
        self.handle(event)

    def handle(self, event: events.Event) -> None:
        """Handle *event* and what follows from it at once; after those that are there."""
        queue = self._queue
        queue.append(event)
        if self._is_running:
            return
        handler = self._handler
        self._is_running = True
        try:
            while queue:
                handler.timeout_watchdog.register_activity()
                try:
                    for command in handler.layer.handle_event(queue.popleft()):
                        self._carry_out(command)
                except Exception:
                    handler.log("mitmproxy has crashed!", logging.ERROR, exc_info=True)
        finally:
            self._is_running = False

    def _carry_out(self, command: commands.Command) -> None:
        handler = self._handler
        if isinstance(command, commands.StartHook):
            self._run_hook(command)
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

    def _run_hook(self, hook: commands.StartHook) -> None:
        (data,) = hook.args()
        is_flow = isinstance(data, Flow)
        update = None
        rest = start(self._table.groups(hook), (data,))
        if rest is None and is_flow:
            update = start(self._table.groups(_UPDATE), ([data],))
        if rest is not None or update is not None or (is_flow and data.intercepted):
            task = self._create_task(
                self._finish_hook(hook, rest, update), f"handle_hook({hook.name})"
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif hook.blocking:
            self._queue.append(events.HookCompleted(hook))

    async def _finish_hook(
        self, hook: commands.StartHook, rest: Rest | None, update: Rest | None
    ) -> None:
        (data,) = hook.args()
        with self._handler.timeout_watchdog.disarm():
            await finish(rest, (data,))
            if isinstance(data, Flow):
                if rest is not None:
                    update = start(self._table.groups(_UPDATE), ([data],))
                await finish(update, ([data],))
                await data.wait_for_resume()
        if hook.blocking:
            self.handle(events.HookCompleted(hook))

    def _create_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        more = {"keep_ref": False} if _KEEPS_REF else {}
        return asyncio_utils.create_task(
            coroutine, name=name, client=self._handler.client.peername, **more
        )


def put_into(handler: object, table: HookTable) -> bool:
    """Let an `EventQueue` handle the events of *handler*, before its first one.

    Returns whether that is done: only for a client that is connected to a proxy's port.
    """
    if type(handler) is not ProxyConnectionHandler:
        return False
    handler.server_event = EventQueue(handler, table).server_event  # type: ignore[method-assign]
    return True


@functools.cache
def is_as_known() -> bool:
    """Say whether mitmproxy handles events in the way that this does."""
    source = digest(
        ConnectionHandler.server_event,
        ConnectionHandler.hook_task,
        ProxyConnectionHandler.handle_hook,
        Flow.wait_for_resume,
    )
    return source in KNOWN
