"""The proxies of this machine: where each has its files, and those that `run` has started.

What the command line keeps is beside mitmproxy's own files, one set for each port.

Two terminals use one proxy: the first starts it, the last ends it, whoever that is. The
record names the proxy, how it was started, and its users; it is read and written under
`locked` only. A process id is given to another process sooner or later: `identity` tells
whether it still is the process it was, and nothing is signalled without that proof.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from account_pool.core.json_values import NOT_READ
from account_pool.filesystem import expanded, read_file, write_whole
from account_pool.store import machine

#: The defaults of mitmproxy: its directory, and the port it listens on.
CONFDIR = "~/.mitmproxy"
DEFAULT_PORT = 8080
HOST = "127.0.0.1"
#: A proxy ends within milliseconds of a SIGTERM, once what is under way has had the time of
#: `pool_drain`; a hung one never.
KIND_S = 20.0
#: Nothing withstands a SIGKILL, but its port is free only once it is gone.
GONE_S = 60.0
_LOOK_S = 0.02
#: It has some hundred bytes, and a few for each program that `run` has started.
MAX_RECORD_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Places:
    """Files in *confdir*; those of a proxy carry its *port*."""

    confdir: Path
    port: int

    @classmethod
    def usual(cls, port: int) -> Places:
        """Return those of the user who runs this."""
        return cls(expanded(CONFDIR), port)

    def make(self) -> None:
        """Make the directory where it is not there. Raises OSError."""
        if self.confdir.exists() and not self.confdir.is_dir():
            wrong = "it is not a directory; move it away"
            raise NotADirectoryError(errno.ENOTDIR, wrong, str(self.confdir))
        self.confdir.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def record(self) -> Path:
        """What `run` knows of the proxy it started."""
        return self.confdir / f"account-pool-{self.port}.json"

    @property
    def lock(self) -> Path:
        """Held by who starts or ends that proxy."""
        return self.confdir / f"account-pool-{self.port}.lock"

    @property
    def log(self) -> Path:
        """What that proxy says."""
        return self.confdir / f"account-pool-{self.port}.log"

    @property
    def authority(self) -> Path:
        """mitmproxy's certificate, which signs those it shows to clients."""
        return self.confdir / "mitmproxy-ca-cert.pem"

    @property
    def bundle(self) -> Path:
        """The system's authorities and mitmproxy's."""
        return self.confdir / "account-pool-ca-bundle.pem"

    @property
    def upstream(self) -> Path:
        """The system's authorities and the user's own: what the proxy itself trusts."""
        return self.confdir / "account-pool-upstream.pem"

    @property
    def extra(self) -> Path:
        """mitmproxy's certificate and those of the user's own NODE_EXTRA_CA_CERTS."""
        return self.confdir / "account-pool-ca-extra.pem"


def identity(pid: int) -> str | None:
    """Return what identifies the process *pid* among all others; None if it does not exist.

    A process that has ended and was not collected yet is none.
    """
    if pid <= 0:
        return None
    if sys.platform == "win32":
        return _created(pid)
    if Path("/proc/self/stat").exists():
        return _from_proc(pid)
    return _from_ps(pid)


def end(pid: int, proof: str) -> None:
    """End the process *pid* if it is the one of *proof*: kindly, then not. Returns when gone."""
    steps = ((signal.SIGTERM, KIND_S), (getattr(signal, "SIGKILL", signal.SIGTERM), GONE_S))
    for number, patience_s in steps:
        if identity(pid) != proof:
            return
        # It may end by itself, or belong to another user.
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
        until = time.monotonic() + patience_s
        while identity(pid) == proof and time.monotonic() < until:
            time.sleep(_LOOK_S)


def _from_proc(pid: int) -> str | None:
    """Linux: when it began, in ticks since the machine did, and which start of that it was.

    Not its command line, which is empty for a moment after a process was started.
    """
    started, boot = machine.started(pid), machine.run_of_machine().partition(" ")[0]
    return None if started is None else f"{boot} {started}"


def _from_ps(pid: int) -> str | None:
    """macOS and other Unix: the moment it began, from ps."""
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    try:
        shown = subprocess.run(  # noqa: S603 - our own words, no shell
            command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
        ).stdout.strip()
    except OSError:
        return None
    state, _, rest = shown.partition(" ")
    return None if not rest or state.startswith("Z") else rest.strip()


