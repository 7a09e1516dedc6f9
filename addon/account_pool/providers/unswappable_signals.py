"""What Vertex and Bedrock say when they refuse, for `account-pool classify` only.

Vertex: google.rpc as Gemini, per project, region and model. Bedrock: an exception's name
and a sentence (https://docs.aws.amazon.com/bedrock/latest/userguide/troubleshooting-api-error-codes.html).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from account_pool.core.facts import Facts
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.signals import Rule, SignalTable
from account_pool.providers import gemini
from account_pool.providers.compatible import judge
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_I = re.IGNORECASE
_CODES = "https://docs.aws.amazon.com/bedrock/latest/userguide/troubleshooting-api-error-codes.html"


def _is(*exceptions: str) -> Callable[[Facts], bool]:
    """Say whether an answer names one of *exceptions*: in a header, or in the body."""

    def matches(facts: Facts) -> bool:
        named = f"{facts.headers.get('x-amzn-errortype', '')} {facts.error.get('__type', '')}"
        return any(exception in named for exception in exceptions)

    return matches


BEDROCK_RULES: tuple[Rule, ...] = (
    Rule(
        why="tokens or requests of the day",
        cls=OutcomeClass.QUOTA,
        scope=Scope.MODEL,
        status=frozenset({0, 400, 429}),
        phrase=re.compile(r"\btoo many \w+ per day\b", _I),
        source=_CODES,
    ),
    Rule(
        why="no capacity",
        cls=OutcomeClass.OVERLOADED,
        when=_is("ModelNotReadyException", "ServiceUnavailableException"),
        source=_CODES,
    ),
    Rule(
        why="throttled",
        cls=OutcomeClass.RATE_LIMIT,
        when=_is("ThrottlingException", "TooManyRequestsException"),
        source=_CODES,
    ),
    Rule(
        why="throttled",
        cls=OutcomeClass.RATE_LIMIT,
        status=frozenset({0, 429}),
        phrase=re.compile(r"\btoo many (?:tokens|requests|connections)\b", _I),
        source="Bedrock 429, recorded",
    ),
    Rule(
        why="the quota of the service",
        cls=OutcomeClass.QUOTA,
        scope=Scope.MODEL,
        when=_is("ServiceQuotaExceededException"),
        source=_CODES,
    ),
    Rule(
        why="the signature or token has expired",
        cls=OutcomeClass.AUTH_EXPIRED,
        when=_is("ExpiredToken"),
        source=_CODES,
    ),
    Rule(
        why="the signature or token has expired",
        cls=OutcomeClass.AUTH_EXPIRED,
        status=frozenset({401, 403}),
        phrase=re.compile(r"\b(?:token|signature)\b.*\bexpired\b", _I),
        source=_CODES,
    ),
    Rule(
        why="the credential is not accepted",
        cls=OutcomeClass.AUTH_INVALID,
        when=_is("UnrecognizedClientException", "InvalidSignatureException"),
        source=_CODES,
    ),
    Rule(
        why="the credential is not accepted",
        cls=OutcomeClass.AUTH_INVALID,
        status=frozenset({401, 403}),
        phrase=re.compile(r"\bsecurity token\b.*\binvalid\b|\brequest signature\b", _I),
        source=_CODES,
    ),
    *COMPATIBLE_RULES,
)

BEDROCK = SignalTable(rules=BEDROCK_RULES, judge=judge, rate_scope=Scope.MODEL)
VERTEX: SignalTable = replace(gemini.SIGNALS, rate_scope=Scope.MODEL)
