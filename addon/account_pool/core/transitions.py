"""Changes of an account: its cooldowns, verdicts and disabling, recorded as they are made.

This is the one place where they change. `Accounts.changing` begins a transition, and puts
the account where it belongs afterwards. That a cooldown has run out is no change: nothing
happens then, and its record says until when it lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cause, Cooldown
from account_pool.core.decisions import By, Decision, Decisions, Kind
from account_pool.core.outcome import Outcome
from account_pool.core.state import AccountState
from account_pool.core.verdicts import AccountVerdict, covered, opened

_REFUSALS = frozenset({By.ANSWER, By.SOCKET, By.OWNER, By.WITNESS})


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
        self, ended: Callable[[Cooldown], bool] = _any, by: By | None = None
    ) -> list[Cooldown]:
        """Drop the cooldowns that *ended* says; return those that had not run out."""
        known = self.state.cooldowns
        over = [cooldown for cooldown in known.values() if ended(cooldown)]
        if over:
            gone = {cooldown.model for cooldown in over}
            self.state.cooldowns = {model: c for model, c in known.items() if model not in gone}
        active = [cooldown for cooldown in over if cooldown.active(self.now)]
        for cooldown in active:
            self._released(cooldown, by or self.by)
        return active

    # -- verdicts

    def suspect(self, outcome: Outcome, model: str | None) -> AccountVerdict:
        """Open the verdict that *outcome* to a request for *model* asks for."""
        before = self.state.verdicts
        verdicts = self.state.verdicts = opened(before, outcome, model, self.now)
        for covers in before.keys() - verdicts.keys():
            self._ended(Kind.SUSPECT, covers)
        verdict = verdicts[covered(outcome, model)]
        if verdict != before.get(verdict.covered):
            self._lasts(Kind.SUSPECT, verdict)
        return verdict

    def end_verdicts(self, ended: Callable[[AccountVerdict], bool] = _any) -> None:
        """Drop the verdicts that *ended* says."""
        known = self.state.verdicts
        self.state.verdicts = {covers: v for covers, v in known.items() if not ended(v)}
        for covers in known.keys() - self.state.verdicts.keys():
            self._ended(Kind.SUSPECT, covers)

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
        self.state.cooldowns = dict(cooldowns)
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
            released = decision_of(self.state.key, Kind.RELEASE, cooldown, by, self.now)
            self.decisions.add(replace(released, ends=ends))

    def _ended(self, kind: Kind, covers: str | None, by: By | None = None) -> int | None:
        """End what is recorded of *covers*; return its number, None if it is not kept."""
        standing = self.decisions.lasting(kind, self.state.key, covers, self.now)
        if standing is None:
            return None
        self.decisions.end(standing.number, by or self.by, self.now)
        return standing.number


def decision_of(
    key: AccountKey, kind: Kind, what: Cooldown | AccountVerdict, by: By, now: float
) -> Decision:
    """Return the record of a cooldown or verdict on the account *key*."""
    return _about(key, kind, what.cause, by, now, covers=what.covered, until=what.until)


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
