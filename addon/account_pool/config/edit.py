"""Adds an account to accounts.yaml, or removes one; everything else in it stays as it is.

The parser says where the text of an entry is or belongs; what its owner wrote, comments and
order included, stays as it is to the byte. The result is checked before it takes the place
of the file, in one step and with a copy of what was there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from yaml.error import YAMLError

from account_pool.config import yaml_nodes
from account_pool.config.accounts_file import kept, trust_store
from account_pool.config.configuration import Config
from account_pool.config.document import MAX_BYTES
from account_pool.config.loader import load
from account_pool.config.problems import CannotEdit, ConfigError, Problem
from account_pool.config.yaml_nodes import Collection, Node, Refused, Scalar, read_plain
from account_pool.core.account import AccountKey, normalise_label
from account_pool.filesystem import NotAFile, TooLarge, opened_file, read_file, sync, write_beside
from account_pool.providers.base import Provider
from account_pool.providers.registry import BUILT_IN
from account_pool.providers.token_forms import hidden

Entry = Mapping[str, Any]


class WrongAccount(CannotEdit):
    """The account cannot be taken; the file is as it should be."""


class LastAccount(CannotEdit):
    """The file would have no account left, which is a mistake."""


class NotYaml(CannotEdit):
    """The text cannot be parsed."""


def add_account(
    path: Path,
    account: Entry,
    environ: Mapping[str, str],
    *,
    provider: tuple[str, Entry] | None = None,
    private: bool = False,
    known: Mapping[str, Provider] | None = None,
    renew: bool = False,
) -> Path | None:
    """Add *account* at the end of the accounts in *path*; return the copy of the old file.

    Args:
        account: one entry; provider and label are required.
        provider: name and definition of a provider to add, unless it is there.
        private: make the file readable by its owner only: it holds tokens now.
        known: providers there are without *path*; default: the built-in ones.
        renew: the account is there: it gets the token of *account*, and what belongs to it.

    None when there was no file; it is made then. Raises CannotEdit; WrongAccount where
    it is the account that cannot be taken.
    """
    with (
        kept(path.absolute(), trust_store()),
        _edited(
            _target(path),
            account,
            environ,
            provider,
            private=private,
            known=known,
            renew=renew,
        ) as new,
    ):
        return put_in_place(new, _target(path))


def add_accounts(
    path: Path,
    additions: Sequence[tuple[Entry, tuple[str, Entry] | None]],
    environ: Mapping[str, str],
) -> Path | None:
    """Add several accounts as `add_account` does, all of them or none.

    Each with the provider it needs, name and definition, or None. The file becomes readable by
    its owner only. Raises CannotEdit.
    """
    with kept(path.absolute(), trust_store()):
        path = _target(path)
        with _written_beside(path, read(path), 0o600) as draft:
            try:
                for account, provider in additions:
                    edited = _edited(draft, account, environ, provider, private=True, known=None)
                    with edited as new:
                        new.replace(draft)
                return put_in_place(draft, path)
            except CannotEdit as error:
                raise type(error)(str(error).replace(draft.name, path.name)) from None


def require_editable(
    path: Path,
    account: Entry,
    environ: Mapping[str, str],
    *,
    provider: tuple[str, Entry] | None = None,
    renew: bool = False,
) -> Config:
    """Return what the file would say after `add_account`; it stays as it is.

    Raises CannotEdit where that would.
    """
    with _edited(
        _target(path), account, environ, provider, private=True, known=None, renew=renew
    ) as new:
        try:
            return load(new, environ)
        except ConfigError:  # it was wrong before
            return Config((), BUILT_IN, {}, {}, None, BUILT_IN)


def remove_account(path: Path, key: AccountKey) -> bool:
    """Remove *key* from *path*, a copy of which is kept; return whether it was there.

    Raises CannotEdit, for the last account LastAccount.
    """
    with kept(path.absolute(), trust_store()):
        return _remove(_target(path), key)


@contextmanager
def _edited(
    path: Path,
    account: Entry,
    environ: Mapping[str, str],
    provider: tuple[str, Entry] | None,
    *,
    private: bool,
    known: Mapping[str, Provider] | None,
    renew: bool = False,
) -> Iterator[Path]:
    """Write the new file beside *path*, and check it."""
    text = read(path)
    before = problems_of(path, environ, known) if path.exists() else ()
    key = AccountKey(account["provider"], normalise_label(account["label"]))
    is_there = key in account_keys(text)
    if renew and not is_there:
        raise WrongAccount(f"{path.name} has no account {hidden(str(key))}")
    if is_there and not renew:
        raise WrongAccount(
            f"{path.name} already has an account {hidden(str(key))}; choose another label"
        )
    try:
        changed = text
        if provider is not None:
            changed = _with_provider(changed, *provider)
        if renew:
            changed = _with_token(changed, key, account)
        else:
            changed = _with(changed, "accounts", [account], json.dumps(account))
        found = key in account_keys(changed)
    except NotYaml:
        found = False
    if not found:
        raise CannotEdit(f"{path.name} cannot be edited by this command; add the account by hand")
    with _written_beside(path, changed, 0o600 if private else _mode(path)) as written:
        _check(written, path, key, before, problems_of(written, environ, known))
        yield written


@contextmanager
def _written_beside(path: Path, text: str, mode: int) -> Iterator[Path]:
    """Write *text* to a new file beside *path*; it is removed unless it was put in place.

    It is on the disk by then, and never readable by more than *mode* says. Raises CannotEdit.
    """
    with ExitStack() as stack:
        try:
            written = write_beside(path, text)
            stack.callback(written.unlink, missing_ok=True)
            written.chmod(mode)
        except OSError as error:
            raise CannotEdit(f"cannot write in {path.parent} ({error.strerror})") from None
        yield written


def put_in_place(new: Path, path: Path) -> Path | None:
    """Let *new* take the place of *path*; return the copy that is kept of the old file.

    Raises CannotEdit.
    """
    try:
        backup = back_up(path)
        new.replace(path)
        sync(path.parent)
    except OSError as error:
        # A file that is a mount point of its own, as in a container, cannot be replaced.
        busy = "; mount its directory, not the file" if error.errno == errno.EBUSY else ""
        raise CannotEdit(f"{path} cannot be replaced ({error.strerror}){busy}") from None
    return backup


def back_up(path: Path) -> Path | None:
    """Copy *path* to its name with .bak, for its owner's eyes only; None if it is not there."""
    if not path.exists():
        return None
    backup = path.with_name(path.name + ".bak")
    # It may be a pipe by now.
    with opened_file(path) as file:
        backup.unlink(missing_ok=True)
        backup.touch(mode=0o600)
        with backup.open("wb") as copy:
            shutil.copyfileobj(file, copy)
    return backup


