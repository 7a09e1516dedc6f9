"""What a person may change, through the admin API or a command.

An added account is written to a file first, then the proxy reads its accounts again, as it
does after an edit of the file: both ways have the same result.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from account_pool.admin.http import ApiError
from account_pool.config.edit import LastAccount, WrongAccount, add_account, remove_account
from account_pool.config.problems import CannotEdit
from account_pool.core.account import AccountKey, normalise_label
from account_pool.core.cooldown import Cooldown
from account_pool.core.decision_history import DecisionsShown
from account_pool.core.decisions import By
from account_pool.core.errors import UnknownAccount
from account_pool.core.fleet import ProxyView
from account_pool.core.instruments import HeadroomHistory, Measured, RequestLog
from account_pool.core.outcome import BY_HAND, Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.prices import Prices
from account_pool.core.sessions import Pins, Sessions, session_key, session_of
from account_pool.core.state import AccountState
from account_pool.core.usage import Resets, Usages
from account_pool.providers.base import Provider
from account_pool.providers.sessions import known_as
from account_pool.store.store import StateStore


class LookUpService(Protocol):
    """What asks providers what accounts have left: `proxy.look_ups.HeadroomLookUps`."""

    @property
    def is_on(self) -> bool: ...
    def views(self) -> Mapping[AccountKey, Mapping[str, object]]: ...
    async def refresh(self, states: Iterable[AccountState]) -> list[AccountKey]: ...


class FleetService(Protocol):
    """The proxies that share the state: `proxy.fleet.Fleet`."""

    instance: str
    kind: str | None
    server: str

    @property
    def is_known(self) -> bool: ...
    def views(self) -> list[ProxyView]: ...


class SharedDecisions(Protocol):
    """Decisions of all proxies: `proxy.decision_log.SharedDecisions`."""

    def sync(self, store: StateStore) -> DecisionsShown: ...
    def own(self) -> DecisionsShown: ...


class PoolService(Protocol):
    """A running pool: `proxy.service.Service`, which says what each is."""

    look_ups: LookUpService
    pool: Pool
    sessions: Sessions
    pins: Pins
    measured: Measured
    usages: Usages
    resets: Resets
    ended: RequestLog
    prices: Callable[[], Prices]
    stopping: bool
    at_stop: list[Callable[[], object]]
    headroom_history: HeadroomHistory

    @property
    def fleet(self) -> FleetService: ...
    @property
    def decided(self) -> SharedDecisions: ...
    def now(self) -> float: ...
    def wall_now(self) -> float: ...
    def warnings(self) -> list[str]: ...
    def held(self) -> tuple[int, float]: ...
    def notify_targets(self) -> list[dict[str, str | None]]: ...
    def state_problem(self) -> str | None: ...


Entry = Mapping[str, Any]

#: A file is read, changed and written: by one thread at a time, that of a command included.
_WRITING = threading.Lock()
_BY_HAND = Outcome(cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.ACCOUNT, signal=BY_HAND)


@dataclass(slots=True, eq=False)
class Actions:
    """Changes the pool of *service*, by hand or, where it follows another worker, by that.

    Attributes:
        files, known: return where accounts are written, and the providers that one may have.
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

    def clear_cooldown(
        self, provider: str, label: str, by: By = By.HAND
    ) -> tuple[AccountState, list[Cooldown]]:
        """End every cooldown and disabling of an account; return it and what ended."""
        state = self.get(provider, label)
        accounts, now = self.service.pool.accounts, self.service.now()
        return state, accounts.clear_cooldown(state.key, now=now, by=by)

    def disable(self, provider: str, label: str, by: By = By.HAND) -> AccountState:
        """Disable an account until it is enabled, across restarts too. Raises ApiError."""
        state = self.get(provider, label)
        self.service.pool.health.mark_failure(state.key, _BY_HAND, now=self.service.now(), by=by)
        return state

    def enable(self, provider: str, label: str, by: By = By.HAND) -> AccountState:
        """Use a disabled or benched account again, whatever the reason; its limits stay.

        Raises ApiError.
        """
        state = self.get(provider, label)
        if not state.account.enabled:
            raise ApiError(409, "off", "accounts.yaml says `enabled: false`; change it there")
        self.service.pool.accounts.enable(state.key, now=self.service.now(), by=by)
        return state

    def close_session(self, key: str) -> None:
        """Forget a session: its next request goes to the account that the strategy selects.

        Also where it was pinned. Raises ApiError.
        """
        known, pins = self.service.sessions.close_session(key), self.service.pins
        for provider in self.service.pool.accounts.providers():
            session = session_of(key, provider)
            known |= session is not None and pins.unpin_session(provider, session)
        if not known:
            raise ApiError(404, "unknown_session", "there is no such session")

    def pin_session(
        self, provider: str, label: str, *, key: str = "", session: str = ""
    ) -> tuple[AccountState, str]:
        """Have one account alone serve a conversation; return it and the key of that.

        Args:
            key: as GET /sessions reports it.
            session: the client's own id of it, instead; it need not have begun.

        Raises ApiError.
        """
        state, now = self.get(provider, label), self.service.now()
        account = state.key
        if key:
            session = session_of(key, account.provider) or ""
            if not session or self.service.sessions.peek(key, now) is None:
                raise ApiError(404, "unknown_session", "this provider has no such session")
        session = known_as(session)
        self.service.pins.pin_session(account, session, self.service.wall_now())
        made = session_key(session, account.provider)
        self.service.sessions.bind(made, account, now)
        return state, made

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
                409, "not_taken", f"it was written to {where}, but the pool did not load it"
            )
        return state

    # -- who is meant

    def get(self, provider: str, label: str) -> AccountState:
        """Return an account. Raises ApiError."""
        state = self._find(self._named(provider, label))
        if state is None:
            raise ApiError(404, "unknown_account", "the pool has no such account")
        return state

    def some(self, provider: str | None, label: str | None) -> list[AccountState]:
        """Return one account, those of a provider, or all. Raises ApiError."""
        if provider is None:
            return list(self.service.pool.accounts)
        if label is None:
            return list(self.service.pool.accounts.of(self.provider(provider)))
        return [self.get(provider, label)]

    def provider(self, name: str) -> str:
        """Return *name* in its normal spelling. Raises ApiError if it has no accounts."""
        provider = name.strip().lower()
        if provider not in self.service.pool.accounts.providers():
            raise ApiError(404, "unknown_provider", "the pool has no account of this provider")
        return provider

    def _named(self, provider: str, label: str) -> AccountKey:
        try:
            return AccountKey(provider.strip().lower(), normalise_label(label))
        except ValueError as e:
            raise ApiError(422, "invalid", f"label: {e}") from None

    def _find(self, key: AccountKey) -> AccountState | None:
        try:
            return self.service.pool.accounts.get(key)
        except UnknownAccount:
            return None


