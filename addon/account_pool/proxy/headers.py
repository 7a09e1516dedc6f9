"""The head of a message: its fields, looked up in one step, and whether it is a response.

mitmproxy's `http.Headers` spells every field in lower case for every question, and mitmproxy
asks a dozen questions of each message it sends (is it chunked? how long? is the connection
kept?), most of them about fields that are not there.

Any number of interim responses (100, 102, 103) may precede the final one (RFC 9110, 15.2).
They are not handed on: mitmproxy sends its own 100 to a client that expects it, and the rest is
advice on an attempt whose response the client may never see.
"""

from __future__ import annotations

import re
from functools import lru_cache
from operator import itemgetter
from typing import Any

from mitmproxy import http
from mitmproxy.net.http.validate import validate_headers

Fields = tuple[tuple[bytes, bytes], ...]

_NAME, _VALUE = itemgetter(0), itemgetter(1)
SWITCHING_PROTOCOLS = 101
#: What HTTP/2 clients take as a head. At more they end the connection, with all that is on it.
MAX_LIST_BYTES = 65536 - 100  # of which our status is a part
#: A name that clients take (RFC 9110, 5.6.2), and what they do not take in a value. A line
#: that was folded has it, too (RFC 9112, 5.2).
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-zA-Z]+")
_CONTROL = re.compile(rb"[\r\n\0]+[ \t]*")


@lru_cache(maxsize=512)
def _key(name: str | bytes) -> bytes:
    """Return how *name* stands in an index. The same are asked for, with each message."""
    return (name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name).lower()


class IndexedHeaders(http.Headers):
    """Headers with an index of their fields, made anew when the fields have changed."""

    _indexed: Fields | None = None
    #: the value of each name, of several the last
    _index: dict[bytes, bytes]
    #: all of them where a name stands more than once
    _several: dict[bytes, list[bytes]]

    @classmethod
    def of(cls, fields: Fields) -> IndexedHeaders:
        """Make headers of *fields*, which were checked before."""
        headers = cls.__new__(cls)
        headers.fields = fields
        return headers

    def _make_index(self) -> None:
        fields = self.fields
        names = [*map(bytes.lower, map(_NAME, fields))]
        self._index, self._several = dict(zip(names, map(_VALUE, fields), strict=True)), {}
        if len(self._index) < len(names):
            for name, (_, value) in zip(names, fields, strict=True):
                self._several.setdefault(name, []).append(value)
        self._indexed = fields

    def last(self, name: bytes) -> bytes | None:
        """Return the value of the last field *name*, a lower-case name; None: there is none."""
        if self._indexed is not self.fields:
            self._make_index()
        return self._index.get(name)

    def get_all(self, name: str | bytes) -> list[str]:
        if self._indexed is not self.fields:
            self._make_index()
        key = _key(name)
        values = self._several.get(key) or [self._index[key]] if key in self._index else []
        return [value.decode("utf-8", "surrogateescape") for value in values]

    def get(self, name: str | bytes, default: Any = None) -> Any:
        if self._indexed is not self.fields:
            self._make_index()
        value = self._index.get(key := _key(name))
        if value is None:
            return default
        if self._several:
            value = b", ".join(self._several[key])
        return value.decode("utf-8", "surrogateescape")

    def __contains__(self, name: object) -> bool:
        if self._indexed is not self.fields:
            self._make_index()
        return isinstance(name, str | bytes) and _key(name) in self._index

    def __bytes__(self) -> bytes:
        return b"\r\n".join([*map(b": ".join, self.fields), b""])


# -- valid and interim responses


def is_interim(status: int) -> bool:
    """Say whether another response follows one of *status* on the same connection."""
    return 100 <= status < 200 and status != SWITCHING_PROTOCOLS


def wrong_with(
    response: http.Response, request: http.Request, *, over_http2: bool, validates: bool
) -> tuple[str, str] | None:
    """Return why *response* is no valid one to *request*, and what helps; None: it is valid.

    What can be mended in its head is, so that its client takes it.

    Args:
        over_http2: whether its client gets it over HTTP/2.
        validates: whether mitmproxy's option validate_inbound_headers is on.
    """
    if not _is_response(response, request):
        return "", ""
    if over_http2 and _is_too_long(response):
        return "its head is too long", ""
    _unfold_fields(response)
    wrong = _refused_in(response) if validates else None
    if wrong is None:
        return None
    if response.status_code >= 400:
        _drop_invalid_fields(response)
        return None
    return wrong, "; see the option validate_inbound_headers"


def _is_response(response: http.Response, request: http.Request) -> bool:
    """Say whether *response* can be the final response to *request*.

    A protocol is switched only where the client asked for that (RFC 9110, 7.8), and never
    over HTTP/2 (RFC 9113, 8.6). A status outside 100 to 599 is invalid (RFC 9110, 15).
    """
    if response.status_code == SWITCHING_PROTOCOLS:
        asked = _protocols(request)
        return bool(asked) and asked >= _protocols(response)
    return 200 <= response.status_code < 600


def _unfold_fields(response: http.Response) -> None:
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


def _refused_in(response: http.Response) -> str | None:
    """Return what mitmproxy's validate_inbound_headers refuses in *response*, if anything."""
    try:
        validate_headers(response)
    except ValueError as e:
        return str(e)
    return None


def _is_too_long(response: http.Response) -> bool:
    """Say whether the head of *response* is more than an HTTP/2 client takes (RFC 9113, 6.5.2)."""
    sizes = (len(name) + len(value) + 32 for name, value in response.headers.fields)
    return sum(sizes) > MAX_LIST_BYTES


def _drop_invalid_fields(response: http.Response) -> None:
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
