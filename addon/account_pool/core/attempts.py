"""One client request as a state machine: what next?

Told what happened (an answer was refused, a connection broke, a wait is over), it
answers with the next `Step`. It holds the lease of the running attempt, so that every
lease comes back exactly once whatever order events come in. The shell carries steps out
and decides nothing; rules are those of design.md section 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from account_pool.core.account import AccountKey
from account_pool.core.errors import NoUsableAccount, UnknownAccount
from account_pool.core.lease import Facts, Lease
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool

#: Tries in place for a server short of capacity, beyond the first (design.md, 7).
OVERLOAD_TRIES = 2
#: First pause between them; doubles, full jitter.
OVERLOAD_PAUSE_S = 1.0
#: Fresh connections tried when the request cannot have run. One client connection keeps
#: at most five upstream connections, which may all have gone stale together.
CONNECTION_TRIES = 6
#: Pause before a server that refused a connection is tried again.
CONNECT_PAUSE_S = 0.25
#: Tries when no connection can be made at all.
CONNECT_TRIES = 2

_OK = Outcome(cls=OutcomeClass.OK)


class Broken(Enum):
    """How an attempt ended without an answer."""

    #: no connection could be made: the request cannot have run
    CONNECT = "connect"
    #: a kept connection was closed, or the stream refused, before an answer
    STALE = "stale"
    #: the request was sent on a fresh connection: it may have run
    MAYBE_RAN = "maybe ran"


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request with this lease's credential."""

    lease: Lease
    #: do not reuse a kept connection
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until *until* (monotonic seconds), or until the pool changes."""

    until: float
    #: a change of the pool ends the wait; otherwise only time does
    for_change: bool = True


@dataclass(frozen=True, slots=True)
class Refresh:
    """Renew the credential of this lease, then say whether it changed."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand the refused answer to the client.

    Attributes:
        retry_after_s: seconds until an account returns; None: leave the wait as it is.
    """

    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """There is no answer to hand on: make one.

    Attributes:
        status: 429 (limits), 502 (broken) or 503 (nobody can serve).
        message: for people; no secrets.
        retry_after_s: as in `Deliver`.
        like: the account whose own last refusal says it best, if it is known.
    """

    status: int
    message: str
    retry_after_s: float | None = None
    like: AccountKey | None = None


Step = Send | Wait | Refresh | Deliver | Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Our own bounds on one request (options of design.md section 5).

    Attributes:
        max_attempts: requests sent upstream at most.
        max_wait_s: longest time a request is held while nobody can serve.
        retry_broken: send again although the first try may have run.
    """

    max_attempts: int = 10
    max_wait_s: float = 30.0
    retry_broken: bool = False


@dataclass(slots=True)
class Attempt:
    """One request sent upstream, for comments and logs."""

    number: int
    key: AccountKey
    outcome: Outcome | None = None


