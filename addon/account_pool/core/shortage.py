"""Why nobody can serve a request now, and who returns when."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from math import inf
from typing import NamedTuple

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import BY_HAND
from account_pool.core.errors import NoUsableAccount
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import OutcomeClass
from account_pool.core.state import AccountState


class Shortage(NamedTuple):
    """Why nobody could serve.

    Attributes:
        error: makes the error that says it.
        holds_until: until when that is so if nothing changes but the time, monotonic seconds.
    """

    error: Callable[[], NoUsableAccount]
    holds_until: float


def shortage(
    states: Iterable[AccountState],
    facts: RequestFacts,
    *,
    now: float,
    avoid: Collection[AccountKey] = (),
) -> Shortage:
    """Return what is to be said to *facts*, which none of *states* can serve now.

    Args:
        states: every account that may be asked.
        avoid: those of them that are not asked again.
    """
    states = list(states)
    soonest: AccountState | None = None
    retry_at = inf
    may_change = False
    resort: AccountState | None = None
    only_money = True
    holds_until = inf
    for state in states:
        times = [state.next_start_at, *[cooldown.until for cooldown in state.holds()]]
        if state.ramps:
            times.append(state.ramps_admit_at(facts.model))
        holds_until = min([holds_until, *[at for at in times if at > now]])
        if not state.enabled or state.key in avoid:
            continue
        if not state.account.models.allows(facts.model):
            continue
        if facts.kind not in state.credentials:
            may_change = may_change or state.pending
            continue
        until = max(state.cooling_until(facts.model, now), state.next_start_at)
        yields = until > now and state.yields(facts.model, now)
        if state.full and (until <= now or yields):
            may_change = True
            continue
        if yields and state.next_start_at <= now:
            if resort is None or state.last_used < resort.last_used:
                resort = state
            if state.is_benched(facts.model, now):
                continue  # when that ends promises nothing
        if until <= now and state.ramps:
            # An answer lets one more go before time does.
            may_change = True
            until = state.ramps_admit_at(facts.model)
        cooldown = state.cooldown_of(facts.model, now)
        only_money = only_money and cooldown is not None and cooldown.cause.money
        if until < retry_at:
            soonest, retry_at = state, until
    status, like = None, None
    if soonest is None and not may_change and resort is None:
        status, like = _for_the_owner(states, facts)
    elif soonest is not None and only_money and not may_change:
        status = 402
    error = partial(
        NoUsableAccount,
        facts.provider,
        retry_at=retry_at if soonest else None,
        soonest=soonest.key if soonest else None,
        may_change=may_change,
        last_resort=resort.key if resort else None,
        status=status,
        like=like,
        reason=_reason(states, facts, now),
    )
    return Shortage(error, holds_until)


def _for_the_owner(
    states: list[AccountState], facts: RequestFacts
) -> tuple[int | None, AccountKey | None]:
    """Return what keeps all *states* out of use, as a status, and which of them said so last.

    None: that passes by itself.
    """
    allowed = [state for state in states if state.account.models.allows(facts.model)]
    if states and not allowed:
        return 404, None
    if any(s.enabled and s.passing and facts.kind not in s.credentials for s in allowed):
        return None, None
    told = [s for s in allowed if s.disabled is not None and s.disabled.signal != BY_HAND]
    if not told:
        return 401, None
    last = max(told, key=lambda state: state.disabled_at)
    assert last.disabled is not None
    return 403 if last.disabled.cls is OutcomeClass.FORBIDDEN_ACCOUNT else 401, last.key


def _reason(states: list[AccountState], facts: RequestFacts, now: float) -> str:
    """Say in a few words why nobody can serve, without naming secrets."""
    if not states:
        return "the pool has no account"
    in_use = [s for s in states if s.enabled]
    cooling = [s for s in in_use if s.cooling_until(facts.model, now) > now]
    kept = sum(any(c.active(now) and c.covers(facts.model) for c in s.reserved) for s in cooling)
    parts = {
        "on cooldown": len(cooling) - kept,
        "at its reserve": kept,
        "disabled": len(states) - len(in_use),
        "without a usable credential": len([s for s in in_use if facts.kind not in s.credentials]),
        "full": len([s for s in in_use if s.full]),
        "ramping up": len([s for s in in_use if not s.ramps_admit(facts.model, now)]),
        f"not for {facts.model}": len(
            [s for s in states if not s.account.models.allows(facts.model)]
        ),
    }
    listed = ", ".join(f"{n} {what}" for what, n in parts.items() if n)
    total = len(states)
    return f"no usable account of {total}" + (f" ({listed})" if listed else "")
