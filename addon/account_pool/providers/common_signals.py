"""Rules that stand behind those of every provider: vocabulary and codes that vendors share.

`GENERAL_RULES` read the vocabulary of `core/meaning.py`: a sentence or a code about usage,
quota, budget, balance, credits, a plan or a period is a limit whatever the status.
`COMPATIBLE_RULES` hold these and what services with an OpenAI-compatible API say: an unknown
gateway is read by them alone. They keep to codes and sentences that vendors document or
were recorded with; a sentence counts only at the statuses it belongs to, since other errors
echo what a user wrote. Order matters: what is no limit although it looks like one stands first.
"""

from __future__ import annotations

import re
from operator import attrgetter

from account_pool.core.meaning import LazyPattern, Meaning, is_about_request
from account_pool.core.outcome import ErrorFacts, Scope
from account_pool.core.signals import (
    ACCOUNT,
    AUTH_EXPIRED,
    AUTH_INVALID,
    FAILURES,
    FORBIDDEN_ACCOUNT,
    MODEL,
    OVERLOADED,
    QUOTA,
    RATE_LIMIT,
    RATE_WINDOW_S,
    REQUEST_CODES,
    REQUEST_ERROR,
    SERVER_ERROR,
    USUAL_WAITS,
    Rule,
    body_reset,
    first_wait,
    limit_is_zero,
    prose,
    rules,
)

#: A return as near as this is that of a rate, unless a longer window is named.
_SOON_S = 60.0


def long_context(_facts: ErrorFacts) -> str:
    """Name what only accounts with credits have; it is no model."""
    return "long-context"


def beyond_the_plan(facts: ErrorFacts) -> str | None:
    """Name what needs credits where it is no model; None: the model that was asked for."""
    found = _FEATURE.search(facts.message)
    if found is None:
        return None
    return "fast-mode" if found[0].lower().startswith("fast") else long_context(facts)


_FEATURE = LazyPattern(r"long[- ]context|1m context|context window|fast mode", re.IGNORECASE)

#: Whether the sentence is about one model.
_is_about_model = attrgetter("about_model")


def _is_short(facts: ErrorFacts) -> bool:
    """Say whether what is called a quota is one of an hour or less."""
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
    Rule("a feature or model beyond the plan, and no credit for it", QUOTA, MODEL,
        means=Meaning.EXTRA, waits=(), feature=beyond_the_plan,
        source="https://github.com/anthropics/claude-code/issues/61808"),
    Rule("the plan does not include it", FORBIDDEN_ACCOUNT, MODEL, means=Meaning.NOT_INCLUDED),
    Rule("a quota of a short window", RATE_LIMIT, means=Meaning.PLAN, when=_is_short),
    Rule("what the plan allows for this model is spent", QUOTA, MODEL, means=Meaning.PLAN,
        when=_is_about_model),
    Rule("what the plan allows is spent", QUOTA, means=Meaning.PLAN),
    # Paying cures it, not waiting.
    Rule("out of credit", QUOTA, means=Meaning.MONEY, waits=()),
    Rule("no capacity", OVERLOADED, means=Meaning.CAPACITY),
    # Every account behind it would be on cooldown in turn.
    Rule("a limit of the address", RATE_LIMIT, Scope.NONE, status={0, 403, 429}, means=Meaning.RATE,
        phrase=r"\b(?:your|this|the|per|by|for|from|each|client|source|same)(?: client)? ip\b"
        r"|\bip (?:address )?(?:rate[- ]?)?limit", source="Hugging Face Hub 429, quoted"),
    Rule("rate limit of this model", RATE_LIMIT, MODEL, means=Meaning.RATE,
        when=_is_about_model),
    Rule("rate limit", RATE_LIMIT, means=Meaning.RATE),
    Rule("about the request", REQUEST_ERROR, status={429}, words=REQUEST_CODES,
        when=_is_about_request),
)  # fmt: skip

# -- services with an OpenAI-compatible API

#: Statuses at which a sentence about money or limits is about the account. 0: in stream.
REFUSALS = frozenset({0, 402, 403, 412, 429})


_TEAM_MODEL = LazyPattern(r"\bmodel [`'\"]?([\w./:-]{1,80}?)[`'\"]?(?=[\s,;]|\.\s|\.?$)")


