"""Reads what is written of a provider beside `like` and `hosts`: by a user, or in `builtin.yaml`.

Paths, where the credential goes, headers, limit rules: the shape was checked before, here it
is what the values say. What comes out is `definition.Definition`. The functions that read one
value raise Wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import tzinfo
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from account_pool.core import json_values, reset_hints
from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.wrong import Wrong, shown, unknown
from account_pool.providers.definition import (
    CLASSES,
    Definition,
    LimitRule,
    OwnerPlace,
    PathRule,
    Placement,
    Pointer,
    Reset,
)

# -- regular expressions. Python's `re` backtracks: a repetition inside a repetition takes
# exponential time on text that almost matches. Those are refused when the file is read; what
# is left runs on a short text only.

MAX_PATTERN_CHARS = 200
#: Each open repetition (*, +, {n,}) may cost another pass over the text.
MAX_OPEN_REPEATS = 2

_REPEAT = LazyPattern(r"[*+]|\{\d*(?P<comma>,)?\d*\}|\?")


def compile_pattern(text: str) -> re.Pattern[str]:
    """Return the pattern; case makes no difference. Raises ValueError that says why not."""
    if len(text) > MAX_PATTERN_CHARS:
        raise ValueError(f"is longer than {MAX_PATTERN_CHARS} characters")
    try:
        pattern = re.compile(text, re.IGNORECASE)
    except re.error as error:
        where = "" if error.pos is None else f" at character {error.pos + 1}"
        raise ValueError(f"is not a regular expression: {error.msg}{where}") from None
    except (OverflowError, RecursionError):
        raise ValueError("is not a regular expression") from None
    _check_repeats(text)
    return pattern


def _check_repeats(text: str) -> None:
    """Refuse a repeated group that repeats or chooses inside. Raises ValueError."""
    varies = [False]
    count, i = 0, 0
    while i < len(text):
        char, closed_varying = text[i], False
        if char == "[":
            i = _end_of_class(text, i)
        elif char == "\\":
            i += 1
        elif char == "(":
            varies.append(False)
            # What follows a "(?" is no repetition.
            i += 1 if text[i + 1 : i + 2] == "?" else 0
        elif char == ")" and len(varies) > 1:
            closed_varying = varies.pop()
            varies[-1] = varies[-1] or closed_varying
        elif char == "|":
            varies[-1] = True
        i += 1
        repeat = _REPEAT.match(text, i) if char not in "(|^" else None
        if repeat is None:
            continue
        i = repeat.end()
        if closed_varying and repeat[0] != "?":
            raise ValueError(
                "repeats a group that repeats or chooses inside, which can take for ever"
            )
        is_open = repeat[0] in "*+" or repeat["comma"] is not None
        varies[-1] = varies[-1] or is_open or repeat[0] == "?"
        count += is_open
        if text[i : i + 1] in ("?", "+"):
            i += 1  # lazy or possessive: part of the repetition
    if count > MAX_OPEN_REPEATS:
        raise ValueError(f"has more than {MAX_OPEN_REPEATS} of *, + and {{n,m}}")


def _end_of_class(text: str, start: int) -> int:
    """Return where the class [...] that begins at *start* ends."""
    i = start + 1
    i += text[i : i + 1] == "^"
    i += text[i : i + 1] == "]"
    while i < len(text) and text[i] != "]":
        i += 2 if text[i] == "\\" else 1
    return i


# -- single values

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

_HEADER = LazyPattern(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}\Z")
#: What makes a request what it is; neither a credential nor dropped.
_NOT_OURS = frozenset(
    {"connection", "content-encoding", "content-length", "content-type", "host", "te"}
    | {"trailer", "transfer-encoding", "upgrade"}
)
_QUERY = LazyPattern(r"[A-Za-z0-9._~-]{1,64}\Z")


def _path_rule(text: str) -> PathRule:
    """Read `/v1/chat/*` (POST) or `GET /v1/models*`."""
    method, _, glob = text.strip().rpartition(" ")
    method = method.strip().upper() or "POST"
    if method not in METHODS:
        raise Wrong("does not start with a known method", unknown(method, METHODS))
    if not glob.startswith("/") or any(sign in glob for sign in "?#["):
        raise Wrong(
            f"{shown(glob)} is not a path",
            "start it with /, without host or query; * matches any text",
        )
    return PathRule(method, glob)


def _header_name(text: str) -> str:
    """Return the name of a header in lower case."""
    if not _HEADER.match(text):
        raise Wrong(f"{shown(text)} is not the name of a header", "write one such as x-team")
    return text.lower()


def _own_header(text: str) -> str:
    """Return the name of a header that may belong to an account."""
    name = _header_name(text)
    if name in _NOT_OURS:
        raise Wrong(f"{name} belongs to the request, not to an account", "name another header")
    return name


def _query_name(text: str) -> str:
    """Return the name of a query parameter."""
    if not _QUERY.match(text):
        raise Wrong(f"{shown(text)} is not the name of a parameter", "write one such as key")
    return text


def _pattern(text: str) -> re.Pattern[str]:
    """Read a regular expression that cannot run for ever."""
    try:
        return compile_pattern(text)
    except ValueError as error:
        raise Wrong(
            str(error), "write a regular expression of Python, such as quota.*exceeded"
        ) from None


def _pointer(text: str) -> Pointer:
    """Read a JSON pointer."""
    try:
        return json_values.steps(text)
    except ValueError as error:
        raise Wrong(str(error), "write one such as /error/code") from None


def _grouping(text: str) -> re.Pattern[str]:
    """Read a regular expression with one group."""
    read = _pattern(text)
    if read.groups != 1:
        raise Wrong("has not one group", "put the part that is meant in parentheses: team (\\w+)")
    return read


def _time_zone(text: str) -> tzinfo:
    """Read a time zone: `Asia/Shanghai`, `+08:00`, UTC."""
    if (zone := reset_hints.time_zone(text)) is None:
        raise Wrong(
            f"{shown(text)} is not a time zone", "write one such as Asia/Shanghai or +08:00"
        )
    return zone


# -- a definition

T = TypeVar("T")
Loc = tuple[str | int, ...]

#: Keys of a provider that are read here.
KEYS = ("paths", "credential", "drop", "companions", "owner", "time_zone", "limits")
#: Those of them that say how a credential goes on the wire.
WIRE_KEYS = ("credential", "drop", "companions")

_COMPANION = LazyPattern(r"[a-z][a-z0-9_]{0,31}\Z")
_PREFIX = LazyPattern(r"[\x20-\x7e]{0,64}\Z")


class Notes(Protocol):
    """Where the values come from: takes what is wrong with them, and knows their place."""

    def problem(self, loc: Loc, wrong: str, remedy: str) -> None:
        """Note what is wrong at *loc*."""

    def place(self, loc: Loc) -> str:
        """Return where *loc* is written, such as accounts.yaml:12."""

    def has_shape(self, loc: Loc, kind: str, value: Any) -> bool:
        """Say whether a mapping has the keys of *kind* ("reset", "owner"); note if not."""


def read_definition(
    notes: Notes, loc: Loc, written: Mapping[str, Any], taken: Collection[str] = ()
) -> Definition:
    """Return what *written* says; what is wrong goes to *notes*.

    *taken*: keys that cannot be companions, because accounts have them anyway.
    """
    return _Reader(notes, taken).definition(loc, written)


class _Reader(Struct):
    """Reads values; None or nothing for one that is wrong, which is noted."""

    notes: Notes
    taken: Collection[str]

    def definition(self, loc: Loc, written: Mapping[str, Any]) -> Definition:
        return Definition(
            paths=self._paths((*loc, "paths"), written.get("paths")),
            credential=self._credential((*loc, "credential"), written.get("credential")),
            drop=self._each((*loc, "drop"), written.get("drop"), _own_header),
            companions=self._companions((*loc, "companions"), written.get("companions")),
            owner=self._owner((*loc, "owner"), written.get("owner")),
            zone=self._checked((*loc, "time_zone"), written.get("time_zone"), _time_zone),
            limits=tuple(
                rule
                for i, one in _items(written.get("limits"))
                if (rule := self._limit((*loc, "limits", i), one))
            ),
        )

    def _checked(self, loc: Loc, value: Any, read: Callable[[str], T]) -> T | None:
        """Return what *read* makes of a text; what is no text was reported with its shape."""
        if not isinstance(value, str) or not value:
            return None
        try:
            return read(value)
        except Wrong as error:
            self.notes.problem(loc, error.wrong, error.remedy)
            return None

    def _each(self, loc: Loc, written: Any, read: Callable[[str], T]) -> tuple[T, ...]:
        """Return what *read* makes of each text of a list."""
        made = (self._checked((*loc, i), value, read) for i, value in _items(written))
        return tuple(value for value in made if value)

    def _paths(self, loc: Loc, written: Any) -> tuple[PathRule, ...]:
        return self._each(loc, written, _path_rule)

    def _credential(self, loc: Loc, written: Any) -> Placement | None:
        if not isinstance(written, dict):
            return None
        given = [key for key in ("header", "query") if key in written]
        if len(given) != 1:
            wrong = "names both header and query" if given else "names neither header nor query"
            remedy = 'write {header: authorization, prefix: "Bearer "} or {query: key}'
            self.notes.problem(loc, wrong, remedy)
            return None
        header = self._checked((*loc, "header"), written.get("header"), _own_header)
        query = self._checked((*loc, "query"), written.get("query"), _query_name)
        usual = "Bearer " if header == "authorization" else ""
        prefix = written.get("prefix", usual)
        if "query" in written and "prefix" in written:
            self.notes.problem((*loc, "prefix"), "belongs to a header", "remove it")
        elif isinstance(prefix, str) and not _PREFIX.match(prefix):
            self.notes.problem(
                (*loc, "prefix"), "cannot be used in a header", 'write one such as "Bearer "'
            )
        by_path = self._by_path((*loc, "by_path"), written.get("by_path"))
        return Placement(header, prefix if isinstance(prefix, str) else "", query, by_path)

    def _by_path(self, loc: Loc, written: Any) -> tuple[tuple[str, Placement], ...]:
        places = []
        for part, one in written.items() if isinstance(written, dict) else ():
            if not part.startswith("/"):
                self.notes.problem((*loc, part), "is not part of a path", "start it with /")
            if (place := self._credential((*loc, part), one)) is not None:
                places.append((part, place))
        return tuple(places)

    def _companions(self, loc: Loc, written: Any) -> dict[str, str]:
        companions: dict[str, str] = {}
        for key, header in written.items() if isinstance(written, dict) else ():
            if not _COMPANION.match(key) or key in self.taken:
                self.notes.problem(
                    (*loc, key),
                    "cannot be a key of its accounts",
                    "write a name of its own such as workspace, in lower case",
                )
            name = self._checked((*loc, key), header, _own_header)
            if name is not None:
                companions[key] = name
        return companions

    def _owner(self, loc: Loc, written: Any) -> OwnerPlace | None:
        """Return where the owner is named: text is the name of a header."""
        if written is None:
            return None
        if not written or not isinstance(written, str | dict):
            wrong = "is empty" if written == "" else f"{shown(written)} is not text"
            self.notes.problem(loc, wrong, "put it in quotes")
            return None
        if isinstance(written, str):
            header = self._checked(loc, written, _header_name)
            return None if header is None else OwnerPlace(header=header)
        if not self.notes.has_shape(loc, "owner", written):
            return None
        if len(written) != 1:
            self.notes.problem(loc, "names no one place", "write one of header, pointer, message")
            return None
        return OwnerPlace(
            header=self._checked((*loc, "header"), written.get("header"), _header_name),
            pointer=self._checked((*loc, "pointer"), written.get("pointer"), _pointer),
            pattern=self._checked((*loc, "message"), written.get("message"), _grouping),
        )

    def _limit(self, loc: Loc, written: Any) -> LimitRule | None:
        if not isinstance(written, dict):
            return None
        self._conditions(loc, written)
        cls, scope = written.get("class"), written.get("scope")
        headers = self._headers((*loc, "header"), written.get("header"))
        equals = self._equals((*loc, "equals"), written.get("equals"))
        codes = self._equals((*loc, "codes"), written.get("codes"))
        resets = self._resets((*loc, "reset"), written)
        pointer = self._checked((*loc, "pointer"), written.get("pointer"), _pointer)
        regex = self._checked((*loc, "regex"), written.get("regex"), _pattern)
        message = self._checked((*loc, "message"), written.get("message"), _pattern)
        model = self._checked((*loc, "model"), written.get("model"), _pointer)
        if cls not in CLASSES or (scope is not None and scope not in tuple(Scope)):
            return None
        return LimitRule(
            cls=OutcomeClass(cls),
            scope=None if scope is None else Scope(scope),
            source=self.notes.place(loc),
            why=str(written.get("why", "")),
            status=frozenset(s for _, s in _items(written.get("status")) if isinstance(s, int)),
            headers=headers,
            codes=frozenset(code.lower() for code in codes),
            pointer=pointer,
            equals=equals,
            regex=regex,
            message=message,
            resets=resets,
            model=model,
            missing_model=written.get("missing_model") is True,
            shared=shared if isinstance(shared := written.get("shared"), bool) else None,
        )

    def _headers(self, loc: Loc, written: Any) -> tuple[tuple[str, re.Pattern[str]], ...]:
        headers = written if isinstance(written, dict) else {}
        read = [
            (
                self._checked((*loc, name), name, _header_name),
                self._checked((*loc, name), text, _pattern),
            )
            for name, text in headers.items()
        ]
        return tuple((name, pattern) for name, pattern in read if name and pattern)

    def _conditions(self, loc: Loc, written: dict[str, Any]) -> None:
        """Note conditions that are missing or make no sense together."""
        if not any(written.get(key) for key in ("status", "header", "codes", "pointer", "message")):
            self.notes.problem(
                loc, "has no condition", "add one of status, header, codes, pointer, message"
            )
        for key in ("equals", "regex"):
            if key in written and "pointer" not in written:
                self.notes.problem(
                    (*loc, key), "has no pointer to a value", "add pointer: /error/code"
                )
        statuses = [s for _, s in _items(written.get("status")) if isinstance(s, int)]
        if any(s < 400 for s in statuses) and not {"pointer", "codes"} & written.keys():
            self.notes.problem(
                (*loc, "status"),
                "a success status is not an error by itself",
                "add pointer: /error/code, or whatever identifies the error inside",
            )
        if written.get("missing_model") and written.get("class") != OutcomeClass.REQUEST_ERROR:
            self.notes.problem(
                (*loc, "missing_model"), "belongs to a request_error", "write class: request_error"
            )

    def _equals(self, loc: Loc, written: Any) -> frozenset[str]:
        values = written if isinstance(written, list) else [written]
        if written is None:
            return frozenset()
        if not values or not all(isinstance(value, str | int | float) for value in values):
            self.notes.problem(
                loc, f"{shown(written)} is not a value", "write text, a number, or a list of them"
            )
            return frozenset()
        return frozenset(
            str(value).lower() if isinstance(value, bool) else str(value) for value in values
        )

    def _resets(self, loc: Loc, written: dict[str, Any]) -> tuple[Reset, ...] | None:
        """Return where resets are named: None for the usual places, () for nowhere."""
        value = written.get("reset")
        if "reset" not in written or value == "none":
            return () if value == "none" else None
        if value == "message":
            return (Reset(),)
        if not isinstance(value, dict):
            self.notes.problem(
                loc,
                f"{shown(value)} is not accepted",
                "write message, none, or {header: retry-after, as: seconds}",
            )
            return None
        if not self.notes.has_shape(loc, "reset", value):
            return None
        given = [key for key in ("header", "pointer") if key in value]
        if len(given) != 1:
            wrong = "names both header and pointer" if given else "names neither header nor pointer"
            self.notes.problem(loc, wrong, "write one of {header: NAME}, {pointer: /a/b}")
            return None
        return (
            Reset(
                header=self._checked((*loc, "header"), value.get("header"), _header_name),
                pointer=self._checked((*loc, "pointer"), value.get("pointer"), _pointer),
                spelling=value.get("as", "auto"),
            ),
        )


def _items(written: Any) -> Iterator[tuple[int, Any]]:
    """Yield position and value of a list; nothing for what is none."""
    yield from enumerate(written if isinstance(written, list) else ())
