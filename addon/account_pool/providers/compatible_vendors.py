"""The vendors whose API follows OpenAI's and that need little of their own: a section each.

What they have in common is in `compatible.py` and `common_signals.py`. Paths that are
not named pass with the client's own credential: what they leave behind belongs to one
account.
"""

from __future__ import annotations

import re

from account_pool.core import reset_hints
from account_pool.core.json_values import members, text_in
from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import ErrorFacts, Scope
from account_pool.core.signals import (
    ACCOUNT,
    AUTH_INVALID,
    FORBIDDEN_ACCOUNT,
    MODEL,
    OVERLOADED,
    QUOTA,
    RATE_LIMIT,
    REQUEST_ERROR,
    SERVER_ERROR,
    Rule,
    body_reset,
    first_wait,
    lone_reset,
    retry_after,
    rules,
    spent_window,
)
from account_pool.providers import envelopes
from account_pool.providers.base import LocalResponse
from account_pool.providers.compatible import CHAT, compatible
from account_pool.providers.openai import ErrorNames, error_object, organisation
from account_pool.providers.sessions import StoredObjects

# -- OpenRouter: https://openrouter.ai/docs/api-reference/overview. Its limits are those of the
# account whatever the key, and more accounts are not meant to raise them. `error.code` is the
# status, `error.metadata` says more: `limit_source`, the headers of a limit, and the response of
# the provider behind it. Keys, credits, logins and records of a generation belong to the account.

_OPENROUTER_RESET = LazyPattern(r'("x-ratelimit-reset"\s*:\s*"?)[0-9]+', re.IGNORECASE)


def _openrouter_refusal(status: int, message: str, wait_s: float | None) -> LocalResponse:
    """`{"error": {code, message}}` with the status as a number."""
    return envelopes.sdk_response(status, wait_s, {"error": {"code": status, "message": message}})


def _epoch_ms(at: float) -> str:
    """Write a moment, seconds since the epoch, as `X-RateLimit-Reset` has it."""
    return str(round(at * 1000))


def _openrouter_delay(text: str, wait_s: float, wall_now: float) -> str:
    """Set the moment of return anew: it travels inside the body."""
    at = _epoch_ms(wall_now + envelopes.whole_seconds(wait_s))
    return envelopes.delay_sentence(_OPENROUTER_RESET.sub(rf"\g<1>{at}", text), wait_s, wall_now)


def _user(facts: ErrorFacts) -> str | None:
    """Return the user a response names beside the error."""
    return text_in(facts.outer.get("user_id"))


def _utc_day(facts: ErrorFacts) -> float | None:
    """The reset that is named, else the end of the day in UTC."""
    named = first_wait(facts, (spent_window, lone_reset, retry_after))
    return reset_hints.until_utc_midnight(facts.now) if named is None else named


def _upstream(facts: ErrorFacts) -> bool:
    """Say whether the error is that of the provider behind OpenRouter."""
    metadata = members(facts.error.get("metadata"))
    return any(metadata.get(key) for key in ("provider_name", "provider_code"))


OPENROUTER = compatible(
    "openrouter",
    hosts=("openrouter.ai",),
    env=("OPENROUTER_API_KEY",),
    prefixes=("/api/v1",),
    posts=(*CHAT, "/responses", "/messages", "/messages/count_tokens", "/rerank"),
    gets=("/models", "/embeddings/models", "/providers", "/endpoints"),
    rules=rules(
        "https://openrouter.ai/docs/api-reference/limits, .../errors",
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
        Rule("limited upstream", OVERLOADED, status={429}, when=_upstream),
        Rule("the upstream provider is overloaded", OVERLOADED, words={"provider_overloaded"}),
        Rule("the upstream provider failed", SERVER_ERROR, words={"provider_unavailable"}),
        Rule("request error", REQUEST_ERROR, status={0},
            words={"max_tokens_exceeded", "not_found", "payload_too_large", "precondition_failed",
            "refusal", "string_too_long", "token_limit_exceeded", "unprocessable"},
            source="https://openrouter.ai/docs/client-sdks/python/components/apierrortype"),
        Rule("the input was flagged", REQUEST_ERROR, status={0, 403},
            phrase=r"\brequires moderation\b|\binput was flagged\b"),
        Rule("the settings of the account leave no provider", FORBIDDEN_ACCOUNT, MODEL,
            status={400, 403, 404},
            phrase=r"\bdata policy\b|\bguardrail restrictions\b|openrouter\.ai/settings/privacy\b",
            source="OpenRouter 404, quoted"),
        # The same from every account.
        Rule("the upstream provider refuses, or the region is not served", REQUEST_ERROR,
            status={401, 403},
            phrase=r"^provider returned error\b|\bnot available in your region\b"
            r"|\bviolation of provider terms\b"),
    ),
    shared=True,
    owner=_user,
    refusal=_openrouter_refusal,
    delay_body=_openrouter_delay,
    instants={"x-ratelimit-reset": _epoch_ms},
)  # fmt: skip


