"""Reads the single values of a user's own provider. Each function raises Wrong."""

from __future__ import annotations

import re
from datetime import tzinfo

from account_pool.core import json_pointer, reset_hints
from account_pool.core.wrong import Wrong, shown, unknown
from account_pool.providers.patterns import compile_pattern
from account_pool.providers.user_defined import PathRule, Pointer

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}\Z")
#: What makes a request what it is; neither a credential nor dropped.
_NOT_OURS = frozenset(
    {"connection", "content-encoding", "content-length", "content-type", "host", "te"}
    | {"trailer", "transfer-encoding", "upgrade"}
)
_QUERY = re.compile(r"[A-Za-z0-9._~-]{1,64}\Z")


def path_rule(text: str) -> PathRule:
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


def header_name(text: str) -> str:
    """Return the name of a header in lower case."""
    if not _HEADER.match(text):
        raise Wrong(f"{shown(text)} is not the name of a header", "write one such as x-team")
    return text.lower()


def own_header(text: str) -> str:
    """Return the name of a header that may belong to an account."""
    name = header_name(text)
    if name in _NOT_OURS:
        raise Wrong(f"{name} belongs to the request, not to an account", "name another header")
    return name


def query_name(text: str) -> str:
    """Return the name of a query parameter."""
    if not _QUERY.match(text):
        raise Wrong(f"{shown(text)} is not the name of a parameter", "write one such as key")
    return text


def pattern(text: str) -> re.Pattern[str]:
    """Read a regular expression that cannot run for ever."""
    try:
        return compile_pattern(text)
    except ValueError as error:
        raise Wrong(
            str(error), "write a regular expression of Python, such as quota.*exceeded"
        ) from None


def pointer(text: str) -> Pointer:
    """Read a JSON pointer."""
    try:
        return json_pointer.steps(text)
    except ValueError as error:
        raise Wrong(str(error), "write one such as /error/code") from None


def grouping(text: str) -> re.Pattern[str]:
    """Read a regular expression with one group."""
    read = pattern(text)
    if read.groups != 1:
        raise Wrong("has not one group", "put the part that is meant in parentheses: team (\\w+)")
    return read


def time_zone(text: str) -> tzinfo:
    """Read a time zone: `Asia/Shanghai`, `+08:00`, UTC."""
    if (zone := reset_hints.time_zone(text)) is None:
        raise Wrong(
            f"{shown(text)} is not a time zone", "write one such as Asia/Shanghai or +08:00"
        )
    return zone
