"""What responses teach about accounts: passive health checks.

Limits cool an account down, for how long is decided at the end of this file. A refusal that may
be the account's own fault opens a verdict (`cooldown.py`); what another account then serves, or
all refuse, decides it. Good responses disprove both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf
from operator import attrgetter

from msgspec import Struct, field
from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.accounts import Accounts, is_401
from account_pool.core.cooldown import (
    SOCKETS,
    AccountVerdict,
    Cooldown,
    covers,
)
from account_pool.core.credential import Credential, fingerprint
from account_pool.core.decisions import By
from account_pool.core.errors import UnknownAccount
from account_pool.core.lease import Lease, RequestFacts
from account_pool.core.members import RecentFailures, Transition
from account_pool.core.outcome import LIMITS, Cause, Outcome, Scope
from account_pool.core.reset_hints import believable
from account_pool.core.state import AccountState

#: Cooldowns kept per account. Clients choose the names of models, so there must be a
#: bound; no provider has so many models.
MAX_COOLDOWNS = 128
#: How long a credential that has served, or was renewed, is not renewed again, seconds.
FRESH_S = 60.0

#: Longest cooldown made of `pool_cooldown` doubled per streak.
MAX_DEFAULT_S = 1800.0
#: First pause after a 429 that says nothing about whose limit it is; doubles up to
#: `pool_cooldown`. A named reset of 0 s is taken for it: one request would otherwise spend
#: all its attempts on one account at once.
BARE_BACKOFF_S = 1.0
#: First and longest bench of an account for a refusal that is its own fault; doubles.
BENCH_S = 300.0
MAX_BENCH_S = 86400.0
#: Jitter: at most this share of the wait, and at most so many seconds.
JITTER_SHARE = 0.02
MAX_JITTER_S = 5.0

_UNTIL = attrgetter("until")


class Suspect(Struct, eq=False):
    """A refusal of one request that may be the fault of the account of *lease*.

    Attributes:
        model: what was asked for.
        verdict: the one it opened; None if the account is gone, or has got another
            credential since.
        before: the one that was open before.
    """

    lease: Lease
    outcome: Outcome
    model: str | None
    verdict: AccountVerdict | None = None
    before: AccountVerdict | None = None


class PassiveHealth(Struct, kw_only=True, eq=False):
    """Learns from responses what *accounts* can serve.

    Attributes:
        default_cooldown_s: cooldown when no reset is named (`pool_cooldown`).
        chance: returns a number from 0 to 1; adds a little jitter to deadlines.
    """

    accounts: Accounts
    default_cooldown_s: float
    chance: Callable[[], float]

    def learn(self, lease: Lease, outcome: Outcome, *, now: float) -> bool:
        """Learn from the refusal *outcome* of *lease*; say if its account has changed for it."""
        if lease.epoch != lease.state.epoch:
            return False
        if outcome.blames_account:
            return self.suspect(lease, outcome, now=now).verdict is not None
        if outcome.cls in LIMITS:
            self.cool_down(lease, outcome, lease.facts.model, now)
            return True
        return False

    # -- limits

    def cool_down(self, lease: Lease, outcome: Outcome, model: str | None, now: float) -> None:
        """Let the account of *lease* cool, which *outcome* has refused for *model*."""
        # The account was asked although it cooled.
        probe = lease.probe or lease.last_resort
        self._mark_cooldown(
            lease.state, outcome, now=now, model=model, started_at=lease.started_at, probe=probe
        )

    def mark_cooldown(
        self,
        key: AccountKey,
        outcome: Outcome,
        *,
        now: float,
        model: str | None = None,
        started_at: float | None = None,
        probe: bool = False,
        by: By = By.ANSWER,
    ) -> Cooldown:
        """Let *key* cool as far and as long as *outcome* says. Raises UnknownAccount.

        Args:
            model: the model of the request, for outcomes whose scope is a model and
                that name none themselves. A MODEL scope without any model is believed
                for the whole account: there is nothing narrower to cool.
            started_at: when the refused attempt began; default now.
            probe: it was one we made although the account cooled.
            by: who or what says so.
        """
        state = self.accounts.get(key)
        began = now if started_at is None else started_at
        return self._mark_cooldown(
            state, outcome, now=now, model=model, started_at=began, probe=probe, by=by
        )

    def _mark_cooldown(
        self,
        state: AccountState,
        outcome: Outcome,
        *,
        now: float,
        model: str | None,
        started_at: float,
        probe: bool,
        by: By = By.ANSWER,
    ) -> Cooldown:
        accounts, key = self.accounts, state.key
        covered = (outcome.model or model) if outcome.scope is Scope.MODEL else None
        if outcome.owner:
            accounts.owners.learn(key, outcome.owner)
        if outcome.shared and key in accounts.owners:
            for one in map(accounts.get, accounts.owners.others(key)):
                with Transition(accounts, one, By.OWNER, now, alone=False) as change:
                    self._cool(change, outcome, covered, started_at, probe=probe)
        with Transition(accounts, state, by, now, alone=False) as change:
            cooldown = self._cool(change, outcome, covered, started_at, probe=probe)
        if not probe:
            # Nothing was sent there for long: nobody has to go elsewhere.
            permits = accounts.permits
            slower = permits.slower(key.provider) if permits.proxies > 1 else 1.0
            accounts.members[key.provider].switched.note(cooldown.model, now, slower)
        accounts.on_change(key.provider, now)
        return cooldown

    def _cool(
        self,
        change: Transition,
        outcome: Outcome,
        covered: str | None,
        started_at: float,
        *,
        probe: bool,
    ) -> Cooldown:
        state, now = change.state, change.now
        cooldown = next_cooldown(
            state.cooldowns.get(covered),
            outcome,
            model=covered,
            now=now,
            started_at=started_at,
            default_s=self.default_cooldown_s,
            chance=self.chance(),
            probe=probe,
        )
        if outcome.scope is Scope.NONE and cooldown.cause.bare:
            self.accounts.members[state.key.provider].failures.bare.add(state.key)
        if len(state.cooldowns) >= MAX_COOLDOWNS and covered not in state.cooldowns:
            _make_room(change)
        change.cool(cooldown)
        if self.accounts.permits.proxies > 1:
            state.ramps.hold(cooldown.model)
        return cooldown

    # -- whose fault a refusal is

    def suspect(
        self,
        lease: Lease,
        outcome: Outcome,
        *,
        now: float,
        model: str | None = None,
        by: By = By.ANSWER,
    ) -> Suspect:
        """Open a verdict on the account of *lease*: others are asked before it meanwhile.

        Args:
            model: that was asked for, if it is another than that of the request.
            by: who or what says so.
        """
        model = model or lease.facts.model
        suspect = Suspect(lease, outcome, model)
        state = lease.state
        if lease.epoch != lease.state.epoch or _is_outdated(state, outcome, lease.credential):
            return suspect
        _note_refused(state, outcome)
        about = outcome.about(model)
        if about is None and outcome.scope is Scope.MODEL:
            return suspect  # nobody knows which
        suspect.before = state.verdicts.get(about)
        with Transition(self.accounts, state, by, now) as change:
            suspect.verdict = change.suspect(outcome, model)
        return suspect

    def acquit(self, suspect: Suspect, *, now: float) -> None:
        """It was the request's fault: the account stands as it did before."""
        state, verdict, before = suspect.lease.state, suspect.verdict, suspect.before
        if verdict is None:
            return
        # Another request may have opened its own since, and would bring this one back.
        verdict.void = True
        if state.removed or state.verdicts.get(verdict.covered) is not verdict:
            return
        with Transition(self.accounts, state, By.ALL, now) as change:
            if before is not None and not before.void:
                change.reopen(before)
            else:
                change.end_verdicts(lambda open_one: open_one is verdict)

    def convict(self, suspect: Suspect, *, now: float) -> None:
        """Another account has served what the account refused."""
        lease = suspect.lease
        if suspect.verdict is not None and lease.epoch == lease.state.epoch:
            self.mark_failure(
                lease.key,
                suspect.outcome,
                now=now,
                model=suspect.model,
                credential=lease.credential,
                probe=lease.probe,
                by=By.WITNESS,
            )

    def bench_named(self, suspect: Suspect, *, now: float) -> None:
        """Bench the account without a witness, if a code said that its credential is refused."""
        outcome, lease = suspect.outcome, suspect.lease
        if (
            outcome.names_credential
            and suspect.verdict is not None
            and lease.epoch == lease.state.epoch
            and not _is_outdated(lease.state, outcome, lease.credential)
        ):
            self.cool_down(lease, outcome, suspect.model, now)

    def mark_failure(
        self,
        key: AccountKey,
        outcome: Outcome,
        *,
        now: float,
        model: str | None = None,
        credential: Credential | None = None,
        probe: bool = False,
        by: By = By.ANSWER,
    ) -> None:
        """Bench or disable *key* for a refusal that is its own fault: a witness has shown it.

        What is known of one model cools that model; what was not understood benches
        (account, *model*), and the account once a second model was refused so; anything
        else disables. Outcomes that do not blame the account change nothing. Raises
        UnknownAccount.

        Args:
            credential: the one that was refused. If the account has got another since,
                a 401 says nothing about it.
            probe: as in `mark_cooldown`.
            by: who or what says so.
        """
        state = self.accounts.get(key)
        if not outcome.blames_account or _is_outdated(state, outcome, credential):
            return
        _note_refused(state, outcome)
        about = outcome.about(model)
        narrow = outcome.unknown or outcome.scope is Scope.MODEL
        with Transition(self.accounts, state, by, now) as change:
            change.end_verdicts(lambda verdict: verdict.covered == about)
            if not narrow:
                change.disable(Cause.of(outcome, hinted=False), now)
        # Without its name nothing is known to be missing, least of all the account.
        if narrow and about is not None:
            scope = Scope.ACCOUNT if _fails_whole(state, about, outcome) else Scope.MODEL
            benched = replace(outcome, scope=scope)
            self.mark_cooldown(key, benched, now=now, model=about, probe=probe, by=by)

    # -- good responses, and what else they tell

    def disprove(self, lease: Lease, now: float) -> None:
        """End the cooldowns and verdicts that the good response to *lease* disproves.

        Only what began before this attempt: a success that was already under way when the
        limit hit says nothing about the limit.
        """
        started_at, model = lease.started_at, lease.facts.model
        by = By.PROBE if lease.probe else By.SUCCESS
        with Transition(self.accounts, lease.state, by, now) as change:
            covering = lease.state.cooldowns.covering(model)
            before = len(lease.state.cooldowns)
            change.end_cooldowns(lambda c: not c.overtook(started_at), among=covering)
            change.end_verdicts(lambda v: covers(v.covered, model) and started_at >= v.since)
            if self.accounts.permits.proxies > 1 and len(lease.state.cooldowns) < before:
                self.accounts.on_urgent()  # others wait for that

    def learn_owner(self, key: AccountKey, owner: str) -> None:
        """Note whose limits *key* runs into; its owner's other accounts share them."""
        with suppress(UnknownAccount):
            self.accounts.owners.learn(self.accounts.get(key).key, owner)
            self.accounts.dirty.add(key)

    # -- its credential

    def may_renew(self, lease: Lease, *, now: float) -> bool:
        """Say whether the credential of *lease*, which was refused, is worth renewing.

        Not one that served, or was renewed, a moment ago.
        """
        state = lease.state
        return state.removed or now >= max(state.served_at, state.refreshed_at) + FRESH_S

    # -- no response

    def note_broken(self, lease: Lease, *, now: float, of_account: bool = True) -> None:
        """The connection of *lease* broke before a response, and its client was told.

        Unless the way is barred to every account, its conversation begins elsewhere next.
        """
        lease.state.broken += 1
        if of_account:
            self.accounts.members[lease.key.provider].failures.unanswered(lease, now)

    def departed(self, lease: Lease, *, now: float) -> None:
        """The client of *lease* left before its response began.

        After a long silence its conversation begins elsewhere next; a person who stops
        waiting moves nothing.
        """
        lease.state.departures += 1
        failures = self.accounts.members[lease.key.provider].failures
        if failures.is_silent(lease, now):
            failures.unanswered(lease, now)


