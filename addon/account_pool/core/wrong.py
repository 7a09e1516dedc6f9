"""What is wrong with a value somebody wrote, said so that its owner can correct it.

A value is repeated only where it helps and cannot be a secret: see `shown`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from account_pool.core.meaning import LazyPattern

MAX_SHOWN_CHARS = 40
NOT_SHOWN = "[not shown]"

#: Beginnings of credentials, wherever they stand, and any long run of their characters.
#: A secret pasted behind the wrong key must not come back in the message about that key.
_SECRET = LazyPattern(
    r"sk[-_]|gh[a-z]_|github_pat_|AIza|xai-|gsk_|tid=|eyJ|ya29\.|[Bb]earer"
    r"|(?=[A-Za-z_+/=-]*[0-9])[A-Za-z0-9_+/=-]{20,}|[A-Za-z0-9_+/=-]{24,}"
)
#: Keys of other programs' files, and what they are called here.
_SYNONYMS = {
    "name": "label",
    "alias": "label",
    "key": "token",
    "api_key": "token",
    "apikey": "token",
    "secret": "token",
    "credential": "token",
    "access_token": "token",
    "vendor": "provider",
    "service": "provider",
    "environment": "env",
    "variable": "env",
    "path": "file",
    "cmd": "command",
    "concurrency": "max_concurrent",
    "disabled": "enabled",
}
#: The same in a text of other programs: a path is none, a password in an address is.
_LIKELY = LazyPattern(
    r"\b(?:sk[-_]|gh[a-z]_|github_pat_|AIza|xai-|gsk_|eyJ|ya29\.)[\w.+/=-]{4,}"
    r"|(?<=[Bb]earer )\S+|(?<=://)[^\s/@]+(?=@)"
    r"|(?<![\w./])(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_+=-]{32,}(?![\w./])"
)
#: Names of windows begin with a number: `5h`, `7d-opus`.
_USUAL_KEY = LazyPattern(r"(?:[A-Za-z][A-Za-z0-9_.-]{0,22}|[0-9]{1,3}[a-z]?[A-Za-z_-]{0,10})\Z")


class Wrong(ValueError):
    """A value that cannot be taken: *wrong* says why, *remedy* what is accepted."""

    def __init__(self, wrong: str, remedy: str) -> None:
        super().__init__(f"{wrong}; {remedy}")
        self.wrong = wrong
        self.remedy = remedy


def shown(value: Any) -> str:
    """Return *value* as it may appear in a message: short, and never a likely secret."""
    match value:
        case None:
            return "no value"
        case bool():
            return "true" if value else "false"
        case int() | float():
            # A number can be a password as well; none of our numbers is that long.
            return str(value) if len(str(value)) <= 12 else "the number"
        case str():
            if _SECRET.search(value):
                return f"the text {NOT_SHOWN}"
            text = value if len(value) <= MAX_SHOWN_CHARS else value[:MAX_SHOWN_CHARS] + "..."
            return json.dumps(text, ensure_ascii=False)
        case list():
            return "a list"
        case _:
            return "a mapping"


def without_secrets(text: str) -> str:
    """Return *text* of another program without what is likely a secret."""
    return _LIKELY.sub(NOT_SHOWN, text)


def shown_key(key: str) -> str:
    """Return a key of the file as it may appear in a message."""
    return key if _USUAL_KEY.match(key) and not _SECRET.search(key) else NOT_SHOWN


def unknown(key: str, accepted: Sequence[str]) -> str:
    """Return the remedy for an unknown *key*: the likely one, or all that are accepted."""
    from difflib import get_close_matches  # noqa: PLC0415 - only where something is wrong

    written = key.strip().lower()
    usual = _SYNONYMS.get(written.replace("-", "_"))
    close = [usual] if usual in accepted else get_close_matches(written, accepted, n=1)
    return f"did you mean {close[0]}?" if close else "write one of " + ", ".join(accepted)


def as_json_list(value: list[Any] | dict[str, Any], check: Callable[[Any], object]) -> str:
    """Return the list *value*, or one of a single entry, in JSON; "" for an empty list.

    Raises what *check* does for an entry.
    """
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        check(entry)
    return json.dumps(entries) if entries else ""
