"""`account-pool add`: an account with a key, written down where the pool finds it.

The key comes from a prompt that does not show it, from standard input where that is no
terminal, or stays where it is: in a variable or a file. It is never an argument, which
other users of the machine could see.
"""

from __future__ import annotations

import contextlib
import getpass
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from account_pool.cli.output import fail, note, warn
from account_pool.config.accounts_file import command, shown
from account_pool.config.edit import Entry, add_account, require_editable
from account_pool.config.loader import load
from account_pool.config.problems import ConfigError
from account_pool.config.replace import CannotEdit
from account_pool.config.review import review
from account_pool.core.account import AccountKey, normalise_label
from account_pool.core.credential import Secret
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.sources import literal, usable

#: Far more than any key has.
_MAX_KEY_CHARS = 64 * 1024
#: Stands for the key while it is checked whether the account can be added.
_NO_KEY = "not-yet"
#: Providers whose accounts are logins that end within hours, and the tool that has them.
_LOGINS: Mapping[str, str] = {"codex": "codex", "gemini-cli": "gemini"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AddOptions:
    """What the user asked for.

    Attributes:
        env: the variable that holds the key; None: it is stored.
        file, pointer: the file that holds it, and where in its JSON.
        host: of accounts that have one each (azure).
    """

    provider: str
    label: str
    env: str | None = None
    file: Path | None = None
    pointer: str | None = None
    host: str | None = None

    def entry(self) -> dict[str, Any]:
        """Return it as an entry of accounts.yaml, but for the token."""
        entry = {"provider": self.provider, "label": self.label}
        return entry | {"host": self.host} if self.host else entry

    def source(self) -> dict[str, str] | None:
        """Return where the key stays, None where it is to be stored."""
        if self.env is not None:
            return {"env": self.env}
        if self.file is None:
            return None
        source = {"file": shown(self.file.expanduser().absolute())}
        return source | {"pointer": self.pointer} if self.pointer else source


def add_key(options: AddOptions, path: Path, environ: Mapping[str, str]) -> int:
    """Add an account to *path*, asking for its key. Returns the exit code."""
    try:
        key = AccountKey(options.provider, normalise_label(options.label))
        if tool := _LOGINS.get(key.provider):
            raise CannotEdit(
                f"accounts of {key.provider} are logins: {command()} login --from {tool}"
            )
        source = options.source()
        if source is None:
            # Before the user looks for a key that could not be stored.
            require_editable(path, {**options.entry(), "token": _NO_KEY}, environ)
        token = source or literal(_ask(key))
        write(path, {**options.entry(), "token": token}, environ, private=source is None)
    except (CredentialError, CannotEdit, ValueError) as error:
        return fail(error)
    print(f"added {key} to {shown(path)}")
    _review(path, key, environ)
    return 0


def write(path: Path, account: Entry, environ: Mapping[str, str], **settings: Any) -> None:
    """Add *account* to *path*, as `edit.add_account` does, and say what else there is to know."""
    backup = add_account(path, account, environ, **settings)
    if backup is not None:
        print(f"the previous file is kept as {shown(backup)}")
    if settings.get("private") and path.absolute().parent == Path.cwd():
        note(f"{path.name} in this directory holds a credential: keep it out of version control")


def _review(path: Path, key: AccountKey, environ: Mapping[str, str]) -> None:
    """Say what looks wrong with the new account *key*, and stops nothing."""
    with contextlib.suppress(ConfigError):
        found = review(load(path, environ), wall_now=time.time())
        warn(*(one for one in (*found.notices, *found.unreadable) if one.key == str(key)))


def _ask(key: AccountKey) -> Secret:
    """Return the key the user types in or pipes. Raises CredentialError."""
    if sys.stdin.isatty():
        text = getpass.getpass(f"Key of {key} (it is not shown): ")
    else:
        text = sys.stdin.read(_MAX_KEY_CHARS)
    return usable(text, "the key")
