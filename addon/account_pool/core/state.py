"""What is known of one account while the proxy runs, what follows from it, and what changes it.

`AccountState` has values and questions only. A `Transition` is the one place where cooldowns,
verdicts and disabling change, and records it as it is made; `Accounts.changing` begins it, and
puts the account where it belongs afterwards. That a cooldown has run out is no change: nothing
happens then, and its record says until when it lasts. What requests count is in `pool.py`.

What is known by model is kept so that a hundred models cost no more than one (`ByModel`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from operator import attrgetter
from typing import Self, TypeVar

from account_pool.core.account import Account, AccountKey
from account_pool.core.cooldown import (
    AccountVerdict,
    Cause,
    Cooldown,
    Ramp,
    covered,
    covers,
    opened,
)
from account_pool.core.credential import Credential
from account_pool.core.decisions import By, Decision, Decisions, Kind
from account_pool.core.headroom import UNKNOWN, HeadroomSnapshot
from account_pool.core.outcome import Outcome

Rank = tuple[float | str, ...]
Value = TypeVar("Value")
_UNTIL = attrgetter("until")
_REFUSALS = frozenset({By.ANSWER, By.SOCKET, By.OWNER, By.WITNESS})


class ByModel(dict[str | None, Value]):
    """Values by what they cover: a model, a glob of models, or None for all.

    Clients choose the names of models, so there may be a hundred: those that cover one are
    found without a look at the others. Changed by item only (`x[model] = `, `del x[model]`);
    made by `of`, or empty: every account has two, which cost nothing until they are used.
    """

    _globs: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str | None, Value]) -> Self:
        found: Self = cls()
        for name, value in values.items():
            found[name] = value
        return found

    def __setitem__(self, covered: str | None, value: Value) -> None:
        if covered is not None and "*" in covered and covered not in self:
            self._globs += (covered,)
        super().__setitem__(covered, value)

    def __delitem__(self, covered: str | None) -> None:
        super().__delitem__(covered)
        if covered in self._globs:
            self._globs = tuple(glob for glob in self._globs if glob != covered)

    def covering(self, model: str | None) -> list[str | None]:
        """Return what is here that *model* falls under."""
        found: list[str | None] = [None] if None in self else []
        if model is not None:
            # A name with a star is a glob that covers itself.
            if model in self and model not in self._globs:
                found.append(model)
            found += [glob for glob in self._globs if covers(glob, model)]
        return found

    def put_last(self, covered: str | None, value: Value) -> None:
        """Set it, as the newest."""
        if covered in self:
            del self[covered]
        self[covered] = value

    def drop_first(self, over: Callable[[Value], bool]) -> None:
        """Drop the oldest, up to the first that *over* does not say."""
        while self:
            first = next(iter(self))
            if not over(self[first]):
                return
            del self[first]


class Cooldowns(ByModel["Cooldown"]):
    """The cooldowns of one account, those that are over too."""

    _probe_at: float | None = None

    def __setitem__(self, covered: str | None, cooldown: Cooldown) -> None:
        self._forget_probe(self.get(covered))
        if self._probe_at is not None:
            self._probe_at = min(self._probe_at, cooldown.probe_at())
        super().__setitem__(covered, cooldown)

    def __delitem__(self, covered: str | None) -> None:
        self._forget_probe(self[covered])
        super().__delitem__(covered)

    def _forget_probe(self, gone: Cooldown | None) -> None:
        """Look for the first again if it may have been that of *gone*; most have none."""
        if gone is not None and gone.probe_at() < inf:
            self._probe_at = None

    def next_probe_at(self, now: float) -> float:
        """Return when the first is to be probed while others serve; infinity: none is."""
        # Until that moment the one it is of goes on, and none comes before it.
        if self._probe_at is None or self._probe_at <= now:
            self._probe_at = min(
                [c.probe_at() for c in self.values() if now < c.until], default=inf
            )
        return self._probe_at

    def cooling(self, model: str | None, now: float) -> list[Cooldown]:
        """Return those that a request for *model* falls under now."""
        found = [self[covered] for covered in self.covering(model)]
        return [cooldown for cooldown in found if now < cooldown.until]


@dataclass(slots=True, kw_only=True, eq=False)
class AccountState:
    """What the pool knows about an account while it runs.

    Attributes:
        account, key: what the owner wrote, and its name.
        position: order in which accounts were added; ties break by it.
        credentials: usable ones by kind; empty while none is known.
        problem: why there is no credential, for people; None if there is no problem.
        pending: a credential is still being fetched, so waiting may help.
        passing: it is tried for again: what it lacks one for is not for its owner to cure.
        doubtful: its credential may be over: it is asked after all others until it serves.
        in_flight: open leases.
        last_used: sequence number of the last lease, 0 if never used.
        passed_over: sequence number of a `next` that passed it over, 0 if none: it ranks
            behind its tier until it is given a request again.
        next_start_at: no request before this (min_interval), monotonic seconds.
        cooldowns: by model (None: whole account); kept after they end, for the streak.
        ramps: by what they cover, as cooldowns: how much it takes at once since it took over
            or came back; those that are over are dropped later.
        verdicts: refusals that may be its own fault, by what they are about (None: the
            whole account); those that are over are dropped later.
        served_at: when an answer was last good, monotonic seconds.
        refreshed_at: when its credential was last renewed because it was refused.
        probing: a request is out that probes it while others serve.
        probe_at: when it is to be probed next, monotonic seconds.
        departures: clients that left before the first byte of an answer.
        broken: requests whose connection broke before it.
        running: when each request under way began, by the id of its lease.
        disabled: why an operator must act; None while in use.
        disabled_at: since when, monotonic seconds.
        refused: fingerprint of the credentials that a 401 was about last; "" if none was.
        epoch: one more each time its owner writes another credential, and when it is removed.
        headroom: what is left of its allowances, as far as responses have reported it.
        forgotten_at: when a long window was forgotten last, because it was reset or by hand,
            monotonic seconds.
        asked_at: when it was given a request last, monotonic seconds.
        reserved: windows of which no more than its owner's reserve is left, as cooldowns.
        served: requests answered.
        source: fingerprint of how its credential was written down, and behind a slash whose
            it is, where that is known (`credential.identity`); "" if nobody said.
        in_flight_remote: requests in flight on other proxies, as far as is known.
        share: how many requests this proxy may have in flight, of `max_concurrent`, which it
            divides with others (`shares.py`); infinity where it does not.
        rank: the key it stands under in the selection policy; None while not ready.
        rows: its cooldowns as they were saved last, by model: the cooldown, by how much the
            clock of the store was ahead, and the row.
        wake_at: when to place it again, as time alone changes where it belongs.
        removed: it is no longer in the pool; a lease may still refer to it.
    """

    account: Account
    key: AccountKey
    position: int
    credentials: Mapping[str, Credential] = field(default_factory=dict)
    problem: str | None = None
    pending: bool = False
    passing: bool = False
    doubtful: bool = False
    in_flight: int = 0
    last_used: int = 0
    passed_over: int = 0
    next_start_at: float = -inf
    cooldowns: Cooldowns = field(default_factory=Cooldowns)
    ramps: ByModel[Ramp] = field(default_factory=ByModel)
    departures: int = 0
    broken: int = 0
    running: dict[int, float] = field(default_factory=dict)
    probing: bool = False
    probe_at: float = inf
    verdicts: dict[str | None, AccountVerdict] = field(default_factory=dict)
    served_at: float = -inf
    refreshed_at: float = -inf
    disabled: Cause | None = None
    disabled_at: float = -inf
    refused: str = ""
    epoch: int = 0
    headroom: HeadroomSnapshot = UNKNOWN
    forgotten_at: float = -inf
    asked_at: float = -inf
    reserved: tuple[Cooldown, ...] = ()
    served: int = 0
    source: str = ""
    in_flight_remote: int = 0
    share: float = inf
    rank: Rank | None = None
    rows: dict[str | None, tuple[Cooldown, float, Cooldown]] = field(default_factory=dict)
    wake_at: float = inf
    removed: bool = False

    @property
    def enabled(self) -> bool:
        return self.account.enabled and self.disabled is None

    @property
    def full(self) -> bool:
        limit = self.account.max_concurrent
        return limit is not None and self.in_flight >= min(limit, self.share)

    def holds(self) -> Iterable[Cooldown]:
        """Return its cooldowns, those that are over too, and what its reserve keeps back."""
        held = self.cooldowns.values()
        return (*held, *self.reserved) if self.reserved else held

    def is_ready(self, model: str | None, now: float) -> bool:
        """Say whether it may be given a request for *model* now, whose kind aside."""
        return (
            self.enabled
            and not self.full
            and self.next_start_at <= now
            and (not (self.cooldowns or self.reserved) or self.cooling_until(model, now) <= now)
        )

    def cooling_until(self, model: str | None, now: float) -> float:
        """Return until when (account, *model*) cools; a time not after *now* if it does not."""
        return max([c.until for c in self._cooling(model, now)], default=-inf)

    def cools_for(self, kind: str, model: str | None, now: float) -> float:
        """Return until when it cools for *model*; minus infinity if anything else may end that.

        It may be full beside, or lack a credential.
        """
        if self.full or kind not in self.credentials:
            return -inf
        return self.cooling_until(model, now)

    def is_used_up(self, model: str | None, now: float) -> bool:
        """Say whether nothing is left of a long window that a request for *model* falls under."""
        return bool(self.headroom.spent) and any(
            window.long and window.share <= 0.0 and covers(window.model, model)
            for window in self.headroom.at(now).windows.values()
        )

    def is_suspect(self, model: str | None) -> bool:
        """Say whether requests for *model* ask all others first.

        A verdict is open, or its credential is doubtful and has not served yet.
        """
        if self.doubtful or not self.verdicts:
            return self.doubtful
        return any(covers(covered, model) for covered in self.verdicts)

    def verdict_of(self, model: str | None) -> AccountVerdict | None:
        """Return the open verdict that makes it a suspect for *model*."""
        return next((v for c, v in self.verdicts.items() if covers(c, model)), None)

    def yields(self, model: str | None, now: float) -> bool:
        """Say whether it cools for *model* only as long as another account can serve."""
        causes = self._causes(model, now)
        if self._reserved(model, now):
            return False
        return bool(causes) and all(cause.yields for cause in causes)

    def is_benched(self, model: str | None, now: float) -> bool:
        """Say whether refusals that are its own fault are all it cools for."""
        causes = self._causes(model, now)
        return bool(causes) and all(cause.benches for cause in causes)

    def _causes(self, model: str | None, now: float) -> list[Cause]:
        return [c.cause for c in self._cooling(model, now)]

    def cooldown_of(self, model: str | None, now: float) -> Cooldown | None:
        """Return the active cooldown that covers (account, *model*) longest."""
        return max(self._cooling(model, now), key=_UNTIL, default=None)

    def is_due(self, model: str | None, now: float) -> bool:
        """Say whether a request for *model* may probe it now, while others serve."""
        cooling = self._cooling(model, now)
        return (
            bool(cooling)
            and self.enabled
            and not (self.probing or self.full or self.is_suspect(model))
            and self.next_start_at <= now
            and all(c.in_doubt for c in cooling)
            and not self._reserved(model, now)
            and max(cooling, key=_UNTIL).probe_at() <= now
        )

    def note_probe(self, model: str | None, now: float) -> None:
        """A request for *model* tries whether it really cools so long."""
        for cooldown in self.cooldowns.cooling(model, now):
            self.cooldowns[cooldown.model] = replace(cooldown, probed_at=now)

    def ramps_admit(self, model: str | None, now: float) -> bool:
        """Say whether one more request for *model* may wait for its answer here."""
        return all(self.ramps[covered].admits(now) for covered in self.ramps.covering(model))

    def ramps_admit_at(self, model: str | None) -> float:
        """Return when time alone lets one more request for *model* go."""
        return max((self.ramps[c].admits_at() for c in self.ramps.covering(model)), default=-inf)

    def may_be_probed(self, model: str | None, now: float, soon_s: float) -> bool:
        """Say whether a request for *model* may try if this really cools so long.

        *soon_s*: cooldowns that end within so many seconds need no trying.
        """
        if self._reserved(model, now):
            return False
        cooling = self.cooldowns.cooling(model, now)
        return (
            max([c.until for c in cooling], default=now) > now + soon_s
            and not self.full
            and self.next_start_at <= now
            and all(c.may_be_probed(now) for c in cooling)
        )

    def _cooling(self, model: str | None, now: float) -> list[Cooldown]:
        """Return what keeps it from serving *model* now."""
        cooling = self.cooldowns.cooling(model, now) if self.cooldowns else []
        return cooling + self._reserved(model, now) if self.reserved else cooling

    def _reserved(self, model: str | None, now: float) -> list[Cooldown]:
        """Return what its reserve keeps back of *model* now."""
        return [c for c in self.reserved if now < c.until and c.covers(model)]


# -- what changes it


def _any(_value: object) -> bool:
    return True


@dataclass(slots=True, eq=False)
class Transition:
    """A change of *state* at *now*, because of *by*."""

    state: AccountState
    decisions: Decisions
    by: By
    now: float

    # -- cooldowns

    def cool(self, cooldown: Cooldown) -> None:
        """Let the account cool as *cooldown* says, in place of the one that covers the same."""
        before = self.state.cooldowns.get(cooldown.model)
        self.state.cooldowns[cooldown.model] = cooldown
        if cooldown.active(self.now):
            self._lasts(Kind.COOLDOWN, cooldown)
        elif before is not None:
            self._released(before, self.by)

    def end_cooldowns(
        self,
        ended: Callable[[Cooldown], bool] = _any,
        by: By | None = None,
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
            del known[cooldown.model]
        active = [cooldown for cooldown in over if cooldown.active(self.now)]
        for cooldown in active:
            self._released(cooldown, by or self.by)
        return active

    # -- verdicts

    def suspect(self, outcome: Outcome, model: str | None) -> AccountVerdict:
        """Open the verdict that *outcome* to a request for *model* asks for."""
        before = self.state.verdicts
        verdicts = self.state.verdicts = opened(before, outcome, model, self.now)
        for about in before.keys() - verdicts.keys():
            self._ended(Kind.SUSPECT, about)
        verdict = verdicts[covered(outcome, model)]
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
            self.enable()
            self.decisions.add(_about(self.state.key, Kind.DISABLE, cause, self.by, self.now))
        self.state.disabled, self.state.disabled_at = cause, since

    def enable(self) -> None:
        """End a disabling."""
        cause, self.state.disabled = self.state.disabled, None
        if cause is not None:
            ends = self._ended(Kind.DISABLE, None)
            enabled = _about(self.state.key, Kind.ENABLE, cause, self.by, self.now, ends=ends)
            self.decisions.add(enabled)

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
        standing = self.decisions.lasting(kind, self.state.key, what.covered, self.now)
        if standing is not None and _alike(standing.cause, what.cause):
            # Fifty requests that were refused at once, and a probe refused in the same way, are
            # one cooldown: its record has the latest values.
            times = standing.times + (self.by in _REFUSALS)
            changed = replace(standing, until=what.until, cause=what.cause, times=times)
            self.decisions.update(changed)
            return
        if standing is not None:
            self.decisions.end(standing.number, By.LATER, self.now)
        self.decisions.add(decision_of(self.state.key, kind, what, self.by, self.now))

    def _released(self, cooldown: Cooldown, by: By) -> None:
        if cooldown.active(self.now):
            ends = self._ended(Kind.COOLDOWN, cooldown.model, by)
            self.decisions.add(
                decision_of(self.state.key, Kind.RELEASE, cooldown, by, self.now, ends=ends)
            )

    def _ended(self, kind: Kind, covers: str | None, by: By | None = None) -> int | None:
        """End what is recorded of *covers*; return its number, None if it is not kept."""
        standing = self.decisions.lasting(kind, self.state.key, covers, self.now)
        if standing is None:
            return None
        self.decisions.end(standing.number, by or self.by, self.now)
        return standing.number


def decision_of(
    key: AccountKey,
    kind: Kind,
    what: Cooldown | AccountVerdict,
    by: By,
    now: float,
    *,
    ends: int | None = None,
) -> Decision:
    """Return the record of a cooldown or verdict on the account *key*; *ends*: of which one."""
    return _about(key, kind, what.cause, by, now, covers=what.covered, until=what.until, ends=ends)


def _about(
    key: AccountKey,
    kind: Kind,
    cause: Cause,
    by: By,
    now: float,
    *,
    covers: str | None = None,
    until: float | None = None,
    ends: int | None = None,
) -> Decision:
    return Decision(
        kind=kind,
        at=now,
        by=by,
        provider=key.provider,
        account=key,
        cause=cause,
        model=covers,
        covers=covers,
        until=until,
        ends=ends,
    )


def _alike(one: Cause | None, other: Cause) -> bool:
    return one is not None and (one.signal, one.cls, one.scope) == (
        other.signal,
        other.cls,
        other.scope,
    )
