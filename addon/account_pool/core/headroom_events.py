"""What JSON events and bodies say of windows: the same as headers, in other words.

Looked for only where a provider says that it sends them (`Provider.headroom_marks`). Total,
as `headroom_words.py`; sections named here are those of providers.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import msgspec

from account_pool.core import headroom_headers
from account_pool.core.headroom import Window
from account_pool.core.headroom_words import Asked, planned, snapshot, snapshot_parts

# Bounds on what is read of a hostile event.
_MAX_ITEMS = 16
_MAX_HEADERS = 64
_MAX_NAME_CHARS = 100


def read(content: bytes, marks: tuple[bytes, ...], asked: Asked) -> list[Window]:
    """Return the windows told in *content*: one frame, or some events of a stream.

    *marks*: one of them stands in every event that tells of any.
    """
    windows: list[Window] = []
    for line in content.split(b"\n"):
        if any(mark in line for mark in marks):
            windows += told(_json(line.removeprefix(b"data:")), asked)
    return windows


def told(event: Any, asked: Asked) -> list[Window]:
    """Return the windows that one event tells of."""
    if not isinstance(event, dict):
        return []
    return [window for read_one in _READERS for window in read_one(event, asked)]


def _json(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _members(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


# -- kinds of events


def _codex(event: Mapping[str, Any], asked: Asked) -> Iterator[Window]:
    """`codex.rate_limits` of Codex (3.4), in a stream or a frame.

    Without a name it is about the account; names are those of openai/codex
    `codex-rs/codex-api/src/rate_limits.rs`, the second one is that of a model.
    """
    if event.get("type") != "codex.rate_limits":
        return
    limit, name = event.get("metered_limit_name"), event.get("limit_name")
    named = next((text for text in (name, limit) if isinstance(text, str)), "codex")
    model = None if "codex" in (limit, named) else named[:_MAX_NAME_CHARS].lower()
    limits = _members(event.get("rate_limits"))
    for slot in ("primary", "secondary"):
        parts = {key.replace("_", "-"): value for key, value in _members(limits.get(slot)).items()}
        if window := planned(slot, parts, model, asked):
            yield window


def _copilot(event: Mapping[str, Any], asked: Asked) -> Iterator[Window]:
    """`copilot_quota_snapshots` of Copilot (1.4, 1.5), beside whatever the frame is about."""
    snapshots = _members(event.get("copilot_quota_snapshots"))
    for name, value in islice(snapshots.items(), _MAX_ITEMS):
        if window := snapshot(name, snapshot_parts(value), asked):
            yield window


def _headers_inside(event: Mapping[str, Any], asked: Asked) -> Iterator[Window]:
    """Frames of Codex that carry headers: errors, `codex.response.metadata` (3.4)."""
    headers = islice(_members(event.get("headers")).items(), _MAX_HEADERS)
    fields = [
        (name.encode(errors="replace"), str(value).encode(errors="replace"))
        for name, value in headers
        if isinstance(value, str | int | float)
    ]
    yield from headroom_headers.read(fields, asked)


_READERS: tuple[Callable[[Mapping[str, Any], Asked], Iterator[Window]], ...] = (
    _codex,
    _copilot,
    _headers_inside,
)
