"""The copy of a request that is sent, and the mask on the one that is shown.

The credential of an account exists only on the copy made here at the moment of
sending. What mitmproxy shows, logs and saves (`flow.request`) carries a placeholder
that names the account, also in place of what the client itself sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from urllib.parse import unquote_plus, urlencode

from mitmproxy import http
from mitmproxy.net.http import url
from msgspec import Struct
from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.browser import is_loopback
from account_pool.core.credential import Credential
from account_pool.core.lease import Lease
from account_pool.core.sessions import Pins
from account_pool.providers.base import CannotSwap, Origin, Provider, RequestHead, Swap
from account_pool.proxy.headers import Fields, IndexedHeaders

INSECURE = "the pool sends no credential while ssl_insecure is set; trust the CA instead"
#: What stands before the name of an account in a placeholder.
PLACEHOLDER = "pool:"
#: Masked whatever the provider, and never sent with an account's credential: cookies
#: (Cloudflare's among them) are handed out per client and account.
ALWAYS_MASKED = frozenset({b"cookie"})
_PROTOCOLS = b"sec-websocket-protocol"
_KEY_PROTOCOL = b"openai-insecure-api-key."
_SCHEMES = frozenset({b"basic", b"bearer", b"token"})


class Outgoing(Struct, frozen=True):
    """What is sent upstream, and where to. `repr()` shows no credential."""

    request: http.Request
    address: tuple[str, int]
    tls: bool

    def __repr__(self) -> str:
        return f"Outgoing(address={self.address!r}, tls={self.tls!r})"


class Masked(Struct):
    """What the client sent where its credential may be, kept out of sight, and of `repr()`.

    Attributes:
        headers: the original values by lower-case name, in order.
        path: the original path with query, if the query held a credential.
        shown_path: what stands in its place.
        names: lower-case names of the headers that are masked.
        query: names of the query parameters that are.
        fields: the fields of the request after masking. While they are still the same
            object no addon has touched them, and *places* tells where the masks stand.
        places: (index, lower-case name) of each masked field.
    """

    headers: dict[bytes, list[bytes]]
    path: bytes | None
    shown_path: bytes
    names: frozenset[bytes]
    query: tuple[str, ...]
    fields: Fields
    places: list[tuple[int, bytes]]

    def __repr__(self) -> str:
        return f"Masked(names={self.names!r}, query={self.query!r})"


class Places(Struct, frozen=True):
    """Where a credential may stand on a request to a host that several providers share.

    The client's credential for one of them must not be shown or sent with another's.
    """

    credential_headers: frozenset[bytes]
    credential_query: tuple[str, ...]

    @classmethod
    def of(cls, providers: Iterable[Provider]) -> Places:
        """Return every place of *providers*."""
        providers = tuple(providers)
        return cls(
            frozenset().union(*(p.credential_headers for p in providers)),
            tuple(dict.fromkeys(name for p in providers for name in p.credential_query)),
        )


def mask(request: http.Request, places_of: Provider | Places, name: str) -> Masked:
    """Replace every credential on *request* by a placeholder that says *name*.

    Returns the originals. Companions of the credential (organisation, project) are
    masked with it.
    """
    names, query = _masked_names(places_of.credential_headers), places_of.credential_query
    fields: list[tuple[bytes, bytes]] = []
    places: list[tuple[int, bytes]] = []
    originals: dict[bytes, list[bytes]] = {}
    for header, value in request.headers.fields:
        lower, shown = header.lower(), value
        if lower in names:
            places.append((len(fields), lower))
            shown = _placeholder(value, name)
        elif _KEY_PROTOCOL in value and lower == _PROTOCOLS:
            shown = _masked_protocols(value, name)
        if shown is not value:
            originals.setdefault(lower, []).append(value)
        fields.append((header, shown))
    masked_fields = tuple(fields)
    request.headers.fields = masked_fields
    path = None
    if query and b"?" in request.data.path:
        masked_path = _map_query(request.data.path, query, PLACEHOLDER + name)
        if masked_path != request.data.path:
            path, request.data.path = request.data.path, masked_path
    return Masked(originals, path, request.data.path, names, query, masked_fields, places)


@lru_cache(maxsize=64)
def _masked_names(of_provider: frozenset[bytes]) -> frozenset[bytes]:
    return of_provider | ALWAYS_MASKED


def _masked_protocols(value: bytes, name: str) -> bytes:
    """Mask a key that a browser offers as a WebSocket subprotocol (OpenAI's Realtime API)."""
    shown = _KEY_PROTOCOL + (PLACEHOLDER + name).encode()
    return b",".join(
        item.partition(_KEY_PROTOCOL)[0] + shown if _KEY_PROTOCOL in item else item
        for item in value.split(b",")
    )


def _drop_key_protocols(fields: list[tuple[bytes, bytes]]) -> None:
    """Leave out what stands for a key among the subprotocols."""
    for i in reversed(range(len(fields))):
        header, value = fields[i]
        if _KEY_PROTOCOL in value and header.lower() == _PROTOCOLS:
            kept = [item for item in value.split(b",") if _KEY_PROTOCOL not in item]
            fields[i : i + 1] = [(header, b",".join(kept).strip())] if kept else []


def rename(request: http.Request, masked: Masked, name: str) -> None:
    """Let the placeholders on *request* name another account."""
    if masked.headers:
        fields = list(request.headers.fields)
        masked.places = list(_places(request, masked))
        for i, _ in masked.places:
            header, value = fields[i]
            fields[i] = (header, _placeholder(value, name))
        masked.fields = request.headers.fields = tuple(fields)
    if masked.path is not None:
        request.data.path = _map_query(request.data.path, masked.query, PLACEHOLDER + name)
        masked.shown_path = request.data.path


def outgoing(
    request: http.Request,
    swap: Swap,
    masked: Masked,
    returned: Mapping[bytes, bytes] = MappingProxyType({}),
) -> http.Request:
    """Return the copy of *request* to send with an account's credential on it.

    Headers keep their order and spelling; the account's stand where the client's stood.
    Raises CannotSwap.

    Args:
        returned: masked headers of the client that this account issued, by lower-case name.
    """
    put = {**dict(swap.headers), **returned}
    fields = list(request.headers.fields)
    gone: list[int] = []
    for i, lower in _places(request, masked, swap):
        value = put.pop(lower, None)
        if value is None:
            gone.append(i)
        else:
            fields[i] = (fields[i][0], value)
    for i in reversed(gone):
        del fields[i]
    if _PROTOCOLS in masked.headers:
        _drop_key_protocols(fields)
    fields.extend(put.items())
    path = request.data.path
    # What is masked and not the account's own is another provider's of the same host.
    drop_query = swap.drop_query if masked.path is None else (*swap.drop_query, *masked.query)
    if drop_query and b"?" in path:
        path = _map_query(path, drop_query, None)
    if swap.query:
        path += (b"&" if b"?" in path else b"?") + urlencode(swap.query).encode()
    if swap.edit:
        _edit(fields, swap)
    copy = _copy(request, tuple(fields), path)
    if swap.path is not None or swap.body is not None:
        _reshape(copy, swap)
    if swap.origin is not None:
        _redirect(copy, swap.origin)
    return copy


def _edit(fields: list[tuple[bytes, bytes]], swap: Swap) -> None:
    """Change headers whose value follows from the client's; several become one."""
    for name, new_value in swap.edit:
        at = [i for i, (header, _) in enumerate(fields) if header.lower() == name]
        value = new_value(b", ".join(fields[i][1] for i in at) if at else None)
        if value is not None and at:
            first = at.pop(0)
            fields[first] = (fields[first][0], value)
        elif value is not None:
            fields.append((name, value))
        for i in reversed(at):
            del fields[i]


def _reshape(copy: http.Request, swap: Swap) -> None:
    """Put the account's part into path and body; the body keeps its content-encoding."""
    path, mark, query = copy.data.path.decode("latin-1").partition("?")
    if swap.body is not None:
        if copy.stream or copy.data.content is None:
            raise CannotSwap("the request is too large to rewrite for an account")
        try:
            body = copy.content or b""
        except ValueError:
            raise CannotSwap("the request has a content-encoding that cannot be read") from None
        changed = swap.body(path, body)
        if changed is not body:
            # Encodes it as before, and sets content-length.
            copy.content = changed
    if swap.path is not None:
        copy.data.path = (swap.path(path) + mark + query).encode("latin-1")


def restored(request: http.Request, masked: Masked) -> http.Request:
    """Return the copy of *request* to send as the client sent it."""
    left = {name: list(values) for name, values in masked.headers.items()}
    fields: list[tuple[bytes, bytes]] = []
    for header, value in request.headers.fields:
        originals = left.get(header.lower())
        # Only our placeholder is taken back: another addon may have set a value of its own.
        ours = PLACEHOLDER.encode() in value
        if ours and originals:
            fields.append((header, originals.pop(0)))
        elif not ours or header.lower() not in masked.names:
            fields.append((header, value))
        # Else an addon remembered it from another request (stickyauth): it goes nowhere.
    path = request.data.path
    if masked.path is not None and path == masked.shown_path:
        path = masked.path
    return _copy(request, tuple(fields), path)


def _places(
    request: http.Request, masked: Masked, swap: Swap | None = None
) -> Iterable[tuple[int, bytes]]:
    """Return where credentials stand on *request*: (index, lower-case name), in order."""
    names = masked.names
    if swap is not None:
        names = names.union(swap.drop, (name for name, _ in swap.headers))
    if request.headers.fields is masked.fields and names == masked.names:
        return masked.places
    return [
        (i, lower)
        for i, (header, _) in enumerate(request.headers.fields)
        if (lower := header.lower()) in names
    ]


def _copy(request: http.Request, fields: Fields, path: bytes) -> http.Request:
    """Copy without mitmproxy's state round trip, which would copy the body as well."""
    data = request.data
    copy = http.Request.__new__(http.Request)
    copy.data = http.RequestData.__new__(http.RequestData)
    copy.data.__dict__.update(data.__dict__)
    copy.data.headers = headers = IndexedHeaders.__new__(IndexedHeaders)
    headers.fields = fields
    copy.data.path = path
    return copy


def _redirect(request: http.Request, origin: Origin) -> None:
    authority = url.hostport("https", origin.host, origin.port).encode("ascii")
    request.data.host, request.data.port = origin.host, origin.port
    request.data.scheme = b"https"
    if request.data.authority:
        request.data.authority = authority
    if b"Host" in request.headers:
        request.headers[b"Host"] = authority


def _placeholder(value: bytes, name: str) -> bytes:
    """Keep the scheme (`Bearer`, `token`) so that the header still reads as one."""
    scheme, space, _ = value.partition(b" ")
    prefix = scheme + b" " if space and scheme.lower() in _SCHEMES else b""
    return prefix + (PLACEHOLDER + name).encode()


def _map_query(path: bytes, names: Iterable[str], value: str | None) -> bytes:
    """Set the query parameters *names* of *path* to *value*, or drop them (None)."""
    before, _, query = path.partition(b"?")
    kept: list[bytes] = []
    for part in query.split(b"&"):
        key, equals, _ = part.partition(b"=")
        # The key may be percent-encoded; a provider would still read it as a key.
        if unquote_plus(key.decode("ascii", "replace")) not in names:
            kept.append(part)
        elif value is not None and equals:
            kept.append(key + b"=" + value.encode())
    return before + (b"?" + b"&".join(kept) if kept else b"")


def owners_of_tokens(provider: Provider, head: RequestHead, pins: Pins) -> dict[str, AccountKey]:
    """Return who issued the tokens *head* returns, by header; only those that are known."""
    return {
        name: owner
        for name in provider.issued_headers
        if (token := head.headers.get(name))
        and (owner := pins.owner(provider.name, token)) is not None
    }


class Swaps:
    """How the credentials of accounts go on the wire, made once per credential."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._swaps: dict[AccountKey, tuple[Credential, Swap]] = {}

    def forget(self, key: AccountKey | None = None) -> None:
        """Forget what was made for *key*, or for all."""
        if key is None:
            self._swaps.clear()
        else:
            self._swaps.pop(key, None)

    def outgoing(
        self,
        request: http.Request,
        masked: Masked,
        head: RequestHead,
        provider: Provider,
        lease: Lease,
        *,
        insecure: bool,
    ) -> Outgoing:
        """Return what to send of *request* for *lease*, which its placeholders name from here on.

        Raises CannotSwap. *insecure*: upstream certificates are not verified.
        """
        swap = self.of(provider, lease)
        if swap.by_path:
            swap = swap.for_path(head.path)
        rename(request, masked, str(lease.key))
        origin = swap.origin
        if origin is None:
            address, tls = (request.host, request.port), request.scheme == "https"
        elif insecure and not is_loopback(origin.host):
            raise CannotSwap(INSECURE)  # No certificate proves it.
        else:
            address, tls = (origin.host, origin.port), True
        returned = self.returned(provider, head, lease) if provider.issued_headers else {}
        return Outgoing(outgoing(request, swap, masked, returned), address, tls)

    def of(self, provider: Provider, lease: Lease) -> Swap:
        """Return how the credential of *lease* goes on the wire."""
        known = self._swaps.get(lease.key)
        if known is not None and known[0] is lease.credential:
            return known[1]
        swap = provider.swap(lease.account, lease.credential)
        if swap.origin is None and (host := lease.account.companions.get("host")):
            swap = replace(swap, origin=Origin.parse(host))
        self._swaps[lease.key] = (lease.credential, swap)
        return swap

    def returned(self, provider: Provider, head: RequestHead, lease: Lease) -> dict[bytes, bytes]:
        """Return the tokens of a request that the account of *lease* issued, by header."""
        return {
            name.encode(): head.headers[name].encode("latin-1")
            for name, owner in owners_of_tokens(provider, head, self._pins).items()
            if owner == lease.key
        }
