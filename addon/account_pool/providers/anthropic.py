"""Anthropic API keys: api.anthropic.com.

https://docs.anthropic.com/en/api/overview. Subscription tokens of Claude Code are
another kind of credential that only serves that client: its requests pass.

What is refused, to keys and to subscriptions: https://docs.anthropic.com/en/api/errors. Limits
of keys belong to the organisation (or workspace) and model class, with `anthropic-ratelimit-*`
headers on every response. Those of subscriptions are windows, in `anthropic-ratelimit-unified-*`
headers on every response: `5h` and `7d` of the whole account, `7d_<family>` of some models.
They belong to a seat, so accounts of one organisation do not share them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from account_pool.core import reset_hints
from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.headroom_parsing import LETTER_S, REJECTED
from account_pool.core.json_values import members, text_in
from account_pool.core.meaning import LazyPattern, Meaning
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
    SignalTable,
    Wait,
    latest,
    prose,
    retry_after,
    retry_after_ms,
    rules,
    spent_window,
)
from account_pool.core.sse import Verdict
from account_pool.providers import envelopes, openai, sessions
from account_pool.providers.base import (
    MODELS,
    HostRule,
    LocalResponse,
    Provider,
    RequestHead,
    Route,
    Swap,
    bearer,
)
from account_pool.providers.common_signals import (
    COMPATIBLE_RULES,
    beyond_the_plan,
    long_context,
)
from account_pool.providers.sessions import StoredObjects

_I = re.IGNORECASE

# -- who serves a request

_POOL_POST = frozenset(
    {
        "/v1/chat/completions",
        "/v1/complete",
        "/v1/messages",
        "/v1/messages/count_tokens",
    }
)
# https://docs.anthropic.com/en/api
STORED = StoredObjects.of("/v1", together=("files", "messages/batches", "skills"))


def route(head: RequestHead) -> Route:
    """Say who serves a request.

    What is under `/api` (login, settings, telemetry of Claude Code) and under
    `/v1/organizations` passes.
    """
    pooled = (
        (head.method == "POST" and head.path in _POOL_POST)
        or (head.method == "GET" and MODELS.fullmatch(head.path) is not None)
        or STORED.route(head)
    )
    return Route.POOL if pooled and not is_subscription(head) else Route.PASS


def is_subscription(head: RequestHead) -> bool:
    """Say whether the request carries a subscription token.

    Told from the token, not the header: SDKs send API keys as Bearer too.
    """
    return (
        bearer(head).startswith("sk-ant-oat")
        or head.headers.get("x-api-key", "").startswith("sk-ant-oat")
        or "oauth-2025-04-20" in head.headers.get("anthropic-beta", "")
    )


# -- the credential


def swap(_account: Account, credential: Credential) -> Swap:
    """Put the key in `x-api-key`; exactly one of the two headers may remain."""
    key = (b"x-api-key", credential.secret.reveal().encode())
    return Swap(headers=(key,), drop=_CREDENTIAL_HEADERS)


_CREDENTIAL_HEADERS = frozenset({b"authorization", b"x-api-key"})


def misplaced(token: str) -> str | None:
    """Say where a token of a subscription belongs."""
    if token.startswith("sk-ant-oat"):
        return "it is one of a Claude subscription: write provider: claude-code"
    return None


# -- windows of subscriptions

_UNIFIED = "anthropic-ratelimit-unified-"
# `5h`, `7d`: the whole account. `7d_oi`, `7d_opus`: one family of models.
_WINDOW_STATUS = LazyPattern(_UNIFIED + r"(\d+[mhd])([_-](?!overage)\w+)?-status")
#: Headers that name the moment of return.
WINDOW_RESETS = tuple(
    f"{_UNIFIED}{window}reset" for window in ("", "5h-", "7d-", "7d_oi-", "7d_opus-", "7d_sonnet-")
)


def _rejected_windows(facts: ErrorFacts) -> Iterable[tuple[str, str | None]]:
    """Yield the spent windows: (name such as "5h", family or None)."""
    for name, value in facts.headers.items():
        found = _WINDOW_STATUS.fullmatch(name)
        if found and value.strip().lower() in REJECTED:
            yield found[1], found[2]


def _is_spent(facts: ErrorFacts) -> bool:
    """Say whether the response as a whole is rejected for a window."""
    return facts.headers.get(_UNIFIED + "status", "").strip().lower() in REJECTED


def _account_window_spent(facts: ErrorFacts) -> bool:
    return any(family is None for _, family in _rejected_windows(facts))


def _short_account_window_spent(facts: ErrorFacts) -> bool:
    lengths = [
        int(window[:-1]) * LETTER_S[window[-1]]
        for window, family in _rejected_windows(facts)
        if family is None
    ]
    return bool(lengths) and max(lengths) <= LETTER_S["h"]


def _family_window_spent(facts: ErrorFacts) -> bool:
    if any(family is not None for _, family in _rejected_windows(facts)):
        return True
    if not _is_spent(facts):
        return False
    if _claim_family(facts) is not None:
        return True
    # Rejected, yet the windows of the account that are named are allowed: it is one
    # that is not named, unless the claim says which.
    claimed = _CLAIMED.get(_claim(facts))
    names = [name for name in facts.headers if _WINDOW_STATUS.fullmatch(name)]
    return bool(names) and (claimed is None or f"{_UNIFIED}{claimed}-status" in names)


_CLAIMED = {"five_hour": "5h", "seven_day": "7d"}


def _claim(facts: ErrorFacts) -> str:
    return facts.headers.get(_UNIFIED + "representative-claim", "").strip().lower()


def _claim_family(facts: ErrorFacts) -> str | None:
    """Return the family in `representative-claim: seven_day_opus`."""
    found = re.fullmatch(r"(?:five_hour|seven_day)_(\w+)", _claim(facts))
    return found[1] if found else None


def _rejected_reset(facts: ErrorFacts) -> float | None:
    """The latest reset of the spent windows; on an allowed one it is information only."""
    spent = list(_rejected_windows(facts))
    account_wide = any(family is None for _, family in spent)
    waits = [
        reset_hints.reset(facts.headers.get(f"{_UNIFIED}{window}{family or ''}-reset"), facts.now)
        for window, family in spent
        if family is None or not account_wide
    ]
    if None in waits:
        # A spent window without a reset of its own: it may be the one that was meant.
        waits += [retry_after(facts), _unified_reset(facts)]
    return latest(waits)


def _is_overage(facts: ErrorFacts) -> bool:
    """Say whether paid overage is what was rejected: its reset ends a month of billing."""
    return _claim(facts) == "overage"


def _unified_reset(facts: ErrorFacts) -> float | None:
    """The aggregate's reset, which belongs to the representative window."""
    if _is_overage(facts):
        return None
    return reset_hints.reset(facts.headers.get(_UNIFIED + "reset"), facts.now)


