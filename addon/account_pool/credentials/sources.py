"""Where the credential of an account comes from: a value, the environment, a file, a command.

A source reads, checks that what it read can be a credential at all, and says in words
what is missing. It does not know what the credential is for. The environment comes in
through the constructor; nothing here reads `os.environ`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from account_pool.core.credential import Secret
from account_pool.credentials.command import COMMAND_TIMEOUT_S, run
from account_pool.credentials.errors import CredentialError

#: A credential file is a few kilobytes; anything larger is not one.
MAX_FILE_BYTES = 1024 * 1024

#: `$$` is a dollar sign, `${NAME}` a variable; "${" without its "}" is a mistake.
_REFERENCE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>[^}]*)(?P<end>\}?))")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
#: Only names in the usual spelling are repeated in messages: `${ghp_...}` and
#: `{env: sk_...}` are tokens somebody put in the wrong place.
_USUAL_NAME = re.compile(r"(?=.{1,64}\Z)_*[A-Z][A-Z0-9]{0,15}(?:_+[A-Z0-9]{1,16})*_*\Z")
#: What may stand in a header value and in no word of it: RFC 9110, section 5.5.
_NOT_A_TOKEN = re.compile(r"[^\x21-\x7e]")


class Source(Protocol):
    """Where one credential is read from."""

    def describe(self) -> str:
        """Name the place in a few words, e.g. "env OPENAI_API_KEY"; never the secret."""
        ...

    def read_now(self) -> Secret | None:
        """Return the credential, or None when it takes time (a command): use `read`.

        Raises CredentialError.
        """
        ...

    async def read(self) -> Secret:
        """Return the credential as it is now. Raises CredentialError."""
        ...

    def refused(self, secret: Secret) -> None:
        """Forget *secret* if it is remembered: the server did not accept it."""
        ...


@dataclass(frozen=True, slots=True)
class ValueSource:
    """A string written down, with `${NAME}` taken from the environment."""

    text: Secret
    environ: Mapping[str, str] = field(repr=False, compare=False)
    written_in: str = "accounts.yaml"

    @property
    def refers(self) -> bool:
        """Say whether (a part of) it comes from the environment."""
        return any(found["dollar"] is None for found in _REFERENCE.finditer(self.text.reveal()))

    def describe(self) -> str:
        return self.written_in

    def read_now(self) -> Secret:
        return usable(expand(self.text.reveal(), self.environ), "the value")

    async def read(self) -> Secret:
        return self.read_now()

    def refused(self, secret: Secret) -> None:
        """Nothing is remembered."""


@dataclass(frozen=True, slots=True)
class EnvSource:
    """The environment variable *name*."""

    name: str
    environ: Mapping[str, str] = field(repr=False, compare=False)

    def describe(self) -> str:
        return f"env {_shown_name(self.name)}"

    def read_now(self) -> Secret:
        if self.name not in self.environ:
            raise _unset([self.name])
        return usable(self.environ[self.name], f"the environment variable {_shown_name(self.name)}")

    async def read(self) -> Secret:
        return self.read_now()

    def refused(self, secret: Secret) -> None:
        """Nothing is remembered."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file that holds the credential, or JSON with the credential at *pointer*.

    Attributes:
        path: absolute, or relative to the working directory.
        pointer: RFC 6901, e.g. /claudeAiOauth/accessToken; None: the whole file.
        written: the path as the owner wrote it, for messages.
    """

    path: Path
    pointer: str | None = None
    written: str = ""

    @property
    def name(self) -> str:
        return self.written or str(self.path)

    def describe(self) -> str:
        return f"file {self.name}" + (f" pointer {self.pointer}" if self.pointer else "")

    def read_now(self) -> Secret:
        text = self._text()
        if self.pointer is None:
            return usable(text, f"the file {self.name}")
        try:
            document = json.loads(text)
        except ValueError:
            # `from None`: a JSON error carries the document, which is a secret.
            raise CredentialError(
                f"the file {self.name} is not JSON",
                "name a JSON file, or leave out the pointer to take the whole file",
            ) from None
        value = _resolve(document, self.pointer, self.name)
        return usable(value, f"the value at {self.pointer} in {self.name}")

    async def read(self) -> Secret:
        # A home directory may be on the network.
        return await asyncio.to_thread(self.read_now)

    def refused(self, secret: Secret) -> None:
        """Nothing is remembered."""

    def _text(self) -> str:
        try:
            with self.path.open("rb") as file:
                _require_private(os.fstat(file.fileno()).st_mode, self.path, self.name)
                content = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            raise CredentialError(
                f"the file {self.name} does not exist", "create it, or correct the path"
            ) from None
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise CredentialError(
                f"the file {self.name} cannot be read ({reason})",
                "make it a file that the user who runs the proxy may read",
            ) from None
        if len(content) > MAX_FILE_BYTES:
            raise CredentialError(
                f"the file {self.name} is larger than 1 MiB", "name the file of the credential"
            )
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise CredentialError(
                f"the file {self.name} is not text in UTF-8", "name the file of the credential"
            ) from None


@dataclass(slots=True)
class CommandSource:
    """What a command prints. It is run without a shell.

    The result is remembered until the server refuses it: some commands ask their user
    for a finger print. Messages show the command itself, so it must hold no secret.
    """

    command: str
    environ: Mapping[str, str] = field(repr=False, compare=False)
    timeout_s: float = COMMAND_TIMEOUT_S
    _remembered: Secret | None = field(default=None, repr=False, compare=False)

    def describe(self) -> str:
        return f"command {self.command}"

    def read_now(self) -> None:
        return None

    async def read(self) -> Secret:
        if self._remembered is None:
            arguments = shlex.split(self.command)
            printed = await run(arguments, self.command, self.environ, self.timeout_s)
            self._remembered = usable(printed, f"what the command {self.command} printed")
        return self._remembered

    def refused(self, secret: Secret) -> None:
        if self._remembered == secret:
            self._remembered = None


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
    references = list(_REFERENCE.finditer(text))
    names = [found["name"] for found in references if found["dollar"] is None]
    if not all(found["end"] for found in references if found["dollar"] is None) or not all(
        _NAME.match(name) for name in names
    ):
        raise CredentialError(
            "a ${...} in it is not the name of a variable",
            "write ${NAME}, or $$ for a dollar sign",
        )
    unset = [name for name in dict.fromkeys(names) if name not in environ]
    if unset:
        raise _unset(unset)
    return _REFERENCE.sub(lambda found: "$" if found["dollar"] else environ[found["name"]], text)


def _unset(names: list[str]) -> CredentialError:
    shown = " and ".join(_shown_name(name) for name in names)
    noun, verb, it = ("variable", "is", "it") if len(names) == 1 else ("variables", "are", "them")
    return CredentialError(
        f"the environment {noun} {shown} {verb} not set",
        f"set {it} where the proxy is started, or name another source",
    )


def _shown_name(name: str) -> str:
    return name if _USUAL_NAME.match(name) else "[not shown]"


def _require_private(mode: int, path: Path, name: str) -> None:
    """Refuse a file that others may read or change, as ssh does with its keys."""
    if os.name == "posix" and stat.S_IMODE(mode) & 0o066:
        raise CredentialError(
            f"the file {name} may be read or changed by other users "
            f"(mode {stat.S_IMODE(mode):03o})",
            f"run: chmod 600 {shlex.quote(str(path))}",
        )


def _resolve(document: Any, pointer: str, name: str) -> str:
    """Return the text at *pointer* (RFC 6901). Raises CredentialError."""
    for step in pointer.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict) and key in document:
            document = document[key]
        elif isinstance(document, list) and key.isdecimal() and int(key) < len(document):
            document = document[int(key)]
        else:
            raise CredentialError(
                f"the file {name} has nothing at {pointer}",
                "correct the pointer; each part of it is a key of the JSON in the file",
            )
    if not isinstance(document, str):
        raise CredentialError(
            f"the value at {pointer} in {name} is not text", "point to the token itself"
        )
    return document