# -- Groq: https://console.groq.com/docs/api-reference. Limits belong to the organisation and the
# model: `x-ratelimit-*-requests` counts the day, `-tokens` the minute; tokens of the day stand in
# the sentence only. Fine-tunings belong to the organisation as well.

_GROQ = "https://console.groq.com/docs"


def _day_spent(facts: ErrorFacts) -> bool:
    """Say whether nothing is left of the requests of the day and no window is named."""
    left = facts.headers.get("x-ratelimit-remaining-requests")
    return facts.window_s is None and reset_hints.seconds(left) == 0


GROQ = compatible(
    "groq",
    hosts=("api.groq.com",),
    env=("GROQ_API_KEY",),
    prefixes=("/openai/v1",),
    posts=(*CHAT, "/responses", "/audio/speech", "/audio/transcriptions", "/audio/translations"),
    rules=rules(
        f"{_GROQ}/errors",
        # A 400.
        Rule("the organisation is restricted", FORBIDDEN_ACCOUNT,
            words={"organization_restricted"}),
        Rule("the spending limit its owner set", QUOTA,
            words={"blocked_api_access", "spend_limit_reached"}, waits=(),
            source=f"{_GROQ}/spend-limits"),
        Rule("the organisation may not use this model", FORBIDDEN_ACCOUNT, MODEL,
            words={"model_permission_blocked_org", "model_permission_blocked_project",
            "model_terms_required"}, source=f"{_GROQ}/model-permissions"),
        # About the address: one account after another would be on cooldown for it.
        Rule("the network is not served", SERVER_ERROR, status={403},
            phrase=r"^access denied\. please check your network settings\b",
            source="groq/groq-python issues"),
        Rule("requests of the day", QUOTA, MODEL, status={429}, when=_day_spent,
            source=f"{_GROQ}/rate-limits"),
    ),
    rate_scope=Scope.MODEL,
    stored=StoredObjects.of("/openai/v1", together=("batches", "files")),
    shared=True,
    owner=organisation,
)  # fmt: skip


# -- Mistral: https://docs.mistral.ai/api. Limits belong to the workspace and its tier
# (https://docs.mistral.ai/deployment/laplateforme/tier); bodies are flat, codes numbers as text.
# Agents, conversations, libraries and fine-tunings belong to the workspace as well.

_MISTRAL_NAMES: dict[int, tuple[str, str | None]] = {
    401: ("unauthorized", None),
    402: ("payment_required", None),
    404: ("invalid_model", "1500"),
    429: ("rate_limited", "1300"),
    503: ("service_unavailable", None),
}


def _mistral_refusal(status: int, message: str, wait_s: float | None) -> LocalResponse:
    """`{"object": "error", message, type, param, code}`, flat."""
    type_, code = _MISTRAL_NAMES.get(status, ("invalid_request_error", None))
    error = {"object": "error", "message": message, "type": type_, "param": None, "code": code}
    return envelopes.sdk_response(status, wait_s, error)


def _month_spent(facts: ErrorFacts) -> bool:
    """Say whether nothing is left of the month: a header family by size of the request."""
    return any(
        name.endswith("-month") and "remaining" in name and reset_hints.seconds(value) == 0
        for name, value in facts.headers.items()
    )


