"""One client request that is the pool's business, as it stands when its head is read.

Where it really goes is the name its upstream connection is verified against. Never the Host
header: a credential follows the connection, not what a client claims.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from mitmproxy import http
from mitmproxy.net.http import url
from mitmproxy.proxy.context import Context

from account_pool.core.lease import RequestFacts
from account_pool.providers import sessions
from account_pool.providers.base import LocalAnswer, Provider, Route
from account_pool.providers.registry import HostIndex
from account_pool.providers.request_head import RequestHead, is_websocket
from account_pool.proxy.credential_swap import Masked

#: What is shorter is no credential that anybody would take.
MIN_TOKEN_BYTES = 8
#: The longest name of a model that is told apart; it is kept with cooldowns and sessions.
MAX_MODEL_CHARS = 200


@dataclass(slots=True, eq=False)
class PooledRequest:
    """A request to a pool host.

    Attributes:
        provider: whose API it is.
        hosts: those of the providers when its head was read.
        destination: where its connection goes, as checked when the head was read.
        address: host and port of the flow at that moment. If another addon changes
            them afterwards, the destination must be checked again.
        route: whose business it is.
        masked: what the client sent where its credential may be.
        head: the request as the provider sees it, without the body.
        denied: why no account may serve it, as the answer to give; None otherwise.
    """

    provider: Provider
    hosts: HostIndex
    destination: Destination
    address: tuple[str, int]
    route: Route
    masked: Masked
    head: RequestHead
    denied: LocalAnswer | None = None

    def misdirected(self, request: http.Request, hosts: HostIndex) -> str | None:
        """Say why *request* must not carry a credential where it goes; None if it may.

        Another addon may have changed where it goes since its head was read, and a front
        end that serves several sites routes by Host or :authority.
        """
        if (request.host, request.port) != self.address:
            moved = of_request(request.host, request.port, request.scheme, via=self.destination.via)
            if not (moved.private and hosts.has(self.provider.name, moved.name, moved.port)):
                return "another addon changed where this request goes"
        elif self.destination.tls and request.scheme != "https":
            return "another addon took the encryption off this request"
        for name, value in ((b"host", request.data.authority), *request.headers.fields):
            if (name == b"Host" or name.lower() == b"host") and value:
                named = _named(value, self.destination.port)
                if named is None or (
                    named != (self.destination.name, self.destination.port)
                    and not hosts.has(self.provider.name, *named)
                ):
                    return "the Host header names a host that is not the provider's"
        return None

    def facts(self, request: http.Request) -> RequestFacts:
        """Return what the pool must know, now that the body is there."""
        head, provider = self.head, self.provider
        head.body = _decoded_body(head, request)
        model, told = bounded(provider.model(head)), provider.conversation(head)
        if told.session is not None and not sessions.is_hashed(told.session):
            told = told._replace(session=self._without_credential(told.session))
        return RequestFacts(
            provider=provider.name,
            kind=provider.kind(head),
            path=head.path,
            model=model,
            socket=head.method == "GET" and is_websocket(head),
            conversation=told,
            body_bytes=len(request.raw_content or b""),
        )

    def _without_credential(self, session: str) -> str:
        """Return *session* without the client's credential, which some send as an id as well."""
        text = session.encode(errors="replace")
        for values in self.masked.headers.values():
            for value in values:
                token = value.rpartition(b" ")[2]
                if len(token) >= MIN_TOKEN_BYTES and token in text:
                    return sessions.hashed(session)
        return session


def bounded(model: str | None) -> str | None:
    """Return the name of a model, cut if it is longer than any: clients choose it."""
    return model and model[:MAX_MODEL_CHARS]


@lru_cache(maxsize=1024)
def _named(authority: bytes, usual_port: int) -> tuple[str, int] | None:
    """Return host and port of an authority, None if it is none."""
    try:
        name, port = url.parse_authority(authority, check=True)
    except ValueError:
        return None
    return name.rstrip(".").lower(), port or usual_port


def fields_by_name(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers of a message by lower-case name, first value of each."""
    by_name: dict[str, str] = {}
    for name, value in fields:
        by_name.setdefault(name.lower().decode("latin-1"), value.decode("latin-1"))
    return by_name


def read_head(request: http.Request, destination: Destination) -> RequestHead:
    """Return *request* as a provider sees it, without its body."""
    data = request.data
    path, _, query = data.path.decode("latin-1").partition("?")
    return RequestHead(
        method=data.method.decode("latin-1").upper(),
        host=destination.name,
        port=destination.port,
        path=path,
        query=query,
        headers=fields_by_name(data.headers.fields),
    )


def _decoded_body(head: RequestHead, request: http.Request) -> bytes:
    """Return the body of *request*, its content-encoding removed; b"" if it cannot be."""
    body = request.data.content
    if body and "content-encoding" in head.headers:
        try:
            return request.content or b""
        except ValueError:
            # Not readable to us; the provider will say what it thinks of it.
            return b""
    return body or b""


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
