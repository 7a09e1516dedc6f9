"""What is kept of a pool over a restart, and how proxies that share it agree.

Decides what a row means later: on another clock, after a time in which nobody looked, and
beside what another proxy has learnt. Times in a row are seconds since the epoch, rounded
to milliseconds, so that a row which was read is written back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import BY_HAND, Cause, Cooldown
from account_pool.core.credential import are_of_others
from account_pool.core.headroom import Key, Picture, Window
from account_pool.core.outcome import OutcomeClass
from account_pool.core.state import AccountState

#: How long a cooldown that is over still counts for a streak, seconds.
STREAK_KEPT_S = 86400.0
#: Clocks of proxies that share a store differ by less than this; one that is further back
#: than what was written last was set back.
CLOCKS_DIFFER_S = 5.0
#: How old a disabling must be to end with a restart, seconds. Restarting is how people say
#: "try it again"; a proxy that is started over and over must not try each time.
FORGIVEN_S = 3600.0

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedDisabling:
    """Why an account is out of use.

    Attributes:
        cause: the evidence.
        since: wall clock.
    """

    cause: Cause
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedAccount:
    """What is kept of one account.

    Attributes:
        key: its name.
        cooldowns: by model (None: whole account), with times of the wall clock; those
            that are over too.
        disabled: why it is out of use; None while in use.
        refused: fingerprint of the credentials that a 401 was about last; "" if none was.
        owner: whose limits it shares, where answers have named one.
        windows: what is left of its allowances, with times of the wall clock.
        served: requests answered, by all proxies together.
        source: fingerprint of how its credential was written down, and whose it is, as in
            `AccountState`; "" if nobody said.
    """

    key: AccountKey
    cooldowns: Mapping[str | None, Cooldown] = field(default_factory=dict)
    disabled: SavedDisabling | None = None
    refused: str = ""
    owner: str | None = None
    windows: Mapping[Key, Window] = field(default_factory=dict)
    served: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Accounts, and what is to be known with them.

    Attributes:
        accounts: what is kept of each.
        wall_at: the wall clock when anything of them was written last.
        replaced: those that had another credential when the store knew them last.
    """

    accounts: tuple[SavedAccount, ...] = ()
    wall_at: float = 0.0
    replaced: frozenset[AccountKey] = frozenset()


# -- between a pool and its rows


def of_state(state: AccountState, owner: str | None, ahead: float) -> SavedAccount:
    """Return the row of *state*.

    Args:
        owner: its owner.
        ahead: what the wall clock is ahead of the monotonic one, seconds.
    """
    disabled = None
    if state.disabled is not None:
        since = _rounded(state.disabled_at + ahead)
        disabled = SavedDisabling(cause=state.disabled, since=since)
    return SavedAccount(
        key=state.key,
        cooldowns={model: _row(c, ahead) for model, c in state.cooldowns.items()},
        disabled=disabled,
        refused=state.refused,
        owner=owner,
        windows={key: _moved(w, ahead) for key, w in state.picture.windows.items()},
        served=state.served,
        source=state.source,
    )


def into_state(account: SavedAccount, state: AccountState, behind: float, now: float) -> None:
    """Give *state* what *account* says of it.

    Args:
        behind: what the monotonic clock is behind the times in *account*, seconds.
        now: monotonic seconds.
    """
    state.cooldowns = {
        model: _later(c, -behind)
        for model, c in account.cooldowns.items()
        if now + behind - c.until < STREAK_KEPT_S
    }
    state.disabled = None
    if account.disabled is not None:
        state.disabled = account.disabled.cause
        state.disabled_at = account.disabled.since - behind
    state.refused = account.refused
    state.picture = Picture.of((w.later(-behind) for w in account.windows.values()), now)
    state.served = account.served
    state.source = account.source or state.source


def behind(saved: Saved, wall_now: float) -> float:
    """Return what "now" is on the clock that *saved* was written by.

    Where ours was set back meanwhile, time has stood still since: no cooldown gets longer
    than it was.
    """
    return saved.wall_at if saved.wall_at - wall_now > CLOCKS_DIFFER_S else wall_now


def forgiven(saved: Saved, wall_now: float) -> Saved:
    """Return *saved* for a pool that begins: old disablings end, those by a 401 stay.

    A refused credential is known, and heals itself when it changes. Nothing tells us when
    a suspended account is in order again but a request.
    """
    return replace(saved, accounts=tuple(_forgiven(a, wall_now) for a in saved.accounts))


