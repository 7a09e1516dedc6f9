"""Cohere keys: api.cohere.com, `/v2`, `/v1` and the OpenAI-compatible path.

https://docs.cohere.com/reference. Limits belong to the kind of key: trial keys count
calls per minute and per month. Datasets, embed jobs, connectors and fine-tunings pass.
"""

from __future__ import annotations

from account_pool.providers import envelopes
from account_pool.providers.base import LocalAnswer
from account_pool.providers.cohere_signals import RULES
from account_pool.providers.compatible import CHAT, compatible


def refusal(status: int, message: str, wait_s: float | None) -> LocalAnswer:
    """`{"message": ...}` and nothing else."""
    headers = () if wait_s is None else envelopes.sdk_delay(wait_s)
    return envelopes.json_answer(status, headers, {"message": message})


_NATIVE = ("chat", "classify", "detokenize", "embed", "generate", "rerank", "summarize", "tokenize")

PROVIDER = compatible(
    "cohere",
    hosts=("api.cohere.com", "api.cohere.ai"),
    env=("CO_API_KEY", "COHERE_API_KEY"),
    prefixes=("",),
    posts=(
        *(f"/{version}/{name}" for version in ("v1", "v2") for name in _NATIVE),
        *(f"/compatibility/v1{path}" for path in CHAT),
    ),
    gets=("/v1/models", "/compatibility/v1/models"),
    rules=RULES,
    refusal=refusal,
)
