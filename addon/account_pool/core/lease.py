"""A lease: one account, held from selection to the end of its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from account_pool.core.account import Account, AccountKey
from account_pool.core.credential import Credential
from account_pool.core.ramp import Ramp
from account_pool.core.state import AccountState


class Conversation(NamedTuple):
    """What a request says of the conversation it is a part of, in the client's own ids.

    Attributes:
        session: the conversation; None if nothing tells it.
        parent: the one a sub-agent was started from.
        named: ids and tokens that only the account that made them knows: it must serve.
        sticky: a token that its account likes to see again, and others can do without; or
            what stands for things that are best made on one account.
        begins: nothing of it is worth keeping yet: it goes where the strategy says, also
            when one that began alike lives elsewhere.
        follow_up: it goes on with work that was begun, as tools do; a new prompt of the
            user is a better moment to move.
    """

    session: str | None = None
    parent: str | None = None
    named: tuple[str, ...] = ()
    sticky: str | None = None
    begins: bool = False
    follow_up: bool = False


NO_CONVERSATION = Conversation()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """What the pool must know about a request to select an account.

    Attributes:
        provider: the name of its provider.
        kind: the kind of credential it takes; kinds never mix.
        model: the model it asks for; None if unknown.
        path: its path, without the query.
        socket: it opens a WebSocket: the models its messages will ask for are unknown.
        conversation: the conversation it belongs to.
        body_bytes: the size of its body, which is kept until it is served.
    """

    provider: str
    kind: str
    model: str | None = None
    path: str = ""
    socket: bool = False
    conversation: Conversation = NO_CONVERSATION
    body_bytes: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class Lease:
    """The time from the selection of an account to the end of its response.

    Attributes:
        account, key: the account that serves, as its owner had written it down then.
        state: what is known of it; that of an account removed and added again is another one.
        credential: what is sent to the provider.
        facts: the request it is for.
        started_at: monotonic seconds.
        began_at: when the first byte of an answer came, monotonic seconds.
        returned: set by `Pool.release`, exactly once.
        answered: its answer has begun and is good.
        ramps: those it counts in while it is not answered.
        probe: the account cools; it was asked to see whether it really does.
        last_resort: the account is on the bench, and nobody else can serve.
    """

    account: Account
    key: AccountKey
    state: AccountState
    credential: Credential
    facts: RequestFacts
    started_at: float
    began_at: float | None = None
    returned: bool = False
    answered: bool = False
    ramps: tuple[Ramp, ...] = ()
    probe: bool = False
    last_resort: bool = False

    @property
    def is_current(self) -> bool:
        """Whether its response still says something of its account.

        Not once that is removed, or its owner has written another credential.
        """
        return not self.state.removed and self.started_at >= self.state.renewed_at

    @property
    def asked_anyway(self) -> bool:
        """Whether the account was asked although it cooled."""
        return self.probe or self.last_resort
