"""What is kept of a pool across restarts, and how proxies that share it agree.

Decides what a row means later: by another clock, after a time in which no proxy ran, and
combined with what another proxy has learnt. Times in a row are seconds since the epoch,
rounded to milliseconds, so that a row that was read is written back unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from math import inf
from typing import TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.accounts import Accounts
from account_pool.core.cooldown import NEVER, Cooldown, Endings
from account_pool.core.credential import are_of_others
from account_pool.core.decisions import By
from account_pool.core.headroom import HeadroomSnapshot, Key, Window
from account_pool.core.members import Transition
from account_pool.core.outcome import BY_HAND, Cause, OutcomeClass
from account_pool.core.state import AccountState, SavedRows

#: How long a cooldown still counts for a streak after it has ended, seconds.
STREAK_KEPT_S = 86400.0
#: Clocks of proxies that share a store differ by less than this, seconds; one that is further
#: behind the last write was set back.
CLOCKS_DIFFER_S = 5.0
#: Age from which a restart ends a disabling, seconds. People restart to have it tried again;
#: a proxy that restarts over and over must not try each time.
FORGIVEN_S = 3600.0

Value = TypeVar("Value")


class DisablingSnapshot(Struct, frozen=True, kw_only=True):
    """Why an account is disabled.

    Attributes:
        cause: the evidence.
        since: seconds since the epoch.
    """

    cause: Cause
    since: float


class AccountSnapshot(Struct, frozen=True, kw_only=True):
    """What is kept of one account. All times are seconds since the epoch.

    Attributes:
        key: its name.
        cooldowns: by model (None: whole account), including those that have ended.
        disabled: why it is disabled; None if it is not.
        endings: what was ended other than by time or a response.
        refused: fingerprint of the credentials of the last 401; "" if there was none.
        owner: the owner of its limits, if a response has named one.
        windows: what is left of its allowances.
        served: requests answered, by all proxies together.
        source: fingerprint of how its credential is configured, and its owner, as in
            `AccountState`; "" if unknown.
    """

    key: AccountKey
    cooldowns: Mapping[str | None, Cooldown] = field(default_factory=dict)
    disabled: DisablingSnapshot | None = None
    endings: Endings = NEVER
    refused: str = ""
    owner: str | None = None
    windows: Mapping[Key, Window] = field(default_factory=dict)
    served: int = 0
    source: str = ""


class PoolSnapshot(Struct, frozen=True, kw_only=True):
    """What is kept of a pool.

    Attributes:
        accounts: what is kept of each account.
        wall_at: when any of them was last written, seconds since the epoch.
        replaced: accounts whose credential in the store is another one.
    """

    accounts: tuple[AccountSnapshot, ...] = ()
    wall_at: float = 0.0
    replaced: frozenset[AccountKey] = frozenset()


# -- between a pool and its rows


def take(
    accounts: Accounts, keys: Iterable[AccountKey] | None = None, *, wall_now: float, ahead: float
) -> PoolSnapshot:
    """Return what is to be kept of the accounts *keys*, those that are here; None: of all.

    Args:
        wall_now: now, seconds since the epoch: what is kept outlives our clock.
        ahead: what that clock is ahead of ours, seconds. Rows are known again as long as it
            stays the same to the last bit.
    """
    wanted = [state.key for state in accounts] if keys is None else keys
    states = [state for key in wanted if (state := accounts.find(key)) is not None]
    return PoolSnapshot(
        accounts=tuple(of_state(state, accounts.owners.get(state.key), ahead) for state in states),
        wall_at=wall_now,
    )


def restore(
    accounts: Accounts,
    kept: PoolSnapshot,
    *,
    now: float,
    wall_now: float,
    by: By = By.RESTART,
) -> None:
    """Put the accounts of *kept* back into the state they were in; others are ignored.

    Leases, credentials and what their owner wrote stay as they are.

    Args:
        by: who or what kept it.
    """
    behind_s = behind(kept, wall_now) - now
    slower = cache(accounts.permits.slower)
    for account in kept.accounts:
        state = accounts.find(account.key)
        if state is None:
            continue
        accounts.owners.forget(account.key)
        if account.owner is not None:
            accounts.owners.learn(account.key, account.owner)
        before = state.cooldowns
        with Transition(accounts, state, by, now) as change:
            into_state(account, change, behind_s)
            if by is By.PROXY:
                accounts.permits.told(state, before, now, slower)
            accounts.update_reserve(state, now)


def of_state(state: AccountState, owner: str | None, ahead: float) -> AccountSnapshot:
    """Return the row of *state*.

    Args:
        owner: the owner of its limits.
        ahead: wall clock minus monotonic clock, seconds.
    """
    disabled = None
    if state.disabled is not None:
        since = _rounded(state.disabled_at + ahead)
        disabled = DisablingSnapshot(cause=state.disabled, since=since)
    if not (state.cooldowns or state.headroom.windows):
        state.saved = None
    elif state.saved is None or state.saved.ahead != ahead:
        state.saved = SavedRows(ahead)
    saved = state.saved
    return AccountSnapshot(
        key=state.key,
        cooldowns=saved.cooldowns.of(state.cooldowns, lambda one: _row(one, ahead))
        if saved
        else {},
        disabled=disabled,
        endings=state.endings
        if state.endings is NEVER
        else Endings(*map(_rounded, state.endings.moved(ahead))),
        refused=state.refused,
        owner=owner,
        windows=saved.windows.of(state.headroom.windows, lambda one: _moved(one, ahead))
        if saved
        else {},
        served=state.served,
        source=state.source,
    )


def into_state(account: AccountSnapshot, change: Transition, behind: float) -> None:
    """Set the account of *change* to what *account* says.

    Args:
        behind: the clock of *account* minus the monotonic one, seconds.
    """
    state, now = change.state, change.now
    change.adopt(
        {
            model: _later(c, -behind)
            for model, c in account.cooldowns.items()
            if now + behind - c.until < STREAK_KEPT_S
        }
    )
    cause, since = None, -inf
    if account.disabled is not None:
        cause, since = account.disabled.cause, account.disabled.since - behind
    change.adopt_disabling(cause, since, account.endings.moved(-behind))
    state.refused = account.refused
    state.headroom = HeadroomSnapshot.of((w.later(-behind) for w in account.windows.values()), now)
    state.served = account.served
    state.source = account.source or state.source


def behind(snapshot: PoolSnapshot, wall_now: float) -> float:
    """Return what "now" is on the clock that *snapshot* was written by.

    If ours was set back since, time has stood still: no cooldown gets longer by that.
    """
    return snapshot.wall_at if snapshot.wall_at - wall_now > CLOCKS_DIFFER_S else wall_now


def forgiven(snapshot: PoolSnapshot, wall_now: float) -> PoolSnapshot:
    """Return *snapshot* for a pool that begins: old disablings end, those by a 401 stay.

    A refused credential is recognised, and the account returns when it changes. Only a request
    can show that a suspended account works again.
    """
    return replace(snapshot, accounts=tuple(_forgiven(a, wall_now) for a in snapshot.accounts))


def _forgiven(account: AccountSnapshot, wall_now: float) -> AccountSnapshot:
    disabled = account.disabled
    if disabled is None or disabled.cause.cls is not OutcomeClass.FORBIDDEN_ACCOUNT:
        return account
    if disabled.cause.signal == BY_HAND:
        return account
    if wall_now - disabled.since < FORGIVEN_S:
        return account
    older = Endings(disabling=_rounded(wall_now - FORGIVEN_S))
    return replace(account, disabled=None, endings=account.endings.latest(older))


def _row(cooldown: Cooldown, ahead: float) -> Cooldown:
    return replace(
        cooldown,
        since=_rounded(cooldown.since + ahead),
        until=_rounded(cooldown.until + ahead),
        probed_at=_rounded(cooldown.probed_at + ahead),
    )


def _later(cooldown: Cooldown, seconds: float) -> Cooldown:
    return replace(
        cooldown,
        since=cooldown.since + seconds,
        until=cooldown.until + seconds,
        probed_at=cooldown.probed_at + seconds,
    )


def _moved(window: Window, ahead: float) -> Window:
    return window._replace(
        told_at=_rounded(window.told_at + ahead), reset_at=_rounded(window.reset_at + ahead)
    )


def _rounded(seconds: float) -> float:
    return round(seconds, 3)


# -- between proxies


def merge(
    base: AccountSnapshot | None, mine: AccountSnapshot, theirs: AccountSnapshot | None
) -> AccountSnapshot:
    """Return the three-way merge of what two proxies know of an account.

    Args:
        base: what both knew; None: nothing.
        mine: what this proxy knows now.
        theirs: what the store says now; None: nothing.

    A change by one side only is taken, endings included: a cooldown that one proxy released
    does not come back from another. Of two new cooldowns the later deadline wins, and a new
    one wins over the end of the old, unless it began before a person ended them: whoever
    learnt it did not know yet. So it is with disablings. What was learnt with another
    credential is dropped, except for the number of requests served.
    """
    if theirs is None:
        return mine
    if theirs is base and len(mine.source) >= len(theirs.source):
        return mine  # only this proxy has written: an account may cool for a hundred models
    if base is None:
        base = AccountSnapshot(key=mine.key)
    served = theirs.served + mine.served - base.served
    if of_another(mine, theirs):
        return replace(mine, served=served)
    if of_another(mine, base):
        base = AccountSnapshot(key=mine.key)
    endings = mine.endings.latest(theirs.endings)
    mine = _ended(mine, theirs.endings.since(base.endings))
    theirs = _ended(theirs, mine.endings.since(base.endings))
    sides = base, mine, theirs
    cooldowns = {
        model: cooldown
        for model in {**theirs.cooldowns, **mine.cooldowns}
        if (cooldown := _merged(_longer, *(s.cooldowns.get(model) for s in sides)))
    }
    windows = {
        key: window
        for key in {**theirs.windows, **mine.windows}
        if (window := _merged(_told_last, *(s.windows.get(key) for s in sides)))
    }
    return AccountSnapshot(
        key=mine.key,
        cooldowns=cooldowns,
        disabled=_merged(_last, base.disabled, mine.disabled, theirs.disabled),
        endings=endings,
        refused=_changed(base.refused, mine.refused, theirs.refused),
        owner=_changed(base.owner, mine.owner, theirs.owner),
        windows=windows,
        served=served,
        # Of two fingerprints of one credential, the one that also names the owner.
        source=max(mine.source, theirs.source, key=len),
    )


def of_another(mine: AccountSnapshot, theirs: AccountSnapshot | None) -> bool:
    """Return whether *theirs* is about another credential under the same name."""
    if theirs is None or not (mine.source and theirs.source):
        return False
    written, _, who = mine.source.partition("/")
    their_written, _, their_who = theirs.source.partition("/")
    return written != their_written or are_of_others(who, their_who)


def _ended(account: AccountSnapshot, endings: Endings) -> AccountSnapshot:
    """Return *account* without what *endings*, of which it did not know, have ended."""
    if endings is NEVER:
        return account
    disabled = account.disabled
    return replace(
        account,
        cooldowns={m: c for m, c in account.cooldowns.items() if not endings.ends(c)},
        disabled=disabled if disabled and disabled.since >= endings.disabling else None,
        windows={k: w for k, w in account.windows.items() if w.told_at >= endings.cooldowns},
    )


def _last(mine: DisablingSnapshot, theirs: DisablingSnapshot) -> DisablingSnapshot:
    return max(mine, theirs, key=lambda disabling: disabling.since)


def _changed(base: Value, mine: Value, theirs: Value) -> Value:
    """Return the value that has changed; ours if both have."""
    return theirs if mine == base else mine


def _merged(
    both: Callable[[Value, Value], Value],
    base: Value | None,
    mine: Value | None,
    theirs: Value | None,
) -> Value | None:
    """Return what has changed, if only one side did that or one has none; else *both*."""
    if mine in (base, theirs):
        return theirs
    if theirs == base or theirs is None:
        return mine
    return theirs if mine is None else both(mine, theirs)


def _told_last(mine: Window, theirs: Window) -> Window:
    return max(mine, theirs, key=lambda window: window.told_at)


def _longer(mine: Cooldown, theirs: Cooldown) -> Cooldown:
    return replace(
        max(mine, theirs, key=lambda c: c.until),
        streak=max(mine.streak, theirs.streak),
        probed_at=max(mine.probed_at, theirs.probed_at),
    )
