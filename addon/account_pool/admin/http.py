"""A request to the proxy itself, its response, and the one error. Knows no mitmproxy."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType
from urllib.parse import unquote

from msgspec import Struct, field


class ApiError(Exception):
    """A request to the admin API that is refused.

    Attributes:
        status: HTTP status of the response.
        code: for programs, such as `unknown_account`.
        message: for people; repeats nothing of the request.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers

    def as_dict(self) -> dict[str, object]:
        """Return the body of the response, to be encoded as JSON."""
        return {"error": {"code": self.code, "message": self.message}}


#: Where the admin pages are, through the proxy.
ADMIN_HOST = "pool.mitm.it"
#: Longest body that is read; an account with a login of its own has some KiB.
MAX_BODY_BYTES = 64 * 1024

#: Message and extension of ASGI (3.0, "Extensions") by which the application hands over a body
#: that goes on: `chunks` is pulled at the pace of the client, and closed when it leaves.
STREAM = "account_pool.response.stream"

#: Names and values as they came, in order.
Fields = tuple[tuple[bytes, bytes], ...]


class AdminRequest(Struct, kw_only=True, eq=False):
    """One request to the proxy itself. Its representation shows no secret.

    Attributes:
        target: path and query, as sent.
        headers: as sent; with HTTP/2 without the pseudo-headers.
        authority: of the address it was sent to (`:authority`, or an absolute address);
            "" where that had none.
        tls: whether it came over TLS (within a tunnel to `pool.mitm.it`).
        peer: address of the client; "" if it came through the proxy to its own port, which
            hides the client.
        address: address and port of this machine that it was sent to.
        body: the body so far, MAX_BODY_BYTES at most.
        of_worker: another worker of this proxy asks, of its own accord or for a client that may.
    """

    method: str
    target: str
    headers: Fields
    authority: str = ""
    tls: bool = False
    peer: str
    address: tuple[str, int]
    body: bytearray = field(default_factory=bytearray)
    of_worker: bool = False
    too_long: bool = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.method} {self.target})"

    def take(self, data: bytes) -> None:
        """Keep more of the body, as long as it is not too long."""
        self.too_long = self.too_long or len(self.body) + len(data) > MAX_BODY_BYTES
        if self.too_long:
            self.body.clear()
        else:
            self.body += data

    @property
    def path(self) -> str:
        """The path, decoded once."""
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> str:
        """The part behind the question mark, as sent."""
        return self.target.partition("?")[2]

    def for_workers(self) -> str:
        """Return what `AdminServer.answer_worker` is asked to do the same in another worker."""
        body = bytes(self.body).decode("utf-8", "replace")
        return json.dumps({"method": self.method, "target": self.target, "body": body})

    def values(self, name: bytes) -> list[str]:
        """Return the values of header *name* (lower case), one for each line."""
        return [v.decode("latin-1") for n, v in self.headers if n.lower() == name]


class AdminResponse(Struct, frozen=True):
    """A complete response, or the head of one that goes on.

    *chunks* are what comes after *body*, as it comes; None: nothing.
    """

    status: int
    headers: Fields
    body: bytes
    chunks: AsyncGenerator[bytes] | None = None


def error_response(error: ApiError) -> AdminResponse:
    """Return the response to a request that is refused with *error*."""
    own = ((name.encode(), value.encode()) for name, value in error.headers.items())
    headers = ((b"content-type", b"application/json"), *own)
    return AdminResponse(error.status, headers, json.dumps(error.as_dict()).encode())


#: Before the pool has started.
STARTING = "starting"
CLOSED = error_response(ApiError(503, STARTING, "the account pool has not started"))
#: Something of ours has failed; the log says what.
FAILED = error_response(ApiError(500, "internal", "internal error in the account pool"))
