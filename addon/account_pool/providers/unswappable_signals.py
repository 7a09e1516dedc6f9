"""What Vertex and Bedrock say when they refuse, for `account-pool classify` only.

Vertex: google.rpc as Gemini, per project, region and model. Bedrock: an exception's name
and a sentence (https://docs.aws.amazon.com/bedrock/latest/userguide/troubleshooting-api-error-codes.html).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from account_pool.core.error_facts import ErrorFacts
from account_pool.core.outcome import Scope
from account_pool.core.signals import (
    AUTH_EXPIRED,
    AUTH_INVALID,
    MODEL,
    OVERLOADED,
    QUOTA,
    RATE_LIMIT,
    Rule,
    SignalTable,
    rules,
)
from account_pool.providers import gemini
from account_pool.providers.compatible import judge
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_CODES = "https://docs.aws.amazon.com/bedrock/latest/userguide/troubleshooting-api-error-codes.html"


def _is(*exceptions: str) -> Callable[[ErrorFacts], bool]:
    """Say whether an answer names one of *exceptions*: in a header, or in the body."""

    def matches(facts: ErrorFacts) -> bool:
        named = f"{facts.headers.get('x-amzn-errortype', '')} {facts.error.get('__type', '')}"
        return any(exception in named for exception in exceptions)

    return matches


BEDROCK_RULES = rules(
    _CODES,
    Rule("tokens or requests of the day", QUOTA, MODEL, status={0, 400, 429},
        phrase=r"\btoo many \w+ per day\b"),
    Rule("no capacity", OVERLOADED,
        when=_is("ModelNotReadyException", "ServiceUnavailableException")),
    Rule("throttled", RATE_LIMIT, when=_is("ThrottlingException", "TooManyRequestsException")),
    Rule("throttled", RATE_LIMIT, status={0, 429},
        phrase=r"\btoo many (?:tokens|requests|connections)\b", source="Bedrock 429, recorded"),
    Rule("the quota of the service", QUOTA, MODEL, when=_is("ServiceQuotaExceededException")),
    Rule("the signature or token has expired", AUTH_EXPIRED, when=_is("ExpiredToken")),
    Rule("the signature or token has expired", AUTH_EXPIRED, status={401, 403},
        phrase=r"\b(?:token|signature)\b.*\bexpired\b"),
    Rule("the credential is not accepted", AUTH_INVALID,
        when=_is("UnrecognizedClientException", "InvalidSignatureException")),
    Rule("the credential is not accepted", AUTH_INVALID, status={401, 403},
        phrase=r"\bsecurity token\b.*\binvalid\b|\brequest signature\b"),
    *COMPATIBLE_RULES,
)  # fmt: skip

BEDROCK = SignalTable(rules=BEDROCK_RULES, judge=judge, rate_scope=Scope.MODEL)
VERTEX: SignalTable = replace(gemini.SIGNALS, rate_scope=Scope.MODEL)
