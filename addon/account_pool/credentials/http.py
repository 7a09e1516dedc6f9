"""One HTTP request of our own: to exchange or refresh a token, to learn a project.

Not through our own proxy, whatever the environment says, but through the upstream
proxy the user told mitmproxy of. Bounded in time and size; redirects are responses. Its
errors are readable and hold nothing of what was sent or received.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import re
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from http.client import responses
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from msgspec import Struct, field

from account_pool.core import reset_hints
from account_pool.core.browser import stays_here
from account_pool.core.credential import Secret
from account_pool.core.steps import Broken, how_unconnected, remedy
from account_pool.core.wrong import without_secrets
from account_pool.version import __version__

if TYPE_CHECKING:
    import httpx

MAX_RESPONSE_BYTES = 256 * 1024
#: Seconds until another try where somebody has to act first: on a password, a certificate.
BARRED_WAIT_S = 300.0

#: The library's trace event for the first byte of a request.
_LEAVES = ".send_request_headers.started"
#: A deadline that fires this late, in seconds, was not waited for: the process stood still.
LATE_S = 1.0
#: How much longer is waited then for what may have arrived meanwhile, in seconds.
AGAIN_S = 5.0

#: What we call ourselves.
OWN_NAME = f"mitmproxy-account-pool/{__version__}"

#: How long to wait after a 429 that does not say, in seconds.
LIMITED_S = 30.0
#: A wait we were asked for is believed up to here: a token cannot do without for longer.
LONGEST_RETRY_AFTER_S = 3600.0
MAX_QUOTED_CHARS = 300


class HttpFailed(Exception):
    """There was no response, or too much of one; the text says why, for the account's owner.

    Attributes:
        sent: the request has left, or some of it: it may have been done.
        retry_after_s: seconds until another try is worth it; None where it may be soon.
    """

    def __init__(
        self, text: str, *, sent: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(text)
        self.sent = sent
        self.retry_after_s = retry_after_s


class ExchangeRefused(Exception):
    """The server will not take this token; trying again soon changes nothing."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class ExchangeFailed(Exception):
    """An exchange or a refresh did not work this time.

    Attributes:
        retry_after_s: seconds the server asked to wait; None if it named none.
        is_wait: nothing was tried: that is exactly how long to wait.
        passes: it may work the next time; False: only the owner can cure it.
    """

    def __init__(
        self,
        text: str,
        retry_after_s: float | None = None,
        *,
        is_wait: bool = False,
        passes: bool = True,
    ) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        self.is_wait = is_wait
        self.passes = passes


class HttpResponse(Struct, frozen=True, kw_only=True):
    """What came back.

    Attributes:
        headers: by lower-case name.
        body: its content-encoding removed; complete, or a complete JSON object.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def __repr__(self) -> str:
        return f"HttpResponse(status={self.status!r})"  # the others may hold tokens

    def json(self) -> Any:
        """Return the body as JSON, None when it is none."""
        return _json(self.body)

    def fields(self) -> dict[str, Any]:
        """Return the body as a JSON object, {} when it is none."""
        value = _json(self.body)
        return value if isinstance(value, dict) else {}


class _Deadline:
    """Ends what runs within *limit* at a time, but not before what has arrived was read.

    A process that was stopped (Ctrl-Z, a debugger, a frozen container) finds both when it
    goes on: the response, and that its deadline has passed.
    """

    def __init__(self, limit: asyncio.Timeout) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._due: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Set it to so many seconds from now."""
        self.cancel()
        self._due = self._loop.call_at(self._loop.time() + seconds, self._expire)

    def cancel(self) -> None:
        """Take it back."""
        if self._due is not None:
            self._due.cancel()

    def _expire(self) -> None:
        assert self._due is not None
        if self._loop.time() - self._due.when() >= LATE_S:
            self.set(AGAIN_S)
        else:
            self._limit.reschedule(self._loop.time())


@asynccontextmanager
async def _within(seconds: float) -> AsyncGenerator[_Deadline, None]:
    """As `asyncio.timeout`, with a `_Deadline`. Raises TimeoutError."""
    async with asyncio.timeout(None) as limit:
        deadline = _Deadline(limit)
        deadline.set(seconds)
        try:
            yield deadline
        finally:
            deadline.cancel()


