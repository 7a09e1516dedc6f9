"""What the admin pages, and the command that adds an account, do with the running addon."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from mitmproxy import ctx

from account_pool import config
from account_pool.admin.auth import TOKEN_FILE, Rules
from account_pool.admin.http import ApiError
from account_pool.admin.views import Sums
from account_pool.core.account import AccountKey
from account_pool.providers.base import Provider
from account_pool.proxy import hosting
from account_pool.proxy.commands import RELOAD_ERRORS, Commands
from account_pool.proxy.persistence import Persistence
from account_pool.proxy.reload import Changes, SourceFile, Watcher


class AdminPages(Commands):
    """The part of the addon that has to do with them; inherited, as `Commands` is.

    Attributes:
        persistence: set by the addon.
    """

    persistence: Persistence | None

    def __init__(self) -> None:
        self._file = SourceFile(os.environ)
        self._added: hosting.AddedFile | None = None
        self._described: Mapping[str, Provider] = {}
        self._watcher: Watcher | None = None
        self._ready = False
        #: taken out by hand, and still written where we must not write
        self._left_out: set[AccountKey] = set()
        #: readings of the accounts that began, and the latest of those that are over
        self._readings = self._read = 0

    # -- what the addon does

    def _load(self) -> config.Config:
        """Read the accounts. Raises one of RELOAD_ERRORS."""
        raise NotImplementedError

    def _take_over(self, loaded: config.Config) -> Changes:
        """Serve by *loaded*. Raises one of RELOAD_ERRORS."""
        raise NotImplementedError

    def _shows_tokens(self) -> bool:
        """Return `pool_show_tokens`."""
        raise NotImplementedError

    # -- the life of it

    def _open_pages(self) -> None:
        """Let visitors in."""
        token = hosting.token_of(Path(ctx.options.confdir).expanduser() / TOKEN_FILE)
        hosting.open_admin_server(self.service, self._hands(), token)

    def _close_pages(self) -> None:
        if self._added is not None:
            self._added.close()

    def _with_added(self, loaded: config.Config, database: Path | None) -> config.Config:
        """Return *loaded* with the accounts that were added and are written elsewhere.

        *database* is the state database, None for none; it counts the first time.
        """
        if self._added is None:
            self._added = hosting.AddedFile(database)
        if self._added.known is None:
            return loaded
        return config.with_added(loaded, self._added.known, os.environ)

    def _hands(self) -> hosting.Hands:
        return hosting.Hands(
            main=lambda: self._file.target,
            added=lambda: cast(hosting.AddedFile, self._added),
            known=lambda: self._described,
            read_again=self._read_what_was_written,
            forget=self._leave_out,
            counted=self._counted,
            ready=lambda: self._ready,
            source=lambda: self._file.path,
            rules=lambda: Rules(
                remote=self.service.settings.remote,
                guarded=bool(getattr(ctx.options, "proxyauth", None)),
                reveal=self._shows_tokens(),
            ),
        )

    # -- changes

    def _add(self, entry: Mapping[str, object]) -> str:
        actions = hosting.actions_on(self.service, self._hands())
        key = actions.new_key(entry)
        where = actions.write(entry)
        number = self._begin_reading()
        self._take_over_written(self._load(), number)
        return f"{actions.added(key, where).key} was added ({where})"

    async def _read_what_was_written(self) -> None:
        """Take over what was written by hand. Raises ApiError."""
        number = self._begin_reading()
        try:
            self._take_over_written(await asyncio.to_thread(self._load), number)
        except RELOAD_ERRORS as e:
            if not self._is_newest(number):
                return
            raise ApiError(409, "not_taken", f"the accounts cannot be reloaded: {e}") from None

    def _take_over_written(self, loaded: config.Config, number: int) -> None:
        if not self._is_newest(number):
            return
        if self._watcher is not None:
            self._watcher.seen = self._file.read
        self._take_over(self._without_left_out(loaded))

    def _without_left_out(self, loaded: config.Config) -> config.Config:
        left = [e for e in loaded.accounts if e.account.key not in self._left_out]
        return replace(loaded, accounts=tuple(left))

    # -- the order of readings

    def _begin_reading(self) -> int:
        """Return the number of a reading that begins: files are read in threads, some slowly."""
        self._readings += 1
        return self._readings

    def _is_newest(self, number: int) -> bool:
        """Say whether no reading that began later than *number* is over: it holds more.

        Whoever asks is over.
        """
        if number < self._read:
            return False
        self._read = number
        return True

    def _leave_out(self, key: AccountKey) -> None:
        self._left_out.add(key)
        self._remove(key)

    async def _counted(self, name: str) -> Sums:
        return {} if self.persistence is None else await self.persistence.read_counts(name)
