"""One client request as a state machine: what happened goes in, the next `Step` comes out.

It holds the lease of the running attempt, so that every lease comes back exactly once,
whatever order events come in. The shell carries steps out and decides nothing.

    phase       event       what follows
    NEW         begin       choose an account
    SENT        refused     the reaction to the refusal (`_reaction_to`), see below
                broken      the same account on a new connection, now or after a pause; or give up
                withdrawn   choose an account
                committed   COMMITTED: the response is good, there are no more attempts
    WAITING     resumed     the account that was waited for; or choose one
                stopped     give up: the proxy shuts down
    REFRESHING  refreshed   the same account with its new credential; or blame it
    COMMITTED   finished    OVER
    any         left        OVER: the client has gone

    reaction        the lease        what follows
    renew           is kept          REFRESHING, once for each account; then as blame
    blame           comes back       a verdict; deliver what all have refused, or choose
    ask_for_model   comes back       as blame, about this model
    move            teaches a limit  choose an account
    spread          teaches a pause  WAITING a moment, then choose; deliver after some
    repeat          is kept          WAITING a moment, then the same account; then another; deliver
    deliver         comes back       deliver

To choose is to send, to wait in line, or to give up (`account_choice`). To give up is to
deliver the refusal in hand or, where there is none, to synthesize a response. Which phase a
step leads to stands in `PHASE_AFTER`. An event that cannot come in the current phase raises
IllegalEvent and changes nothing. An open WebSocket has events of its own
(`websocket_moves.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.account_choice import AccountChoice
from account_pool.core.decisions import By
from account_pool.core.errors import IllegalEvent, NoUsableAccount
from account_pool.core.health import Suspects
from account_pool.core.lease import Lease, RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.request_events import RequestEvents
from account_pool.core.sessions import SessionLease
from account_pool.core.steps import (
    BARE_JITTER_S,
    BARE_PAUSE_S,
    BARE_TRIES,
    PHASE_AFTER,
    Attempt,
    Broken,
    Deliver,
    Limits,
    Phase,
    Refresh,
    Send,
    Step,
    Synthesize,
    Wait,
    broken_off,
    connect_pause_s,
    is_of_account,
    overload_pause_s,
    try_again,
    unserved,
)

#: What its client is told to wait where no deadline is known, seconds.
CROWDED_PAUSE_S = 1.0
#: Why a request is not served although an account may be: another proxy may be there soon.
STOPPING, STOPPING_PAUSE_S = "the proxy is shutting down; try again in a moment", 1.0

#: Of a response that was good.
OK = Outcome(cls=OutcomeClass.OK)
_LIMITS = (OutcomeClass.RATE_LIMIT, OutcomeClass.QUOTA)


@dataclass(slots=True, kw_only=True, eq=False)
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
    """

    pool: Pool
    facts: RequestFacts
    limits: Limits
    chance: Callable[[], float]
    replayable: bool = True
    session: SessionLease = field(default_factory=SessionLease)
    lease: Lease | None = None
    history: list[Attempt] = field(default_factory=list)
    phase: Phase = Phase.NEW
    over: bool = False
    keeps_earlier: bool = False
    suspects: Suspects = field(init=False)
    choice: AccountChoice = field(init=False)
    served_by: Lease | None = None
    _events: RequestEvents | None = None
    #: the lease of the attempt whose silence was noted
    _silent_on: Lease | None = None
    #: where its conversation lived, when this request takes it elsewhere
    _left: AccountKey | None = None
    _refused: bool = False
    _refreshed: set[AccountKey] = field(default_factory=set)
    _bare_refusals: int = 0
    _overloads: int = 0
    #: another account was asked in place of an overloaded one
    _asked_another: bool = False
    _breaks: dict[Broken, int] = field(default_factory=dict)

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
        self._expect(Phase.NEW)
        return self._enter(_choose(self, now), now)

    def began(self, now: float) -> None:
        """The first byte of a response to the running attempt is here, whatever it is."""
        lease = self.lease
        if lease is not None and lease.began_at is None:
            lease.began_at = now

    def refused(self, outcome: Outcome, now: float) -> Step:
        """The running attempt was answered with something that is not OK."""
        lease = self.held(Phase.SENT)
        outcome = outcome.masked(lease.credential.secret)
        self.history[-1].outcome = outcome
        # The limit of one says more than that another was not accepted.
        self.keeps_earlier = (
            any(a.outcome is not None and a.outcome.cls in _LIMITS for a in self.history[:-1])
            and outcome.blames_account
        )
        self._refused, self.choice.nobody = True, None
        react = _reaction_to(outcome, self.facts.model)
        return self._enter(react(self, lease, outcome, now), now)

    def refused_for_ours(self, outcome: Outcome, now: float) -> Step:
        """The running attempt was refused for what we had added: once more, without that."""
        lease = self.held(Phase.SENT)
        self.history[-1].outcome = outcome.masked(lease.credential.secret)
        return self._enter(_again(self, lease, now), now)

    def broken(self, how: Broken, now: float, reason: str = "") -> Step:
        """The running attempt ended without a response.

        *reason* says why, for people, as far as it is known; it holds no secret.
        """
        lease = self.held(Phase.SENT)
        signal = f"{how.value}: {reason}" if reason else how.value
        self.history[-1].outcome = Outcome(cls=OutcomeClass.TRANSPORT, signal=signal)
        tries = self._breaks[how] = self._breaks.get(how, 0) + 1
        step: Step
        if try_again(how, tries, self.limits) and self.replayable and self.may_send:
            pause_s = connect_pause_s(how, self.chance())
            step = _again(self, lease, now, fresh=True) if pause_s is None else Wait(now + pause_s)
            return self._enter(step, now)
        self.pool.health.note_broken(lease, now=now, of_account=is_of_account(how))
        # An earlier refusal says more than that a connection broke.
        step = Deliver() if self._refused else broken_off(lease.key, how, reason)
        return self._enter(_give_up(self, step, now), now)

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

    def withdrawn(self, now: float) -> Step:
        """The running attempt has not left, and shall not: choose again."""
        self.held(Phase.SENT)
        self.history.pop()
        self._return(None, now)
        return self._enter(_choose(self, now), now)

    def refreshed(self, changed: bool | None, now: float) -> Step:
        """The credential of the running lease was renewed, or not; None: that goes on."""
        lease = self.held(Phase.REFRESHING)
        refusal = self.history[-1].outcome
        assert refusal is not None
        state = lease.state
        if changed is None and (state.removed or self.facts.kind not in state.credentials):
            # It is nobody's fault, and not waited for: others serve, or it is held.
            self._return(None, now)
            return self._enter(_choose_if(self, refusal.replayable, now), now)
        if not changed:
            return self._enter(_blame(self, lease, refusal, now), now)
        self.pool.health.note_renewed(lease, now=now)
        if self.replayable and self.may_send:
            return self._enter(_again(self, lease, now), now)
        # It came too late for this request, but it is there for the next.
        return self._enter(_give_up(self, Deliver(), now), now)

    def resumed(self, now: float) -> Step:
        """A wait is over, because of time or because it was called."""
        self._expect(Phase.WAITING)
        if self.lease is not None:
            return self._enter(_again(self, self.lease, now), now)
        # Whoever is out of the line is overtaken.
        self.pool.admit(self.facts.provider, now=now)
        lease = self.choice.take_given(now)
        return self._enter(_choose(self, now) if lease is None else _go(self, lease, now), now)

    def stopped(self, now: float) -> Step:
        """The proxy shuts down while this is held for an account: its client is told so."""
        self._expect(Phase.WAITING)
        given = self.choice.leave_line()
        if given is not None:
            self.pool.release(given, None, now=now)
        message = f"{self.facts.provider}: {STOPPING}"
        step = Synthesize(503, message, retry_after_s=STOPPING_PAUSE_S)
        return self._enter(_give_up(self, step, now), now)

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
        self._expect(Phase.COMMITTED)
        self.end(now)
        lease, self.lease = self.lease, None
        if lease is not None:
            self.pool.release(lease, OK, now=now)

    def refused_late(self, outcome: Outcome, now: float) -> None:
        """A committed response has ended in a refusal: it went on unchanged, the pool learns.

        What the account is told of it, the next request of its conversation meets elsewhere.
        May come when all is over.
        """
        lease = self.served_by
        if lease is None or lease.epoch != lease.state.epoch:
            return
        outcome = outcome.masked(lease.credential.secret)
        if outcome.is_limit:
            self.pool.health.learn(lease, outcome, now=now)
        elif outcome.cls in (OutcomeClass.OVERLOADED, OutcomeClass.SERVER_ERROR):
            self.pool.failures(self.facts.provider).overloaded(lease, now)

    def look(self, now: float) -> None:
        """Time has passed: note a silence that is longer than usual, once an attempt."""
        lease = self.lease
        if self.phase is not Phase.SENT or lease is None or self._silent_on is lease:
            return
        if not self.pool.failures(self.facts.provider).is_silent(lease, now):
            return
        avoid = self.choice.avoided(now) | {lease.key}
        another = self.pool.pick(self.facts, now=now, avoid=avoid) is not None
        if self.session.owner is None and another:
            self._silent_on = lease
            self.events.silent(lease.key, now - lease.started_at, now)

    def left(self, now: float) -> None:
        """The client has left, or the request was given up: nobody's fault.

        May come at any time, also when all is over.
        """
        if self.phase is Phase.SENT and self.lease is not None:
            self.pool.health.departed(self.lease, now=now)
        self.end(now)
        if self._events is not None:
            self._events.wait_ended(By.CLIENT, now)
        self._return(None, now)
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

    def _expect(self, phase: Phase) -> None:
        if self.phase is not phase:
            raise IllegalEvent(f"this event needs phase {phase.value!r}, not {self.phase.value!r}")

    def held(self, phase: Phase) -> Lease:
        """Return the lease of the running attempt. Raises IllegalEvent outside of *phase*."""
        self._expect(phase)
        assert self.lease is not None
        return self.lease

    def _enter(self, step: Step, now: float) -> Step:
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

    def _return(self, outcome: Outcome | None, now: float) -> None:
        lease, self.lease = self.lease, None
        if lease is not None:
            self.pool.release(lease, outcome, now=now)


