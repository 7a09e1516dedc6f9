"""Where notifications go: what `pool_notify` says, checked.

An address of a webhook is a secret: whoever has it can write there. So a target is shown by
its scheme and host only, a command by the name of its program, a variable by its own name.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from account_pool.core.browser import stays_here
from account_pool.core.wrong import Wrong, as_json_list
from account_pool.providers.token_forms import hidden

#: Where `ntfy:TOPIC` goes.
NTFY = "https://ntfy.sh"
_ACCEPTED = (
    "write https://..., ntfy:TOPIC, desktop, a command, {env: NAME} for a variable that holds "
    "one of these, or a list of them"
)
_NTFY_ACCEPTED = "write ntfy:TOPIC or ntfy:https://server/topic"
_TOPIC = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Webhook:
    """JSON is posted to *url*. Plain HTTP only to this machine."""

    url: str = field(repr=False)

    @property
    def shown(self) -> str:
        return _shown(self.url)


@dataclass(frozen=True, slots=True)
class Ntfy:
    """A message for *topic* of the ntfy server at *url*, which may hold a password."""

    url: str = field(repr=False)
    topic: str = field(repr=False)

    @property
    def shown(self) -> str:
        return f"ntfy:{_shown(self.url)}"


@dataclass(frozen=True, slots=True)
class Desktop:
    """A notification of the desktop that the proxy runs on."""

    shown = "desktop"


@dataclass(frozen=True, slots=True)
class Command:
    """A program that is given JSON on its input; no shell is involved."""

    arguments: tuple[str, ...] = field(repr=False)

    @property
    def shown(self) -> str:
        return hidden(PurePath(self.arguments[0]).name)


Target = Webhook | Ntfy | Desktop | Command


@dataclass(frozen=True, slots=True)
class FromVariable:
    """A target that a variable of the proxy's environment holds."""

    name: str

    @property
    def shown(self) -> str:
        return f"${self.name}"

    def read(self, environ: Mapping[str, str]) -> Target:
        """Return the target. Raises Wrong, which does not repeat it."""
        value = environ.get(self.name, "").strip()
        if not value:
            raise Wrong(f"{self.name} is not set", "set it where the proxy is started")
        try:
            return _target(value)
        except Wrong as error:
            raise Wrong(f"{self.name}: {error.wrong}", error.remedy) from None


#: What shows notifications on Linux; on macOS and Windows it is a part of the system.
NOTIFY_SEND = "notify-send"
_DESKTOP = {"win32": "powershell.exe", "darwin": "osascript"}


def program_of(target: Target, platform: str) -> str | None:
    """Return the program that *target* needs on *platform* (`sys.platform`); None: none."""
    match target:
        case Desktop():
            return _DESKTOP.get(platform, NOTIFY_SEND)
        case Command(arguments):
            return arguments[0]
        case _:
            return None


def read_targets(text: str) -> tuple[Target | FromVariable, ...]:
    """Return the targets of `pool_notify`: one, or a list in JSON. Raises Wrong."""
    text = text.strip()
    if not text:
        return ()
    if text[0] not in "[{":
        return (_target(text),)
    try:
        value = json.loads(text)
    except ValueError:
        raise Wrong("it begins like JSON, and is not valid", _ACCEPTED) from None
    entries = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(map(_entry, entries)))


def write_targets(value: list[Any] | dict[str, Any]) -> str:
    """Return the text of the option for a *value* of accounts.yaml. Raises Wrong."""
    return as_json_list(value, _entry)


def shown_targets(text: str) -> str:
    """Return what may be seen of `pool_notify`."""
    try:
        return ", ".join(target.shown for target in read_targets(text))
    except Wrong:
        return "[not shown]" if text else ""


def _entry(value: Any) -> Target | FromVariable:
    match value:
        case str() if value.strip():
            return _target(value.strip())
        case {"env": str(name), **more} if not more and _VARIABLE.fullmatch(name):
            return FromVariable(name)
        case {"env": _}:
            raise Wrong("env does not name a variable", "write {env: NAME}")
    raise Wrong("an entry is not a target", _ACCEPTED)


def _target(text: str) -> Target:
    if text == "desktop":
        return Desktop()
    scheme, colon, rest = text.partition(":")
    if colon and scheme.lower() == "ntfy":
        return _ntfy(rest)
    if not _SCHEME.match(text):
        return _command(text)
    return Webhook(urlunsplit(_address(text)))


def _ntfy(rest: str) -> Ntfy:
    if not _SCHEME.match(rest):
        if not _TOPIC.fullmatch(rest):
            raise Wrong(
                "the topic has other characters than letters, digits, _ and -", _NTFY_ACCEPTED
            )
        return Ntfy(NTFY, rest)
    url = _address(rest)
    path, _, topic = url.path.rpartition("/")
    if not _TOPIC.fullmatch(topic):
        raise Wrong("the address does not end in a topic", _NTFY_ACCEPTED)
    return Ntfy(urlunsplit(url._replace(path=path or "/", query="", fragment="")), topic)


def _address(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        host, _port = url.hostname, url.port
    except ValueError:
        raise Wrong("the address is malformed", _ACCEPTED) from None
    if not text.isprintable() or " " in text or not host:
        raise Wrong("the address is malformed", _ACCEPTED)
    if url.scheme == "http" and not stays_here(host):
        raise Wrong("http is unencrypted", "write https://; http is for this machine only")
    if url.scheme not in ("http", "https"):
        raise Wrong("the address is not https", _ACCEPTED)
    return url


def _command(text: str) -> Command:
    try:
        # Backslashes of Windows are no escapes; without them quotes stay on.
        is_posix = sys.platform != "win32"
        arguments = [a if is_posix else a.strip('"') for a in shlex.split(text, posix=is_posix)]
    except ValueError:
        raise Wrong("the command has a quote that does not end", _ACCEPTED) from None
    if not arguments or not arguments[0]:
        raise Wrong("the command names no program", _ACCEPTED)
    return Command(tuple(arguments))


def _shown(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}"