class ProxyGate:
    """Lets requests to an upstream proxy through one by one, until it accepts or refuses us.

    Each account has requests of its own: three wrong passwords may lock their owner out.

    Attributes:
        accepted: a request got through.
    """

    def __init__(self) -> None:
        self.accepted = False
        self._refused = ""
        self._until = 0.0
        #: by event loop: a login is refreshed in a thread of its own
        self._first: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            WeakKeyDictionary()
        )

    @asynccontextmanager
    async def enter(self, *, guarded: bool) -> AsyncGenerator[None, None]:
        """Wait until a request may be made. Raises HttpFailed if the proxy has refused us."""
        if self.accepted or not guarded:
            yield
            return
        async with self._first.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            left_s = self._until - time.monotonic()
            if left_s > 0:
                raise HttpFailed(self._refused, retry_after_s=left_s)
            yield

    def refused(self, text: str) -> None:
        """The proxy does not take our password."""
        self.accepted, self._refused, self._until = False, text, time.monotonic() + BARRED_WAIT_S


class Http(Struct, frozen=True, kw_only=True):
    """How this proxy reaches others by itself.

    Attributes:
        trust: makes what is trusted, when it is first needed.
        trust_for: the same for one host, where we have a certificate to show to it; None
            where we have not.
        proxy: address of the user's upstream proxy. The environment's is not used: it
            is this very process.
        proxy_auth: what is sent to it as `Proxy-Authorization`.
        gate: whether it accepts us; shared by all who ask through it.
    """

    trust: Callable[[], ssl.SSLContext]
    trust_for: Callable[[str], ssl.SSLContext | None] = lambda _host: None
    proxy: str | None = None
    proxy_auth: str | None = None
    gate: ProxyGate = field(default_factory=ProxyGate)

    def __repr__(self) -> str:
        return f"Http(proxy={self.proxy!r})"  # no password

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
    ) -> HttpResponse:
        """Send one request, *timeout_s* seconds from the connection to the end of the body.

        A body that is a complete JSON object is a response, whatever becomes of the connection.

        Args:
            answer_s: seconds for the response, from the moment at which the request leaves;
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
                deadline.set(answer_s)

        try:
            async with (
                _within(timeout_s) as deadline,
                self._client(library, url) as client,
                client.stream(
                    method, url, headers=headers, content=content, extensions={"trace": trace}
                ) as response,
            ):
                self.gate.accepted = True
                body = await _body(response)
                return HttpResponse(
                    status=response.status_code, headers=dict(response.headers), body=body
                )
        except (TimeoutError, library.TimeoutException):
            within_s = answer_s if sent and answer_s is not None else timeout_s
            raise HttpFailed(
                f"{urlsplit(url).hostname} did not answer within {within_s:g} s", sent=sent
            ) from None
        # `from None` and no text of theirs: a protocol error of the library quotes headers.
        except (library.HTTPError, library.InvalidURL, OSError) as error:
            raise self._failed(library, url, error, sent=sent) from None

    @asynccontextmanager
    async def _client(self, library: Any, url: str) -> AsyncGenerator[httpx.AsyncClient, None]:
        """Make a client for one request: the next is half an hour away."""
        proxy = None
        if self.proxy is not None:
            address = urlsplit(self.proxy)
            proxy = library.Proxy(
                self.proxy,
                ssl_context=self._trust(address.hostname) if address.scheme == "https" else None,
                headers={"Proxy-Authorization": self.proxy_auth} if self.proxy_auth else None,
            )
        transport = library.AsyncHTTPTransport(
            verify=self._trust(urlsplit(url).hostname), trust_env=False, proxy=proxy
        )
        client = library.AsyncClient(
            transport=transport, trust_env=False, timeout=None, follow_redirects=False
        )
        async with self.gate.enter(guarded=proxy is not None), client:
            yield client

    def _trust(self, host: str | None) -> ssl.SSLContext:
        return self.trust_for(host or "") or self.trust()

    def _failed(self, library: Any, url: str, error: Exception, *, sent: bool) -> HttpFailed:
        """Return *error* of the library in mitmproxy's words, as clients get it too."""
        message = type(error).__name__
        if isinstance(error, library.ProxyError):
            # Its reason phrase is the proxy's, which may repeat the password.
            status = re.match(r"\d{3}\b", str(error))
            if status is not None:
                proxy = urlsplit(self.proxy or "")
                message = (
                    f"Upstream proxy {proxy.hostname}:{proxy.port} refused HTTP CONNECT request: "
                    f"{status[0]} {responses.get(int(status[0]), '')}".rstrip()
                )
        elif isinstance(error, library.ConnectError):
            message = _plain(str(error))
        help_ = remedy(message)
        reason = f"{message}; {help_}" if help_ else message
        text = f"cannot reach {urlsplit(url).hostname} ({reason})"
        if how_unconnected(message) is not Broken.UNREACHABLE:
            return HttpFailed(text, sent=sent)
        if "CONNECT request: 407" in message:
            self.gate.refused(text)
        return HttpFailed(text, sent=sent, retry_after_s=BARRED_WAIT_S)