# -- how it goes on, or ends


def _choose(attempts: Attempts, now: float) -> Step:
    if not attempts.may_send:
        return _out_of_attempts(attempts, now)
    match attempts.choice.choose(now, len(attempts.history)):
        case Lease() as lease:
            return _go(attempts, lease, now)
        case Wait() as wait:
            return wait
        case nobody:
            return _unserved(attempts, nobody, now)


def _go(attempts: Attempts, lease: Lease, now: float) -> Step:
    """Send with *lease*; the conversation lives there from now on."""
    home = attempts.choice.home
    moves = home is not None and home != lease.key
    attempts.lease = lease
    attempts._left = home if moves else None
    if lease.probe:
        attempts.events.probed(lease.key, now)
    for_model = moves and attempts.choice.leaves_for_model(now)
    attempts.session.sent_to(lease.key, now, for_model=for_model)
    return attempts.send(lease)


def _choose_if(attempts: Attempts, refusal_is_replayable: bool, now: float) -> Step:
    """Choose again, if the request can be sent again; else deliver the refusal."""
    if refusal_is_replayable and attempts.replayable:
        return _choose(attempts, now)
    # Its client may come back when an account can serve.
    attempts.suspects.drop(now)
    return Deliver(attempts.choice.soonest_s(now))


def _again(attempts: Attempts, lease: Lease, now: float, *, fresh: bool = False) -> Step:
    """Send on the same account once more, if it may still serve."""
    renewed = attempts.lease = attempts.pool.renew(lease, now=now)
    return _choose(attempts, now) if renewed is None else attempts.send(renewed, fresh=fresh)


