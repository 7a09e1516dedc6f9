"""The application that Gemini CLI logs in with, as it stands in the user's own copy of it.

Google refreshes a login only for the application that it was made with, by id and secret. That
secret is the vendor's and is in every copy of the tool: it is read there, not repeated here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from account_pool.credentials.errors import CredentialError

#: As npm names it, and its folder.
_PACKAGE = "@google/gemini-cli"
_CLIENT = re.compile(rb"\d{6,20}-[0-9a-z]{10,60}\.apps\.googleusercontent\.com")
_CLIENT_SECRET = re.compile(rb"GOCSPX-[\w-]{20,60}")
#: How far behind the id the secret may stand, bytes.
_NEAR = 400


def find(program: str, client_id: str | None) -> dict[str, str]:
    """Return client_id and client_secret of the Gemini CLI at *program*.

    *client_id* is the one that the login names; None if it names none. Raises CredentialError.
    """
    for text in _scripts(program):
        for found in _CLIENT.finditer(text):
            secret = _CLIENT_SECRET.search(text, found.end(), found.end() + _NEAR)
            name = found.group().decode()
            if secret is not None and client_id in (None, name):
                return {"client_id": name, "client_secret": secret.group().decode()}
    raise CredentialError(
        "the application that gemini logs in with is not found in it, and Google refreshes a "
        "login for that alone",
        "let gemini keep its login fresh: account-pool login --from gemini",
    )


def has_home_of_its_own(program: str) -> bool:
    """Say whether the Gemini CLI at *program* heeds GEMINI_CLI_HOME, as newer ones do."""
    return any(b"GEMINI_CLI_HOME" in text for text in _scripts(program))


def _scripts(program: str) -> Iterator[bytes]:
    """Yield the scripts of the Gemini CLI at *program*."""
    start = Path(program)
    package = start.parent / "node_modules" / _PACKAGE
    # npm makes a link to the script, on Windows a script beside its folder.
    folder = package if package.is_dir() else start.resolve().parent
    for file in sorted(folder.rglob("*.js")):
        with suppress(OSError):
            yield file.read_bytes()
