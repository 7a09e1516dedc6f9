"""One client request as a state machine: what happened goes in, the next `Step` comes out.

It holds the lease of the running attempt, so that every lease comes back exactly once,
whatever order events come in. The shell carries steps out and decides nothing.

    phase       event       what follows
    NEW         begin       choose an account
    SENT        refused     the reaction to the refusal
                broken      the same account on a new connection, now or after a pause; or give up
                withdrawn   choose an account
                committed   COMMITTED: the response is good, there are no more attempts
    WAITING     resumed     the account that was waited for; or choose one
                stopped     give up
    REFRESHING  refreshed   the same account with its new credential; or blame it
    COMMITTED   finished    OVER
    any         left        OVER: the client has gone

Here are the events of a request that goes well; those of one that is not served at once are in
`reactions.py`: refused, broken, withdrawn, refreshed, stopped. To choose is to send, to wait in
line, or to give up (`AccountChoice`). To give up is to deliver the refusal in hand or, where
there is none, to synthesize a response. Which phase a step leads to stands in `PHASE_AFTER`. An
event that cannot come in the current phase raises IllegalEvent and changes nothing. An open
WebSocket has events of its own (`websocket_moves.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from math import inf

from msgspec import Struct, field

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import SOCKETS
from account_pool.core.decisions import By, RequestEvents
from account_pool.core.errors import IllegalEvent, NoUsableAccount
from account_pool.core.health import Suspects
from account_pool.core.lease import Lease, RequestFacts, Ticket
from account_pool.core.outcome import Outcome, OutcomeClass
from account_pool.core.pool import Pool
from account_pool.core.sessions import SessionLease
from account_pool.core.state import AccountState
from account_pool.core.steps import (
    FOLLOW_UP_PATIENCE,
    MAX_PROBE_BYTES,
    PHASE_AFTER,
    Attempt,
    Deliver,
    Limits,
    Phase,
    Send,
    Step,
    Synthesize,
    Tries,
    Wait,
    unserved,
    was_limited,
)

#: What its client is told to wait where no deadline is known, seconds.
CROWDED_PAUSE_S = 1.0
#: Of a response that was good.
OK = Outcome(cls=OutcomeClass.OK)


class AccountChoice(Struct, kw_only=True, eq=False):
    """Chooses the account that a request is sent to, or waits for. Remembers its waits.

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

    Accounts that have refused the request are not asked again.

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
        home = self.find_home(now) if owner is None else None
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

    def find_home(self, now: float) -> AccountKey | None:
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
        self.find_home(now)
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


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Attempts:
    """The attempts of one client request.

    Attributes:
        pool, facts, limits: what is asked of whom, and our bounds.
        chance: a number from 0 to 1, for jitter.
        replayable: False when the body was not kept: one attempt, then deliver.
        session: its lease on the session of its conversation, and on where that lives.
        lease: of the running attempt.
        history: attempts so far, oldest first.
        phase: which events may come.
        over: the request has ended: no lease is held and no event can come any more.
        keeps_earlier: an earlier refusal is to be delivered rather than the last.
        choice: which accounts it is sent to.
        suspects: refusals that are the fault of their accounts, or of the request.
        events: records what was decided about it, once there is something to record.
        served_by: the lease of the response that was committed.
        silent_on: that of the attempt whose silence was noted.
        tries: what has come of attempts that did not serve it.
    """

    pool: Pool
    facts: RequestFacts
    limits: Limits
    chance: Callable[[], float]
    replayable: bool = True
    session: SessionLease = dataclasses.field(default_factory=SessionLease)
    lease: Lease | None = None
    history: list[Attempt] = dataclasses.field(default_factory=list)
    phase: Phase = Phase.NEW
    over: bool = False
    keeps_earlier: bool = False
    suspects: Suspects = dataclasses.field(init=False)
    choice: AccountChoice = dataclasses.field(init=False)
    served_by: Lease | None = None
    silent_on: Lease | None = None
    tries: Tries = dataclasses.field(default_factory=Tries)
    _events: RequestEvents | None = None
    #: where its conversation lived, when this request takes it elsewhere
    _left: AccountKey | None = None

    def __post_init__(self) -> None:
        self.suspects = Suspects(self.pool.health, self.facts)
        self.choice = AccountChoice(
            pool=self.pool,
            facts=self.facts,
            limits=self.limits,
            session=self.session,
            suspects=self.suspects,
            replayable=self.replayable,
        )

    @property
    def may_send(self) -> bool:
        """Whether it may be sent once more."""
        return len(self.history) < self.limits.max_attempts

    # -- events

    def begin(self, now: float) -> Step:
        """Start: choose an account."""
        self.expect(Phase.NEW)
        return self.enter(choose(self, now), now)

    def began(self, now: float) -> None:
        """The first byte of a response to the running attempt is here, whatever it is."""
        lease = self.lease
        if lease is not None and lease.began_at is None:
            lease.began_at = now

    def may_go(self, now: float) -> bool:
        """Say whether the running attempt, if it has not left yet, shall still do so.

        Its account may have been refused since it was chosen.
        """
        lease = self.lease
        if self.phase is not Phase.SENT or lease is None or lease.probe or lease.last_resort:
            return True
        state = lease.state
        if state.removed or not state.enabled:
            return False
        return state.cooling_until(self.facts.model, now) <= now

    def resumed(self, now: float) -> Step:
        """A wait is over, because of time or because it was called."""
        self.expect(Phase.WAITING)
        if self.lease is not None:
            return self.enter(again(self, self.lease, now), now)
        # Whoever is out of the line is overtaken.
        self.pool.admit(self.facts.provider, now=now)
        lease = self.choice.take_given(now)
        return self.enter(choose(self, now) if lease is None else go(self, lease, now), now)

    def committed(self, now: float) -> None:
        """The response is good and its first byte goes to the client: no more attempts."""
        lease = self.held(Phase.SENT)
        self.phase = Phase.COMMITTED
        self.served_by = lease
        self.pool.answered(lease, now=now)
        self.history[-1].outcome = OK
        self.session.served()
        if self.suspects.found:
            self.suspects.witnessed(now)

    def finished(self, now: float) -> None:
        """The committed response has ended, or the client hung up when it had enough."""
        self.expect(Phase.COMMITTED)
        self.end(now)
        lease, self.lease = self.lease, None
        if lease is not None:
            self.pool.release(lease, OK, now=now)

    def left(self, now: float) -> None:
        """The client has left, or the request was given up: nobody's fault.

        May come at any time, also when all is over.
        """
        if self.phase is Phase.SENT and self.lease is not None:
            self.pool.health.departed(self.lease, now=now)
        self.end(now)
        if self._events is not None:
            self._events.wait_ended(By.CLIENT, now)
        self.give_back(None, now)
        given = self.choice.leave_line()
        if given is not None:
            self.pool.release(given, None, now=now)

    # -- what follows

    def send(self, lease: Lease, *, fresh: bool = False) -> Send:
        """Begin an attempt with *lease*."""
        self.history.append(Attempt(number=len(self.history) + 1, key=lease.key))
        return Send(lease, fresh)

    # -- inside

    @property
    def events(self) -> RequestEvents:
        """The recorder of this request; an ordinary one needs none."""
        if self._events is None:
            self._events = RequestEvents(self.pool, self.facts)
        return self._events

    def expect(self, phase: Phase) -> None:
        if self.phase is not phase:
            raise IllegalEvent(f"this event needs phase {phase.value!r}, not {self.phase.value!r}")

    def held(self, phase: Phase) -> Lease:
        """Return the lease of the running attempt. Raises IllegalEvent outside of *phase*."""
        self.expect(phase)
        assert self.lease is not None
        return self.lease

    def enter(self, step: Step, now: float) -> Step:
        before, self.phase = self.phase, PHASE_AFTER[type(step)]
        if before is not Phase.NEW or self.phase is not Phase.SENT or self._left is not None:
            if before is Phase.WAITING and not isinstance(step, Wait):
                served = isinstance(step, Send) and self.choice.ticket is not None
                self.events.wait_ended(By.ACCOUNT if served else By.TIME, now)
            left, kept = self._left, self.replayable
            self.events.decided(step, self.history, self.choice.nobody, now, left=left, kept=kept)
        if self.phase is Phase.OVER:
            self.end(now)
        return step

    def end(self, now: float) -> None:
        """The request is over."""
        self.phase, self.over = Phase.OVER, True
        self.session.ended(now)

    def give_back(self, outcome: Outcome | None, now: float) -> None:
        lease, self.lease = self.lease, None
        if lease is not None:
            self.pool.release(lease, outcome, now=now)


