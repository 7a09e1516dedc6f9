"""Answers before the answer (100, 102, 103), what is no answer at all, and what is made one.

RFC 9110, 15.2: any number of interim answers may precede the final one. They are not
handed on: mitmproxy sends its own 100 to a client that expects it, and the rest is advice
on an attempt that the client may never see the answer of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mitmproxy import http
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy.layers.http import HttpEvent

SWITCHING_PROTOCOLS = 101
#: What HTTP/2 clients take as a head. At more they end the connection, with all that is on it.
MAX_LIST_BYTES = 65536 - 100  # of which our status is a part
#: A name that clients take (RFC 9110, 5.6.2), and what they do not take in a value. A line
#: that was folded has it, too (RFC 9112, 5.2).
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-zA-Z]+")
_CONTROL = re.compile(rb"[\r\n\0]+[ \t]*")


@dataclass
class InterimResponse(HttpEvent):
    """An interim answer has come: whoever sent it has the request."""


def is_interim(status: int) -> bool:
    """Say whether another answer follows one of *status* on the same connection."""
    return 100 <= status < 200 and status != SWITCHING_PROTOCOLS


def is_answer(response: http.Response, request: http.Request) -> bool:
    """Say whether *response* can be the final answer to *request*.

    A protocol is switched only where the client asked for that (RFC 9110, 7.8), and never
    over HTTP/2 (RFC 9113, 8.6). A status outside 100 to 599 is invalid (RFC 9110, 15).
    """
    if response.status_code == SWITCHING_PROTOCOLS:
        asked = _protocols(request)
        return bool(asked) and asked >= _protocols(response)
    return 200 <= response.status_code < 600


def in_one_line(response: http.Response) -> None:
    """Put a space in place of what breaks a line (RFC 9110, 5.5).

    Clients end the connection at it, over HTTP/2 with all that is on it.
    """
    fields = response.headers.fields
    if _CONTROL.search(b"".join([value for _, value in fields])):
        response.headers.fields = tuple(
            (name, _CONTROL.sub(b" ", value).strip(b" \t")) for name, value in fields
        )
    if _CONTROL.search(response.data.reason):
        response.data.reason = _CONTROL.sub(b" ", response.data.reason)


def wrong_with(response: http.Response) -> str | None:
    """Return what mitmproxy's validate_inbound_headers refuses in *response*, if anything."""
    try:
        validate_headers(response)
    except ValueError as e:
        return str(e)
    return None


def is_too_long(response: http.Response) -> bool:
    """Say whether the head of *response* is more than an HTTP/2 client takes (RFC 9113, 6.5.2)."""
    sizes = (len(name) + len(value) + 32 for name, value in response.headers.fields)
    return sum(sizes) > MAX_LIST_BYTES


def set_right(response: http.Response) -> None:
    """Leave out of a refusal what is wrong with its head: what it says counts."""
    fields = response.headers.fields
    chunked = any(name.lower() == b"transfer-encoding" for name, _ in fields)
    response.headers.fields = tuple(
        (name, value)
        for name, value in fields
        if _TOKEN.fullmatch(name) and not (chunked and name.lower() == b"content-length")
    )


def _protocols(message: http.Message) -> set[str]:
    named = ",".join(message.headers.get_all("upgrade"))
    return {name.strip().lower() for name in named.split(",") if name.strip()}
