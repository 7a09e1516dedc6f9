"""A lease: one account, held from selection to the end of its response; who waits for one.

Requests that the same accounts can serve form a *line*: first come, first served. Lines
that want the same account take turns by who has waited longest. Whoever can be served is
given a lease right away, before anybody else is told, so nobody is overtaken between
being called and going on, and one change does not wake everybody who waits.

Only the first of a line watches the clock; the others are called when it is their turn.
Knows neither the clock nor which account can serve: the pool offers what it has. Why that
is nothing, and until when, a `Shortage` says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from heapq import heapify, heappop, heappush
from math import inf
from typing import NamedTuple

from msgspec import Struct
from sortedcontainers import SortedDict

from account_pool.core.account import Account, AccountKey
from account_pool.core.credential import Credential
from account_pool.core.errors import NoUsableAccount
from account_pool.core.outcome import BY_HAND, OutcomeClass
from account_pool.core.state import AccountState, Ramp

#: Bytes of bodies that are kept for requests that wait, over all providers together: eight
#: of the largest that are kept at all.
MAX_BODY_BYTES = 512 * 1024 * 1024

#: What a request can be served by: requests with the same one form a line.
LineKey = tuple[str, str, str | None, frozenset[AccountKey], AccountKey | None]


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


class RequestFacts(Struct, frozen=True, kw_only=True):
    """What the pool must know about a request to select an account.

    Attributes:
        provider: the name of its provider.
        kind: the kind of credential it takes; kinds never mix.
        model: the model it asks for; None if unknown.
        path: its path, without the query.
        socket: it opens a WebSocket: the models its messages will ask for are unknown.
        conversation: the conversation it belongs to.
        body_bytes: the size of its body, which is kept until it is served.
        only: the account that its client has chosen for all that it sends.
        agent, user: what its client calls itself, `User-Agent` and the name given to
            `proxyauth`; for `request_rows`, and never shown.
    """

    provider: str
    kind: str
    model: str | None = None
    path: str = ""
    socket: bool = False
    conversation: Conversation = NO_CONVERSATION
    body_bytes: int = 0
    only: AccountKey | None = None
    agent: str = ""
    user: str = ""


class Lease(Struct, kw_only=True, eq=False):
    """The time from the selection of an account to the end of its response.

    Attributes:
        account, key: the account that serves, as its owner had written it down then.
        state: what is known of it; that of an account removed and added again is another one.
        credential: what is sent to the provider.
        facts: the request it is for.
        started_at: monotonic seconds.
        epoch: that of *state* then. Once it has another, this lease teaches nothing: the
            account was removed, or has another credential.
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
    epoch: int
    began_at: float | None = None
    returned: bool = False
    answered: bool = False
    ramps: tuple[Ramp, ...] = ()
    probe: bool = False
    last_resort: bool = False


# -- who waits for one


class Ticket(Struct, kw_only=True, eq=False):
    """The place of one request among those who wait.

    Attributes:
        facts, avoid: as given to `Pool.acquire`.
        only: the one account that will do; None for any.
        home: the one that is best, if it can serve: its conversation lives there.
        give_up_at: when it stops waiting, monotonic seconds.
        look_at: when it looks again by itself.
        number: by age; kept when it has to wait again, so that it does not start over.
        lease: what it was given while it waited; it must take it or leave the line.
        called: it should look again: it has a lease, is first now, or waits in vain.
    """

    facts: RequestFacts
    avoid: frozenset[AccountKey] = frozenset()
    only: AccountKey | None = None
    home: AccountKey | None = None
    give_up_at: float = inf
    look_at: float = inf
    number: int = 0
    lease: Lease | None = None
    called: bool = False
    _wake: Callable[[], None] | None = None

    @property
    def line(self) -> LineKey:
        facts = self.facts
        return facts.provider, facts.kind, facts.model, self.avoid, self.only

    def call(self) -> None:
        """Let it look again."""
        self.called = True
        if self._wake is not None:
            self._wake()

    def when_called(self, wake: Callable[[], None]) -> None:
        """Have *wake* called once it is called; at once if it was already."""
        self._wake = wake
        if self.called:
            wake()