MISTRAL = compatible(
    "mistral",
    hosts=("api.mistral.ai",),
    env=("MISTRAL_API_KEY",),
    posts=(*CHAT, "/audio/speech", "/audio/transcriptions", "/chat/classifications",
        "/chat/moderations", "/classifications", "/fim/completions", "/moderations", "/ocr"),
    rules=rules(
        "Mistral 429, recorded",
        # The reset that is named is that of the minute.
        Rule("the month of the tier", QUOTA, status={429}, when=_month_spent, waits=(),
            source="x-ratelimitbysize-remaining-month"),
        Rule("no subscription, or its allowance is used up", QUOTA, status={401, 402, 403},
            phrase=r"\b(?:inactive|no active) subscription\b|\busage limit reached\b", waits=(),
            source="https://help.mistral.ai"),
        Rule("capacity of the tier for this model", RATE_LIMIT, MODEL,
            words={"3505", "service_tier_capacity_exceeded"}),
        # Code and type are not always there.
        Rule("capacity of the tier for this model", RATE_LIMIT, MODEL, status={0, 429, 503},
            phrase=r"^service tier capacity exceeded\b", source="continuedev/continue#6185"),
        Rule("no such model, or not for this account", REQUEST_ERROR, status={400, 404},
            words={"invalid_model"}, missing_model=True, source="Mistral 400, code 1500"),
    ),
    stored=StoredObjects.of("/v1", together=("batch/jobs", "files")),
    refusal=_mistral_refusal,
)  # fmt: skip


# -- xAI: https://docs.x.ai/docs/api-reference. Limits and credits belong to a team, which
# sentences name; a refusal is `{"code", "error": "text"}`, or the text alone. Deferred
# completions, collections and `/v1/api-key` pass.

_TEAM = LazyPattern(r"\bteam ([0-9a-f]{8}-[0-9a-f-]{27})\b", re.IGNORECASE)
_XAI_CODES = {
    401: "unauthenticated",
    403: "permission-denied",
    404: "not-found",
    429: "resource-exhausted",
    503: "unavailable",
}


def _team(facts: ErrorFacts) -> str | None:
    """Return the team a sentence names."""
    found = _TEAM.search(facts.message)
    return found[1].lower() if found else None


def _xai_refusal(status: int, message: str, wait_s: float | None) -> LocalResponse:
    """`{"code": ..., "error": "text"}`: here `error` is a string."""
    if status == 402:
        status = 403  # what the vendor says to teams without credits
    code = _XAI_CODES.get(status, "internal" if status >= 500 else "invalid-argument")
    return envelopes.sdk_response(status, wait_s, {"code": code, "error": message})


XAI = compatible(
    "xai",
    hosts=("api.x.ai",),
    env=("XAI_API_KEY",),
    posts=(*CHAT, "/complete", "/images/edits", "/images/generations", "/messages", "/responses",
        "/tokenize-text"),
    gets=("/models", "/language-models", "/embedding-models", "/image-generation-models"),
    rules=rules(
        "https://docs.x.ai/docs/key-information/debugging",
        Rule("out of credit", QUOTA, status={0, 402, 403, 429},
            phrase=r"\bpurchase (?:more )?credits\b|\bhave any credits\b|\bspending[- ]limit\b",
            waits=(), source="continuedev/continue#10373; xAI 403 and 429, recorded"),
        # A 400 as well. Anchored: other 400s echo what a user wrote.
        Rule("the key is not accepted", AUTH_INVALID, status={400, 401, 403},
            phrase=r"^incorrect api key provided\b|^[\w' ]{0,40}\bapi key is (?:currently )?(?:"
            r"blocked|deleted|disabled|expired|inactive|invalid|missing|revoked|suspended"
            r"|not (?:active|authorized|enabled|valid))\b"),
        Rule("the input was flagged", REQUEST_ERROR, status={0, 403},
            phrase=r"\bviolates usage guidelines\b|\bsafety_check\w*\b"),
        Rule("no such model, or not for this team", REQUEST_ERROR, status={400, 404},
            phrase=r"^the model \S+ does not exist or your team\b|^model not found\b",
            missing_model=True),
    ),
    rate_scope=Scope.MODEL,
    stored=StoredObjects.of("/v1", together=("batches", "files"), apart=("responses(?=/)",)),
    shared=True,
    owner=_team,
    refusal=_xai_refusal,
)  # fmt: skip


