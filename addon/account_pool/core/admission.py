"""Who waits for an account, and in which order they go on.

Requests that the same accounts can serve form a *line*: first come, first served. Lines
that want the same account take turns by who has waited longest. Whoever can be served is
given a lease right away, before anybody else is told, so nobody is overtaken between
being called and going on, and one change does not wake everybody who waits.

Only the first of a line watches the clock; the others are called when it is their turn.
Knows neither the clock nor which account can serve: the pool offers what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import inf

from sortedcontainers import SortedDict

from account_pool.core.account import AccountKey
from account_pool.core.lease import Lease, RequestFacts

#: Bytes of bodies that are kept for requests that wait, over all providers together: eight
#: of the largest that are kept at all.
MAX_BODY_BYTES = 512 * 1024 * 1024

#: What a request can be served by: requests with the same one form a line.
LineKey = tuple[str, str, str | None, frozenset[AccountKey], AccountKey | None]


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
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
    _wake: Callable[[], None] | None = field(default=None, repr=False)

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

    def join(self, ticket: Ticket) -> bool:
        """Let *ticket* wait; return whether it is the first of its line."""
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
        return bool(line.peekitem(0)[1] is ticket)

    def leave(self, ticket: Ticket) -> None:
        """*ticket* does not wait any more; who is first now is called. No harm if it is gone."""
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
            self.leave(ticket)
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
