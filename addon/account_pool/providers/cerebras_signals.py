"""What Cerebras says when it refuses: flat bodies; `quota` in a code says nothing.

https://inference-docs.cerebras.ai/support/error. The window is named by the sentence, and
each has headers of its own: `x-ratelimit-reset-tokens-minute`.
"""

from __future__ import annotations

import re

from account_pool.core.outcome import OutcomeClass
from account_pool.core.signals import Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_I = re.IGNORECASE
_ERRORS = "https://inference-docs.cerebras.ai/support/error"

RULES: tuple[Rule, ...] = (
    Rule(
        why="the queue is full",
        cls=OutcomeClass.OVERLOADED,
        words=frozenset({"queue_exceeded"}),
        source=_ERRORS,
    ),
    Rule(
        why="high traffic",
        cls=OutcomeClass.OVERLOADED,
        status=frozenset({0, 429}),
        phrase=re.compile(r"\bexperiencing high traffic\b", _I),
        source=_ERRORS,
    ),
    Rule(
        why="the trial has ended",
        cls=OutcomeClass.QUOTA,
        status=frozenset({402, 403, 429}),
        phrase=re.compile(r"\btrial\b", _I),
        waits=(),
        source="Cerebras 403",
    ),
    *COMPATIBLE_RULES,
)
