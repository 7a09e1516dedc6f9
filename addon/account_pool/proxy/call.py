"""One client request that is the pool's business, as it stands when its head is read."""

from __future__ import annotations

from dataclasses import dataclass

from mitmproxy import http

from account_pool.core.lease import Facts
from account_pool.providers.base import LocalAnswer, Provider, RequestHead, Route
from account_pool.proxy.destination import Destination
from account_pool.proxy.wire import Masked


@dataclass(slots=True, eq=False)
class Call:
    """A request to a pool host.

    Attributes:
        provider: whose API it is.
        destination: where its connection goes, as checked when the head was read.
        address: host and port of the flow at that moment. If another addon changes
            them afterwards, the destination must be checked again.
        route: whose business it is.
        masked: what the client sent where its credential may be.
        head: the request as the provider sees it, without the body.
        denied: why no account may serve it, as the answer to give; None otherwise.
    """

    provider: Provider
    destination: Destination
    address: tuple[str, int]
    route: Route
    masked: Masked
    head: RequestHead
    denied: LocalAnswer | None = None

    def facts(self, request: http.Request) -> Facts:
        """Return what the pool must know, now that the body is there."""
        head = with_body(self.head, request)
        provider = self.provider
        return Facts(provider=provider.name, kind=provider.kind(head), model=provider.model(head))


def read_head(request: http.Request, destination: Destination) -> RequestHead:
    """Return *request* as a provider sees it, without its body."""
    headers: dict[str, str] = {}
    for name, value in request.headers.fields:
        # First value of each, as a provider would read it.
        headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    path, _, query = request.data.path.decode("latin-1").partition("?")
    return RequestHead(
        method=request.data.method.decode("latin-1").upper(),
        host=destination.name,
        port=destination.port,
        path=path,
        query=query,
        headers=headers,
    )


def with_body(head: RequestHead, request: http.Request) -> RequestHead:
    """Return *head* with the body of *request*, its content-encoding removed."""
    body = request.data.content
    if not body:
        return head
    if "content-encoding" in head.headers:
        try:
            body = request.content or b""
        except ValueError:
            # Not readable to us; the provider will say what it thinks of it.
            return head
    return RequestHead(
        method=head.method,
        host=head.host,
        port=head.port,
        path=head.path,
        query=head.query,
        headers=head.headers,
        body=body,
    )
