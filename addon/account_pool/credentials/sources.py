"""Where the credential of an account comes from: a value, or the environment.

A source reads, checks that what it read can be a credential at all, and says in words
what is missing. It does not know what the credential is for. The environment comes in
through the constructor; nothing here reads `os.environ`. The other sources:
`command.py`, `files.py`, `keychain.py`, `oauth.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import ClassVar

from account_pool.core.account import Account
from account_pool.core.credential import Secret
from account_pool.credentials.errors import CredentialError
from account_pool.providers.base import Provider
from account_pool.providers.token_forms import remedy

#: `$$` is a dollar sign, `${NAME}` a variable; "${" without its "}" is a mistake.
_REFERENCE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>[^}]*)(?P<end>\}?))")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
#: Only names in the usual spelling are repeated in messages: `${ghp_...}` and
#: `{env: sk_...}` are tokens somebody put in the wrong place.
_USUAL_NAME = re.compile(r"(?=.{1,64}\Z)_*[A-Z][A-Z0-9]{0,15}(?:_+[A-Z0-9]{1,16})*_*\Z")
#: What may stand in a header value and in no word of it: RFC 9110, section 5.5.
_NOT_A_TOKEN = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A credential, and what is said of it where it was read.

    Attributes:
        secret: the credential.
        expires_at: when it ends, seconds since the epoch; None if that is not said.
        companions: what belongs to it, e.g. account_id.
        login_ends_at: when the login it comes from ends, however often it is renewed.
    """

    secret: Secret
    expires_at: float | None = None
    companions: Mapping[str, str] = field(default_factory=dict)
    login_ends_at: float | None = None


class Source:
    """Where one credential is read from; each has a `read` or a `reading` of its own.

    Attributes:
        look_s: seconds until it is read again, as its tool may have renewed the token in it;
            None: not before the server refuses that.
    """

    __slots__ = ()
    look_s: ClassVar[float | None] = None

    def describe(self) -> str:
        """Name the place in a few words, e.g. "env OPENAI_API_KEY"; never the secret."""
        raise NotImplementedError

    @property
    def login_ends_at(self) -> float | None:
        """When the owner has to log in again, seconds since the epoch; None if not known."""
        return None

    def read_now(self) -> Secret | None:
        """Return the credential, or None when it takes time (a command): use `read`.

        Raises CredentialError.
        """
        return None

    async def read(self) -> Secret:
        """Return the credential as it is now. Raises CredentialError."""
        secret = self.read_now()
        assert secret is not None  # a source that takes time has a `read` of its own
        return secret

    def reading_now(self) -> Reading | None:
        """As `read_now`, with what is said of the credential."""
        secret = self.read_now()
        return None if secret is None else Reading(secret=secret)

    async def reading(self) -> Reading:
        """As `read`, with what is said of the credential."""
        return Reading(secret=await self.read())

    def refused(self, secret: Secret) -> None:
        """Forget *secret* if it is remembered: the server did not accept it."""

    def fingerprint(self) -> str:
        """Return text that differs if another credential is configured, without a secret.

        A file or a command counts by its name: its content may change by itself, as vendors'
        tools refresh their logins, and the account is still the same, unless the credential
        says that it is not (`core.credential.identity`).
        """
        return self.describe()


@dataclass(frozen=True, slots=True)
class ValueSource(Source):
    """A string written down, with `${NAME}` taken from the environment."""

    text: Secret
    environ: Mapping[str, str] = field(repr=False, compare=False)
    written_in: str = "accounts.yaml"

    @property
    def refers(self) -> bool:
        """Say whether (a part of) it comes from the environment."""
        text = self.text.reveal()
        return "$" in text and any(f["dollar"] is None for f in _REFERENCE.finditer(text))

    def describe(self) -> str:
        return self.written_in

    def check_written(self) -> None:
        check_written(self.text, "the value")

    def read_now(self) -> Secret:
        return usable_expanded(self.text, self.environ, "the value")

    def fingerprint(self) -> str:
        return _digest_or_place(self)


@dataclass(frozen=True, slots=True)
class EnvSource(Source):
    """The environment variable *name*."""

    name: str
    environ: Mapping[str, str] = field(repr=False, compare=False)

    def describe(self) -> str:
        return f"env {_shown_name(self.name)}"

    def read_now(self) -> Secret:
        if self.name not in self.environ:
            raise _without_value([self.name], "not set")
        if not self.environ[self.name].strip():
            raise _without_value([self.name], "empty")
        return usable(self.environ[self.name], f"the environment variable {_shown_name(self.name)}")

    def fingerprint(self) -> str:
        return _digest_or_place(self)