class Suspects(Struct, eq=False):
    """The refusals of one request that may be the fault of their accounts, or of the request.

    An address or a client that is locked out gets the same response for every account: one
    request must not take the whole pool out of use. An account that serves it is the witness;
    what all refused is for a while delivered after one attempt.
    """

    health: PassiveHealth
    facts: RequestFacts
    found: list[Suspect] = field(default_factory=list)

    @property
    def miss_model(self) -> bool:
        """Whether an account said that it does not have the model."""
        return any(suspect.outcome.missing_model for suspect in self.found)

    def add(self, lease: Lease, outcome: Outcome, now: float) -> None:
        """The account of *lease* has refused the request with *outcome*."""
        # What is stored on one account is refused by all others.
        if outcome.names_credential or not self.facts.conversation.named:
            self.found.append(self.health.suspect(lease, outcome, now=now))

    def tried_since(self, now: float) -> deque[AccountKey] | None:
        """Return whom the request was tried on since all refused it; None: they did not."""
        return self._failures.tried_since(self.facts, now, missing_model=self.miss_model)

    def witnessed(self, now: float) -> None:
        """Another account serves the request: those who refused it were at fault."""
        if self.facts.conversation.named:
            self.drop(now)
        for suspect in self.found:
            self.health.convict(suspect, now=now)
        self.found = []

    def refused_by_all(self, now: float) -> None:
        """Nobody is left who could serve it: it is the request's own fault."""
        if self.found:
            self._failures.refused_by_all(self.facts, now, missing_model=self.miss_model)
        self.drop(now, acquit=True)

    def drop(self, now: float, *, acquit: bool = False) -> None:
        """No other account serves it now: nobody is benched but whose key was named.

        Args:
            acquit: it is the request's own fault.
        """
        suspects, self.found = self.found, []
        for suspect in suspects:
            if acquit:
                self.health.acquit(suspect, now=now)
            self.health.bench_named(suspect, now=now)

    @property
    def _failures(self) -> RecentFailures:
        return self.health.accounts.members[self.facts.provider].failures


