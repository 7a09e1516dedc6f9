"""Listen on this machine only, unless the user asks for more.

mitmproxy listens on every address by default; a proxy that holds credentials must not.
With Python 3.11 mitmproxy loads scripts before it sets up its servers. From 3.12 on
(eager tasks) it has begun by then: the servers have read `listen_host`, and wait for the
address to be resolved, which takes a turn of the event loop. So that is called off here,
before there is a socket, and the servers are started from the `running` hook.
"""

from __future__ import annotations

import asyncio
import logging

from mitmproxy import ctx
from mitmproxy.proxy.mode_servers import AsyncioServerInstance, ServerInstance

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - what is looked for, not what is bound
#: What mitmproxy sets its servers up in.
_SETUP = "Proxyserver.setup_servers"


def default_to_loopback() -> bool:
    """Set `listen_host` where the user has not; say if servers were held back for `bind`."""
    if ctx.options.listen_host:
        return False
    ctx.options.update(listen_host=LOOPBACK)
    servers = _servers()
    # What mitmproxy_rs starts is begun at once: `bind` puts that right afterwards.
    if any(server.is_running or not _resolves_first(server) for server in servers):
        return False
    if all(server.mode.custom_listen_host for server in servers):
        return False
    return bool([task for task in asyncio.all_tasks() if _sets_up(task) and task.cancel()])


def nowhere() -> None:
    """Have mitmproxy, which is about to exit, set no server up.

    Where it has begun, that goes on: it ends with the process.
    """
    # WireGuard's, ended as soon as it has begun, may end the process by SIGSEGV.
    if not any(server.is_running for server in _servers()):
        ctx.options.update(server=False)


async def bind(*, held_back: bool) -> bool:
    """Have every server listen where it should; say if they do.

    Those that were held back are started. Those that listen everywhere although nobody
    asked for it, because this mitmproxy begins in another order, are bound anew.
    """
    changed = False
    for server in _servers():
        by_accident = _bound_by_accident(server)
        if not by_accident and (server.is_running or not held_back):
            continue
        changed = True
        try:
            # Both in one turn of the loop: a numeric address needs no look-up.
            if by_accident:
                await server.stop()
            await server.start()
        except Exception as e:
            logger.error(str(e))  # as mitmproxy says it: the port is in use, for one
            return False
    if changed:
        await ctx.master.addons.get("proxyserver").servers.changed.send()
    return True


def port() -> int | None:
    """Return the port of the first server, None where none listens."""
    return next((int(at[1]) for server in _servers() for at in server.listen_addrs), None)


def _servers() -> list[ServerInstance]:  # type: ignore[type-arg]  # generic in 12 only
    proxyserver = ctx.master.addons.get("proxyserver")
    return [] if proxyserver is None else list(proxyserver.servers)


def _resolves_first(server: ServerInstance) -> bool:  # type: ignore[type-arg]
    return isinstance(server, AsyncioServerInstance) and server.mode.transport_protocol != "udp"


def _sets_up(task: asyncio.Task[object]) -> bool:
    # By the coroutine: the task has no name in mitmproxy 11.
    return getattr(task.get_coro(), "__qualname__", "") == _SETUP


def _bound_by_accident(server: ServerInstance) -> bool:  # type: ignore[type-arg]
    return (
        ctx.options.listen_host == LOOPBACK
        and server.mode.custom_listen_host is None
        and any(address[0] in _EVERYWHERE for address in server.listen_addrs)
    )
