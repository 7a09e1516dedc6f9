"""Finds a value in JSON by its pointer (RFC 6901), e.g. /error/details/0/reason."""

from __future__ import annotations

from typing import Any


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
