"""One HTTP request of our own: to exchange or refresh a token, to learn a project.

Not through our own proxy, whatever the environment says, but through the upstream
proxy the user told mitmproxy of. Bounded in time and size; redirects are answers. Its
errors are readable and hold nothing of what was sent or received.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import json
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx

MAX_ANSWER_BYTES = 256 * 1024

#: What the library tells when the first byte of a request is about to leave.
_LEAVES = ".send_request_headers.started"


class HttpFailed(Exception):
    """There was no answer, or too much of one; the text says why, for the account's owner.

    Attributes:
        sent: the request has left, or some of it: it may have been done.
    """

    def __init__(self, text: str, *, sent: bool = False) -> None:
        super().__init__(text)
        self.sent = sent


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """What came back.

    Attributes:
        headers: by lower-case name.
        body: complete, its content-encoding removed.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    def json(self) -> Any:
        """Return the body as JSON, None when it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """How this proxy reaches others by itself.

    Attributes:
        trust: makes what is trusted, when it is first needed.
        proxy: address of the user's upstream proxy. The environment's is not used: it
            is this very process.
    """

    trust: Callable[[], ssl.SSLContext]
    proxy: str | None = None

    async def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes | None = None,
        timeout_s: float,
        answer_s: float | None = None,
        sending: Callable[[], object] | None = None,
    ) -> HttpAnswer:
        """Send one request, *timeout_s* seconds from the connection to the end of the body.

        Args:
            answer_s: seconds for the answer, from the moment at which the request leaves;
                *timeout_s* is for the time before it then.
            sending: called at that moment. What it raises is raised, and nothing is sent.

        Raises HttpFailed.
        """
        library = await _import_httpx()
        sent = False

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            nonlocal sent
            # The tunnel through an upstream proxy is made by a request, too.
            asked = info.get("request")
            if sent or not event.endswith(_LEAVES) or getattr(asked, "method", b"") == b"CONNECT":
                return
            if sending is not None:
                sending()
            sent = True
            if answer_s is not None:
                limit.reschedule(asyncio.get_running_loop().time() + answer_s)

        longest_s = max(timeout_s, answer_s or 0.0)
        try:
            async with (
                asyncio.timeout(timeout_s) as limit,
                self._client(library, longest_s) as client,
                client.stream(
                    method, url, headers=headers, content=content, extensions={"trace": trace}
                ) as response,
            ):
                body = await _body(response)
                return HttpAnswer(
                    status=response.status_code, headers=dict(response.headers), body=body
                )
        except (TimeoutError, library.TimeoutException):
            within_s = answer_s if sent and answer_s is not None else timeout_s
            raise HttpFailed(
                f"{urlsplit(url).hostname} did not answer within {within_s:g} s", sent=sent
            ) from None
        # `from None` and no text of theirs: a protocol error of the library quotes headers.
        except (library.HTTPError, OSError) as error:
            reason = str(error) if isinstance(error, library.ConnectError) else type(error).__name__
            raise HttpFailed(
                f"cannot reach {urlsplit(url).hostname} ({reason})", sent=sent
            ) from None

    def _client(self, library: Any, timeout_s: float) -> httpx.AsyncClient:
        """Make a client for one request: the next is half an hour away."""
        proxy = None if self.proxy is None else library.Proxy(self.proxy)
        transport = library.AsyncHTTPTransport(verify=self.trust(), trust_env=False, proxy=proxy)
        client: httpx.AsyncClient = library.AsyncClient(
            transport=transport, trust_env=False, timeout=timeout_s, follow_redirects=False
        )
        return client


def check_token_url(text: str) -> None:
    """Raise ValueError that says why a token must not be sent to the address *text*."""
    try:
        url = urlsplit(text)
        host, _port = url.hostname, url.port
    except ValueError:
        raise ValueError("it is not an address") from None
    if not host or url.username is not None or url.fragment:
        raise ValueError("it is not an address")
    if url.scheme == "http" and not _is_loopback(host):
        raise ValueError("a token would travel unencrypted")
    if url.scheme not in ("http", "https"):
        raise ValueError("it is not an https address")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _import_httpx() -> Any:
    """Import the HTTP client when it is first needed, off the loop: it takes 0.1 s."""
    library = await asyncio.to_thread(importlib.import_module, "httpx")
    # It logs each request at INFO; the account has its own line (`keeper.py`).
    for name in ("httpx", "httpcore"):
        log = logging.getLogger(name)
        if log.level == logging.NOTSET:
            log.setLevel(logging.WARNING)
    return library


async def _body(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise HttpFailed(f"the answer has more than {MAX_ANSWER_BYTES} bytes", sent=True)
    return bytes(body)
