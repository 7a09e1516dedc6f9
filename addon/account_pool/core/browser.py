"""Who sent a request: a program, or a page in somebody's browser.

Any page can have its browser send requests to this machine. Browsers say so, and scripts
cannot forbid them to: in `Origin` (RFC 6454) and `Sec-Fetch-Site` (W3C Fetch Metadata). A
page that has bound its own name to our address (DNS rebinding) is told by that name, in
`Host`. What says nothing of the kind is no page.

Pure: texts in, a verdict out. What cannot be read came from something that is not known
here, and counts as a page.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from msgspec import Struct

from account_pool.core.meaning import LazyPattern
from account_pool.core.wrong import Wrong, shown

#: Origins of the tools that are known, by scheme; no page of a browser has one of these:
#: Visual Studio Code, its kin and their webviews, and apps made with Electron.
TOOL_SCHEMES = frozenset({"vscode-webview", "vscode-file", "app"})

_ORIGIN = LazyPattern(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[^\s/?#@:,\[\]*]*)"
    r"(?::(?P<port>[0-9]{1,5}))?\Z"
)
_HOST = LazyPattern(r"(?P<host>\[[0-9a-f:.]+\]|[^\s/?#@:,\[\]*]+)(?::(?P<port>[0-9]{1,5})?)?\Z")
_USUAL_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}

#: A name and a port; without a port: any.
Host = tuple[str, int | None]


class Sender(enum.Enum):
    """Who sent a request."""

    #: A program, or a page whose origin the owner has named.
    PROGRAM = enum.auto()
    #: A page that was loaded from where it sends the request.
    SAME_ORIGIN = enum.auto()
    #: Any other page.
    PAGE = enum.auto()


def sender_of(
    origins: Sequence[str], sites: Sequence[str], own: str | None, allowed: Collection[str] = ()
) -> Sender:
    """Say who sent a request.

    Args:
        origins: the values of its Origin headers.
        sites: those of its Sec-Fetch-Site headers.
        own: the origin that the request itself is for; None: no page can be of it.
        allowed: origins that are no page's, as `read_origins` returns them.
    """
    found = {origin_of(text) for text in origins}
    of_tools = tuple(f"{scheme}://" for scheme in TOOL_SCHEMES)
    others = {o for o in found if o is None or not (o in allowed or o.startswith(of_tools))}
    if found and not others:
        return Sender.PROGRAM
    said = {site.strip().lower() for site in sites}
    if others - {own} or not said <= {"same-origin", "none"}:
        return Sender.PAGE
    # `none`: the user's own doing, such as an address that was typed. Libraries for
    # WebSockets send the origin of the server, which a browser would not do alone.
    return Sender.SAME_ORIGIN if "same-origin" in said else Sender.PROGRAM


def origin_of(text: str) -> str | None:
    """Return an origin in its one spelling; "null" is one; None for what is none."""
    text = text.strip().lower()
    if text == "null":
        return text
    found = _ORIGIN.match(text)
    if found is None or not (found["host"] or found["scheme"] in ("file", *TOOL_SCHEMES)):
        return None
    port = int(found["port"]) if found["port"] else None
    return origin(found["scheme"], found["host"], port)


def origin(scheme: str, host: str, port: int | None) -> str:
    """Return the origin of what is at *host*, in its one spelling."""
    shown_port = "" if port is None or port == _USUAL_PORTS.get(scheme) else f":{port}"
    name = host_name(host)
    return f"{scheme}://{f'[{name}]' if ':' in name else name}{shown_port}"


# -- hosts


def is_own_host(named: Iterable[str], own: Collection[str], allowed: Collection[Host]) -> bool:
    """Say whether each of *named*, and one at least, is a name of ours.

    Args:
        named: what the request calls us: Host, :authority.
        own: further names of ours, beside those of this machine.
        allowed: those that the owner has named, as `read_hosts` returns them.
    """
    hosts = [host_of(text) for text in named]
    return bool(hosts) and all(
        host is not None
        and (
            is_loopback(host[0]) or host[0] in own or host in allowed or (host[0], None) in allowed
        )
        for host in hosts
    )


def host_of(text: str) -> Host | None:
    """Return name and port of a Host header; None for what is none."""
    found = _HOST.match(text.strip().lower())
    if found is None:
        return None
    return host_name(found["host"]), int(found["port"]) if found["port"] else None


def host_name(text: str) -> str:
    """Return a name or an address in its one spelling, without brackets."""
    text = text.lower().removesuffix(".")
    try:
        address = ip_address(text.strip("[]"))
    except ValueError:
        return text
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Say whether *host* is this machine, by name or by address."""
    address = address_of(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def stays_here(host: str) -> bool:
    """Say whether what is sent to *host* stays on this machine, whatever a name server says.

    Stricter than `is_loopback`: for what may travel unencrypted.
    """
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=1024)
def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that *host* is, in brackets or not; None if it is a name."""
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


# -- what the owner allows


class Allowed(Struct, frozen=True):
    """What the owner has named: origins that may use the accounts, names of this proxy."""

    origins: frozenset[str] = frozenset()
    hosts: frozenset[Host] = frozenset()


def read_origins(text: str) -> frozenset[str]:
    """Return the origins in a comma list. Raises Wrong."""
    return frozenset(map(_named_origin, _items(text)))


def _named_origin(item: str) -> str:
    found = origin_of(item.removesuffix("/"))
    if found == "null":
        raise Wrong("null is the origin of every file and every sandbox", "name an origin")
    if found is None:
        raise Wrong(
            f"{shown(item)} is not an origin",
            "write scheme://host or scheme://host:port, such as http://localhost:3000",
        )
    return found


def read_hosts(text: str) -> frozenset[Host]:
    """Return the hosts in a comma list. Raises Wrong."""
    return frozenset(map(_named_host, _items(text)))


def _named_host(item: str) -> Host:
    found = host_of(item)
    if found is None:
        raise Wrong(f"{shown(item)} is not a host", "write host or host:port, such as llm.lan:8080")
    return found


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
