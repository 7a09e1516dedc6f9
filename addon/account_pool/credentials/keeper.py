"""Holds the credentials of all accounts at run time and tells the pool when one changes.

It owns the tasks: a loop per account that must be read by a command, exchanged,
refreshed, looked at or tried again. What happens within one account is `held.py`. Lives
in one event loop; nothing here is called from another thread.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Collection, Iterable

from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential
from account_pool.credentials.code_assist import CodeAssist
from account_pool.credentials.entry import AccountEntry
from account_pool.credentials.held import Held, Publish
from account_pool.credentials.login import Refresher
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.placeholder import no_token_answer, token_answer
from account_pool.credentials.ways import Exchange, Ways
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

        *publish* is called in the loop's thread whenever something of it changes. A problem
        may be there beside credentials: a token that is still good and the reason why the
        next is not.
        """
        self._entries = {entry.account.key: entry for entry in entries}
        self._publish = publish
        self._ways = Ways(exchange=exchange, refresher=refresher, assist=assist)
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._chance = chance
        self._held: dict[AccountKey, Held] = {}
        self._loops: dict[AccountKey, asyncio.Task[None]] = {}
        self._sought_at: dict[str, float] = {}

    def start(self) -> None:
        """Publish what can be read at once; start the rest, all accounts in parallel.

        Call it in the event loop. Disabled accounts are not read.
        """
        self.update(self._entries.values())

    @property
    def ways(self) -> Ways:
        """How credentials are had, for accounts that come."""
        return self._ways

    def renewed(self, entries: Iterable[AccountEntry]) -> tuple[AccountKey, ...]:
        """Return which of *entries* lead to another credential than they did."""
        return tuple(
            entry.account.key
            for entry in entries
            if (known := self._entries.get(entry.account.key)) is not None
            and not _same_credential(known, entry)
        )

    def update(
        self,
        entries: Iterable[AccountEntry],
        ways: Ways | None = None,
        anew: Collection[AccountKey] = (),
    ) -> None:
        """Take over a changed list of accounts. Unchanged accounts keep their tokens.

        *ways*, if given, are those of accounts that come or change; *anew* are accounts
        that are begun anew although nothing about them changed.
        """
        self._ways = ways or self._ways
        self._entries = {entry.account.key: entry for entry in entries}
        for key in anew:
            self._forget(key)
        wanted = {key: entry for key, entry in self._entries.items() if entry.account.enabled}
        for key in self._held.keys() - wanted.keys():
            self._forget(key)
        order: dict[AccountKey, Held] = {}
        for key, entry in wanted.items():
            held = self._held.get(key)
            if held is not None and _same_credential(held.entry, entry):
                held.entry = entry
                order[key] = held
            else:
                self._forget(key)
                order[key] = self._add(entry)
        self._held = order

    def stop(self, by: float = 0.0) -> None:
        """Cancel everything. Nothing is published afterwards.

        A refresh that was asked for is still written to the store, by its thread, if its
        answer comes until *by*, seconds of `time.monotonic`.
        """
        if self._ways.refresher is not None:
            self._ways.refresher.stop(by)
        for key in list(self._held):
            self._forget(key)

    async def refresh(self, key: AccountKey, refused: Credential) -> bool | None:
        """Get another credential after the server refused *refused*.

        Returns whether the account now has one that differs, also when somebody else
        got it while we waited: there is one refresh at a time per account. None: it takes
        longer than a request should wait, and goes on, or is tried again.
        """
        held = self._held.get(key)
        if held is None:
            return False
        if held.under_way:
            return True if held.has_other_than(refused) else None
        async with held.lock:
            if held.has_other_than(refused):
                return True
            if self._held.get(key) is not held:
                return False
            if held.under_way:
                return None
            if refused.kind != "copilot":
                held.refuse(refused.secret)
            wait_s = await held.renew()
            self._restart(held, wait_s)
            return True if held.has_other_than(refused) else None if held.comes else False

    @property
    def is_refreshing(self) -> bool:
        """Whether a login is being refreshed: its refresh token serves once."""
        return any(
            held.lock.locked() and isinstance(held.entry.source, OAuthSource)
            for held in self._held.values()
        )

    def seek(self, provider: str) -> bool:
        """Nobody of *provider* can serve: look at once for what could not be read.

        Returns whether an account has a credential now that had none. Call it in the loop.
        """
        now = self._wall_clock()
        # A clock that was set back is no reason to wait for it.
        if 0 <= now - self._sought_at.get(provider, -math.inf) < SEEK_S:
            return False
        self._sought_at[provider] = now
        lacking = [h for h in self._held.values() if h.key.provider == provider and h.unreadable]
        # Each of them is read, whatever the first says.
        return sum(self._look(held, now) for held in lacking) > 0

    def _look(self, held: Held, now: float) -> bool:
        """Read the source of *held* again; return whether it had a credential at once."""
        if held.lock.locked():
            return False  # it is being looked for
        if held.takes_time and 0 <= now - held.looked_at < SLOW_SEEK_S:
            return False
        self._restart(held, held.read_now())
        return bool(held.credentials)

    async def first_try(self, provider: str) -> None:
        """Wait until every account of *provider* has been tried once.

        For a client that asks for its token right after the start; bound the wait.
        """
        for held in list(self._held.values()):
            if held.key.provider == provider and held.key in self._loops:
                await held.tried.wait()

    def exchange_answer(self, wall_now: float, provider: str = "copilot") -> LocalAnswer:
        """Answer a client's own token exchange, without any real token in it.

        *wall_now* is in seconds since the epoch. 503 while no account has a token.
        """
        for held in self._held.values():
            if held.key.provider == provider:
                held.drop_expired()
                if held.for_clients:
                    return token_answer(held.for_clients, wall_now)
        message = f"account-pool: no account of {provider} has a Copilot token; see the proxy's log"
        return no_token_answer(message, NO_TOKEN_RETRY_S)

    def _add(self, entry: AccountEntry) -> Held:
        held = Held(entry, self._publish, self._ways, self._wall_clock, self._chance)
        self._held[held.key] = held
        self._restart(held, held.read_now())
        return held

    def _forget(self, key: AccountKey) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            held.close()
        loop = self._loops.pop(key, None)
        if loop is not None:
            loop.cancel()

    def _restart(self, held: Held, wait_s: float | None) -> None:
        """Let the account's loop begin anew with a wait, in seconds; None ends it."""
        loop = self._loops.pop(held.key, None)
        if loop is not None:
            loop.cancel()
        if wait_s is not None and self._held.get(held.key) is held:
            self._loops[held.key] = tasks.supervised(
                f"keeping the credential of {held.key}", lambda: self._keep(held, wait_s)
            )

    async def _keep(self, held: Held, wait_s: float | None) -> None:
        while wait_s is not None:
            await self._wait(held, wait_s)
            async with held.lock:
                wait_s = await held.renew()

    async def _wait(self, held: Held, wait_s: float) -> None:
        """Sleep *wait_s* seconds, by the clock that runs faster; see LONGEST_SLEEP_S."""
        until = self._wall_clock() + wait_s
        while wait_s > 0 and self._wall_clock() < until:
            step_s = min(wait_s, LONGEST_SLEEP_S, held.ends_in_s())
            await self._sleep(step_s)
            wait_s -= step_s
            held.drop_expired()


def _same_credential(one: AccountEntry, other: AccountEntry) -> bool:
    """Say whether both entries lead to the same credential and companions."""
    return (
        one.source == other.source
        and one.account.account_type == other.account.account_type
        and one.account.companions == other.account.companions
    )
