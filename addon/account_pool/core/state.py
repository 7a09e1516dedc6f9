"""The run-time state of one account. Changed by `pool.py` only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from account_pool.core.account import Account, AccountKey
from account_pool.core.cooldown import Cause, Cooldown
from account_pool.core.credential import Credential

Rank = tuple[float | str, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class AccountState:
    """What the pool knows about an account while it runs.

    Attributes:
        account, key: what the owner wrote, and its name.
        position: order in which accounts were added; ties break by it.
        credentials: usable ones by kind; empty while none is known.
        problem: why there is no credential, for people; None if there is no problem.
        pending: a credential is still being fetched, so waiting may help.
        in_flight: open leases.
        last_used: sequence number of the last lease, 0 if never used.
        passed_over: sequence number of a `next` that passed it over, 0 if none: it ranks
            behind its tier until it is given a request again.
        next_start_at: no request before this (min_interval), monotonic seconds.
        cooldowns: by model (None: whole account); kept after they end, for the streak.
        disabled: why an operator must act; None while in use.
        refused: the credentials it held when it was disabled for them.
        renewed_at: when its owner last wrote another credential, monotonic seconds.
        headroom: largest known remaining share, 0 to 1; 1 when unknown.
        headroom_reset_at: when it grows again, monotonic; infinity when unknown.
        served: requests answered.
        rank: the key it stands under in the selection policy; None while not ready.
        wake_at: when to place it again, as time alone changes where it belongs.
    """

    account: Account
    key: AccountKey
    position: int
    credentials: Mapping[str, Credential] = field(default_factory=dict)
    problem: str | None = None
    pending: bool = False
    in_flight: int = 0
    last_used: int = 0
    passed_over: int = 0
    next_start_at: float = -inf
    cooldowns: dict[str | None, Cooldown] = field(default_factory=dict)
    disabled: Cause | None = None
    refused: Mapping[str, Credential] = field(default_factory=dict)
    renewed_at: float = -inf
    headroom: float = 1.0
    headroom_reset_at: float = inf
    served: int = 0
    rank: Rank | None = None
    wake_at: float = inf

    @property
    def enabled(self) -> bool:
        return self.account.enabled and self.disabled is None

    @property
    def full(self) -> bool:
        limit = self.account.max_concurrent
        return limit is not None and self.in_flight >= limit

    def cooling_until(self, model: str | None, now: float) -> float:
        """Return until when (account, *model*) cools; a time not after *now* if it does not."""
        latest = -inf
        for cooldown in self.cooldowns.values():
            if cooldown.until > latest and cooldown.active(now) and cooldown.covers(model):
                latest = cooldown.until
        return latest

    def cooldown_of(self, model: str | None, now: float) -> Cooldown | None:
        """Return the active cooldown that covers (account, *model*) longest."""
        covering = [c for c in self.cooldowns.values() if c.active(now) and c.covers(model)]
        return max(covering, key=lambda c: c.until, default=None)
