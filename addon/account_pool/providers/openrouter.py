"""OpenRouter keys: openrouter.ai/api/v1.

https://openrouter.ai/docs/api-reference/overview. Its limits are those of the account
whatever the key, and more accounts are not meant to raise them
(https://openrouter.ai/docs/api-reference/limits). Keys, credits, logins and records of
a generation belong to the account and pass.
"""

from __future__ import annotations

import re

from account_pool.providers import envelopes
from account_pool.providers.base import LocalAnswer
from account_pool.providers.compatible import CHAT, compatible
from account_pool.providers.openrouter_signals import RULES, owner


def refusal(status: int, message: str, wait_s: float | None) -> LocalAnswer:
    """`{"error": {code, message}}` with the status as a number."""
    headers = () if wait_s is None else envelopes.sdk_delay(wait_s)
    return envelopes.json_answer(status, headers, {"error": {"code": status, "message": message}})


_RESET = re.compile(r'("x-ratelimit-reset"\s*:\s*"?)[0-9]+', re.IGNORECASE)


def epoch_ms(at: float) -> str:
    """Write a moment, seconds since the epoch, as `X-RateLimit-Reset` has it."""
    return str(round(at * 1000))


def delay_body(text: str, wait_s: float, wall_now: float) -> str:
    """Set the moment of return anew: it travels inside the body."""
    at = epoch_ms(wall_now + envelopes.whole_seconds(wait_s))
    return envelopes.delay_sentence(_RESET.sub(rf"\g<1>{at}", text), wait_s, wall_now)


PROVIDER = compatible(
    "openrouter",
    hosts=("openrouter.ai",),
    env=("OPENROUTER_API_KEY",),
    prefixes=("/api/v1",),
    posts=(*CHAT, "/responses", "/messages", "/messages/count_tokens", "/rerank"),
    gets=("/models", "/embeddings/models", "/providers", "/endpoints"),
    rules=RULES,
    shared=True,
    owner=owner,
    refusal=refusal,
    delay_body=delay_body,
    instants={"x-ratelimit-reset": epoch_ms},
)
