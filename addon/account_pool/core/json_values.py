"""Values of JSON that may have any shape: read, found by a pointer, or in the bytes they stand in.

A pointer (RFC 6901) is one such as /error/details/0/reason.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

import msgspec

#: What msgspec raises where a text is no JSON, or none of the type that is wanted.
NOT_READ = (msgspec.MsgspecError, UnicodeError, RecursionError)


def decoded(text: bytes | str) -> Any:
    """Return the value that *text* is, None if it is no JSON."""
    try:
        return msgspec.json.decode(text)
    except NOT_READ:
        return None


def text_in(value: object) -> str | None:
    """Return *value* if it is text, and not empty."""
    return value if isinstance(value, str) and value else None


def members(value: Any) -> Mapping[str, Any]:
    """Return *value* if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def finite_number(value: object) -> float | None:
    """Return a number, which may be of any size; None for what is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if isfinite(found) else None


def steps(pointer: str) -> tuple[str, ...]:
    """Return the keys *pointer* goes through. Raises ValueError that says what is wrong."""
    if pointer and not pointer.startswith("/"):
        raise ValueError("a pointer starts with /")
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:])


def find(document: Any, path: tuple[str, ...], missing: Any = None) -> Any:
    """Return what stands in *document* where the keys *path* lead, *missing* if nothing does."""
    for step in path:
        if isinstance(document, dict) and step in document:
            document = document[step]
        elif isinstance(document, list) and step.isdecimal() and int(step) < len(document):
            document = document[int(step)]
        else:
            return missing
    return document


# -- in the bytes of a body (UTF-8, RFC 8259), so that only one value of it need be changed
#
# A request of a tool is signed, cached and compared by its exact bytes in places: whoever
# changes one member must leave the others as they are, their order and spelling included.
# What is no JSON gives no span or one that does not matter: the provider will refuse it.

#: First and one past the last byte of a value.
Span = tuple[int, int]

# Possessive: a string of a megabyte must not be remembered character by character.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN = re.compile(_STRING + rb"|[{}\[\]]", re.DOTALL)
_COLON = re.compile(rb"\s*:\s*")
_SCALAR = re.compile(_STRING + rb"|[^\s,\]}]+", re.DOTALL)
_OPENING, _CLOSING, _QUOTE = b"{[", b"}]", ord('"')


def start_of_object(body: bytes) -> int | None:
    """Return where the object that *body* is begins, None if it is none."""
    start = len(body) - len(body.lstrip(b" \t\r\n"))
    return start if body[start : start + 1] == b"{" else None


def top_member_spans(body: bytes, name: str) -> list[Span]:
    """Return the values of *name* in the object that *body* is, as `member_spans` does.

    A conversation may be of megabytes: where it is certain which bytes are meant, they are
    found by the JSON parser, which is several times as fast. *name* is an identifier.
    """
    quoted = msgspec.json.encode(name)
    try:
        value = _decoder(name).decode(body).value
    except NOT_READ:
        return member_spans(body, name, start_of_object(body))
    if value is msgspec.UNSET:
        return []
    # Another spelling of the name may be the one that was read.
    if body.count(quoted) == 1 and not _has_escaped(body, name):
        colon = _COLON.match(body, body.find(quoted) + len(quoted))
        span = _value(body, colon.end()) if colon else None
        if span is not None and body[slice(*span)] == bytes(value):
            return [span]
    return member_spans(body, name, start_of_object(body))


def _has_escaped(body: bytes, name: str) -> bool:
    """Say whether a character of *name* is escaped anywhere: `\\u0061`."""
    first = body.find(b"\\u00")
    return first != -1 and _escapes(name).search(body, first) is not None


@functools.cache
def _escapes(name: str) -> re.Pattern[bytes]:
    codes = {f"{ord(char):02x}" for char in name}
    codes |= {code.upper() for code in codes}
    # No IGNORECASE: it costs the quick search for what stands before the codes.
    return re.compile(rf"\\u00(?:{'|'.join(sorted(codes))})".encode())


@functools.cache
def _decoder(name: str) -> Any:
    """Return a decoder that keeps the bytes of one member and only checks the rest."""
    field = ("value", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET)
    return msgspec.json.Decoder(msgspec.defstruct("Top", [field], rename={"value": name}))


def member_spans(body: bytes, name: str, start: int | None) -> list[Span]:
    """Return the values of *name* in the object that begins at *start*.

    One, or several if it is repeated: some readers take the first then and some the last.
    """
    if start is None or body[start : start + 1] != b"{":
        return []
    found, at = [], start + 1
    while (token := _TOKEN.search(body, at)) and body[token.start()] == _QUOTE:
        colon = _COLON.match(body, token.end())
        span = _value(body, colon.end()) if colon else None
        if span is None:
            break
        if _text(token[0]) == name:
            found.append(span)
        at = span[1]
    return found


def _value(body: bytes, at: int) -> Span | None:
    """Return the span of the value that begins at *at*."""
    if body[at : at + 1] not in (b"{", b"["):
        scalar = _SCALAR.match(body, at)
        return scalar.span() if scalar else None
    depth, end = 0, at
    while token := _TOKEN.search(body, end):
        end = token.end()
        first = body[token.start()]
        if first in _OPENING:
            depth += 1
        elif first in _CLOSING:
            depth -= 1
            if depth == 0:
                return at, end
    return None


def _text(string: bytes) -> str | None:
    try:
        return msgspec.json.decode(string, type=str)
    except NOT_READ:
        return None


def replaced(body: bytes, spans: list[Span], value: bytes) -> bytes:
    """Return *body* with *value* at each of *spans*; the same object if nothing changes."""
    if all(body[start:end] == value for start, end in spans):
        return body
    for start, end in sorted(spans, reverse=True):
        body = body[:start] + value + body[end:]
    return body
