"""What Groq says when it refuses.

`x-ratelimit-*-requests` counts the day, `-tokens` the minute; tokens of the day stand in
the sentence only. https://console.groq.com/docs/rate-limits, .../docs/errors.
"""

from __future__ import annotations

import re

from account_pool.core import reset_hints
from account_pool.core.facts import Facts
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.signals import Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_I = re.IGNORECASE
_ERRORS = "https://console.groq.com/docs/errors"


def _day_spent(facts: Facts) -> bool:
    """Say whether nothing is left of the requests of the day and no window is named."""
    left = facts.headers.get("x-ratelimit-remaining-requests")
    return facts.window_s is None and reset_hints.seconds(left) == 0


RULES: tuple[Rule, ...] = (
    Rule(
        why="the organisation is restricted",
        cls=OutcomeClass.FORBIDDEN_ACCOUNT,
        # A 400.
        words=frozenset({"organization_restricted"}),
        source=_ERRORS,
    ),
    Rule(
        why="the spending limit its owner set",
        cls=OutcomeClass.QUOTA,
        words=frozenset({"blocked_api_access", "spend_limit_reached"}),
        waits=(),
        source="https://console.groq.com/docs/spend-limits",
    ),
    Rule(
        why="the organisation may not use this model",
        cls=OutcomeClass.FORBIDDEN_ACCOUNT,
        scope=Scope.MODEL,
        words=frozenset(
            {
                "model_permission_blocked_org",
                "model_permission_blocked_project",
                "model_terms_required",
            }
        ),
        source="https://console.groq.com/docs/model-permissions",
    ),
    Rule(
        why="the network is not served",
        cls=OutcomeClass.SERVER_ERROR,
        # About the address: every account would be benched in turn.
        status=frozenset({403}),
        phrase=re.compile(r"^access denied\. please check your network settings\b", _I),
        source="groq/groq-python issues",
    ),
    Rule(
        why="requests of the day",
        cls=OutcomeClass.QUOTA,
        scope=Scope.MODEL,
        status=frozenset({429}),
        when=_day_spent,
        source="https://console.groq.com/docs/rate-limits",
    ),
    *COMPATIBLE_RULES,
)
