"""Perplexity keys: api.perplexity.ai, with and without `/v1`.

https://docs.perplexity.ai/api-reference. Limits belong to the tier of the account.
Asynchronous jobs belong to the account and pass.
"""

from __future__ import annotations

from account_pool.providers.compatible import CHAT, compatible
from account_pool.providers.perplexity_signals import RULES

PROVIDER = compatible(
    "perplexity",
    hosts=("api.perplexity.ai",),
    env=("PERPLEXITY_API_KEY", "PPLX_API_KEY"),
    prefixes=("", "/v1"),
    posts=(*CHAT, "/responses", "/search", "/sonar"),
    rules=RULES,
)