_WINDOW_WAITS: tuple[Wait, ...] = (_rejected_reset, retry_after, _unified_reset)


def _family(facts: ErrorFacts) -> str | None:
    for _, family in _rejected_windows(facts):
        if family is not None:
            return family[1:]
    return _claim_family(facts)


_FAMILIES = frozenset({"fable", "haiku", "opus", "sonnet"})


def _family_models(facts: ErrorFacts) -> str | None:
    """Return the models of a family that goes by the name they have.

    None for a code name (`7d_oi`), and where the request was for another family: all that
    is certain then is the model it asked for.
    """
    family = _family(facts)
    if family not in _FAMILIES or family not in (facts.model or family):
        return None
    return f"claude-*{family}*"


# "You've reached your Opus limit", "your weekly limit for Opus"; not "switch to Sonnet".
_NAMED_FAMILY = LazyPattern(
    r"\b(fable|haiku|opus|sonnet)(?: \d[\d.]*)?(?: (?:weekly|usage|model))? limits?\b"
    r"|\blimits? (?:for|on) (?:claude )?(fable|haiku|opus|sonnet)\b",
    _I,
)


def _limited_family(facts: ErrorFacts) -> str | None:
    """Return the models of the family whose limit a sentence says is reached."""
    found = _NAMED_FAMILY.search(facts.message) if facts.meaning is Meaning.PLAN else None
    return f"claude-*{(found[1] or found[2]).lower()}*" if found else None


