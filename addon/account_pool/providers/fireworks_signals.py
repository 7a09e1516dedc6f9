"""What Fireworks says when it refuses: an empty purse is a 412.

https://docs.fireworks.ai/guides/inference-error-codes. Limits are the account's.
"""

from __future__ import annotations

import re

from account_pool.core.outcome import OutcomeClass
from account_pool.core.signals import Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_I = re.IGNORECASE
_CODES = "https://docs.fireworks.ai/guides/inference-error-codes"

RULES: tuple[Rule, ...] = (
    Rule(
        why="no capacity",
        cls=OutcomeClass.OVERLOADED,
        status=frozenset({0, 429, 503}),
        phrase=re.compile(r"\b(?:deployment|model|service) (?:is )?overloaded\b", _I),
        source=_CODES + " (503)",
    ),
    Rule(
        why="suspended for lack of payment",
        cls=OutcomeClass.QUOTA,
        status=frozenset({402, 403, 412}),
        phrase=re.compile(r"\baccount\b.*\bsuspended\b", _I),
        waits=(),
        source="Fireworks 412, recorded",
    ),
    Rule(
        why="rate limit",
        cls=OutcomeClass.RATE_LIMIT,
        # What it calls usage is requests and tokens of a minute.
        status=frozenset({429}),
        phrase=re.compile(r"\bexceeded your usage limits\b", _I),
        source="https://docs.fireworks.ai/guides/quotas_usage/rate-limits",
    ),
    Rule(
        why="no such model, or not for this account",
        cls=OutcomeClass.REQUEST_ERROR,
        status=frozenset({404}),
        phrase=re.compile(r"^model not found\b", _I),
        missing_model=True,
        source=_CODES + " (404)",
    ),
    *COMPATIBLE_RULES,
)
