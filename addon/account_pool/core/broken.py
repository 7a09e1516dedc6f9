"""How an attempt ended without an answer, and how often it may be tried again."""

from __future__ import annotations

import re
from enum import Enum


class Broken(Enum):
    """How an attempt ended without an answer."""

    #: no connection could be made: the request cannot have run
    CONNECT = "connect"
    #: nor will there be one: a certificate is not trusted, a proxy refuses. Wrong passwords
    #: are counted there, and lock their owner out
    UNREACHABLE = "unreachable"
    #: nor could it be asked for: this machine is short of something. Says nothing of an account
    SHORT = "short"
    #: a kept connection was closed, or the stream refused, before an answer
    STALE = "stale"
    #: the request was sent on a fresh connection: it may have run
    MAYBE_RAN = "maybe ran"
    #: the server said, or it is known, that the request did not run
    NOT_RUN = "not run"
    #: nothing came for long: it may have run
    SILENT = "silent"


#: Tries in all, by how they ended. Each of them avoids all connections that there were when
#: the one before it was sent; whoever refuses streams may do so on several in a row.
TRIES = {
    Broken.CONNECT: 2,
    Broken.UNREACHABLE: 1,
    Broken.SHORT: 2,
    Broken.STALE: 6,
    Broken.MAYBE_RAN: 2,
    Broken.NOT_RUN: 6,
    Broken.SILENT: 2,
}


#: A kept HTTP/1.1 connection that the server closes so soon after a request was sent was
#: closed before it arrived: what is on the way needs a round trip, work takes longer.
STALE_WITHIN_S = 0.5
#: That a connection is no more, in mitmproxy's words and ours. What follows a colon may be
#: the server's.
_CLOSED = re.compile(r"(?:[\w/]+ ){1,3}(?:closed|ended|disconnected)\b")


def how_broken(message: str, *, kept: bool, answered: bool, after_s: float) -> Broken:
    """Say whether a request whose attempt broke may have run.

    Args:
        message: mitmproxy's, which names what the peer did.
        kept: it went out on a connection that was used before, or idle.
        answered: something of an answer had come.
        after_s: seconds since it was sent.

    Only what the server closed can have been closed before the request arrived. A stream that
    is reset was there: only REFUSED_STREAM says that it was not processed (RFC 9113, 8.7).
    Whatever cannot be read is an answer.
    """
    if "REFUSED_STREAM" in message:
        return Broken.STALE
    closed = _CLOSED.match(message) is not None
    if kept and not answered and closed and after_s < STALE_WITHIN_S:
        return Broken.STALE
    return Broken.MAYBE_RAN


#: What another try would not change, in mitmproxy's words (11.0 to 12.3). Of what a proxy on
#: the way says, the statuses that speak of a moment are left out: 408, 425, 429, 5xx.
_FOR_GOOD = re.compile(
    r"refused HTTP CONNECT request: (?!408|425|429)[1-4]\d\d\b"
    r"|Certificate verify failed"
    r"|cannot agree on a TLS version"
    r"|does not speak TLS"
)
#: What this process, or this machine, has no more of (EMFILE, ENFILE), as systems say it.
_SHORT = re.compile(r"Too many open files|\[Errno 2[34]\]")


def how_unconnected(message: str) -> Broken:
    """Say why there is no connection, and so whether another try may bring one.

    Args:
        message: mitmproxy's, which names what is in the way.
    """
    if _SHORT.search(message):
        return Broken.SHORT
    return Broken.UNREACHABLE if _FOR_GOOD.search(message) else Broken.CONNECT


#: What its owner can do about it, by what the message holds.
_REMEDIES = (
    (
        re.compile(r"verify failed.*(self.signed|unable to (get|verify)|issuer)"),
        "if a company's own CA signs here, name it in SSL_CERT_FILE (account-pool run and "
        "serve) or with ssl_verify_upstream_trusted_ca",
    ),
    (re.compile("refused HTTP CONNECT request: 407"), "see the option upstream_auth"),
    (re.compile("agree on a TLS version"), "see the option tls_version_server_min"),
    (_SHORT, "raise the limit of open files with ulimit -n"),
)


def remedy(message: str) -> str | None:
    """Return what helps where there is no connection because of *message*, if it is known."""
    return next((text for pattern, text in _REMEDIES if pattern.search(message)), None)
