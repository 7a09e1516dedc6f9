"""Holds the credentials of all accounts at run time and publishes their changes.

It owns the tasks: one loop per account that runs a command, exchanges, refreshes, checks its
source or tries again. What happens within one account is `account_credential.py`. It belongs
to one event loop; nothing here is called from another thread.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Collection, Iterable

from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential
from account_pool.credentials.account_credential import AccountCredential, Publish
from account_pool.credentials.acquire import AcquireContext, Exchange
from account_pool.credentials.code_assist import CodeAssist
from account_pool.credentials.copilot_token import no_token_response, placeholder_response
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.refreshable_token import Refresher
from account_pool.credentials.sources import AccountEntry
from account_pool.providers.base import LocalAnswer
from account_pool.supervision import tasks

#: A sleeping laptop stops the clock that sleeps run on; the wall clock goes on. Looking
#: at it so often, in seconds, bounds how late a renewal is after waking up.
LONGEST_SLEEP_S = 60.0
#: How often a shortage has credentials looked for that cannot be read, in seconds: at most,
#: by provider; and those that take time, such as commands, which may open a window.
SEEK_S, SLOW_SEEK_S = 2.0, 60.0
#: What a client is told to wait, in seconds, while no account has a token yet.
NO_TOKEN_RETRY_S = 5


class Keeper:
    """The credentials of all accounts. See the module for what it owns."""

    def __init__(
        self,
        entries: Iterable[AccountEntry],
        publish: Publish,
        exchange: Exchange,
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
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._chance = chance
        self._accounts: dict[AccountKey, AccountCredential] = {}
        self._loops: dict[AccountKey, asyncio.Task[None]] = {}
        self._sought_at: dict[str, float] = {}

    def start(self) -> None:
        """Publish what can be read at once; start the rest, all accounts in parallel.

        Call it in the event loop. Disabled accounts are not read.
        """
        self.update(self._entries.values())

    @property
    def context(self) -> AcquireContext:
        """What acquirers of new accounts share."""
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
        for key in anew:
            self._forget(key)
        wanted = {key: entry for key, entry in self._entries.items() if entry.account.enabled}
        for key in self._accounts.keys() - wanted.keys():
            self._forget(key)
        order: dict[AccountKey, AccountCredential] = {}
        for key, entry in wanted.items():
            account = self._accounts.get(key)
            if account is not None and account.entry.same_credential(entry):
                account.entry = entry
                order[key] = account
            else:
                self._forget(key)
                order[key] = self._add(entry)
        self._accounts = order

    def stop(self, by: float = 0.0) -> None:
        """Cancel everything. Nothing is published afterwards.

        A refresh that was asked for is still written to the store, by its thread, if its
        answer comes until *by*, seconds of `time.monotonic`.
        """
        if self._context.refresher is not None:
            self._context.refresher.stop(by)
        for key in list(self._accounts):
            self._forget(key)

    async def refresh(self, key: AccountKey, refused: Credential) -> bool | None:
        """Get another credential after the server refused *refused*.

        Returns whether the account now has one that differs, also if another task got it
        meanwhile: there is one refresh at a time per account. None: it takes longer than a
        request should wait, and goes on, or is tried again.
        """
        account = self._accounts.get(key)
        if account is None:
            return False
        if account.is_renewing:
            return True if account.differs_from(refused) else None
        async with account.lock:
            if account.differs_from(refused):
                return True
            if self._accounts.get(key) is not account:
                return False
            if account.is_renewing:
                return None
            if refused.kind != "copilot":
                account.refuse(refused.secret)
            wait_s = await account.renew()
            self._restart(account, wait_s)
            if account.differs_from(refused):
                return True
            return None if account.renewal_expected else False

    @property
    def is_refreshing(self) -> bool:
        """Whether a login is being refreshed: its refresh token works only once."""
        return any(
            account.lock.locked() and isinstance(account.entry.source, OAuthSource)
            for account in self._accounts.values()
        )

    def seek(self, provider: str) -> bool:
        """Read the unreadable sources of *provider* at once: none of its accounts can serve.

        Returns whether an account has a credential now that had none. Call it in the loop.
        """
        now = self._wall_clock()
        # A clock that was set back is no reason to wait for it.
        if 0 <= now - self._sought_at.get(provider, -math.inf) < SEEK_S:
            return False
        self._sought_at[provider] = now
        accounts = [one for one in self._accounts.values() if one.key.provider == provider]
        lacking = [one for one in accounts if one.unreadable]
        # Each of them is read, whatever the first says.
        return sum(self._look(account, now) for account in lacking) > 0

    def _look(self, account: AccountCredential, now: float) -> bool:
        """Read the source of *account* again; return whether it had a credential at once."""
        if account.lock.locked():
            return False  # it is being looked for
        if account.takes_time and 0 <= now - account.looked_at < SLOW_SEEK_S:
            return False
        self._restart(account, account.read_now())
        return bool(account.credentials)

    async def first_try(self, provider: str) -> None:
        """Wait until every account of *provider* has been tried once.

        For a client that asks for its token right after the start; bound the wait.
        """
        for account in list(self._accounts.values()):
            if account.key.provider == provider and account.key in self._loops:
                await account.tried.wait()

    def exchange_response(self, wall_now: float, provider: str = "copilot") -> LocalAnswer:
        """Answer a client's own token exchange, without any real token in it.

        *wall_now* is in seconds since the epoch. 503 while no account has a token.
        """
        for account in self._accounts.values():
            if account.key.provider == provider:
                account.drop_expired()
                if account.for_clients:
                    return placeholder_response(account.for_clients, wall_now)
        message = f"account-pool: no account of {provider} has a Copilot token; see the proxy's log"
        return no_token_response(message, NO_TOKEN_RETRY_S)

    def _add(self, entry: AccountEntry) -> AccountCredential:
        account = AccountCredential(
            entry, self._publish, self._context, self._wall_clock, self._chance
        )
        self._accounts[account.key] = account
        self._restart(account, account.read_now())
        return account

    def _forget(self, key: AccountKey) -> None:
        account = self._accounts.pop(key, None)
        if account is not None:
            account.close()
        loop = self._loops.pop(key, None)
        if loop is not None:
            loop.cancel()

    def _restart(self, account: AccountCredential, wait_s: float | None) -> None:
        """Restart the account's loop with a wait, in seconds; None ends it."""
        loop = self._loops.pop(account.key, None)
        if loop is not None:
            loop.cancel()
        if wait_s is not None and self._accounts.get(account.key) is account:
            self._loops[account.key] = tasks.supervised(
                f"keeping the credential of {account.key}", lambda: self._keep(account, wait_s)
            )

    async def _keep(self, account: AccountCredential, wait_s: float | None) -> None:
        while wait_s is not None:
            await self._wait(account, wait_s)
            async with account.lock:
                wait_s = await account.renew()

    async def _wait(self, account: AccountCredential, wait_s: float) -> None:
        """Sleep *wait_s* seconds, by the clock that runs faster; see LONGEST_SLEEP_S."""
        until = self._wall_clock() + wait_s
        while wait_s > 0 and self._wall_clock() < until:
            step_s = min(wait_s, LONGEST_SLEEP_S, account.ends_in_s())
            await self._sleep(step_s)
            wait_s -= step_s
            account.drop_expired()