@dataclass(slots=True, kw_only=True)
class Attempts:
    """The attempts of one client request.

    Attributes:
        pool, facts, limits: what is asked of whom, and our bounds.
        chance: a number from 0 to 1, for jitter.
        replayable: False when the body was not kept: one attempt, then deliver.
        lease: of the running attempt.
        history: attempts so far, oldest first.
        over: the request has ended; nothing can be asked any more.
    """

    pool: Pool
    facts: Facts
    limits: Limits
    chance: Callable[[], float]
    replayable: bool = True
    lease: Lease | None = None
    history: list[Attempt] = field(default_factory=list)
    over: bool = False
    _avoid: set[AccountKey] = field(default_factory=set)
    #: refusals of a credential or account that a second one must confirm not to be
    #: the request's own fault, before anybody is benched
    _suspects: list[tuple[AccountKey, Outcome]] = field(default_factory=list)
    _refreshed: set[AccountKey] = field(default_factory=set)
    _bare_refusals: int = 0
    _overloads: int = 0
    _connects: int = 0
    _stale: int = 0
    _give_up_at: float | None = None
    _refused: bool = False

    # -- events

    def begin(self, now: float) -> Step:
        """Start: choose an account."""
        return self._choose(now)

    def refused(self, outcome: Outcome, now: float) -> Step:
        """The running attempt was answered with something that is not OK."""
        lease = self._running(outcome)
        self._refused = True
        match outcome.cls:
            case OutcomeClass.AUTH_EXPIRED | OutcomeClass.AUTH_INVALID:
                return self._credential_refused(lease, outcome, now)
            case OutcomeClass.FORBIDDEN_ACCOUNT if outcome.scope is not Scope.MODEL:
                return self._suspect(lease, outcome, now)
            case OutcomeClass.RATE_LIMIT | OutcomeClass.QUOTA | OutcomeClass.FORBIDDEN_ACCOUNT:
                return self._limited(lease, outcome, now)
            case OutcomeClass.OVERLOADED:
                return self._overloaded(lease, outcome, now)
            case (
                OutcomeClass.SERVER_ERROR
                | OutcomeClass.REQUEST_ERROR
                | OutcomeClass.TRANSPORT
                | OutcomeClass.OK
            ):
                self._return(None, now)
                self._confirm_suspects(now)
                return self._end(Deliver())
            case _:
                assert_never(outcome.cls)

    def broken(self, how: Broken, now: float) -> Step:
        """The running attempt ended without an answer."""
        lease = self._running(Outcome(cls=OutcomeClass.TRANSPORT, signal=how.value))
        if not (self.replayable and self._may_send()):
            return self._broken_for_good(now)
        match how:
            case Broken.CONNECT:
                self._connects += 1
                if self._connects < CONNECT_TRIES:
                    return Wait(now + CONNECT_PAUSE_S * (0.5 + self.chance()), for_change=False)
            case Broken.STALE:
                self._stale += 1
                if self._stale < CONNECTION_TRIES:
                    return self._send(lease, fresh=True)
            case Broken.MAYBE_RAN:
                self._stale += 1
                if self.limits.retry_broken and self._stale < CONNECTION_TRIES:
                    return self._send(lease, fresh=True)
            case _:
                assert_never(how)
        return self._broken_for_good(now)

    def refreshed(self, changed: bool, now: float) -> Step:
        """The credential of the running lease was renewed, or not."""
        lease = self._held()
        refusal = self.history[-1].outcome
        assert refusal is not None
        if changed and self._may_send():
            self.lease = self.pool.renew(lease, now=now)
            if self.lease is not None:
                return self._send(self.lease)
            return self._choose(now)
        return self._suspect(lease, refusal, now)

    def resumed(self, now: float) -> Step:
        """A wait is over, because of time or because the pool changed."""
        if self.lease is not None:
            return self._send(self.lease)
        return self._choose(now)

    def committed(self, now: float) -> None:
        """The answer is good and its first byte goes to the client: no more attempts."""
        self._confirm_suspects(now)

    def finished(self, now: float) -> None:
        """The committed answer has ended."""
        if self.history:
            self.history[-1].outcome = _OK
        self._return(_OK, now)
        self.over = True

    def left(self, now: float) -> None:
        """The client has left, or the request was given up: nobody's fault."""
        self._return(None, now)
        self.over = True

    # -- rules

    def _limited(self, lease: Lease, outcome: Outcome, now: float) -> Step:
        self._return(outcome, now)
        self._confirm_suspects(now)
        if outcome.scope is Scope.NONE:
            # A 429 without evidence: one hop. When a second account says the same, it
            # is not the account's limit, perhaps the address's.
            self._bare_refusals += 1
            if self._bare_refusals > 1:
                return self._end(Deliver())
        if not (outcome.replayable and self.replayable):
            return self._end(Deliver(self._soonest(now)))
        return self._choose(now)

    def _overloaded(self, lease: Lease, outcome: Outcome, now: float) -> Step:
        if self._overloads < OVERLOAD_TRIES and self._may_send() and self.replayable:
            pause = self.chance() * OVERLOAD_PAUSE_S * 2.0**self._overloads
            if outcome.cooldown_s is not None:
                pause += outcome.cooldown_s
            if self._hold_until(now) >= now + pause:
                self._overloads += 1
                return Wait(now + pause, for_change=False)
        self._return(None, now)
        self._confirm_suspects(now)
        return self._end(Deliver())

    def _credential_refused(self, lease: Lease, outcome: Outcome, now: float) -> Step:
        if lease.key not in self._refreshed and self._may_send() and self.replayable:
            self._refreshed.add(lease.key)
            return Refresh(lease)
        return self._suspect(lease, outcome, now)

    def _suspect(self, lease: Lease, outcome: Outcome, now: float) -> Step:
        """Try one other account before anybody is benched."""
        self._return(None, now)
        if any(seen.cls is outcome.cls for _, seen in self._suspects):
            # Two accounts refuse alike: the request's own fault. Nobody is benched.
            self._suspects.clear()
            return self._end(Deliver())
        self._suspects.append((lease.key, outcome))
        self._avoid.add(lease.key)
        if not (outcome.replayable and self.replayable):
            self._confirm_suspects(now)
            return self._end(Deliver())
        return self._choose(now)

    def _confirm_suspects(self, now: float) -> None:
        for key, outcome in self._suspects:
            # The account may have been removed since: then there is nothing to bench.
            try:
                self.pool.mark_failure(key, outcome, now=now, model=self.facts.model)
            except UnknownAccount:
                continue
        self._suspects.clear()

    def _choose(self, now: float) -> Step:
        if not self._may_send():
            self._confirm_suspects(now)
            return self._exhausted(self._soonest(now), None)
        try:
            self.lease = self.pool.acquire(self.facts, now=now, avoid=self._avoid)
        except NoUsableAccount as nobody:
            hold_until = self._hold_until(now)
            if hold_until > now:
                if nobody.retry_at is not None and nobody.retry_at <= hold_until:
                    return Wait(nobody.retry_at)
                if nobody.may_change:
                    return Wait(hold_until)
            self._confirm_suspects(now)
            return self._exhausted(nobody.wait_s(now), nobody)
        return self._send(self.lease)

    def _exhausted(self, wait: float | None, nobody: NoUsableAccount | None) -> Step:
        if self._refused:
            return self._end(Deliver(wait))
        message = str(nobody) if nobody else f"{self.facts.provider}: too many attempts"
        return self._end(
            Answer(
                status=429 if wait is not None else 503,
                message=message,
                retry_after_s=wait,
                like=nobody.soonest if nobody else None,
            )
        )

    def _broken_for_good(self, now: float) -> Step:
        self._return(None, now)
        self._confirm_suspects(now)
        return self._end(
            Answer(status=502, message=f"{self.facts.provider}: the connection upstream broke")
        )

    # -- inside

    def _send(self, lease: Lease, *, fresh: bool = False) -> Step:
        self.history.append(Attempt(number=len(self.history) + 1, key=lease.key))
        return Send(lease, fresh)

    def _may_send(self) -> bool:
        return len(self.history) < self.limits.max_attempts

    def _hold_until(self, now: float) -> float:
        """Until when this request may be held; the clock starts at the first wait."""
        if self._give_up_at is None:
            self._give_up_at = now + self.limits.max_wait_s
        return self._give_up_at

    def _soonest(self, now: float) -> float | None:
        """Seconds until an account could serve this request; None if unknown."""
        if self.pool.pick(self.facts, now=now) is not None:
            return 0.0
        return self.pool.shortage(self.facts, now=now).wait_s(now)

    def _running(self, outcome: Outcome) -> Lease:
        self.history[-1].outcome = outcome
        return self._held()

    def _held(self) -> Lease:
        assert self.lease is not None, "an event of an attempt, but no attempt is running"
        return self.lease

    def _return(self, outcome: Outcome | None, now: float) -> None:
        lease, self.lease = self.lease, None
        if lease is not None:
            self.pool.release(lease, outcome, now=now)

    def _end(self, step: Step) -> Step:
        self.over = True
        return step
