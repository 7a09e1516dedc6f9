"""Where a request really goes: the name its upstream connection is verified against.

Never the Host header: a credential follows the connection, not what a client claims.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from mitmproxy.proxy.context import Context


@dataclass(frozen=True, slots=True)
class Destination:
    """The end of an upstream connection.

    Attributes:
        name: host name in lower case; with TLS the server name, which the certificate
            must carry, also where the client connected to another name or an address.
        port: TCP port.
        tls: whether it is, or will be, TLS.
        via: whether the way there leads through another proxy.
    """

    name: str
    port: int
    tls: bool
    via: bool = False

    @property
    def local(self) -> bool:
        """Whether it is this machine. A name means that to us, not to another proxy."""
        return not self.via and is_loopback(self.name)

    @property
    def private(self) -> bool:
        """Whether a credential may be sent: TLS, or this machine."""
        return self.tls or self.local

    @property
    def named(self) -> bool:
        """Whether the destination is a name, not an address."""
        return _address(self.name) is None


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Say whether *host* is this machine, by name or by address."""
    address = _address(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def of_connection(context: Context, sni: str | None = None) -> Destination | None:
    """Return the destination of *context*'s server connection, None if there is none yet.

    Args:
        sni: the server name the client asked for, where it is not on the context yet.
    """
    server = context.server
    if server.address is None:
        return None
    name, port = server.address[0], server.address[1]
    if server.tls:
        sni = server.sni or sni or context.client.sni
    # Not the name the client connected to: a front end that several share answers for
    # the server name, and the upstream certificate is verified against it.
    name = sni or name
    return Destination(name.rstrip(".").lower(), port, bool(server.tls), bool(server.via))


def of_request(host: str, port: int, scheme: str, *, via: bool = False) -> Destination:
    """Return the destination of an absolute-form request."""
    return Destination(host.rstrip(".").lower(), port, scheme == "https", via)


@lru_cache(maxsize=1024)
def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None
