"""What Together says when it refuses.

https://docs.together.ai/docs/error-codes. The type `credit_limit` stands for money and
for requests of a minute: the sentence tells which.
"""

from __future__ import annotations

from account_pool.core.signals import MODEL, RATE_LIMIT, REQUEST_ERROR, Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_CODES = "https://docs.together.ai/docs/error-codes"

RULES: tuple[Rule, ...] = (
    Rule("the limit of this model", RATE_LIMIT, MODEL,
        words={"dynamic_request_limited", "dynamic_token_limited", "model_rate_limit"},
        source="https://docs.together.ai/docs/rate-limits: per organization and model"),
    # With the type of an empty purse.
    Rule("rate limit", RATE_LIMIT, status={429},
        phrase=r"\byou have been rate limited\b|\brequest rate limiting\b",
        source="togethercomputer/MoA#27"),
    # A 403 as well as a 400.
    Rule("longer than the context", REQUEST_ERROR, status={400, 403},
        phrase=r"\bmax_(?:new_)?tokens\b|\bcontext (?:length|window)\b", source=_CODES + " (403)"),
    *COMPATIBLE_RULES,
)  # fmt: skip
