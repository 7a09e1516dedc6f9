"""What is kept of a login that is refreshed, and who may refresh it.

A family is all tokens that descend from one login: each refresh replaces its tokens by
new ones, and the old refresh token is then worth nothing. So the newest are the login.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from account_pool.core.credential import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of a login at one time. Times are wall clock, seconds since the epoch.

    Attributes:
        access: goes on the wire; None when only a refresh token was written down.
        refresh: gets the next ones, once.
        expires_at: when *access* ends; None if nobody said.
        refreshed_at: when they were got; None for those that were written down.
        companions: what the server said of the account beside them.
    """

    access: Secret | None
    refresh: Secret
    expires_at: float | None = None
    refreshed_at: float | None = None
    companions: Mapping[str, str] = field(default_factory=dict)


class TokenStore(Protocol):
    """Keeps the newest tokens of each family, for all proxies that share the store.

    Its methods block and may be called from any thread. All raise StoreError.
    """

    def load(self, family: str) -> Tokens | None:
        """Return the newest tokens of *family*, None if it was never refreshed."""
        ...

    def save(self, family: str, tokens: Tokens, *, replaces: Secret | None = None) -> bool:
        """Keep *tokens* as the newest. They survive whatever happens after the return.

        *replaces* is the refresh token they were got for. False, and nothing is done, when
        the store has the tokens of another refresh by now: a compare-and-swap, for one
        whose claim ended before he could write.
        """
        ...

    def claim(
        self, family: str, owner: str, *, clock: Callable[[], float], lasts_s: float
    ) -> float | None:
        """Let *owner* alone refresh *family*; return until when, None: somebody else may.

        A claim lasts *lasts_s* seconds of *clock*, so that one whose owner died does not
        hold for ever. The clock is read while nobody else can claim: one who waited for
        his turn must not come with an old time.
        """
        ...

    def release(self, family: str, owner: str) -> None:
        """End the claim of *owner*, if it has one."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...
