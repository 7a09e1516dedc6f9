"""The file a credential is read from: a text, JSON, or the login of a known tool.

The file may belong to a tool that renews what is in it, so it is read and never written,
and what it says of the credential (when it ends, whose it is) is read with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from account_pool.core import json_pointer
from account_pool.core.credential import Secret
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.instants import read_instant
from account_pool.credentials.sources import usable
from account_pool.credentials.vendor_shapes import Shape, recognise
from account_pool.credentials.vendors import TOOLS, logged_out, tool_of

#: A credential file is a few kilobytes; anything larger is not one.
MAX_FILE_BYTES = 1024 * 1024
#: Whoever opens a pipe that nobody writes to would wait for ever.
_DO_NOT_WAIT = getattr(os, "O_NONBLOCK", 0)
_NOTHING = object()
#: How files name the end of the token that stands beside it.
_EXPIRY_NAMES = ("expires_at", "expiresAt", "expiry_date", "expiry", "expires")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a file says of a credential.

    Attributes:
        secret: the credential.
        expires_at: when it ends, seconds since the epoch; None if the file does not say.
        companions: what belongs to it, e.g. account_id.
    """

    secret: Secret
    expires_at: float | None = None
    companions: Mapping[str, str] = field(default_factory=dict)


#: What tells that a file was written: time in ns, size, number.
Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file that holds the credential, or JSON with the credential at *pointer*.

    It may belong to a tool that renews what is in it: it is read, never written.

    Attributes:
        path: absolute, or relative to the working directory.
        pointer: RFC 6901, e.g. /claudeAiOauth/accessToken; None: the whole file, or the
            login in the file of a known tool.
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
        return self.reading().secret

    async def read(self) -> Secret:
        # A home directory may be on the network.
        return await asyncio.to_thread(self.read_now)

    def refused(self, secret: Secret) -> None:
        """Nothing is remembered."""

    def reading(self) -> Reading:
        """Return the credential and what the file says of it. Raises CredentialError."""
        tool = tool_of(self.path.name, self.pointer)
        text = read_private(self.path, self.name, logged_out(tool))
        document = self._document(text)
        shape = recognise(document)
        if shape is not None:
            tool = tool or TOOLS.get(shape.provider)
        if self.pointer is not None:
            secret = self._at_pointer(self.pointer, document, shape, tool)
        elif isinstance(document, dict | list):
            secret = self._of_tool(shape, tool)
        elif not text.strip() and (remedy := logged_out(tool)):
            raise CredentialError(f"the file {self.name} is empty", remedy)
        else:
            secret = usable(text, f"the file {self.name}")
        if shape is not None and shape.access == secret.reveal():
            return Reading(
                secret=secret,
                expires_at=_instant(shape.expires_at),
                companions=shape.companions,
            )
        return Reading(secret=secret, expires_at=_expiry_beside(document, self.pointer))

    def stamp(self) -> Stamp | None:
        """Return what changes when the file is written, None while it is not there."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

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
                f"the file {self.name} is not JSON, or only a part of it was written",
                "name a JSON file; it is read again when it changes",
            ) from None

    def _at_pointer(
        self, pointer: str, document: Any, shape: Shape | None, tool: str | None
    ) -> Secret:
        value = json_pointer.find(document, json_pointer.steps(pointer), _NOTHING)
        is_blank = value is None or (isinstance(value, str) and not value.strip())
        remedy = None
        if (value is _NOTHING or is_blank) and not _has_login(shape):
            remedy = logged_out(tool)
        if value is _NOTHING:
            raise CredentialError(
                f"the file {self.name} has nothing at {pointer}",
                remedy or "correct the pointer; each part of it is a key of the JSON in the file",
            )
        if is_blank and remedy:
            raise CredentialError(f"the value at {pointer} in {self.name} is empty", remedy)
        if not isinstance(value, str):
            raise CredentialError(
                f"the value at {pointer} in {self.name} is not text", "point to the token itself"
            )
        return usable(value, f"the value at {pointer} in {self.name}")

    def _of_tool(self, shape: Shape | None, tool: str | None) -> Secret:
        """Return the token of the login in a JSON file without a pointer."""
        if shape is not None and _has_login(shape):
            return usable(shape.access, f"the token in {self.name}")
        raise CredentialError(
            f"the file {self.name} holds no login",
            logged_out(tool) or "say where the token is: {file: PATH, pointer: /json/pointer}",
        )


def _has_login(shape: Shape | None) -> bool:
    return shape is not None and isinstance(shape.access, str) and bool(shape.access.strip())


def read_private(path: Path, name: str, if_missing: str | None = None) -> str:
    """Return the text of a file only its owner may read; never waits for a writer.

    *name* stands for the path in messages, *if_missing* is the remedy when there is no
    such file. Raises CredentialError.
    """
    try:
        with open(path, "rb", opener=_open) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise CredentialError(
                    f"{name} is a pipe or a device, not a file",
                    "name a file, or write {command: cat PATH}",
                )
            _require_private(found.st_mode, path, name)
            content = b"" if found.st_size > MAX_FILE_BYTES else file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise CredentialError(
            f"the file {name} does not exist", if_missing or "create it, or correct the path"
        ) from None
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise CredentialError(
            f"the file {name} cannot be read ({reason})",
            "make it a file that the user who runs the proxy may read",
        ) from None
    if max(found.st_size, len(content)) > MAX_FILE_BYTES:
        raise CredentialError(
            f"the file {name} is larger than 1 MiB", "name the file of the credential"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CredentialError(
            f"the file {name} is not text in UTF-8", "name the file of the credential"
        ) from None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | _DO_NOT_WAIT)


def _require_private(mode: int, path: Path, name: str) -> None:
    """Refuse a file that others may read or change, as ssh does with its keys."""
    if os.name == "posix" and stat.S_IMODE(mode) & 0o066:
        raise CredentialError(
            f"the file {name} may be read or changed by other users "
            f"(mode {stat.S_IMODE(mode):03o})",
            f"run: chmod 600 {shlex.quote(str(path))}",
        )


def _expiry_beside(document: Any, pointer: str | None) -> float | None:
    """Return when the token at *pointer* ends, if a usual name beside it says so."""
    if not pointer:
        return None
    document = json_pointer.find(document, json_pointer.steps(pointer)[:-1])
    if not isinstance(document, dict):
        return None
    return next((_instant(document[name]) for name in _EXPIRY_NAMES if name in document), None)


def _instant(value: Any) -> float | None:
    """Return *value* as seconds since the epoch; what cannot be read says nothing."""
    try:
        return read_instant(value)
    except CredentialError:
        return None
