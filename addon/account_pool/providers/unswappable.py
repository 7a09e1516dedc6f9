"""APIs whose requests cannot be made another account's: they pass, and the log says why.

Nothing of them is decrypted or pooled: the proxy knows their hosts only. What Vertex and
Bedrock say when they refuse is for `account-pool classify`. Vertex: google.rpc as Gemini, per
project, region and model. Bedrock: an exception's name and a sentence.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import ErrorFacts, Scope
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
from account_pool.providers.common_signals import COMPATIBLE_RULES
from account_pool.providers.compatible import judge


class Unswappable(Struct, frozen=True, kw_only=True):
    """An API that is recognised and left alone.

    Attributes:
        name: as a user would write it under `provider:`.
        host: matched whole, lower case.
        why: in a few words.
        source: where the vendor says so.
    """

    name: str
    host: LazyPattern[str]
    why: str
    source: str


UNSWAPPABLE: tuple[Unswappable, ...] = (
    Unswappable(
        name="vertex",
        host=LazyPattern(r"(?:[a-z0-9-]+-)?aiplatform(?:\.[a-z0-9-]+\.rep)?\.googleapis\.com"),
        why="project and region are part of each request, and a token serves its own only",
        source="https://cloud.google.com/vertex-ai/docs/reference/rest",
    ),
    Unswappable(
        name="bedrock",
        host=LazyPattern(
            r"bedrock(?:-agent)?-runtime(?:-fips)?\.[a-z0-9-]+"
            r"\.(?:amazonaws\.com(?:\.cn)?|api\.aws)"
        ),
        why="each request is signed with the account's own key over host, headers and body",
        source="https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html",
    ),
)


def find(host: str) -> Unswappable | None:
    """Return the API that lives at *host*, None if it is none of these."""
    host = host.lower().rstrip(".")
    return next((one for one in UNSWAPPABLE if one.host.fullmatch(host)), None)


def named(provider: str) -> Unswappable | None:
    """Return the API a user calls *provider*, None if it is none of these."""
    return next((one for one in UNSWAPPABLE if one.name == provider), None)


# -- what they say when they refuse

_CODES = "https://docs.aws.amazon.com/bedrock/latest/userguide/troubleshooting-api-error-codes.html"


def _is(*exceptions: str) -> Callable[[ErrorFacts], bool]:
    """Say whether a response names one of *exceptions*: in a header, or in the body."""

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
