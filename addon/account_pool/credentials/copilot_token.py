"""What GitHub answers to a Copilot token exchange, and what clients get of it.

Values in, values out. The fields are those that microsoft/vscode-copilot-chat reads
(`src/platform/authentication/common/copilotToken.ts`). Nothing of the response is trusted
further than needed: the host of an account only inside GitHub's own domains or the ones the
user configured, times only when they are plausible, texts only in one short line.

A client that exchanges its own GitHub token gets a placeholder of the form of a real Copilot
token and the feature flags of the first account that has one. What identifies an account, and
every real token, stays here: only fields known to be harmless are repeated, the rest is dropped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from account_pool.core.credential import Secret
from account_pool.credentials.errors import ExchangeFailed, ExchangeRefused
from account_pool.credentials.http import one_line, quoted, retry_after
from account_pool.providers.base import HostRule, LocalResponse

#: GitHub's own homes of the Copilot API:
#: https://docs.github.com/en/copilot/reference/copilot-allowlist-reference
GITHUB_HOSTS = tuple(HostRule(name, subdomains=True) for name in ("githubcopilot.com", "ghe.com"))

#: Seconds until the refresh when the response names none: the value GitHub usually names.
USUAL_REFRESH_IN_S = 1500.0
#: Beyond a day a time in the response is a mistake or a broken clock.
LONGEST_LIFE_S = 86400.0
#: Refresh so long before the named time, and never sooner than the second value.
REFRESH_EARLY_S, SHORTEST_REFRESH_S = 60.0, 30.0
_NOT_A_TOKEN = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
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
    for_clients: Mapping[str, Any] = field(default_factory=dict, repr=False)


def read_token(payload: Any, wall_now: float, hosts: tuple[HostRule, ...]) -> Exchanged:
    """Read a successful response. Raises ExchangeFailed when it has no token in it."""
    token = payload.get("token") if isinstance(payload, dict) else None
    if not isinstance(token, str) or not token or _NOT_A_TOKEN.search(token):
        raise ExchangeFailed("the exchange answered 200 without a Copilot token")
    refresh_in_s = _seconds(payload.get("refresh_in")) or USUAL_REFRESH_IN_S
    trusted = (*GITHUB_HOSTS, *hosts)
    host, distrusted = _host(payload.get("endpoints"), "api", trusted)
    completions_host, _ = _host(payload.get("endpoints"), "proxy", trusted)
    return Exchanged(
        token=Secret(token),
        expires_at=_expiry(payload.get("expires_at"), refresh_in_s, wall_now),
        renew_in_s=max(SHORTEST_REFRESH_S, refresh_in_s - REFRESH_EARLY_S),
        host=host,
        completions_host=completions_host,
        distrusted=distrusted,
        for_clients=shown_to_clients(payload, token, api_is_trusted=host is not None),
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
    if status == 403:
        return ExchangeRefused(f"403: no Copilot access{described}", status)
    return ExchangeRefused(f"{status}: the exchange refused{described}", status)


def _expiry(named: Any, refresh_in_s: float, wall_now: float) -> float:
    """Return when the token ends by our clock.

    The server's clock may differ from ours, so the end is reckoned from the time to
    refresh; its own `expires_at` only shortens that, and only while it is plausible.
    """
    reckoned = wall_now + refresh_in_s + 60
    if isinstance(named, int | float) and SHORTEST_REFRESH_S <= named - wall_now <= LONGEST_LIFE_S:
        return min(reckoned, float(named))
    return reckoned


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value) if 0 < value <= LONGEST_LIFE_S else None


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
_SHORT_WORD = re.compile(r"[A-Za-z0-9_.-]{1,40}\Z")
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
    return LocalResponse(200, _HEADERS, _json({**for_clients, **times, "token": token}))


def no_token_response(message: str, retry_after_s: int) -> LocalResponse:
    """Answer an exchange while no account has a token, in GitHub's envelope."""
    headers = (*_HEADERS, ("retry-after", str(retry_after_s)))
    return LocalResponse(503, headers, _json({"message": message}))


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


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
