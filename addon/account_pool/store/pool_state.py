"""What `pool_state` names: a file, memory, or the URL of a state engine, and where its secrets are.

A URL holds no secret. What is secret is named by a reference: `env:NAME`, `file:PATH` or
`command:LINE`. That is read once it is needed; no secret is repeated in an error, nor what a
command printed. Knows no socket.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from msgspec import Struct, field

from account_pool.core.browser import stays_here
from account_pool.core.credential import Secret
from account_pool.core.meaning import LazyPattern
from account_pool.core.wrong import Wrong, shown, unknown
from account_pool.filesystem import TooLarge, expanded, named_path, read_file, reason_of
from account_pool.store.store import StoreError

Kind = Literal["single", "sentinel", "cluster"]

#: By scheme: how the hosts are used, and whether with TLS.
_SCHEMES: Mapping[str, tuple[Kind, bool]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_PORT = 6379
_SENTINEL_PORT = 26379
#: An answer takes a millisecond; what takes longer than this hangs. Seconds.
TIMEOUT_S = 0.25
_POOL = LazyPattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: An engine as people mistype it: "rediss:/HOST", "HOST:6379". A file of such a name would be made.
_MEANT = LazyPattern(r"(?:redis|valkey)[a-z+]*:|[^/\\]+:\d+(?:[/?]|$)", re.IGNORECASE)
_FORM = "rediss://USER@HOST:6379/0?pool=NAME&password=env:VARIABLE"
_REFERENCE = "env:VARIABLE, file:PATH or command:LINE"
#: Parameters that refer to secrets, how, and the others.
REFERENCES = ("password", "sentinel_password", "sealing_key")
REFERENCE_KINDS = ("env", "file", "command")
_OTHERS = ("pool", "master", "sentinel_user", "ca", "cert", "key", "timeout")
#: Long enough for a vault that asks a server, seconds.
COMMAND_TIMEOUT_S = 30.0
#: A secret is a line.
MAX_SECRET_BYTES = 64 * 1024
#: How often it is looked whether it has ended while something else has its output open, seconds.
LOOK_S = 0.1
#: What was killed is gone at once, seconds.
KILLED_S = 5.0


class Host(NamedTuple):
    """A host and its port."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


class Reference(Struct, frozen=True):
    """Where a secret is written down: in a variable, a file, or what a command prints."""

    kind: str
    value: str


class Address(Struct, frozen=True, kw_only=True):
    """What a URL names.

    Attributes:
        kind: one server; Sentinels, which know it; a cluster.
        tls: whether connections are encrypted, and certificates verified.
        hosts: servers, or Sentinels. No other is ever connected to, but for the primary that
            a Sentinel names.
        pool: proxies with the same name are one pool.
        user: of the ACL; None: the default user.
        master: the name that Sentinels know the primary by.
        ca: file with the certificates that are trusted; "": those the system trusts.
        cert, key: files with the certificate of the proxy and its key; "": none.
        timeout_s: how long an answer may take, seconds.
        references: where secrets are written down, by parameter.
    """

    kind: Kind = "single"
    tls: bool = False
    hosts: tuple[Host, ...]
    database: int = 0
    pool: str = "default"
    user: str | None = None
    master: str = ""
    sentinel_user: str | None = None
    ca: str = ""
    cert: str = ""
    key: str = ""
    timeout_s: float = TIMEOUT_S
    references: Mapping[str, Reference] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(str(host) for host in self.hosts)


class Fact(NamedTuple):
    """What was found of an engine, or of a state database.

    Attributes:
        level: "ok"; "note" works, and may lose something; "bad" does not work, or loses logins.
        text: how it is.
        remedy: what to change; "" where nothing is to be changed.
    """

    level: Literal["ok", "note", "bad"]
    text: str
    remedy: str = ""


def is_url(state: str) -> bool:
    """Say whether *state* (`pool_state`) names an engine, if in a wrong way, not a file."""
    return "://" in state or _MEANT.match(state) is not None


