"""Which account a request is sent to, or waits for.

In this order:

1. the one account that can serve it, if only one can (`SessionLease.owner`);
2. an account whose far deadline is in doubt, if this request may ask it (a probe);
3. another than that of its conversation, where that one was overloaded or silent, or is
   used up;
4. that of its conversation, also after a short wait: it costs less than a cold cache; a
   long one moves the conversation at once;
5. the one on which a new conversation would best begin;
6. whichever the selection policy names;
7. while one returns in time, or may: a place in the line;
8. one the pool would rather leave alone (`Pool.acquire_anyway`).

Accounts that have refused the request are not asked again. Decides for one request, and
remembers its waits; the request's life is in `attempts.py`.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf

from msgspec import Struct, field

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import SOCKETS
from account_pool.core.errors import NoUsableAccount
from account_pool.core.health import Suspects
from account_pool.core.lease import Lease, RequestFacts, Ticket
from account_pool.core.pool import Pool
from account_pool.core.sessions import SessionLease
from account_pool.core.state import AccountState
from account_pool.core.steps import FOLLOW_UP_PATIENCE, MAX_PROBE_BYTES, Limits, Wait


class AccountChoice(Struct, kw_only=True, eq=False):
    """Chooses the accounts of one request.

    Attributes:
        pool, facts, limits, session, suspects: as those of `Attempts`.
        replayable: its body was kept: it can be sent again.
        avoid: accounts that have refused it.
        home: the account of its conversation when it was chosen for last.
        at_home: what is known of that one; None if it is gone.
        ticket: its place among those who wait, once it had to.
        nobody: why nobody could serve it when that was asked last, after the last refusal.
        give_up_at: until when it is held at most; None: it has not had to wait.
        move_at: until when it waits for the account of its conversation.
    """

    pool: Pool
    facts: RequestFacts
    limits: Limits
    session: SessionLease
    suspects: Suspects
    replayable: bool
    avoid: set[AccountKey] = field(default_factory=set)
    home: AccountKey | None = None
    at_home: AccountState | None = None
    ticket: Ticket | None = None
    nobody: NoUsableAccount | None = None
    give_up_at: float | None = None
    move_at: float | None = None

    def choose(self, now: float, tries: int) -> Lease | Wait | NoUsableAccount:
        """Return what the request is sent with, or waits for; or why nobody serves it.

        Args:
            tries: how often it was sent already.
        """
        owner, self.home = self.session.owner, None
        home = self._find_home(now) if owner is None else None
        # Asked once: mostly nothing is known that would change where a request begins.
        quiet = self.pool.is_quiet(self.facts.provider)
        avoid = self.avoid if quiet and not self.facts.socket else self.avoided(now)
        if owner is None and not (quiet and home is None and self.session.near is None):
            preferred = self._preferred(avoid, now, tries, quiet=quiet)
            if preferred is not None:
                return preferred
        try:
            return self.pool.acquire(self.facts, now=now, avoid=avoid, only=owner)
        except NoUsableAccount as nobody:
            return self._wait_or_ask_anyway(nobody, avoid, now, tries)

    def another(self, lease: Lease, now: float) -> Lease | None:
        """Lease another account than that of *lease*, without waiting; None if there is none."""
        if self.session.owner is not None:
            return None
        self._find_home(now)
        failures = self.pool.failures(self.facts.provider)
        avoid = self.avoided(now) | {lease.key} | failures.avoided(self.facts, now)
        with suppress(NoUsableAccount):
            return self.pool.acquire(self.facts, now=now, avoid=avoid)
        return None

    def avoided(self, now: float) -> set[AccountKey]:
        """Accounts not to be asked: those that refused; for a WebSocket those whose last one
        was told of a limit, and for what all refused lately those it was tried on since,
        unless nobody else is left.
        """
        tried = self.pool.failures(self.facts.provider).tried_since(self.facts, now)
        avoided = self.avoid.union(tried or ())
        if self.facts.socket:
            avoided |= self.limited_sockets(now)
        if avoided == self.avoid:
            return self.avoid
        others = (
            self.pool.pick(self.facts, now=now, avoid=avoided)
            or self.pool.shortage(self.facts, now=now, avoid=avoided).last_resort
        )
        return avoided if others else self.avoid

    def limited_sockets(self, now: float) -> set[AccountKey]:
        """Return the accounts whose last WebSocket was told of a limit."""
        return {
            state.key
            for state in self.pool.accounts.of(self.facts.provider)
            if SOCKETS in state.cooldowns and state.cooldowns[SOCKETS].active(now)
        }

    def soonest_s(self, now: float) -> float | None:
        """Seconds until an account could serve this request; None if unknown."""
        only = self.session.owner
        if self.pool.pick(self.facts, now=now, only=only) is not None:
            return 0.0
        return self.pool.shortage(self.facts, now=now, only=only).wait_s(now)

    def _find_home(self, now: float) -> AccountKey | None:
        home = self.home = self.session.home(now)
        self.at_home = None if home is None else self.pool.accounts.find(home)
        return home

    # -- the best one

    def _preferred(
        self, avoid: set[AccountKey], now: float, tries: int, *, quiet: bool
    ) -> Lease | Wait | None:
        """Ask the account that suits this request best, whoever is next; None: any will do."""
        chosen = None if quiet or tries else self._probe(now)
        if chosen is None and not tries:
            chosen = self._begin_elsewhere(avoid, now, quiet=quiet)
        if chosen is not None:
            return chosen
        return self._begin_near(avoid, now) if self.home is None else self._stay(avoid, now)

    def _probe(self, now: float) -> Lease | None:
        """Ask an account whether a deadline far away still holds, if this request may.

        A refusal is replayed: only what is short, and has no account yet, asks.
        """
        if (
            self.facts.socket
            or not self.replayable
            or self.facts.body_bytes > MAX_PROBE_BYTES
            or self.limits.max_attempts < 2
            or self.session.near is not None
            or self.home is not None
        ):
            return None
        return self.pool.acquire_probe(self.facts, now=now)

    def _begin_elsewhere(self, avoid: set[AccountKey], now: float, *, quiet: bool) -> Lease | None:
        """Ask another account than those that were overloaded or silent a short while ago.

        The conversation moves there when that one serves.
        """
        troubled: frozenset[AccountKey] = frozenset()
        if not quiet:
            troubled = self.pool.failures(self.facts.provider).avoided(self.facts, now)
        home = self.home or self.session.near
        state = self.at_home
        if self.home is None and home is not None:
            state = self.pool.accounts.find(home)
        if state is not None and state.is_used_up(self.facts.model, now):
            # What goes on there is billed as overage: only where an account has room.
            other = self.pool.pick(self.facts, now=now, avoid=avoid | troubled | {state.key})
            if other is not None and not other.headroom.is_spent(self.facts.model):
                troubled |= {state.key}
        if not troubled or (home is not None and home not in troubled):
            return None
        with suppress(NoUsableAccount):
            return self.pool.acquire(self.facts, now=now, avoid=avoid | troubled)
        return None

    def _stay(self, avoid: set[AccountKey], now: float) -> Lease | Wait | None:
        """Ask the account the conversation lives on, or wait for it; None to go elsewhere."""
        home, state = self.home, self.at_home
        if state is not None and self._is_asked_last(state, avoid, now):
            return None
        kind, model = self.facts.kind, self.facts.model
        until = -inf if state is None else state.cools_for(kind, model, now)
        if until > now and until > self._patient_until(now):
            return None  # a limit, mostly: seen at once, without a reason for people
        try:
            return self.pool.acquire(self.facts, now=now, avoid=avoid, only=home)
        except NoUsableAccount as nobody:
            move_at = self._patient_until(now)
            if nobody.frees_by(move_at, now) and self._may_wait():
                return self._wait_in_line(nobody, avoid, home, move_at)
            return None

    def _begin_near(self, avoid: set[AccountKey], now: float) -> Lease | None:
        """A new conversation: ask the account it would best begin on, if there is one."""
        near = self.session.near
        state = None if near is None else self.pool.accounts.find(near)
        if state is not None and not self._is_asked_last(state, avoid, now):
            with suppress(NoUsableAccount):
                return self.pool.acquire(self.facts, now=now, avoid=avoid, only=near)
        return None

    def _is_asked_last(self, state: AccountState, avoid: set[AccountKey], now: float) -> bool:
        """Say whether a verdict on *state* is open, and another can be asked before it."""
        model = self.facts.model
        if not state.is_suspect(model):
            return False
        first = self.pool.pick(self.facts, now=now, avoid=avoid)
        return first is not None and not first.is_suspect(model)

    def leaves_for_model(self, now: float) -> bool:
        """Say whether *home* would go on serving the conversation, but for this model."""
        state = self.at_home
        if self.home is not None and self.suspects.found and self.suspects.miss_model:
            return True
        if state is None or not state.enabled or state.key in self.avoid:
            return False
        if state.cooling_until(None, now) > now:
            return False
        model = self.facts.model
        return state.cooling_until(model, now) > now or not state.account.models.allows(model)

    # -- nobody can serve it now

    def _wait_or_ask_anyway(
        self, nobody: NoUsableAccount, avoid: set[AccountKey], now: float, tries: int
    ) -> Lease | Wait | NoUsableAccount:
        owner, hold_until = self.session.owner, self.hold_until(now)
        if nobody.frees_by(hold_until, now):
            if self._may_wait():
                return self._wait_in_line(nobody, avoid, owner, hold_until)
            nobody.crowd_out()
            return nobody
        # No wait is worth it: asked is where we would rather not.
        lease = self.pool.acquire_anyway(
            self.facts,
            now=now,
            avoid=avoid,
            only=owner,
            soon_s=self.limits.max_wait_s,
            first=not tries,
        )
        if lease is None and nobody.retry_at is None and not nobody.may_change and owner is None:
            nobody.all_refused = {s.lease.key for s in self.suspects.found} == avoid
        return nobody if lease is None else lease

    def _may_wait(self) -> bool:
        """Say whether this request may be held; one that was held before keeps its place."""
        return self.ticket is not None or self.pool.admission.has_room(
            self.facts.body_bytes, self.limits.max_waiting
        )

    def _wait_in_line(
        self,
        nobody: NoUsableAccount,
        avoid: set[AccountKey],
        only: AccountKey | None,
        give_up_at: float,
    ) -> Wait:
        """Wait for an account, or for *only* that one. Its age stays when it waits again."""
        self.nobody = nobody
        ticket = self.ticket = self.ticket or Ticket(facts=self.facts)
        ticket.avoid, ticket.only, ticket.give_up_at = frozenset(avoid), only, give_up_at
        ticket.home = self.home
        return Wait(self.pool.admission.wait(ticket, nobody.retry_at), ticket)

    def leave_line(self) -> Lease | None:
        """Wait no more; return the lease it was given while it waited, if any."""
        return self.pool.admission.stop_waiting(self.ticket) if self.ticket is not None else None

    def take_given(self, now: float) -> Lease | None:
        """Leave the line; return the lease it was given, if the request can still use it."""
        lease = self.leave_line()
        if lease is None:
            return None
        waited_from = self.ticket.home if self.ticket is not None else None
        self._find_home(now)
        # Whoever is late does not take a conversation back that went elsewhere meanwhile.
        if self.session.owner is None and self.home not in (None, lease.key, waited_from):
            self.pool.release(lease, None, now=now)
            return None
        return self.pool.renew(lease, now=now)

    def hold_until(self, now: float) -> float:
        """Until when this request may be held; the clock starts at the first wait."""
        if self.give_up_at is None:
            self.give_up_at = now + self.limits.max_wait_s
        return self.give_up_at

    def _patient_until(self, now: float) -> float:
        """Until when the account of the conversation is waited for; one clock for all waits."""
        if self.move_at is None:
            patience_s = self.limits.patience_s
            if self.facts.conversation.follow_up:
                patience_s *= FOLLOW_UP_PATIENCE
            self.move_at = min(now + patience_s, self.hold_until(now))
        return self.move_at
