"""Requests of web pages to hosts of the pool: they get no account.

In reverse mode the port is an address of this machine, which every page in the user's
browser can ask: such requests end here, a preflight included. In a tunnel a page talks to
the provider itself. What it sends with a credential of its own passes as it is; without
one it would be ours that it spends.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from mitmproxy import http
from mitmproxy.connection import Client

from account_pool.core import browser
from account_pool.core.browser import Allowed, Host, Sender
from account_pool.core.wrong import without_secrets
from account_pool.providers.request_head import RequestHead
from account_pool.proxy.credential_swap import Masked

logger = logging.getLogger(__name__)

#: Origins that are remembered as said; pages choose them.
_MAX_SAID = 64
_MAX_SHOWN_CHARS = 100


@dataclass(frozen=True, slots=True)
class Refusal:
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
