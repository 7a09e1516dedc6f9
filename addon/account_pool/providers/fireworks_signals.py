"""What Fireworks says when it refuses: an empty purse is a 412.

https://docs.fireworks.ai/guides/inference-error-codes. Limits are the account's.
"""

from __future__ import annotations

from account_pool.core.signals import OVERLOADED, QUOTA, RATE_LIMIT, REQUEST_ERROR, Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_CODES = "https://docs.fireworks.ai/guides/inference-error-codes"

RULES: tuple[Rule, ...] = (
    Rule("no capacity", OVERLOADED, status={0, 429, 503},
        phrase=r"\b(?:deployment|model|service) (?:is )?overloaded\b", source=_CODES + " (503)"),
    Rule("suspended for lack of payment", QUOTA, status={402, 403, 412},
        phrase=r"\baccount\b.*\bsuspended\b", waits=(), source="Fireworks 412, recorded"),
    # What it calls usage is requests and tokens of a minute.
    Rule("rate limit", RATE_LIMIT, status={429}, phrase=r"\bexceeded your usage limits\b",
        source="https://docs.fireworks.ai/guides/quotas_usage/rate-limits"),
    Rule("no such model, or not for this account", REQUEST_ERROR, status={404},
        phrase=r"^model not found\b", missing_model=True, source=_CODES + " (404)"),
    *COMPATIBLE_RULES,
)  # fmt: skip
