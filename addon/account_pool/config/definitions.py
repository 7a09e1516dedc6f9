"""Reads what a provider of the user's own says beside `like` and `hosts`.

Paths, where the credential goes, headers, limit rules: the shape was checked before,
here it is what the values say. What comes out is `providers.user_defined.Definition`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from account_pool.config import definition_values as values
from account_pool.config.document import Document, Loc
from account_pool.config.explain import REMEDIES, check_shape
from account_pool.config.models import AccountShape, ResetShape
from account_pool.config.problems import Wrong, shown
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.providers.user_defined import (
    CLASSES,
    Definition,
    LimitRule,
    Placement,
    Reset,
)

T = TypeVar("T")

#: Keys of a provider that are read here.
KEYS = ("paths", "credential", "drop", "companions", "owner", "limits")
#: Those of them that say how a credential goes on the wire.
WIRE_KEYS = ("credential", "drop", "companions")

_COMPANION = re.compile(r"[a-z][a-z0-9_]{0,31}\Z")
_PREFIX = re.compile(r"[\x20-\x7e]{0,64}\Z")
#: Keys an account has anyway.
_TAKEN = frozenset(AccountShape.model_fields) - {
    "account_id",
    "organization",
    "openai_project",
    "project",
}


def read_definition(document: Document, loc: Loc, written: Mapping[str, Any]) -> Definition:
    """Return what *written* says; what is wrong is noted in *document*."""
    return _Reader(document).definition(loc, written)


@dataclass(slots=True)
class _Reader:
    """Reads values; None or nothing for one that is wrong, which is noted."""

    document: Document

    def definition(self, loc: Loc, written: Mapping[str, Any]) -> Definition:
        limits = _items(written.get("limits"))
        rules = [self._limit((*loc, "limits", i), rule) for i, rule in limits]
        paths = [
            self._checked((*loc, "paths", i), path, values.path_rule)
            for i, path in _items(written.get("paths"))
        ]
        drop = [
            self._checked((*loc, "drop", i), name, values.own_header)
            for i, name in _items(written.get("drop"))
        ]
        return Definition(
            paths=tuple(path for path in paths if path),
            credential=self._credential((*loc, "credential"), written.get("credential")),
            drop=tuple(name for name in drop if name),
            companions=self._companions((*loc, "companions"), written.get("companions")),
            owner=self._checked((*loc, "owner"), written.get("owner"), values.header_name),
            limits=tuple(rule for rule in rules if rule),
        )

    def _checked(self, loc: Loc, value: Any, read: Callable[[str], T]) -> T | None:
        """Return what *read* makes of a text; what is no text was told by its shape."""
        if not isinstance(value, str) or not value:
            return None
        try:
            return read(value)
        except Wrong as error:
            self.document.problem(loc, error.wrong, error.remedy)
            return None

    def _credential(self, loc: Loc, written: Any) -> Placement | None:
        if not isinstance(written, dict):
            return None
        given = [key for key in ("header", "query") if key in written]
        if len(given) != 1:
            wrong = "names both header and query" if given else "names neither header nor query"
            self.document.problem(loc, wrong, REMEDIES["credential"])
            return None
        header = self._checked((*loc, "header"), written.get("header"), values.own_header)
        query = self._checked((*loc, "query"), written.get("query"), values.query_name)
        usual = "Bearer " if header == "authorization" else ""
        prefix = written.get("prefix", usual)
        if "query" in written and "prefix" in written:
            self.document.problem((*loc, "prefix"), "belongs to a header", "remove it")
        elif isinstance(prefix, str) and not _PREFIX.match(prefix):
            self.document.problem(
                (*loc, "prefix"), "cannot stand in a header", 'write one such as "Bearer "'
            )
        return Placement(header, prefix if isinstance(prefix, str) else "", query)

    def _companions(self, loc: Loc, written: Any) -> dict[str, str]:
        companions: dict[str, str] = {}
        for key, header in written.items() if isinstance(written, dict) else ():
            if not _COMPANION.match(key) or key in _TAKEN:
                self.document.problem(
                    (*loc, key),
                    "cannot be a key of its accounts",
                    "write a name of its own such as workspace, in lower case",
                )
            name = self._checked((*loc, key), header, values.own_header)
            if name is not None:
                companions[key] = name
        return companions

    def _limit(self, loc: Loc, written: Any) -> LimitRule | None:
        if not isinstance(written, dict):
            return None
        headers = written.get("header")
        headers = headers if isinstance(headers, dict) else {}
        names = {
            name: self._checked((*loc, "header", name), name, values.header_name)
            for name in headers
        }
        patterns = {
            name: self._checked((*loc, "header", name), text, values.pattern)
            for name, text in headers.items()
        }
        status = written.get("status")
        self._conditions(loc, written)
        cls, scope = written.get("class"), written.get("scope")
        equals = self._equals((*loc, "equals"), written.get("equals"))
        resets = self._resets((*loc, "reset"), written)
        pointer = self._checked((*loc, "pointer"), written.get("pointer"), values.pointer)
        regex = self._checked((*loc, "regex"), written.get("regex"), values.pattern)
        message = self._checked((*loc, "message"), written.get("message"), values.pattern)
        model = self._checked((*loc, "model"), written.get("model"), values.pointer)
        if cls not in CLASSES or (scope is not None and scope not in tuple(Scope)):
            return None
        return LimitRule(
            cls=OutcomeClass(cls),
            scope=None if scope is None else Scope(scope),
            source=f"{self.document.path.name}:{self.document.line(loc)}",
            status=frozenset(s for _, s in _items(status) if isinstance(s, int)),
            headers=tuple(
                (name, pattern)
                for written_name, pattern in patterns.items()
                if (name := names[written_name]) and pattern
            ),
            pointer=pointer,
            equals=equals,
            regex=regex,
            message=message,
            resets=resets,
            model=model,
        )

    def _conditions(self, loc: Loc, written: dict[str, Any]) -> None:
        """Note conditions that are missing or make no sense together."""
        if not any(written.get(key) for key in ("status", "header", "pointer", "message")):
            self.document.problem(
                loc, "has no condition", "add one of status, header, pointer, message"
            )
        for key in ("equals", "regex"):
            if key in written and "pointer" not in written:
                self.document.problem(
                    (*loc, key), "has no pointer to a value", "add pointer: /error/code"
                )
        statuses = [s for _, s in _items(written.get("status")) if isinstance(s, int)]
        if any(status < 400 for status in statuses) and "pointer" not in written:
            self.document.problem(
                (*loc, "status"),
                "a good status is no error by itself",
                "add pointer: /error/code, or whatever tells the error inside",
            )

    def _equals(self, loc: Loc, written: Any) -> frozenset[str]:
        values = written if isinstance(written, list) else [written]
        if written is None:
            return frozenset()
        if not values or not all(isinstance(value, str | int | float) for value in values):
            self.document.problem(
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
            self.document.problem(
                loc,
                f"{shown(value)} is not accepted",
                "write message, none, or {header: retry-after, as: seconds}",
            )
            return None
        if not check_shape(self.document, loc, ResetShape, value):
            return None
        given = [key for key in ("header", "pointer") if key in value]
        if len(given) != 1:
            wrong = "names both header and pointer" if given else "names no place"
            self.document.problem(loc, wrong, "write one of {header: NAME}, {pointer: /a/b}")
            return None
        return (
            Reset(
                header=self._checked((*loc, "header"), value.get("header"), values.header_name),
                pointer=self._checked((*loc, "pointer"), value.get("pointer"), values.pointer),
                spelling=value.get("as", "auto"),
            ),
        )


def _items(written: Any) -> Iterator[tuple[int, Any]]:
    """Yield position and value of a list; nothing for what is none."""
    yield from enumerate(written if isinstance(written, list) else ())