def parse(state: str) -> Address:
    """Return what the URL *state* names. Raises Wrong, which repeats no secret."""
    scheme, _, rest = state.partition("://")
    known = _SCHEMES.get(scheme.lower())
    if known is None:
        raise Wrong("this is not the URL of an engine", f"write {_FORM}")
    kind, tls = known
    try:
        # Without the scheme's rules for one host: Sentinels and clusters have several.
        parts = urlsplit(f"//{rest}")
    except ValueError:  # it repeats the URL
        raise Wrong("the URL cannot be read", f"write {_FORM}") from None
    if "#" in rest:
        raise Wrong("what follows a # is not part of the URL", "write %23 for it")
    login, _, hosts_text = parts.netloc.rpartition("@")
    user, colon, _ = login.partition(":")
    if colon:
        raise Wrong("the URL holds a password, and logs and process lists would show it", _FORM_IT)
    query = _query(parts.query)
    hosts = _hosts(hosts_text, _SENTINEL_PORT if kind == "sentinel" else _PORT)
    if len(hosts) > 1 and kind == "single":
        raise Wrong(
            "several hosts need Sentinels or a cluster",
            f"write {scheme}+sentinel:// or {scheme}+cluster://",
        )
    if not tls and (far := [host for host in hosts if not stays_here(host.name)]):
        raise Wrong(
            f"{far[0]} is another machine, and {scheme}:// is not encrypted",
            f"write {scheme.replace('redis', 'rediss')}://",
        )
    pool = query.get("pool", "default")
    if not _POOL.fullmatch(pool):
        raise Wrong("the name of a pool has letters, digits, '.', '_' and '-'", "rename it")
    if kind == "sentinel" and not query.get("master"):
        raise Wrong("Sentinels know several servers", "add ?master=NAME, as in sentinel.conf")
    return Address(
        kind=kind,
        tls=tls,
        hosts=hosts,
        database=_database(parts.path, kind),
        pool=pool,
        user=unquote(user) or None,
        master=query.get("master", ""),
        sentinel_user=query.get("sentinel_user"),
        ca=query.get("ca", ""),
        cert=query.get("cert", ""),
        key=query.get("key", ""),
        timeout_s=_timeout(query["timeout"]) if "timeout" in query else TIMEOUT_S,
        references={name: _reference(name, query[name]) for name in REFERENCES if query.get(name)},
    )


_FORM_IT = f"write {_FORM}, or file:PATH, or command:LINE"


