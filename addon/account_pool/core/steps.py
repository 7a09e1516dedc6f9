"""What may come next for a request, and where it stands: the words of `attempts`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from account_pool.core.account import AccountKey
from account_pool.core.admission import Ticket
from account_pool.core.lease import Lease
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
    #: do not reuse a kept connection
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until *until* (monotonic seconds), or until *ticket* is called."""

    until: float
    #: the request's place among those who wait for an account. None: only time ends it.
    ticket: Ticket | None = None


@dataclass(frozen=True, slots=True)
class Refresh:
    """Renew the credential of this lease, then say whether it changed."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand the refused answer to the client.

    Attributes:
        retry_after_s: seconds until an account returns; None: leave the wait as it is.
        again: accounts are left that were not asked: the client should try again.
    """

    retry_after_s: float | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """There is no answer to hand on: make one.

    Attributes:
        status: 429 (limits), 502 (broken), 504 (silent) or 503 (nobody can serve); 401
            (credentials), 402 (money), 403 (accounts) or 404 (model) where only the owner can
            cure it.
        message: for people; no secrets.
        retry_after_s: as in `Deliver`.
        like: the account whose own last refusal says it best, if it is known.
        reason: *message* without the name it begins with, for records that name it anyway.
        unreachable: the way to the provider is barred until its owner does something.

    `final`: only the owner can cure it, so trying again is no use.
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


Step = Send | Wait | Refresh | Deliver | Answer


class Phase(Enum):
    """Where a request stands; it decides which events are legal."""

    #: only `begin`
    NEW = "new"
    #: an attempt runs: `refused`, `broken` or `committed`
    SENT = "sent"
    #: nobody can serve, or a pause before the same account is asked again: `resumed`
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
    Answer: Phase.OVER,
}
