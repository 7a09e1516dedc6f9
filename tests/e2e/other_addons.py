"""Addons of somebody else beside the pool: each prints what it is called with."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from mitmproxy import ctx, dns, exceptions, flow, http
from mitmproxy.addonmanager import Loader

Hook = Callable[[object], Awaitable[None] | None]

HOOKS = (
    "client_connected",
    "http_connect",
    "tls_established_client",
    "requestheaders",
    "request",
    "server_connect",
    "server_connected",
    "responseheaders",
    "response",
    "error",
    "websocket_start",
    "websocket_message",
    "websocket_end",
    "tcp_start",
    "tcp_message",
    "tcp_end",
    "udp_start",
    "udp_message",
    "dns_request",
    "dns_response",
    "client_disconnected",
)
#: Those of HOOKS in which a flow can be held.
HELD = ("requestheaders", "request", "responseheaders", "response", "websocket_message",
        "tcp_message", "udp_message", "dns_request", "dns_response")  # fmt: skip


def say(name: str, hook: str, data: object) -> None:
    path = getattr(getattr(data, "request", None), "path", "")
    sys.stdout.write(f"hook: {name} {hook} {path}".rstrip() + "\n")
    sys.stdout.flush()


def now(name: str, hook: str, *, fails: bool = False) -> Hook:
    def called(data: object) -> None:
        say(name, hook, data)
        if fails:
            raise ValueError(f"{name} does not like {hook}")

    return called


def later(name: str, hook: str) -> Hook:
    async def called(data: object) -> None:
        await asyncio.sleep(0)
        say(name, hook, data)

    return called


class Other:
    """Has every hook of HOOKS, all of one kind, and children."""

    def __init__(
        self,
        name: str,
        kind: Callable[..., Hook] = now,
        children: tuple[Other, ...] = (),
        **how: Any,
    ) -> None:
        self.name, self.addons = name, list(children)
        for hook in HOOKS:
            setattr(self, hook, kind(name, hook, **how))


class Guest(Other):
    """Comes with the first request, and goes with the third."""


class Host:
    """Adds and removes an addon while requests are served."""

    name = "host"
    requests = 0
    guest = Guest("guest")

    def response(self, _flow: object) -> None:
        self.requests += 1
        # Between two hooks: whoever is added in one is asked by mitmproxy in the same.
        later = asyncio.get_running_loop().call_soon
        if self.requests == 1:
            later(ctx.master.addons.add, self.guest)
        elif self.requests == 3:
            later(ctx.master.addons.remove, self.guest)


class Halting:
    """Ends the walk over the addons for one hook."""

    name = "halting"

    def tls_established_client(self, _data: object) -> None:
        raise exceptions.AddonHalt


class After(Other):
    """Is not asked when one before it has halted."""


class Holding:
    """Holds each flow in each hook for a moment, with `hold=true`."""

    name = "holding"

    def load(self, loader: Loader) -> None:
        loader.add_option("hold", bool, False, "Hold flows.")
        for hook in HELD:
            setattr(self, hook, self._hold)

    def _hold(self, held: flow.Flow) -> None:
        if ctx.options.hold:
            held.intercept()
            asyncio.get_running_loop().call_soon(held.resume)


class Resolver:
    """Answers each question that no such name exists: no test asks a server."""

    name = "resolver"

    def dns_request(self, flow: dns.DNSFlow) -> None:
        flow.response = flow.request.fail(3)


class Acting:
    """Does what the query of a request says, in the middle of a hook."""

    name = "acting"

    def request(self, flow: http.HTTPFlow) -> None:
        server = ctx.master.addons.get("proxyserver")
        match flow.request.query.get("act"):
            case "close":
                handler = server.connections[flow.client_conn.id]
                handler.close_connection(flow.client_conn)
            case "answer":
                flow.response = http.Response.make(418, b"mine")
            case "crash":
                handler = server.connections[flow.client_conn.id]
                handler.layer.handle_event = self._crash

    def response(self, flow: http.HTTPFlow) -> None:
        if flow.request.query.get("act") == "replay":
            flow.request.query["act"] = "no more"
            ctx.master.commands.call("replay.client", [flow.copy()])

    def _crash(self, _event: object) -> None:
        raise RuntimeError("of a layer")


addons = [
    Acting(),
    Holding(),
    Resolver(),
    Other("now"),
    Other("later", later),
    Host(),
    Halting(),
    After("after"),
    # An error skips what comes after it, in the same `-s` and in later ones.
    Other("fails", fails=True, children=(Other("child of fails"),)),
]
