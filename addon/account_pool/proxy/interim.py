"""Answers before the answer (100, 102, 103), and what is no answer at all.

RFC 9110, 15.2: any number of interim answers may precede the final one. They are not
handed on: mitmproxy sends its own 100 to a client that expects it, and the rest is advice
on an attempt that the client may never see the answer of.
"""

from __future__ import annotations

from dataclasses import dataclass

from mitmproxy import http
from mitmproxy.proxy.layers.http import HttpEvent

SWITCHING_PROTOCOLS = 101


@dataclass
class InterimAnswer(HttpEvent):
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


def _protocols(message: http.Message) -> set[str]:
    named = ",".join(message.headers.get_all("upgrade"))
    return {name.strip().lower() for name in named.split(",") if name.strip()}
