"""What the provider saw: attempts, credentials, and how many requests an account had at once."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from benchmarks.chaos.plan import CLIENT

#: A request that its proxy has left may be seen to end so much later, in seconds: the news
#: of it and the next request come over different connections.
GRACE_S = 2.0


@dataclass(slots=True, eq=False)
class Open:
    """A request that has not ended."""

    nonce: str
    credential: str
    #: it ended because the proxy went away, not because it was answered
    left: bool = False


@dataclass(slots=True)
class Book:
    """The provider's side of the story.

    Attributes:
        allowed: credentials by vendor.
        limits: how many requests a credential may have at once.
        history: what happened to each request, by nonce.
        broken_rules: of HTTP/2, by the proxy.
        leaks: credentials where they do not belong.
        crowds: accounts that had more requests at once than they allow.
    """

    allowed: dict[str, set[str]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    history: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    attempts: Counter[str] = field(default_factory=Counter)
    broken_rules: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    crowds: list[str] = field(default_factory=list)
    _open: defaultdict[str, set[Open]] = field(default_factory=lambda: defaultdict(set))

    def begin(self, nonce: str, vendor: str, credential: str, everything: str) -> tuple[Open, int]:
        """Note an attempt; return it, and its number. *everything* is all its headers."""
        self.attempts[nonce] += 1
        if credential not in self.allowed[vendor]:
            self.leaks.append(f"{nonce}: a credential that is none of {vendor}'s accounts")
        if CLIENT in everything:
            self.leaks.append(f"{nonce}: the client's own credential went upstream")
        if everything.count(credential) > 1:
            self.leaks.append(f"{nonce}: a credential in more than its place")
        request = Open(nonce, credential)
        at_once = self._open[credential]
        at_once.add(request)
        limit = self.limits.get(credential)
        if limit is not None and len(at_once) > limit:
            self._look_again(frozenset(at_once), limit)
        return request, self.attempts[nonce]

    def end(self, request: Open, *, left: bool = False) -> None:
        """Note that an attempt is over. Safe to repeat: the first word counts."""
        if request in self._open[request.credential]:
            request.left = left
            self._open[request.credential].discard(request)

    def note(self, nonce: str, what: str) -> None:
        self.history[nonce].append(what)

    def _look_again(self, crowd: frozenset[Open], limit: int) -> None:
        """More than *limit* at once, unless some of the crowd turn out to have been left."""

        def look() -> None:
            really = [request for request in crowd if not request.left]
            if len(really) > limit:
                self.crowds.append(f"{len(really)} at once instead of {limit}: {really[0].nonce}")

        asyncio.get_running_loop().call_later(GRACE_S, look)
