"""What Mistral says when it refuses: flat bodies with numeric codes as text.

Limits belong to the workspace and its tier (https://docs.mistral.ai/deployment/laplateforme/tier).
"""

from __future__ import annotations

from account_pool.core import reset_hints
from account_pool.core.facts import Facts
from account_pool.core.signals import MODEL, QUOTA, RATE_LIMIT, REQUEST_ERROR, Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES


def _month_spent(facts: Facts) -> bool:
    """Say whether nothing is left of the month: a header family by size of the request."""
    return any(
        name.endswith("-month") and "remaining" in name and reset_hints.seconds(value) == 0
        for name, value in facts.headers.items()
    )


RULES: tuple[Rule, ...] = (
    # The reset that is named is that of the minute.
    Rule("the month of the tier", QUOTA, status={429}, when=_month_spent, waits=(),
        source="x-ratelimitbysize-remaining-month"),
    Rule("no subscription, or its allowance is used up", QUOTA, status={401, 402, 403},
        phrase=r"\b(?:inactive|no active) subscription\b|\busage limit reached\b", waits=(),
        source="https://help.mistral.ai"),
    Rule("capacity of the tier for this model", RATE_LIMIT, MODEL,
        words={"3505", "service_tier_capacity_exceeded"}, source="Mistral 429, recorded"),
    # Code and type are not always there.
    Rule("capacity of the tier for this model", RATE_LIMIT, MODEL, status={0, 429, 503},
        phrase=r"^service tier capacity exceeded\b", source="continuedev/continue#6185"),
    Rule("no such model, or not for this account", REQUEST_ERROR, status={400, 404},
        words={"invalid_model"}, missing_model=True, source="Mistral 400, code 1500"),
    *COMPATIBLE_RULES,
)  # fmt: skip
