"""Where the credential of an account comes from: a value, or the environment.

A source reads, checks that what it read can be a credential at all, and says in words
what is missing. It does not know what the credential is for. The environment comes in
through the constructor; nothing here reads `os.environ`. The other sources:
`command.py`, `files.py`, `keychain.py`, `oauth.py`; what the texts of files and keychains hold
is read here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Any, ClassVar, TypeVar

import msgspec

from account_pool.core import json_values
from account_pool.core.account import Account
from account_pool.core.credential import Secret
from account_pool.core.meaning import LazyPattern
from account_pool.credentials.vendor_logins import TOOLS, Shape, logged_out, recognise
from account_pool.providers.base import Provider
from account_pool.providers.token_forms import hidden, remedy
from account_pool.supervision import begun, settled

#: `$$` is a dollar sign, `${NAME}` a variable; "${" without its "}" is a mistake.
_REFERENCE = LazyPattern(r"\$(?:(?P<dollar>\$)|\{(?P<name>[^}]*)(?P<end>\}?))")
_NAME = LazyPattern(r"[A-Za-z_][A-Za-z0-9_]*\Z")
#: Only names in the usual spelling are repeated in messages: `${ghp_...}` and
#: `{env: sk_...}` are tokens somebody put in the wrong place.
_USUAL_NAME = LazyPattern(r"(?=.{1,64}\Z)_*[A-Z][A-Z0-9]{0,15}(?:_+[A-Z0-9]{1,16})*_*\Z")
#: What may stand in a header value and in no word of it: RFC 9110, section 5.5.
#: Servers accept header fields of 8 to 16 KiB; the longest tokens in use, JWTs, are below.
MAX_TOKEN_CHARS = 32 * 1024


class CredentialError(Exception):
    """A source has no usable credential.

    Attributes:
        wrong: what is the matter. It names variables, files and commands, never the
            credential or a part of it.
        remedy: what the owner can do about it.
    """

    def __init__(self, wrong: str, remedy: str) -> None:
        super().__init__(f"{wrong}; {remedy}")
        self.wrong = wrong
        self.remedy = remedy


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """A credential, and what is said of it where it was read.

    Attributes:
        secret: the credential.
        expires_at: when it ends, seconds since the epoch; None if that is not said.
        companions: what belongs to it, e.g. account_id.
        login_ends_at: when the login it comes from ends, however often it is renewed.
    """

    secret: Secret
    expires_at: float | None = None
    companions: Mapping[str, str] = msgspec.field(default_factory=dict)
    login_ends_at: float | None = None


class Source:
    """Where one credential is read from; each has a `read` or a `read_now` of its own.

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

    def read_now(self) -> Reading | None:
        """Return the credential, or None when it takes time (a command): use `read`.

        Raises CredentialError.
        """
        return None

    async def read(self) -> Reading:
        """Return the credential as it is now. Raises CredentialError."""
        reading = self.read_now()
        assert reading is not None  # a source that takes time has a `read` of its own
        return reading

    def refused(self, secret: Secret) -> None:
        """Forget *secret* if it is remembered: the server did not accept it."""

    def fingerprint(self) -> str:
        """Return text that differs if another credential is configured, without a secret.

        A file or a command counts by its name: its content may change by itself, as vendors'
        tools refresh their logins, and the account is still the same, unless the credential
        says that it is not (`core.credential.identity`).
        """
        return self.describe()


T = TypeVar("T")


