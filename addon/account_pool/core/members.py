"""The accounts of one provider: each where it belongs now, and what requests lately met there.

Ready accounts stand in the selection policy, those whose place will change with time
have an alarm, the rest stand nowhere. An account that takes over from one that became
limited is given requests one by one (`state.Ramp`).

What requests lately met is no cooldown: the account is as it was, and serves whoever has
nowhere else to go. An overload is remembered by account and model for a minute, unless a
second account is overloaded as well: then it is the server's, and nobody gains by moving.
Silence and broken connections are remembered for the conversation that met them. What all
accounts refused is the request's own fault, and for a minute costs one attempt; a 429 without
evidence from all who were asked is taken for a limit of the address. Mostly there is nothing,
which is quick to see.

A `Transition` is the one place where cooldowns, verdicts and disabling of an account change. It
records that as it is made, and puts the account where it belongs at its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from math import inf
from typing import Any, Protocol, Self

from msgspec import Struct, field
from msgspec.structs import replace
from sortedcontainers import SortedDict

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import AccountVerdict, Cooldown, Endings, opened
from account_pool.core.decisions import By, Decisions, Kind, decision_of
from account_pool.core.headroom import Window, reserved
from account_pool.core.lease import Lease, RequestFacts, Shortage
from account_pool.core.outcome import Cause, Outcome
from account_pool.core.selection import SelectionPolicy
from account_pool.core.state import AccountState, Cooldowns, Switches

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


class _Model(Struct, frozen=True):
    """A model that no account has, in whatever request."""

    name: str | None


class _Refused(Struct):
    """Something that all accounts refused, and whom it was tried on since."""

    until: float
    asked: deque[AccountKey] = field(default_factory=lambda: deque(maxlen=MAX_ASKED))


class RecentFailures(Struct, eq=False):
    """What requests to one provider have lately met.

    Attributes:
        by_model: accounts that were overloaded, and until when that is remembered.
        by_request: the account that did not answer, by what it was: a conversation, or
            requests of one kind; and until when.
        refused: what all accounts refused.
        bare: accounts that said 429 without evidence, and have not served since.
        address_limited_until, address_limited_at: until when such 429s are taken for a limit
            of the address, and since when; minus infinity if they are not.
        first_bytes: how long good responses took to begin, seconds, by model.
    """

    by_model: dict[str | None, dict[AccountKey, float]] = field(default_factory=dict)
    by_request: dict[Hashable, tuple[AccountKey, float]] = field(default_factory=dict)
    refused: dict[Hashable, _Refused] = field(default_factory=dict)
    bare: set[AccountKey] = field(default_factory=set)
    address_limited_until: float = -inf
    address_limited_at: float = -inf
    first_bytes: dict[str | None, deque[float]] = field(default_factory=dict)

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
        samples = sorted(self.first_bytes.get(model, ()))
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

    def served(self, lease: Lease) -> None:
        """The response to *lease* is good and has begun: its request is refused no more."""
        what = _what(lease.facts)
        self.refused.pop(what, None)
        self.by_request.pop(what, None)
        if lease.started_at > self.address_limited_at:
            self.address_limited_until = -inf

    def new_samples(self, model: str | None) -> deque[float]:
        """Return where the first bytes of *model* are noted, of which there are none yet."""
        _make_room(self.first_bytes, MAX_MODELS)
        samples = self.first_bytes[model] = deque(maxlen=MAX_SAMPLES)
        return samples


def _what(facts: RequestFacts) -> Hashable:
    """Return what tells a request that all refused from others."""
    session = facts.conversation.session
    return session or facts.path, facts.model, session is None


def _make_room(known: dict[Any, Any], kept: int = MAX_REMEMBERED) -> None:
    """Forget the oldest of *known* where it is one too many."""
    if len(known) >= kept:
        del known[next(iter(known))]


#: Accounts that are looked at for one request that may probe: some are limited for other models.
MAX_DUE = 8


class Members:
    """The accounts of one provider: by label, and in the order of the policy."""

    def __init__(
        self, policy: SelectionPolicy, on_reset: Callable[[AccountKey, Window], None]
    ) -> None:
        self.by_label: dict[str, AccountState] = {}
        self.policy = policy
        #: called with a long window that was reset, as it was told last
        self.on_reset = on_reset
        #: those that are to be probed while others serve, by when
        self.probes: SortedDict[tuple[float, int], AccountState] = SortedDict()
        self.alarms: SortedDict[tuple[float, int], AccountState] = SortedDict()
        self.switched = Switches()
        #: why nobody could serve, by model, kind and who is not asked; until anything changes
        self.shortages: dict[tuple[str | None, str, frozenset[AccountKey]], Shortage] = {}
        #: a request is out on an account that cools, to see whether it really does
        self.probing = False
        self.failures = RecentFailures()

    def place(self, state: AccountState, now: float) -> None:
        """Put *state* where it belongs now, and set the alarm for when that changes."""
        if self.shortages:
            self.shortages.clear()
        if state.headroom.changes_at <= now:
            self.reset(state, now)
        if state.verdicts:
            state.verdicts = {c: v for c, v in state.verdicts.items() if v.active(now)}
        account, until = state.account, inf
        # As `enabled` and `full` have it; every request comes here twice.
        enabled = account.enabled and state.disabled is None
        if (
            enabled
            and state.credentials
            and not (account.max_concurrent is not None and state.full)
        ):
            until = state.next_start_at
            if state.cooldowns or state.reserved:
                until = max(until, state.cooling_until(None, now))
        if state.cooldowns or state.probe_at < inf:
            probe_at = state.cooldowns.next_probe_at(now) if enabled else inf
            if probe_at != state.probe_at:
                self._set_probe(state, probe_at)
        if until <= now:
            self.policy.add(state)
            at = self.policy.changes_at(state)
            if state.verdicts:
                at = min(at, *(v.until for v in state.verdicts.values()))
            if at != state.wake_at:
                self._set_alarm(state, at)
        else:
            self.policy.discard(state)
            self._set_alarm(state, until)

    def reset(self, state: AccountState, now: float) -> None:
        """Forget what is no longer true of the windows of *state*, and say which were reset."""
        self.note_resets(state, state.headroom.resets(now))
        state.headroom = state.headroom.at(now)
        kept = state.account.reserve
        state.reserved = reserved(kept, state.headroom, now) if kept else ()

    def note_resets(self, state: AccountState, windows: Iterable[Window]) -> None:
        """Say that these long windows of *state* were reset."""
        for window in windows:
            state.forgotten_at = max(state.forgotten_at, window.reset_at)
            self.on_reset(state.key, window)

    def unplace(self, state: AccountState) -> None:
        self.shortages.clear()
        self.policy.discard(state)
        self._set_alarm(state, inf)
        self._set_probe(state, inf)

    def due(self, model: str | None, now: float) -> Iterator[AccountState]:
        """Yield some accounts that a request for *model* may probe now, the latest first."""
        for (at, _), state in self.probes.items()[:MAX_DUE]:
            if at > now:
                return
            if state.is_due(model, now):
                yield state

    def _set_probe(self, state: AccountState, at: float) -> None:
        if state.probe_at < inf:
            del self.probes[(state.probe_at, state.position)]
        if at < inf:
            self.probes[(at, state.position)] = state
        state.probe_at = at

    def _set_alarm(self, state: AccountState, at: float) -> None:
        """Have *state* placed again at *at*; infinity for never."""
        if at == state.wake_at:
            return
        if state.wake_at < inf:
            del self.alarms[(state.wake_at, state.position)]
        if at < inf:
            self.alarms[(at, state.position)] = state
        state.wake_at = at

    def wake(self, now: float) -> None:
        """Place whoever's time has come."""
        while self.alarms:
            (wake_at, _), state = self.alarms.peekitem(0)
            if wake_at > now:
                return
            self.place(state, now)


