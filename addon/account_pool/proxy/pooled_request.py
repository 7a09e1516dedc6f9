"""One client request that is the pool's business, as it stands when its head is read.

Where it really goes is the name its upstream connection is verified against. Never the Host
header: a credential follows the connection, not what a client claims.

Requests of web pages get no account (`Pages`). In reverse mode the port is an address of this
machine, which every page in the user's browser can ask: such requests end here, a preflight
included. In a tunnel a page talks to the provider itself. What it sends with a credential of
its own passes as it is; without one it would be ours that it spends.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from urllib.parse import unquote

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.net.http import url
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.mode_specs import ReverseMode
from msgspec import Struct
from msgspec.structs import replace

from account_pool.core import browser
from account_pool.core.account import AccountKey
from account_pool.core.accounts import Accounts
from account_pool.core.browser import Allowed, Host, Sender, address_of, is_loopback
from account_pool.core.json_values import NOT_READ
from account_pool.core.lease import RequestFacts
from account_pool.core.sessions import Pins
from account_pool.core.wrong import without_secrets
from account_pool.providers import sessions
from account_pool.providers.base import (
    HTTPS_PORT,
    LocalResponse,
    Provider,
    RequestHead,
    Route,
    decoded_body,
    is_websocket,
)
from account_pool.providers.registry import HostIndex
from account_pool.providers.token_forms import hidden
from account_pool.proxy.credential_swap import (
    INSECURE,
    Masked,
    Places,
    mask,
    owners_of_tokens,
)
from account_pool.proxy.options import Settings

logger = logging.getLogger(__name__)

#: What is shorter is no credential that anybody would take.
MIN_TOKEN_BYTES = 8
#: The longest name of a model that is told apart, longer ones are cut: clients choose it, and it
#: is kept with cooldowns and sessions.
MAX_MODEL_CHARS = 200
#: Address and port of one end of a connection.
End = tuple[str, int]

_HTTP_PORT = 80
_NO_SOCKET = "the account pool serves this over HTTP, where a limited request can be replayed"
_NO_TLS = "the pool sends no credential over plain HTTP; use https"
_REMOTE = (
    "the pool serves this machine only; set pool_allow_remote or proxyauth to let other hosts in"
)
#: Origins that are remembered as said; pages choose them.
_MAX_SAID = 64
_MAX_SHOWN_CHARS = 100


# -- where a request goes


class Destination(Struct, frozen=True):
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
        return address_of(self.name) is None


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


class PooledRequest(Struct, eq=False):
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
        denied: why no account may serve it, as the response to give; None otherwise.
        only: the one account that may serve it; None for any.
    """

    provider: Provider
    hosts: HostIndex
    destination: Destination
    address: tuple[str, int]
    route: Route
    masked: Masked
    head: RequestHead
    denied: LocalResponse | None = None
    only: AccountKey | None = None

    def choose(self, user: str, accounts: Accounts) -> str | None:
        """Have one of the accounts serve it that the client has named as its *user* name.

        Returns why none can, None if one may.
        """
        provider = self.provider.name
        keys = [key for key in map(_key_of, user.split(",")) if key is not None]
        self.only = next((key for key in keys if key.provider == provider), None)
        shown, where = hidden(user), "the user name in the proxy's URL"
        if self.only is None:
            why = f"{where} allows {shown} alone, which is no account of {provider}"
        elif accounts.find(self.only) is None:
            why = f"{where} names {shown}, and the pool has no account {hidden(str(self.only))}"
        else:
            return None
        self.denied = self.denied or self.provider.refusal(403, why, None)
        return why

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

    def facts(self, request: http.Request, user: str = "") -> RequestFacts:
        """Return what the pool must know, now that the body is there.

        *user* is the name that its client gave to `proxyauth`.
        """
        head, provider = self.head, self.provider
        _take_body(head, request)
        if provider.model is not None:
            model = provider.model(head)
        else:
            model = None if head.json is None else head.json.model
        told = provider.conversation(head)
        if told.session is not None and not told.session.startswith(sessions.HASHED):
            told = told._replace(session=self._without_credential(told.session))
        return RequestFacts(
            provider=provider.name,
            kind=provider.kind(head) if provider.kind else provider.token_kind,
            path=head.path,
            model=model[:MAX_MODEL_CHARS] if model else None,
            socket=head.method == "GET" and is_websocket(head),
            conversation=told,
            body_bytes=len(request.raw_content or b""),
            only=self.only,
            agent=head.headers.get("user-agent", ""),
            user=user,
        )

    def bare_facts(self, user: str = "") -> RequestFacts:
        """Return what the head alone tells, of a request that is refused."""
        agent = self.head.headers.get("user-agent", "")
        name, kind = self.provider.name, self.provider.token_kind
        return RequestFacts(provider=name, kind=kind, path=self.head.path, agent=agent, user=user)

    def _without_credential(self, session: str) -> str:
        """Return *session* without the client's credential, which some send as an id as well."""
        text = session.encode(errors="replace")
        for values in self.masked.headers.values():
            for value in values:
                token = value.rpartition(b" ")[2]
                if len(token) >= MIN_TOKEN_BYTES and token in text:
                    return sessions.hashed(session)
        return session


