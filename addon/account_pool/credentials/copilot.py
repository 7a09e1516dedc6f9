"""The token exchange of Copilot: what GitHub is asked and answers, and what clients get of it.

It keeps no account and no timer: that is `keeper.py`. GitHub wants to know which
editor asks. The honest answer is the client that is using the proxy, so its headers are
remembered; until one was seen, the version the user wrote in `pool_editor_version`, else this
project's own name. No client is imitated.

The fields are those that microsoft/vscode-copilot-chat reads
(`src/platform/authentication/common/copilotToken.ts`). Nothing of the response is trusted
further than needed: the host of an account only inside GitHub's own domains or the ones the
user configured, times only when they are plausible, texts only in one short line.

A client that exchanges its own GitHub token gets a placeholder of the form of a real Copilot
token and the feature flags of the first account that has one. What identifies an account, and
every real token, stays here: only fields known to be harmless are repeated, the rest is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.core.meaning import LazyPattern
from account_pool.credentials.http import (
    OWN_NAME,
    ExchangeFailed,
    ExchangeRefused,
    Http,
    HttpFailed,
    HttpResponse,
    check_token_url,
    one_line,
    quoted,
    retry_after,
    seconds_in,
)
from account_pool.credentials.sources import token_in
from account_pool.providers.base import HostRule, LocalResponse

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
_USUAL_VALUE = LazyPattern(r"[\x20-\x7e]{1,200}\Z")


DEFAULT_TOKEN_URL = "https://api.github.com/copilot_internal/v2/token"  # noqa: S105 - an address
#: Seconds for one exchange, from the connection to the end of the body.
EXCHANGE_TIMEOUT_S = 15.0
#: All accounts exchange at once; this only keeps a thousand of them from being a storm.
MAX_AT_ONCE = 32


class ExchangeSettings(Struct, frozen=True, kw_only=True):
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
    """Exchanges tokens for the accounts of all Copilot providers; it survives reloads."""

    def __init__(
        self,
        settings: Mapping[str, ExchangeSettings],
        *,
        editor_version: str = "",
        wall_clock: Callable[[], float],
        http: Http,
    ) -> None:
        """Take the settings by provider name, and `pool_editor_version`: "vscode/1.104.0"."""
        self._settings = settings
        self._editor_version = editor_version.strip() or OWN_NAME
        #: of the editor that was seen last
        self._seen: Mapping[str, str] = {}
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

    def editor_headers(self) -> dict[str, str]:
        """Return the headers an exchange takes, lower-case names."""
        # A client that has no user-agent of its own gets ours: GitHub requires one.
        return {"user-agent": OWN_NAME, "editor-version": self._editor_version, **self._seen}

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
            **self.editor_headers(),
            "authorization": f"token {github.reveal()}",
            "accept": "application/json",
        }
        try:
            return await self._http.ask("GET", url, headers=headers, timeout_s=EXCHANGE_TIMEOUT_S)
        except HttpFailed as error:
            raise ExchangeFailed(str(error), error.retry_after_s) from None


# -- what GitHub answers. Values in, values out.

#: GitHub's own homes of the Copilot API:
#: https://docs.github.com/en/copilot/reference/copilot-allowlist-reference
GITHUB_HOSTS = tuple(HostRule(name, subdomains=True) for name in ("githubcopilot.com", "ghe.com"))

#: Seconds until the refresh when the response names none: the value GitHub usually names.
USUAL_REFRESH_IN_S = 1500.0
#: Beyond a day a time in the response is a mistake or a broken clock.
LONGEST_LIFE_S = 86400.0
#: Refresh so long before the named time, and never sooner than the second value.
REFRESH_EARLY_S, SHORTEST_REFRESH_S = 60.0, 30.0


class Exchanged(Struct, frozen=True, kw_only=True):
    """A Copilot token and what came with it.

    Attributes:
        token: the Copilot token.
        expires_at: wall clock, seconds since the epoch, by our own clock.
        renew_in_s: seconds from now after which to exchange again.
        host: host[:port] of this account's API, None when the response names none that
            can be trusted.
        completions_host: the same for completions, which live beside it.
        distrusted: the API endpoint that was ignored, for a warning.
        for_clients: the parts of the response that a client may see.
    """

    token: Secret
    expires_at: float
    renew_in_s: float
    host: str | None
    completions_host: str | None = None
    distrusted: str | None = None
    for_clients: Mapping[str, Any] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(host={self.host!r}, expires_at={self.expires_at})"


def read_token(payload: Any, wall_now: float, hosts: tuple[HostRule, ...]) -> Exchanged:
    """Read a successful response. Raises ExchangeFailed when it has no token in it."""
    token = token_in(payload.get("token")) if isinstance(payload, dict) else None
    if token is None:
        raise ExchangeFailed("the exchange answered 200 without a Copilot token")
    refresh_in_s = seconds_in(payload.get("refresh_in"), LONGEST_LIFE_S) or USUAL_REFRESH_IN_S
    trusted = (*GITHUB_HOSTS, *hosts)
    host, distrusted = _host(payload.get("endpoints"), "api", trusted)
    completions_host, _ = _host(payload.get("endpoints"), "proxy", trusted)
    return Exchanged(
        token=token,
        expires_at=_expiry(payload.get("expires_at"), refresh_in_s, wall_now),
        renew_in_s=max(SHORTEST_REFRESH_S, refresh_in_s - REFRESH_EARLY_S),
        host=host,
        completions_host=completions_host,
        distrusted=distrusted,
        for_clients=shown_to_clients(payload, token.reveal(), api_is_trusted=host is not None),
    )


def read_refusal(
    status: int, headers: Mapping[str, str], payload: Any, github: Secret, wall_now: float
) -> ExchangeRefused | ExchangeFailed:
    """Say what a response other than 200 means. Header names in lower case."""
    message, notification = _reason(payload, github)
    described = f": {message}" if message else ""
    if notification:
        described += f" ({notification})"
    retry_after_s = retry_after(headers, wall_now, status)
    if status == 404:
        return ExchangeRefused(
            "404: this token cannot be exchanged: it is a PAT or of another app; "
            "log in with an app that has Copilot access",
            status,
        )
    if status == 401:
        return ExchangeRefused(f"401: GitHub does not accept this token{described}", status)
    # A REST limit of GitHub has the status of a refusal and says nothing about Copilot.
    limited = status == 403 and not notification and "rate limit" in message.lower()
    passing = status in (408, 425, 429) or status >= 500 or notification == "server_error"
    if limited or passing:
        return ExchangeFailed(f"{status}{described}", retry_after_s)
    if status < 400:  # of a gateway, such as one that wants its user to log in
        return ExchangeFailed(f"{status} is no answer to an exchange{described}", retry_after_s)
    if status == 403:
        return ExchangeRefused(f"403: no Copilot access{described}", status)
    return ExchangeRefused(f"{status}: the exchange refused{described}", status)


def _expiry(named: Any, refresh_in_s: float, wall_now: float) -> float:
    """Return when the token ends by our clock.

    The server's clock may differ from ours, so the end is reckoned from the time to
    refresh; its own `expires_at` only shortens that, and only while it is plausible.
    """
    reckoned = wall_now + refresh_in_s + 60
    earliest, latest = wall_now + SHORTEST_REFRESH_S, wall_now + LONGEST_LIFE_S
    if isinstance(named, int | float) and earliest <= named <= latest:
        return min(reckoned, float(named))
    return reckoned


def _host(
    endpoints: Any, name: str, trusted: tuple[HostRule, ...]
) -> tuple[str | None, str | None]:
    """Return (host[:port], None), (None, what was distrusted) or (None, None)."""
    address = endpoints.get(name) if isinstance(endpoints, dict) else None
    if address is None:
        return None, None
    distrusted = one_line(str(address))[:100]
    try:
        url = urlsplit(address)
        host, port = url.hostname or "", url.port
    except (ValueError, TypeError, AttributeError):
        return None, distrusted
    plain = url.scheme == "https" and url.path in ("", "/") and not (url.query or url.fragment)
    usual_name = re.fullmatch(r"[a-z0-9.:-]+", host) is not None
    if not (plain and usual_name and url.username is None):
        return None, distrusted
    if not any(rule.matches(host, port or 443) for rule in trusted):
        return None, distrusted
    shown = f"[{host}]" if ":" in host else host
    return (shown if port in (None, 443) else f"{shown}:{port}"), None


def _reason(payload: Any, github: Secret) -> tuple[str, str]:
    """Return the message and the notification id of an error body, "" for none."""
    if not isinstance(payload, dict):
        return "", ""
    details = payload.get("error_details")
    details = details if isinstance(details, dict) else {}
    message = details.get("message") or payload.get("message") or ""
    notification = details.get("notification_id") or ""
    if not isinstance(message, str) or not isinstance(notification, str):
        return "", ""
    return quoted(message, [github]), quoted(notification, [github], 60)


# -- the pool's own response to a client that exchanges its token

#: The client asks again after the first, and its placeholder ends after the second.
#: Seconds; the values GitHub uses. Nothing ends with them: the pool swaps each request.
CLIENT_REFRESH_IN_S, CLIENT_LIFE_S = 1500, 1800

#: Text of the response that names a plan or a setting, not a person or an organisation.
_KEPT_TEXT = ("sku", "public_suggestions", "telemetry")
#: Fields inside the token that are switches, 0 or 1 ...
_KEPT_SWITCHES = frozenset(
    {"8kp", "ccr", "chat", "cit", "fcv1", "malfil", "mcp", "rt", "sn", "ssc"}
)
_KEPT_SWITCHES |= {"agent_mode", "agent_mode_auto_approval", "editor_preview_features"}
#: ... and those that are short words.
_KEPT_WORDS = frozenset({"sku", "st"})
_SHORT_WORD = LazyPattern(r"[A-Za-z0-9_.-]{1,40}\Z")
_ENDPOINTS = ("api", "proxy", "telemetry", "origin-tracker")

_HEADERS = (
    ("content-type", "application/json; charset=utf-8"),
    ("cache-control", "no-store"),
    # Without it VS Code suspects a proxy of intercepting (`completions-core`, `fetch.ts`).
    ("x-github-request-id", "account-pool"),
)


def shown_to_clients(
    payload: Mapping[str, Any], token: str, *, api_is_trusted: bool
) -> dict[str, Any]:
    """Return the part of a real response that a client may see, with "token" its fields."""
    kept: dict[str, Any] = {
        name: value
        for name, value in payload.items()
        if isinstance(value, bool) and _SHORT_WORD.match(name)
    }
    for name in _KEPT_TEXT:
        value = payload.get(name)
        if isinstance(value, str) and _SHORT_WORD.match(value):
            kept[name] = value
    # One account's quota must not switch a client off that has a pool behind it.
    kept |= {"limited_user_quotas": None, "limited_user_reset_date": None}
    endpoints = _endpoints(payload.get("endpoints"), api_is_trusted)
    if endpoints:
        kept["endpoints"] = endpoints
    kept["token"] = _token_fields(token)
    return kept


def placeholder_response(for_clients: Mapping[str, Any], wall_now: float) -> LocalResponse:
    """Answer an exchange with a placeholder. *for_clients* is of `shown_to_clients`."""
    expires_at = int(wall_now) + CLIENT_LIFE_S
    fields = {"tid": "pool", "exp": str(expires_at), **for_clients.get("token", {})}
    token = ";".join(f"{name}={value}" for name, value in fields.items()) + ":pool"
    times = {"expires_at": expires_at, "refresh_in": CLIENT_REFRESH_IN_S}
    return LocalResponse(
        200, _HEADERS, msgspec.json.encode({**for_clients, **times, "token": token})
    )


def no_token_response(message: str, retry_after_s: int) -> LocalResponse:
    """Answer an exchange while no account has a token, in GitHub's envelope."""
    headers = (*_HEADERS, ("retry-after", str(retry_after_s)))
    return LocalResponse(503, headers, msgspec.json.encode({"message": message}))


def _endpoints(endpoints: Any, api_is_trusted: bool) -> dict[str, str]:
    if not isinstance(endpoints, dict):
        return {}
    kept = {name: endpoints.get(name) for name in _ENDPOINTS}
    if not api_is_trusted:
        kept["api"] = None
    return {name: url for name, url in kept.items() if isinstance(url, str) and _is_plain(url)}


def _is_plain(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    usual_name = re.fullmatch(r"[A-Za-z0-9.:\[\]-]{1,200}", parts.netloc) is not None
    return parts.scheme == "https" and usual_name and url == f"https://{parts.netloc}{parts.path}"


def _token_fields(token: str) -> dict[str, str]:
    """Return the harmless fields of `tid=...;exp=...;sku=...;chat=1:<mac>`."""
    pairs = (part.partition("=") for part in token.partition(":")[0].split(";"))
    return {
        name: value
        for name, _, value in pairs
        if (name in _KEPT_SWITCHES and value in ("0", "1"))
        or (name in _KEPT_WORDS and _SHORT_WORD.match(value))
    }
