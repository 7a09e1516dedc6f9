"""Holds the credentials of all accounts at run time; what the addon talks to.

What happens within one account is `account_credential.py`. It belongs to one event loop;
nothing here is called from another thread.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Collection, Iterable

from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential
from account_pool.credentials.account_credential import AccountCredential, Publish, Timing
from account_pool.credentials.acquire import AcquireContext
from account_pool.credentials.code_assist import CodeAssist
from account_pool.credentials.copilot import CopilotExchange
from account_pool.credentials.copilot_token import no_token_response, placeholder_response
from account_pool.credentials.refreshable_token import Refresher
from account_pool.credentials.sources import AccountEntry
from account_pool.providers.base import LocalResponse

#: How often a shortage has credentials looked for that cannot be read, in seconds: at most,
#: by provider.
SEEK_S = 2.0
#: The `retry-after` a client gets, in seconds, while no account has a token yet.
NO_TOKEN_RETRY_S = 5


class Keeper:
    """The credentials of all accounts."""

    def __init__(
        self,
        entries: Iterable[AccountEntry],
        publish: Publish,
        exchange: CopilotExchange,
        *,
        refresher: Refresher | None = None,
        assist: CodeAssist | None = None,
        wall_clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Take what it needs; nothing happens before `start`.

        *publish* is called in the loop's thread whenever one of its arguments changes. There
        may be a problem and credentials: a token that is still valid, and the reason why
        there is no newer one.
        """
        self._entries = {entry.account.key: entry for entry in entries}
        self._publish = publish
        self._context = AcquireContext(exchange=exchange, refresher=refresher, assist=assist)
        self._timing = Timing(wall_clock=wall_clock, sleep=sleep, chance=chance)
        self._accounts: dict[AccountKey, AccountCredential] = {}
        self._sought_at: dict[str, float] = {}

    def start(self) -> None:
        """Publish what can be read at once; start the rest, all accounts in parallel.

        Call it in the event loop. Disabled accounts are not read.
        """
        self.update(self._entries.values())

    @property
    def context(self) -> AcquireContext:
        """What the strategies of new accounts share."""
        return self._context

    def renewed(self, entries: Iterable[AccountEntry]) -> tuple[AccountKey, ...]:
        """Return which of *entries* lead to another credential than they did."""
        return tuple(
            entry.account.key
            for entry in entries
            if (known := self._entries.get(entry.account.key)) is not None
            and not known.same_credential(entry)
        )

    def update(
        self,
        entries: Iterable[AccountEntry],
        context: AcquireContext | None = None,
        anew: Collection[AccountKey] = (),
    ) -> None:
        """Apply a changed list of accounts. Unchanged accounts keep their tokens.

        *context*, if given, applies to accounts that are new or changed; *anew* are accounts
        to start again although nothing about them changed.
        """
        self._context = context or self._context
        self._entries = {entry.account.key: entry for entry in entries}
        before, self._accounts, new = self._accounts, {}, []
        for key, entry in self._entries.items():
            if not entry.account.enabled:
                continue
            known = before.get(key)
            if known is not None and key not in anew and known.entry.same_credential(entry):
                known.entry = entry
                self._accounts[key] = before.pop(key)
            else:
                one = AccountCredential(entry, self._publish, self._context, self._timing)
                self._accounts[key] = one
                new.append(one)
        for account in before.values():
            account.close()
        for account in new:
            account.start()

    def stop(self, by: float = 0.0) -> None:
        """Cancel everything. Nothing is published afterwards.

        A refresh that was asked for is still written to the store, by its thread, if its
        response comes until *by*, seconds of `time.monotonic`.
        """
        if self._context.refresher is not None:
            self._context.refresher.stop(by)
        for account in self._accounts.values():
            account.close()
        self._accounts = {}

    async def refresh(self, key: AccountKey, refused: Credential) -> bool | None:
        """Get another credential after the server refused *refused*.

        Returns whether the account now has one that differs, also if another task got it
        meanwhile: there is one refresh at a time per account. None: it takes longer than a
        request should wait, and goes on, or is tried again.
        """
        while (account := self._accounts.get(key)) is not None:
            changed = await account.refresh(refused)
            if self._accounts.get(key) is account:
                return changed
            # A reload replaced it meanwhile: what is there now has the newer credential.
        return False

    @property
    def is_refreshing(self) -> bool:
        """Whether a login is being refreshed: its refresh token works only once."""
        return any(account.is_refreshing for account in self._accounts.values())

    def seek(self, provider: str) -> bool:
        """Read the unreadable sources of *provider* at once: none of its accounts can serve.

        Returns whether an account has a credential now that had none. Call it in the loop.
        """
        now = self._timing.wall_clock()
        # A clock that was set back is no reason to wait for it.
        if 0 <= now - self._sought_at.get(provider, -math.inf) < SEEK_S:
            return False
        self._sought_at[provider] = now
        lacking = [account for account in self._of(provider) if account.unreadable]
        # Each of them is read, whatever the first says.
        return sum(account.seek(now) for account in lacking) > 0

    async def first_try(self, provider: str) -> None:
        """Wait until every account of *provider* has been tried once.

        For a client that asks for its token right after the start; bound the wait.
        """
        for account in self._of(provider):
            await account.first_try()

    def exchange_response(self, wall_now: float, provider: str = "copilot") -> LocalResponse:
        """Answer a client's own token exchange, without any real token in it.

        *wall_now* is in seconds since the epoch. 503 while no account has a token.
        """
        for account in self._of(provider):
            account.drop_expired()
            if account.for_clients:
                return placeholder_response(account.for_clients, wall_now)
        message = f"account-pool: no account of {provider} has a Copilot token; see the proxy's log"
        return no_token_response(message, NO_TOKEN_RETRY_S)

    def _of(self, provider: str) -> list[AccountCredential]:
        return [one for one in self._accounts.values() if one.key.provider == provider]
