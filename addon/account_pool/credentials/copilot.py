"""Exchanges a GitHub token for a Copilot token over HTTP.

Decides what is sent and with which patience; what the response means is `copilot_token.py`.
It keeps no account and no timer: that is `account_credential.py`. GitHub wants to know which
editor asks. The honest answer is the client that is using the proxy, so its headers are
remembered; until one was seen, the version the user wrote in `pool_editor_version`, else this
project's own name. No client is imitated.
https://github.com/microsoft/vscode-copilot-chat, `copilotToken.ts`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.credentials.copilot_token import Exchanged, read_refusal, read_token
from account_pool.credentials.errors import ExchangeFailed
from account_pool.credentials.http import OWN_NAME, Http, HttpFailed, HttpResponse, check_token_url
from account_pool.providers.base import HostRule

logger = logging.getLogger(__name__)

#: What an exchange of a real editor carries beside its credential, lower case.
EDITOR_HEADERS = (
    "editor-version",
    "editor-plugin-version",
    "user-agent",
    "copilot-integration-id",
    "x-github-api-version",
)
#: A version or a product name; anything else is not repeated to GitHub.
_USUAL_VALUE = re.compile(r"[\x20-\x7e]{1,200}\Z")


class EditorHeaders:
    """Remembers the editor last seen. One object for all accounts; it survives reloads.

    Attributes:
        version: value of `pool_editor_version`, such as "vscode/1.104.0"; "" for none.
    """

    def __init__(self, version: str = "") -> None:
        self.version = version
        self._seen: Mapping[str, str] = {}

    def client_seen(self, headers: Mapping[str, str]) -> None:
        """Remember the editor headers of a client's request (lower-case names).

        A request without `editor-version` is not an editor's and changes nothing:
        command line clients do not exchange tokens.
        """
        if _USUAL_VALUE.match(headers.get("editor-version", "")):
            self._seen = {
                name: headers[name]
                for name in EDITOR_HEADERS
                if _USUAL_VALUE.match(headers.get(name, ""))
            }

    def headers(self) -> dict[str, str]:
        """Return the headers an exchange takes, lower-case names."""
        own = {"user-agent": OWN_NAME, "editor-version": self.version.strip() or OWN_NAME}
        # A client that has no user-agent of its own gets ours: GitHub requires one.
        return {**own, **self._seen}


DEFAULT_TOKEN_URL = "https://api.github.com/copilot_internal/v2/token"  # noqa: S105 - an address
#: Seconds for one exchange, from the connection to the end of the body.
EXCHANGE_TIMEOUT_S = 15.0
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


class CopilotExchange:
    """Exchanges tokens for the accounts of all Copilot providers."""

    def __init__(
        self,
        settings: Mapping[str, ExchangeSettings],
        editor: EditorHeaders,
        *,
        wall_clock: Callable[[], float],
        http: Http,
    ) -> None:
        """Take the settings by provider name."""
        self._settings = settings
        self._editor = editor
        self._wall_clock = wall_clock
        self._http = http
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    def use(self, settings: Mapping[str, ExchangeSettings]) -> None:
        """Take other settings by provider name; the next exchange goes by them."""
        self._settings = settings

    def is_github(self, provider: str) -> bool:
        """Say whether accounts of *provider* exchange their tokens at GitHub, or not at all."""
        return provider not in self._settings or self._settings[provider].is_github

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
            response = await self._ask(settings.token_url, github)
        wall_now = self._wall_clock()
        if response.status != 200:
            raise read_refusal(response.status, response.headers, response.json(), github, wall_now)
        exchanged = read_token(response.json(), wall_now, settings.hosts)
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
        self, account: Account, github: Secret, exchanged: Exchanged | None
    ) -> dict[str, Credential]:
        """Return the credentials of *account* by kind: the Copilot and the GitHub token.

        Their companions say where they go: "host" for the API and, when the exchange
        names it, "proxy" for completions. The owner's own "host" comes before both.
        Without an exchange there is only the GitHub token, for tools that send that.
        """
        companions = dict(account.companions)
        if "host" not in companions:
            if host := (exchanged and exchanged.host) or self._usual_host(account):
                companions["host"] = host
            if exchanged is not None and exchanged.completions_host:
                companions["proxy"] = exchanged.completions_host
        raw = Credential(kind="github", secret=github, companions=companions)
        if exchanged is None:
            return {"github": raw}
        return {
            "copilot": Credential(
                kind="copilot",
                secret=exchanged.token,
                companions=companions,
                expires_at=exchanged.expires_at,
            ),
            "github": raw,
        }

    def _usual_host(self, account: Account) -> str | None:
        """Return the host of the account's plan, None: where the client sent it.

        Somebody who configured hosts or another exchange has no accounts at GitHub's
        usual hosts, and a credential must not go there.
        """
        if not self._settings[account.provider].is_github:
            return None
        return f"api.{account.account_type or 'individual'}.githubcopilot.com"

    async def _ask(self, url: str, github: Secret) -> HttpResponse:
        """Send the request and return the response. Raises ExchangeFailed."""
        headers = {
            **self._editor.headers(),
            "authorization": f"token {github.reveal()}",
            "accept": "application/json",
        }
        try:
            return await self._http.ask("GET", url, headers=headers, timeout_s=EXCHANGE_TIMEOUT_S)
        except HttpFailed as error:
            raise ExchangeFailed(str(error), error.retry_after_s) from None
