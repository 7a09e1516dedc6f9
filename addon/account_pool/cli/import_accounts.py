"""`account-pool import`: the accounts of another program, shown first and then written.

Nothing of the other program is changed. A key is copied. A login works for one program only, so
it is copied where the user says that the other one is stopped for good. Shows names, no secret.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from account_pool.cli.accounts import accounts_of
from account_pool.cli.import_formats import Contents, recognise
from account_pool.cli.import_items import Found, Left
from account_pool.cli.output import Failed, fail, note, show, show_json
from account_pool.config.accounts_file import shown
from account_pool.config.edit import Entry, add_accounts, require_editable
from account_pool.config.problems import CannotEdit
from account_pool.config.review import twin
from account_pool.core.account import AccountKey, normalise_label
from account_pool.credentials.sources import AccountEntry
from account_pool.filesystem import named_path
from account_pool.providers.token_forms import hidden

#: A file of accounts is small; a folder of them has one each.
_MAX_BYTES, _MAX_FILES = 16 * 1024 * 1024, 2000
_SQLITE = b"SQLite format 3\0"
_KNOWN = (
    "the auth folder or config.yaml of CLIProxyAPI, an export or the folder of claude-swap, "
    "teamclaude.json, LiteLLM's config.yaml, better-ccflare's database"
)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes of the contents.

    Attributes:
        taken: the accounts to be written, and the provider that each needs; hold secrets.
        logins: which of them are logins.
        left: what stays behind.
    """

    taken: list[tuple[Entry, tuple[str, Entry] | None]]
    logins: list[AccountKey]
    left: list[Left]

    @property
    def keys(self) -> list[AccountKey]:
        return [AccountKey(entry["provider"], entry["label"]) for entry, _ in self.taken]


