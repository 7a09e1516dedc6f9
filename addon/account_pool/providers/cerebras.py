"""Cerebras keys: api.cerebras.ai/v1.

https://inference-docs.cerebras.ai/api-reference. Limits belong to the organisation and
the model, per minute, hour and day, each with headers of its own.
"""

from __future__ import annotations

from account_pool.core.outcome import Scope
from account_pool.providers import envelopes
from account_pool.providers.base import LocalAnswer
from account_pool.providers.cerebras_signals import RULES
from account_pool.providers.compatible import CHAT, compatible

_ERROR_NAMES = {
    401: ("invalid_request_error", "wrong_api_key"),
    402: ("payment_required_error", "payment_required"),
    404: ("not_found_error", "model_not_found"),
    429: ("too_many_requests_error", "request_quota_exceeded"),
    503: ("service_unavailable_error", "service_unavailable"),
}


def refusal(status: int, message: str, wait_s: float | None) -> LocalAnswer:
    """`{message, type, param, code}`, flat."""
    usual = ("server_error" if status >= 500 else "invalid_request_error", None)
    type_, code = _ERROR_NAMES.get(status, usual)
    error = {"message": message, "type": type_, "param": None, "code": code}
    headers = () if wait_s is None else envelopes.sdk_delay(wait_s)
    return envelopes.json_answer(status, headers, error)


PROVIDER = compatible(
    "cerebras",
    hosts=("api.cerebras.ai",),
    env=("CEREBRAS_API_KEY",),
    posts=CHAT,
    rules=RULES,
    rate_scope=Scope.MODEL,
    refusal=refusal,
)