# -- DeepSeek: https://api-docs.deepseek.com. It sends no limit headers, and comments or empty
# lines while it waits for capacity. Its codes say nothing (`invalid_request_error` beside an empty
# balance): status and sentence count. The balance of the account passes.

DEEPSEEK = compatible(
    "deepseek",
    hosts=("api.deepseek.com",),
    env=("DEEPSEEK_API_KEY",),
    # `/beta`: completions in the middle; `/anthropic`: Anthropic's Messages.
    prefixes=("", "/v1", "/beta", "/beta/v1", "/anthropic/v1", "/anthropic"),
    posts=(*CHAT, "/messages"),
)


# -- Together: https://docs.together.ai/reference, one service with two names. The type
# `credit_limit` stands for money and for requests of a minute: the sentence tells which. Files,
# fine-tunings, batches, evaluations, endpoints and code sessions belong to the account.

TOGETHER = compatible(
    "together",
    hosts=("api.together.xyz", "api.together.ai"),
    env=("TOGETHER_API_KEY", "TOGETHERAI_API_KEY"),
    posts=(*CHAT, "/audio/speech", "/audio/transcriptions", "/audio/translations",
        "/images/generations", "/rerank"),
    rules=rules(
        "https://docs.together.ai/docs/error-codes",
        Rule("the limit of this model", RATE_LIMIT, MODEL,
            words={"dynamic_request_limited", "dynamic_token_limited", "model_rate_limit"},
            source="https://docs.together.ai/docs/rate-limits: per organization and model"),
        # With the type that stands for no credit.
        Rule("rate limit", RATE_LIMIT, status={429},
            phrase=r"\byou have been rate limited\b|\brequest rate limiting\b",
            source="togethercomputer/MoA#27"),
        # A 403 as well as a 400.
        Rule("longer than the context", REQUEST_ERROR, status={400, 403},
            phrase=r"\bmax_(?:new_)?tokens\b|\bcontext (?:length|window)\b"),
    ),
)  # fmt: skip


# -- Fireworks: https://docs.fireworks.ai/api-reference. Limits are the account's; no credit
# is a 412. Names of models carry an account (`accounts/fireworks/models/...`); one of the client's
# own is not found on another, which is learnt per account and model. Whatever is below
# `/v1/accounts/` passes.

FIREWORKS = compatible(
    "fireworks",
    hosts=("api.fireworks.ai",),
    env=("FIREWORKS_API_KEY",),
    prefixes=("/inference/v1",),
    posts=(*CHAT, "/messages", "/responses", "/rerank"),
    rules=rules(
        "https://docs.fireworks.ai/guides/inference-error-codes",
        Rule("no capacity", OVERLOADED, status={0, 429, 503},
            phrase=r"\b(?:deployment|model|service) (?:is )?overloaded\b"),
        Rule("suspended for lack of payment", QUOTA, status={402, 403, 412},
            phrase=r"\baccount\b.*\bsuspended\b", waits=(), source="Fireworks 412, recorded"),
        # What it calls usage is requests and tokens of a minute.
        Rule("rate limit", RATE_LIMIT, status={429}, phrase=r"\bexceeded your usage limits\b",
            source="https://docs.fireworks.ai/guides/quotas_usage/rate-limits"),
        Rule("no such model, or not for this account", REQUEST_ERROR, status={404},
            phrase=r"^model not found\b", missing_model=True),
    ),
)  # fmt: skip


# -- Cohere: https://docs.cohere.com/reference. Limits belong to the kind of key: trial keys count
# calls per minute and per month, and the last word of their sentence tells which. Datasets, embed
# jobs, connectors and fine-tunings pass.

_NATIVE = ("chat", "classify", "detokenize", "embed", "generate", "rerank", "summarize", "tokenize")


