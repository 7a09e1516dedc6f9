"""Parses YAML into nodes that know their place in the text, and says what a scalar means.

Bounded in every direction. PyYAML's C parser is used where there is one, and its Python
parser otherwise. The nodes are put together here: PyYAML's own composer recurses, in C
without a bound, expands aliases as often as a file says, and makes so many objects that half
of its time is the garbage collector's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import yaml
from msgspec import Struct, field
from yaml import SafeLoader, events
from yaml.error import YAMLError
from yaml.nodes import ScalarNode
from yaml.resolver import BaseResolver

PREFIX = "tag:yaml.org,2002:"
QUOTE = "put it in quotes"
#: Aliases multiply: each use counts, and those inside what it stands for.
MAX_ALIASES = 100
#: What all of them together may stand for.
MAX_ALIASED_NODES = 100_000
#: An honest file stays below 10.
MAX_DEPTH = 50
TOO_DEEP = f"lists and mappings are nested more than {MAX_DEPTH} deep"
FLAT = "write it out, without aliases"
_NO_CHARACTER = "an escape such as \\ud800 stands for no character", "write the character itself"
_SURROGATE = re.compile("[\ud800-\udfff]")
_BEYOND_UNICODE = re.compile(r"\\U(?!000|0010)")

#: The Python parser has the last word: its errors are the ones that are explained.
PARSERS: tuple[Any, ...] = (
    (yaml.CSafeLoader, yaml.SafeLoader) if yaml.__with_libyaml__ else (yaml.SafeLoader,)
)


class Node(Struct, eq=False):
    """A value, and where its text is.

    Attributes:
        tag: that which is written, None for most.
        line: of its first character, counted from 1.
        column: of its first character, counted from 0.
        start: index of its first character.
        end: index behind its last one; of a list or mapping without brackets this
            includes the comments behind it.
    """

    tag: str | None
    line: int
    column: int
    start: int
    end: int

    def __repr__(self) -> str:
        return f"{type(self).__name__}(line={self.line})"  # its text may be a credential


class Scalar(Node, eq=False):
    """One value; *plain* without quotes, tag and |."""

    text: str
    plain: bool


class Collection(Node, eq=False):
    """A list or a mapping; *flow* with brackets.

    Its children are in order: of a mapping each key, and its value.
    """

    flow: bool
    children: list[Node] = field(default_factory=list)


class Sequence(Collection, eq=False):
    """A list."""


class Mapping(Collection, eq=False):
    @property
    def pairs(self) -> list[tuple[Node, Node]]:
        return list(zip(self.children[::2], self.children[1::2], strict=True))


class Refused(Exception):
    """YAML that is not taken. Line counted from 1, what is wrong, what to do."""

    def __init__(self, line: int, wrong: str, remedy: str) -> None:
        super().__init__(wrong)
        self.line = line
        self.wrong = wrong
        self.remedy = remedy


def compose(text: str) -> Node | None:
    """Return the one document in *text*, None if it has none.

    Raises YAMLError, which quotes the file, and Refused.
    """
    error: YAMLError | None = None
    for parser in PARSERS:
        try:
            return _Composer().compose(_events(text, parser))
        except YAMLError as e:
            error = e
        except (ValueError, OverflowError):
            # Of `chr`, in PyYAML's own parser.
            found = _BEYOND_UNICODE.search(text)
            line = text.count("\n", 0, found.start() if found else 0) + 1
            raise Refused(line, *_NO_CHARACTER) from None
    assert error is not None
    raise error


def _events(text: str, parser: Any) -> Iterator[events.Event]:
    """Yield what `yaml.parse` does, without two calls for each."""
    made = parser(text)
    try:
        yield from iter(made.get_event, None)
    finally:
        made.dispose()


class _Anchor(Struct):
    """What an alias stands for: a node, and once that has ended how much is in it."""

    node: Node
    nodes: int
    aliases: int
    ended: bool = False


class _Composer:
    """Puts the nodes of one document together, event by event."""

    def __init__(self) -> None:
        self._root: Node | None = None
        self._documents = 0
        #: lists and mappings that have not ended
        self._open: list[tuple[Collection, _Anchor | None]] = []
        self._anchors: dict[str, _Anchor] = {}
        self._nodes = 0  # behind aliases too
        self._aliases = 0
        self._aliased_nodes = 0

    def compose(self, parsed: Iterable[events.Event]) -> Node | None:
        # The events' types lack what every parsed one has.
        take: dict[type[events.Event], Callable[[Any], None]] = {
            events.ScalarEvent: self._scalar,
            events.AliasEvent: self._alias,
            events.SequenceStartEvent: partial(self._begin, Sequence),
            events.MappingStartEvent: partial(self._begin, Mapping),
            events.SequenceEndEvent: self._end,
            events.MappingEndEvent: self._end,
            events.DocumentStartEvent: self._document,
        }
        for event in parsed:
            taken = take.get(type(event))
            if taken is not None:
                taken(event)
        return self._root

    def _document(self, event: Any) -> None:
        self._documents += 1
        if self._documents > 1:
            raise Refused(_line(event), "a second document begins", "remove the line ---")

    def _scalar(self, event: Any) -> None:
        # Nearly all of a long file: what others call is written out.
        mark, end, tag, text = event.start_mark, event.end_mark, event.tag, event.value
        # PyYAML's own parser lets it pass; no file, log or database takes it.
        if not text.isascii() and _SURROGATE.search(text):
            raise Refused(_line(event), *_NO_CHARACTER)
        end_at = end.index if end.column else _end_of(event)
        plain = tag is None and not event.style
        node = Scalar(tag, mark.line + 1, mark.column, mark.index, end_at, text, plain)
        if event.anchor is not None:
            self._close(node, self._anchor(event, node))
            return
        self._nodes += 1
        if self._open:
            self._open[-1][0].children.append(node)
        else:
            self._root = node

    def _begin(self, kind: type[Collection], event: Any) -> None:
        if len(self._open) == MAX_DEPTH:
            raise Refused(_line(event), TOO_DEEP, "check the brackets and the indentation")
        mark = event.start_mark
        node = kind(event.tag, mark.line + 1, mark.column, mark.index, mark.index, event.flow_style)
        self._open.append((node, self._anchor(event, node)))

    def _end(self, event: Any) -> None:
        node, anchor = self._open.pop()
        node.end = _end_of(event)
        self._close(node, anchor)

    def _alias(self, event: Any) -> None:
        anchor = self._anchors.get(event.anchor)
        if anchor is None:
            raise Refused(
                _line(event),
                "a value begins with *, the sign of an alias, and no alias has that name",
                "put the value in quotes",
            )
        if not anchor.ended:
            raise Refused(_line(event), "an alias stands for something that it is in", FLAT)
        self._aliases += 1 + anchor.aliases
        self._aliased_nodes += anchor.nodes
        if self._aliases > MAX_ALIASES or self._aliased_nodes > MAX_ALIASED_NODES:
            raise Refused(_line(event), f"aliases are used more than {MAX_ALIASES} times", FLAT)
        self._nodes += anchor.nodes
        self._put(anchor.node)

    def _anchor(self, event: Any, node: Node) -> _Anchor | None:
        if event.anchor is None:
            return None
        anchor = self._anchors[event.anchor] = _Anchor(node, self._nodes, self._aliases)
        return anchor

    def _close(self, node: Node, anchor: _Anchor | None) -> None:
        self._nodes += 1
        if anchor is not None:
            anchor.nodes = self._nodes - anchor.nodes
            anchor.aliases = self._aliases - anchor.aliases
            anchor.ended = True
        self._put(node)

    def _put(self, node: Node) -> None:
        if self._open:
            self._open[-1][0].children.append(node)
        else:
            self._root = node


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _end_of(event: Any) -> int:
    """Return where the text ends; the mark of a block of text is where the next line begins."""
    mark = event.end_mark
    index: int = mark.index
    return index if mark.column or not index else index - 1


# -- what a plain scalar means, where YAML 1.1 and YAML 1.2 agree
#
# PyYAML reads YAML 1.1 (https://yaml.org/type/, but for `y` and `n`, which are text to every
# reader in use), most other readers and editors the core schema of YAML 1.2
# (https://yaml.org/spec/1.2.2/, 10.3.2). `no` is false to one and text to the other, `012` is
# ten or twelve. Both are asked here; where they differ, what the owner of the file meant
# cannot be known.


class Ambiguous(Struct, frozen=True):
    """The versions of YAML differ on it; *remedy* is what to write instead.

    *is_timestamp*: it is an instant in one, the same text in the other.
    """

    remedy: str = QUOTE
    is_timestamp: bool = False


class _Yaml12(BaseResolver):
    """The core schema."""


for _kind, _pattern, _first in (
    ("null", r"(null|Null|NULL|~|)\Z", ["n", "N", "~", ""]),
    ("bool", r"(true|True|TRUE|false|False|FALSE)\Z", list("tTfF")),
    ("int", r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z", list("-+0123456789")),
    (
        "float",
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z",
        list("-+.0123456789"),
    ),
):
    _Yaml12.add_implicit_resolver(PREFIX + _kind, re.compile(_pattern), _first)

_YAML11, _YAML12 = SafeLoader(""), _Yaml12()
#: What anything but a text begins with, in either version.
_FIRST = frozenset(_YAML11.yaml_implicit_resolvers) | frozenset(_YAML12.yaml_implicit_resolvers)


def read_plain(text: str) -> Any:
    """Return what the plain scalar *text* is: None, bool, int, float, str or Ambiguous."""
    if text[:1] not in _FIRST:
        return text
    # No credential is that short: none is kept.
    return _cached(text) if len(text) <= 8 else _read(text)


def _read(text: str) -> Any:
    old, new = _kind_of(_YAML11, text), _kind_of(_YAML12, text)
    if old == new == "str":
        return text
    try:
        one, other = _OLD[old](text), _NEW[new](text)
    except (KeyError, ValueError):
        # Of a kind that 1.2 lacks, or a number without digits or with thousands of them.
        return Ambiguous(is_timestamp=old == "timestamp")
    # By their text: 1 is not 1.0, and .nan is .nan.
    if (type(one), repr(one)) == (type(other), repr(other)):
        return one
    if isinstance(one, bool):
        return Ambiguous(f"write true or false, or {QUOTE} if it is text")
    return Ambiguous(f"write a number in decimals, or {QUOTE} if it is text")


_cached = lru_cache(maxsize=1024)(_read)


def _kind_of(version: BaseResolver, text: str) -> str:
    tag: str = version.resolve(ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return tag.removeprefix(PREFIX)


def _old(name: str) -> Callable[[str], Any]:
    construct = getattr(_YAML11, f"construct_yaml_{name}")
    return lambda text: construct(ScalarNode(PREFIX + name, text))


_OLD: dict[str, Callable[[str], Any]] = {
    "str": str,
    **{name: _old(name) for name in ("null", "bool", "int", "float")},
}
_NEW: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 0) if text[:2] in ("0o", "0x") else int(text),
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}
