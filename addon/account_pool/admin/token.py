"""The admin token: made once, kept in a file that only its owner may read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from account_pool.core.credential import Secret

#: The file, beside the state database.
TOKEN_FILE = "account-pool-admin-token"  # noqa: S105 - the name of the file
_BYTES = 32
#: Shorter ones were cut off while they were written, or were made up by somebody.
_MIN_CHARS = 32


class NoToken(Exception):
    """The token can be neither read nor made; the text says why and what to do."""


def admin_token(path: Path) -> Secret:
    """Return the token in *path*, made if it is not there. Raises NoToken. Blocks."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
        if os.name == "posix" and path.stat().st_mode & 0o077:
            path.chmod(0o600)
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise NoToken(f"the admin token {path} cannot be read or created ({why})") from None
    if len(token) < _MIN_CHARS or not token.isprintable():
        raise NoToken(f"{path} holds no admin token; remove it, and a new one is created")
    return Secret(token)


def new_token() -> Secret:
    """Return a token that is kept nowhere."""
    return Secret(secrets.token_urlsafe(_BYTES))


def _make(path: Path) -> None:
    """Write a new token unless there is one. Of two proxies that do, one wins."""
    if path.exists():
        return
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    number = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(number, "w", encoding="ascii") as file:
            file.write(new_token().reveal() + "\n")
        _put(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _put(beside: Path, path: Path) -> None:
    """Let *path* be what is in *beside*, whole, unless it is there by now."""
    try:
        # A link is not made over what is there. Not every file system has links.
        os.link(beside, path)
    except FileExistsError:
        return
    except OSError:
        beside.replace(path)
