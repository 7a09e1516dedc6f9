"""Which process did something, and whether that is gone.

Known only where it can be: on this machine, in this run of it, among processes that see
each other (a container has its own). Anywhere else a process may be alive.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from account_pool.store.clock import run_of_machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process.

    Attributes:
        host: name of the machine.
        run: which run of it, "" where that is not known.
        space: among which processes the number counts.
        pid: its number.
        started: when it began, as the system counts; "" where that is not known. A number
            is used again.
    """

    host: str
    run: str
    space: str
    pid: int
    started: str

    @classmethod
    def this(cls) -> Process:
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            run=run_of_machine(),
            space=_space(),
            pid=pid,
            started=_started(pid) or "",
        )

    def owner(self, unique: str) -> str:
        """Name something of this process, to be read by `is_gone`."""
        return json.dumps({**asdict(self), "of": unique})


def is_gone(owner: str) -> bool:
    """Say whether the process that *owner* names is known to be dead."""
    try:
        told = json.loads(owner)
        del told["of"]
        return _is_dead(Process(**told))
    except (ValueError, TypeError, KeyError, AttributeError):
        return False  # of another version


def _is_dead(other: Process) -> bool:
    here = (socket.gethostname(), run_of_machine(), _space())
    if os.name != "posix" or (other.host, other.run, other.space) != here:
        return False
    try:
        os.kill(other.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # somebody else's, and there
    # Of one that has ended, and whose parent has not asked how, nothing is found either.
    return other.started != "" and _started(other.pid) != other.started


def _space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return when the process began; None: it is dead, or nobody knows."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # proc(5): the name, in parentheses, may hold anything. The state is the third, the start
    # the 22nd.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
