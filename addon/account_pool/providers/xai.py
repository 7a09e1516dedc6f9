"""xAI keys: api.x.ai/v1.

https://docs.x.ai/docs/api-reference. Limits and credits belong to the team. Deferred
completions, collections and `/v1/api-key` pass.
"""

from __future__ import annotations

from account_pool.core.outcome import Scope
from account_pool.providers import envelopes
from account_pool.providers.base import LocalAnswer
from account_pool.providers.compatible import CHAT, compatible
from account_pool.providers.things import Things
from account_pool.providers.xai_signals import RULES, team

_CODES = {
    401: "unauthenticated",
    403: "permission-denied",
    404: "not-found",
    429: "resource-exhausted",
    503: "unavailable",
}


def refusal(status: int, message: str, wait_s: float | None) -> LocalAnswer:
    """`{"code": ..., "error": "text"}`: here `error` is a string."""
    if status == 402:
        status = 403  # what the vendor says to teams without credits
    code = _CODES.get(status, "internal" if status >= 500 else "invalid-argument")
    headers = () if wait_s is None else envelopes.sdk_delay(wait_s)
    return envelopes.json_answer(status, headers, {"code": code, "error": message})


PROVIDER = compatible(
    "xai",
    hosts=("api.x.ai",),
    env=("XAI_API_KEY",),
    posts=(
        *CHAT,
        "/complete",
        "/images/edits",
        "/images/generations",
        "/messages",
        "/responses",
        "/tokenize-text",
    ),
    gets=("/models", "/language-models", "/embedding-models", "/image-generation-models"),
    rules=RULES,
    rate_scope=Scope.MODEL,
    kept=Things.of("/v1", together=("batches", "files"), apart=("responses(?=/)",)),
    shared=True,
    owner=team,
    refusal=refusal,
)