def _cohere_refusal(status: int, message: str, wait_s: float | None) -> LocalResponse:
    """`{"message": ...}` and nothing else."""
    return envelopes.sdk_response(status, wait_s, {"message": message})


COHERE = compatible(
    "cohere",
    hosts=("api.cohere.com", "api.cohere.ai"),
    env=("CO_API_KEY", "COHERE_API_KEY"),
    prefixes=("",),
    posts=(*(f"/{version}/{name}" for version in ("v1", "v2") for name in _NATIVE),
        *(f"/compatibility/v1{path}" for path in CHAT)),
    gets=("/v1/models", "/compatibility/v1/models"),
    rules=rules(
        "https://docs.cohere.com/reference/errors",
        # Elsewhere a 498 is about capacity.
        Rule("the token is not accepted", AUTH_INVALID, status={498}),
        Rule("billing limit", QUOTA, status={402, 403, 429},
            phrase=r"\bbilling limit\b|\bpayment method\b", waits=()),
        Rule("no such model, or not for this account", REQUEST_ERROR, status={400, 404},
            phrase=r"^model '?[\w./:-]+'? (?:not found|is not available)\b", missing_model=True),
    ),
    refusal=_cohere_refusal,
)  # fmt: skip


# -- Cerebras: https://inference-docs.cerebras.ai/api-reference. Limits belong to the organisation
# and the model, per minute, hour and day: the sentence names the window, and each has headers of
# its own (`x-ratelimit-reset-tokens-minute`). Bodies are flat; `quota` in a code says nothing.

_CEREBRAS_NAMES: ErrorNames = {
    401: ("invalid_request_error", "wrong_api_key"),
    402: ("payment_required_error", "payment_required"),
    404: ("not_found_error", "model_not_found"),
    429: ("too_many_requests_error", "request_quota_exceeded"),
    503: ("service_unavailable_error", "service_unavailable"),
}


def _cerebras_refusal(status: int, message: str, wait_s: float | None) -> LocalResponse:
    """`{message, type, param, code}`, flat."""
    return envelopes.sdk_response(status, wait_s, error_object(status, message, _CEREBRAS_NAMES))


CEREBRAS = compatible(
    "cerebras",
    hosts=("api.cerebras.ai",),
    env=("CEREBRAS_API_KEY",),
    posts=CHAT,
    rules=rules(
        "https://inference-docs.cerebras.ai/support/error",
        Rule("the queue is full", OVERLOADED, words={"queue_exceeded"}),
        Rule("high traffic", OVERLOADED, status={0, 429}, phrase=r"\bexperiencing high traffic\b"),
        Rule("the trial has ended", QUOTA, status={402, 403, 429}, phrase=r"\btrial\b", waits=(),
            source="Cerebras 403"),
    ),
    rate_scope=Scope.MODEL,
    refusal=_cerebras_refusal,
)  # fmt: skip


# -- Perplexity: https://docs.perplexity.ai/api-reference. Limits belong to the tier of the account.
# No headers; no credit is a 401, a bad key the page of the server in front. Asynchronous jobs
# belong to the account.

PERPLEXITY = compatible(
    "perplexity",
    hosts=("api.perplexity.ai",),
    env=("PERPLEXITY_API_KEY", "PPLX_API_KEY"),
    prefixes=("", "/v1"),
    posts=(*CHAT, "/responses", "/search", "/sonar"),
    rules=rules(
        "https://docs.perplexity.ai/guides/rate-limits-usage-tiers",
        Rule("the key is not accepted", AUTH_INVALID, status={401}, when=lambda facts: facts.html,
            source="api.perplexity.ai: 401 Authorization Required, a page"),
        Rule("rate limit", RATE_LIMIT,
            words={"request_rate_limit_exceeded", "token_rate_limit_exceeded"}),
    ),
)  # fmt: skip

VENDORS = (
    *(OPENROUTER, GROQ, MISTRAL, XAI, DEEPSEEK),
    *(TOGETHER, FIREWORKS, COHERE, CEREBRAS, PERPLEXITY),
)