def _is_outdated(state: AccountState, outcome: Outcome, credential: Credential | None) -> bool:
    """Say whether *outcome* is about a credential that *state* does not have any more."""
    held = state.credentials.values()
    return is_401(outcome) and credential is not None and credential not in held


def _note_refused(state: AccountState, outcome: Outcome) -> None:
    """Remember which credentials a 401 was about: others end what it leads to."""
    if is_401(outcome):
        state.refused = fingerprint(state.credentials)


def _fails_whole(state: AccountState, about: str, outcome: Outcome) -> bool:
    """Say whether *outcome*, which was not understood, is the second of its kind in a row.

    It was refused for another model than *about*, and has not served since. That new
    WebSockets go elsewhere because of the same refusal makes it no second one.
    """
    return outcome.unknown and any(
        c.cause.benches
        and c.cause.unknown
        and c.model not in (about, SOCKETS)
        and c.since > state.served_at
        for c in state.cooldowns.values()
    )


def _make_room(change: Transition) -> None:
    """Drop the model that returns first, or has returned."""
    cooldowns = change.state.cooldowns
    first = min(cooldowns.values(), key=_UNTIL)
    if first.model is None:  # the account as a whole, which is no client's choice
        first = min([c for c in cooldowns.values() if c.model is not None], key=_UNTIL)
    change.make_room(first)