def named_model(facts: ErrorFacts) -> str | None:
    """Return the model a sentence names: "... and model grok-4.5. Requests per ..."."""
    found = _TEAM_MODEL.search(facts.message)
    return found[1] if found else None


def _is_the_vendors(facts: ErrorFacts) -> bool:
    """Say whether nothing speaks of the account: "You have exceeded your quota" does."""
    return facts.meaning not in (Meaning.PLAN, Meaning.MONEY, Meaning.NOT_INCLUDED)


#: What is named for this refusal; headers may be about a minute.
_OF_THE_BODY = (body_reset, prose)


def _ends(facts: ErrorFacts) -> bool:
    """Say whether the body names a moment to come back."""
    return bool(first_wait(facts, _OF_THE_BODY))


_IS_CLOSED = LazyPattern(
    r"\b(?:account|organi[sz]ation|project|resource|workspace|user|key)\b[^.]{0,60}"
    r"\b(?:suspended|banned|disabled|deactivated|terminated|blocked|restricted|closed)\b"
    r"|账[号户].{0,12}(?:封禁|禁用|冻结|停用)",
    re.IGNORECASE,
)
_BAIDU = "https://cloud.baidu.com/doc/qianfan/s/llm-error-codes"
_NOT_ACCEPTED = LazyPattern(r"auth(?:entication|orization)?_?(?:failure|failed|error)")
_ABOUT_INPUT = LazyPattern(r"(?:invalid|unsupported|empty|image|failed_to_download)_")

