"""A credential in the keychain of the system: macOS, Secret Service, KWallet, Windows.

Read through the package `keyring`, which is imported when the first one is read; never
written. A keychain may ask its user to unlock it, for as long as it likes. What its errors say
is not repeated: it may quote anything.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from account_pool.credentials.sources import CredentialError, OwnThread, Reading, Source, Text
from account_pool.credentials.vendor_logins import logged_out, tool_of_service
from account_pool.filesystem import expanded
from account_pool.providers.token_forms import hidden, remedy

#: Long enough to type a password, short enough to report soon that it was not typed.
KEYCHAIN_TIMEOUT_S = 30.0
#: How often an item is read, in seconds: its tool may have renewed the token in it. Rarer than
#: a file, because each read may prompt the user.
KEYCHAIN_LOOK_S = 300.0
_AGAIN = "it is tried again"


@dataclass(slots=True)
class KeychainSource(Source):
    """The item *service* of the keychain, or JSON in it with the credential at *pointer*.

    Attributes:
        service: as the keychain calls it, e.g. "Claude Code-credentials". Of several
            accounts below it the one named as the user of this process comes first.
        pointer: RFC 6901; None: all of it, or the login of a known tool.
    """

    look_s: ClassVar[float | None] = KEYCHAIN_LOOK_S

    service: str
    pointer: str | None = None
    timeout_s: float = field(default=KEYCHAIN_TIMEOUT_S, compare=False)
    _thread: OwnThread = field(default_factory=OwnThread, repr=False, compare=False)
    _login_ends_at: float | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        return f"the keychain item {self.shown}"

    @property
    def shown(self) -> str:
        """The item as messages name it: a token that was pasted there is not shown."""
        return hidden(self.service)

    def describe(self) -> str:
        pointer = f" pointer {hidden(self.pointer)}" if self.pointer else ""
        return f"keychain {self.shown}{pointer}"

    async def read(self) -> Reading:
        tool = tool_of_service(self.service)
        text = await self._ask()
        if text is None:
            raise CredentialError(
                f"the keychain has no item {self.shown}",
                logged_out(tool)
                or remedy(self.service, "correct its name, or name another source"),
            )
        reading = Text(self.name, self.name, self.pointer, tool).read(text)
        self._login_ends_at = reading.login_ends_at
        return reading

    @property
    def login_ends_at(self) -> float | None:
        return self._login_ends_at

    async def _ask(self) -> str | None:
        if self._thread.is_busy:
            raise CredentialError("the keychain has not answered yet", f"unlock it; {_AGAIN}")
        try:
            return await self._thread.ask(lambda: _find(self.service), self.timeout_s)
        except TimeoutError:
            raise CredentialError(
                f"the keychain did not answer within {self.timeout_s:g} s", f"unlock it; {_AGAIN}"
            ) from None


def _find(service: str) -> str | None:
    """Return what the keychain holds for *service*, None for nothing. Raises CredentialError."""
    try:
        import keyring  # noqa: PLC0415 - see the module
        from keyring import errors  # noqa: PLC0415
    except ImportError:
        raise CredentialError(
            "the package keyring is not there",
            "install it where the proxy runs: pip install keyring",
        ) from None
    # Whatever a broken package raises.
    except Exception as error:
        name = type(error).__name__
        raise CredentialError(f"the keychain cannot be read ({name})", _AGAIN) from None
    try:
        places = _places(service)
        answers = (keyring.get_password(name, user) for name, user in places)
        found = next((answer for answer in answers if isinstance(answer, str)), None)
        # The last resort: not every keychain can be asked for a service alone, macOS' cannot.
        if found is None and (one := keyring.get_credential(service, None)) is not None:
            found = one.password
    except errors.NoKeyringError:
        raise CredentialError(
            "this system has no keychain that can be read",
            "start one (Secret Service, KWallet) where the proxy runs, or name another source",
        ) from None
    except (errors.KeyringLocked, errors.InitError):
        raise CredentialError("the keychain is locked", f"unlock it; {_AGAIN}") from None
    # Backends raise what their libraries raise, whose texts may quote anything.
    except Exception as error:
        raise CredentialError(
            f"the keychain cannot be read ({type(error).__name__})",
            f"try `keyring get` by hand; {_AGAIN}",
        ) from None
    return _as_written(found) if isinstance(found, str) else None


def _places(service: str) -> list[tuple[str, str]]:
    """Return where tools keep an item *service*: its name, and that of the user it is for.

    Sources: openai/codex `codex-rs/login/src/auth/storage.rs`; cli/cli `internal/keyring`, which
    keeps the token in use without a name. Windows has targets and no services: the libraries
    of those tools put both names together, each in its own way.
    """
    user = _user()
    users = [user, _codex_account()] if service.startswith("Codex") else [user]
    places = [(service, name) for name in (*users, "")]
    if sys.platform == "win32":
        places += [(f"{name}.{service}", name) for name in users]
        places += [(f"{service}:{name}", name) for name in (*users, "")]
    return places


def _codex_account() -> str:
    """Return the name under which Codex keeps its login: its home, hashed."""
    named = os.environ.get("CODEX_HOME")
    home = (Path(named) if named else expanded("~") / ".codex").resolve()
    # As Rust spells an absolute path of Windows.
    text = f"\\\\?\\{home}" if sys.platform == "win32" else str(home)
    return f"cli|{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _as_written(text: str) -> str:
    """Return *text* as its tool wrote it: on Windows some write bytes that read as UTF-16."""
    if not text.isascii():
        with suppress(UnicodeError):
            return text.encode("utf-16-le").decode("ascii")
    return text


def _user() -> str:
    """Return the name tools store their item under, "" where the user has none."""
    try:
        return getpass.getuser()
    # KeyError or OSError, by version: no name for this user's number.
    except (KeyError, OSError):
        return ""
