"""What is kept of a login that is refreshed, and who may refresh it.

A family is all tokens that descend from one login: each refresh replaces its tokens by
new ones, and the old refresh token is then worth nothing. So the newest are the login.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from account_pool.core.claims import Claim, Taken
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

    Its methods block and may be called from any thread. All raise StoreError. Who may
    refresh is decided in `core/claims.py`, by the store's own clock and in one step that
    nobody gets between.
    """

    def load(self, family: str) -> Tokens | None:
        """Return the newest tokens of *family*, None if it was never refreshed."""
        ...

    def claim(self, family: str, owner: str, *, token: Secret, is_over: bool) -> Claim | Taken:
        """Let *owner* (`Process.owner`) alone refresh *family* with *token*, or say who does.

        *is_over*: the access token is worth nothing any more. The claim of a process that is
        known to be dead has ended.
        """
        ...

    def sending(self, family: str, fence: int, token: Secret) -> bool:
        """Note that *token* leaves now; False: it must not, the claim has ended."""
        ...

    def save(
        self, family: str, tokens: Tokens, *, replaces: Secret | None = None, fence: int = 0
    ) -> bool:
        """Keep *tokens* as the newest. They survive whatever happens after the return.

        *replaces* is the refresh token they were got for, by the claim *fence*. False, and
        nothing is done, when the store has the tokens of another refresh by now.
        """
        ...

    def release(self, family: str, fence: int, *, unknown: bool = False) -> None:
        """End the claim with this number. *unknown*: its token was sent, and not answered."""
        ...

    def keep(self) -> None:
        """Have all that is known here in the store, also when its file was taken away."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...