def _key_of(name: str) -> AccountKey | None:
    try:
        return AccountKey.parse(name)
    except ValueError:
        return None


def user_of(header: str) -> str | None:
    """Return the accounts that a Proxy-Authorization names as its user; None if it names none.

    That is `provider/label`, or several with commas between them: the password says nothing.
    """
    scheme, _, credentials = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(credentials.strip(), validate=True).decode()
    except ValueError:
        return None
    # Not every client decodes what stands in an address.
    user = unquote(text.partition(":")[0])
    return user if "/" in user and user.isprintable() else None


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


def _take_body(head: RequestHead, request: http.Request) -> None:
    """Give *head* the body of *request*, its content-encoding removed; b"" if it cannot be."""
    body = request.data.content
    if body and "content-encoding" in head.headers:
        try:
            body = request.content
        except ValueError:
            # Not readable to us; the provider will say what it thinks of it.
            body = None
    head.body = body or b""
    try:
        head.json = decoded_body(head.body) if body else None
    except NOT_READ:
        head.json = None


# -- pages


class Refusal(Struct, frozen=True):
    """Why a request is not served: status and reason."""

    status: int
    why: str


class Pages:
    """Tells requests of pages, and says in the log which were refused, once for each origin."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def refused(
        self,
        request: http.Request,
        head: RequestHead,
        client: Client,
        allowed: Allowed,
        *,
        reverse: bool,
    ) -> Refusal | None:
        """Return why *request* is given no account; None where no page has to do with it.

        *reverse*: the client has the proxy for a server.
        """
        if reverse and not _names_us(request, head, client, allowed.hosts):
            return self._tell(
                Refusal(
                    421,
                    "the Host header is no name of this proxy; "
                    "use localhost, or name the host in pool_allow_hosts",
                ),
                "a request with a Host of somebody else's",
            )
        if not ("origin" in head.headers or "sec-fetch-site" in head.headers):
            return None
        sent_origins = [*_values(request, b"origin")]
        sites = [*_values(request, b"sec-fetch-site")]
        own = _own_origin(request, head, client, reverse=reverse)
        sender = browser.sender_of(sent_origins, sites, own, allowed.origins)
        # What was loaded through us is at home here; a provider's own page is not our tool.
        if sender is Sender.PROGRAM or (reverse and sender is Sender.SAME_ORIGIN):
            return None
        known = [found for text in sent_origins if (found := browser.origin_of(text))]
        of = without_secrets(known[0])[:_MAX_SHOWN_CHARS] if known else "unknown origin"
        return self._tell(
            Refusal(
                403,
                f"web pages get no account of the pool (this one: {of}); "
                "pool_allow_origins can name an origin that may",
            ),
            f"a request of a web page ({of})",
        )

    def _tell(self, refusal: Refusal, what: str) -> Refusal:
        if what not in self._said and len(self._said) < _MAX_SAID:
            self._said.add(what)
            logger.warning(f"account-pool: {what} was given no account ({refusal.status})")
        return refusal


def has_credential(request: http.Request, masked: Masked) -> bool:
    """Say whether a page has sent a credential of its own."""
    return bool(masked.headers) or masked.path is not None or "cookie" in request.headers


def _names_us(
    request: http.Request, head: RequestHead, client: Client, hosts: frozenset[Host]
) -> bool:
    named = [*_values(request, b"host")]
    if request.data.authority:
        named.append(request.data.authority.decode("latin-1"))
    # The provider's own name comes with keep_host_header, or from an /etc/hosts: no page of
    # anybody else can have it.
    own = {browser.host_name(client.sockname[0]), head.host}
    return browser.is_own_host(named, own, hosts)


def _own_origin(
    request: http.Request, head: RequestHead, client: Client, *, reverse: bool
) -> str | None:
    """Return the origin of a page that was loaded from where *request* goes."""
    if not reverse:
        # Only what comes by TLS, or from this machine, is ever served.
        scheme = "http" if head.port == 80 or browser.is_loopback(head.host) else "https"
        return browser.origin(scheme, head.host, head.port)
    named = request.data.authority.decode("latin-1") or next(_values(request, b"host"), "")
    host = browser.host_of(named)
    return None if host is None else browser.origin("https" if client.tls else "http", *host)


def _values(request: http.Request, name: bytes) -> Iterator[str]:
    for header, value in request.data.headers.fields:
        if header.lower() == name:
            yield value.decode("latin-1")


# -- whose a request is


class Recognizer:
    """Tells which requests are the pool's business, and whom they are refused to.

    Attributes:
        hosts: of the providers that have accounts.
        seen: told the headers of each request, by provider name (editor versions).
        own_ends: of the connections the proxy has to servers now: address and port it is
            connected from, and to.
    """

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self.hosts = HostIndex([])
        self.seen: dict[str, Callable[[Mapping[str, str]], None]] = {}
        self.own_ends: set[tuple[End, End]] = set()
        self._pages = Pages()
        #: where credentials may stand, by the names of the providers that share a host
        self._shared: dict[tuple[str, ...], Places] = {}

    def set_providers(self, providers: Sequence[Provider]) -> None:
        """Recognise requests to hosts of *providers*; the first that wants one has it."""
        self.hosts = HostIndex(providers)
        self._shared.clear()

    def claims(self, name: str, port: int) -> bool:
        """Say whether connections to this host are the pool's business."""
        return bool(self.hosts.find(name, port))

    def recognize(
        self, request: http.Request, destination: Destination, client: Client, settings: Settings
    ) -> PooledRequest | None:
        """Return *request* as one of the pool's, its credentials masked; None if it is none."""
        providers = self.hosts.find(destination.name, destination.port)
        if not providers and destination.port == _HTTP_PORT and not destination.tls:
            # A slip: refused in words rather than sent on in the clear.
            providers = self.hosts.find(destination.name, HTTPS_PORT)
        if not providers:
            return None
        head = read_head(request, destination)
        provider, route = self._whose(providers, head)
        page = None
        reverse = isinstance(client.proxy_mode, ReverseMode)
        if reverse or "origin" in head.headers or "sec-fetch-site" in head.headers:
            page = self._pages.refused(request, head, client, settings.allowed, reverse=reverse)
        if page is None and (seen := self.seen.get(provider.name)):
            seen(head.headers)
        places = providers[0] if len(providers) == 1 else self._places(providers)
        masked = mask(request, places, provider.name)
        denied = None
        if page is not None:
            if reverse:
                route = Route.POOL  # nothing of it passes, not even to be refused there
            elif has_credential(request, masked):
                route = Route.PASS
            denied = provider.refusal(page.status, page.why, None)
        elif route is not Route.PASS:
            denied = self._denied(provider, head, destination, client, settings)
        return PooledRequest(
            provider=provider,
            hosts=self.hosts,
            destination=destination,
            address=(request.host, request.port),
            route=route,
            masked=masked,
            head=head,
            denied=denied,
        )

    def mask(self, request: http.Request, destination: Destination) -> None:
        """Mask *request*, which is recorded, as `recognize` does one that comes."""
        if providers := self.hosts.find(destination.name, destination.port):
            provider, _ = self._whose(providers, read_head(request, destination))
            places = providers[0] if len(providers) == 1 else self._places(providers)
            mask(request, places, provider.name)

    def current(self, call: PooledRequest) -> Provider | None:
        """Return the provider of *call* as accounts.yaml describes it now.

        None when its host is not that provider's any more: the file was edited while the
        request waited.
        """
        name = call.provider.name
        found = self.hosts.find(call.destination.name, call.destination.port)
        return next((provider for provider in found if provider.name == name), None)

    def is_local(self, client: Client) -> bool:
        """Say whether *client* is a program of this machine, and not the proxy itself.

        A client of another machine may have the proxy connect to its own port: what comes
        in there has an address of this machine.
        """
        return not self.is_own(client) and is_loopback(client.peername[0])

    def is_own(self, client: Client) -> bool:
        """Say whether *client* is the proxy itself, connected to its own port.

        Both ends tell: a client may come from a port that the proxy uses to a server as well.
        """
        return (client.peername[:2], client.sockname[:2]) in self.own_ends

    def _whose(self, providers: tuple[Provider, ...], head: RequestHead) -> tuple[Provider, Route]:
        """Return which of *providers*, who share a host, a request is for: the first to want it."""
        for candidate in providers:
            if head.method == "POST" and head.path in candidate.posts:
                return candidate, Route.POOL
            wanted = candidate.route(head)
            if wanted is Route.PASS and candidate.issued_headers:
                wanted = self._route_without_tokens(candidate, head)
            if wanted is not Route.PASS:
                return candidate, wanted
        return providers[0], Route.PASS

    def _route_without_tokens(self, provider: Provider, head: RequestHead) -> Route:
        """Say whose business a request is that may return a token of an account: ours, too."""
        if not owners_of_tokens(provider, head, self._pins):
            return Route.PASS
        kept = {n: value for n, value in head.headers.items() if n not in provider.issued_headers}
        return provider.route(replace(head, headers=kept))

    def _places(self, sharing: tuple[Provider, ...]) -> Places:
        """Return where credentials may stand on a request to a host of all in *sharing*."""
        names = tuple([p.name for p in sharing])
        known = self._shared.get(names)
        if known is None:
            known = self._shared[names] = Places.of(sharing)
        return known

    def _denied(
        self,
        provider: Provider,
        head: RequestHead,
        destination: Destination,
        client: Client,
        settings: Settings,
    ) -> LocalResponse | None:
        """Return why no account may serve a request; None if one may."""
        if not (destination.tls or destination.local):
            return provider.refusal(400, _NO_TLS, None)
        if settings.insecure and not destination.local:
            return provider.refusal(400, INSECURE, None)
        if not settings.remote and not self.is_local(client):
            return provider.refusal(403, _REMOTE, None)
        if "upgrade" in head.headers and is_websocket(head):
            refused = settings.websockets == "refuse"
            if refused or (not settings.websockets and provider.avoids_websocket(head)):
                return provider.refusal(426, _NO_SOCKET, None)
        return None
