"""The errors of the pool, one sentence each. Texts name account, limit and remedy."""

from __future__ import annotations

from account_pool.core.account import AccountKey

#: Why a request is not held although an account may return in time.
CROWDED = "too many requests wait for an account already (pool_max_waiting, or 512 MiB of bodies)"


class PoolError(Exception):
    """Something the pool was asked for cannot be done."""


class DuplicateAccount(PoolError):
    """An account of this provider and label is already in the pool."""

    def __init__(self, key: AccountKey) -> None:
        super().__init__(f"{key} is already in the pool; choose another label or remove it first")


class UnknownAccount(PoolError):
    """No account of this name is in the pool."""

    def __init__(self, key: AccountKey, known: list[str]) -> None:
        names = ", ".join(known) if known else "none"
        super().__init__(f"{key} is not in the pool; the accounts are: {names}")


class LeaseAlreadyReturned(PoolError):
    """A lease was given back twice: a bug in the caller."""


class IllegalEvent(PoolError):
    """A request was told of something that cannot happen in its phase: a caller's bug."""


class NoUsableAccount(PoolError):
    """No account can serve this request now.

    Attributes:
        provider: whose accounts were asked.
        retry_at: monotonic seconds when the first one returns; None when no deadline
            is known (all disabled, or none may serve this model).
        soonest: the account that returns first, if any.
        may_change: something that is not a deadline may free one: a request that ends,
            a credential that is being fetched.
        last_resort: an account that is on the bench, or pauses after a 429 without
            evidence, and can be asked before the client is refused; None if there is none.
        status: what only the owner can cure, as an HTTP status: 401 credentials, 402
            money, 403 accounts, 404 the model is not for them; None while waiting helps.
        like: the account that said so last.
        reason: a few words for people.
        crowded: an account may return in time, but too many wait for one already.
        all_refused: no account is left that has not refused this request.
    """

    def __init__(
        self,
        provider: str,
        *,
        retry_at: float | None,
        soonest: AccountKey | None,
        may_change: bool,
        last_resort: AccountKey | None = None,
        status: int | None = None,
        like: AccountKey | None = None,
        reason: str,
    ) -> None:
        super().__init__(provider, reason)
        self.provider = provider
        self.retry_at = retry_at
        self.soonest = soonest
        self.may_change = may_change
        self.last_resort = last_resort
        self.status = status
        self.like = like or soonest
        self.reason = reason
        self.crowded = self.all_refused = False

    def __str__(self) -> str:
        return f"{self.provider}: {self.reason}"

    def crowd_out(self) -> None:
        """One could be waited for, but too many wait already."""
        self.reason, self.crowded = CROWDED, True

    def wait_s(self, now: float) -> float | None:
        """Seconds until the first account returns; None when no deadline is known."""
        return None if self.retry_at is None else max(self.retry_at - now, 0.0)

    def frees_by(self, until: float, now: float) -> bool:
        """Say whether an account may serve before *until*, which is worth a wait."""
        soon = self.retry_at is not None and self.retry_at <= until
        return now < until and (soon or self.may_change)
