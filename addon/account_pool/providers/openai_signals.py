"""What the OpenAI API says when it refuses.

Limits belong to organisation, project and model
(https://platform.openai.com/docs/guides/rate-limits); money to the organisation.
"""

from __future__ import annotations

import re

from account_pool.core.facts import Facts
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.signals import Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES, named_model

_I = re.IGNORECASE
_CODES = "https://platform.openai.com/docs/guides/error-codes"

_ORGANISATION = re.compile(r"\bin organization [`'\"]?(org[-_]\w{1,64})")


def organisation(facts: Facts) -> str | None:
    """Return the organisation a sentence names: "... in organization org-x on ..."."""
    found = _ORGANISATION.search(facts.message)
    return found[1] if found else None


OPENAI_RULES: tuple[Rule, ...] = (
    Rule(
        why="no flex capacity",
        cls=OutcomeClass.OVERLOADED,
        words=frozenset({"flex_capacity_exceeded", "resource_unavailable"}),
        source="https://platform.openai.com/docs/guides/flex-processing",
    ),
    Rule(
        why="requests rose too fast",
        cls=OutcomeClass.RATE_LIMIT,
        # The same code as a 503 is about the server.
        status=frozenset({0, 429}),
        words=frozenset({"slow_down"}),
        when=lambda facts: "rate_limit_error" in facts.words,
        source=_CODES,
    ),
    Rule(
        why="no capacity",
        cls=OutcomeClass.OVERLOADED,
        words=frozenset({"server_is_overloaded", "slow_down"}),
        source="just-every/code codex-api/src/api_bridge_tests.rs",
    ),
    Rule(
        why="out of credit",
        cls=OutcomeClass.QUOTA,
        # The code may be null and the type missing; the sentence is OpenAI's own.
        status=frozenset({0, 429}),
        phrase=re.compile(
            r"^you exceeded your current quota\b|\baccount is not active\b|\bhard limit\b", _I
        ),
        waits=(),
        source=f"{_CODES}; waylaidwanderer/node-chatgpt-api#167",
    ),
    Rule(
        why="the organisation may not use this model",
        cls=OutcomeClass.FORBIDDEN_ACCOUNT,
        scope=Scope.MODEL,
        status=frozenset({400, 403, 404}),
        phrase=re.compile(r"^your organization must be verified\b", _I),
        model=named_model,
        source="https://help.openai.com/en/articles/10910291-api-organization-verification",
    ),
)

RULES: tuple[Rule, ...] = (*OPENAI_RULES, *COMPATIBLE_RULES)
