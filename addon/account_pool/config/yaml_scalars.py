"""What a plain scalar means, where YAML 1.1 and YAML 1.2 agree.

PyYAML reads YAML 1.1 (https://yaml.org/type/, but for `y` and `n`, which are text to every
reader in use), most other readers and editors the core schema of YAML 1.2
(https://yaml.org/spec/1.2.2/, 10.3.2). `no` is false to one and text to the other, `012`
is ten or twelve. Both are asked here; where they differ nobody can know what the owner of
the file meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from yaml import SafeLoader
from yaml.nodes import ScalarNode
from yaml.resolver import BaseResolver

PREFIX = "tag:yaml.org,2002:"
QUOTE = "put it in quotes"


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """The versions of YAML differ on it.

    Attributes:
        remedy: what to write instead.
        is_timestamp: it is an instant in one, the same text in the other.
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
