"""The rows of logins in an engine: what is in them, and how they are read and written.

A login has two: its tokens, and who may refresh it. One row, the era, is of all logins. What was
read is written only where nothing has changed since (`functions/tokens.lua`).

Tokens are sealed, so that an engine and its backups hold none in the clear: AES-256-GCM with a
random nonce. Each text is bound to where it belongs (pool, login and fence): moved elsewhere, or
put back after it was replaced, it does not open. It names the key that it was sealed with by its
id, which tells nothing of the key.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct
from msgspec.structs import asdict

from account_pool.core.claims import Claim
from account_pool.core.credential import Secret
from account_pool.store.account_rows import loads
from account_pool.store.agreed import Held
from account_pool.store.fleet.engine import Engine
from account_pool.store.store import DamagedError, StoreError, Tokens

_LOST = "delete it; its login may have to be made anew"


class Era(Struct, frozen=True, kw_only=True):
    """A time in which an engine has forgotten nothing, as far as it can know.

    Attributes:
        run: the run of the engine; "" where that is not told.
        key: the id of the key that tokens are sealed with.
        id: tells it from others.
        settle_s: how long the slowest proxy may take to notice that it has begun, seconds; 0:
            not known.
    """

    run: str
    since: float
    key: str
    id: str
    settle_s: float = 0.0


class Reply(NamedTuple):
    """What the engine answered.

    Attributes:
        now, run: the time of its clock, and which run of it; "" where that is not told.
        done: what was to be written was written.
        values: of the rows; b"" for one that is not there.
    """

    now: float
    run: str
    done: bool
    values: tuple[bytes, ...]


class TokenRows:
    """The rows of all logins of a pool. Its methods raise StoreError."""

    def __init__(self, engine: Engine, keyring: Keyring) -> None:
        self._engine = engine
        self._keyring = keyring

    def read_era(self) -> Reply:
        return self._swap(["era"])

    def read(self, family: str) -> Reply:
        """Return the rows of a login: the era, its tokens, its claim."""
        return self._swap(_names(family))

    def write_era(self, before: bytes, era: Era) -> None:
        """Write *era* in place of *before*, if that is what is there."""
        self._swap(["era"], "", before, json.dumps(asdict(era)))

    def write(
        self,
        family: str,
        before: Sequence[bytes],
        tokens: Held | None,
        claim: Claim | None,
        *,
        until: float,
        lasting: bool,
    ) -> bool:
        """Write tokens and claim, where given; say whether that was done.

        It is where *before* is what is there, era included, and the time is not after *until*.
        *lasting*: a replica has it then, too.
        """
        new_tokens = new_claim = ""
        if tokens is not None:
            sealed = self.seal(family, *tokens)
            new_tokens = json.dumps({"fence": tokens[1], "sealed": sealed})
        if claim is not None:
            new_claim = json.dumps(asdict(claim))
        written = "", new_tokens, new_claim  # the era stays
        names, until_text = _names(family), f"{until:.6f}"
        return self._swap(names, until_text, *before, *written, lasting=lasting).done

    def seal(self, family: str, tokens: Tokens, fence: int) -> str:
        """Return *tokens* as a text that opens as those of this login and claim only."""
        plain = {
            "access": None if tokens.access is None else tokens.access.reveal(),
            "refresh": tokens.refresh.reveal(),
            "expires_at": tokens.expires_at,
            "refreshed_at": tokens.refreshed_at,
            "companions": dict(tokens.companions),
        }
        return self._keyring.seal(json.dumps(plain).encode(), bound_to=self._place(family, fence))

    def open(self, family: str, fence: int, sealed: str, what: str) -> Tokens:
        """Return what was sealed; *what*, with its verb, is for messages."""
        plain = self._keyring.open(sealed, bound_to=self._place(family, fence), what=what)
        match loads(plain):
            case {
                "access": str() | None as access,
                "refresh": str(refresh),
                "expires_at": int() | float() | None as expires_at,
                "refreshed_at": int() | float() | None as refreshed_at,
                "companions": dict(companions),
            }:
                return Tokens(
                    access=None if access is None else Secret(access),
                    refresh=Secret(refresh),
                    expires_at=expires_at,
                    refreshed_at=refreshed_at,
                    companions=companions,
                )
        raise DamagedError(f"{what} damaged", _LOST)

    def tokens_of(self, family: str, raw: bytes) -> Held | None:
        """Return what a row of tokens holds."""
        if not raw:
            return None
        key = self._engine.key(f"tokens:{family}")
        match loads(raw):
            case {"fence": int(fence), "sealed": str(sealed)}:
                return self.open(family, fence, sealed, f"{key} is"), fence
        raise DamagedError(f"{key} is damaged", _LOST)

    def claim_of(self, family: str, raw: bytes) -> Claim:
        """Return what a row of a claim holds."""
        if not raw:
            return Claim()
        match loads(raw):
            case {
                "fence": int(fence),
                "owner": str(owner),
                "until": int() | float() as until,
                "sent": str(sent),
            }:
                return Claim(fence=fence, owner=owner, until=until, sent=sent)
        raise DamagedError(f"{self._engine.key(f'claim:{family}')} is damaged", _LOST)

    def _place(self, family: str, fence: int) -> str:
        """Return what sealed tokens belong to: the pool, the login and the claim."""
        return json.dumps([self._engine.key("tokens"), family, fence])

    def _swap(self, names: Sequence[str], *args: str | bytes, lasting: bool = False) -> Reply:
        keys = [self._engine.key(name) for name in names]
        reply = self._engine.call("swap", *args, keys=keys, lasting=lasting)
        try:
            now, run, done, *values = reply
            read = Reply(float(now), run.decode(), bool(done), tuple(map(bytes, values)))
            if len(read.values) == len(keys):
                return read
        except (TypeError, ValueError, AttributeError):
            pass
        raise StoreError("the state engine gave an answer that none of our functions gives")


def era_of(raw: bytes) -> Era | None:
    """Return what the row of the era holds; None where it holds none."""
    row = loads(raw)
    match row:
        case {"run": str(run), "since": int() | float() as since, "key": str(key), "id": str(id_)}:
            settle_s = row.get("settle_s")  # earlier versions do not say it
            known = settle_s if isinstance(settle_s, int | float) else 0.0
            return Era(run=run, since=since, key=key, id=id_, settle_s=known)
    return None


def sealed_with(raw: bytes) -> str:
    """Return the id of the key that a row of tokens is sealed with; "" where it names none."""
    match loads(raw):
        case {"sealed": str(sealed)}:
            return sealed.partition(":")[2].partition(":")[0]
    return ""


def _names(family: str) -> tuple[str, ...]:
    return "era", f"tokens:{family}", f"claim:{family}"


# -- how tokens are sealed

KEY_BYTES = 32
#: How a key is made, for messages and docs.
HOW = "make one with: openssl rand -base64 32"
#: No sealed text is longer, in characters. Tokens are a few thousand.
MAX_CHARS = 1_000_000
#: The form of a sealed text, which begins with it.
_FORM = "1"
_NONCE_BYTES = 12
_HEX = re.compile(r"[0-9A-Fa-f]{64}\Z")


class SealingKeyError(ValueError):
    """What is given is no sealing key; the text says what one is, and repeats none of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """The keys of a proxy: one that seals, and those that only open.

    Attributes:
        id: of the key that seals.
    """

    id: str
    _keys: Mapping[str, AESGCM] = field(repr=False)

    @classmethod
    def read(cls, *texts: Secret) -> Keyring:
        """Return the keys that *texts* have: 32 random bytes each, as base64 or hex.

        The first one seals. The others open what an earlier key has sealed; a text may have
        several, with a comma or white space between. Raises SealingKeyError.
        """
        keys: dict[str, AESGCM] = {}
        for text in texts:
            for written in re.split(r"[,\s]+", text.reveal().strip(", \t\r\n")):
                key = _key_of(written)
                keys.setdefault(_id_of(key), AESGCM(key))
        return cls(id=next(iter(keys)), _keys=keys)

    @property
    def ids(self) -> list[str]:
        """The ids of all keys, that of the one that seals first."""
        return list(self._keys)

    def require(self, key_id: str, what: str) -> None:
        """Raise StoreError unless there is a key with this id; *what* is sealed with it."""
        if key_id not in self._keys:
            raise StoreError(
                f"{what} sealed with the key {key_id}, and this proxy was given "
                f"{' and '.join(self.ids)}; give it the sealing key that the other proxies have"
            )

    def seal(self, plain: bytes, *, bound_to: str) -> str:
        """Return *plain* as a text that opens only where *bound_to* is the same."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._keys[self.id].encrypt(nonce, plain, _bound(self.id, bound_to))
        return f"{_FORM}:{self.id}:{base64.b64encode(sealed).decode('ascii')}"

    def open(self, text: str, *, bound_to: str, what: str) -> bytes:
        """Return what `seal` was given. *what*, with its verb, is for messages.

        Raises StoreError without that key; DamagedError where it was not sealed for this place.
        """
        form, _, rest = text.partition(":")
        key_id, _, encoded = rest.partition(":")
        if form != _FORM and re.fullmatch(r"[0-9]{1,3}", form):
            raise StoreError(
                f"{what} sealed by a newer version of the account pool; upgrade this one"
            )
        wrong = DamagedError(f"{what} damaged", "delete it, and log in again")
        if form != _FORM or not re.fullmatch(r"[0-9a-f]{8}", key_id) or len(text) > MAX_CHARS:
            raise wrong
        self.require(key_id, what)
        try:
            sealed = base64.b64decode(encoded, validate=True)
            if base64.b64encode(sealed).decode("ascii") != encoded:
                raise wrong  # bits at the end that say nothing
            nonce, content = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            return self._keys[key_id].decrypt(nonce, content, _bound(key_id, bound_to))
        except (InvalidTag, ValueError):
            raise wrong from None


def _key_of(text: str) -> bytes:
    try:
        if _HEX.match(text):
            key = bytes.fromhex(text)
        else:
            # Both alphabets, with or without the sign at the end.
            usual = text.rstrip("=").replace("-", "+").replace("_", "/")
            key = base64.b64decode(usual + "=" * (-len(usual) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise SealingKeyError(f"a sealing key is {KEY_BYTES} random bytes as base64 or hex; {HOW}")
    return key


def _id_of(key: bytes) -> str:
    return sha256(b"account-pool sealing key\0" + key).hexdigest()[:8]


def _bound(key_id: str, bound_to: str) -> bytes:
    return f"account-pool {_FORM} {key_id} {bound_to}".encode(errors="backslashreplace")