# -- how it goes on, or ends


def choose(attempts: Attempts, now: float) -> Step:
    """Choose an account: send, wait, or give up."""
    if not attempts.may_send:
        return _out_of_attempts(attempts, now)
    match attempts.choice.choose(now, len(attempts.history)):
        case Lease() as lease:
            return go(attempts, lease, now)
        case Wait() as wait:
            return wait
        case nobody:
            return _unserved(attempts, nobody, now)


def go(attempts: Attempts, lease: Lease, now: float, *, fresh: bool = False) -> Step:
    """Send with *lease*; the conversation lives there from now on."""
    home = attempts.choice.home
    moves = home is not None and home != lease.key
    attempts.lease = lease
    attempts._left = home if moves else None
    if lease.probe:
        attempts.events.probed(lease.key, now)
    for_model = moves and attempts.choice.leaves_for_model(now)
    attempts.session.sent_to(lease.key, now, for_model=for_model)
    return attempts.send(lease, fresh=fresh)


def again(attempts: Attempts, lease: Lease, now: float, *, fresh: bool = False) -> Step:
    """Send on the same account once more, if it may still serve."""
    renewed = attempts.lease = attempts.pool.renew(lease, now=now)
    return choose(attempts, now) if renewed is None else attempts.send(renewed, fresh=fresh)


