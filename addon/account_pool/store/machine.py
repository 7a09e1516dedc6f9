"""The machine as its processes see it: which run of it this is, how long it lasts, who is gone.

Known only where it can be. A process may be alive anywhere but on this machine, in
this run of it, among processes that see each other (a container has its own).
"""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct
from msgspec.structs import asdict


class Moment(Struct, frozen=True):
    """Now, as a process sees it.

    *run* names this run of the machine, "" where that is not known; *up* are its seconds.
    """

    run: str
    up: float
    wall: float


Clock = Callable[[], Moment]


def moment() -> Moment:
    """Return now."""
    run, wall = run_of_machine(), time.time()
    return Moment(run, _up() if run else wall, wall)


@functools.cache
def run_of_machine() -> str:
    """Return what names this run of the machine, "" where that is not known."""
    if sys.platform != "linux":
        return ""
    try:
        run = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # A container may have a clock of its own; older kernels know no such thing.
        space = Path("/proc/self/ns/time")
        return f"{run} {space.readlink()}" if space.is_symlink() else run
    except (OSError, ValueError):
        return ""


def _up() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.time()


class Process(Struct, frozen=True, kw_only=True):
    """A process.

    Attributes:
        run: which run of the machine, "" where that is not known.
        space: among which processes *pid* counts.
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
            started=started(pid) or "",
        )

    def owner(self, unique: str) -> str:
        """Name something of this process, to be read by `is_gone`."""
        return json.dumps({**asdict(self), "of": unique})


def is_gone(owner: str) -> bool:
    """Say whether the process that *owner* names is known to be dead."""
    try:
        named = json.loads(owner)
        del named["of"]
        return _is_dead(Process(**named))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
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
        return False  # of another user, and alive
    # A zombie has not started at that time either.
    return other.started != "" and started(other.pid) != other.started


def _space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """Return when the process *pid* began, as the system counts; None: dead, or not known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # proc(5): the name, in parentheses, may hold anything. The state is the third, the start
        # the 22nd.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):  # of another system it may have less
        return None
