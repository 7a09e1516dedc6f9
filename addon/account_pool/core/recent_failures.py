"""What requests to one provider have lately met, and where the next should not begin.

Nothing here is a cooldown: the account is as it was, and serves whoever has nowhere else to
go. An overload is remembered by account and model for a minute, unless a second account is
overloaded as well: then it is the server's, and nobody gains by moving. Silence and broken
connections are remembered for the conversation that met them. What all accounts refused is
the request's own fault, and for a minute costs one attempt; a 429 without evidence from all
who were asked is taken for a limit of the address.

Mostly there is nothing, which is quick to see.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from account_pool.core.account import AccountKey
from account_pool.core.lease import Lease, RequestFacts

#: How long an overload of an account for a model is remembered, seconds.
OVERLOADED_S = 60.0
#: How long a conversation keeps away from an account that did not answer it, seconds: that of
#: its idle time.
LEFT_S = 1800.0
#: How long what all accounts refused is delivered after one attempt, seconds.
REFUSED_BY_ALL_S = 60.0
#: How long a 429 without evidence from all who were asked is taken for a limit of the
#: address, seconds: other requests try one account only.
ADDRESS_LIMITED_S = 30.0
#: Models, and requests, that are remembered per provider.
MAX_REMEMBERED = 512
#: Accounts asked meanwhile that are remembered, so that a client's retries ask others.
MAX_ASKED = 16
#: First bytes that are remembered per model, and how many are needed to say what is usual.
MAX_SAMPLES, MIN_SAMPLES = 200, 20
MAX_MODELS = 128
#: Silence is long beyond four times the usual, at most, and where nothing is known; seconds.
USUAL_FACTOR, LONGEST_S, UNKNOWN_S = 4.0, 60.0, 30.0


class _Model(NamedTuple):
    """A model that no account has, in whatever request."""

    name: str | None


@dataclass(slots=True)
class _Refused:
    """Something that all accounts refused, and whom it was tried on since."""

    until: float
    asked: deque[AccountKey] = field(default_factory=lambda: deque(maxlen=MAX_ASKED))


@dataclass(slots=True, eq=False)
class RecentFailures:
    """What requests to one provider have lately met.

    Attributes:
        by_model: accounts that were overloaded, and until when that is remembered.
        by_request: the account that did not answer, by what it was: a conversation, or
            requests of one kind; and until when.
        refused: what all accounts refused.
        bare: accounts that said 429 without evidence, and have not served since.
        address_limited_until, address_limited_at: until when such 429s are taken for a limit
            of the address, and since when; minus infinity if they are not.
    """

    by_model: dict[str | None, dict[AccountKey, float]] = field(default_factory=dict)
    by_request: dict[Hashable, tuple[AccountKey, float]] = field(default_factory=dict)
    refused: dict[Hashable, _Refused] = field(default_factory=dict)
    bare: set[AccountKey] = field(default_factory=set)
    address_limited_until: float = -inf
    address_limited_at: float = -inf
    _first_bytes: dict[str | None, deque[float]] = field(default_factory=dict)

    # -- accounts that were overloaded, or did not answer

    def overloaded(self, lease: Lease, now: float) -> None:
        """The account of *lease* is overloaded for its model, or its server fails."""
        model = lease.facts.model
        known = self.by_model.pop(model, {})
        _make_room(self.by_model)
        active = {k: until for k, until in known.items() if now < until}
        self.by_model[model] = active | {lease.key: now + OVERLOADED_S}

    def unanswered(self, lease: Lease, now: float) -> None:
        """The account of *lease* did not answer: its conversation begins elsewhere next."""
        what = _what(lease.facts)
        self.by_request.pop(what, None)
        _make_room(self.by_request)
        self.by_request[what] = (lease.key, now + LEFT_S)

    def avoided(self, facts: RequestFacts, now: float) -> frozenset[AccountKey]:
        """Return the accounts that *facts* should not begin on while another can serve."""
        avoided: set[AccountKey] = set()
        if self.by_model or self.by_request:
            known = self.by_model.get(facts.model, {})
            active = [key for key, until in known.items() if now < until]
            avoided = set(active) if len(active) == 1 else set()
            key, until = self.by_request.get(_what(facts), (None, now))
            if key is not None and now < until:
                avoided.add(key)
        if self.is_address_limited(now):
            # One account is asked then: one that has not said it yet, while there is one.
            avoided |= self.bare
        return frozenset(avoided)

    def is_silent(self, lease: Lease, now: float) -> bool:
        """Say whether nothing of a response to *lease* has come for much longer than usual."""
        return lease.began_at is None and now - lease.started_at > self.silence_s(lease.facts.model)

    def silence_s(self, model: str | None) -> float:
        """Return beyond how many seconds silence is longer than usual."""
        samples = sorted(self._first_bytes.get(model, ()))
        if len(samples) < MIN_SAMPLES:
            return UNKNOWN_S
        usual = samples[min(len(samples) * 99 // 100, len(samples) - 1)]
        return min(USUAL_FACTOR * usual, LONGEST_S)

    # -- what all refused

    def refused_by_all(
        self, facts: RequestFacts, now: float, *, missing_model: bool = False
    ) -> None:
        """All accounts have refused *facts*, or nobody knew their model: one is asked next.

        Known until another account, or another credential, may serve it (`forget_refused`).
        """
        what = _Model(facts.model) if missing_model else _what(facts)
        self.refused.pop(what, None)
        _make_room(self.refused)
        self.refused[what] = _Refused(now + REFUSED_BY_ALL_S)

    def tried_since(
        self, facts: RequestFacts, now: float, *, missing_model: bool = False
    ) -> deque[AccountKey] | None:
        """Return whom *facts* were tried on since all refused them; None if they did not lately.

        Whoever tries another adds it.

        Args:
            missing_model: nobody knew their model.
        """
        if not self.refused:
            return None
        known = self.refused.get(_Model(facts.model) if missing_model else _what(facts))
        return known.asked if known is not None and now < known.until else None

    def forget_refused(self, key: AccountKey | None = None) -> None:
        """There is another account, or *key* has another credential: it may serve anything."""
        self.refused.clear()
        if key is not None:
            self.bare.discard(key)

    # -- limits of the address

    def limit_address(self, now: float) -> None:
        """All who were asked said 429 without evidence: it is taken for the address's limit."""
        self.address_limited_at = now
        self.address_limited_until = now + ADDRESS_LIMITED_S

    def is_address_limited(self, now: float) -> bool:
        """Say whether a 429 without evidence is taken for the address's limit now."""
        return now < self.address_limited_until

    # -- good responses

    def served(self, lease: Lease, now: float) -> None:
        """The response to *lease* is good and has begun."""
        began_at = now if lease.began_at is None else lease.began_at
        self._note_first_byte(lease.facts.model, began_at - lease.started_at)
        if self.refused or self.by_request:
            what = _what(lease.facts)
            self.refused.pop(what, None)
            self.by_request.pop(what, None)
        if lease.started_at > self.address_limited_at:
            self.address_limited_until = -inf

    def _note_first_byte(self, model: str | None, seconds: float) -> None:
        samples = self._first_bytes.get(model)
        if samples is None:
            _make_room(self._first_bytes, MAX_MODELS)
            samples = self._first_bytes[model] = deque(maxlen=MAX_SAMPLES)
        samples.append(seconds)


def _what(facts: RequestFacts) -> Hashable:
    """Return what tells a request that all refused from others."""
    session = facts.conversation.session
    return session or facts.path, facts.model, session is None


def _make_room(known: dict[Any, Any], kept: int = MAX_REMEMBERED) -> None:
    """Forget the oldest of *known* where it is one too many."""
    if len(known) >= kept:
        del known[next(iter(known))]
