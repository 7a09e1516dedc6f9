"""What Together says when it refuses.

https://docs.together.ai/docs/error-codes. The type `credit_limit` stands for money and
for requests of a minute: the sentence tells which.
"""

from __future__ import annotations

import re

from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.signals import Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_I = re.IGNORECASE
_CODES = "https://docs.together.ai/docs/error-codes"

RULES: tuple[Rule, ...] = (
    Rule(
        why="the limit of this model",
        cls=OutcomeClass.RATE_LIMIT,
        scope=Scope.MODEL,
        words=frozenset({"dynamic_request_limited", "dynamic_token_limited", "model_rate_limit"}),
        source="https://docs.together.ai/docs/rate-limits: per organization and model",
    ),
    Rule(
        why="rate limit",
        cls=OutcomeClass.RATE_LIMIT,
        # With the type of an empty purse.
        status=frozenset({429}),
        phrase=re.compile(r"\byou have been rate limited\b|\brequest rate limiting\b", _I),
        source="togethercomputer/MoA#27",
    ),
    Rule(
        why="longer than the context",
        cls=OutcomeClass.REQUEST_ERROR,
        # A 403 as well as a 400.
        status=frozenset({400, 403}),
        phrase=re.compile(r"\bmax_(?:new_)?tokens\b|\bcontext (?:length|window)\b", _I),
        source=_CODES + " (403)",
    ),
    *COMPATIBLE_RULES,
)
