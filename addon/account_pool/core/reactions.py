"""What follows an attempt that does not serve its request: refused, broken, withdrawn, silent.

Events of `Attempts`, as those in its table. A refusal is answered by a reaction:

    reaction        the lease        what follows
    renew           is kept          REFRESHING, once for each account; then as blame
    blame           comes back       a verdict; deliver what all have refused, or choose
    ask_for_model   comes back       as blame, about this model
    move            teaches a limit  choose an account
    spread          teaches a pause  WAITING a moment, then choose; deliver after some
    repeat          is kept          WAITING a moment, then the same account; then another; deliver
    deliver         comes back       deliver
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress

from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.attempts import Attempts, again, choose, give_up, go
from account_pool.core.errors import NoUsableAccount
from account_pool.core.lease import Lease
from account_pool.core.outcome import LIMITS, Outcome, OutcomeClass, Scope
from account_pool.core.state import AccountState
from account_pool.core.steps import (
    BARE_JITTER_S,
    BARE_PAUSE_S,
    BARE_TRIES,
    NEVER_RAN,
    Broken,
    Deliver,
    Phase,
    Refresh,
    Step,
    Synthesize,
    Wait,
    broken_off,
    connect_pause_s,
    is_of_account,
    overload_pause_s,
    try_again,
)

#: Why a request is not served although an account may be: another proxy may be there soon.
STOPPING, STOPPING_PAUSE_S = "the proxy is shutting down; try again in a moment", 1.0


def refused(attempts: Attempts, outcome: Outcome, now: float) -> Step:
    """The running attempt was answered with something that is not OK."""
    lease = attempts.held(Phase.SENT)
    outcome = outcome.masked(lease.credential.secret)
    attempts.history[-1].outcome = outcome
    # The limit of one says more than that another was not accepted.
    attempts.keeps_earlier = (
        any(a.outcome is not None and a.outcome.cls in LIMITS for a in attempts.history[:-1])
        and outcome.blames_account
    )
    attempts.tries.refused, attempts.choice.nobody = True, None
    react = _reaction_to(outcome, attempts.facts.model)
    return attempts.enter(react(attempts, lease, outcome, now), now)


def refused_for_ours(attempts: Attempts, outcome: Outcome, now: float) -> Step:
    """The running attempt was refused for what we had added: once more, without that."""
    lease = attempts.held(Phase.SENT)
    attempts.history[-1].outcome = outcome.masked(lease.credential.secret)
    return attempts.enter(again(attempts, lease, now), now)


def broken(attempts: Attempts, how: Broken, now: float, reason: str = "") -> Step:
    """The running attempt ended without a response.

    *reason* says why, for people, as far as it is known; it holds no secret.
    """
    lease = attempts.held(Phase.SENT)
    signal = f"{how.value}: {reason}" if reason else how.value
    attempts.history[-1].outcome = Outcome(cls=OutcomeClass.TRANSPORT, signal=signal)
    attempts.tries.breaks += (how,)
    tries = attempts.tries.breaks.count(how)
    step: Step
    if try_again(how, tries, attempts.limits) and attempts.replayable and attempts.may_send:
        pause_s = connect_pause_s(how, attempts.chance())
        step = again(attempts, lease, now, fresh=True) if pause_s is None else Wait(now + pause_s)
        return attempts.enter(step, now)
    attempts.pool.health.note_broken(lease, now=now, of_account=is_of_account(how))
    if (
        how in NEVER_RAN
        and attempts.replayable
        and attempts.may_send
        and (other := _at_another_host(attempts, lease, now)) is not None
    ):
        return attempts.enter(go(attempts, other, now, fresh=True), now)
    # An earlier refusal says more than that a connection broke.
    step = Deliver() if attempts.tries.refused else broken_off(lease.key, how, reason)
    return attempts.enter(give_up(attempts, step, now), now)


def withdrawn(attempts: Attempts, now: float) -> Step:
    """The running attempt has not left, and shall not: choose again."""
    attempts.held(Phase.SENT)
    attempts.history.pop()
    attempts.give_back(None, now)
    return attempts.enter(choose(attempts, now), now)


def refreshed(attempts: Attempts, changed: bool | None, now: float) -> Step:
    """The credential of the running lease was renewed, or not; None: that goes on."""
    lease = attempts.held(Phase.REFRESHING)
    refusal = attempts.history[-1].outcome
    assert refusal is not None
    state = lease.state
    if changed is None and (state.removed or attempts.facts.kind not in state.credentials):
        # It is nobody's fault, and not waited for: others serve, or it is held.
        attempts.give_back(None, now)
        return attempts.enter(_choose_if(attempts, refusal.replayable, now), now)
    if not changed:
        return attempts.enter(_blame(attempts, lease, refusal, now), now)
    state.refreshed_at = now
    if attempts.replayable and attempts.may_send:
        return attempts.enter(again(attempts, lease, now), now)
    # It came too late for this request, but it is there for the next.
    return attempts.enter(give_up(attempts, Deliver(), now), now)


def stopped(attempts: Attempts, now: float) -> Step:
    """The proxy shuts down while this is held for an account: its client is told so."""
    attempts.expect(Phase.WAITING)
    given = attempts.choice.leave_line()
    if given is not None:
        attempts.pool.release(given, None, now=now)
    message = f"{attempts.facts.provider}: {STOPPING}"
    step = Synthesize(503, message, retry_after_s=STOPPING_PAUSE_S)
    return attempts.enter(give_up(attempts, step, now), now)


def refused_late(attempts: Attempts, outcome: Outcome, now: float) -> None:
    """A committed response has ended in a refusal: it went on unchanged, the pool learns.

    What the account is told of it, the next request of its conversation meets elsewhere.
    May come when all is over.
    """
    lease = attempts.served_by
    if lease is None or lease.epoch != lease.state.epoch:
        return
    outcome = outcome.masked(lease.credential.secret)
    if outcome.is_limit:
        attempts.pool.health.learn(lease, outcome, now=now)
    elif outcome.cls in (OutcomeClass.OVERLOADED, OutcomeClass.SERVER_ERROR):
        attempts.pool.failures(attempts.facts.provider).overloaded(lease, now)


def silent(attempts: Attempts, now: float) -> None:
    """Time has passed: note a silence that is longer than usual, once an attempt."""
    lease = attempts.lease
    if attempts.phase is not Phase.SENT or lease is None or attempts.silent_on is lease:
        return
    if not attempts.pool.failures(attempts.facts.provider).is_silent(lease, now):
        return
    avoid = attempts.choice.avoided(now) | {lease.key}
    another = attempts.pool.pick(attempts.facts, now=now, avoid=avoid) is not None
    if attempts.session.owner is None and another:
        attempts.silent_on = lease
        attempts.events.silent(lease.key, now - lease.started_at, now)


def _choose_if(attempts: Attempts, refusal_is_replayable: bool, now: float) -> Step:
    """Choose again, if the request can be sent again; else deliver the refusal."""
    if refusal_is_replayable and attempts.replayable:
        return choose(attempts, now)
    # Its client may come back when an account can serve.
    attempts.suspects.drop(now)
    return Deliver(attempts.choice.soonest_s(now))


def _another_once(
    attempts: Attempts, lease: Lease, now: float, *, beside: Collection[AccountKey] = ()
) -> Lease | None:
    """Lease an account in place of *lease*, and not *beside* it; None if there is none.

    Without waiting, and once a request: more would make a server's trouble worse.
    """
    choice, facts, pool = attempts.choice, attempts.facts, attempts.pool
    if attempts.session.owner is not None or attempts.tries.asked_another:
        return None
    choice.find_home(now)
    failures = pool.failures(facts.provider)
    avoid = choice.avoided(now) | {lease.key, *beside} | failures.avoided(facts, now)
    with suppress(NoUsableAccount):
        other = pool.acquire(facts, now=now, avoid=avoid)
        attempts.tries.asked_another = True
        attempts.give_back(None, now)
        return other
    return None


def _at_another_host(attempts: Attempts, lease: Lease, now: float) -> Lease | None:
    """Lease an account at another host than that of *lease*; None if there is none."""
    facts = attempts.facts

    def host(state: AccountState) -> str | None:
        credential = state.credentials.get(facts.kind)
        at = credential.companions.get("host") if credential is not None else None
        return at or state.account.companions.get("host")

    silent = host(lease.state)
    states = list(attempts.pool.accounts.of(facts.provider))
    beside = [state.key for state in states if host(state) == silent]
    if len(beside) == len(states):
        return None  # as a rule; to be told that of ten thousand none can serve takes long
    return _another_once(attempts, lease, now, beside=beside)


# -- reactions to a refusal, each as the table above says


def _renew(attempts: Attempts, lease: Lease, outcome: Outcome, now: float) -> Step:
    """Its credential is renewed, once and if that is worth it."""
    # Also when this request cannot be sent again: nobody is benched before its
    # credential was renewed, and the next request will need it.
    expired = outcome.cls is OutcomeClass.AUTH_EXPIRED and outcome.explicit
    worth_it = expired or attempts.pool.health.may_renew(lease, now=now)
    if lease.key not in attempts.tries.renewed and worth_it:
        attempts.tries.renewed |= {lease.key}
        return Refresh(lease)
    return _blame(attempts, lease, outcome, now)


def _blame(attempts: Attempts, lease: Lease, outcome: Outcome, now: float) -> Step:
    """It may be the fault of the account, or of the request: the others are asked."""
    attempts.give_back(None, now)
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
    attempts.give_back(outcome, now)
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
    attempts.give_back(outcome, now)
    attempts.tries.bare += 1
    refusals, choice = attempts.tries.bare, attempts.choice
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
    return choose(attempts, now)


def _repeat(attempts: Attempts, lease: Lease, outcome: Outcome, now: float) -> Step:
    """It is tried once more in place, then once elsewhere: more would make an overload worse."""
    attempts.pool.failures(attempts.facts.provider).overloaded(lease, now)
    attempts.tries.overloads += 1
    if attempts.replayable and attempts.may_send:
        pause_s = overload_pause_s(outcome, attempts.limits, attempts.chance())
        if (
            attempts.tries.overloads == 1
            and pause_s is not None
            and now + pause_s <= attempts.choice.hold_until(now)
        ):
            return Wait(now + pause_s)
        other = _another_once(attempts, lease, now)
        if other is not None:
            return go(attempts, other, now)
    return _deliver(attempts, lease, outcome, now)


def _deliver(attempts: Attempts, _lease: Lease, _outcome: Outcome, now: float) -> Step:
    """It is the request's own fault, or nobody's: the client gets it as it is."""
    return give_up(attempts, Deliver(), now)


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
