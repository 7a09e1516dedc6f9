"""The files credentials are read from; what is in them is read by `sources.py`.

A file may belong to a tool that renews what is in it, so it is read and never written, and only
the access token in it is used: the refresh token is the tool's.
"""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from account_pool.core.credential import Secret
from account_pool.credentials.sources import CredentialError, OwnThread, Reading, Source, Text
from account_pool.credentials.vendor_logins import logged_out, tool_of
from account_pool.filesystem import NotAFile, TooLarge, opened_file, read_opened, reason_of
from account_pool.providers.token_forms import hidden, remedy

#: A credential file is a few kilobytes; anything larger is not one.
MAX_FILE_BYTES = 1024 * 1024

#: How often a file is checked, in seconds: its tool may have renewed the token in it.
FILE_LOOK_S = 5.0
#: A disk that was spun down takes seconds; a share that is gone never answers.
FILE_TIMEOUT_S = 30.0
#: How long all others wait for it at the start, seconds.
AT_ONCE_S = 0.5
_HANGS = "check the disk or share that it is on; it is tried again"
#: Changes when a file is written: modification time in ns, size, inode.
Stamp = tuple[int, int, int]


@dataclass(slots=True)
class FileSource(Source):
    """A file that holds the credential, or JSON with the credential at *pointer*.

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