def _detailed_model(facts: ErrorFacts) -> str | None:
    """Return the model that the details of an error name."""
    return text_in(members(facts.error.get("details")).get("model"))


def _is_allowed(facts: ErrorFacts) -> bool:
    """Say whether the windows that are named still serve, and no wait is."""
    if says_limit(facts):
        return False
    names = (name for name in facts.headers if _WINDOW_STATUS.fullmatch(name))
    return "retry-after" not in facts.headers and (
        _UNIFIED + "status" in facts.headers or any(names)
    )


def says_limit(facts: ErrorFacts) -> bool:
    """Say whether the sentence speaks of the plan or of money, whatever headers say."""
    return facts.meaning in (Meaning.PLAN, Meaning.MONEY)


SUBSCRIPTION_RULES = rules(
    "tombii/better-ccflare docs/routing-architecture.md",
    # Windows only at a 429: one may be rejected on a response that is refused for another
    # reason, or served by extra usage.
    Rule("a window of an hour or less is spent", RATE_LIMIT, ACCOUNT, status={429},
        when=_short_account_window_spent, waits=_WINDOW_WAITS),
    Rule("a window of the subscription is spent", QUOTA, status={429},
        when=_account_window_spent, waits=_WINDOW_WAITS),
    Rule("the window of a model family is spent", QUOTA, MODEL, status={429},
        when=_family_window_spent, waits=_WINDOW_WAITS, model=_family, feature=_family_models,
        source="router-for-me/CLIProxyAPI claude_executor_fable_ratelimit_test.go"),
    # The windows of the plan return sooner than the month that is billed.
    Rule("paid overage is rejected", QUOTA, status={429},
        when=lambda facts: _is_spent(facts) and _is_overage(facts), waits=(),
        source="https://github.com/router-for-me/CLIProxyAPI/issues/5770"),
    Rule("the subscription is spent", QUOTA, status={429}, when=_is_spent, waits=_WINDOW_WAITS),
    Rule("the limit of a model family is reached", QUOTA, MODEL, status={0, 400, 403, 429},
        when=lambda facts: _limited_family(facts) is not None, feature=_limited_family,
        explicit=True, source="notices of Claude Code 2.1: You've reached your Opus limit"),
    # Other models, or the same without a long context, still work.
    Rule("no credit for what goes beyond the plan", QUOTA, MODEL, status={0, 429},
        when=lambda facts:
            facts.headers.get(_UNIFIED + "overage-disabled-reason") == "out_of_credits",
        waits=(), source="tombii/better-ccflare anthropic/__tests__/out-of-credits.test.ts"),
    # A model or feature the plan does not pay for: all else serves.
    Rule("it needs usage credits", QUOTA, MODEL, status={0, 400, 402, 403, 429},
        words={"credits_required"}, waits=(), feature=beyond_the_plan, model=_detailed_model,
        source="router-for-me/CLIProxyAPI providererror: details.error_code"),
    Rule("long context needs extra usage", QUOTA, MODEL, means=Meaning.EXTRA, waits=(),
        feature=beyond_the_plan,
        source="Wei-Shaw/claude-relay-service src/services/relay/claudeRelayService.js"),
    Rule("the organisation allows no subscription tokens", FORBIDDEN_ACCOUNT, status={401, 403},
        words={"oauth_not_allowed_for_organization"},
        source="Anthropic 403, details.error_code, quoted"),
    Rule("extra usage of another client is spent", QUOTA, status={0, 400, 403, 429},
        phrase=r"\bdraw from your extra usage\b|^you're out of extra usage\b", waits=(),
        source="tombii/better-ccflare anthropic/__tests__/extra-usage-exhausted.test.ts"),
    Rule("the plan has no long context", FORBIDDEN_ACCOUNT, MODEL, status={400, 403},
        phrase=r"^the long context beta is not yet available\b", feature=long_context,
        source="Anthropic 400, reported"),
    Rule("no window is spent: a limit of this request, or of the address", RATE_LIMIT, Scope.NONE,
        status={429}, when=_is_allowed,
        source="tombii/better-ccflare docs/reports/keepalive-cooldown-gap.md"),
    # Says nothing about the health of the account.
    Rule("a subscription token on a request of another client", REQUEST_ERROR,
        phrase=r"^this credential is only authorized for use with claude code\b",
        source="Wei-Shaw/claude-relay-service src/services/relay/claudeRelayService.js"),
    # The same for every account: benching on it would empty the pool.
    Rule("the flag for subscription tokens is missing", REQUEST_ERROR,
        phrase=r"^oauth authentication is currently not supported\b",
        source="Anthropic 401, recorded"),
    Rule("the token has been revoked", AUTH_INVALID, status={401, 403},
        phrase=r"^oauth token has been revoked\b", source="Anthropic 401 and 403, recorded"),
    # It serves all the same: `claude setup-token` gives no others.
    Rule("a token for inference only, asked about its owner", REQUEST_ERROR, status={401, 403},
        phrase=r"\bdoes not meet scope requirement\b", source="Anthropic 403, recorded"),
    Rule("the organisation allows no subscription tokens", FORBIDDEN_ACCOUNT, status={401, 403},
        phrase=r"^oauth authentication is currently not allowed\b",
        source="Anthropic 403, recorded"),
)  # fmt: skip


