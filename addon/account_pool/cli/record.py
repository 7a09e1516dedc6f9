"""What is known of the proxy that `run` started, shared by every `run` that uses it.

Two terminals use one proxy: the first starts it, the last ends it, whoever that is. The
record names the proxy, how it was started, and its users; it is read and written under
`locked` only.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from account_pool.cli import processes
from account_pool.cli.places import Places, write_whole


@dataclass(frozen=True, slots=True)
class Launch:
    """How the proxy is started.

    Attributes:
        folder: its working directory, where accounts.yaml is.
        arguments: of mitmdump, besides those that are always given.
    """

    folder: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """The proxy of one port.

    Attributes:
        pid: of the process.
        proof: `processes.identity` of it.
        instance: what it calls itself in /health; "" until it has said so.
        launch: how it was started, to start it again.
        users: `identity` of each `run` that uses it, by process id.
    """

    pid: int
    proof: str
    launch: Launch
    instance: str = ""
    users: Mapping[int, str] = field(default_factory=dict)

    def living_users(self, identity: Callable[[int], str | None]) -> dict[int, str]:
        """Return the users that still run."""
        return {pid: proof for pid, proof in self.users.items() if identity(pid) == proof}


def read_record(places: Places) -> Record | None:
    """Return the record of the port; None if there is none, or none that can be read."""
    try:
        value = json.loads(places.record.read_text(encoding="utf-8"))
        return Record(
            pid=int(value["pid"]),
            proof=str(value["proof"]),
            instance=str(value["instance"]),
            launch=Launch(str(value["launch"]["folder"]), tuple(value["launch"]["arguments"])),
            users={int(pid): str(proof) for pid, proof in value["users"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def running_ports(confdir: Path) -> list[int]:
    """Return the ports of the proxies that `run` has started and that still run."""
    ports = []
    for path in confdir.glob("account-pool-*.json"):
        number = path.stem.rpartition("-")[2]
        record = read_record(Places(confdir, int(number))) if number.isdecimal() else None
        if record is not None and processes.identity(record.pid) == record.proof:
            ports.append(int(number))
    return sorted(ports)


def write_record(places: Places, record: Record) -> None:
    """Keep *record*. Raises OSError."""
    write_whole(places.record, json.dumps(asdict(record)))


@contextlib.contextmanager
def locked(places: Places) -> Iterator[None]:
    """Be the only process that starts or ends the proxy of the port. Raises OSError."""
    places.confdir.mkdir(parents=True, exist_ok=True)
    with _open(places.lock) as descriptor:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415 - of Windows

            msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
        else:
            import fcntl  # noqa: PLC0415 - of all others

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # The system lets go of it when the file is closed, or the process is killed.
        yield


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    with path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        yield file.fileno()
