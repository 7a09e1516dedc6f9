"""What a shell offers where an account is asked for: `account-pool completion`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from account_pool.cli import api
from account_pool.cli.places import DEFAULT_PORT
from account_pool.config.accounts_file import find, load_found


def accounts(incomplete: str) -> Iterator[str]:
    """Yield the accounts that begin with *incomplete*: those of the proxy, else of the file."""
    # A prompt is no place for errors.
    with suppress(Exception):
        yield from (key for key in _accounts() if key.startswith(incomplete.lower()))


def _accounts() -> list[str]:
    try:
        return [str(one["key"]) for one in api.accounts(DEFAULT_PORT)["accounts"]]
    except api.NoAnswer:
        loaded = load_found(find("", "", os.environ), os.environ)
        return [str(entry.account.key) for entry in loaded.accounts]
