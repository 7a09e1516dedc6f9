"""The steps and phases of a request: what `attempts` returns, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from account_pool.core.account import AccountKey
from account_pool.core.lease import Lease, Ticket
from account_pool.core.outcome import Outcome


@dataclass(slots=True)
class Attempt:
    """One request sent upstream, for comments and logs."""

    number: int
    key: AccountKey
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request with this lease's credential."""

    lease: Lease
    #: use a new connection
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until *until* (monotonic seconds), or until *ticket* is called."""

    until: float
    #: the request's place among those that wait for an account. None: only time ends the wait.
    ticket: Ticket | None = None


@dataclass(frozen=True, slots=True)
class Refresh:
    """Renew the credential of this lease, then say whether it changed."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Deliver:
    """Deliver the provider's refusal to the client.

    Attributes:
        retry_after_s: seconds until an account returns; None: leave `Retry-After` as it is.
        again: some accounts were not asked: the client should try again.
    """

    retry_after_s: float | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Synthesize:
    """Make an error response: there is none of a provider to deliver.

    Attributes:
        status: 429 (limits), 502 (broken), 504 (silent) or 503 (no account can serve); 401
            (credentials), 402 (money), 403 (accounts) or 404 (model) if only the owner can
            help.
        message: for people; no secrets.
        retry_after_s: as in `Deliver`.
        like: the account with the refusal to imitate, if there is one.
        reason: *message* without the provider's name, for records that have it anyway.
        unreachable: the provider cannot be reached until the owner does something.

    `final`: only the owner can help, so trying again is no use.
    """

    status: int
    message: str
    retry_after_s: float | None = None
    like: AccountKey | None = None
    reason: str = ""
    unreachable: bool = False

    @property
    def final(self) -> bool:
        return self.unreachable or (400 <= self.status < 500 and self.status != 429)


Step = Send | Wait | Refresh | Deliver | Synthesize


class Phase(Enum):
    """Where a request stands; it decides which events are legal."""

    #: only `begin`
    NEW = "new"
    #: an attempt runs: `refused`, `broken` or `committed`
    SENT = "sent"
    #: no account can serve, or a pause before the same one is asked again: `resumed`
    WAITING = "waiting"
    #: `refreshed`
    REFRESHING = "refreshing"
    #: the client has its first byte: `finished`
    COMMITTED = "committed"
    #: nothing more
    OVER = "over"


PHASE_AFTER = {
    Send: Phase.SENT,
    Wait: Phase.WAITING,
    Refresh: Phase.REFRESHING,
    Deliver: Phase.OVER,
    Synthesize: Phase.OVER,
}
