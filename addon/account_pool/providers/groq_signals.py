"""What Groq says when it refuses.

`x-ratelimit-*-requests` counts the day, `-tokens` the minute; tokens of the day stand in
the sentence only. https://console.groq.com/docs/rate-limits, .../docs/errors.
"""

from __future__ import annotations

from account_pool.core import reset_hints
from account_pool.core.facts import Facts
from account_pool.core.signals import FORBIDDEN_ACCOUNT, MODEL, QUOTA, SERVER_ERROR, Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_ERRORS = "https://console.groq.com/docs/errors"


def _day_spent(facts: Facts) -> bool:
    """Say whether nothing is left of the requests of the day and no window is named."""
    left = facts.headers.get("x-ratelimit-remaining-requests")
    return facts.window_s is None and reset_hints.seconds(left) == 0


RULES: tuple[Rule, ...] = (
    # A 400.
    Rule("the organisation is restricted", FORBIDDEN_ACCOUNT, words={"organization_restricted"},
        source=_ERRORS),
    Rule("the spending limit its owner set", QUOTA,
        words={"blocked_api_access", "spend_limit_reached"}, waits=(),
        source="https://console.groq.com/docs/spend-limits"),
    Rule("the organisation may not use this model", FORBIDDEN_ACCOUNT, MODEL,
        words={"model_permission_blocked_org", "model_permission_blocked_project",
        "model_terms_required"}, source="https://console.groq.com/docs/model-permissions"),
    # About the address: every account would be benched in turn.
    Rule("the network is not served", SERVER_ERROR, status={403},
        phrase=r"^access denied\. please check your network settings\b",
        source="groq/groq-python issues"),
    Rule("requests of the day", QUOTA, MODEL, status={429}, when=_day_spent,
        source="https://console.groq.com/docs/rate-limits"),
    *COMPATIBLE_RULES,
)  # fmt: skip