def _query(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        if name not in REFERENCES + _OTHERS:
            raise Wrong("the URL has an unknown parameter", f"known are {', '.join(_KNOWN)}")
        if name in found:
            raise Wrong(f"{name} is in the URL twice", "remove one")
        found[name] = value
    return found


_KNOWN = sorted(REFERENCES + _OTHERS)


def _hosts(text: str, port: int) -> tuple[Host, ...]:
    hosts = tuple(_host(part, port) for part in text.split(","))
    if len(set(hosts)) < len(hosts):
        raise Wrong("a host is in the URL twice", "remove one")
    return hosts


def _host(text: str, default: int) -> Host:
    wrong = Wrong("a host of the URL cannot be read", f"write {_FORM}")
    try:
        parts = urlsplit(f"//{text}")
        name, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if not name or parts.path or parts.query or "@" in text:
        raise wrong
    return Host(name, default if port is None else port)


def _database(path: str, kind: Kind) -> int:
    number = path.strip("/")
    if not number:
        return 0
    if not re.fullmatch(r"[0-9]{1,5}", number):
        raise Wrong("the path of the URL is the number of a database", f"write {_FORM}")
    if kind == "cluster" and int(number):
        raise Wrong("a cluster has database 0 only", "leave the number out")
    return int(number)


def _timeout(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.05 <= (seconds := float(text)) <= 60:
            return seconds
    raise Wrong("timeout is not a number of seconds", "write a number from 0.05 to 60")


def _reference(name: str, text: str) -> Reference:
    kind, _, value = text.partition(":")
    if not value or kind not in REFERENCE_KINDS:
        # What stands there may be the secret itself.
        raise Wrong(f"{name} is not a reference", f"write {_REFERENCE}, never the secret itself")
    return Reference(kind, value)


# -- the secrets that it refers to


class Lookup:
    """A secret that is read when it is first asked for, and again once it was refused."""

    def __init__(
        self, name: str, reference: Reference | None, environ: Mapping[str, str] = os.environ
    ) -> None:
        """*name* stands for it in errors; without a *reference* there is none."""
        self._name = name
        self._reference = reference
        self._environ = environ
        self._known: Secret | None = None

    def __call__(self) -> Secret | None:
        """Return the secret, None where there is none. May block. Raises StoreError."""
        if self._known is None and self._reference is not None:
            self._known = _secret(self._name, self._reference, self._environ)
        return self._known

    def refused(self) -> None:
        """Have it read anew: it may have been changed where it is written down."""
        self._known = None


def _secret(name: str, reference: Reference, environ: Mapping[str, str]) -> Secret:
    match reference.kind:
        case "env":
            text = environ.get(reference.value, "")
            where = f"the variable {reference.value}"
        case "file":
            where = f"the file {reference.value}"
            text = _of_file(name, reference.value)
        case _:
            program = _program(reference.value)
            where = f"what the command {program} prints"
            text = _of_command(name, reference.value, program, environ)
    text = text.strip()
    if not text or "\n" in text:
        raise StoreError(f"{name}: {where} is {'not one line' if text else 'empty'}; put it there")
    return Secret(text)


def _of_file(name: str, path: str) -> str:
    try:
        return read_file(named_path(path), MAX_SECRET_BYTES).decode("utf-8")
    except TooLarge:
        raise StoreError(
            f"{name}: the file {path} is too long for a secret; name another"
        ) from None
    except OSError as error:
        raise StoreError(
            f"{name}: the file {path} cannot be read ({reason_of(error)}); create it, or correct "
            "its mode"
        ) from None
    except UnicodeDecodeError:
        raise StoreError(f"{name}: the file {path} is not text; name another") from None


def _program(line: str) -> str:
    # Its arguments may hold a secret.
    with contextlib.suppress(ValueError):
        if arguments := shlex.split(line):
            return Path(arguments[0]).name
    return "that is written there"


def _of_command(name: str, line: str, program: str, environ: Mapping[str, str]) -> str:
    by_hand = "run it by hand: it must print the secret without asking for anything"
    try:
        process = subprocess.Popen(  # noqa: S603 - the owner's own command, without a shell
            shlex.split(line),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environ),
            start_new_session=sys.platform != "win32",
        )
    except (OSError, ValueError, IndexError) as error:
        reason = (getattr(error, "strerror", None) or "it cannot be read").lower()
        raise StoreError(
            f"{name}: the command {program} cannot be started ({reason}); write its full path"
        ) from None
    try:
        printed = _printed(process)
        status = process.returncode
    except subprocess.TimeoutExpired:
        raise StoreError(
            f"{name}: the command {program} did not end within {COMMAND_TIMEOUT_S:g} s; {by_hand}"
        ) from None
    finally:
        _end(process)
    if len(printed) > MAX_SECRET_BYTES:
        raise StoreError(f"{name}: the command {program} prints too much for a secret; {by_hand}")
    if status != 0:
        raise StoreError(f"{name}: the command {program} exited with {status}; {by_hand}")
    return printed.decode("utf-8", "replace")


def _printed(process: subprocess.Popen[bytes]) -> bytes:
    """Return what it printed until its end; of more than a secret can have, only the beginning.

    What it leaves behind, such as an agent, is not waited for. Raises subprocess.TimeoutExpired.
    """
    over_at = time.monotonic() + COMMAND_TIMEOUT_S
    output, found = process.stdout, bytearray()
    assert output is not None  # it is a pipe

    def read() -> None:
        with output:
            while chunk := os.read(output.fileno(), MAX_SECRET_BYTES + 1 - len(found)):
                found.extend(chunk)

    # What it has started may have the pipe open for ever: a thread that nobody waits for.
    reader = threading.Thread(target=read, name="account-pool secret", daemon=True)
    reader.start()
    while reader.is_alive():
        status = process.poll()
        reader.join(LOOK_S)
        if status is not None and (found or status):
            break
        if reader.is_alive() and time.monotonic() >= over_at:
            raise subprocess.TimeoutExpired(process.args, COMMAND_TIMEOUT_S)
    if len(found) <= MAX_SECRET_BYTES:
        process.wait(max(0.0, over_at - time.monotonic()))
    return bytes(found)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it, if it runs, with all that it has started: its pipe is open in them, too."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform != "win32":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILLED_S)


# -- the option, and `state` in accounts.yaml

#: The file of `pool_state` when none is named, in mitmproxy's own directory.
STATE_FILE = "account-pool.sqlite"
#: The value of `pool_state` for none.
IN_MEMORY = "memory:"
_STATE_FORM = (
    "write {url: 'rediss://USER@HOST:6379/0?pool=NAME', password: {env: NAME}, sealing_key: "
    "{file: PATH}}, the path of a file, or memory:"
)


def read_state(text: str) -> str:
    """Return *text*: a path, `memory:` or the URL of an engine. Raises Wrong."""
    if is_url(text):
        parse(text)
        return text
    try:
        named_path(text)
    except OSError as error:
        raise Wrong(f"{shown(text)}: {error.strerror}", _STATE_FORM) from None
    return text


def database_path(state: str, confdir: str) -> Path | None:
    """Return the file that `pool_state` (*state*) names, None for none.

    Where it names an engine, what only this proxy has is beside the usual file, in *confdir*.
    """
    if state == IN_MEMORY:
        return None
    if state and not is_url(state):
        return expanded(state)
    return expanded(confdir) / STATE_FILE


def write_state(value: list[Any] | dict[str, Any]) -> str:
    """Return the URL for a mapping of accounts.yaml. Raises Wrong."""
    if not isinstance(value, dict):
        raise Wrong("it is a list", _STATE_FORM)
    keys = ("url", *REFERENCES)
    for key in value:
        if key not in keys:
            raise Wrong("it has an unknown key", unknown(str(key), keys))
    url = value.get("url")
    if not isinstance(url, str) or not is_url(url):
        raise Wrong("it has no url of an engine", _STATE_FORM)
    references = {name: _reference_in(name, value[name]) for name in REFERENCES if name in value}
    if not references:
        return read_state(url)
    query = urlencode(references, quote_via=quote)
    return read_state(f"{url}{'&' if '?' in url else '?'}{query}")


def _reference_in(name: str, value: Any) -> str:
    # What stands there may be the secret itself.
    match value:
        case dict() if len(value) == 1:
            [(kind, what)] = value.items()
            if kind in REFERENCE_KINDS and isinstance(what, str) and what:
                return f"{kind}:{what}"
    raise Wrong(
        f"{name} is not a reference",
        "write {env: NAME}, {file: PATH} or {command: LINE}, never the secret itself",
    )
