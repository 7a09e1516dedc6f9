"""What happens to a request whose WebSocket is open: refusals inside it, and its turns.

Its client keeps the socket when its account is limited: another handshake is made behind
it, with another account. These are events of `Attempts`, as those in its table:

    phase            event           what follows
    COMMITTED        refused_inside  the account cools; says whether to close the socket
    SENT, COMMITTED  move            SENT on another account; or as it was; or OVER
    COMMITTED        next_turn       SENT on another account where this one is limited
"""

from __future__ import annotations

from contextlib import suppress

from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.attempts import OK, Attempts
from account_pool.core.cooldown import SOCKETS
from account_pool.core.decisions import By, RequestEvents
from account_pool.core.errors import NoUsableAccount
from account_pool.core.health import Suspect
from account_pool.core.lease import Lease
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.steps import Phase, Send


def refused_inside(
    attempts: Attempts, outcome: Outcome, model: str | None, now: float, *, may_close: bool = True
) -> bool:
    """A committed WebSocket was told of a limit: bench its account for *model*.

    Returns whether to close the socket: its client opens another, which another
    account can serve.

    Args:
        may_close: nothing of a response has come.
    """
    lease, pool = attempts.held(Phase.COMMITTED), attempts.pool
    outcome = outcome.masked(lease.credential.secret)
    _bench(attempts, lease, outcome, model, now)
    facts = replace(attempts.facts, model=outcome.model or model)
    avoided = attempts.choice.limited_sockets(now) | {lease.key}
    another = outcome.replayable and pool.pick(facts, now=now, avoid=avoided) is not None
    closes = may_close and another
    RequestEvents(pool, facts).refused_inside(lease.key, outcome, now, closes=closes)
    return closes


def move(attempts: Attempts, outcome: Outcome | None, model: str | None, now: float) -> Send | None:
    """Take a WebSocket elsewhere that was refused before anything of a response came.

    This is asked about the other handshake again when that is refused or breaks. None: nobody
    else can serve it. Then a committed one stays as it was, and any other is over.

    Args:
        outcome: what it was told, or its handshake was answered with; None if that broke.
        model: what it asks for.
    """
    committed = attempts.phase is Phase.COMMITTED
    lease = attempts.held(Phase.COMMITTED if committed else Phase.SENT)
    outcome = outcome and outcome.masked(lease.credential.secret)
    other = _another(attempts, lease, outcome, model, now)
    if other is None and committed:
        return None
    # Whatever fails here, both leases come back.
    attempts.lease = other
    try:
        attempts.history[-1].outcome = outcome or Outcome(cls=OutcomeClass.TRANSPORT)
        if outcome and (suspect := _bench(attempts, lease, outcome, model, now)):
            attempts.suspects.found.append(suspect)
    finally:
        attempts.pool.release(lease, None, now=now)
    attempts.choice.avoid.add(lease.key)
    if other is None:
        attempts.suspects.drop(now)
        attempts.end(now)
        return None
    return _send(attempts, lease.key, model, now)


def next_turn(attempts: Attempts, model: str | None, now: float) -> Send | None:
    """A turn begins in a committed WebSocket: where its account is limited by now, elsewhere.

    Its client keeps the socket, as with `move`. None: it stays.

    Args:
        model: what it asks for.
    """
    lease = attempts.held(Phase.COMMITTED)
    # Those that refused an earlier turn are limited, or may serve again.
    attempts.choice.avoid = set()
    if not lease.state.removed and lease.state.cooling_until(model, now) <= now:
        return None
    other = _another(attempts, lease, None, model, now)
    if other is None:
        return None
    attempts.lease = other
    attempts.pool.release(lease, OK, now=now)
    return _send(attempts, lease.key, model, now)


def _send(attempts: Attempts, left: AccountKey, model: str | None, now: float) -> Send:
    """Make another handshake with the lease that *attempts* has instead of one on *left*."""
    lease, refusal = attempts.lease, attempts.history[-1].outcome
    assert lease is not None
    attempts.phase = Phase.SENT
    attempts.session.sent_to(lease.key, now)
    events = RequestEvents(attempts.pool, replace(attempts.facts, model=model))
    events.sent(left, lease.key, None if refusal is OK else refusal, now)
    return attempts.send(lease)


def _another(
    attempts: Attempts, lease: Lease, outcome: Outcome | None, model: str | None, now: float
) -> Lease | None:
    """Lease another account for the WebSocket of *lease*, without waiting."""
    choice = attempts.choice
    if not (attempts.replayable and attempts.may_send) or attempts.session.owner is not None:
        return None
    if outcome is not None and not outcome.replayable:
        return None
    facts = replace(attempts.facts, model=(outcome.model if outcome else None) or model)
    avoid = choice.avoid | choice.limited_sockets(now) | {lease.key}
    with suppress(NoUsableAccount):
        return attempts.pool.acquire(facts, now=now, avoid=avoid)
    return None


def _bench(
    attempts: Attempts, lease: Lease, outcome: Outcome, model: str | None, now: float
) -> Suspect | None:
    """Bench the account of a WebSocket that was told of a limit, for *model*.

    Returns what is open where it may be the account's own fault.
    """
    health, by, suspect = attempts.pool.health, By.SOCKET, None
    if lease.epoch != lease.state.epoch:
        return None
    if outcome.blames_account:
        suspect = health.suspect(lease, outcome, now=now, model=model, by=by)
    else:
        health.mark_cooldown(lease.key, outcome, now=now, model=model, by=by)
    if outcome.scope is Scope.MODEL or outcome.unknown:
        # The next handshake names no model; it must not come back here.
        of_sockets = replace(outcome, model=SOCKETS, scope=Scope.MODEL)
        health.mark_cooldown(lease.key, of_sockets, now=now, by=by)
    return suspect