def _unserved(attempts: Attempts, nobody: NoUsableAccount, now: float) -> Step:
    """Nobody can serve it, and no wait is worth it."""
    misses_model, wait_s = attempts.suspects.miss_model, nobody.wait_s(now)
    if nobody.all_refused:
        attempts.suspects.refused_by_all(now)
    attempts.suspects.drop(now)
    if misses_model and not nobody.crowded:
        return Deliver()  # no wait would make the model known
    attempts.choice.nobody = nobody
    if attempts._refused and (
        nobody.crowded or nobody.status is not None or _was_limited(attempts)
    ):
        return Deliver(wait_s)
    if nobody.crowded:
        pause_s = CROWDED_PAUSE_S if wait_s is None else wait_s
        return Synthesize(status=503, message=str(nobody), retry_after_s=pause_s)
    return unserved(attempts.facts.provider, nobody, wait_s)


def _was_limited(attempts: Attempts) -> bool:
    """Say whether an account refused it that it does not blame.

    While others are limited, a refusal by an account's own fault is not what keeps the client
    from its response: told of a bad credential it would log out.
    """
    outcomes = [attempt.outcome for attempt in attempts.history]
    return not all(outcome is not None and outcome.blames_account for outcome in outcomes)


def _out_of_attempts(attempts: Attempts, now: float) -> Step:
    attempts.suspects.drop(now)
    attempts.choice.nobody = None
    wait_s, owner = attempts.choice.soonest_s(now), attempts.session.owner
    if not attempts._refused:
        return unserved(attempts.facts.provider, None, wait_s)
    untried = attempts.pool.pick(attempts.facts, now=now, avoid=attempts.choice.avoid, only=owner)
    again = untried is not None and not untried.is_suspect(attempts.facts.model)
    return Deliver(wait_s, again)


