"""What became of an account, as decisions: every change of its cooldowns has one record.

Compares what an account was in with what it is in now, whatever made the difference.
That a cooldown ends because its time is over is no decision: nobody does anything then,
and its record says until when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cause, Cooldown
from account_pool.core.decision import By, Decision, Kind
from account_pool.core.decisions import Decisions
from account_pool.core.state import AccountState
from account_pool.core.verdicts import Verdict


class Standing(NamedTuple):
    """What an account is in: its cooldowns, those that are over too, and why it is disabled.

    And the verdicts that are open, or were.
    """

    cooldowns: Mapping[str | None, Cooldown]
    disabled: Cause | None
    verdicts: Mapping[str | None, Verdict]

    @classmethod
    def of(cls, state: AccountState) -> Standing:
        return cls(dict(state.cooldowns), state.disabled, dict(state.verdicts))


def record(decisions: Decisions, state: AccountState, was: Standing, by: By, now: float) -> None:
    """Record how *state* differs from what it was, because of *by*."""
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
    was: Standing,
    covers: str | None,
    *,
    by: By,
    now: float,
) -> None:
    """Record that *state* was told to cool for *covers*, be it only what it does anyway."""
    cooldown = state.cooldowns[covers]
    if cooldown == was.cooldowns.get(covers) and cooldown.active(now):
        _cools(decisions, state.key, cooldown, by, now)
    else:
        record(decisions, state, was, by, now)


def reserved(
    decisions: Decisions, state: AccountState, was: Iterable[Cooldown], now: float
) -> None:
    """Record that no more than its owner's reserve is left of a window of *state*."""
    kept = {(cooldown.model, cooldown.until) for cooldown in was}
    for cooldown in state.reserved:
        if (cooldown.model, cooldown.until) not in kept:
            decision = _of_cooldown(state.key, Kind.COOLDOWN, cooldown, By.RESERVE, now)
            decisions.add(decision)


def removed(decisions: Decisions, key: AccountKey, now: float) -> None:
    """The account *key* is gone, and what it was in with it."""
    for decision in decisions.all_lasting(key, now):
        decisions.end(decision.number, By.REMOVAL, now)


def _cools(decisions: Decisions, key: AccountKey, cooldown: Cooldown, by: By, now: float) -> None:
    standing = decisions.lasting(Kind.COOLDOWN, key, cooldown.model, now)
    if standing is not None and _alike(standing.cause, cooldown.cause):
        # Fifty requests that were refused at once, and a probe that was told the same,
        # are one cooldown: its record says what holds.
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


def _suspected(decisions: Decisions, key: AccountKey, verdict: Verdict, by: By, now: float) -> None:
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
    """End *standing*; return its number, None if it is no longer kept."""
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