# -- how long an account is left alone


def default_wait(default_s: float, streak: int) -> float:
    """Return the wait when no reset was named: *default_s* doubled per streak, capped.

    A *default_s* above the cap is taken as the owner wrote it.
    """
    return max(default_s, min(default_s * 2.0 ** min(streak - 1, 32), MAX_DEFAULT_S))


def bare_wait(default_s: float, streak: int) -> float:
    """Return the pause after a 429 without evidence: 1 s doubled per streak, capped."""
    return min(BARE_BACKOFF_S * 2.0 ** min(streak - 1, 32), max(default_s, BARE_BACKOFF_S))


def bench_wait(streak: int) -> float:
    """Return how long a refused account is left alone: 5 min doubled per streak, capped."""
    return min(BENCH_S * 2.0 ** min(streak - 1, 32), MAX_BENCH_S)


def next_cooldown(
    previous: Cooldown | None,
    outcome: Outcome,
    *,
    model: str | None,
    now: float,
    started_at: float,
    default_s: float,
    chance: float,
    probe: bool = False,
) -> Cooldown:
    """Return the cooldown that follows from *outcome*.

    Args:
        previous: the last one of the same account and model, active or over, unless a
            success has come since.
        model: what it covers; None for the whole account.
        started_at: when the refused attempt was started. Attempts that were already
            running when the previous cooldown began say nothing new: they count once.
            Refusals without evidence have a streak of their own, and so have benches.
        default_s: `pool_cooldown`.
        chance: a random number from 0 to 1, for the jitter.
        probe: the refused attempt was our own question whether *previous* really lasts:
            only a reset that is named changes anything.

    A later, shorter hint never shortens a deadline.
    """
    hint = believable(outcome.cooldown_s)
    new = Cause.of(outcome, hinted=hint is not None)
    if (
        previous is not None
        and previous.cause.benches
        and not new.yields
        and not previous.overtook(started_at)
    ):
        previous = None  # who is told of a limit is let in
    if probe and hint is None and previous is not None and previous.active(now):
        return previous
    concurrent = previous is not None and (probe or previous.overtook(started_at))
    streak = 1
    if previous is not None and _kind(previous.cause) == _kind(new):
        streak = previous.streak + (0 if concurrent else 1)
    wait = _wait(new, hint, streak, default_s)
    until = now + wait + min(wait * JITTER_SHARE, MAX_JITTER_S) * chance
    if previous is None or not previous.active(now):
        return Cooldown(model=model, since=now, until=until, streak=streak, cause=new)
    since = previous.since if concurrent else now
    if previous.until >= until:
        # Still cooling, and longer than that: the deadline that stands keeps its cause.
        return replace(previous, since=since, streak=max(streak, previous.streak))
    probed_at = previous.probed_at if probe else -inf
    return Cooldown(
        model=model, since=since, until=until, streak=streak, cause=new, probed_at=probed_at
    )


def _kind(cause: Cause) -> tuple[bool, bool]:
    return cause.benches, cause.bare


def _wait(cause: Cause, hint: float | None, streak: int, default_s: float) -> float:
    """Return how long an account is left alone for *cause*, seconds."""
    if hint:
        return hint if streak == 1 else max(hint, BARE_BACKOFF_S)
    if cause.benches:
        return bench_wait(streak)
    if hint == 0 or cause.bare:
        return bare_wait(default_s, streak)
    return default_wait(default_s, streak)
