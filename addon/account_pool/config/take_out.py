"""Takes an account out of accounts.yaml; everything else in it stays as it is.

The counterpart of `edit.py`, and done alike: the parser says where the text of the entry
is, and the result is checked before it takes the place of the file.
"""

from __future__ import annotations

import stat
from pathlib import Path

from account_pool.config.accounts_file import trust_store
from account_pool.config.replace import CannotEdit, back_up, sync, write_beside
from account_pool.config.text import (
    NotYaml,
    account_keys,
    compose,
    end_of,
    end_of_line,
    entries_of,
    key_of,
    read,
    section_of,
)
from account_pool.config.trust import kept
from account_pool.config.yaml_nodes import Collection, Node
from account_pool.core.account import AccountKey


class LastAccount(CannotEdit):
    """The file would have no account left, which is a mistake."""


def take_out(path: Path, key: AccountKey) -> bool:
    """Take the entry of *key* out of *path*, a copy of which is kept; say if it was there.

    Raises CannotEdit, for the last account LastAccount.
    """
    with kept(path.absolute(), trust_store()):
        return _take_out(path.resolve(), key)


def _take_out(path: Path, key: AccountKey) -> bool:
    text = read(path)
    entries = entries_of(compose(text))
    found = [number for number, entry in enumerate(entries) if key_of(entry) == key]
    if not found:
        return False
    if len(entries) == 1:
        raise LastAccount(f"{key} is the last account of {path.name}")
    changed = _without(text, entries, found[0])
    if not _is_right(changed, account_keys(text) - {key}):
        raise CannotEdit(f"{path.name} cannot be edited by this command; remove {key} by hand")
    written = write_beside(path, changed, stat.S_IMODE(path.stat().st_mode))
    try:
        back_up(path)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
    sync(path.parent)
    return True


def _is_right(text: str, wanted: set[AccountKey]) -> bool:
    try:
        return account_keys(text) == wanted
    except NotYaml:
        return False


def _without(text: str, entries: list[Node], number: int) -> str:
    found = section_of(compose(text), "accounts")
    entry = entries[number]
    if found is not None and isinstance(found[1], Collection) and found[1].flow:
        if number + 1 < len(entries):
            after = entries[number + 1].start
            return text[: entry.start] + text[after:]
        return text[: entries[number - 1].end] + text[entry.end :]
    # The dash stands before the entry, mostly on the same line.
    dash = text.rfind("-", 0, entry.start)
    start = text.rfind("\n", 0, dash) + 1
    return text[:start] + text[end_of_line(text, end_of(entry)) + 1 :]
