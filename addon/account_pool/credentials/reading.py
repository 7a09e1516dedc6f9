"""What a text holds: a token, JSON with one at a pointer, or the login of a known tool.

What is said of the credential (when it ends, whose it is) is read with it. Values in, values
out; where the text comes from is `files.py` and `keychain.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from account_pool.core import json_pointer
from account_pool.core.credential import Secret
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.sources import Reading, usable
from account_pool.credentials.vendor_logins import TOOLS, Shape, logged_out, recognise
from account_pool.providers.token_forms import hidden

_NOTHING = object()
#: How the end of a token is named that stands beside it.
_EXPIRY_NAMES = ("expires_at", "expiresAt", "expiry_date", "expiry", "expires")


@dataclass(frozen=True, slots=True)
class Text:
    """A text that holds a credential, as it is called in messages.

    Attributes:
        what: "the file ~/x".
        name: "~/x".
        pointer: RFC 6901, where the credential is in JSON; None: all of it is one, or a
            known tool's login is.
        tool: whose it is by its name, if any is known.
    """

    what: str
    name: str
    pointer: str | None = None
    tool: str | None = None

    def read(self, text: str) -> Reading:
        """Return the credential in *text* and what is said of it. Raises CredentialError."""
        document = self._document(text)
        shape = recognise(document)
        tool = self.tool or (TOOLS.get(shape.provider) if shape is not None else None)
        if self.pointer is not None:
            secret = self._at_pointer(self.pointer, document, shape, tool)
        elif isinstance(document, dict | list):
            secret = self._of_tool(shape, tool)
        elif not text.strip() and (remedy := logged_out(tool)):
            raise CredentialError(f"{self.what} is empty", remedy)
        else:
            secret = usable(text, self.what)
        if shape is not None and shape.access == secret.reveal():
            return Reading(
                secret=secret,
                expires_at=instant(shape.expires_at),
                companions=shape.companions,
                login_ends_at=instant(shape.login_ends_at),
            )
        return Reading(secret=secret, expires_at=_expiry_beside(document, self.pointer))

    def _document(self, text: str) -> Any:
        """Return the JSON in *text*; None when it is none and need not be."""
        try:
            return json.loads(text)
        # A deep one ends in RecursionError.
        except (ValueError, RecursionError):
            if self.pointer is None and not text.lstrip().startswith(("{", "[")):
                return None
            # `from None`: a JSON error carries the document, which is a secret.
            raise CredentialError(
                f"{self.what} is not JSON, or only a part of it was written",
                "name one that is JSON; it is read again",
            ) from None

    def _at_pointer(
        self, pointer: str, document: Any, shape: Shape | None, tool: str | None
    ) -> Secret:
        value = json_pointer.find(document, json_pointer.steps(pointer), _NOTHING)
        shown = hidden(pointer)
        is_blank = value is None or (isinstance(value, str) and not value.strip())
        remedy = None
        if (value is _NOTHING or is_blank) and not _has_login(shape):
            remedy = logged_out(tool)
        if value is _NOTHING:
            raise CredentialError(
                f"{self.what} has nothing at {shown}",
                remedy or "correct the pointer; each part of it is a key of the JSON",
            )
        if is_blank and remedy:
            raise CredentialError(f"the value at {shown} in {self.name} is empty", remedy)
        if not isinstance(value, str):
            raise CredentialError(
                f"the value at {shown} in {self.name} is not text", "point to the token itself"
            )
        return usable(value, f"the value at {shown} in {self.name}")

    def _of_tool(self, shape: Shape | None, tool: str | None) -> Secret:
        """Return the token of the login in JSON without a pointer."""
        if shape is not None and _has_login(shape):
            return usable(shape.access, f"the token in {self.name}")
        raise CredentialError(
            f"{self.what} holds no login",
            logged_out(tool) or "add pointer: /json/pointer, which says where the token is",
        )


def _has_login(shape: Shape | None) -> bool:
    return shape is not None and isinstance(shape.access, str) and bool(shape.access.strip())


def _expiry_beside(document: Any, pointer: str | None) -> float | None:
    """Return when the token at *pointer* ends, if a usual name beside it says so."""
    if not pointer:
        return None
    document = json_pointer.find(document, json_pointer.steps(pointer)[:-1])
    if not isinstance(document, dict):
        return None
    return next((instant(document[name]) for name in _EXPIRY_NAMES if name in document), None)


def instant(value: Any) -> float | None:
    """Return *value* as seconds since the epoch; what cannot be read says nothing."""
    try:
        return read_instant(value)
    except CredentialError:
        return None


#: A number above this is in milliseconds: as seconds it would be after the year 5000.
_MILLISECONDS_FROM = 1e11


def read_instant(value: Any, name: str = "expires_at") -> float | None:
    """Return *value* as seconds since the epoch, None for None.

    Takes seconds, milliseconds, a date of YAML, or RFC 3339; without a zone it is UTC.
    Raises CredentialError.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = _parsed(value.strip())
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e14:
        return value / 1000 if value >= _MILLISECONDS_FROM else float(value)
    raise CredentialError(
        f"{name} is not a point in time", "write it as 2026-12-01T00:00:00Z, or leave it out"
    )


def written_instant(at: float) -> str:
    """Return *at*, seconds since the epoch, as accounts.yaml has it: whole seconds, RFC 3339."""
    try:
        whole = datetime.fromtimestamp(at, UTC).replace(microsecond=0)
    except (ValueError, OSError, OverflowError):
        return str(at)
    return whole.isoformat().replace("+00:00", "Z")


def _parsed(text: str) -> datetime | float | None:
    # A number first: some of them are dates as well to `fromisoformat`.
    for parse in (float, datetime.fromisoformat):
        try:
            return parse(text)
        except ValueError:
            continue
    return None
