"""The pool's own answer to a client that exchanges its GitHub token.

The client gets a placeholder of the form of a real Copilot token and the feature flags
of the first account that has one. What identifies an account, and every real token,
stays here: only fields known to be harmless are repeated, the rest is dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from account_pool.providers.base import LocalAnswer

#: The client asks again after the first, and its placeholder ends after the second.
#: Seconds; the values GitHub uses. Nothing ends with them: the pool swaps each request.
CLIENT_REFRESH_IN_S, CLIENT_LIFE_S = 1500, 1800

#: Text of the answer that names a plan or a setting, not a person or an organisation.
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
    # Without it editors suspect a proxy of intercepting: providers.md, section 1.7.
    ("x-github-request-id", "account-pool"),
)


def shown_to_clients(
    payload: Mapping[str, Any], token: str, *, api_is_trusted: bool
) -> dict[str, Any]:
    """Return the part of a real answer that a client may see, with "token" its fields."""
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


def token_answer(for_clients: Mapping[str, Any], wall_now: float) -> LocalAnswer:
    """Answer an exchange with a placeholder. *for_clients* is of `shown_to_clients`."""
    expires_at = int(wall_now) + CLIENT_LIFE_S
    fields = {"tid": "pool", "exp": str(expires_at), **for_clients.get("token", {})}
    token = ";".join(f"{name}={value}" for name, value in fields.items()) + ":pool"
    times = {"expires_at": expires_at, "refresh_in": CLIENT_REFRESH_IN_S}
    return LocalAnswer(200, _HEADERS, _json({**for_clients, **times, "token": token}))


def no_token_answer(message: str, retry_after_s: int) -> LocalAnswer:
    """Answer an exchange while no account has a token, in GitHub's envelope."""
    headers = (*_HEADERS, ("retry-after", str(retry_after_s)))
    return LocalAnswer(503, headers, _json({"message": message}))


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
