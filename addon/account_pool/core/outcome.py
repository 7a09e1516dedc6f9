"""What an answer means: for the account that gave it, and for the request.

Its words are those of docs/why.md. Providers turn an `UpstreamResponse` into an
`Outcome` (see `providers/`); the pool and the attempt machine act on it. This
module knows no provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from enum import StrEnum
from typing import Any

from account_pool.core.credential import Secret


class OutcomeClass(StrEnum):
    """The kind of an answer. Values are those of `account-pool classify`."""

    #: a good answer, past the first-event gate
    OK = "ok"
    #: asked to slow down; a window of an hour or less
    RATE_LIMIT = "rate_limit"
    #: a longer window, a plan limit, or money
    QUOTA = "quota"
    #: the vendor is short of capacity; another account does not help
    OVERLOADED = "overloaded"
    #: the vendor failed
    SERVER_ERROR = "server_error"
    #: the credential has run out; a refresh may help
    AUTH_EXPIRED = "auth_expired"
    #: the credential is not accepted
    AUTH_INVALID = "auth_invalid"
    #: this account cannot serve this: plan, policy, suspension, limit 0
    FORBIDDEN_ACCOUNT = "forbidden_account"
    #: the request's own fault; the same on every account
    REQUEST_ERROR = "request_error"
    #: no answer: connection failed or broke
    TRANSPORT = "transport"


class Scope(StrEnum):
    """How far the evidence of a limit reaches."""

    NONE = "none"
    ACCOUNT = "account"
    MODEL = "account+model"
    SERVER = "server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one answer means.

    Attributes:
        cls: the class.
        scope: how far it reaches; NONE means that nothing is to be cooled.
        cooldown_s: seconds until the named reset; None when the answer names none
            that can be used.
        replayable: whether another account may answer the same request.
        signal: the evidence in a few words, without user text or secrets, e.g.
            "429 code=insufficient_quota".
        explicit: a code or a sentence of the provider says so, not the status alone.
        unknown: nothing in the answer was understood: the class follows the status.
        names_credential: a code says that the credential itself is refused
            (`invalid_api_key`), so no other account need be asked to believe it.
        money: paying cures it, not waiting.
        evidence: values that speak of limits, by lower-case name of the header, or of
            the field of the error; the most telling first.
        model: the model (or family, or feature) a MODEL scope is about, when the
            answer itself names it; None: the model of the request.
        shared: the limit is that of the account's owner (organisation, team, project):
            every account of the same owner has it.
        owner: the owner, when the answer itself names it.
        missing_model: a request error that says this account does not have the model;
            another may have it.
    """

    cls: OutcomeClass
    scope: Scope = Scope.NONE
    cooldown_s: float | None = None
    replayable: bool = False
    signal: str = ""
    explicit: bool = True
    unknown: bool = False
    names_credential: bool = False
    money: bool = False
    evidence: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    shared: bool = False
    owner: str | None = None
    missing_model: bool = False

    @property
    def is_limit(self) -> bool:
        """Say whether something is to be cooled down for a limit."""
        limits = (OutcomeClass.RATE_LIMIT, OutcomeClass.QUOTA)
        return self.cls in limits and self.scope is not Scope.NONE

    def masked(self, secret: Secret) -> Outcome:
        """Return it without *secret*, which the answer may have echoed anywhere."""
        return replace(
            self,
            signal=secret.masked(self.signal),
            evidence={
                secret.masked(name): secret.masked(value) for name, value in self.evidence.items()
            },
            model=self.model and secret.masked(self.model),
            owner=self.owner and secret.masked(self.owner),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamResponse:
    """A provider's response as far as it was read: values only, already decoded.

    Attributes:
        status: HTTP status; for a WebSocket the status of the handshake.
        headers: by lower-case name; repeated headers joined with ", ".
        text: the body, decompressed, up to a bound; "" if there is none.
        payload: the JSON value that carries the verdict: the parsed body, or the data
            of the terminal event of a stream; None if it is not JSON.
        in_stream: *payload* came out of an event stream, array or socket that began
            with a success status.
        event: name of the stream event (`event:` line), if it had one.
        model: the model the request asked for, if known.
        wall_now: the proxy's clock, seconds since the epoch. The answer's own `date`
            header, when present, is preferred as "now".
        zone: the vendor's time zone, for dates that name none; None: UTC.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    payload: Any = None
    in_stream: bool = False
    event: str | None = None
    model: str | None = None
    wall_now: float = 0.0
    zone: tzinfo | None = None
