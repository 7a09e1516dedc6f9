"""One client request as a state machine: what next?

Told what happened (an answer was refused, a connection broke, a wait is over), it
answers with the next `Step`. It holds the lease of the running attempt, so that every
lease comes back exactly once whatever order events come in. The shell carries steps out
and decides nothing; rules are those of design.md section 7. An event that cannot come in
the current `Phase` raises IllegalEvent and changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import assert_never

from account_pool.core.account import AccountKey
from account_pool.core.admission import Ticket
from account_pool.core.broken import TRIES, Broken
from account_pool.core.cooldown import usable_hint
from account_pool.core.decisions import By
from account_pool.core.errors import IllegalEvent, NoUsableAccount, UnknownAccount
from account_pool.core.health import Suspect
from account_pool.core.lease import Lease, RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.recent_failures import RecentFailures
from account_pool.core.request_events import RequestEvents
from account_pool.core.sessions import SessionLease
from account_pool.core.steps import (
    PHASE_AFTER,
    Attempt,
    Deliver,
    Phase,
    Refresh,
    Send,
    Step,
    Synthesize,
    Wait,
)
from account_pool.core.verdicts import is_about_account

#: Longest pause before an overloaded account is tried once more, full jitter (design.md, 7).
OVERLOAD_PAUSE_S = 1.0
#: Accounts a request asks that say 429 without evidence, and the pause between them.
BARE_TRIES = 4
BARE_PAUSE_S, BARE_JITTER_S = 0.05, 0.2
#: Pause before a server that refused a connection is tried again.
CONNECT_PAUSE_S = 0.25

#: What the owner can do where nobody else can, by the status of the answer.
REMEDIES = {
    401: "renew a credential, or add an account",
    402: "out of credit: pay, or add an account",
    403: "the provider does not serve them any more; add an account",
    404: "allow one of them the model, or add an account",
}

#: How many times as long a request that goes on with begun work waits for its account.
#: Copilot counts a prompt of its user when it is sent to an account, not what follows it.
FOLLOW_UP_PATIENCE = 3.0

#: Longest body of a request that probes an account, bytes (design.md, 7).
MAX_PROBE_BYTES = 256 * 1024
#: Why a request is not held although an account may return in time.
CROWDED = "too many requests wait for an account already (pool_max_waiting, or 512 MiB of bodies)"
#: What its client is told to wait where no deadline is known, seconds.
CROWDED_PAUSE_S = 1.0
#: Why a request is not served although an account may be: another proxy may be there soon.
STOPPING, STOPPING_PAUSE_S = "the proxy is shutting down; try again in a moment", 1.0

#: Stands for the models of a WebSocket, which its handshake does not name.
SOCKETS = "(websocket)"

_OK = Outcome(cls=OutcomeClass.OK)
_LIMITS = (OutcomeClass.RATE_LIMIT, OutcomeClass.QUOTA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Our own bounds on one request (options of design.md section 5).

    Attributes:
        max_attempts: requests sent upstream at most.
        max_wait_s: longest time a request is held while nobody can serve.
        patience_s: longest time worth waiting for the account a conversation lives on.
        retry_broken: send again although the first try may have run.
        max_waiting: requests that wait for an account at most, over all providers.
    """

    max_attempts: int = 10
    max_waiting: int = 1000
    max_wait_s: float = 30.0
    patience_s: float = 3.0
    retry_broken: bool = False


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
        keeps_earlier: an earlier refusal is to be delivered rather than the last.
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
    keeps_earlier: bool = False
    _avoid: set[AccountKey] = field(default_factory=set)
    #: refusals that are the fault of their accounts, or of the request
    _suspects: list[Suspect] = field(default_factory=list)
    _refreshed: set[AccountKey] = field(default_factory=set)
    _bare_refusals: int = 0
    _overloads: int = 0
    #: the lease of the answer that was committed
    _served_by: Lease | None = None
    #: the lease of the attempt whose silence was noted
    _silent_on: Lease | None = None
    #: another account was asked in place of an overloaded one
    _asked_another: bool = False
    _breaks: dict[Broken, int] = field(default_factory=dict)
    _give_up_at: float | None = None
    _move_at: float | None = None
    _refused: bool = False
    #: its place among those who wait, once it had to
    _ticket: Ticket | None = None
    #: why nobody could serve it when that was asked last, after the last refusal
    _nobody: NoUsableAccount | None = None
    #: where its conversation lived, when this request takes it elsewhere
    _left: AccountKey | None = None
    #: tells what was decided about it, once there is something to tell
    _recorded: RequestEvents | None = None

    @property
    def over(self) -> bool:
        """The request has ended: no lease is held and no event can come any more."""
        return self.phase is Phase.OVER

    @property
    def _failures(self) -> RecentFailures:
        return self.pool.failures(self.facts.provider)

    # -- events

    def begin(self, now: float) -> Step:
        """Start: choose an account."""
        self._expect(Phase.NEW)
        return self._enter(self._choose(now), now)

    def began(self, now: float) -> None:
        """The first byte of an answer to the running attempt is here, whatever it is."""
        lease = self.lease
        if lease is not None and lease.began_at is None:
            lease.began_at = now

    def refused(self, outcome: Outcome, now: float) -> Step:
        """The running attempt was answered with something that is not OK."""
        lease = self._held(Phase.SENT)
        outcome = outcome.masked(lease.credential.secret)
        self.history[-1].outcome = outcome
        # The limit of one says more than that another was not accepted.
        self.keeps_earlier = any(
            a.outcome is not None and a.outcome.cls in _LIMITS for a in self.history[:-1]
        ) and is_about_account(outcome)
        self._refused, self._nobody = True, None
        return self._enter(self._judge(lease, outcome, now), now)

    def broken(self, how: Broken, now: float, reason: str = "") -> Step:
        """The running attempt ended without an answer.

        *reason* says why, for people, as far as it is known; it holds no secret.
        """
        lease = self._held(Phase.SENT)
        signal = f"{how.value}: {reason}" if reason else how.value
        self.history[-1].outcome = Outcome(cls=OutcomeClass.TRANSPORT, signal=signal)
        return self._enter(self._reconnect(lease, how, now, reason), now)

    def may_go(self, now: float) -> bool:
        """Say whether the running attempt, if it has not left yet, shall still do so.

        Its account may have been refused since it was chosen.
        """
        lease = self.lease
        if self.phase is not Phase.SENT or lease is None or lease.probe or lease.last_resort:
            return True
        try:
            state = self.pool.accounts.get(lease.key)
        except UnknownAccount:
            return False
        return state.enabled and state.cooling_until(self.facts.model, now) <= now

    def withdrawn(self, now: float) -> Step:
        """The running attempt has not left, and shall not: choose again."""
        self._held(Phase.SENT)
        self.history.pop()
        self._return(None, now)
        return self._enter(self._choose(now), now)

    def refreshed(self, changed: bool | None, now: float) -> Step:
        """The credential of the running lease was renewed, or not; None: that goes on."""
        lease = self._held(Phase.REFRESHING)
        refusal = self.history[-1].outcome
        assert refusal is not None
        if changed is None and self._lacks_credential(lease):
            # It is nobody's fault, and not waited for: others serve, or it is held.
            self._return(None, now)
            can_go = refusal.replayable and self.replayable
            return self._enter(self._choose(now) if can_go else self._refuse(now), now)
        if not changed:
            return self._enter(self._account_refused(lease, refusal, now), now)
        self.pool.health.note_renewed(lease, now=now)
        if self.replayable and self._may_send():
            return self._enter(self._again(lease, now), now)
        # It came too late for this request, but it is there for the next.
        return self._enter(self._deliver(now), now)

    def resumed(self, now: float) -> Step:
        """A wait is over, because of time or because it was called."""
        self._expect(Phase.WAITING)
        if self.lease is not None:
            return self._enter(self._again(self.lease, now), now)
        # Whoever is out of the line is overtaken.
        self.pool.admit(self.facts.provider, now=now)
        lease = self._leave_line()
        if lease is not None and self._has_moved(lease, now):
            self.pool.release(lease, None, now=now)
            lease = None
        if lease is not None:
            lease = self.pool.renew(lease, now=now)
        return self._enter(self._choose(now) if lease is None else self._go(lease, now), now)

    def stopped(self, now: float) -> Step:
        """The proxy shuts down while this is held for an account: its client is told so."""
        self._expect(Phase.WAITING)
        given = self._leave_line()
        if given is not None:
            self.pool.release(given, None, now=now)
        self._return(None, now)
        self._unresolved(now)
        message = f"{self.facts.provider}: {STOPPING}"
        return self._enter(Synthesize(503, message, retry_after_s=STOPPING_PAUSE_S), now)

    def committed(self, now: float) -> None:
        """The answer is good and its first byte goes to the client: no more attempts."""
        lease = self._held(Phase.SENT)
        self.phase = Phase.COMMITTED
        self._served_by = lease
        self.pool.answered(lease, now=now)
        self.history[-1].outcome = _OK
        self.session.served()
        if self._suspects:
            self._witnessed(now)

    def finished(self, now: float) -> None:
        """The committed answer has ended, or the client hung up when it had enough."""
        self._expect(Phase.COMMITTED)
        self.phase = Phase.OVER
        self.session.ended(now)
        self._return(_OK, now)

    def refused_inside(
        self, outcome: Outcome, model: str | None, now: float, *, may_close: bool = True
    ) -> bool:
        """A committed WebSocket was told of a limit: bench its account for *model*.

        Returns whether to close the socket: its client opens another, which another
        account can serve.

        Args:
            may_close: nothing of an answer has come.
        """
        lease = self._held(Phase.COMMITTED)
        outcome = outcome.masked(lease.credential.secret)
        self._bench_inside(lease, outcome, model, now)
        facts = replace(self.facts, model=outcome.model or model)
        avoided = self._limited_sockets(now) | {lease.key}
        another = outcome.replayable and self.pool.pick(facts, now=now, avoid=avoided) is not None
        closes = may_close and another
        RequestEvents(self.pool, facts).refused_inside(lease.key, outcome, now, closes=closes)
        return closes

    def refused_late(self, outcome: Outcome, now: float) -> None:
        """A committed answer has ended in a refusal: it went on unchanged, the pool learns.

        What the account is told of it, the next request of its conversation meets elsewhere.
        May come when all is over.
        """
        lease = self._served_by
        if lease is None:
            return
        outcome = outcome.masked(lease.credential.secret)
        limits = (OutcomeClass.RATE_LIMIT, OutcomeClass.QUOTA)
        if outcome.cls in limits and outcome.scope is not Scope.NONE:
            with suppress(UnknownAccount):
                self.pool.health.mark_cooldown(
                    lease.key,
                    outcome,
                    now=now,
                    model=self.facts.model,
                    started_at=lease.started_at,
                )
        elif outcome.cls in (OutcomeClass.OVERLOADED, OutcomeClass.SERVER_ERROR):
            self._failures.overloaded(lease, now)

    def move_inside(self, outcome: Outcome | None, model: str | None, now: float) -> Send | None:
        """Take a WebSocket elsewhere that was refused before anything of an answer came.

        Its client keeps the socket: another handshake is made behind it, which this is asked
        about again when it is refused or breaks. None: nobody else can serve it. Then a
        committed one stays as it was, and any other is over.

        Args:
            outcome: what it was told, or its handshake was answered with; None if that broke.
            model: what it asks for.
        """
        committed = self.phase is Phase.COMMITTED
        lease = self._held(Phase.COMMITTED if committed else Phase.SENT)
        outcome = outcome and outcome.masked(lease.credential.secret)
        other = self._elsewhere(lease, outcome, model, now)
        if other is None and committed:
            return None
        # Whatever fails here, both leases come back.
        self.lease = other
        try:
            self.history[-1].outcome = outcome or Outcome(cls=OutcomeClass.TRANSPORT)
            if outcome and (suspect := self._bench_inside(lease, outcome, model, now)):
                self._suspects.append(suspect)
        finally:
            self.pool.release(lease, None, now=now)
        self._avoid.add(lease.key)
        if other is None:
            self._unresolved(now)
            self.phase = Phase.OVER
            self.session.ended(now)
            return None
        self.phase = Phase.SENT
        self.session.sent_to(other.key, now)
        events = RequestEvents(self.pool, replace(self.facts, model=model))
        events.sent(lease.key, other.key, self.history[-1].outcome, now)
        return self._send(other)

    def next_turn(self, model: str | None, now: float) -> Send | None:
        """A turn begins in a committed WebSocket: where its account is limited by now, elsewhere.

        Its client keeps the socket, as with `move_inside`. None: it stays.

        Args:
            model: what it asks for.
        """
        lease = self._held(Phase.COMMITTED)
        # Those that refused an earlier turn are limited, or may serve again.
        self._avoid = set()
        try:
            limited = self.pool.accounts.get(lease.key).cooling_until(model, now) > now
        except UnknownAccount:
            limited = True
        other = self._elsewhere(lease, None, model, now) if limited else None
        if other is None:
            return None
        self.lease = other
        self.pool.release(lease, _OK, now=now)
        self.phase = Phase.SENT
        self.session.sent_to(other.key, now)
        events = RequestEvents(self.pool, replace(self.facts, model=model))
        events.sent(lease.key, other.key, None, now)
        return self._send(other)

    def _elsewhere(
        self, lease: Lease, outcome: Outcome | None, model: str | None, now: float
    ) -> Lease | None:
        """Lease another account for the WebSocket of *lease*, without waiting."""
        if not (self.replayable and self._may_send()) or self.session.owner is not None:
            return None
        if outcome is not None and not outcome.replayable:
            return None
        facts = replace(self.facts, model=(outcome.model if outcome else None) or model)
        avoid = self._avoid | self._limited_sockets(now) | {lease.key}
        try:
            return self.pool.acquire(facts, now=now, avoid=avoid)
        except NoUsableAccount:
            return None

    def _bench_inside(
        self, lease: Lease, outcome: Outcome, model: str | None, now: float
    ) -> Suspect | None:
        """Bench the account of a WebSocket that was told of a limit, for *model*.

        Returns what is open where it may be the account's own fault.
        """
        by, suspect = By.SOCKET, None
        with suppress(UnknownAccount):
            if is_about_account(outcome):
                suspect = self.pool.health.suspect(lease, outcome, now=now, model=model, by=by)
            else:
                self.pool.health.mark_cooldown(lease.key, outcome, now=now, model=model, by=by)
            if outcome.scope is Scope.MODEL or outcome.unknown:
                # The next handshake names no model; it must not come back here.
                of_sockets = replace(outcome, model=SOCKETS, scope=Scope.MODEL)
                self.pool.health.mark_cooldown(lease.key, of_sockets, now=now, by=by)
        return suspect

    def look(self, now: float) -> None:
        """Time has passed: note a silence that is longer than usual, once an attempt."""
        lease = self.lease
        if self.phase is not Phase.SENT or lease is None or self._silent_on is lease:
            return
        if not self._failures.is_silent(lease, now):
            return
        avoid = self._avoided(now) | {lease.key}
        if (
            self.session.owner is None
            and self.pool.pick(self.facts, now=now, avoid=avoid) is not None
        ):
            self._silent_on = lease
            self._events().silent(lease.key, now - lease.started_at, now)

    def left(self, now: float) -> None:
        """The client has left, or the request was given up: nobody's fault.

        May come at any time, also when all is over.
        """
        if self.phase is Phase.SENT and self.lease is not None:
            self.pool.health.departed(self.lease, now=now)
        self.phase = Phase.OVER
        self.session.ended(now)
        if self._recorded is not None:
            self._recorded.wait_ended(By.CLIENT, now)
        self._return(None, now)
        given = self._leave_line()
        if given is not None:
            self.pool.release(given, None, now=now)

    # -- rules

    def _judge(self, lease: Lease, outcome: Outcome, now: float) -> Step:
        match outcome.cls:
            case OutcomeClass.AUTH_EXPIRED | OutcomeClass.AUTH_INVALID:
                return self._credential_refused(lease, outcome, now)
            case _ if is_about_account(outcome):
                return self._account_refused(lease, outcome, now)
            case OutcomeClass.RATE_LIMIT if outcome.scope is Scope.NONE:
                return self._bare(lease, outcome, now)
            case OutcomeClass.RATE_LIMIT | OutcomeClass.QUOTA:
                return self._limited(lease, outcome, now)
            case OutcomeClass.OVERLOADED | OutcomeClass.SERVER_ERROR:
                return self._overloaded(lease, outcome, now)
            case OutcomeClass.REQUEST_ERROR if outcome.missing_model and self.facts.model:
                return self._model_missing(lease, outcome, now)
            case (
                OutcomeClass.SERVER_ERROR
                | OutcomeClass.REQUEST_ERROR
                | OutcomeClass.TRANSPORT
                | OutcomeClass.OK
                | OutcomeClass.FORBIDDEN_ACCOUNT
            ):
                return self._deliver(now)
            case _:
                assert_never(outcome.cls)

    def _limited(self, lease: Lease, outcome: Outcome, now: float) -> Step:
        self._return(outcome, now)
        of_model = outcome.scope is Scope.MODEL and self.facts.model is None
        if (outcome.model is not None or of_model) and not self._cools(lease.key, now):
            # What is limited need not be what the request will be chosen by.
            self._avoid.add(lease.key)
        if usable_hint(outcome.cooldown_s) == 0:
            # "Come back at once" is no reason to wait here: others are asked before.
            self._move_at = now
        if not (outcome.replayable and self.replayable):
            return self._refuse(now)
        return self._choose(now)

    def _bare(self, lease: Lease, outcome: Outcome, now: float) -> Step:
        """A 429 without evidence: others are asked, some, and not all at once.

        When all who were asked say the same, it is not the accounts' limit but perhaps
        the address's.
        """
        self._return(outcome, now)
        self._bare_refusals += 1
        self._move_at = now
        if not (outcome.replayable and self.replayable):
            return self._refuse(now)
        avoid = self._avoid | {lease.key}
        another = self.session.owner is None and self.pool.pick(self.facts, now=now, avoid=avoid)
        limited = self._failures.is_address_limited(now)
        if another and self._bare_refusals < BARE_TRIES and self._may_send() and not limited:
            self._avoid = avoid
            return Wait(now + BARE_PAUSE_S + self.chance() * BARE_JITTER_S)
        several = self._bare_refusals > 1
        # One of many that are busy or on cooldown tells nothing about the others.
        all_said_so = several or self.pool.accounts.is_only(lease.key)
        if all_said_so and not limited and self._bare_refusals == len(self.history):
            self._failures.limit_address(now)
        if limited or several:
            self._unresolved(now)
            return Deliver()
        return self._choose(now)

    def _refuse(self, now: float) -> Deliver:
        """Deliver the refusal in hand; the client may come back when an account can serve."""
        self._unresolved(now)
        return Deliver(self._soonest(now))

    def _overloaded(self, lease: Lease, outcome: Outcome, now: float) -> Step:
        """Try once in place, then one other account; more would make the overload worse."""
        self._failures.overloaded(lease, now)
        self._overloads += 1
        if self.replayable and self._may_send():
            named = usable_hint(outcome.cooldown_s)
            pause = self.chance() * OVERLOAD_PAUSE_S if named is None else named
            in_time = pause <= max(self.limits.patience_s, OVERLOAD_PAUSE_S)
            if self._overloads == 1 and in_time and self._hold_until(now) >= now + pause:
                return Wait(now + pause)
            other = self._another(lease, now)
            if other is not None:
                return self._go(other, now)
        return self._deliver(now)

    def _another(self, lease: Lease, now: float) -> Lease | None:
        """Lease another account in place of an overloaded one, once, without waiting."""
        if self._asked_another or self.session.owner is not None:
            return None
        avoid = self._avoided(now) | {lease.key} | self._failures.avoided(self.facts, now)
        try:
            other = self.pool.acquire(self.facts, now=now, avoid=avoid)
        except NoUsableAccount:
            return None
        self._asked_another = True
        self._return(None, now)
        return other

    def _credential_refused(self, lease: Lease, outcome: Outcome, now: float) -> Step:
        # Also when this request cannot be sent again: nobody is benched before its
        # credential was renewed, and the next request will need it.
        expired = outcome.cls is OutcomeClass.AUTH_EXPIRED and outcome.explicit
        worth_it = expired or self.pool.health.may_renew(lease, now=now)
        if lease.key not in self._refreshed and worth_it:
            self._refreshed.add(lease.key)
            return Refresh(lease)
        return self._account_refused(lease, outcome, now)

    def _account_refused(self, lease: Lease, outcome: Outcome, now: float) -> Step:
        """It may be the account's fault, or the request's: the others are asked.

        An address or a client that is locked out gets the same answer for every account:
        one request must not take the whole pool out of use. One that serves is the
        witness; what all refused is for a while delivered after one attempt.
        """
        self._return(None, now)
        self._avoid.add(lease.key)
        if outcome.names_credential or not self.facts.conversation.named:
            # What is stored on one account is refused by all others.
            self._suspects.append(self.pool.health.suspect(lease, outcome, now=now))
        tried = self._tried_since(now)
        if tried is not None:
            tried.append(lease.key)
            self._unresolved(now, acquit=True)
            return Deliver()
        if not (outcome.replayable and self.replayable):
            return self._refuse(now)
        return self._choose(now)

    def _lacks_credential(self, lease: Lease) -> bool:
        with suppress(UnknownAccount):
            return self.facts.kind not in self.pool.accounts.get(lease.key).credentials
        return True

    def _model_missing(self, lease: Lease, outcome: Outcome, now: float) -> Step:
        """Ask the others for the model; it is off for this account once one of them serves it.

        A name that no account knows is the request's own mistake: it is handed on, and
        for a while nobody else is asked about it.
        """
        absent = replace(
            outcome,
            cls=OutcomeClass.FORBIDDEN_ACCOUNT,
            scope=Scope.MODEL,
            unknown=False,
            replayable=True,
        )
        return self._account_refused(lease, absent, now)

    def _misses_model(self) -> bool:
        return any(suspect.outcome.missing_model for suspect in self._suspects)

    def _tried_since(self, now: float) -> deque[AccountKey] | None:
        """Return whom this was tried on since all accounts refused it; None: they did not."""
        missing = self._misses_model()
        return self._failures.tried_since(self.facts, now, missing_model=missing)

    def _witnessed(self, now: float) -> None:
        """The answer is good: those who refused this request were at fault."""
        if self.facts.conversation.named:
            self._unresolved(now)
        for suspect in self._suspects:
            self.pool.health.convict(suspect, now=now)
        self._suspects = []

    def _refused_by_all(self, now: float) -> None:
        """Nobody is left who could serve it: it is the request's own fault."""
        if self._suspects:
            missing = self._misses_model()
            self._failures.refused_by_all(self.facts, now, missing_model=missing)
        self._unresolved(now, acquit=True)

    def _unresolved(self, now: float, *, acquit: bool = False) -> None:
        """No other account serves it now: nobody is benched but whose key was named.

        Args:
            acquit: it is the request's own fault.
        """
        suspects, self._suspects = self._suspects, []
        for suspect in suspects:
            if acquit:
                self.pool.health.acquit(suspect, now=now)
            self.pool.health.bench_named(suspect, now=now)

    def _reconnect(self, lease: Lease, how: Broken, now: float, reason: str) -> Step:
        self._breaks[how] = self._breaks.get(how, 0) + 1
        maybe_ran = how in (Broken.MAYBE_RAN, Broken.SILENT)
        may_run_twice = not maybe_ran or self.limits.retry_broken
        if (
            self._breaks[how] < TRIES[how]
            and may_run_twice
            and self.replayable
            and self._may_send()
        ):
            if how in (Broken.CONNECT, Broken.SHORT):
                return Wait(now + CONNECT_PAUSE_S * (0.5 + self.chance()))
            return self._again(lease, now, fresh=True)
        of_account = how not in (Broken.UNREACHABLE, Broken.SHORT)
        self.pool.health.note_broken(lease, now=now, of_account=of_account)
        self._return(None, now)
        self._unresolved(now)
        if self._refused:
            return Deliver()  # an earlier answer says more than that a connection broke
        if how is Broken.SILENT:
            reason = f"no answer ({reason})" if reason else "no answer"
        elif (of_account and how is not Broken.CONNECT) or not reason:
            reason = "the upstream connection broke" + (f" ({reason})" if reason else "")
        status = 504 if how is Broken.SILENT else 502
        return Synthesize(
            status=status,
            message=f"{lease.key}: {reason}",
            reason=reason,
            unreachable=how is Broken.UNREACHABLE,
        )

    def _choose(self, now: float) -> Step:
        if not self._may_send():
            return self._out_of_attempts(now)
        # Asked once: mostly nothing is known that would change where a request begins.
        quiet = self.pool.is_quiet(self.facts.provider)
        avoid = self._avoid if quiet and not self.facts.socket else self._avoided(now)
        owner, step = self.session.owner, None
        if owner is None:
            home = self.session.home(now)
            if not quiet or home is not None or self.session.near is not None:
                step = self._preferred(home, avoid, now, quiet=quiet)
        if step is not None:
            return step
        try:
            return self._go(self.pool.acquire(self.facts, now=now, avoid=avoid, only=owner), now)
        except NoUsableAccount as nobody:
            hold_until = self._hold_until(now)
            if hold_until > now:
                soon = nobody.retry_at is not None and nobody.retry_at <= hold_until
                if soon or nobody.may_change:
                    if not self._may_wait():
                        return self._crowded_out(nobody, now)
                    return self._wait_in_line(nobody, avoid, owner, hold_until, now)
            return self._nobody_can(nobody, avoid, now)

    def _nobody_can(self, nobody: NoUsableAccount, avoid: set[AccountKey], now: float) -> Step:
        """Nobody can serve it, and no wait is worth it: ask where we would rather not, or end."""
        owner = self.session.owner
        lease = self.pool.acquire_anyway(
            self.facts,
            now=now,
            avoid=avoid,
            only=owner,
            soon_s=self.limits.max_wait_s,
            first=not self.history,
        )
        if lease is not None:
            if lease.probe:
                self._events().probed(lease.key, now)
            return self._go(lease, now)
        nobody_else = nobody.retry_at is None and not nobody.may_change and owner is None
        refused_by = {suspect.lease.key for suspect in self._suspects}
        misses_model = self._misses_model()
        if nobody_else and refused_by == avoid:
            self._refused_by_all(now)
        self._unresolved(now)
        if misses_model:
            return Deliver()  # no wait would make the model known
        return self._exhausted(nobody.wait_s(now), nobody)

    def _out_of_attempts(self, now: float) -> Step:
        self._unresolved(now)
        untried = self.pool.pick(self.facts, now=now, avoid=self._avoid, only=self.session.owner)
        again = untried is not None and not untried.is_suspect(self.facts.model)
        return self._exhausted(self._soonest(now), None, again=again)

    def _preferred(
        self, home: AccountKey | None, avoid: set[AccountKey], now: float, *, quiet: bool
    ) -> Step | None:
        """Ask the account that suits this request best, whoever is next; None: any will do."""
        step = None if quiet else self._probe(home, now)
        if step is None and not self.history:
            troubled = frozenset() if quiet else self._failures.avoided(self.facts, now)
            step = self._begin_elsewhere(home, avoid, troubled, now)
        return step or self._stay(home, avoid, now)

    def _probe(self, home: AccountKey | None, now: float) -> Step | None:
        """Ask an account whether a deadline far away still holds, if this request may.

        A refusal is replayed: only what is short, and has no account yet, asks.
        """
        if (
            self.history
            or self.facts.socket
            or not self.replayable
            or self.facts.body_bytes > MAX_PROBE_BYTES
            or self.limits.max_attempts < 2
            or self.session.near is not None
            or home is not None
        ):
            return None
        lease = self.pool.acquire_probe(self.facts, now=now)
        if lease is None:
            return None
        self._events().probed(lease.key, now)
        return self._go(lease, now)

    def _begin_elsewhere(
        self,
        home: AccountKey | None,
        avoid: set[AccountKey],
        troubled: frozenset[AccountKey],
        now: float,
    ) -> Step | None:
        """Ask another account than those *troubled*: overloaded or silent a short while ago.

        The conversation moves there when that one serves.
        """
        home = home or self.session.near
        if home is not None and self.pool.is_used_up(home, self.facts, now=now):
            # What goes on there is billed as overage: only where an account has room.
            other = self.pool.pick(self.facts, now=now, avoid=avoid | troubled | {home})
            if other is not None and not other.headroom.is_spent(self.facts.model):
                troubled |= {home}
        if not troubled or (home is not None and home not in troubled):
            return None
        try:
            lease = self.pool.acquire(self.facts, now=now, avoid=avoid | troubled)
        except NoUsableAccount:
            return None
        return self._go(lease, now)

    def _stay(self, home: AccountKey | None, avoid: set[AccountKey], now: float) -> Step | None:
        """Ask the account the conversation lives on, or wait for it; None to go elsewhere.

        A short wait costs less than a cold cache; a long one moves it at once.
        """
        if home is None:
            return self._begin_near(avoid, now)
        if self._is_asked_last(home, avoid, now):
            return None
        until = self.pool.cools_until(home, self.facts, now=now)
        if until > now and until > self._patient_until(now):
            return None  # a limit, mostly: seen at once, without a reason for people
        try:
            return self._go(self.pool.acquire(self.facts, now=now, avoid=avoid, only=home), now)
        except NoUsableAccount as nobody:
            move_at = self._patient_until(now)
            if now >= move_at:
                return None
            soon = nobody.retry_at is not None and nobody.retry_at <= move_at
            if (soon or nobody.may_change) and self._may_wait():
                return self._wait_in_line(nobody, avoid, home, move_at, now)
            return None

    def _may_wait(self) -> bool:
        """Say whether this request may be held; one that was held before keeps its place."""
        return self._ticket is not None or self.pool.may_wait(self.facts, self.limits.max_waiting)

    def _crowded_out(self, nobody: NoUsableAccount, now: float) -> Step:
        """Too many are held already: say so now instead of holding yet another."""
        self._unresolved(now)
        self._nobody = crowded = nobody.because(CROWDED)
        wait_s = crowded.wait_s(now)
        if self._refused:
            return Deliver(wait_s)
        pause_s = CROWDED_PAUSE_S if wait_s is None else wait_s
        return Synthesize(status=503, message=str(crowded), retry_after_s=pause_s)

    def _wait_in_line(
        self,
        nobody: NoUsableAccount,
        avoid: set[AccountKey],
        only: AccountKey | None,
        give_up_at: float,
        now: float,
    ) -> Wait:
        """Wait for an account, or for *only* that one. Its age stays when it waits again."""
        self._nobody = nobody
        ticket = self._ticket = self._ticket or Ticket(facts=self.facts)
        ticket.avoid, ticket.only, ticket.give_up_at = frozenset(avoid), only, give_up_at
        ticket.home = self.session.home(now)
        return Wait(self.pool.wait(ticket, nobody.retry_at), ticket)

    def _has_moved(self, lease: Lease, now: float) -> bool:
        """Say whether its conversation went elsewhere while it waited for *lease*.

        It follows: whoever is late does not take the conversation back.
        """
        waited_from = self._ticket.home if self._ticket is not None else None
        home = self.session.home(now)
        return self.session.owner is None and home not in (None, lease.key, waited_from)

    def _leave_line(self) -> Lease | None:
        """Wait no more; return the lease it was given while it waited, if any."""
        return self.pool.stop_waiting(self._ticket) if self._ticket is not None else None

    def _begin_near(self, avoid: set[AccountKey], now: float) -> Step | None:
        """A new conversation: ask the account it would best begin on, if there is one."""
        near = self.session.near
        if near is None or self._is_asked_last(near, avoid, now):
            return None
        try:
            return self._go(self.pool.acquire(self.facts, now=now, avoid=avoid, only=near), now)
        except NoUsableAccount:
            return None

    def _is_asked_last(self, key: AccountKey, avoid: set[AccountKey], now: float) -> bool:
        """Say whether a verdict on *key* is open, and another can be asked before it."""
        with suppress(UnknownAccount):
            if self.pool.accounts.get(key).is_suspect(self.facts.model):
                first = self.pool.pick(self.facts, now=now, avoid=avoid)
                return first is not None and not first.is_suspect(self.facts.model)
        return False

    def _go(self, lease: Lease, now: float) -> Step:
        """Send with *lease*; the conversation lives there from now on."""
        home = self.session.home(now)
        moves = home is not None and home != lease.key
        self.lease = lease
        self._left = home if moves else None
        self.session.sent_to(lease.key, now, for_model=moves and self._leaves_for_model(home, now))
        return self._send(lease)

    def _leaves_for_model(self, home: AccountKey | None, now: float) -> bool:
        """Say whether *home* would go on serving the conversation, but for this model."""
        if home is None:
            return False
        if self._misses_model():
            return True
        try:
            state = self.pool.accounts.get(home)
        except UnknownAccount:
            return False
        if not state.enabled or home in self._avoid or state.cooling_until(None, now) > now:
            return False
        model = self.facts.model
        return not state.account.models.allows(model) or state.cooling_until(model, now) > now

    def _cools(self, key: AccountKey, now: float) -> bool:
        """Say whether *key* cools for what is asked."""
        with suppress(UnknownAccount):
            return self.pool.accounts.get(key).cooling_until(self.facts.model, now) > now
        return False

    def _avoided(self, now: float) -> set[AccountKey]:
        """Accounts not to be asked: those that refused; for a WebSocket those whose last one
        was told of a limit, and for what all refused lately those it was tried on since,
        unless nobody else is left.
        """
        avoided = self._avoid.union(self._failures.tried_since(self.facts, now) or ())
        if self.facts.socket:
            avoided |= self._limited_sockets(now)
        if avoided == self._avoid:
            return self._avoid
        others = (
            self.pool.pick(self.facts, now=now, avoid=avoided)
            or self.pool.shortage(self.facts, now=now, avoid=avoided).last_resort
        )
        return avoided if others else self._avoid

    def _limited_sockets(self, now: float) -> set[AccountKey]:
        return {
            state.key
            for state in self.pool.accounts.of(self.facts.provider)
            if SOCKETS in state.cooldowns and state.cooldowns[SOCKETS].active(now)
        }

    def _exhausted(
        self, wait: float | None, nobody: NoUsableAccount | None, *, again: bool = False
    ) -> Step:
        self._nobody = nobody
        limited = nobody is not None and nobody.status is None
        if self._refused and not (limited and self._only_blamed()):
            return Deliver(wait, again)
        reason = nobody.reason if nobody else "too many attempts"
        status = nobody.status if nobody else None
        if status is None:
            status = 429 if wait is not None else 503
        else:
            reason = f"{reason}: {REMEDIES[status]}"
        return Synthesize(
            status=status,
            message=f"{self.facts.provider}: {reason}",
            reason=reason,
            retry_after_s=wait,
            like=nobody.like if nobody else None,
        )

    def _only_blamed(self) -> bool:
        """Say whether whoever was asked refused by its own fault.

        While others are limited that is not what keeps the client from its answer: told
        of a bad credential it would log out.
        """
        outcomes = [attempt.outcome for attempt in self.history]
        return all(outcome is not None and is_about_account(outcome) for outcome in outcomes)

    # -- inside

    def _expect(self, phase: Phase) -> None:
        if self.phase is not phase:
            raise IllegalEvent(f"this event needs phase {phase.value!r}, not {self.phase.value!r}")

    def _held(self, phase: Phase) -> Lease:
        """Return the lease of the running attempt, as *phase* has one."""
        self._expect(phase)
        assert self.lease is not None
        return self.lease

    def _enter(self, step: Step, now: float) -> Step:
        before, self.phase = self.phase, PHASE_AFTER[type(step)]
        if before is not Phase.NEW or self.phase is not Phase.SENT or self._left is not None:
            self._record(before, step, now)
        if self.phase is Phase.OVER:
            self.session.ended(now)
        return step

    def _events(self) -> RequestEvents:
        """Return the recorder of this request; an ordinary one needs none."""
        if self._recorded is None:
            self._recorded = RequestEvents(self.pool, self.facts)
        return self._recorded

    def _record(self, before: Phase, step: Step, now: float) -> None:
        """Record what was decided, and why."""
        events = self._events()
        if before is Phase.WAITING and not isinstance(step, Wait):
            served = isinstance(step, Send) and self._ticket is not None
            events.wait_ended(By.ACCOUNT if served else By.TIME, now)
        last = self.history[-1] if self.history else None
        match step:
            case Send(lease):
                # The last attempt is the one that begins.
                refused = self.history[-2] if len(self.history) > 1 else None
                came_from = refused.key if refused else self._left
                if came_from is not None:
                    outcome = refused.outcome if refused else None
                    events.sent(came_from, lease.key, outcome, now)
            case Wait():
                events.held(step, last, self._nobody, now)
            case Deliver() | Synthesize():
                events.given_up(step, last, self._nobody, now, kept=self.replayable)
            case Refresh():
                pass
            case _:
                assert_never(step)

    def _again(self, lease: Lease, now: float, *, fresh: bool = False) -> Step:
        """Send on the same account once more, if it may still serve."""
        self.lease = self.pool.renew(lease, now=now)
        return self._choose(now) if self.lease is None else self._send(self.lease, fresh=fresh)

    def _send(self, lease: Lease, *, fresh: bool = False) -> Send:
        self.history.append(Attempt(number=len(self.history) + 1, key=lease.key))
        return Send(lease, fresh)

    def _deliver(self, now: float) -> Step:
        """Hand the answer on as it is; it says nothing against the account."""
        self._return(None, now)
        self._unresolved(now)
        return Deliver()

    def _may_send(self) -> bool:
        return len(self.history) < self.limits.max_attempts

    def _hold_until(self, now: float) -> float:
        """Until when this request may be held; the clock starts at the first wait."""
        if self._give_up_at is None:
            self._give_up_at = now + self.limits.max_wait_s
        return self._give_up_at

    def _patient_until(self, now: float) -> float:
        """Until when the account of the conversation is waited for; one clock for all waits."""
        if self._move_at is None:
            patience_s = self.limits.patience_s
            if self.facts.conversation.follow_up:
                patience_s *= FOLLOW_UP_PATIENCE
            self._move_at = min(now + patience_s, self._hold_until(now))
        return self._move_at

    def _soonest(self, now: float) -> float | None:
        """Seconds until an account could serve this request; None if unknown."""
        only = self.session.owner
        if self.pool.pick(self.facts, now=now, only=only) is not None:
            return 0.0
        return self.pool.shortage(self.facts, now=now, only=only).wait_s(now)

    def _return(self, outcome: Outcome | None, now: float) -> None:
        lease, self.lease = self.lease, None
        if lease is not None:
            self.pool.release(lease, outcome, now=now)