def _digest_or_place(source: ValueSource | EnvSource) -> str:
    try:
        return source.read_now().digest()
    except CredentialError:
        return source.describe()  # no credential: nothing was or will be learnt with it


def usable(text: str, what: str) -> Secret:
    """Return *text* without surrounding white space as a Secret.

    Raises CredentialError when it is empty or cannot stand in a header: a line break
    in a credential would let it write headers of its own.
    """
    text = text.strip()
    if not text:
        raise CredentialError(f"{what} is empty", "put the token there")
    if _NOT_A_TOKEN.search(text):
        raise CredentialError(
            f"{what} has a space, a line break or a character outside ASCII in it",
            "put the token there alone, on one line",
        )
    return Secret(text)


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Return *text* with each `${NAME}` replaced from *environ* and `$$` by "$".

    A "$" before anything else stands for itself. Raises CredentialError that names all
    the variables that are not set.
    """
    if "$" not in text:
        return text
    unset = [name for name in variables_in(text) if name not in environ]
    if unset:
        raise _without_value(unset, "not set")
    return _REFERENCE.sub(lambda found: "$" if found["dollar"] else environ[found["name"]], text)


def variables_in(text: str) -> list[str]:
    """Return the variables that *text* refers to. Raises CredentialError for a mistake in it."""
    if "$" not in text:
        return []
    references = [found for found in _REFERENCE.finditer(text) if found["dollar"] is None]
    if not all(found["end"] and is_variable(found["name"]) for found in references):
        raise CredentialError(
            "a ${...} in it is not the name of a variable",
            "write ${NAME}, or $$ for a dollar sign",
        )
    return list(dict.fromkeys(found["name"] for found in references))


def is_variable(name: str) -> bool:
    """Say whether *name* can be that of an environment variable."""
    return _NAME.match(name) is not None


def check_written(text: Secret, what: str) -> None:
    """Look for mistakes in *text* itself, whatever its variables hold.

    One of blanks only is no mistake: it is how a template stands there before it is filled
    in. Raises CredentialError.
    """
    written = text.reveal()
    if not variables_in(written) and written.strip():
        usable(expand(written, {}), what)


def usable_expanded(text: Secret, environ: Mapping[str, str], what: str) -> Secret:
    """Return *text* with its variables filled in. Raises CredentialError."""
    expanded = expand(text.reveal(), environ)
    if not expanded.strip() and (names := variables_in(text.reveal())):
        raise _without_value(names, "empty")
    return usable(expanded, what)


def literal(secret: Secret) -> str:
    """Return *secret* as text that `expand` turns into it."""
    return secret.reveal().replace("$", "$$")


def _without_value(names: list[str], how: str) -> CredentialError:
    shown = " and ".join(_shown_name(name) for name in names)
    noun, verb, it = ("variable", "is", "it") if len(names) == 1 else ("variables", "are", "them")
    return CredentialError(
        f"the environment {noun} {shown} {verb} {how}",
        remedy(" ".join(names), f"set {it} where the proxy is started, or name another source"),
    )


def _shown_name(name: str) -> str:
    return name if _USUAL_NAME.match(name) else "[not shown]"


# -- an account as it was written down


@dataclass(frozen=True, slots=True)
class AccountEntry:
    """An account and where its credential comes from.

    Attributes:
        account: what its owner wrote.
        source: where the credential is read.
        provider: whose account it is.
        line: of accounts.yaml; None when it does not come from there.
    """

    account: Account
    source: Source
    provider: Provider
    line: int | None = None

    def fingerprint(self) -> str:
        """Return 32 hex digits that differ if another credential is configured; to be stored.

        What responses said of an account, they said of its credential: if its owner
        configures another while the proxy is not running, all of it is discarded.
        """
        account = self.account
        companions = sorted(account.companions.items())
        parts = [self.source.fingerprint(), account.account_type or "", companions]
        return sha256(ascii(parts).encode()).hexdigest()[:32]

    def sharing(self, known: AccountEntry) -> AccountEntry:
        """Return this entry with the parts of *known* that are the same: quick to compare then."""
        account = known.account if known.account == self.account else self.account
        source = known.source if known.source == self.source else self.source
        return AccountEntry(account, source, self.provider, self.line)

    def same_credential(self, other: AccountEntry) -> bool:
        """Say whether both entries lead to the same credential and companions."""
        if self.account is other.account and self.source is other.source:
            return True
        return (
            self.source == other.source
            and self.account.account_type == other.account.account_type
            and self.account.companions == other.account.companions
        )
