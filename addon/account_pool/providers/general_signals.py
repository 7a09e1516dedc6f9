"""What follows from the vocabulary that all vendors share (`core/meaning.py`).

Rows behind every provider's own: a sentence or a code about usage, quota, budget, balance,
credits, a plan or a period is a limit whatever the status.
"""

from __future__ import annotations

from account_pool.core.error_facts import ErrorFacts
from account_pool.core.meaning import Meaning, is_about_request
from account_pool.core.signals import (
    FORBIDDEN_ACCOUNT,
    MODEL,
    OVERLOADED,
    QUOTA,
    RATE_LIMIT,
    RATE_WINDOW_S,
    REQUEST_CODES,
    REQUEST_ERROR,
    USUAL_WAITS,
    Rule,
    first_wait,
    rules,
)

#: A return as near as this is that of a rate, unless a longer window is named.
_SOON_S = 60.0


def long_context(_facts: ErrorFacts) -> str:
    """Name what only accounts with credits have; it is no model."""
    return "long-context"


def _is_short(facts: ErrorFacts) -> bool:
    """Say whether what is called a quota is one of an hour or less."""
    if facts.meaning is not Meaning.PLAN:
        return False
    if facts.window_s is not None:
        return facts.window_s <= RATE_WINDOW_S
    wait = first_wait(facts, USUAL_WAITS)
    return wait is not None and 0 < wait <= _SOON_S


def _is_about_request(facts: ErrorFacts) -> bool:
    """Say whether code and sentence blame the request, whatever the status."""
    return facts.meaning is None and is_about_request(facts.message)


GENERAL_RULES = rules(
    "core/meaning.py: vocabulary of recorded answers",
    # Everything else still works.
    Rule("a feature beyond the plan, and no credit for it", QUOTA, MODEL, means=Meaning.EXTRA,
        waits=(), feature=long_context,
        source="https://github.com/anthropics/claude-code/issues/61808"),
    Rule("the plan does not include it", FORBIDDEN_ACCOUNT, MODEL, means=Meaning.NOT_INCLUDED),
    Rule("a quota of a short window", RATE_LIMIT, when=_is_short, explicit=True),
    Rule("what the plan allows for this model is spent", QUOTA, MODEL, means=Meaning.PLAN,
        when=lambda facts: facts.about_model),
    Rule("what the plan allows is spent", QUOTA, means=Meaning.PLAN),
    # Paying cures it, not waiting.
    Rule("out of credit", QUOTA, means=Meaning.MONEY, waits=()),
    Rule("no capacity", OVERLOADED, means=Meaning.CAPACITY),
    Rule("rate limit of this model", RATE_LIMIT, MODEL, means=Meaning.RATE,
        when=lambda facts: facts.about_model),
    Rule("rate limit", RATE_LIMIT, means=Meaning.RATE),
    Rule("about the request", REQUEST_ERROR, status={429}, words=REQUEST_CODES,
        when=_is_about_request),
)  # fmt: skip
