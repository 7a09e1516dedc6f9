"""A lease: one account, held from selection to the end of its answer."""

from __future__ import annotations

from dataclasses import dataclass

from account_pool.core.account import Account, AccountKey
from account_pool.core.credential import Credential


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the pool must know about a request to choose an account.

    Attributes:
        provider: whose API it is.
        kind: the kind of credential it takes; kinds never mix.
        model: the model it asks for; None if unknown.
        socket: it opens a WebSocket, whose messages will ask for models nobody knows yet.
    """

    provider: str
    kind: str
    model: str | None = None
    socket: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Lease:
    """The span from selecting an account to the end of its answer.

    Attributes:
        account, key: who serves.
        position: of its state; an account removed and added again is another one.
        credential: what goes on the wire.
        facts: the request it is for.
        started_at: monotonic seconds.
        returned: set by `Pool.release`, exactly once.
    """

    account: Account
    key: AccountKey
    position: int
    credential: Credential
    facts: Facts
    started_at: float
    returned: bool = False