# -- where added accounts are written down
#
# In accounts.yaml; where that is read-only or absent, in the file beside the state database
# (`accounts_file.with_added`). Writing a new accounts.yaml would hide the accounts of the
# environment. Everything below blocks; nothing below knows the pool.


@dataclass(frozen=True, slots=True)
class AccountsFiles:
    """The two files.

    Attributes:
        main: accounts.yaml, there or not.
        added: the file beside the state database.
        added_name: what it is called: `store`, or `memory` where it goes with the proxy.
        environ: where `{env: NAME}` is looked up.
    """

    main: Path
    added: Path
    added_name: str
    environ: Mapping[str, str]

    def add(self, entry: Mapping[str, Any], known: Mapping[str, Provider]) -> str:
        """Write *entry* down; return where: the name of accounts.yaml, or `added_name`.

        *known* are the providers there are. Raises CannotEdit; WrongAccount where the
        entry has a mistake.
        """
        if is_writable(self.main):
            try:
                add_account(self.main, entry, self.environ, private=_holds_secret(entry))
                return self.main.name
            except WrongAccount:
                raise
            except CannotEdit:
                pass  # a full directory, or a text that only a person can edit
        add_account(self.added, entry, self.environ, private=True, known=known)
        return self.added_name

    def remove(self, key: AccountKey) -> str | None:
        """Take *key* out of where it is written; return where, None if nowhere it can be."""
        removed = [
            name
            for path, name in ((self.main, self.main.name), (self.added, self.added_name))
            if is_writable(path) and self._took_out(path, key)
        ]
        return removed[0] if removed else None

    def _took_out(self, path: Path, key: AccountKey) -> bool:
        try:
            return remove_account(path, key)
        except LastAccount:
            if path == self.added:
                path.unlink()
            return path == self.added
        except CannotEdit:
            return False


def is_writable(path: Path) -> bool:
    """Say whether *path* is there and its owner means it to be changed."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    # A file of mode 0444 could be replaced where the directory allows it; that is not meant.
    meant = bool(mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    return meant and os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _holds_secret(entry: Mapping[str, Any]) -> bool:
    token = entry.get("token")
    return isinstance(token, str) or (isinstance(token, Mapping) and "oauth" in token)