def check_token_url(text: str) -> None:
    """Raise ValueError that says why a token must not be sent to the address *text*."""
    try:
        url = urlsplit(text)
        host, _port = url.hostname, url.port
    except ValueError:
        raise ValueError("it is not an address") from None
    if not host or url.username is not None or url.fragment:
        raise ValueError("it is not an address")
    if url.scheme == "http" and not stays_here(host):
        raise ValueError("a token would travel unencrypted")
    if url.scheme not in ("http", "https"):
        raise ValueError("it is not an https address")


def _plain(text: str) -> str:
    """Return what Python says of a connection as mitmproxy says it."""
    inside = re.sub(r"^\[SSL[^]]*\] | \(_ssl\.c:\d+\)$", "", text)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return inside.replace("certificate verify failed", "Certificate verify failed", 1)
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return "The remote server does not speak TLS"
    if "PROTOCOL_VERSION" in text or "UNSUPPORTED_PROTOCOL" in text:
        return "The remote server and mitmproxy cannot agree on a TLS version"
    return inside


async def _import_httpx() -> Any:
    """Import the HTTP client when it is first needed, off the loop: it takes 0.1 s."""
    library = await asyncio.to_thread(importlib.import_module, "httpx")
    # It logs each request at INFO; the account has its own line (`acquire.py`).
    for name in ("httpx", "httpcore"):
        log = logging.getLogger(name)
        if log.level == logging.NOTSET:
            log.setLevel(logging.WARNING)
    return library


def _json(body: bytes | bytearray) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


async def _body(response: httpx.Response) -> bytes:
    """Return the body; of one that is a JSON object, what comes after it is not waited for.

    A connection that stays open, or breaks, after the last brace has delivered everything.
    """
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            raise HttpFailed(f"the response has more than {MAX_RESPONSE_BYTES} bytes", sent=True)
        if chunk.rstrip().endswith(b"}") and isinstance(_json(body), dict):
            break
    return bytes(body)


# -- what a response says


def quoted(text: str, secrets: Iterable[Secret | None], max_chars: int = MAX_QUOTED_CHARS) -> str:
    """Return what a server says as one short line, without *secrets* and what looks like one."""
    for secret in secrets:
        if secret is not None:
            text = secret.masked(text)
    return one_line(without_secrets(text))[:max_chars]


def one_line(text: str) -> str:
    """Return *text* without line breaks and other characters that do not print."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def seconds_in(value: Any, longest_s: float) -> float | None:
    """Return the duration that a response has as *value*; None where it is not plausible.

    RFC 6749, section 5.1, has a number of seconds; some send it as text.
    """
    seconds = reset_hints.seconds(value)
    return seconds if seconds and seconds <= longest_s else None


def retry_after(headers: Mapping[str, str], wall_now: float, status: int) -> float | None:
    """Return the seconds to wait that the response names, None if there are none.

    Retry-After (RFC 9110, section 10.2.3) first, then GitHub's own
    `x-ratelimit-reset`, seconds since the epoch, when nothing remains. A 429 is to be
    waited after whatever it names.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        wait_s: float | None = float(value)  # however long it is
    else:
        wait_s = reset_hints.retry_after(value, wall_now)
    if not value and headers.get("x-ratelimit-remaining") == "0":
        wait_s = reset_hints.instant(headers.get("x-ratelimit-reset"), wall_now)
    if wait_s is None:
        return LIMITED_S if status == 429 else None
    return min(wait_s, LONGEST_RETRY_AFTER_S)
