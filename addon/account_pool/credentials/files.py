"""The files credentials are read from; what is in them is read by `sources.py`.

A file may belong to a tool that renews what is in it, so it is read and never written. A
refresh token in one belongs to the tool too: they rotate (RFC 9700, section 4.14.2), and
whoever uses it first leaves the other without a login. So it is for `account-pool login
--from`, which says so; accounts that name such a file only ever read the access token in it.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from account_pool.core.credential import Secret
from account_pool.credentials.errors import CredentialError, reason_of
from account_pool.credentials.sources import OwnThread, Reading, Source, Text, instant, usable
from account_pool.credentials.vendor_logins import LOGINS, logged_out, tool_of
from account_pool.filesystem import NotAFile, TooLarge, opened_file, read_opened
from account_pool.providers.token_forms import hidden, remedy

#: A credential file is a few kilobytes; anything larger is not one.
MAX_FILE_BYTES = 1024 * 1024

#: How often a file is checked, in seconds: its tool may have renewed the token in it.
FILE_LOOK_S = 5.0
#: A disk that was spun down takes seconds; a share that is gone never answers.
FILE_TIMEOUT_S = 30.0
#: How long all others wait for it at the start, seconds.
AT_ONCE_S = 0.5
_HANGS = "see whether the disk or share that it is on answers; it is looked at again"
#: Changes when a file is written: modification time in ns, size, inode.
Stamp = tuple[int, int, int]


@dataclass(slots=True)
class FileSource(Source):
    """A file that holds the credential, or JSON with the credential at *pointer*.

    It may belong to a tool that renews what is in it: it is read, never written.

    Attributes:
        path: absolute, or relative to the working directory.
        pointer: RFC 6901, e.g. /claudeAiOauth/accessToken; None: the whole file, or the
            login in the file of a known tool.
        written: the path as the owner wrote it, for messages.
    """

    look_s: ClassVar[float | None] = FILE_LOOK_S

    path: Path
    pointer: str | None = None
    written: str = ""
    timeout_s: float = field(default=FILE_TIMEOUT_S, compare=False)
    _thread: OwnThread = field(default_factory=OwnThread, repr=False, compare=False)
    #: it was not read in time
    _hangs: bool = field(default=False, repr=False, compare=False)
    _read: tuple[Stamp, Reading] | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The path as messages name it: a token that was pasted there is not shown."""
        return hidden(self.written or str(self.path))

    def describe(self) -> str:
        return f"file {self.name}" + (f" pointer {hidden(self.pointer)}" if self.pointer else "")

    def read_now(self) -> Reading | None:
        """Return what the file holds, None while it is still being read in a thread.

        It is read again only after it was written, or refused. Raises CredentialError.
        """
        return None if self._thread.is_busy else self._thread.now(self._reading, AT_ONCE_S)

    @property
    def not_read(self) -> CredentialError:
        """What is the matter where `read_now` returns nothing."""
        return CredentialError(f"the file {self.name} is still being read", _HANGS)

    def _reading(self) -> Reading:
        stamp = self.stamp()
        if self._read is not None and stamp == self._read[0]:
            return self._read[1]
        # After a failure it is read every time: a stamp does not show a changed mode.
        self._read = None
        tool = tool_of(self.path.name, self.pointer)
        text = read_private(self.path, self.name, logged_out(tool))
        reading = Text(f"the file {self.name}", self.name, self.pointer, tool).read(text)
        # The stamp from before the read: a write during it is noticed next time.
        self._read = None if stamp is None else (stamp, reading)
        return reading

    async def read(self) -> Reading:
        # A home directory may be on the network, which may hang.
        is_busy = self._thread.is_busy
        if is_busy and self._hangs:
            raise self.not_read
        try:
            # It may be what `read_now` has begun.
            asked = self._thread.rest if is_busy else partial(self._thread.ask, self._reading)
            reading: Reading = await asked(self.timeout_s)
            self._hangs = False
            return reading
        except TimeoutError:
            self._hangs = True
            raise CredentialError(
                f"the file {self.name} was not read within {self.timeout_s:g} s", _HANGS
            ) from None

    def refused(self, _secret: Secret) -> None:
        self._read = None

    @property
    def login_ends_at(self) -> float | None:
        return None if self._read is None else self._read[1].login_ends_at

    def stamp(self) -> Stamp | None:
        """Return the stamp of the file, None while it does not exist."""
        try:
            found = self.path.stat()
        except (OSError, ValueError):
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def read_private(path: Path, name: str, if_missing: str | None = None) -> str:
    """Return the text of a file only its owner may read; never waits for a writer.

    *name* stands for the path in messages, *if_missing* is the remedy when there is no
    such file. Raises CredentialError.
    """
    try:
        with opened_file(path) as file:
            _require_private(os.fstat(file.fileno()).st_mode, path, name)
            content = read_opened(file, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise CredentialError(
            f"the file {name} does not exist",
            if_missing or remedy(str(path), "create it, or correct the path"),
        ) from None
    except NotAFile as error:
        raise CredentialError(
            f"the file {name} cannot be read ({error.strerror})",
            "name a file, or write {command: cat PATH}",
        ) from None
    except TooLarge as error:
        raise CredentialError(
            f"the file {name} cannot be read ({error.strerror})",
            "name the file of the credential",
        ) from None
    except OSError as error:
        raise CredentialError(
            f"the file {name} cannot be read ({reason_of(error)})",
            "make it a file that the user who runs the proxy may read",
        ) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CredentialError(
            f"the file {name} is not text in UTF-8", "name the file of the credential"
        ) from None


def _require_private(mode: int, path: Path, name: str) -> None:
    """Refuse a file that others may read or change, as ssh does with its keys."""
    if os.name == "posix" and stat.S_IMODE(mode) & 0o066:
        raise CredentialError(
            f"the file {name} can be read or changed by other users "
            f"(mode {stat.S_IMODE(mode):03o})",
            f"run: chmod 600 {shlex.quote(hidden(str(path)))}",
        )


# -- the logins of vendors' tools


class VendorLogin(msgspec.Struct, frozen=True, kw_only=True):
    """A login of a vendor's tool.

    Attributes:
        provider: whose accounts it can serve.
        access: what goes on the wire, or what is exchanged for it.
        refresh: gets new ones; it belongs to the tool.
        expires_at: when *access* ends, seconds since the epoch; None if not said.
        companions: what moves with it, e.g. account_id.
        login_ends_at: when it ends however often it is refreshed, seconds since the epoch;
            None if not said.
        client_id: the application that was logged in with; None if not said.
        owner: the address of who logged in, for people; None if not said.
    """

    provider: str
    access: Secret
    refresh: Secret | None = None
    expires_at: float | None = None
    companions: dict[str, str] = msgspec.field(default_factory=dict)
    login_ends_at: float | None = None
    client_id: str | None = None
    owner: str | None = None


def read_vendor_login(tool: str, path: Path) -> VendorLogin:
    """Return the login that *tool*, of WITH_FILE, keeps at *path*.

    Raises CredentialError, also when the tool keeps it in the system's keychain.
    """
    name = str(path)
    return login_in(tool, read_private(path, name, _otherwise(tool)), name)


def login_in(tool: str, text: str, name: str) -> VendorLogin:
    """Return the login of *tool* in *text*, called *name* in messages. Raises CredentialError."""
    shape = LOGINS[tool].read(_document(text, name))
    if shape is None or not isinstance(shape.access, str) or not shape.access:
        raise CredentialError(f"the file {name} holds no login of {tool}", _otherwise(tool))
    refresh = shape.refresh if isinstance(shape.refresh, str) and shape.refresh else None
    return VendorLogin(
        provider=shape.provider,
        access=usable(shape.access, f"the token in {name}"),
        refresh=None if refresh is None else usable(refresh, f"the refresh token in {name}"),
        expires_at=instant(shape.expires_at),
        companions=dict(shape.companions),
        login_ends_at=instant(shape.login_ends_at),
        client_id=shape.client_id,
        owner=shape.owner,
    )


def _otherwise(tool: str) -> str:
    return (
        f"log in with {tool} first, or name its file; where it uses the keychain: "
        + LOGINS[tool].otherwise
    )


def _document(text: str, name: str) -> Any:
    """Return *text* as JSON, or as the YAML of gh. Raises CredentialError."""
    import yaml  # noqa: PLC0415 - only where a login is taken over

    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        # All of it as text: nothing in it is a number or a date.
        return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - makes text, lists, mappings
    except (yaml.YAMLError, RecursionError):
        # `from None`: the error quotes the document, which is a secret.
        raise CredentialError(
            f"the file {name} is neither JSON nor YAML", "name the file of the login"
        ) from None