COMPATIBLE_RULES: tuple[Rule, ...] = (
    # -- no limit, although it looks like one
    # Same status, type and code as a real limit; no wait cures it.
    Rule("larger than the account's limit", REQUEST_ERROR, status={0, 413, 429},
        phrase=r"\b(?:request|body|payload|prompt|input|image|file|message"
        r"|attachment)s? (?:\w+ )?(?:is |are )?too (?:large|long|big)\b|\bmust be reduced\b"
        r"|\btoo large for\b",
        source="TheR1D/shell_gpt#653; https://console.groq.com/docs/errors (413)"),
    Rule("the limit itself is 0", FORBIDDEN_ACCOUNT, MODEL, status={0, 403, 429},
        phrase=r"(?-i:\(actual/limit\): ?\d+/0\b)", model=named_model,
        source="xAI 429 resource-exhausted, recorded"),
    # "Limit 0, Used 0", but neither "Limit 0.5" nor "Limit 07".
    Rule("the limit itself is 0", FORBIDDEN_ACCOUNT, MODEL, status={0, 429},
        phrase=r"(?s)\brate limit\b.*\blimit:? 0(?![\d.]|,\d)", model=named_model,
        source="https://platform.openai.com/docs/guides/rate-limits"),
    Rule("the limit itself is 0", FORBIDDEN_ACCOUNT, status={429}, when=limit_is_zero,
        source="Mistral 429, recorded: x-ratelimit-limit-req-minute: 0"),
    # Another account, or none, gets the same.
    Rule("this client is not served", REQUEST_ERROR, status={0, 400, 401, 403},
        phrase=r"\b(?:only (?:be used|available|accepts?|allows?|supports?|serves?|authorized"
        r"|usable|for)|restricted to|limited to)\b.{0,40}?\b(?:claude code|codex|gemini cli"
        r"|opencode|coding (?:agents?|tools?)"
        r"|(?:official|authorized|approved) (?:clients?|applications?|apps?|tools?))\b"
        r"|(?m:^(?:your|this) client is not (?:authorized|allowed|supported|permitted)\b)"
        r"|仅(?:限|支持|允许).{0,20}(?:客户端|claude code|codex)",
        source="Wei-Shaw/claude-relay-service#1093; JohnnyZ93/oai-compatible-copilot#214"),
    # What was asked is refused, not who asks; also as a 403.
    Rule("the content is refused", REQUEST_ERROR,
        words={"content_blocked", "content_filter", "content_policy_violation",
        "data_inspection_failed", "image_content_policy_violation", "moderation_blocked"},
        when=lambda facts: facts.status < 500,
        source="openai image guide: moderation_blocked"),
    Rule("the content is refused", REQUEST_ERROR, status={0, 400, 401, 403, 422, 451},
        phrase=r"\b(?:rejected|refused|blocked|filtered) (?:as a result of|by|due to)"
        r" (?:(?:our|the|a) )?(?:safety|content|moderation)\b|\brequires moderation\b"
        r"|\b(?:input|prompt|content) (?:was|is|has been) flagged\b"
        r"|内容.{0,6}(?:违规|敏感|不合规|不安全)",
        when=lambda facts: facts.meaning is None and not _IS_CLOSED.search(facts.message),
        source="openai image guide: rejected as a result of our safety system"),
    # -- codes that leave no doubt, whatever the status
    Rule("a quota whose end the sentence names", QUOTA, status=REFUSALS, means=Meaning.PLAN,
        words={"insufficient_quota", "insufficient_user_quota", "payment_required"}, when=_ends,
        waits=_OF_THE_BODY, source="Gitlawb/openclaude#1554"),
    # Paying cures it, not waiting: a wait that is named belongs to something else.
    Rule("out of credit", QUOTA,
        words={"access_terminated_billing", "balance_not_enough", "billing_error",
        "billing_hard_limit_reached", "billing_limit_reached", "billing_not_active",
        "credit_balance_exhausted", "credits_exhausted", "exceeded_current_quota_error",
        "insufficient_balance", "insufficient_credits", "insufficient_funds", "insufficient_quota",
        "insufficient_user_quota", "organization_spend_limit_exceeded",
        "organization_usage_limit_exceeded", "payment_required", "pre_consume_token_quota_failed",
        "project_spend_limit_exceeded", "spend_limit_exceeded", "spending_limit_reached"},
        waits=(),
        source="https://platform.openai.com/docs/guides/error-codes and vendors' clients"),
    # -- the vendor's own trouble, by a status that leaves no doubt
    Rule("no capacity", OVERLOADED, status={498, 503, 529}, when=_is_the_vendors,
        source="https://console.groq.com/docs/errors (498), RFC 9110 (503)"),
    Rule("server error", SERVER_ERROR, status=FAILURES, when=_is_the_vendors,
        source="RFC 9110 section 15.6"),
    # -- capacity
    Rule("capacity of the tier for this model", RATE_LIMIT, MODEL,
        words={"service_tier_capacity_exceeded"}, source="Mistral 429, recorded"),
    Rule("no capacity", OVERLOADED,
        words={"capacity_exceeded", "engine_overloaded", "engine_overloaded_error",
        "model_at_capacity", "model_overloaded", "overloaded", "overloaded_error",
        "server_overloaded", "service_unavailable", "service_unavailable_error",
        "upstream_provider_rate_limit"},
        source="type and code names of overload errors in public clients"),
    Rule("no capacity", OVERLOADED, status={0, 400, 429},
        phrase=r"\b(?:engine|model|server|service) is (?:currently |temporarily )?overloaded\b"
        r"|\bat capacity\b|\bno capacity available\b|\bover capacity\b",
        source="openai error-codes guide; Codex 400 'Selected model is at capacity'"),
    # -- money, and budgets of days
    Rule("a limit per minute that is called a credit limit", RATE_LIMIT, ACCOUNT, status={429},
        words={"credit_limit"}, when=lambda facts: facts.window_s is not None,
        source="togethercomputer/MoA#27"),
    Rule("out of credit", QUOTA, status=REFUSALS,
        phrase=r"\binsufficient (?:balance|credits?|funds)\b|\bcredit limit exceeded\b"
        r"|\bused all (?:of )?(?:the |your )?(?:available )?credits\b"
        r"|\b(?:monthly )?spending limit\b|\bout of credits\b|\bpayment required\b"
        r"|\bcredit balance\b|\byou have no quota\b|\btrial (?:has |period )?(?:ended|expired)",
        waits=(), source="xAI 403 and 429, Fireworks 412, Together 402, DeepSeek 402, recorded"),
    # The word alone may be about a minute.
    Rule("a budget of more than an hour", QUOTA, status=REFUSALS,
        words={"quota_exceeded", "quota_limit_reached", "usage_limit_reached"},
        when=lambda facts: facts.meaning is not Meaning.RATE
            and (facts.window_s is None or facts.window_s > RATE_WINDOW_S),
        source="code names of vendors' clients: Copilot, Codex, gateways"),
    Rule("a budget of days behind a gateway", QUOTA, status={403},
        phrase=r"\bquota (?:is |has been )?exceeded\b|\bout of call volume quota\b",
        source="https://learn.microsoft.com/azure/api-management/azure-openai-token-limit-policy"),
    # -- credentials, accounts, models
    Rule("the token has expired", AUTH_EXPIRED,
        words={"token_expired", "expired_token", "access_token_expired"},
        source="Soju06/codex-lb app/core/balancer/logic.py"),
    Rule("the key is not accepted", AUTH_INVALID,
        words={"incorrect_api_key", "invalid_api_key", "token_invalidated", "token_revoked",
        "wrong_api_key"}, names_credential=True,
        source="openai error-codes guide; groq, Cerebras, Codex 401, recorded"),
    # Anchored: other 400s echo what a user wrote.
    Rule("the key is not accepted", AUTH_INVALID, status={400, 403},
        phrase=r"^(?:(?:the|your|this) )?api[ -]?key (?:is |was )?(?:invalid|not valid|expired"
        r"|revoked|disabled)(?=[.,:;!]|$)|^(?:invalid|incorrect|wrong) api[ -]?key(?: provided)?"
        r"(?=[.,:;!]|$)|^please (?:pass|provide|use|supply) a valid api[ -]?key\b",
        source="Gemini 400 in OpenAI's dialect, quoted; gateways"),
    Rule("the credential is not accepted", AUTH_INVALID,
        words={"app_session_terminated", "invalid_authentication", "invalid_grant", "invalid_token",
        "refresh_token_expired", "refresh_token_invalidated", "refresh_token_reused"},
        source="openai error-codes guide; groq, Cerebras, Codex 401, recorded"),
    Rule("the account is closed or suspended", FORBIDDEN_ACCOUNT,
        words={"account_deactivated", "account_suspended", "organization_deactivated"},
        source="Soju06/codex-lb app/core/balancer/logic.py"),
    # The same from every account behind this address.
    Rule("the region or address is not served", REQUEST_ERROR,
        words={"unsupported_country_region_territory"}, source="openai error-codes guide (403)"),
    Rule("the region or address is not served", REQUEST_ERROR, status={0, 400, 403},
        phrase=r"\b(?:country|region|territory)\b[^.]{0,40}\b(?:not|is ?n't) (?:supported"
        r"|available)\b|\b(?:not|is ?n't) (?:supported|available) in (?:your|this) (?:country"
        r"|region)\b", source="openai error-codes guide (403); anomalyco/opencode RegionError"),
    Rule("the plan does not include this model", FORBIDDEN_ACCOUNT, MODEL,
        words={"model_not_supported", "tier_not_allowed"}, model=named_model,
        source="Mistral 403; Copilot 400 model_not_supported"),
    Rule("no access to this model", FORBIDDEN_ACCOUNT, MODEL, status={401, 403},
        phrase=r"(?:\bnot|n.t) have (?:access|permission) to (?:(?:use|call|access) )?"
        r"(?:\w+ ){0,2}?model\b|\bmodel not allowed\b"
        r"|\bnot (?:allowed|authorized|permitted|entitled) to (?:use|call|access)"
        r" (?:\w+ ){0,2}?model\b"
        r"|\ballowed to (?:sample|generate \w+) from this model\b", model=named_model,
        source="openai error-codes guide (403 model_not_found)"),
    Rule("no such model, or not for this account", REQUEST_ERROR, status={0, 400, 403, 404},
        words={"model_not_found", "model_not_available", "unknown_model"}, missing_model=True,
        source="openai error-codes guide (404); Cerebras 404, recorded"),
    Rule("no such model, or not for this account", REQUEST_ERROR, status={0, 400, 404},
        phrase=r"^(?:the )?(?:requested )?model (?:[`'\"]?[\w./:@~-]{1,120}[`'\"]? )?(?:does not"
        r" exist|(?:was |is |could )?not (?:be )?found|is archived)\b"
        r"|^(?:model|function|deployment)\b.{0,80}\bnot found for (?:this )?(?:account|project)\b",
        missing_model=True, source="vLLM, NVIDIA and Cerebras 404, quoted"),
    # The vendor's own trouble, said to be the request's.
    Rule("the model has failed", SERVER_ERROR, status={0, 400, 404, 429},
        phrase=r"\bdegraded function cannot be invoked\b|\bmodel-side\b[^.]{0,30}\berror\b",
        source="NVIDIA and Fireworks 400, quoted"),
    *GENERAL_RULES,
    # What is for a time says no more than the status.
    Rule("the account is closed or suspended", FORBIDDEN_ACCOUNT, status={401, 403},
        phrase=r"^(?!.*\btemporar)(?:.*[.:,] )?(?:(?:your|this|the) )?(?:\w+ )?"
        r"(?:account|organi[sz]ation|project|workspace|user)\b[^.]{0,30}"
        r"\b(?:has|have|was|is|been) (?:been )?(?:permanently )?"
        r"(?:suspended|banned|deactivated|disabled|terminated|closed)\b"
        r"|\bdisabled in this account for violation\b"
        r"|(?:账[号户]|用户).{0,6}(?:已?被)?(?:永久)?(?:封禁|禁用|停用)",
        when=lambda facts: facts.meaning is None,
        source="google-gemini/gemini-cli#19501; Copilot 403 spammy_user, recorded"),
    # Some gateways answer a request's own fault with a 429.
    Rule("request error", REQUEST_ERROR, status={0, 429},
        words={"array_above_max_length", "context_length_exceeded", "context_window_exceeded",
        "invalid_encrypted_content", "invalid_image_url", "invalid_prompt",
        "model_max_prompt_tokens_exceeded", "string_above_max_length", "tool_use_failed",
        "unsupported_api_for_model", "unsupported_parameter", "unsupported_value"},
        when=lambda facts: facts.meaning is None,
        source="openai API reference, ResponseError; Copilot clients"),
    # -- rates
    Rule("rate limit", RATE_LIMIT,
        words={"limit_burst_rate", "limit_requests", "rate_limit", "rate_limit_error",
        "rate_limit_exceeded", "rate_limit_reached", "rate_limited", "rate_limit_reached_error",
        "request_quota_exceeded", "resource-exhausted", "throttled", "throttling_error",
        "throttling_exception", "token_quota_exceeded", "tokens_limit_reached",
        "too_many_requests", "too_many_requests_error"},
        source="type and code names of rate limits: openai, groq, Cerebras, Mistral, xAI"),
    # The type of a limit is what ran out.
    Rule("rate limit", RATE_LIMIT, status={0, 429},
        words={"tokens", "requests", "input-images", "images"},
        source="openai/codex#88, continuedev/continue#11472"),
    Rule("rate limit", RATE_LIMIT, status={0, 429},
        phrase=r"\brate limit (?:is |has been )?(?:reached|exceeded)\b",
        source="answers that carry a message only: Mistral, OpenRouter, DeepSeek, Copilot"),
    # Beside a 429 it is the name of the status.
    Rule("rate limit", RATE_LIMIT, status={0}, phrase=r"\btoo many requests\b",
        source="streams that carry a message only: Copilot"),
    # -- an answer inside a success that names no status
    Rule("the token has expired", AUTH_EXPIRED, status={0},
        phrase=r"^(?:(?:the|your) )?(?:(?:access|auth|api) )?(?:token|key) (?:has |is )?expired\b",
        source=_BAIDU),
    Rule("the credential is not accepted", AUTH_INVALID, status={0},
        when=lambda facts: any(_NOT_ACCEPTED.match(word) for word in facts.words),
        source="https://cloud.tencent.com/document/api/1729/101843: AuthFailure.*"),
    Rule("the credential is not accepted", AUTH_INVALID, status={0},
        phrase=r"^(?:(?:the|your) )?(?:access token|api ?key|token) (?:is )?(?:invalid|not valid)\b"
        r"|^(?:invalid|incorrect) (?:access token|api ?key|token)\b", source=_BAIDU),
    # -- an event inside a stream names no status: its code must say whose fault it is
    Rule("request error", REQUEST_ERROR, status={0},
        words={"bad_request", "bio_policy", "content_filter", "content_policy_violation",
        "context_length_exceeded", "context_window_exceeded", "cyber_policy",
        "image_content_policy_violation", "invalid_encrypted_content", "invalid_prompt",
        "invalid_request", "invalid_request_body", "invalid_request_error", "invalid_value",
        "missing_required_parameter", "model_not_found", "not_found_error", "off_topic",
        "previous_response_not_found", "request_too_large", "string_above_max_length",
        "unsupported_parameter", "unsupported_value", "websocket_connection_limit_reached"},
        source="openai API reference, ResponseError; Copilot, Codex clients"),
    Rule("request error", REQUEST_ERROR, status={0},
        when=lambda facts: any(_ABOUT_INPUT.match(word) for word in facts.words),
        source="openai API reference, ResponseError: invalid_image, image_too_large, ..."),
)  # fmt: skip
