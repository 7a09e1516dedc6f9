"""What Cerebras says when it refuses: flat bodies; `quota` in a code says nothing.

https://inference-docs.cerebras.ai/support/error. The window is named by the sentence, and
each has headers of its own: `x-ratelimit-reset-tokens-minute`.
"""

from __future__ import annotations

from account_pool.core.signals import OVERLOADED, QUOTA, Rule, rules
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_ERRORS = "https://inference-docs.cerebras.ai/support/error"

RULES = rules(
    _ERRORS,
    Rule("the queue is full", OVERLOADED, words={"queue_exceeded"}),
    Rule("high traffic", OVERLOADED, status={0, 429}, phrase=r"\bexperiencing high traffic\b"),
    Rule("the trial has ended", QUOTA, status={402, 403, 429}, phrase=r"\btrial\b", waits=(),
        source="Cerebras 403"),
    *COMPATIBLE_RULES,
)  # fmt: skip
