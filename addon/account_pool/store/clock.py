"""The clock of a store, which all its proxies share and nobody can set.

It is the time since the machine was started, sleep included, which goes on whatever becomes
of the wall clock, and is the same for all processes. A store notes for each run of a
machine what its clock is ahead of that; with the first run the wall clock is taken, with
another one the clock goes on by what the wall clock has gone on: not at all if it was set
back meanwhile.

Where a machine does not tell its runs apart, its wall clock is taken.
"""

from __future__ import annotations

import functools
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Moment(NamedTuple):
    """Now, as a process sees it.

    Attributes:
        run: names this run of the machine; "" where that is not known.
        up: seconds of it.
        wall: the wall clock.
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


def set_up(connection: sqlite3.Connection, now: Moment) -> float:
    """Return what the store's clock is ahead of `Moment.up`; note it for a run that is new.

    Call it in a transaction.
    """
    if not now.run:
        return 0.0
    row = connection.execute("SELECT ahead FROM clock WHERE run = ?", (now.run,)).fetchone()
    if row is not None:
        return float(row[0])
    last = connection.execute("SELECT at, wall FROM clock ORDER BY at DESC LIMIT 1").fetchone()
    at = now.wall if last is None else last[0] + max(now.wall - last[1], 0.0)
    # To milliseconds, as all that is kept.
    ahead = round(at - now.up, 3)
    connection.execute("INSERT INTO clock VALUES (?, ?, ?, ?)", (now.run, ahead, at, now.wall))
    return ahead


def note(connection: sqlite3.Connection, now: Moment, ahead: float) -> None:
    """Note how late it is, for the next run of the machine. Call it in a transaction."""
    connection.execute(
        "UPDATE clock SET at = ?, wall = ? WHERE run = ?", (now.up + ahead, now.wall, now.run)
    )
