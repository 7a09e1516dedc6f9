"""What Perplexity says when it refuses.

https://docs.perplexity.ai/guides/rate-limits-usage-tiers. No headers; an empty purse is a
401, a bad key the page of the server in front.
"""

from __future__ import annotations

from account_pool.core.outcome import OutcomeClass
from account_pool.core.signals import Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

RULES: tuple[Rule, ...] = (
    Rule(
        why="the key is not accepted",
        cls=OutcomeClass.AUTH_INVALID,
        status=frozenset({401}),
        when=lambda facts: facts.html,
        source="api.perplexity.ai: 401 Authorization Required, a page",
    ),
    Rule(
        why="rate limit",
        cls=OutcomeClass.RATE_LIMIT,
        words=frozenset({"request_rate_limit_exceeded", "token_rate_limit_exceeded"}),
        source="https://docs.perplexity.ai/guides/rate-limits-usage-tiers",
    ),
    *COMPATIBLE_RULES,
)
