"""Exchanges a GitHub token for a Copilot token over HTTP.

Decides what is sent and with which patience; what the answer means is
`exchange_answer.py`. It keeps no account and no timer: that is `keeper.py`.
Facts: providers.md, sections 1.2 and 1.3.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import json
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.credentials.editor import EditorHeaders
from account_pool.credentials.exchange_answer import (
    Exchanged,
    ExchangeFailed,
    read_refusal,
    read_token,
)
from account_pool.providers.base import HostRule

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

DEFAULT_TOKEN_URL = "https://api.github.com/copilot_internal/v2/token"  # noqa: S105 - an address
#: Seconds for one exchange, from the connection to the end of the body.
EXCHANGE_TIMEOUT_S = 15.0
MAX_ANSWER_BYTES = 256 * 1024
#: All accounts exchange at once; this only keeps a thousand of them from being a storm.
MAX_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeSettings:
    """How the accounts of one Copilot provider exchange their tokens.

    Attributes:
        token_url: address of the exchange. ValueError when it is neither https nor
            http to this machine.
        hosts: the hosts the user added for this provider.
    """

    token_url: str = DEFAULT_TOKEN_URL
    hosts: tuple[HostRule, ...] = ()

    def __post_init__(self) -> None:
        check_token_url(self.token_url)

    @property
    def is_github(self) -> bool:
        """Say whether an account may be sent to GitHub's usual hosts unasked."""
        return not self.hosts and self.token_url == DEFAULT_TOKEN_URL


def check_token_url(text: str) -> None:
    """Raise ValueError that says why *text* cannot be the address of an exchange."""
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


class CopilotExchange:
    """Exchanges tokens for the accounts of all Copilot providers."""

    def __init__(
        self,
        settings: Mapping[str, ExchangeSettings],
        editor: EditorHeaders,
        *,
        wall_clock: Callable[[], float],
        verify: ssl.SSLContext,
        proxy: str | None = None,
    ) -> None:
        """Take the settings by provider name; *proxy* is the address of an upstream proxy.

        The environment's proxy is not used: it is this very process.
        """
        self._settings = settings
        self._editor = editor
        self._wall_clock = wall_clock
        self._verify = verify
        self._proxy = proxy
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    def handles(self, provider: str) -> bool:
        """Say whether the accounts of *provider* exchange their tokens."""
        return provider in self._settings

    def client_seen(self, headers: Mapping[str, str]) -> None:
        """Remember the editor headers of a client's request (lower-case names)."""
        self._editor.client_seen(headers)

    async def exchange(self, account: Account, github: Secret) -> Exchanged:
        """Return a fresh Copilot token for *account*.

        Raises ExchangeRefused or ExchangeFailed, whose text is for the account's owner.
        """
        settings = self._settings[account.provider]
        async with self._places:
            status, headers, body = await self._ask(settings.token_url, github)
        wall_now = self._wall_clock()
        try:
            payload = json.loads(body)
        except ValueError:
            payload = None
        if status != 200:
            raise read_refusal(status, headers, payload, github, wall_now)
        exchanged = read_token(payload, wall_now, settings.hosts)
        if exchanged.distrusted is not None:
            logger.warning(
                "%s: the exchange names the host %s, which is neither GitHub's nor configured; "
                "ignored. To use it, add it to providers.%s.hosts in accounts.yaml",
                account.key,
                exchanged.distrusted,
                account.provider,
            )
        return exchanged

    def credentials(
        self, account: Account, github: Secret, exchanged: Exchanged
    ) -> dict[str, Credential]:
        """Return the credentials of *account* by kind: the Copilot and the GitHub token.

        Their companions say where they go: "host" for the API and, when the exchange
        names it, "proxy" for completions. The owner's own "host" comes before both.
        """
        companions = dict(account.companions)
        if "host" not in companions:
            if host := exchanged.host or self._usual_host(account):
                companions["host"] = host
            if exchanged.completions_host:
                companions["proxy"] = exchanged.completions_host
        return {
            "copilot": Credential(
                kind="copilot",
                secret=exchanged.token,
                companions=companions,
                expires_at=exchanged.expires_at,
            ),
            "github": Credential(kind="github", secret=github, companions=companions),
        }

    def _usual_host(self, account: Account) -> str | None:
        """Return the host of the account's plan, None: where the client sent it.

        Somebody who configured hosts or another exchange has no accounts at GitHub's
        usual hosts, and a credential must not go there.
        """
        if not self._settings[account.provider].is_github:
            return None
        return f"api.{account.account_type or 'individual'}.githubcopilot.com"

    async def _ask(self, url: str, github: Secret) -> tuple[int, dict[str, str], bytes]:
        """Send the request and return status, headers and body. Raises ExchangeFailed."""
        library = await _import_httpx()
        request_headers = {
            **self._editor.headers(),
            "authorization": f"token {github.reveal()}",
            "accept": "application/json",
        }
        try:
            async with (
                asyncio.timeout(EXCHANGE_TIMEOUT_S),
                self._client(library) as client,
                client.stream("GET", url, headers=request_headers) as response,
            ):
                return response.status_code, dict(response.headers), await _body(response)
        except (TimeoutError, library.TimeoutException):
            raise ExchangeFailed(
                f"{urlsplit(url).hostname} did not answer within {EXCHANGE_TIMEOUT_S:g} s"
            ) from None
        # `from None` and no text of theirs: a protocol error of the library quotes headers.
        except (library.HTTPError, OSError) as error:
            reason = str(error) if isinstance(error, library.ConnectError) else type(error).__name__
            raise ExchangeFailed(f"cannot reach {urlsplit(url).hostname} ({reason})") from None

    def _client(self, library: Any) -> httpx.AsyncClient:
        """Make a client for one exchange: the next is half an hour away."""
        proxy = None if self._proxy is None else library.Proxy(self._proxy)
        transport = library.AsyncHTTPTransport(verify=self._verify, trust_env=False, proxy=proxy)
        client: httpx.AsyncClient = library.AsyncClient(
            transport=transport,
            trust_env=False,
            timeout=EXCHANGE_TIMEOUT_S,
            follow_redirects=False,
        )
        return client


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
            raise ExchangeFailed(f"the exchange answered with more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)
