"""Records what became of an account: each change of its cooldowns is one decision.

Compares the state of an account before and after, whatever made the difference. The end of
a cooldown that has run out is not a decision: nothing happens then, and its record says
until when it lasts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cause, Cooldown
from account_pool.core.decisions import By, Decision, Decisions, Kind
from account_pool.core.state import AccountState
from account_pool.core.verdicts import AccountVerdict


class AccountStanding(NamedTuple):
    """Cooldowns and verdicts of an account, including ended ones, and why it is disabled."""

    cooldowns: Mapping[str | None, Cooldown]
    disabled: Cause | None
    verdicts: Mapping[str | None, AccountVerdict]

    @classmethod
    def of(cls, state: AccountState) -> AccountStanding:
        return cls(dict(state.cooldowns), state.disabled, dict(state.verdicts))


def record(
    decisions: Decisions, state: AccountState, was: AccountStanding, by: By, now: float
) -> None:
    """Record how *state* differs from *was*, because of *by*."""
    for covers in {**was.cooldowns, **state.cooldowns}:
        before, after = was.cooldowns.get(covers), state.cooldowns.get(covers)
        if before == after:
            continue
        if after is not None and after.active(now):
            _cools(decisions, state.key, after, by, now)
        elif before is not None and before.active(now):
            _released(decisions, state.key, before, by, now)
    for covers in {**was.verdicts, **state.verdicts}:
        verdict = state.verdicts.get(covers)
        if verdict is not None and verdict != was.verdicts.get(covers):
            _suspected(decisions, state.key, verdict, by, now)
        elif verdict is None:
            _ended(decisions.lasting(Kind.SUSPECT, state.key, covers, now), decisions, by, now)
    if was.disabled == state.disabled:
        return
    if was.disabled is not None:
        _enabled(decisions, state.key, was.disabled, by, now)
    if state.disabled is not None:
        decisions.add(_about(state.key, Kind.DISABLE, state.disabled, by, now))


def refused(
    decisions: Decisions,
    state: AccountState,
    was: AccountStanding,
    covers: str | None,
    *,
    by: By,
    now: float,
) -> None:
    """Record a limit of *covers* on *state*, even if it only confirms a running cooldown."""
    cooldown = state.cooldowns[covers]
    if cooldown == was.cooldowns.get(covers) and cooldown.active(now):
        _cools(decisions, state.key, cooldown, by, now)
    else:
        record(decisions, state, was, by, now)


def reserved(
    decisions: Decisions, state: AccountState, was: Iterable[Cooldown], now: float
) -> None:
    """Record that only its owner's reserve is left of a window of *state*."""
    kept = {(cooldown.model, cooldown.until) for cooldown in was}
    for cooldown in state.reserved:
        if (cooldown.model, cooldown.until) not in kept:
            decision = _of_cooldown(state.key, Kind.COOLDOWN, cooldown, By.RESERVE, now)
            decisions.add(decision)


def removed(decisions: Decisions, key: AccountKey, now: float) -> None:
    """Record that the account *key* is gone: its lasting decisions end."""
    for decision in decisions.all_lasting(key, now):
        decisions.end(decision.number, By.REMOVAL, now)


def _cools(decisions: Decisions, key: AccountKey, cooldown: Cooldown, by: By, now: float) -> None:
    standing = decisions.lasting(Kind.COOLDOWN, key, cooldown.model, now)
    if standing is not None and _alike(standing.cause, cooldown.cause):
        # Fifty requests that were refused at once, and a probe refused in the same way, are
        # one cooldown: its record has the latest values.
        decisions.update(
            replace(
                standing,
                until=cooldown.until,
                cause=cooldown.cause,
                times=standing.times + (by in _REFUSALS),
            )
        )
        return
    if standing is not None:
        decisions.end(standing.number, By.LATER, now)
    decisions.add(_of_cooldown(key, Kind.COOLDOWN, cooldown, by, now))


def _suspected(
    decisions: Decisions, key: AccountKey, verdict: AccountVerdict, by: By, now: float
) -> None:
    standing = decisions.lasting(Kind.SUSPECT, key, verdict.covered, now)
    if standing is not None and _alike(standing.cause, verdict.cause):
        times = standing.times + (by in _REFUSALS)
        decisions.update(replace(standing, until=verdict.until, cause=verdict.cause, times=times))
        return
    if standing is not None:
        decisions.end(standing.number, By.LATER, now)
    about = _about(key, Kind.SUSPECT, verdict.cause, by, now)
    decisions.add(
        replace(about, model=verdict.covered, covers=verdict.covered, until=verdict.until)
    )


_REFUSALS = frozenset({By.ANSWER, By.SOCKET, By.OWNER, By.WITNESS})


def _alike(one: Cause | None, other: Cause) -> bool:
    return one is not None and (one.signal, one.cls, one.scope) == (
        other.signal,
        other.cls,
        other.scope,
    )


def _released(
    decisions: Decisions, key: AccountKey, cooldown: Cooldown, by: By, now: float
) -> None:
    ends = _ended(decisions.lasting(Kind.COOLDOWN, key, cooldown.model, now), decisions, by, now)
    decisions.add(replace(_of_cooldown(key, Kind.RELEASE, cooldown, by, now), ends=ends))


def _enabled(decisions: Decisions, key: AccountKey, cause: Cause, by: By, now: float) -> None:
    ends = _ended(decisions.lasting(Kind.DISABLE, key, None, now), decisions, by, now)
    decisions.add(replace(_about(key, Kind.ENABLE, cause, by, now), ends=ends))


def _ended(standing: Decision | None, decisions: Decisions, by: By, now: float) -> int | None:
    """End *standing*; return its number, None if the record is no longer kept."""
    if standing is None:
        return None
    decisions.end(standing.number, by, now)
    return standing.number


def _of_cooldown(key: AccountKey, kind: Kind, cooldown: Cooldown, by: By, now: float) -> Decision:
    return replace(
        _about(key, kind, cooldown.cause, by, now),
        model=cooldown.model,
        covers=cooldown.model,
        until=cooldown.until,
    )


def _about(key: AccountKey, kind: Kind, cause: Cause, by: By, now: float) -> Decision:
    return Decision(kind=kind, at=now, by=by, provider=key.provider, account=key, cause=cause)
