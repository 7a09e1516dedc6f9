"""Fireworks keys: api.fireworks.ai/inference/v1.

https://docs.fireworks.ai/api-reference. Names of models carry an account
(`accounts/fireworks/models/...`); one of the client's own is not found on another, which
is learnt per account and model. Whatever is below `/v1/accounts/` passes.
"""

from __future__ import annotations

from account_pool.providers.compatible import CHAT, compatible
from account_pool.providers.fireworks_signals import RULES

PROVIDER = compatible(
    "fireworks",
    hosts=("api.fireworks.ai",),
    env=("FIREWORKS_API_KEY",),
    prefixes=("/inference/v1",),
    posts=(*CHAT, "/messages", "/responses", "/rerank"),
    rules=RULES,
)
