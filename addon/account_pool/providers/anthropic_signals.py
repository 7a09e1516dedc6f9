"""What api.anthropic.com says when it refuses, to API keys and to subscriptions.

Error types: https://docs.anthropic.com/en/api/errors. Limits of keys belong to the
organisation (or workspace) and model class, with `anthropic-ratelimit-*` headers on
every answer; those of subscriptions are windows, `anthropic-ratelimit-unified-*`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from account_pool.core import reset_hints
from account_pool.core.facts import Facts
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.signals import Rule, SignalTable
from account_pool.core.sse import Judge
from account_pool.core.waits import Wait, prose, retry_after, retry_after_ms, spent_window
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_I = re.IGNORECASE
_ERRORS = "https://docs.anthropic.com/en/api/errors"
_CCF = "tombii/better-ccflare docs/routing-architecture.md"

# -- windows of a subscription

_UNIFIED = "anthropic-ratelimit-unified-"
# `5h`, `7d`: the whole account. `7d_oi`, `7d_opus`: one family of models.
_WINDOW_STATUS = re.compile(_UNIFIED + r"(\d+[mhd])(_\w+)?-status")
#: Of a window that is spent. `allowed_warning` and `queueing_soft` still serve.
_REJECTED = frozenset({"rejected", "rate_limited", "blocked", "queueing_hard", "payment_required"})
_UNIT_S = {"m": 60.0, "h": 3600.0, "d": 86_400.0}


def _rejected_windows(facts: Facts) -> Iterable[tuple[str, str | None]]:
    """Yield the spent windows: (name such as "5h", family or None)."""
    for name, value in facts.headers.items():
        found = _WINDOW_STATUS.fullmatch(name)
        if found and value.strip().lower() in _REJECTED:
            yield found[1], found[2]


def _is_spent(facts: Facts) -> bool:
    """Say whether the answer as a whole is rejected for a window."""
    return facts.headers.get(_UNIFIED + "status", "").strip().lower() in _REJECTED


def _account_window_spent(facts: Facts) -> bool:
    return any(family is None for _, family in _rejected_windows(facts))


def _short_account_window_spent(facts: Facts) -> bool:
    lengths = [
        int(window[:-1]) * _UNIT_S[window[-1]]
        for window, family in _rejected_windows(facts)
        if family is None
    ]
    return bool(lengths) and max(lengths) <= _UNIT_S["h"]


def _family_window_spent(facts: Facts) -> bool:
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


def _claim(facts: Facts) -> str:
    return facts.headers.get(_UNIFIED + "representative-claim", "").strip().lower()


def _claim_family(facts: Facts) -> str | None:
    """Return the family in `representative-claim: seven_day_opus`."""
    found = re.fullmatch(r"(?:five_hour|seven_day)_(\w+)", _claim(facts))
    return found[1] if found else None


def _rejected_reset(facts: Facts) -> float | None:
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
    return max((wait for wait in waits if wait is not None), default=None)


def _unified_reset(facts: Facts) -> float | None:
    """The aggregate's reset, which belongs to the representative window."""
    return reset_hints.reset(facts.headers.get(_UNIFIED + "reset"), facts.now)


_WINDOW_WAITS: tuple[Wait, ...] = (_rejected_reset, retry_after, _unified_reset)


def _family(facts: Facts) -> str | None:
    for _, family in _rejected_windows(facts):
        if family is not None:
            return family[1:]
    return _claim_family(facts)


# A window may be rejected on an answer that is refused for another reason, or served
# by extra usage.
_LIMITED = frozenset({429})

SUBSCRIPTION_RULES: tuple[Rule, ...] = (
    Rule(
        why="a window of an hour or less is spent",
        cls=OutcomeClass.RATE_LIMIT,
        scope=Scope.ACCOUNT,
        status=_LIMITED,
        when=_short_account_window_spent,
        waits=_WINDOW_WAITS,
        source=_CCF,
    ),
    Rule(
        why="a window of the subscription is spent",
        cls=OutcomeClass.QUOTA,
        status=_LIMITED,
        when=_account_window_spent,
        waits=_WINDOW_WAITS,
        source=_CCF,
    ),
    Rule(
        why="the window of a model family is spent",
        cls=OutcomeClass.QUOTA,
        scope=Scope.MODEL,
        status=_LIMITED,
        when=_family_window_spent,
        waits=_WINDOW_WAITS,
        model=_family,
        source="router-for-me/CLIProxyAPI claude_executor_fable_ratelimit_test.go",
    ),
    Rule(
        why="the subscription is spent",
        cls=OutcomeClass.QUOTA,
        status=_LIMITED,
        when=_is_spent,
        waits=_WINDOW_WAITS,
        source=_CCF,
    ),
    Rule(
        why="no credit for what goes beyond the plan",
        cls=OutcomeClass.QUOTA,
        scope=Scope.MODEL,
        # Other models, or the same without a long context, still work.
        status=frozenset({0, 429}),
        when=lambda facts: (
            facts.headers.get(_UNIFIED + "overage-disabled-reason", "") == "out_of_credits"
        ),
        waits=(),
        source="tombii/better-ccflare anthropic/__tests__/out-of-credits.test.ts",
    ),
    Rule(
        why="long context needs extra usage",
        cls=OutcomeClass.QUOTA,
        scope=Scope.MODEL,
        status=frozenset({0, 429}),
        phrase=re.compile(r"^extra usage is required for long context\b", _I),
        waits=(),
        source="Wei-Shaw/claude-relay-service src/services/relay/claudeRelayService.js",
    ),
    Rule(
        why="extra usage of another client is spent",
        cls=OutcomeClass.QUOTA,
        status=frozenset({0, 400, 403, 429}),
        phrase=re.compile(r"\bdraw from your extra usage\b|^you're out of extra usage\b", _I),
        waits=(),
        source="tombii/better-ccflare anthropic/__tests__/extra-usage-exhausted.test.ts",
    ),
    Rule(
        why="a subscription token on a request of another client",
        cls=OutcomeClass.REQUEST_ERROR,
        # Says nothing about the health of the account.
        phrase=re.compile(r"^this credential is only authorized for use with claude code\b", _I),
        source="Wei-Shaw/claude-relay-service src/services/relay/claudeRelayService.js",
    ),
    Rule(
        why="the flag for subscription tokens is missing",
        cls=OutcomeClass.REQUEST_ERROR,
        # The same for every account: benching on it would empty the pool.
        phrase=re.compile(r"^oauth authentication is currently not supported\b", _I),
        source="Anthropic 401, recorded",
    ),
    Rule(
        why="the token has been revoked",
        cls=OutcomeClass.AUTH_INVALID,
        status=frozenset({401, 403}),
        phrase=re.compile(r"^oauth token has been revoked\b", _I),
        source="Anthropic 401 and 403, recorded",
    ),
)

# -- keys

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


def signals(judge: Judge) -> SignalTable:
    """Return the table; a limit that names nothing reaches the account."""
    waits = (retry_after_ms, retry_after, spent_window, prose)
    return SignalTable(rules=RULES, judge=judge, rate_scope=Scope.ACCOUNT, waits=waits)
