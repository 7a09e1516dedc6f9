"""Anthropic API keys: api.anthropic.com.

https://docs.anthropic.com/en/api/overview. Subscription tokens of Claude Code are
another kind of credential that only serves that client: its requests pass. Limits are
in `anthropic_signals.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.signals import SignalTable
from account_pool.core.sse import Verdict
from account_pool.providers import envelopes, openai, sessions, stored_objects
from account_pool.providers.anthropic_signals import KEY_RESETS, RULES, WAITS
from account_pool.providers.base import HostRule, LocalResponse, Provider, Route, Swap
from account_pool.providers.request_head import NO_STEP, RequestHead, bearer

# -- who serves a request

_POOL_POST = frozenset(
    {
        "/v1/chat/completions",
        "/v1/complete",
        "/v1/messages",
        "/v1/messages/count_tokens",
    }
)
_POOL_GET = re.compile(NO_STEP + r"/v1/models(?:/[^/]+)?")


def route(head: RequestHead) -> Route:
    """Say who serves a request.

    What is under `/api` (login, settings, telemetry of Claude Code) and under
    `/v1/organizations` passes.
    """
    pooled = (
        (head.method == "POST" and head.path in _POOL_POST)
        or (head.method == "GET" and _POOL_GET.fullmatch(head.path) is not None)
        or stored_objects.ANTHROPIC.route(head)
    )
    return Route.POOL if pooled and not is_subscription(head) else Route.PASS


def is_subscription(head: RequestHead) -> bool:
    """Say whether the request carries a subscription token.

    Told from the token, not the header: SDKs send API keys as Bearer too.
    """
    return (
        bearer(head).startswith("sk-ant-oat")
        or head.headers.get("x-api-key", "").startswith("sk-ant-oat")
        or "oauth-2025-04-20" in head.headers.get("anthropic-beta", "")
    )


# -- the credential


def swap(_account: Account, credential: Credential) -> Swap:
    """Put the key in `x-api-key`; exactly one of the two headers may remain."""
    key = (b"x-api-key", credential.secret.reveal().encode())
    return Swap(headers=(key,), drop=_CREDENTIAL_HEADERS)


_CREDENTIAL_HEADERS = frozenset({b"authorization", b"x-api-key"})


def misplaced(token: str) -> str | None:
    """Say where a token of a subscription belongs."""
    if token.startswith("sk-ant-oat"):
        return "it is one of a Claude subscription: write provider: claude-code"
    return None


# -- what a response says


def judge(name: str | None, value: Any) -> Verdict:
    """Say what an event or a JSON body is; the compatible path speaks OpenAI's dialect."""
    if isinstance(value, dict) and value.get("type") in ("message_start", "ping"):
        return Verdict.CONTINUE
    return openai.judge(name, value)


SIGNALS = SignalTable(rules=RULES, judge=judge, waits=WAITS, shared=True)


def owner(headers: Mapping[str, str]) -> str | None:
    """Return the organisation, whose keys share their limits."""
    return headers.get("anthropic-organization-id")


# -- refusals of our own

_ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_type(status: int) -> str:
    usual = "api_error" if status >= 500 else "invalid_request_error"
    return _ERROR_TYPES.get(status, usual)


def refusal(status: int, message: str, wait_s: float | None) -> LocalResponse:
    """`{"type": "error", "error": {type, message}}`."""
    error = {"type": error_type(status), "message": message}
    return envelopes.sdk_response(status, wait_s, {"type": "error", "error": error})


PROVIDER = Provider(
    name="anthropic",
    hosts=(HostRule("api.anthropic.com"),),
    env=("ANTHROPIC_API_KEY",),
    route=route,
    credential_headers=_CREDENTIAL_HEADERS,
    conversation=partial(sessions.conversation, stored=stored_objects.ANTHROPIC),
    created_ids=partial(stored_objects.ids_in_response, stored=stored_objects.ANTHROPIC),
    swap=swap,
    judge=judge,
    classify=SIGNALS.classify,
    signals=SIGNALS,
    refusal=refusal,
    delay=envelopes.sdk_delay,
    delay_headers=envelopes.SDK_DELAY_HEADERS,
    instants=dict.fromkeys(KEY_RESETS, envelopes.rfc3339),
    misplaced=misplaced,
    owner=owner,
)