# -- limits of keys

_ERRORS = "https://docs.anthropic.com/en/api/errors"

#: Headers that name the moment at which a window of a key is full again.
KEY_RESETS = tuple(
    f"anthropic-ratelimit-{counted}-reset"
    for counted in ("input-tokens", "output-tokens", "requests", "tokens")
)

_HAS_WINDOW_HEADER = LazyPattern(
    r"anthropic-(?:priority-|fast-)?ratelimit-(?:(?:input-|output-)?tokens|requests)-\w+"
)


def _is_about_model(facts: ErrorFacts) -> bool:
    """Say whether a limit names what is counted per model class: requests or tokens."""
    if any(_HAS_WINDOW_HEADER.fullmatch(name) for name in facts.headers):
        return True
    return facts.window_s is not None and bool(_COUNTED.search(facts.message))


_COUNTED = LazyPattern(r"\b(?:tokens?|requests?)\b", _I)


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


# -- what a response says


def judge(name: str | None, value: Any) -> Verdict:
    """Say what an event or a JSON body is; the compatible path speaks OpenAI's dialect."""
    if isinstance(value, dict) and value.get("type") in ("message_start", "ping"):
        return Verdict.CONTINUE
    return openai.judge(name, value)


SIGNALS = SignalTable(rules=RULES, judge=judge, waits=WAITS, shared=True)


def owner(headers: Mapping[str, str]) -> str | None:
    """Return the organisation, whose keys share their limits."""
    return headers.get("anthropic-organization-id")


# -- refusals of our own

_ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_type(status: int) -> str:
    usual = "api_error" if status >= 500 else "invalid_request_error"
    return _ERROR_TYPES.get(status, usual)


def refusal(status: int, message: str, wait_s: float | None) -> LocalResponse:
    """`{"type": "error", "error": {type, message}}`."""
    error = {"type": error_type(status), "message": message}
    return envelopes.sdk_response(status, wait_s, {"type": "error", "error": error})


PROVIDER = Provider(
    name="anthropic",
    hosts=(HostRule("api.anthropic.com"),),
    env=("ANTHROPIC_API_KEY",),
    route=route,
    credential_headers=_CREDENTIAL_HEADERS,
    conversation=partial(sessions.conversation, stored=STORED),
    created_ids=partial(sessions.ids_in_response, stored=STORED),
    swap=swap,
    judge=judge,
    classify=SIGNALS.classify,
    signals=SIGNALS,
    refusal=refusal,
    delay=envelopes.sdk_delay,
    delay_headers=envelopes.SDK_DELAY_HEADERS,
    instants=dict.fromkeys(KEY_RESETS, envelopes.rfc3339),
    misplaced=misplaced,
    owner=owner,
)