if sys.platform == "win32":

    def _created(pid: int) -> str | None:
        """Windows: when it began, in 100 ns since 1601."""
        import ctypes  # noqa: PLC0415 - of Windows

        query_limited_information, still_active = 0x1000, 259
        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(query_limited_information, False, pid)
        if not handle:
            return None
        try:
            code, times = ctypes.c_ulong(), (ctypes.c_ulonglong * 4)()
            kernel.GetExitCodeProcess(handle, ctypes.byref(code))
            places = [ctypes.byref(times, 8 * n) for n in range(4)]
            known = kernel.GetProcessTimes(handle, *places)
            return str(times[0]) if known and code.value == still_active else None
        finally:
            kernel.CloseHandle(handle)


@dataclass(frozen=True, slots=True)
class Listener:
    """A program that listens at a port.

    Attributes:
        address: of this machine; 0.0.0.0 or :: for all.
        pid, name: None where they are another user's.
    """

    address: str
    pid: int | None = None
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.name or 'a program'} (pid {self.pid})" if self.pid else "another user's"


def listeners(port: int) -> list[Listener]:
    """Return who listens at *port*. Linux only; elsewhere nobody is known."""
    found = {}
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with suppress(OSError, ValueError, IndexError):
            for line in Path("/proc/net", table).read_text("ascii").splitlines()[1:]:
                # proc(5), net/tcp: local address, state (0A: it listens), inode
                words = line.split()
                address, _, number = words[1].partition(":")
                if words[3] == "0A" and int(number, 16) == port:
                    found[f"socket:[{words[9]}]"] = _address(address, family)
    owners = _owners(found) if found else {}
    return [Listener(address, *owners.get(inode, ())) for inode, address in found.items()]


def _address(text: str, family: int) -> str:
    """Return an address of net/tcp, whose words of 32 bits are in the machine's order."""
    words = [text[at : at + 8] for at in range(0, len(text), 8)]
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    return socket.inet_ntop(family, packed)


def _owners(sockets: Collection[str]) -> dict[str, tuple[int, str]]:
    owners: dict[str, tuple[int, str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        # It may end meanwhile, or be another user's.
        with suppress(OSError):
            for descriptor in (folder / "fd").iterdir():
                with suppress(OSError):
                    if (name := str(descriptor.readlink())) in sockets:
                        program = (folder / "comm").read_text("utf-8", "replace").strip()
                        owners[name] = int(folder.name), program
    return owners


@dataclass(frozen=True, slots=True)
class Launch:
    """How the proxy is started: where accounts.yaml is, with further options of mitmdump."""

    folder: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """The proxy of one port.

    Attributes:
        proof: `identity` of its process.
        instance: what it calls itself in /health; "" until it has said so.
        launch: how it was started, to start it again.
        users: `identity` of each `run` that uses it, by process id.
    """

    pid: int
    proof: str
    launch: Launch
    instance: str = ""
    users: Mapping[int, str] = field(default_factory=dict)

    def living_users(self) -> dict[int, str]:
        """Return the users that still run."""
        return {pid: proof for pid, proof in self.users.items() if identity(pid) == proof}


def read_record(places: Places) -> Record | None:
    """Return the record of the port; None if there is none that can be read."""
    try:
        content = read_file(places.record, MAX_RECORD_BYTES)
        return msgspec.json.decode(content, type=Record)
    except (OSError, *NOT_READ):
        return None


def running_ports(confdir: Path) -> list[int]:
    """Return the ports of the proxies that `run` has started and that still run."""
    ports = []
    for path in confdir.glob("account-pool-*.json"):
        number = path.stem.rpartition("-")[2]
        record = read_record(Places(confdir, int(number))) if number.isdecimal() else None
        if record is not None and identity(record.pid) == record.proof:
            ports.append(int(number))
    return sorted(ports)


def write_record(places: Places, record: Record) -> None:
    """Keep *record*. Raises OSError."""
    write_whole(places.record, msgspec.json.encode(record), durable=False)


@contextmanager
def locked(places: Places) -> Iterator[None]:
    """Be the only process that starts or ends the proxy of the port. Raises OSError."""
    places.make()
    with places.lock.open("a+", encoding="utf-8") as file:
        file.seek(0)
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415 - of Windows

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl  # noqa: PLC0415 - of all others

            fcntl.flock(file, fcntl.LOCK_EX)
        # The system lets go of it when the file is closed, or the process is killed.
        yield