def _give_up(attempts: Attempts, step: Deliver | Synthesize, now: float) -> Step:
    """End with *step*; it says nothing against the account."""
    attempts._return(None, now)
    attempts.suspects.drop(now)
    return step


# -- reactions to a refusal, each as the table above says


def _renew(attempts: Attempts, lease: Lease, outcome: Outcome, now: float) -> Step:
    """Its credential is renewed, once and if that is worth it."""
    # Also when this request cannot be sent again: nobody is benched before its
    # credential was renewed, and the next request will need it.
    expired = outcome.cls is OutcomeClass.AUTH_EXPIRED and outcome.explicit
    worth_it = expired or attempts.pool.health.may_renew(lease, now=now)
    if lease.key not in attempts._refreshed and worth_it:
        attempts._refreshed.add(lease.key)
        return Refresh(lease)
    return _blame(attempts, lease, outcome, now)


def _blame(attempts: Attempts, lease: Lease, outcome: Outcome, now: float) -> Step:
    """It may be the fault of the account, or of the request: the others are asked."""
    attempts._return(None, now)
    attempts.choice.avoid.add(lease.key)
    attempts.suspects.add(lease, outcome, now)
    tried = attempts.suspects.tried_since(now)
    if tried is not None:
        tried.append(lease.key)
        attempts.suspects.drop(now, acquit=True)
        return Deliver()
    return _choose_if(attempts, outcome.replayable, now)


def _ask_for_model(attempts: Attempts, lease: Lease, outcome: Outcome, now: float) -> Step:
    """It is off for this account once another one serves it.

    A name that no account knows is the request's own mistake: it is handed on, and for a
    while nobody else is asked about it.
    """
    absent = replace(
        outcome,
        cls=OutcomeClass.FORBIDDEN_ACCOUNT,
        scope=Scope.MODEL,
        unknown=False,
        replayable=True,
    )
    return _blame(attempts, lease, absent, now)


def _move(attempts: Attempts, lease: Lease, outcome: Outcome, now: float) -> Step:
    """The account cools; the others are asked."""
    attempts._return(outcome, now)
    model = attempts.facts.model
    of_model = outcome.scope is Scope.MODEL and model is None
    if (outcome.model is not None or of_model) and not (
        not lease.state.removed and lease.state.cooling_until(model, now) > now
    ):
        # What is limited need not be what the request will be chosen by.
        attempts.choice.avoid.add(lease.key)
    if outcome.cooldown_s == 0:
        # "Come back at once" is no reason to wait here: others are asked before.
        attempts.choice.move_at = now
    return _choose_if(attempts, outcome.replayable, now)