def _unserved(attempts: Attempts, nobody: NoUsableAccount, now: float) -> Step:
    """Nobody can serve it, and no wait is worth it."""
    misses_model, wait_s = attempts.suspects.miss_model, nobody.wait_s(now)
    if nobody.all_refused:
        attempts.suspects.refused_by_all(now)
    attempts.suspects.drop(now)
    if misses_model and not nobody.crowded:
        return Deliver()  # no wait would make the model known
    attempts.choice.nobody = nobody
    if attempts.tries.refused and (
        nobody.crowded or nobody.status is not None or was_limited(attempts.history)
    ):
        return Deliver(wait_s)
    if nobody.crowded:
        pause_s = CROWDED_PAUSE_S if wait_s is None else wait_s
        return Synthesize(status=503, message=str(nobody), retry_after_s=pause_s)
    return unserved(attempts.facts.provider, nobody, wait_s)


def _out_of_attempts(attempts: Attempts, now: float) -> Step:
    attempts.suspects.drop(now)
    attempts.choice.nobody = None
    wait_s, owner = attempts.choice.soonest_s(now), attempts.session.owner
    if not attempts.tries.refused:
        return unserved(attempts.facts.provider, None, wait_s)
    untried = attempts.pool.pick(attempts.facts, now=now, avoid=attempts.choice.avoid, only=owner)
    again = untried is not None and not untried.is_suspect(attempts.facts.model)
    return Deliver(wait_s, again)


def give_up(attempts: Attempts, step: Deliver | Synthesize, now: float) -> Step:
    """End with *step*; it says nothing against the account."""
    attempts.give_back(None, now)
    attempts.suspects.drop(now)
    return step
