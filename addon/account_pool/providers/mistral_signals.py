"""What Mistral says when it refuses: flat bodies with numeric codes as text.

Limits belong to the workspace and its tier (https://docs.mistral.ai/deployment/laplateforme/tier).
"""

from __future__ import annotations

import re

from account_pool.core import reset_hints
from account_pool.core.facts import Facts
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.signals import Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_I = re.IGNORECASE


def _month_spent(facts: Facts) -> bool:
    """Say whether nothing is left of the month: a header family by size of the request."""
    return any(
        name.endswith("-month") and "remaining" in name and reset_hints.seconds(value) == 0
        for name, value in facts.headers.items()
    )


RULES: tuple[Rule, ...] = (
    Rule(
        why="the month of the tier",
        cls=OutcomeClass.QUOTA,
        status=frozenset({429}),
        when=_month_spent,
        # The reset that is named is that of the minute.
        waits=(),
        source="x-ratelimitbysize-remaining-month",
    ),
    Rule(
        why="no subscription, or its allowance is used up",
        cls=OutcomeClass.QUOTA,
        status=frozenset({401, 402, 403}),
        phrase=re.compile(r"\b(?:inactive|no active) subscription\b|\busage limit reached\b", _I),
        waits=(),
        source="https://help.mistral.ai",
    ),
    Rule(
        why="capacity of the tier for this model",
        cls=OutcomeClass.RATE_LIMIT,
        scope=Scope.MODEL,
        words=frozenset({"3505", "service_tier_capacity_exceeded"}),
        source="Mistral 429, recorded",
    ),
    Rule(
        why="capacity of the tier for this model",
        cls=OutcomeClass.RATE_LIMIT,
        scope=Scope.MODEL,
        status=frozenset({0, 429, 503}),
        # Code and type are not always there.
        phrase=re.compile(r"^service tier capacity exceeded\b", _I),
        source="continuedev/continue#6185",
    ),
    Rule(
        why="no such model, or not for this account",
        cls=OutcomeClass.REQUEST_ERROR,
        status=frozenset({400, 404}),
        words=frozenset({"invalid_model"}),
        missing_model=True,
        source="Mistral 400, code 1500",
    ),
    *COMPATIBLE_RULES,
)