def _spread(attempts: Attempts, lease: Lease, outcome: Outcome, now: float) -> Step:
    """A 429 without evidence: some others are asked, and not all at once.

    When all who were asked say the same, it is not the accounts' limit but perhaps the
    address's.
    """
    attempts._return(outcome, now)
    attempts._bare_refusals += 1
    refusals, choice = attempts._bare_refusals, attempts.choice
    choice.move_at = now
    if not (outcome.replayable and attempts.replayable):
        return _choose_if(attempts, False, now)
    pool, facts = attempts.pool, attempts.facts
    failures = pool.failures(facts.provider)
    avoid = choice.avoid | {lease.key}
    another = attempts.session.owner is None and pool.pick(facts, now=now, avoid=avoid)
    limited = failures.is_address_limited(now)
    if another and refusals < BARE_TRIES and attempts.may_send and not limited:
        choice.avoid = avoid
        return Wait(now + BARE_PAUSE_S + attempts.chance() * BARE_JITTER_S)
    # One of many that are busy or on cooldown tells nothing about the others.
    all_said_so = refusals > 1 or pool.accounts.is_only(lease.key)
    if all_said_so and not limited and refusals == len(attempts.history):
        failures.limit_address(now)
    if limited or refusals > 1:
        attempts.suspects.drop(now)
        return Deliver()
    return _choose(attempts, now)


def _repeat(attempts: Attempts, lease: Lease, outcome: Outcome, now: float) -> Step:
    """It is tried once more in place, then once elsewhere: more would make an overload worse."""
    attempts.pool.failures(attempts.facts.provider).overloaded(lease, now)
    attempts._overloads += 1
    if attempts.replayable and attempts.may_send:
        pause_s = overload_pause_s(outcome, attempts.limits, attempts.chance())
        if (
            attempts._overloads == 1
            and pause_s is not None
            and now + pause_s <= attempts.choice.hold_until(now)
        ):
            return Wait(now + pause_s)
        other = None if attempts._asked_another else attempts.choice.another(lease, now)
        if other is not None:
            attempts._asked_another = True
            attempts._return(None, now)
            return _go(attempts, other, now)
    return _deliver(attempts, lease, outcome, now)


def _deliver(attempts: Attempts, _lease: Lease, _outcome: Outcome, now: float) -> Step:
    """It is the request's own fault, or nobody's: the client gets it as it is."""
    return _give_up(attempts, Deliver(), now)


_Reaction = Callable[[Attempts, Lease, Outcome, float], Step]

_REACTIONS: dict[OutcomeClass, _Reaction] = {
    OutcomeClass.AUTH_EXPIRED: _renew,
    OutcomeClass.AUTH_INVALID: _renew,
    OutcomeClass.FORBIDDEN_ACCOUNT: _blame,
    OutcomeClass.RATE_LIMIT: _move,
    OutcomeClass.QUOTA: _move,
    OutcomeClass.OVERLOADED: _repeat,
    OutcomeClass.SERVER_ERROR: _repeat,
    OutcomeClass.REQUEST_ERROR: _deliver,
    OutcomeClass.TRANSPORT: _deliver,
    OutcomeClass.OK: _deliver,
}


def _reaction_to(outcome: Outcome, model: str | None) -> _Reaction:
    """Return what is done about *outcome* of a request for *model*."""
    match outcome:
        case Outcome(cls=OutcomeClass.QUOTA, unknown=True):
            return _blame
        case Outcome(cls=OutcomeClass.RATE_LIMIT, scope=Scope.NONE):
            return _spread
        case Outcome(cls=OutcomeClass.REQUEST_ERROR, missing_model=True) if model:
            return _ask_for_model
    return _REACTIONS[outcome.cls]
