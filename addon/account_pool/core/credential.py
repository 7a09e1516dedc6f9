"""A secret that cannot be printed by accident, what belongs to it, and taking it out of texts.

`Secret` is the only type in the project that holds a credential. Everything that
turns objects into text (repr, str, format, f-strings, logging, pickling) sees a
mask; the one place that needs the value calls `reveal()`, which is easy to grep.

Some providers print the key they were given into an error text or a redirect. What reaches a
client, and with it flows, dumps and logs, must not hold it: `mask`, and `proxy/redaction.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import NoReturn
from urllib.parse import quote

from msgspec import Struct, field

MASK = "[secret]"
#: No token lives so long, seconds: an end beyond it is a placeholder for "never", or a slip.
LONGEST_LIFE_S = 10 * 366 * 86400.0
#: Companions that say whose a credential is; all that are there tell two accounts apart.
_WHOSE = ("account_id", "user_id")


#: Credentials in each form in which they may stand in a response.
Secrets = frozenset[bytes]
_Fields = tuple[tuple[bytes, bytes], ...]


class Secret:
    """A string that shows itself only to who calls `reveal()`."""

    __slots__ = ("_digest", "_forms", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        self._digest = ""
        self._forms: Secrets | None = None

    def reveal(self) -> str:
        """Return the secret. Call it only where the copy that is sent is made."""
        return self._value

    def masked(self, text: str) -> str:
        """Return *text* with the secret masked wherever it stands, in any case."""
        value = self._value
        if not value or value.lower() not in text.lower():
            return text
        return re.sub(re.escape(value), MASK, text, flags=re.IGNORECASE)

    def forms(self) -> Secrets:
        """Return it in each form in which a response may echo it."""
        if self._forms is None:
            self._forms = secrets_of([self._value])
        return self._forms

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


class SentSecrets(list[Secret]):
    """The credentials that a request has carried: what comes back may echo them."""

    def echoes(self) -> Secrets:
        """Return what must not be echoed to the client."""
        return Secrets().union(*[secret.forms() for secret in self])


def secrets_of(texts: Iterable[str]) -> Secrets:
    """Return *texts* as they would stand on the wire; empty ones are left out."""
    return frozenset(
        form.encode()
        for text in texts
        if text
        # In JSON some write a slash so.
        for form in (text, quote(text, safe=""), text.replace("/", "\\/"))
    )


def mask(data: bytes, secrets: Secrets) -> bytes:
    """Return *data* with each credential masked by as many asterisks."""
    found = [secret for secret in secrets if secret in data]
    # The longest first: one may begin like another.
    for secret in sorted(found, key=len, reverse=True):
        data = data.replace(secret, b"*" * len(secret))
    return data


def mask_fields(fields: _Fields, secrets: Secrets) -> _Fields:
    """Return header *fields* with every credential in their values masked."""
    # Mostly there is none, which is seen at once.
    values = b"\n".join([value for _, value in fields])
    if not [secret for secret in secrets if secret in values]:
        return fields
    return tuple([(name, mask(value, secrets)) for name, value in fields])


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
