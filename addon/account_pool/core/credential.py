"""A secret that cannot be printed by accident, and what belongs to it.

`Secret` is the only type in the project that holds a credential. Everything that
turns objects into text (repr, str, format, f-strings, logging, pickling) sees a
mask; the one place that needs the value calls `reveal()`, which is easy to grep.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import NoReturn

from msgspec import Struct, field

MASK = "[secret]"
#: No token lives so long, seconds: an end beyond it is a placeholder for "never", or a slip.
LONGEST_LIFE_S = 10 * 366 * 86400.0
#: Companions that say whose a credential is; all that are there tell two accounts apart.
_WHOSE = ("account_id", "user_id")


class Secret:
    """A string that shows itself only to who calls `reveal()`."""

    __slots__ = ("_digest", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        self._digest = ""

    def reveal(self) -> str:
        """Return the secret. Call it only where the copy that is sent is made."""
        return self._value

    def masked(self, text: str) -> str:
        """Return *text* with the secret masked wherever it stands, in any case."""
        value = self._value
        if not value or value.lower() not in text.lower():
            return text
        return re.sub(re.escape(value), MASK, text, flags=re.IGNORECASE)

    def digest(self) -> str:
        """Return what tells it from other secrets and does not tell it."""
        if not self._digest:
            value = self._value.encode(errors="backslashreplace")
            self._digest = sha256(b"account-pool\0" + value).hexdigest()[:32]
        return self._digest

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never serialised")

    # object's own hands out the slots to whoever asks (Python 3.11 and later).
    __getstate__ = __reduce__


class Credential(Struct, frozen=True, kw_only=True):
    """One usable credential of an account.

    Attributes:
        kind: what it authenticates as. Kinds never mix: "key" (API keys), "oauth"
            (subscription tokens), "copilot" (exchanged Copilot token), "github" (the
            GitHub token itself).
        secret: the value that goes on the wire.
        companions: what must move with it (account_id, project, host ...).
        expires_at: wall clock, seconds since the epoch; None if it does not expire, or
            nobody knows when.
        doubtful: what is said of its end cannot be true, so it may be over: it is used
            when no other account can serve.
    """

    kind: str
    secret: Secret
    companions: Mapping[str, str] = field(default_factory=dict)
    expires_at: float | None = None
    doubtful: bool = False


def fingerprint(credentials: Mapping[str, Credential]) -> str:
    """Return what tells *credentials* from others of the same account, to be kept."""
    parts = [
        (kind, held.secret.digest(), sorted(held.companions.items()))
        for kind, held in sorted(credentials.items())
    ]
    return sha256(ascii(parts).encode()).hexdigest()[:32]


def is_plausible_end(expires_at: float, wall_now: float) -> bool:
    """Say whether a credential that is read at *wall_now* may end then (seconds since the epoch).

    What has ended already is none that a tool would keep: 0 and the like stand for "unknown".
    """
    return wall_now < expires_at <= wall_now + LONGEST_LIFE_S


def identity(credentials: Mapping[str, Credential]) -> str:
    """Return whose *credentials* are, to be kept and compared; "" if they do not say.

    By the name of each companion that says so, a hash of it.
    """
    if not any(held.companions for held in credentials.values()):
        return ""
    said = {
        name: sha256(value.encode()).hexdigest()[:16]
        for held in credentials.values()
        for name in _WHOSE
        if (value := held.companions.get(name))
    }
    return ";".join(f"{name}={digest}" for name, digest in sorted(said.items()))


def are_of_others(one: str, other: str) -> bool:
    """Say whether two identities are those of different accounts; unknown ones are not."""
    if not (one and other):
        return False
    said = dict(part.split("=", 1) for part in one.split(";") if "=" in part)
    also = dict(part.split("=", 1) for part in other.split(";") if "=" in part)
    return any(said[name] != also[name] for name in said.keys() & also.keys())
