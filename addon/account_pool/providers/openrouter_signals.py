"""What OpenRouter says when it refuses.

`error.code` is the status, `error.metadata` says more: `limit_source`, the headers of a
limit, and the answer of the provider behind it. https://openrouter.ai/docs/api-reference/errors.
"""

from __future__ import annotations

from account_pool.core import reset_hints
from account_pool.core.facts import Facts
from account_pool.core.signals import (
    ACCOUNT,
    MODEL,
    OVERLOADED,
    QUOTA,
    RATE_LIMIT,
    REQUEST_ERROR,
    SERVER_ERROR,
    Rule,
    rules,
)
from account_pool.core.waits import body_reset, first_wait, lone_reset, retry_after, spent_window
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

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


RULES = rules(
    _LIMITS,
    Rule("the pool of the upstream provider is spent", OVERLOADED,
        words={"upstream_provider_shared_pool"}),
    Rule("limited upstream", OVERLOADED, status={0, 429},
        phrase=r"\brate[- ]limited upstream\b|^provider returned error\b",
        source="OpenRouter 200 stream, recorded"),
    Rule("requests in flight use the credit up", RATE_LIMIT, ACCOUNT,
        words={"openrouter_in_flight_budget", "in_flight_budget_exhausted"},
        source="OpenRouter 402, clears in seconds"),
    Rule("free requests of the day", QUOTA, words={"openrouter_free_tier_daily"},
        waits=(_utc_day,)),
    Rule("free requests of the day", QUOTA, status={0, 429}, phrase=r"\bfree-models-per-day\b",
        waits=(_utc_day,), source="OpenRouter 429, recorded"),
    Rule("free requests of the minute", RATE_LIMIT, status={0, 429},
        phrase=r"\bfree-models-per-min\b"),
    Rule("requests of the day for this model", QUOTA, MODEL, status={0, 429},
        phrase=r"\blimit_rpd/", waits=(_utc_day,),
        source="OpenRouter 429: limit_rpd/<model>/<key>"),
    Rule("requests of the minute for this model", RATE_LIMIT, MODEL, status={0, 429},
        phrase=r"\blimit_rpm/", source="OpenRouter 429: limit_rpm/<model>/<key>"),
    Rule("out of credit", QUOTA, words={"openrouter_credits"}, waits=()),
    # A 403 or a 402; `metadata.resets_at` says until when.
    Rule("a budget its owner set on the key or workspace", QUOTA,
        words={"openrouter_guardrail_budget", "openrouter_key_limit",
        "openrouter_workspace_budget"}, waits=(body_reset,), shared=False),
    Rule("the limit its owner set on the key", QUOTA, status={0, 402, 403, 429},
        phrase=r"^key limit exceeded\b", waits=(body_reset,), shared=False),
    Rule("limited upstream", OVERLOADED, status={429}, when=_upstream, source=_ERRORS),
    Rule("the upstream provider is overloaded", OVERLOADED, words={"provider_overloaded"},
        source=_ERRORS),
    Rule("the upstream provider failed", SERVER_ERROR, words={"provider_unavailable"},
        source=_ERRORS),
    Rule("request error", REQUEST_ERROR, status={0},
        words={"max_tokens_exceeded", "not_found", "payload_too_large", "precondition_failed",
        "refusal", "string_too_long", "token_limit_exceeded", "unprocessable"},
        source="https://openrouter.ai/docs/client-sdks/python/components/apierrortype"),
    Rule("the input was flagged", REQUEST_ERROR, status={0, 403},
        phrase=r"\brequires moderation\b|\binput was flagged\b", source=_ERRORS + " (403)"),
    # The same from every account.
    Rule("the upstream provider refuses, or the region is not served", REQUEST_ERROR,
        status={401, 403}, phrase=r"^provider returned error\b|\bnot available in your region\b",
        source=_ERRORS),
    *COMPATIBLE_RULES,
)  # fmt: skip
