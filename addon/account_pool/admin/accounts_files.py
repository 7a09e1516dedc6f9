"""Where accounts are written down that were added by hand while the proxy runs.

In accounts.yaml; where that is read-only or absent, in the file beside the state database
(`config.with_added`). Writing a new accounts.yaml would hide the accounts of the
environment. Everything here blocks; nothing here knows the pool.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from account_pool.config.edit import LastAccount, WrongAccount, add_account, remove_account
from account_pool.config.replace import CannotEdit
from account_pool.core.account import AccountKey
from account_pool.providers.base import Provider


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