def import_accounts(
    source: Path,
    path: Path,
    environ: Mapping[str, str],
    *,
    take_over: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Show the accounts in *source*, and write them to *path*. Returns the exit code.

    With *take_over* logins too: the other program is stopped for good.
    """
    try:
        contents = _contents(named_path(source))
        plan = _plan(contents, path, environ, take_over=take_over)
        written = False
        if not as_json:
            _show(contents, plan, path)
        if plan.taken and not dry_run and _agrees(contents, plan, yes=yes, can_ask=not as_json):
            backup = add_accounts(path, plan.taken, environ)
            written = True
            if backup is not None:
                note(f"the previous file is kept as {shown(backup)}")
    except KeyboardInterrupt:
        return fail("interrupted; nothing was written", 130)
    except ValueError as error:
        return fail(error)
    except OSError as error:
        return fail(f"{error.filename or source}: {error.strerror or error}")
    if as_json:
        show_json(_as_json(contents, plan, path, written=written))
    elif written:
        print(f"written to {shown(path)}; a proxy that runs reads it again by itself")
        if plan.logins:
            print(
                f"{contents.program} must not be started again with the logins that were imported"
            )
    elif plan.taken:
        print("nothing was written")
    return 0 if plan.taken else fail(f"nothing of {contents.program} can be imported", 1)


# -- what is there


def _contents(source: Path) -> Contents:
    """Return what *source* holds. Raises Failed, OSError."""
    left: list[Left] = []
    if source.is_dir():
        files = sorted(_files(source))
        parsed = {file.name: _parsed(file) for file in files[:_MAX_FILES]}
        documents = {name: one for name, one in parsed.items() if one is not None}
        unknown = (name for name in parsed if name not in documents)
        left = [Left(hidden(name), "what is in it cannot be read") for name in unknown]
        if more := len(files[_MAX_FILES:]):
            left.append(Left(f"{more:,} more files", f"the first {_MAX_FILES:,} are read"))
    else:
        documents = {source.name: _parsed(source)}
    contents = recognise(documents)
    if contents is None:
        raise Failed(f"{shown(source)} is nothing that is known here: it may be {_KNOWN}")
    return Contents(contents.program, (*contents.items, *left))


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of *folder* that may hold accounts."""
    for pattern in ("*.json", "credentials/.creds-*.enc"):
        yield from (file for file in folder.glob(pattern) if file.is_file())


def _parsed(file: Path) -> Any:
    """Return what *file* holds, None where it cannot be parsed. Raises Failed, OSError."""
    with file.open("rb") as opened:
        # A pipe or a device has no size, and may have no end.
        content = opened.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise Failed(f"{shown(file)} is larger than 16 MiB")
    if content.startswith(_SQLITE):
        return _rows(file)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    if file.suffix == ".enc":
        return text.strip()
    for parse in (json.loads, _yaml):
        # What they raise quotes the file.
        try:
            return parse(text)
        except (ValueError, RecursionError):
            continue
    return None


def _yaml(text: str) -> Any:
    import yaml  # noqa: PLC0415 - some formats need none of it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError from None


def _rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of the table `accounts` of a database, which is only read."""
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute("SELECT * FROM accounts")]
    except sqlite3.Error as error:
        raise Failed(
            f"{shown(file)} has no table of accounts that can be read ({type(error).__name__})"
        ) from None


# -- what becomes of it


def _plan(contents: Contents, path: Path, environ: Mapping[str, str], *, take_over: bool) -> _Plan:
    plan = _Plan([], [], [])
    known: list[AccountEntry] = list(accounts_of(path, environ))
    for item in contents.items:
        if isinstance(item, Left):
            plan.left.append(item)
            continue
        name = hidden(f"{item.provider}/{item.label}")
        if item.is_login and not take_over:
            why = f"a login works for one program: --take-over, once {contents.program} is stopped"
            plan.left.append(Left(name, f"{why} for good"))
            continue
        try:
            new, entry, provider = _entry(item, path, environ, {one.account.key for one in known})
        except (CannotEdit, ValueError) as error:
            plan.left.append(Left(name, str(error)))
            continue
        if other := twin(new, known):
            plan.left.append(Left(name, f"it is {other}"))
            continue
        known.append(new)
        plan.taken.append((entry, provider))
        if item.is_login:
            plan.logins.append(new.account.key)
    return plan


def _entry(
    item: Found, path: Path, environ: Mapping[str, str], taken: set[AccountKey]
) -> tuple[AccountEntry, Entry, tuple[str, Entry] | None]:
    """Return *item* under a label that is free: as it would be read, and as it is written.

    Raises CannotEdit, ValueError.
    """
    wanted, number = normalise_label(item.label), 1
    key = AccountKey(item.provider, wanted)
    while key in taken:
        number += 1
        key = AccountKey(item.provider, f"{wanted}-{number}")
    entry = {"provider": item.provider, "label": key.label, **item.written}
    provider = None if item.definition is None else (item.provider, item.definition)
    config = require_editable(path, entry, environ, provider=provider)
    new = next((one for one in config.accounts if one.account.key == key), None)
    if new is None:
        raise CannotEdit(f"{path.name} has mistakes; see account-pool check")
    return new, entry, provider


# -- what is said


def _show(contents: Contents, plan: _Plan, path: Path) -> None:
    print(f"{contents.program}: {len(plan.taken)} to {shown(path)}, {len(plan.left)} left behind")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for (entry, provider), key in zip(plan.taken, plan.keys, strict=True):
        table.add_row(f"+ {key}", _how(entry, provider, is_login=key in plan.logins))
    for left in plan.left:
        table.add_row(f"- {left.what}", left.why)
    show(table)


def _how(entry: Entry, provider: tuple[str, Entry] | None, *, is_login: bool) -> str:
    token = entry["token"]
    words = "a login, refreshed by the pool from now on" if is_login else "its key is copied"
    if isinstance(token, Mapping) and not is_login:
        kind, where = next(iter(token.items()))
        words = f"its key stays in the {'variable' if kind == 'env' else 'file'} {hidden(where)}"
    if provider is not None:
        words += f"; provider {provider[0]} at {', '.join(provider[1]['hosts'])}"
    return words + ("; disabled, as there" if entry.get("enabled") is False else "")


def _agrees(contents: Contents, plan: _Plan, *, yes: bool, can_ask: bool) -> bool:
    """Return whether the user wants it written."""
    if plan.logins:
        note(
            f"{contents.program} must be stopped for good first: a refresh token works only once, "
            "so whichever of two programs uses one second is logged out"
        )
    if yes:
        return True
    if not (can_ask and sys.stdin.isatty()):
        note("--yes writes them")
        return False
    try:
        return input("Write them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _as_json(contents: Contents, plan: _Plan, path: Path, *, written: bool) -> dict[str, Any]:
    """Return the plan for `--json`, without a secret."""
    accounts = [
        {"key": str(key), "kind": "login" if key in plan.logins else "key"} for key in plan.keys
    ]
    return {
        "program": contents.program,
        "file": str(path),
        "accounts": accounts,
        "left": [{"what": one.what, "why": one.why} for one in plan.left],
        "written": written,
    }
