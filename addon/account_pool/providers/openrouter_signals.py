"""What OpenRouter says when it refuses.

`error.code` is the status, `error.metadata` says more: `limit_source`, the headers of a
limit, and the answer of the provider behind it. https://openrouter.ai/docs/api-reference/errors.
"""

from __future__ import annotations

import re

from account_pool.core import reset_hints
from account_pool.core.facts import Facts
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.signals import Rule
from account_pool.core.waits import body_reset, first_wait, lone_reset, retry_after, spent_window
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_I = re.IGNORECASE
_LIMITS = "https://openrouter.ai/docs/api-reference/limits"
_ERRORS = "https://openrouter.ai/docs/api-reference/errors"


def owner(facts: Facts) -> str | None:
    """Return the user an answer names beside the error."""
    user = facts.outer.get("user_id")
    return user if isinstance(user, str) and user else None


def _utc_day(facts: Facts) -> float | None:
    """The reset that is named, else the end of the day in UTC."""
    named = first_wait(facts, (spent_window, lone_reset, retry_after))
    return reset_hints.until_utc_midnight(facts.now) if named is None else named


def _upstream(facts: Facts) -> bool:
    """Say whether the error is that of the provider behind OpenRouter."""
    metadata = facts.error.get("metadata")
    return isinstance(metadata, dict) and any(
        metadata.get(key) for key in ("provider_name", "provider_code")
    )


RULES: tuple[Rule, ...] = (
    Rule(
        why="the pool of the upstream provider is spent",
        cls=OutcomeClass.OVERLOADED,
        words=frozenset({"upstream_provider_shared_pool"}),
        source=_LIMITS,
    ),
    Rule(
        why="limited upstream",
        cls=OutcomeClass.OVERLOADED,
        status=frozenset({0, 429}),
        phrase=re.compile(r"\brate[- ]limited upstream\b|^provider returned error\b", _I),
        source="OpenRouter 200 stream, recorded",
    ),
    Rule(
        why="requests in flight use the credit up",
        cls=OutcomeClass.RATE_LIMIT,
        scope=Scope.ACCOUNT,
        words=frozenset({"openrouter_in_flight_budget", "in_flight_budget_exhausted"}),
        source="OpenRouter 402, clears in seconds",
    ),
    Rule(
        why="free requests of the day",
        cls=OutcomeClass.QUOTA,
        words=frozenset({"openrouter_free_tier_daily"}),
        waits=(_utc_day,),
        source=_LIMITS,
    ),
    Rule(
        why="free requests of the day",
        cls=OutcomeClass.QUOTA,
        status=frozenset({0, 429}),
        phrase=re.compile(r"\bfree-models-per-day\b", _I),
        waits=(_utc_day,),
        source="OpenRouter 429, recorded",
    ),
    Rule(
        why="free requests of the minute",
        cls=OutcomeClass.RATE_LIMIT,
        status=frozenset({0, 429}),
        phrase=re.compile(r"\bfree-models-per-min\b", _I),
        source=_LIMITS,
    ),
    Rule(
        why="requests of the day for this model",
        cls=OutcomeClass.QUOTA,
        scope=Scope.MODEL,
        status=frozenset({0, 429}),
        phrase=re.compile(r"\blimit_rpd/", _I),
        waits=(_utc_day,),
        source="OpenRouter 429: limit_rpd/<model>/<key>",
    ),
    Rule(
        why="requests of the minute for this model",
        cls=OutcomeClass.RATE_LIMIT,
        scope=Scope.MODEL,
        status=frozenset({0, 429}),
        phrase=re.compile(r"\blimit_rpm/", _I),
        source="OpenRouter 429: limit_rpm/<model>/<key>",
    ),
    Rule(
        why="out of credit",
        cls=OutcomeClass.QUOTA,
        words=frozenset({"openrouter_credits"}),
        waits=(),
        source=_LIMITS,
    ),
    Rule(
        why="a budget its owner set on the key or workspace",
        cls=OutcomeClass.QUOTA,
        # A 403 or a 402; `metadata.resets_at` says until when.
        words=frozenset(
            {"openrouter_guardrail_budget", "openrouter_key_limit", "openrouter_workspace_budget"}
        ),
        waits=(body_reset,),
        shared=False,
        source=_LIMITS,
    ),
    Rule(
        why="the limit its owner set on the key",
        cls=OutcomeClass.QUOTA,
        status=frozenset({0, 402, 403, 429}),
        phrase=re.compile(r"^key limit exceeded\b", _I),
        waits=(body_reset,),
        shared=False,
        source=_LIMITS,
    ),
    Rule(
        why="limited upstream",
        cls=OutcomeClass.OVERLOADED,
        status=frozenset({429}),
        when=_upstream,
        source=_ERRORS,
    ),
    Rule(
        why="the upstream provider is overloaded",
        cls=OutcomeClass.OVERLOADED,
        words=frozenset({"provider_overloaded"}),
        source=_ERRORS,
    ),
    Rule(
        why="the upstream provider failed",
        cls=OutcomeClass.SERVER_ERROR,
        words=frozenset({"provider_unavailable"}),
        source=_ERRORS,
    ),
    Rule(
        why="request error",
        cls=OutcomeClass.REQUEST_ERROR,
        status=frozenset({0}),
        words=frozenset(
            {
                "max_tokens_exceeded",
                "not_found",
                "payload_too_large",
                "precondition_failed",
                "refusal",
                "string_too_long",
                "token_limit_exceeded",
                "unprocessable",
            }
        ),
        source="https://openrouter.ai/docs/client-sdks/python/components/apierrortype",
    ),
    Rule(
        why="the input was flagged",
        cls=OutcomeClass.REQUEST_ERROR,
        status=frozenset({0, 403}),
        phrase=re.compile(r"\brequires moderation\b|\binput was flagged\b", _I),
        source=_ERRORS + " (403)",
    ),
    Rule(
        why="the upstream provider refuses, or the region is not served",
        cls=OutcomeClass.REQUEST_ERROR,
        # The same from every account.
        status=frozenset({401, 403}),
        phrase=re.compile(r"^provider returned error\b|\bnot available in your region\b", _I),
        source=_ERRORS,
    ),
    *COMPATIBLE_RULES,
)
