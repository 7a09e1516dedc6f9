"""What Perplexity says when it refuses.

https://docs.perplexity.ai/guides/rate-limits-usage-tiers. No headers; an empty purse is a
401, a bad key the page of the server in front.
"""

from __future__ import annotations

from account_pool.core.signals import AUTH_INVALID, RATE_LIMIT, Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

RULES: tuple[Rule, ...] = (
    Rule("the key is not accepted", AUTH_INVALID, status={401}, when=lambda facts: facts.html,
        source="api.perplexity.ai: 401 Authorization Required, a page"),
    Rule("rate limit", RATE_LIMIT,
        words={"request_rate_limit_exceeded", "token_rate_limit_exceeded"},
        source="https://docs.perplexity.ai/guides/rate-limits-usage-tiers"),
    *COMPATIBLE_RULES,
)  # fmt: skip
