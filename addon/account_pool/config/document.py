"""Reads a YAML file into plain values and remembers the line of each.

Knows YAML, not accounts. Stricter than YAML: a key may stand once, tags, several
documents and what the versions of YAML read differently are refused. A point in time
stays text. The messages of the parser are not passed on where they quote the file,
because it holds secrets.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from yaml.error import MarkedYAMLError, YAMLError

from account_pool.config.problems import ConfigError, Problem
from account_pool.config.yaml_nodes import (
    FLAT,
    MAX_DEPTH,
    PREFIX,
    QUOTE,
    TOO_DEEP,
    Ambiguous,
    Mapping,
    Node,
    Refused,
    Scalar,
    Sequence,
    compose,
    read_plain,
)
from account_pool.core.meaning import LazyPattern
from account_pool.core.wrong import shown_key
from account_pool.filesystem import NotAFile, TooLarge, read_file, reason_of

Loc = tuple[str | int, ...]

#: Ten thousand accounts take a tenth of it; it takes minutes to parse more.
MAX_BYTES = 32 * 1024 * 1024

#: Below this key every name and value may be a secret.
SECRET_KEY = "token"  # noqa: S105 - the name of a key
#: The only keys below which a point in time may stand without quotes.
_INSTANTS = frozenset({"expires_at", "refresh_expires_at"})

#: What the parser quotes in its messages.
_QUOTED = LazyPattern(r"'([^']*)'|\"([^\"]*)\"")


class Document(Struct):
    """The values of a file, the line of each, and what is wrong with it as YAML."""

    path: Path
    data: Any = None
    lines: dict[Loc, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    _misread_values: list[Problem] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Document({str(self.path)!r})"  # its values may be credentials

    def line(self, loc: Loc) -> int:
        """Return the line of *loc*, or of what surrounds it when it is not there."""
        while loc not in self.lines and loc:
            loc = loc[:-1]
        return self.lines.get(loc, 1)

    def problem(self, loc: Loc, wrong: str, remedy: str) -> None:
        self.problems.append(Problem(self.path, self.line(loc), name_of(loc), wrong, remedy))

    def require_right(self) -> None:
        """Raise ConfigError with all that is wrong; of a misread value only that it is."""
        misread = {problem.key for problem in self._misread_values}
        others = [problem for problem in self.problems if problem.key not in misread]
        if others or misread:
            raise ConfigError([*self._misread_values, *others])

    # -- nodes become values, recursively; an alias is read again at each use

    def take(self, node: Node) -> None:
        """Have the values of *node*, which is all of the file. Raises Refused."""
        self.data = self._read(node, ())

    def _read(self, node: Node, loc: Loc) -> Any:
        if len(loc) > MAX_DEPTH:  # by aliases; else the nodes would not be there
            raise Refused(node.line, TOO_DEEP, FLAT)
        if isinstance(node, Scalar):
            return self._scalar(node, loc)
        self.lines.setdefault(loc, node.line)
        if isinstance(node, Mapping) and node.tag in (None, PREFIX + "map"):
            return self._mapping(node, loc)
        if isinstance(node, Sequence) and node.tag in (None, PREFIX + "seq"):
            return [self._item(item, (*loc, i)) for i, item in enumerate(node.children)]
        self._misread(loc, *_TAG)
        return None

    def _item(self, node: Node, loc: Loc) -> Any:
        self.lines[loc] = node.line
        return self._read(node, loc)

    def _mapping(self, node: Mapping, loc: Loc) -> dict[str, Any]:
        # What the mapping says itself outdoes what it takes over by `<<:`.
        pairs = node.pairs
        merges = [value for key, value in pairs if _is_merge(key)]
        read = self._merged(merges, loc) if merges else {}
        first: dict[str, int] = {}
        for key_node, value_node in pairs:
            if merges and _is_merge(key_node):
                continue
            if not isinstance(key_node, Scalar):
                self.problem(loc, "a key is not text", "write `key: value`")
                continue
            key = key_node.text
            here = (*loc, key)
            self.lines[here] = line = key_node.line
            if key in first:
                name = "a key" if SECRET_KEY in loc else shown_key(key)
                self.problem(
                    here,
                    f"{name} appears twice, first on line {first[key]}",
                    "keep one of them",
                )
                continue
            first[key] = line
            if key_node.plain and isinstance(read_plain(key), Ambiguous):
                self._misread(here, "YAML 1.1 and 1.2 read this key differently", QUOTE)
            read[key] = self._read(value_node, here)
        return read

    def _merged(self, merges: list[Node], loc: Loc) -> dict[str, Any]:
        """Return what is behind `<<:`; of several mappings the first comes first."""
        merged: dict[str, Any] = {}
        for node in merges:
            parts = node.children if isinstance(node, Sequence) else [node]
            for part in reversed(parts):
                if isinstance(part, Mapping):
                    merged |= self._read(part, loc)
                else:
                    self.problem(loc, "<< is not followed by a mapping", "remove it")
        return merged

    def _scalar(self, node: Scalar, loc: Loc) -> Any:
        text = node.text
        if node.tag not in (None, "!", PREFIX + "str"):
            self._misread(loc, *_TAG)
            return None
        if not node.plain:
            return text
        value = read_plain(text)
        if not isinstance(value, Ambiguous):
            return value
        if not (value.is_timestamp and loc and loc[-1] in _INSTANTS):
            self._misread(loc, "YAML 1.1 and 1.2 read this value differently", value.remedy)
        return text

    def _misread(self, loc: Loc, wrong: str, remedy: str) -> None:
        """Add the problem of a value that cannot be understood as YAML."""
        found = Problem(self.path, self.line(loc), name_of(loc), wrong, remedy)
        self._misread_values.append(found)


def name_of(loc: Loc) -> str:
    """Return *loc* as it is written in messages: accounts[1].priority.

    Ends at `token`, whatever is below it.
    """
    name = ""
    for step in loc:
        name += f"[{step}]" if isinstance(step, int) else f".{shown_key(step)}"
        if step == SECRET_KEY:
            break
    return name.removeprefix(".")


def read(path: Path) -> Document:
    """Read the file. Raises ConfigError when nothing can be made of it.

    Duplicate keys and the like do not prevent reading: `Document.require_right` raises for them.
    """

    def fail(line: int | None, wrong: str, remedy: str) -> ConfigError:
        return ConfigError([Problem(path, line, "", wrong, remedy)])

    try:
        # A pipe is read as well: `<(sops decrypt ...)`.
        text = read_file(path, MAX_BYTES, pipe=True).decode("utf-8-sig")
    except FileNotFoundError:
        raise fail(None, "the file does not exist", "create it, or correct the path") from None
    except OSError as error:
        is_other = isinstance(error, NotAFile | TooLarge)
        remedy = "name the file of the accounts" if is_other else "make it a readable file"
        why = error.strerror if is_other else reason_of(error)
        raise fail(None, f"cannot be read ({why})", remedy) from None
    except UnicodeDecodeError:
        raise fail(None, "is not text in UTF-8", "save it as UTF-8") from None
    try:
        node = compose(text)
        if node is None:
            raise fail(None, "the file is empty", _EMPTY_REMEDY)
        document = Document(path)
        document.take(node)
    except YAMLError as error:
        raise fail(*_explain(error, text)) from None
    except Refused as refused:
        raise fail(refused.line, refused.wrong, refused.remedy) from None
    return document


def _explain(error: YAMLError, text: str) -> tuple[int | None, str, str]:
    """Return line, wrong and remedy of a syntax error, without a word of the file."""
    if not isinstance(error, MarkedYAMLError):
        position = getattr(error, "position", None)
        line = None if position is None else text.count("\n", 0, position) + 1
        return line, "it contains a control character", "remove it"
    problem = " ".join(_unquoted(str(error.problem)).split())
    known = next(((wrong, remedy) for sign, wrong, remedy in _SYNTAX if sign in problem), None)
    context = " ".join(_unquoted(str(error.context or "")).split())
    wrong, remedy = known or (" ".join(f"not YAML: {context} {problem}".split()), _SYNTAX_REMEDY)
    # What is not ended began where the context is; the parser found out at the end.
    is_late = "unexpected end" in problem or "could not find" in problem
    mark = (is_late and error.context_mark) or error.problem_mark or error.context_mark
    return (None if mark is None else mark.line + 1), wrong, remedy


def _unquoted(message: str) -> str:
    """Return *message* of the parser without what it quotes from the file.

    Single characters stay (a tab is shown as two), and its own names for things, such as
    '<block end>'.
    """

    def shortened(found: re.Match[str]) -> str:
        quoted = found[1] or found[2] or ""
        return found[0] if len(quoted) <= 2 or quoted[:1] == "<" else "[...]"

    return _QUOTED.sub(shortened, message)


_EMPTY_REMEDY = "list accounts in it, or run account-pool add PROVIDER LABEL"
_SYNTAX_REMEDY = "check indentation, quotes and brackets on this line and the ones before"
_NOT_CLOSED = ("a { or [ is not closed", "close it, and quote a ${...} inside it")
#: What the parser's messages are about, in our words: (a part of it, wrong, remedy).
_SYNTAX = (
    (r"'\t'", "a tab where YAML allows only spaces", "indent with spaces"),
    (
        "cannot start any token",
        "a value begins with a character that has a meaning in YAML",
        "put the value in quotes",
    ),
    (
        "mapping values are not allowed",
        "a key where none is allowed",
        "check the indentation of this line and the one before, and put a value with "
        '": " in it in quotes',
    ),
    ("expected ',' or", *_NOT_CLOSED),
    ("content, but found '<stream end>'", *_NOT_CLOSED),
    ("unexpected end of stream", "a quote is not closed", "close it"),
    (
        "could not find expected ':'",
        "neither a key nor a value",
        "write `key: value`, with a space after the colon",
    ),
)


_TAG = "a tag (!name) is not accepted here", "remove it"


def _is_merge(node: Node) -> bool:
    return isinstance(node, Scalar) and node.text == "<<" and node.plain
