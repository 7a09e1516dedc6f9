"""What the OpenAI API says when it refuses.

Limits belong to organisation, project and model
(https://platform.openai.com/docs/guides/rate-limits); money to the organisation.
"""

from __future__ import annotations

import re

from account_pool.core.error_facts import ErrorFacts
from account_pool.core.signals import FORBIDDEN_ACCOUNT, MODEL, OVERLOADED, QUOTA, RATE_LIMIT, Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES, named_model

_CODES = "https://platform.openai.com/docs/guides/error-codes"

_ORGANISATION = re.compile(r"\bin organization [`'\"]?(org[-_]\w{1,64})")


def organisation(facts: ErrorFacts) -> str | None:
    """Return the organisation a sentence names: "... in organization org-x on ..."."""
    found = _ORGANISATION.search(facts.message)
    return found[1] if found else None


OPENAI_RULES: tuple[Rule, ...] = (
    Rule("no flex capacity", OVERLOADED, words={"flex_capacity_exceeded", "resource_unavailable"},
        source="https://platform.openai.com/docs/guides/flex-processing"),
    # The same code as a 503 is about the server.
    Rule("requests rose too fast", RATE_LIMIT, status={0, 429}, words={"slow_down"},
        when=lambda facts: "rate_limit_error" in facts.words, source=_CODES),
    Rule("no capacity", OVERLOADED, words={"server_is_overloaded", "slow_down"},
        source="just-every/code codex-api/src/api_bridge_tests.rs"),
    # The code may be null and the type missing; the sentence is OpenAI's own.
    Rule("out of credit", QUOTA, status={0, 429},
        phrase=r"^you exceeded your current quota\b|\baccount is not active\b|\bhard limit\b",
        waits=(), source=f"{_CODES}; waylaidwanderer/node-chatgpt-api#167"),
    Rule("the organisation may not use this model", FORBIDDEN_ACCOUNT, MODEL,
        status={400, 403, 404}, phrase=r"^your organization must be verified\b", model=named_model,
        source="https://help.openai.com/en/articles/10910291-api-organization-verification"),
)  # fmt: skip

RULES: tuple[Rule, ...] = (*OPENAI_RULES, *COMPATIBLE_RULES)
