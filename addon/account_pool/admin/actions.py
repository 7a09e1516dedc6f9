"""What a person may change, through the admin API or a command.

An added account is written to a file first, then the proxy reads its accounts again, as it
does after somebody has edited the file: both ways have the same result.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from account_pool.admin.accounts_files import AccountsFiles
from account_pool.admin.errors import ApiError
from account_pool.admin.service import PoolService
from account_pool.config.edit import WrongAccount
from account_pool.config.replace import CannotEdit
from account_pool.core.account import AccountKey, normalise_label
from account_pool.core.cooldown import BY_HAND, Cooldown
from account_pool.core.decisions import By
from account_pool.core.errors import UnknownAccount
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.state import AccountState
from account_pool.providers.base import Provider

Entry = Mapping[str, Any]

#: A file is read, changed and written: by one thread at a time, that of a command included.
_WRITING = threading.Lock()
_BY_HAND = Outcome(cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.ACCOUNT, signal=BY_HAND)


@dataclass(slots=True, eq=False)
class Actions:
    """Changes the pool of *service*.

    Attributes:
        service: what the pool belongs to.
        files: returns the files that accounts are written to.
        known: returns the providers an account may have.
        read_again: reads the accounts again and applies them. Raises ValueError, or what
            reading them raises, with a text for people.
        forget: removes an account from the running pool.
    """

    service: PoolService
    files: Callable[[], AccountsFiles]
    known: Callable[[], Mapping[str, Provider]]
    read_again: Callable[[], Awaitable[object]]
    forget: Callable[[AccountKey], object]
    _one_by_one: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def add(self, entry: Entry) -> tuple[AccountState, str]:
        """Add the account that *entry* describes; return it and the name of its file.

        *entry* has the keys of accounts.yaml. Raises ApiError.
        """
        async with self._one_by_one:
            key = self.new_key(entry)
            where = await asyncio.to_thread(self.write, entry)
            await self.read_again()
        return self.added(key, where), where

    async def remove(self, provider: str, label: str) -> tuple[AccountKey, str | None]:
        """Remove an account from the pool and its file; return its key and the file's name.

        The name is None if no file that may be changed has it: the account returns with the
        next start. Raises ApiError.
        """
        key = self.get(provider, label).key
        async with self._one_by_one:
            where = await asyncio.to_thread(self.take_out, key)
            if where is not None:
                await self.read_again()
            if self._find(key) is not None:
                self.forget(key)
        return key, where

    def next(self, provider: str) -> AccountKey | None:
        """Skip the account that would serve next; return the one that serves instead."""
        return self.service.pool.next(self.provider(provider), now=self.service.now())

    def clear_cooldown(self, provider: str, label: str) -> tuple[AccountState, list[Cooldown]]:
        """End every cooldown and disabling of an account; return it and what ended."""
        state = self.get(provider, label)
        return state, self.service.pool.clear_cooldown(state.key, now=self.service.now())

    def disable(self, provider: str, label: str) -> AccountState:
        """Disable an account until somebody enables it, across restarts too. Raises ApiError."""
        state = self.get(provider, label)
        self.service.pool.mark_failure(state.key, _BY_HAND, now=self.service.now(), by=By.HAND)
        return state

    def enable(self, provider: str, label: str) -> AccountState:
        """Use a disabled or benched account again, whatever the reason; its limits stay.

        Raises ApiError.
        """
        state = self.get(provider, label)
        if not state.account.enabled:
            raise ApiError(409, "off", "accounts.yaml says `enabled: false`; change it there")
        self.service.pool.enable(state.key, now=self.service.now())
        return state

    def close_session(self, key: str) -> None:
        """Forget a session: its next request goes to the account that the strategy selects.

        Raises ApiError.
        """
        if not self.service.sessions.close_session(key):
            raise ApiError(404, "unknown_session", "there is no such session")

    # -- the steps of an addition

    def new_key(self, entry: Entry) -> AccountKey:
        """Return the key that the account of *entry* will have. Raises ApiError if it is taken."""
        key = self._named(entry["provider"], entry["label"])
        if self._find(key) is not None:
            raise ApiError(409, "exists", "this provider already has an account of that label")
        return key

    def write(self, entry: Entry) -> str:
        """Write *entry* down and return where. Blocks. Raises ApiError."""
        try:
            with _WRITING:
                return self.files().add(entry, self.known())
        except WrongAccount as e:
            raise ApiError(422, "invalid_account", str(e)) from None
        except CannotEdit as e:
            raise ApiError(409, "cannot_write", str(e)) from None

    def take_out(self, key: AccountKey) -> str | None:
        """Take *key* out of where it is written, and return where that was. Blocks."""
        with _WRITING:
            return self.files().remove(key)

    def added(self, key: AccountKey, where: str) -> AccountState:
        """Return the account *key*, which is in the pool by now. Raises ApiError."""
        state = self._find(key)
        if state is None:
            raise ApiError(
                409, "not_taken", (f"it was written to {where}, but the pool did not load it")
            )
        return state

    # -- who is meant

    def get(self, provider: str, label: str) -> AccountState:
        """Return an account. Raises ApiError."""
        state = self._find(self._named(provider, label))
        if state is None:
            raise ApiError(404, "unknown_account", "the pool has no such account")
        return state

    def provider(self, name: str) -> str:
        """Return *name* in its normal spelling. Raises ApiError if it has no accounts."""
        provider = name.strip().lower()
        if provider not in self.service.pool.providers():
            raise ApiError(404, "unknown_provider", "the pool has no account of this provider")
        return provider

    def _named(self, provider: str, label: str) -> AccountKey:
        try:
            return AccountKey(provider.strip().lower(), normalise_label(label))
        except ValueError as e:
            raise ApiError(422, "invalid", f"label: {e}") from None

    def _find(self, key: AccountKey) -> AccountState | None:
        try:
            return self.service.pool.get(key)
        except UnknownAccount:
            return None
