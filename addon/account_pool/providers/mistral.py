"""Mistral keys: api.mistral.ai/v1.

https://docs.mistral.ai/api. Limits belong to the workspace. Agents, conversations,
libraries and fine-tunings belong to it as well and pass.
"""

from __future__ import annotations

from typing import Any

from account_pool.providers import envelopes
from account_pool.providers.base import LocalAnswer
from account_pool.providers.compatible import CHAT, compatible
from account_pool.providers.mistral_signals import RULES
from account_pool.providers.things import Things

_ERROR_NAMES: dict[int, tuple[str, str | None]] = {
    401: ("unauthorized", None),
    402: ("payment_required", None),
    404: ("invalid_model", "1500"),
    429: ("rate_limited", "1300"),
    503: ("service_unavailable", None),
}


def refusal(status: int, message: str, wait_s: float | None) -> LocalAnswer:
    """`{"object": "error", message, type, param, code}`, flat."""
    type_, code = _ERROR_NAMES.get(status, ("invalid_request_error", None))
    error: dict[str, Any] = {"object": "error", "message": message, "type": type_}
    headers = () if wait_s is None else envelopes.sdk_delay(wait_s)
    return envelopes.json_answer(status, headers, {**error, "param": None, "code": code})


PROVIDER = compatible(
    "mistral",
    hosts=("api.mistral.ai",),
    env=("MISTRAL_API_KEY",),
    posts=(
        *CHAT,
        "/audio/speech",
        "/audio/transcriptions",
        "/chat/classifications",
        "/chat/moderations",
        "/classifications",
        "/fim/completions",
        "/moderations",
        "/ocr",
    ),
    rules=RULES,
    kept=Things.of("/v1", together=("batch/jobs", "files")),
    refusal=refusal,
)