class Admission:
    """All who wait.

    Attributes:
        waiting: by provider and line, the oldest first; no provider without anybody.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, dict[LineKey, SortedDict[int, Ticket]]] = {}
        self._numbers = 0
        self._count = 0
        self._body_bytes = 0

    def __len__(self) -> int:
        return self._count

    def has_room(self, body_bytes: int, max_waiting: int) -> bool:
        """Say whether one more may wait, whose body of so many bytes is kept meanwhile.

        A body that alone is beyond the bound still finds room where nobody else waits.
        """
        if self._count >= max_waiting:
            return False
        return not self._count or self._body_bytes + body_bytes <= MAX_BODY_BYTES

    def wait(self, ticket: Ticket, retry_at: float | None) -> float:
        """Let *ticket* wait in its line; return when it should look again by itself.

        Args:
            retry_at: when the first account returns (`NoUsableAccount`); the first of a
                line looks then, the others when they are called or give up.
        """
        if not ticket.number:
            self._numbers += 1
            ticket.number = self._numbers
        ticket.called = False
        ticket._wake = None
        lines = self.waiting.setdefault(ticket.facts.provider, {})
        line = lines.setdefault(ticket.line, SortedDict())
        if ticket.number not in line:
            self._count += 1
            self._body_bytes += ticket.facts.body_bytes
        line[ticket.number] = ticket
        ticket.look_at = ticket.give_up_at
        if retry_at is not None and line.peekitem(0)[1] is ticket:
            ticket.look_at = min(retry_at, ticket.give_up_at)
        return ticket.look_at

    def stop_waiting(self, ticket: Ticket) -> Lease | None:
        """*ticket* leaves its line; return what it was given while it waited, if anything.

        A lease that is not taken must be released. No harm if it is gone.
        """
        self._leave(ticket)
        lease, ticket.lease = ticket.lease, None
        return lease

    def _leave(self, ticket: Ticket) -> None:
        """*ticket* does not wait any more; who is first now is called."""
        lines = self.waiting.get(ticket.facts.provider, {})
        line = lines.get(ticket.line)
        if line is None or line.get(ticket.number) is not ticket:
            return
        was_first = line.peekitem(0)[1] is ticket
        del line[ticket.number]
        self._count -= 1
        self._body_bytes -= ticket.facts.body_bytes
        if line:
            if was_first:
                line.peekitem(0)[1].call()
            return
        del lines[ticket.line]
        if not lines:
            del self.waiting[ticket.facts.provider]

    def admit(self, provider: str, serve: Callable[[Ticket], Lease | None]) -> None:
        """Offer what is free: *serve* the oldest, then the next, each line until it cannot.

        Args:
            serve: returns the lease for a ticket, None if nobody can serve it now.
        """
        heads = [(line.peekitem(0)[0], line) for line in self.waiting.get(provider, {}).values()]
        # Numbers are unique: lines are never compared.
        heapify(heads)
        while heads:
            number, line = heappop(heads)
            ticket = line[number]
            ticket.lease = serve(ticket)
            if ticket.lease is None:
                continue
            self._leave(ticket)
            ticket.call()
            if line:
                heappush(heads, (line.peekitem(0)[0], line))

    def lines(self, provider: str) -> Iterator[list[Ticket]]:
        """Yield the lines of *provider*, each the oldest first."""
        for line in list(self.waiting.get(provider, {}).values()):
            yield list(line.values())

    def call_all(self, provider: str) -> None:
        """Let everybody who waits for an account of *provider* look again."""
        for line in self.lines(provider):
            for ticket in line:
                ticket.call()


# -- why there is none


class Shortage(Struct, frozen=True):
    """Why nobody could serve.

    Attributes:
        error: makes the error that says it.
        holds_until: until when that is so if nothing changes but the time, monotonic seconds.
    """

    error: Callable[[], NoUsableAccount]
    holds_until: float


def shortage(
    states: Iterable[AccountState],
    facts: RequestFacts,
    *,
    now: float,
    avoid: Collection[AccountKey] = (),
) -> Shortage:
    """Return what is to be said to *facts*, which none of *states* can serve now.

    Args:
        states: every account that may be asked.
        avoid: those of them that are not asked again.
    """
    states = list(states)
    soonest: AccountState | None = None
    retry_at = inf
    may_change = False
    resort: AccountState | None = None
    only_money = True
    holds_until = inf
    for state in states:
        times = [state.next_start_at, *[cooldown.until for cooldown in state.holds()]]
        if state.ramps:
            times.append(state.ramps_admit_at(facts.model))
        holds_until = min([holds_until, *[at for at in times if at > now]])
        if not state.enabled or state.key in avoid:
            continue
        if not state.account.models.allows(facts.model):
            continue
        if facts.kind not in state.credentials:
            may_change = may_change or state.pending
            continue
        until = max(state.cooling_until(facts.model, now), state.next_start_at)
        yields = until > now and state.yields(facts.model, now)
        if state.full and (until <= now or yields):
            may_change = True
            continue
        if yields and state.next_start_at <= now:
            if resort is None or state.last_used < resort.last_used:
                resort = state
            if state.is_benched(facts.model, now):
                continue  # when that ends promises nothing
        if until <= now and state.ramps:
            # An answer lets one more go before time does.
            may_change = True
            until = state.ramps_admit_at(facts.model)
        cooldown = state.cooldown_of(facts.model, now)
        only_money = only_money and cooldown is not None and cooldown.cause.money
        if until < retry_at:
            soonest, retry_at = state, until
    status, like = None, None
    if soonest is None and not may_change and resort is None:
        status, like = _for_the_owner(states, facts)
    elif soonest is not None and only_money and not may_change:
        status = 402
    error = partial(
        NoUsableAccount,
        facts.provider,
        retry_at=retry_at if soonest else None,
        soonest=soonest.key if soonest else None,
        may_change=may_change,
        last_resort=resort.key if resort else None,
        status=status,
        like=like,
        reason=_reason(states, facts, now),
    )
    return Shortage(error, holds_until)


def _for_the_owner(
    states: list[AccountState], facts: RequestFacts
) -> tuple[int | None, AccountKey | None]:
    """Return what keeps all *states* out of use, as a status, and which of them said so last.

    None: that passes by itself.
    """
    allowed = [state for state in states if state.account.models.allows(facts.model)]
    if states and not allowed:
        return 404, None
    if any(s.enabled and s.passing and facts.kind not in s.credentials for s in allowed):
        return None, None
    told = [s for s in allowed if s.disabled is not None and s.disabled.signal != BY_HAND]
    if not told:
        return 401, None
    last = max(told, key=lambda state: state.disabled_at)
    assert last.disabled is not None
    return 403 if last.disabled.cls is OutcomeClass.FORBIDDEN_ACCOUNT else 401, last.key


def _reason(states: list[AccountState], facts: RequestFacts, now: float) -> str:
    """Say in a few words why nobody can serve, without naming secrets."""
    if not states:
        return "the pool has no account"
    in_use = [s for s in states if s.enabled]
    cooling = [s for s in in_use if s.cooling_until(facts.model, now) > now]
    kept = sum(any(c.active(now) and c.covers(facts.model) for c in s.reserved) for s in cooling)
    parts = {
        "on cooldown": len(cooling) - kept,
        "at its reserve": kept,
        "disabled": len(states) - len(in_use),
        "without a usable credential": len([s for s in in_use if facts.kind not in s.credentials]),
        "full": len([s for s in in_use if s.full]),
        "ramping up": len([s for s in in_use if not s.ramps_admit(facts.model, now)]),
        f"not for {facts.model}": len(
            [s for s in states if not s.account.models.allows(facts.model)]
        ),
    }
    listed = ", ".join(f"{n} {what}" for what, n in parts.items() if n)
    total = len(states)
    return f"no usable account of {total}" + (f" ({listed})" if listed else "")