def _forgiven(account: SavedAccount, wall_now: float) -> SavedAccount:
    disabled = account.disabled
    if disabled is None or disabled.cause.cls is not OutcomeClass.FORBIDDEN_ACCOUNT:
        return account
    if disabled.cause.signal == BY_HAND:
        return account
    return account if wall_now - disabled.since < FORGIVEN_S else replace(account, disabled=None)


def _row(cooldown: Cooldown, ahead: float) -> Cooldown:
    later = _later(cooldown, ahead)
    return replace(
        later,
        since=_rounded(later.since),
        until=_rounded(later.until),
        probed_at=_rounded(later.probed_at),
    )


def _later(cooldown: Cooldown, seconds: float) -> Cooldown:
    return replace(
        cooldown,
        since=cooldown.since + seconds,
        until=cooldown.until + seconds,
        probed_at=cooldown.probed_at + seconds,
    )


def _moved(window: Window, ahead: float) -> Window:
    later = window.later(ahead)
    return later._replace(told_at=_rounded(later.told_at), reset_at=_rounded(later.reset_at))


def _rounded(seconds: float) -> float:
    return round(seconds, 3)


# -- between proxies


def merge(
    base: SavedAccount | None, mine: SavedAccount, theirs: SavedAccount | None
) -> SavedAccount:
    """Return what is true of an account when two have learnt of it.

    Args:
        base: what both knew; None: nothing.
        mine: what this proxy knows now.
        theirs: what the store says now; None: nothing.

    What only one side changed is as that side says, endings included: a cooldown that
    one proxy released does not come back from another. Of two new cooldowns the later
    deadline stands; a new one stands against an ending of the old. What was learnt with
    another credential says nothing of ours: only what was served counts.
    """
    if theirs is None:
        return mine
    if base is None:
        base = SavedAccount(key=mine.key)
    served = theirs.served + mine.served - base.served
    if of_another(mine, theirs):
        return replace(mine, served=served)
    if of_another(mine, base):
        base = SavedAccount(key=mine.key)
    cooldowns = {
        model: cooldown
        for model in {**theirs.cooldowns, **mine.cooldowns}
        if (cooldown := _cooldown(*(s.cooldowns.get(model) for s in (base, mine, theirs))))
    }
    windows = {
        key: window
        for key in {**theirs.windows, **mine.windows}
        if (window := _window(*(s.windows.get(key) for s in (base, mine, theirs))))
    }
    return SavedAccount(
        key=mine.key,
        cooldowns=cooldowns,
        disabled=_changed(base.disabled, mine.disabled, theirs.disabled),
        refused=_changed(base.refused, mine.refused, theirs.refused),
        owner=_changed(base.owner, mine.owner, theirs.owner),
        windows=windows,
        served=served,
        # Of two that are of the same, the one that also says whose it is.
        source=max(mine.source, theirs.source, key=len),
    )


def of_another(mine: SavedAccount, theirs: SavedAccount | None) -> bool:
    """Say whether *theirs* is about another credential under the same name."""
    if theirs is None or not (mine.source and theirs.source):
        return False
    written, _, who = mine.source.partition("/")
    their_written, _, their_who = theirs.source.partition("/")
    return written != their_written or are_of_others(who, their_who)


def _changed(base: Value, mine: Value, theirs: Value) -> Value:
    """Return the one that is new; ours if both are."""
    return theirs if mine == base else mine


def _window(base: Window | None, mine: Window | None, theirs: Window | None) -> Window | None:
    """Return what was told last; what one side has forgotten since stays away."""
    if mine in (base, theirs):
        return theirs
    if theirs == base or theirs is None:
        return mine
    if mine is None:
        return theirs
    return max(mine, theirs, key=lambda window: window.told_at)


def _cooldown(
    base: Cooldown | None, mine: Cooldown | None, theirs: Cooldown | None
) -> Cooldown | None:
    if mine in (base, theirs):
        return theirs
    if theirs == base or theirs is None:
        return mine
    if mine is None:
        return theirs
    later = max(mine, theirs, key=lambda c: c.until)
    return replace(
        later,
        streak=max(mine.streak, theirs.streak),
        probed_at=max(mine.probed_at, theirs.probed_at),
    )
