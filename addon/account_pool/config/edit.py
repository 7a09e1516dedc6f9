"""Adds an account to accounts.yaml without touching anything else in it.

The parser says where the text of the new entry belongs; what its owner wrote, comments
and order included, stays as it is to the byte. The result is read as the proxy would
before it takes the place of the file, in one step and with a copy of what was there.
"""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import CollectionNode, MappingNode, ScalarNode, SequenceNode

from account_pool.config import load
from account_pool.config.problems import ConfigError, Problem
from account_pool.config.replace import CannotEdit, back_up, sync, write_beside
from account_pool.config.text import (
    NotYaml,
    account_keys,
    compose,
    end_of,
    end_of_line,
    read,
    section_of,
)
from account_pool.core.account import AccountKey, normalise_label
from account_pool.providers.base import Provider

Entry = Mapping[str, Any]


class WrongAccount(CannotEdit):
    """The account cannot be taken; the file is as it should be."""


def add_account(
    path: Path,
    account: Entry,
    environ: Mapping[str, str],
    *,
    provider: tuple[str, Entry] | None = None,
    private: bool = False,
    known: Mapping[str, Provider] | None = None,
) -> Path | None:
    """Add *account* at the end of the accounts in *path*; return the copy of the old file.

    Args:
        account: one entry; provider and label are required.
        provider: name and definition of a provider to add, unless it is there.
        private: make the file readable by its owner only: it holds tokens now.
        known: providers there are without *path*; default: the built-in ones.

    None when there was no file; it is made then. Raises CannotEdit; WrongAccount where
    it is the account that cannot be taken.
    """
    path = path.resolve()
    with _edited(path, account, environ, provider, private=private, known=known) as written:
        backup = back_up(path)
        written.replace(path)
    sync(path.parent)
    return backup


def require_editable(
    path: Path,
    account: Entry,
    environ: Mapping[str, str],
    *,
    provider: tuple[str, Entry] | None = None,
) -> None:
    """Raise CannotEdit where `add_account` would; the file stays as it is."""
    with _edited(path.resolve(), account, environ, provider, private=True, known=None):
        pass


@contextmanager
def _edited(
    path: Path,
    account: Entry,
    environ: Mapping[str, str],
    provider: tuple[str, Entry] | None,
    *,
    private: bool,
    known: Mapping[str, Provider] | None,
) -> Iterator[Path]:
    """Write the new file beside *path* and check it; it goes unless it is moved."""
    before = problems_of(path, environ, known) if path.exists() else ()
    text = read(path)
    key = AccountKey(account["provider"], normalise_label(account["label"]))
    if key in account_keys(text):
        raise WrongAccount(f"{path.name} has an account {key} already; choose another --label")
    try:
        changed = text
        if provider is not None:
            changed = _with_provider(changed, *provider)
        changed = _with_account(changed, account)
        found = key in account_keys(changed)
    except NotYaml:
        found = False
    if not found:
        raise CannotEdit(f"{path.name} cannot be edited by this command; add the account by hand")
    mode = 0o600 if private or not path.exists() else stat.S_IMODE(path.stat().st_mode)
    written = write_beside(path, changed, mode)
    try:
        _check(written, path, key, before, problems_of(written, environ, known))
        yield written
    finally:
        written.unlink(missing_ok=True)


def problems_of(
    path: Path, environ: Mapping[str, str], known: Mapping[str, Provider] | None
) -> tuple[Problem, ...]:
    """Return what is wrong with *path*."""
    try:
        load(path, environ, known)
    except ConfigError as error:
        return error.problems
    return ()


# -- what is added


def _with_account(text: str, account: Entry) -> str:
    return _with(text, "accounts", [account], json.dumps(account))


def _with_provider(text: str, name: str, definition: Entry) -> str:
    found = section_of(compose(text), "providers")
    pairs = found[1].value if found and isinstance(found[1], MappingNode) else ()
    if any(key.value == name for key, _ in pairs):
        return text
    bare = f"{json.dumps(name)}: {json.dumps(definition)}"
    return _with(text, "providers", {name: definition}, bare)


def _with(text: str, section: str, entry: list[Any] | dict[str, Any], in_brackets: str) -> str:
    """Return *text* with *entry* at the end of *section*, whose kind is that of *entry*."""
    found = section_of(compose(text), section)
    if found is None:
        return _appended(text, _block({section: entry}))
    key, value = found
    if isinstance(value, ScalarNode) and not value.value:
        return _inserted(text, end_of_line(text, key.end_mark.index), _block(entry, 2))
    kind = SequenceNode if isinstance(entry, list) else MappingNode
    if not isinstance(value, kind):
        what = "list" if isinstance(entry, list) else "mapping"
        raise CannotEdit(f"{section} is not a {what}; see account-pool check")
    if value.flow_style:
        return _in_brackets(text, value, in_brackets)
    end = end_of_line(text, end_of(value))
    return _inserted(text, end, _block(entry, value.start_mark.column))


def _inserted(text: str, index: int, lines: str) -> str:
    return f"{text[:index]}\n{lines.rstrip()}{text[index:] or chr(10)}"


def _appended(text: str, lines: str) -> str:
    return f"{text.rstrip()}\n\n{lines}" if text.strip() else lines


def _in_brackets(text: str, node: CollectionNode, entry: str) -> str:
    """Return *text* with *entry* behind the last item of a [...] or {...}."""
    if not node.value:
        at = node.start_mark.index + 1
        return text[:at] + entry + text[at:]
    last = node.value[-1]
    at = (last[1] if isinstance(last, tuple) else last).end_mark.index
    return f"{text[:at]}, {entry}{text[at:]}"


def _block(value: Any, indent: int = 0) -> str:
    """Return *value* as YAML in block style, *indent* columns to the right."""
    yaml = YAML()
    yaml.default_flow_style = False
    if isinstance(value, dict):
        yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 10_000  # a token is never folded
    out = io.StringIO()
    yaml.dump(value, out)
    margin = " " * indent
    return "".join(margin + line for line in out.getvalue().splitlines(keepends=True))


# -- is it right?


def _check(
    written: Path,
    path: Path,
    key: AccountKey,
    before: Iterable[Problem],
    after: Iterable[Problem],
) -> None:
    """Raise WrongAccount if the new file has a mistake that the old one had not."""
    known = {(problem.key, problem.wrong) for problem in before}
    new = [problem for problem in after if (problem.key, problem.wrong) not in known]
    if new:
        why = f"{new[0].key}: {new[0].wrong}; {new[0].remedy}".removeprefix(": ")
        raise WrongAccount(f"{key} was not added to {path.name}: {why}")
