"""What stores of both kinds keep to, decided once: values in, values out.

How long rows stay; what this process and a store agreed on of accounts; what becomes of the tokens
of a login, and of the claim on it, where somebody asks to refresh it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

from msgspec import Struct

from account_pool.core import claims
from account_pool.core.account import AccountKey
from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.core.snapshot import AccountSnapshot, merge, of_another
from account_pool.store.store import Tokens

#: How long unused rows are kept, seconds: accounts that no proxy has (they may be configured
#: again), the tables by name, and sums. A session is bound for half an hour; vendors keep what
#: a pin names for a month (OpenAI: responses, 30 days).
ACCOUNT_KEPT_S = 90 * 86400.0
TABLE_KEPT_S = {"sessions": 86400.0, "pins": 30 * 86400.0}
#: How long it is known that a line was taken out, and which counts of a proxy were added
#: last, seconds: longer than another proxy leaves a store alone that failed.
GONE_KEPT_S = 3600.0
BATCH_KEPT_S = 7 * 86400.0
#: Times of a line, from clock to clock and back, differ by less than this, seconds.
ROUNDED_S = 0.01
COUNTS_KEPT_S = 400 * 86400.0


def is_text(key: str) -> bool:
    """Say whether SQLite can hold *key*: clients choose it, and JSON has half characters."""
    return key.isascii() or key == key.encode(errors="replace").decode()


class Agreed:
    """What this process and the store agreed on last, account by account."""

    def __init__(self, counted: dict[AccountKey, int]) -> None:
        """*counted*: how many requests of each they agreed on, whatever store that was."""
        self._base: dict[AccountKey, AccountSnapshot] = {}
        self._counted = counted

    def note(self, accounts: Iterable[AccountSnapshot]) -> None:
        """Note what both know now."""
        for account in accounts:
            self._base[account.key] = account
            self._counted[account.key] = account.served

    def leave(self, key: AccountKey) -> None:
        """Forget an account that this process no longer has, or has again."""
        self._base.pop(key, None)
        self._counted.pop(key, None)

    def merged(self, mine: AccountSnapshot, found: AccountSnapshot | None) -> AccountSnapshot:
        """Return *mine* with what others have made of the account, which the store has as *found*.

        Of a store that has lost what was agreed on, or is another, only the count is known: the
        others on it have written that as well.
        """
        key, base = mine.key, self._base.get(mine.key)
        if base is None and found is not None and key in self._counted:
            base = AccountSnapshot(key=key, served=min(self._counted[key], found.served))
        return merge(base, mine, found)

    def is_new(self, account: AccountSnapshot, found: AccountSnapshot | None) -> bool:
        """Say whether *account* is to be written where the store has *found*.

        Another proxy may use this name with another credential: each writes only what is new, or
        both would write in turns for ever.
        """
        if account == found:
            return False
        return not (of_another(account, found) and account == self._base.get(account.key))

    def is_replaced(self, account: AccountSnapshot, found: AccountSnapshot | None) -> bool:
        """Say whether *found* is of another credential, and this process has not met it yet."""
        return account.key not in self._base and of_another(account, found)


# -- the tokens of a login
#
# What `TokenStore` does, as decisions: a store reads a `Login`, has one made, and writes it in the
# same transaction, or where nothing has changed since.

#: Tokens, with times of the store's clock, and the fence of the claim they were got under.
Held = tuple[Tokens, int]
Result = TypeVar("Result")


class Login(Struct, frozen=True, kw_only=True):
    """What a store has of a login, at the time *now* of its clock.

    *tokens* are the newest, None if it was never refreshed; *claim* is the last.
    """

    now: float
    tokens: Held | None
    claim: Claim

    @property
    def fence(self) -> int:
        """The claim that the tokens were got under, -1 where there are none."""
        return -1 if self.tokens is None else self.tokens[1]

    def is_held(self, is_gone: Callable[[str], bool]) -> bool:
        """Say whether somebody refreshes it; *is_gone*: is an owner known to be dead?"""
        return claims.is_held(self.claim, now=self.now, is_gone=self.is_left(is_gone))

    def is_left(self, is_gone: Callable[[str], bool]) -> bool:
        """Say whether whoever has the claim is known to be dead."""
        return self.claim.owner != "" and is_gone(self.claim.owner)


class Decision(NamedTuple, Generic[Result]):
    """What was decided: the result, and what is to be written; None: as it is."""

    result: Result
    tokens: Held | None = None
    claim: Claim | None = None


def claim_login(
    login: Login,
    owner: str,
    *,
    token: Secret,
    is_over: bool,
    is_gone: Callable[[str], bool],
    begun_at: float,
    settle_s: float,
) -> Decision[Claim | Taken]:
    """Decide `TokenStore.claim`.

    Args:
        begun_at: when the store began, which may have lost something: for *settle_s* seconds
            nobody gets a claim, and all proxies write what they know.
    """
    settles_s = begun_at + settle_s - login.now
    # One further ahead than any could be is of another clock.
    if 0 < settles_s <= settle_s:
        return Decision(Taken(settles_s, False))
    asked = claims.ask(
        login.claim,
        owner,
        stored_fence=max(login.fence, 0),
        token=token.digest(),
        now=login.now,
        is_gone=login.is_left(is_gone),
        is_over=is_over,
    )
    return Decision(asked, claim=asked if isinstance(asked, Claim) else None)


def send_token(login: Login, fence: int, token: Secret) -> Decision[bool]:
    """Decide `TokenStore.sending`."""
    sent = claims.send(login.claim, fence, token=token.digest(), now=login.now)
    return Decision(sent is not None, claim=sent)


def save_tokens(
    login: Login, tokens: Tokens, *, replaces: Secret | None, fence: int
) -> Decision[bool]:
    """Decide `TokenStore.save`; *tokens* with times of the store's clock."""
    if login.tokens is not None and replaces is not None:
        stored, stored_fence = login.tokens
        if stored_fence == fence and stored.refresh == tokens.refresh != replaces:
            return Decision(True)  # it was saved, and that was not heard
        if not claims.may_save(stored_fence, fence, is_same_token=stored.refresh == replaces):
            return Decision(False)
    return Decision(True, (tokens, fence), claims.answered(login.claim, fence))


def release_claim(login: Login, fence: int, *, unknown: bool) -> Decision[None]:
    """Decide `TokenStore.release`."""
    after = claims.release(login.claim, fence, unknown=unknown)
    return Decision(None, claim=None if after == login.claim else after)
