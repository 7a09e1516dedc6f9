"""Listen on this machine only, unless the user asks for more.

mitmproxy listens on every address by default; a proxy that holds credentials must not.
mitmproxy 11 loads scripts before it binds, 12 has begun to bind by then, so the option
alone is too late there and the socket is bound anew.
"""

from __future__ import annotations

from mitmproxy import ctx
from mitmproxy.proxy.mode_servers import ServerInstance

LOOPBACK = "127.0.0.1"
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - what is looked for, not what is bound


def default_to_loopback() -> None:
    """Set `listen_host` where the user has not."""
    if not ctx.options.listen_host:
        ctx.options.update(listen_host=LOOPBACK)


async def rebind() -> None:
    """Bind servers anew that listen everywhere although nobody asked for it."""
    proxyserver = ctx.master.addons.get("proxyserver")
    if proxyserver is None or ctx.options.listen_host != LOOPBACK:
        return
    for server in list(proxyserver.servers):
        if _bound_by_accident(server):
            # Both in one turn of the loop: a numeric address needs no look-up.
            await server.stop()
            await server.start()


def _bound_by_accident(server: ServerInstance) -> bool:  # type: ignore[type-arg]  # generic in 12 only
    return server.mode.custom_listen_host is None and any(
        address[0] in _EVERYWHERE for address in server.listen_addrs
    )