# -- what changes an account

_REFUSALS = frozenset({By.ANSWER, By.SOCKET, By.OWNER, By.WITNESS})
#: What others know already, or the next response shows again.
_NOT_URGENT = frozenset({By.SUCCESS, By.PROBE, By.RESTART, By.PROXY, By.CLOCK})


def _any(_value: object) -> bool:
    return True


class HasAccounts(Protocol):
    """`Accounts`, as far as a change of one concerns them."""

    decisions: Decisions
    dirty: set[AccountKey]
    on_dirty: Callable[[], None]
    on_urgent: Callable[[], None]
    on_change: Callable[[str, float], None]

    @property
    def members(self) -> Mapping[str, Members]: ...


class Transition(Struct, eq=False):
    """A change of *state* at *now*, because of *by*: `with Transition(...) as change`.

    At its end the account is put where it belongs, to be saved, and waiting requests go on. Also
    where an error ends it midway: what has changed by then stands.

    Attributes:
        alone: no other account changes with it: waiting requests may go on at once.
    """

    accounts: HasAccounts
    state: AccountState
    by: By
    now: float
    alone: bool = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        accounts, key = self.accounts, self.state.key
        if self.by not in _NOT_URGENT:
            accounts.on_urgent()
        accounts.members[key.provider].place(self.state, self.now)
        accounts.dirty.add(key)
        accounts.on_dirty()
        if self.alone:
            accounts.on_change(key.provider, self.now)

    # -- cooldowns

    def cool(self, cooldown: Cooldown) -> None:
        """Let the account cool as *cooldown* says, in place of the one that covers the same."""
        state, covered = self.state, cooldown.model
        if covered in state.ramps:
            del state.ramps[covered]
        before = state.cooldowns.get(covered)
        state.cooldowns[covered] = cooldown
        if self.now < cooldown.until:
            self._lasts(Kind.COOLDOWN, cooldown)
        elif before is not None:
            self._released(before, self.by)

    def end_cooldowns(
        self,
        ended: Callable[[Cooldown], bool] = _any,
        *,
        among: Iterable[str | None] | None = None,
    ) -> list[Cooldown]:
        """Drop the cooldowns that *ended* says; return those that had not run out.

        Args:
            among: those of these models only.
        """
        known = self.state.cooldowns
        looked_at = known.values() if among is None else [known[model] for model in among]
        over = [cooldown for cooldown in looked_at if ended(cooldown)]
        for cooldown in over:
            self._drop(cooldown.model)
        active = [cooldown for cooldown in over if cooldown.active(self.now)]
        for cooldown in active:
            self._released(cooldown, self.by)
        return active

    def make_room(self, cooldown: Cooldown) -> None:
        """Drop *cooldown* for another: its record ends, and that is all that is said of it.

        With more models than are remembered this happens at each refusal.
        """
        self._drop(cooldown.model)
        self._ended(Kind.COOLDOWN, cooldown.model, By.ROOM)

    def _drop(self, model: str | None) -> None:
        del self.state.cooldowns[model]
        ramp = self.state.ramps.get(model)
        if ramp is not None and ramp.is_held:
            del self.state.ramps[model]

    # -- verdicts

    def suspect(self, outcome: Outcome, model: str | None) -> AccountVerdict:
        """Open the verdict that *outcome* to a request for *model* asks for."""
        before = self.state.verdicts
        verdicts = self.state.verdicts = opened(before, outcome, model, self.now)
        for about in before.keys() - verdicts.keys():
            self._ended(Kind.SUSPECT, about)
        verdict = verdicts[outcome.about(model)]
        if verdict != before.get(verdict.covered):
            self._lasts(Kind.SUSPECT, verdict)
        return verdict

    def end_verdicts(self, ended: Callable[[AccountVerdict], bool] = _any) -> None:
        """Drop the verdicts that *ended* says."""
        known = self.state.verdicts
        self.state.verdicts = {about: v for about, v in known.items() if not ended(v)}
        for about in known.keys() - self.state.verdicts.keys():
            self._ended(Kind.SUSPECT, about)

    def reopen(self, verdict: AccountVerdict) -> None:
        """Open *verdict* again, which another one has taken the place of."""
        self.state.verdicts[verdict.covered] = verdict
        self._lasts(Kind.SUSPECT, verdict)

    # -- being disabled

    def disable(self, cause: Cause, since: float) -> None:
        """Take the account out of use until something is done about *cause*."""
        if cause != self.state.disabled:
            self._enabled()
            self.accounts.decisions.add(
                decision_of(self.state.key, Kind.DISABLE, cause, self.by, self.now)
            )
        self.state.disabled, self.state.disabled_at = cause, since

    def enable(self) -> None:
        """End a disabling, by another proxy before now as well."""
        self.state.endings = self.state.endings._replace(disabling=self.now)
        self._enabled()

    def adopt_disabling(self, cause: Cause | None, since: float, endings: Endings) -> None:
        """Be disabled, or not (None), as elsewhere, where *endings* are known."""
        if cause is None:
            self._enabled()
        else:
            self.disable(cause, since)
        self.state.endings = endings

    def _enabled(self) -> None:
        cause, self.state.disabled = self.state.disabled, None
        if cause is not None:
            ends = self._ended(Kind.DISABLE, None)
            enabled = decision_of(self.state.key, Kind.ENABLE, cause, self.by, self.now, ends=ends)
            self.accounts.decisions.add(enabled)

    # -- all of it

    def adopt(self, cooldowns: Mapping[str | None, Cooldown]) -> None:
        """Take over the *cooldowns* that the account has elsewhere, in place of its own."""
        before = self.state.cooldowns
        self.state.cooldowns = Cooldowns.of(cooldowns)
        for model in {**before, **cooldowns}:
            was, cooldown = before.get(model), cooldowns.get(model)
            if was == cooldown:
                continue
            if cooldown is not None and cooldown.active(self.now):
                self._lasts(Kind.COOLDOWN, cooldown)
            elif was is not None:
                self._released(was, self.by)

    # -- records

    def _lasts(self, kind: Kind, what: Cooldown | AccountVerdict) -> None:
        """Record a cooldown or verdict that begins, or goes on."""
        standing = self.accounts.decisions.lasting(kind, self.state.key, what.covered, self.now)
        if standing is not None and _alike(standing.cause, what.cause):
            # Fifty requests that were refused at once, and a probe refused in the same way, are
            # one cooldown: its record has the latest values.
            times = standing.times + (self.by in _REFUSALS)
            changed = replace(standing, until=what.until, cause=what.cause, times=times)
            self.accounts.decisions.update(changed)
            return
        if standing is not None:
            self.accounts.decisions.end(standing.number, By.LATER, self.now)
        self.accounts.decisions.add(decision_of(self.state.key, kind, what, self.by, self.now))

    def _released(self, cooldown: Cooldown, by: By) -> None:
        if cooldown.active(self.now):
            ends = self._ended(Kind.COOLDOWN, cooldown.model, by)
            self.accounts.decisions.add(
                decision_of(self.state.key, Kind.RELEASE, cooldown, by, self.now, ends=ends)
            )

    def _ended(self, kind: Kind, covers: str | None, by: By | None = None) -> int | None:
        """End what is recorded of *covers*; return its number, None if it is not kept."""
        standing = self.accounts.decisions.lasting(kind, self.state.key, covers, self.now)
        if standing is None:
            return None
        self.accounts.decisions.end(standing.number, by or self.by, self.now)
        return standing.number


def _alike(one: Cause | None, other: Cause) -> bool:
    return one is not None and (one.signal, one.cls, one.scope) == (
        other.signal,
        other.cls,
        other.scope,
    )
