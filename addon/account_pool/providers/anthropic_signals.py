"""What api.anthropic.com says when it refuses.

Error types: https://docs.anthropic.com/en/api/errors. Limits of keys belong to the
organisation (or workspace) and model class, with `anthropic-ratelimit-*` headers on
every answer. Those of subscriptions are in `claude_code_signals.py`.
"""

from __future__ import annotations

import re

from account_pool.core.error_facts import ErrorFacts
from account_pool.core.outcome import Scope
from account_pool.core.signals import (
    AUTH_INVALID,
    FORBIDDEN_ACCOUNT,
    MODEL,
    OVERLOADED,
    QUOTA,
    RATE_LIMIT,
    REQUEST_ERROR,
    SERVER_ERROR,
    Rule,
    prose,
    retry_after,
    retry_after_ms,
    rules,
    spent_window,
)
from account_pool.providers.claude_code_signals import SUBSCRIPTION_RULES, says_limit
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_I = re.IGNORECASE
_ERRORS = "https://docs.anthropic.com/en/api/errors"

#: Headers that name the moment at which a window of a key is full again.
RESETS = tuple(
    f"anthropic-ratelimit-{counted}-reset"
    for counted in ("input-tokens", "output-tokens", "requests", "tokens")
)

_HAS_WINDOW_HEADER = re.compile(
    r"anthropic-(?:priority-|fast-)?ratelimit-(?:(?:input-|output-)?tokens|requests)-\w+"
)


def _is_about_model(facts: ErrorFacts) -> bool:
    """Say whether a limit names what is counted per model class: requests or tokens."""
    if any(_HAS_WINDOW_HEADER.fullmatch(name) for name in facts.headers):
        return True
    return facts.window_s is not None and bool(_COUNTED.search(facts.message))


_COUNTED = re.compile(r"\b(?:tokens?|requests?)\b", _I)


def _only_should_retry(facts: ErrorFacts) -> bool:
    """Say whether a 429 carries `x-should-retry` and no window or wait at all."""
    return (
        "x-should-retry" in facts.headers
        and not any("ratelimit" in name for name in facts.headers)
        and "retry-after" not in facts.headers
        and facts.window_s is None
        and not says_limit(facts)
    )


KEY_RULES = rules(
    _ERRORS,
    Rule("overloaded", OVERLOADED, words={"overloaded_error"}),
    Rule("out of credit", QUOTA, words={"billing_error", "enforced_spend_limit_reached"},
        waits=(prose,)),
    # As an invalid_request_error. Anchored: other 400s echo what a user wrote.
    Rule("out of credit", QUOTA, status={0, 400, 403}, phrase=r"^your credit balance is too low\b",
        waits=(), source="Anthropic 400, recorded"),
    Rule("the limit the owner set is reached", QUOTA, status={0, 400, 403, 429},
        phrase=r"^you have reached your specified (?:\w+ )?api usage limits?\b", waits=(prose,),
        source="Anthropic 400, recorded"),
    Rule("the organisation is disabled", FORBIDDEN_ACCOUNT, status={400, 401, 403},
        phrase=r"^this organization has been disabled\b", source="Anthropic 400, recorded"),
    Rule("the address is not served", REQUEST_ERROR, status={403}, words={"forbidden"},
        phrase=r"^request not allowed\b", source="https://www.anthropic.com/supported-countries"),
    Rule("a limit of this request", RATE_LIMIT, Scope.NONE, status={429}, when=_only_should_retry,
        source="tombii/better-ccflare proxy/src/handlers/__tests__/retryable-429.test.ts"),
    Rule("requests or tokens of a model class", RATE_LIMIT, MODEL, status={0, 429},
        words={"rate_limit_error"}, when=_is_about_model,
        source="https://docs.anthropic.com/en/api/rate-limits"),
    Rule("api error", SERVER_ERROR, words={"api_error", "timeout_error"}),
    Rule("request error", REQUEST_ERROR, words={"not_found_error", "request_too_large"}),
    Rule("not accepted", AUTH_INVALID, status={0}, words={"authentication_error"}),
    Rule("no permission", FORBIDDEN_ACCOUNT, status={0}, words={"permission_error"}),
)  # fmt: skip

RULES: tuple[Rule, ...] = (*SUBSCRIPTION_RULES, *KEY_RULES, *COMPATIBLE_RULES)

WAITS = (retry_after_ms, retry_after, spent_window, prose)