class OwnThread:
    """Asks what may hang for ever, such as a keychain or a share: one question at a time.

    A question cannot be taken back, so its thread is a daemon; and it is none of the event
    loop's, which are few and look up hosts.
    """

    #: those that have kept somebody waiting in `now`, and still do
    _late: ClassVar[set[OwnThread]] = set()

    def __init__(self) -> None:
        #: to the last question
        self.answer: Future[Any] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the last question is still being asked."""
        return self.answer is not None and not self.answer.done()

    def now(self, question: Callable[[], T], wait_s: float) -> T | None:
        """Return the answer to *question*, None where it takes longer: see `rest`.

        What keeps one waiting, such as a share that is gone, may keep many: while it does, the
        others are not waited for. Raises what *question* raises.
        """
        answer = self._begin(question)
        wait([answer], 0.0 if self._late else wait_s)
        self._late.add(self)
        if not answer.done():
            return None
        self._late.discard(self)
        return answer.result()

    async def ask(self, question: Callable[[], T], timeout_s: float) -> T:
        """Return the answer to *question*. Raises what that raises, and TimeoutError."""
        return await settled(self._begin(question), timeout_s)

    async def rest(self, timeout_s: float) -> Any:
        """Return the answer to the last question, as `ask` does."""
        assert self.answer is not None  # who rests has asked
        return await settled(self.answer, timeout_s)

    def _begin(self, question: Callable[[], T]) -> Future[T]:
        # Where no thread can be started, this raises, and nothing is asked.
        self.answer = answer = begun(question)
        answer.add_done_callback(lambda _answer: self._late.discard(self))
        return answer


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

    def read_now(self) -> Reading:
        return Reading(secret=usable_expanded(self.text, self.environ, "the value"))

    def fingerprint(self) -> str:
        return _digest_or_place(self)


@dataclass(frozen=True, slots=True)
class EnvSource(Source):
    """The environment variable *name*."""

    name: str
    environ: Mapping[str, str] = field(repr=False, compare=False)

    def describe(self) -> str:
        return f"env {_shown_name(self.name)}"

    def read_now(self) -> Reading:
        if self.name not in self.environ:
            raise _without_value([self.name], "not set")
        if not self.environ[self.name].strip():
            raise _without_value([self.name], "empty")
        what = f"the environment variable {_shown_name(self.name)}"
        return Reading(secret=usable(self.environ[self.name], what))

    def fingerprint(self) -> str:
        return _digest_or_place(self)


def _digest_or_place(source: ValueSource | EnvSource) -> str:
    try:
        return source.read_now().secret.digest()
    except CredentialError:
        return source.describe()  # no credential: nothing was or will be learnt with it


def usable(text: str, what: str) -> Secret:
    """Return *text* without surrounding white space as a Secret.

    Raises CredentialError when it is empty, too long, or cannot stand in a header: a line
    break in a credential would let it write headers of its own.
    """
    text = text.strip()
    if _is_usable(text):
        return Secret(text)
    if not text:
        raise CredentialError(f"{what} is empty", "put the token there")
    if len(text) > MAX_TOKEN_CHARS:
        raise CredentialError(
            f"{what} has more than {MAX_TOKEN_CHARS} characters", "put the token there alone"
        )
    raise CredentialError(
        f"{what} has a space, a line break or a character outside ASCII in it",
        "put the token there alone, on one line",
    )


def _is_usable(text: str) -> bool:
    return (
        0 < len(text) <= MAX_TOKEN_CHARS
        and text.isascii()
        and text.isprintable()
        and " " not in text
    )


def token_in(value: Any) -> Secret | None:
    """Return the token that a server's answer has as *value*; None for what cannot be one."""
    try:
        return usable(value, "it") if isinstance(value, str) else None
    except CredentialError:
        return None


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
    if "$" not in written and _is_usable(written):
        return
    if not variables_in(written) and written.strip():
        usable(expand(written, {}), what)


def usable_expanded(text: Secret, environ: Mapping[str, str], what: str) -> Secret:
    """Return *text* with its variables filled in. Raises CredentialError."""
    written = text.reveal()
    if "$" not in written and _is_usable(written):
        return text  # the same object, whose digest is made once
    expanded = expand(written, environ)
    if not expanded.strip() and (names := variables_in(written)):
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


# -- what a text holds: a token, JSON with one at a pointer, or the login of a known tool

_NOTHING = object()
#: How the end of a token is named that stands beside it.
_EXPIRY_NAMES = ("expires_at", "expiresAt", "expiry_date", "expiry", "expires")


class Text(msgspec.Struct, frozen=True):
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
        value = json_values.find(document, json_values.steps(pointer), _NOTHING)
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
    document = json_values.find(document, json_values.steps(pointer)[:-1])
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
        return moment(at).replace(microsecond=0, tzinfo=None).isoformat() + "Z"
    except (ValueError, OverflowError):
        return str(at)


def moment(at: float) -> datetime:
    """Return *at*, seconds since the epoch, as a date. OverflowError outside years 1 to 9999."""
    # `fromtimestamp` takes no times before the epoch on Windows.
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at)


def _parsed(text: str) -> datetime | float | None:
    # A number first: some of them are dates as well to `fromisoformat`.
    for parse in (float, datetime.fromisoformat):
        try:
            return parse(text)
        except ValueError:
            continue
    return None


# -- an account as it was written down


class AccountEntry(msgspec.Struct, frozen=True):
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