def _mode(path: Path) -> int:
    """Return who may do what with the file *path*; its owner alone where it is not there."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0o600


def _target(path: Path) -> Path:
    """Return the file that *path* leads to: links stay. `Path.resolve` may raise RuntimeError."""
    return Path(os.path.realpath(path))


def problems_of(
    path: Path, environ: Mapping[str, str], known: Mapping[str, Provider] | None
) -> tuple[Problem, ...]:
    """Return what is wrong with *path*."""
    try:
        load(path, environ, known or BUILT_IN)
    except ConfigError as error:
        return error.problems
    return ()


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
        raise WrongAccount(f"{hidden(str(key))} was not added to {path.name}: {why}")


# -- what is added


def _with_provider(text: str, name: str, definition: Entry) -> str:
    found = section_of(compose(text), "providers")
    if found and isinstance(found[1], yaml_nodes.Mapping) and section_of(found[1], name):
        return text
    bare = f"{json.dumps(name)}: {json.dumps(definition)}"
    return _with(text, "providers", {name: definition}, bare)


def _with(text: str, section: str, entry: list[Any] | dict[str, Any], in_brackets: str) -> str:
    """Return *text* with *entry* at the end of *section*, a list or a mapping as *entry* is."""
    found = section_of(compose(text), section)
    if found is None:
        lines = _block({section: entry})
        return f"{text.rstrip()}\n\n{lines}" if text.strip() else lines
    key, value = found
    if isinstance(value, yaml_nodes.Scalar) and not value.text:
        return _inserted(text, end_of_line(text, key.end), _block(entry, 2))
    kind = yaml_nodes.Sequence if isinstance(entry, list) else yaml_nodes.Mapping
    if not isinstance(value, kind):
        what = "list" if isinstance(entry, list) else "mapping"
        raise CannotEdit(f"{section} is not a {what}; see account-pool check")
    if value.flow:
        return _in_brackets(text, value, in_brackets)
    end = end_of_line(text, end_of(value))
    return _inserted(text, end, _block(entry, value.column))


def _inserted(text: str, index: int, lines: str) -> str:
    return f"{text[:index]}\n{lines.rstrip()}{text[index:] or chr(10)}"


def _in_brackets(text: str, node: yaml_nodes.Collection, entry: str) -> str:
    """Return *text* with *entry* behind the last item of a [...] or {...}."""
    at, comma = (node.children[-1].end, ", ") if node.children else (node.start + 1, "")
    return f"{text[:at]}{comma}{entry}{text[at:]}"


def _block(value: Any, indent: int = 0) -> str:
    """Return *value* as YAML in block style, *indent* columns to the right."""
    # Of a mapping the lists are indented too, as people write it.
    dumper = _Indented if isinstance(value, dict) else _Dumper
    # A token is never folded.
    text = yaml.dump(value, Dumper=dumper, sort_keys=False, allow_unicode=True, width=10_000)
    margin = " " * indent
    return "".join(margin + line for line in text.splitlines(keepends=True))


class _Dumper(yaml.SafeDumper):
    """Quotes what our reader would not take for this text."""


class _Indented(_Dumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if read_plain(text) == text else '"'
    )


_Dumper.add_representer(str, _text)


# -- what takes the place of another


def _with_token(text: str, key: AccountKey, account: Entry) -> str:
    """Return *text* where *key* has the token of *account*, and what belongs to it."""
    belongs = {name: value for name, value in account.items() if name not in ("provider", "label")}
    for name, value in belongs.items():
        entry = next(item for item in entries_of(compose(text)) if key_of(item) == key)
        assert isinstance(entry, yaml_nodes.Mapping)
        written = f"{name}: {json.dumps(value)}"
        found = section_of(entry, name)
        if found is not None:
            start, end = found[0].start, max(end_of(found[1]), found[0].end)
            text = text[:start] + written + text[end:]
        elif entry.flow:
            text = _in_brackets(text, entry, written)
        else:
            text = _inserted(text, end_of_line(text, end_of(entry)), " " * entry.column + written)
    return text


# -- what is removed


def _remove(path: Path, key: AccountKey) -> bool:
    text = read(path)
    entries = entries_of(compose(text))
    found = [number for number, entry in enumerate(entries) if key_of(entry) == key]
    if not found:
        return False
    if len(entries) == 1:
        raise LastAccount(f"{key} is the last account of {path.name}")
    changed = _without(text, entries, found[0])
    try:
        is_right = account_keys(changed) == account_keys(text) - {key}
    except NotYaml:
        is_right = False
    if not is_right:
        raise CannotEdit(f"{path.name} cannot be edited by this command; remove {key} by hand")
    with _written_beside(path, changed, _mode(path)) as written:
        put_in_place(written, path)
    return True


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


# -- where things are in the text


def read(path: Path) -> str:
    """Return the text of *path*, "" when it is not there. Raises CannotEdit."""
    try:
        return read_file(path, MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except OSError as error:
        is_other = isinstance(error, NotAFile | TooLarge)
        remedy = "name the file of the accounts" if is_other else "make it a readable file"
        raise CannotEdit(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    except UnicodeDecodeError:
        raise CannotEdit(f"{path} is not text in UTF-8; save it as UTF-8") from None


def compose(text: str) -> yaml_nodes.Mapping | None:
    """Return the mapping *text* is, None when it is empty. Raises CannotEdit."""
    try:
        root = yaml_nodes.compose(text)
    except (YAMLError, Refused):
        # Its text quotes the file.
        raise NotYaml("the file is not YAML; see account-pool check") from None
    if root is not None and not isinstance(root, yaml_nodes.Mapping):
        raise CannotEdit("the file is not a mapping; start it with `accounts:`")
    return root


def section_of(root: yaml_nodes.Mapping | None, name: str) -> tuple[Node, Node] | None:
    """Return the nodes of a key of *root* and of its value."""
    pairs = root.pairs if root is not None else []
    return next(((k, v) for k, v in pairs if isinstance(k, Scalar) and k.text == name), None)


def account_keys(text: str) -> set[AccountKey]:
    """Return which accounts there are, as far as they can be read."""
    return {key for item in entries_of(compose(text)) if (key := key_of(item)) is not None}


def entries_of(root: yaml_nodes.Mapping | None) -> list[Node]:
    """Return the entries below `accounts:`; none where it is no list."""
    found = section_of(root, "accounts")
    return found[1].children if found and isinstance(found[1], yaml_nodes.Sequence) else []


def key_of(item: Node) -> AccountKey | None:
    """Return the account that the entry *item* describes, None where that cannot be read."""
    pairs = item.pairs if isinstance(item, yaml_nodes.Mapping) else ()
    written = {k.text: v.text for k, v in pairs if isinstance(k, Scalar) and isinstance(v, Scalar)}
    if not (written.get("label", "").strip() and written.get("provider")):
        return None
    provider = written["provider"].strip().lower()
    return AccountKey(provider, normalise_label(written["label"]))


def end_of(node: Node) -> int:
    """Return where the text of *node* ends, without the comments behind it."""
    if isinstance(node, Collection) and not node.flow and node.children:
        return end_of(node.children[-1])
    return node.end


def end_of_line(text: str, index: int) -> int:
    """Return where the line that *index* is in ends."""
    found = text.find("\n", index)
    return len(text) if found == -1 else found
