"""Reads a YAML file into plain values and remembers the line of each.

Knows YAML, not accounts. Stricter than YAML: a key may stand once, tags and several
documents are refused. What YAML would turn into a date stays text. The messages of the
parser are not passed on where they quote the file, because it holds secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from account_pool.config.problems import ConfigError, Problem, shown_key

Loc = tuple[str | int, ...]

#: Aliases can multiply a small file without end; an honest one stays far below.
MAX_VALUES = 100_000
#: Below this key every name and value may be a secret.
SECRET_KEY = "token"  # noqa: S105 - the name of a key

_PREFIX = "tag:yaml.org,2002:"
#: What the parser quotes in its messages.
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


@dataclass(slots=True)
class Document:
    """The values of a file, the line of each, and what is wrong with it as YAML."""

    path: Path
    data: Any = None
    lines: dict[Loc, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, loc: Loc) -> int:
        """Return the line of *loc*, or of what surrounds it when it is not there."""
        while loc not in self.lines and loc:
            loc = loc[:-1]
        return self.lines.get(loc, 1)

    def problem(self, loc: Loc, wrong: str, remedy: str) -> None:
        self.problems.append(Problem(self.path, self.line(loc), name_of(loc), wrong, remedy))

    def value(self, loc: Loc) -> Any:
        """Return the value at *loc*, None if there is none."""
        value = self.data
        for step in loc:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value


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

    Duplicate keys and the like do not prevent reading: they are in `Document.problems`.
    """

    def fail(line: int | None, wrong: str, remedy: str) -> ConfigError:
        return ConfigError([Problem(path, line, "", wrong, remedy)])

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise fail(None, "the file does not exist", "create it, or correct the path") from None
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise fail(None, f"cannot be read ({reason})", "make it a readable file") from None
    except UnicodeDecodeError:
        raise fail(None, "is not text in UTF-8", "save it as UTF-8") from None
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text)
    except YAMLError as error:
        raise fail(*_explain(error, text)) from None
    if node is None:
        raise fail(None, "the file is empty", "list accounts in it, as accounts.example.yaml does")
    document = Document(path)
    try:
        document.data = _Reader(document, yaml).value(node, ())
    except _TooMuch as error:
        raise fail(
            error.line, "the aliases in it lead nowhere", "write it without aliases"
        ) from None
    return document


def _explain(error: YAMLError, text: str) -> tuple[int | None, str, str]:
    """Return line, wrong and remedy of a syntax error, without a word of the file."""
    if not isinstance(error, MarkedYAMLError):
        position = getattr(error, "position", None)
        line = None if position is None else text.count("\n", 0, position) + 1
        return line, "there is a control character in it", "remove it"
    problem = " ".join(_unquoted(str(error.problem)).split())
    known = next(((wrong, remedy) for sign, wrong, remedy in _SYNTAX if sign in problem), None)
    context = " ".join(_unquoted(str(error.context or "")).split())
    wrong, remedy = known or (f"not YAML: {context} {problem}", _SYNTAX_REMEDY)
    # What is not ended began where the context is; the parser found out at the end.
    is_late = "unexpected end" in problem or "could not find" in problem
    mark = (is_late and error.context_mark) or error.problem_mark or error.context_mark
    return (None if mark is None else mark.line + 1), wrong, remedy


def _unquoted(message: str) -> str:
    """Return *message* of the parser without what it quotes from the file.

    Single characters stay (a tab is shown as two), and its own names for things, such as
    '<block end>'.
    """

    def harmless(found: re.Match[str]) -> str:
        quoted = found[1] or found[2] or ""
        return found[0] if len(quoted) <= 2 or quoted[:1] == "<" else "[...]"

    return _QUOTED.sub(harmless, message)


_SYNTAX_REMEDY = "check indentation, quotes and brackets here and in the lines before"
#: What the parser's messages are about, in our words: (a part of it, wrong, remedy).
_SYNTAX = (
    (r"'\t'", "a tab stands where YAML allows only spaces", "indent with spaces"),
    ("another document", "a second document begins", "remove the line ---"),
    (
        "undefined alias",
        "a value begins with *, the sign of an alias, and no alias has that name",
        "put the value in quotes",
    ),
    (
        "cannot start any token",
        "a value begins with a character that has a meaning in YAML",
        "put the value in quotes",
    ),
    (
        "mapping values are not allowed",
        "a key stands where none can be",
        "check the indentation of this line and the one before, and put a value with "
        '": " in it in quotes',
    ),
    ("expected ',' or", "a { or [ is not closed", "close it, and put a ${...} inside it in quotes"),
    ("unexpected end of stream", "a quote is not closed", "close it"),
    (
        "could not find expected ':'",
        "neither a key nor a value",
        "write `key: value`, with a space after the colon",
    ),
)


class _TooMuch(Exception):
    def __init__(self, line: int) -> None:
        self.line = line


class _Reader:
    """Turns nodes into values, recursively; an alias is read again at each use."""

    def __init__(self, document: Document, yaml: Any) -> None:
        self._document = document
        self._yaml = yaml
        self._count = 0
        self._open: set[int] = set()

    def value(self, node: Node, loc: Loc) -> Any:
        self._count += 1
        line = node.start_mark.line + 1
        if self._count > MAX_VALUES or id(node) in self._open:
            raise _TooMuch(line)
        self._document.lines.setdefault(loc, line)
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode) and node.tag == _PREFIX + "map":
                return self._mapping(node, loc)
            if isinstance(node, SequenceNode) and node.tag == _PREFIX + "seq":
                return [self.value(item, (*loc, i)) for i, item in enumerate(node.value)]
            if isinstance(node, ScalarNode):
                return self._scalar(node, loc)
        finally:
            self._open.discard(id(node))
        self._document.problem(loc, "a tag (!name) is not accepted here", "remove it")
        return None

    def _mapping(self, node: MappingNode, loc: Loc) -> dict[str, Any]:
        read: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _PREFIX + "merge":
                continue
            if not isinstance(key_node, ScalarNode):
                self._document.problem(loc, "a key is not text", "write `key: value`")
                continue
            key = str(key_node.value)
            here = (*loc, key)
            if key in first:
                name = "a key" if SECRET_KEY in loc else shown_key(key)
                self._document.lines[here] = line
                self._document.problem(
                    here,
                    f"{name} is written twice, first on line {first[key]}",
                    "remove one of them",
                )
                continue
            first[key] = line
            self._document.lines[here] = line
            read[key] = self.value(value_node, here)
        for merged in self._merged(node, loc):
            for key, value in merged.items():
                read.setdefault(key, value)
        return read

    def _merged(self, node: MappingNode, loc: Loc) -> Iterator[dict[str, Any]]:
        """Yield the mappings behind `<<:`; what the mapping says itself comes first."""
        for key_node, value_node in node.value:
            if key_node.tag != _PREFIX + "merge":
                continue
            parts = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
            for part in parts:
                if isinstance(part, MappingNode):
                    before = dict(self._document.lines)
                    yield self.value(part, loc)
                    self._document.lines |= before
                else:
                    self._document.problem(loc, "<< is not followed by a mapping", "remove it")

    def _scalar(self, node: ScalarNode, loc: Loc) -> Any:
        kind = str(node.tag).removeprefix(_PREFIX)
        if kind == "null":
            return None
        if kind in ("bool", "int", "float"):
            return self._yaml.constructor.construct_object(node)
        if kind not in ("str", "timestamp", "merge", "value"):
            self._document.problem(loc, "a tag (!name) is not accepted here", "remove it")
            return None
        return str(node.value)
