"""What api.anthropic.com says when it refuses.

Error types: https://docs.anthropic.com/en/api/errors. Limits of keys belong to the
organisation (or workspace) and model class, with `anthropic-ratelimit-*` headers on
every answer. Those of subscriptions are in `claude_code_signals.py`.
"""

from __future__ import annotations

import re

from account_pool.core.facts import Facts
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.signals import Rule, SignalTable
from account_pool.core.sse import Judge
from account_pool.core.waits import prose, retry_after, retry_after_ms, spent_window
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


def _is_about_model(facts: Facts) -> bool:
    """Say whether a limit names what is counted per model class: requests or tokens."""
    if any(_HAS_WINDOW_HEADER.fullmatch(name) for name in facts.headers):
        return True
    return facts.window_s is not None and bool(_COUNTED.search(facts.message))


_COUNTED = re.compile(r"\b(?:tokens?|requests?)\b", _I)


def _only_should_retry(facts: Facts) -> bool:
    """Say whether a 429 carries `x-should-retry` and no window or wait at all."""
    return (
        "x-should-retry" in facts.headers
        and not any("ratelimit" in name for name in facts.headers)
        and "retry-after" not in facts.headers
        and facts.window_s is None
        and not says_limit(facts)
    )


KEY_RULES: tuple[Rule, ...] = (
    Rule(
        why="overloaded",
        cls=OutcomeClass.OVERLOADED,
        words=frozenset({"overloaded_error"}),
        source=_ERRORS,
    ),
    Rule(
        why="out of credit",
        cls=OutcomeClass.QUOTA,
        words=frozenset({"billing_error", "enforced_spend_limit_reached"}),
        waits=(prose,),
        source=_ERRORS,
    ),
    Rule(
        why="out of credit",
        cls=OutcomeClass.QUOTA,
        # As an invalid_request_error. Anchored: other 400s echo what a user wrote.
        status=frozenset({0, 400, 403}),
        phrase=re.compile(r"^your credit balance is too low\b", _I),
        waits=(),
        source="Anthropic 400, recorded",
    ),
    Rule(
        why="the limit the owner set is reached",
        cls=OutcomeClass.QUOTA,
        status=frozenset({0, 400, 403, 429}),
        phrase=re.compile(r"^you have reached your specified (?:\w+ )?api usage limits?\b", _I),
        waits=(prose,),
        source="Anthropic 400, recorded",
    ),
    Rule(
        why="the organisation is disabled",
        cls=OutcomeClass.FORBIDDEN_ACCOUNT,
        status=frozenset({400, 401, 403}),
        phrase=re.compile(r"^this organization has been disabled\b", _I),
        source="Anthropic 400, recorded",
    ),
    Rule(
        why="the address is not served",
        cls=OutcomeClass.REQUEST_ERROR,
        status=frozenset({403}),
        words=frozenset({"forbidden"}),
        phrase=re.compile(r"^request not allowed\b", _I),
        source="https://www.anthropic.com/supported-countries",
    ),
    Rule(
        why="a limit of this request",
        cls=OutcomeClass.RATE_LIMIT,
        scope=Scope.NONE,
        status=frozenset({429}),
        when=_only_should_retry,
        source="tombii/better-ccflare proxy/src/handlers/__tests__/retryable-429.test.ts",
    ),
    Rule(
        why="requests or tokens of a model class",
        cls=OutcomeClass.RATE_LIMIT,
        scope=Scope.MODEL,
        status=frozenset({0, 429}),
        words=frozenset({"rate_limit_error"}),
        when=_is_about_model,
        source="https://docs.anthropic.com/en/api/rate-limits",
    ),
    Rule(
        why="api error",
        cls=OutcomeClass.SERVER_ERROR,
        words=frozenset({"api_error", "timeout_error"}),
        source=_ERRORS,
    ),
    Rule(
        why="request error",
        cls=OutcomeClass.REQUEST_ERROR,
        words=frozenset({"not_found_error", "request_too_large"}),
        source=_ERRORS,
    ),
    Rule(
        why="not accepted",
        cls=OutcomeClass.AUTH_INVALID,
        status=frozenset({0}),
        words=frozenset({"authentication_error"}),
        source=_ERRORS,
    ),
    Rule(
        why="no permission",
        cls=OutcomeClass.FORBIDDEN_ACCOUNT,
        status=frozenset({0}),
        words=frozenset({"permission_error"}),
        source=_ERRORS,
    ),
)

RULES: tuple[Rule, ...] = (*SUBSCRIPTION_RULES, *KEY_RULES, *COMPATIBLE_RULES)


def signals(judge: Judge, *, shared: bool) -> SignalTable:
    """Return the table; a limit that names nothing reaches the account.

    Args:
        shared: whether limits are the organisation's: those of keys are, those of a
            subscription belong to its seat.
    """
    waits = (retry_after_ms, retry_after, spent_window, prose)
    return SignalTable(
        rules=RULES, judge=judge, rate_scope=Scope.ACCOUNT, waits=waits, shared=shared
    )
