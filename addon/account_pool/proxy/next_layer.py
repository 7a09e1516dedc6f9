"""Which connections are ours, and how our HTTP layer gets under them.

A script's `next_layer` runs before mitmproxy's own: the built-in is asked first, and
where it chose its `HttpLayer` ours takes the place. Hosts that are not the pool's stay
an opaque tunnel, never decrypted. At those that are, nothing is raw bytes: a request whose
head comes in small pieces would go there as the client sent it, its own credential included.
"""

from __future__ import annotations

import logging

from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy import layer, layers
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.tls import parse_client_hello

from account_pool.admin.http import ADMIN_HOST
from account_pool.providers import unswappable
from account_pool.proxy import pooled_request, tunnels
from account_pool.proxy.http_layer import PoolHttpLayer
from account_pool.proxy.options import left_alone_by
from account_pool.proxy.service import Service

logger = logging.getLogger(__name__)

#: A record of TLS: shorter ones may become one.
_TLS_BEGINS = b"\x16\x03"
#: Names of hosts that are remembered as said; clients choose them.
_MAX_SAID = 256


class Undecided(Exception):
    """The client has not yet said enough to know where it wants to go."""


def choose(nextlayer: layer.NextLayer, built_in: NextLayer, service: Service) -> None:
    """Decide the next layer of a connection; leaves it open while data is missing."""
    is_open = nextlayer.layer is None
    if is_open:
        try:
            if _is_tunnel(nextlayer, service):
                nextlayer.layer = layers.TCPLayer(nextlayer.context, ignore=True)
                return
        except Undecided:
            return  # asked again when there is more
    built_in.next_layer(nextlayer)
    raw = nextlayer.layer
    if is_open and type(raw) is layers.TCPLayer and _is_http(nextlayer.context, service):
        nextlayer.context.layers.remove(raw)
        nextlayer.layer = None
        if not _TLS_BEGINS.startswith(nextlayer.data_client()):
            nextlayer.layer = layers.HttpLayer(nextlayer.context, HTTPMode.transparent)
    if nextlayer.layer is not None:
        tunnels.take_tls(nextlayer.layer, quick="direct" in service.settings.fast)
        nextlayer.layer = _with_ours(nextlayer.layer, service)


def _is_tunnel(nextlayer: layer.NextLayer, service: Service) -> bool:
    """Say whether this is TLS to a host that is not ours, and we are to leave it alone.

    Raises Undecided while the client's hello is incomplete and its server name counts.
    """
    context = nextlayer.context
    if service.settings.intercept_all or context.client.transport_protocol != "tcp":
        return False
    data = nextlayer.data_client()
    if _proxy_leg(context) or not starts_like_tls_record(data):
        return False
    target = pooled_request.of_connection(context)
    if target is None:
        return False
    if target.named and _is_not_ours(target, service):
        return True
    try:
        hello = parse_client_hello(data)
    except ValueError:
        return True  # TLS that cannot be read is not ours
    if hello is None:
        raise Undecided
    target = pooled_request.of_connection(context, hello.sni) or target
    return _is_not_ours(target, service)


def _is_http(context: Context, service: Service) -> bool:
    """Say whether what mitmproxy takes for raw bytes is for a host of the pool."""
    target = pooled_request.of_connection(context)
    return (
        context.client.transport_protocol == "tcp"
        and target is not None
        and service.recognizer.claims(target.name, target.port)
        and not left_alone_by(context.options, f"{target.name}:{target.port}")
    )


def _is_not_ours(target: pooled_request.Destination, service: Service) -> bool:
    """Say whether the pool has no business there; if somebody may wonder, once why."""
    if service.recognizer.claims(target.name, target.port) or target.name == ADMIN_HOST:
        return False
    if api := unswappable.find(target.name):
        _say_once(service, f"{target.name} ({api.name})", api.why)
    elif ports := service.recognizer.hosts.ports(target.name):
        at = " and ".join(map(str, ports))
        why = f"the pool serves it at port {at}; name another one in hosts of accounts.yaml"
        _say_once(service, f"{target.name}:{target.port}", why)
    return True


def _say_once(service: Service, host: str, why: str) -> None:
    if host not in service.passed and len(service.passed) < _MAX_SAID:
        service.passed.add(host)
        logger.info("%s passes through, not pooled: %s", host, why)


def _proxy_leg(context: Context) -> bool:
    """Say whether the client's first bytes are addressed to the proxy itself."""
    return len(context.layers) == 1 and isinstance(
        context.layers[0], modes.HttpProxy | modes.HttpUpstreamProxy | modes.ReverseProxy
    )


def _with_ours(chosen: layer.Layer, service: Service) -> layer.Layer:
    """Return *chosen* with the HttpLayer at its end, if any, replaced by ours."""
    above: layer.Layer | None = None
    at: layer.Layer = chosen
    while True:
        below = getattr(at, "child_layer", None)
        if not isinstance(below, layer.Layer):
            break
        above, at = at, below
    if type(at) is not layers.HttpLayer:
        return chosen
    # Layers append themselves to the context when they are made.
    at.context.layers.remove(at)
    ours = PoolHttpLayer(at.context, at.mode, service)
    if above is None:
        return ours
    above.child_layer = ours  # type: ignore[attr-defined]  # every tunnel layer has one
    return chosen
