"""What a process has used so far: CPU time and resident memory.

CPU time is what the ratios rest on: on a shared machine it repeats within a few
percent where the wall clock does not.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any


def cpu_seconds(pid: int) -> float | None:
    """Return user plus system time of the process, or None where nothing tells it.

    Linux: the CPU clock of the process (nanoseconds; `/proc/PID/stat` shows the same
    sum in steps of 10 ms). Elsewhere psutil, if it is installed.
    """
    if sys.platform == "linux":
        return _linux_cpu_clock(pid)
    process = _psutil_process(pid)
    if process is None:
        return None
    times = process.cpu_times()
    return float(times.user + times.system)


def resident_mib(pid: int) -> float | None:
    """Return the resident memory (VmRSS) in MiB, or None where nothing tells it."""
    if sys.platform == "linux":
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return None
    process = _psutil_process(pid)
    return None if process is None else float(process.memory_info().rss / 1024**2)


def children(pid: int) -> list[int]:
    """Return the processes that *pid* has started and that run; none where nothing tells it."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in found for child in task.read_text().split()]


def _linux_cpu_clock(pid: int) -> float:
    try:
        # clock_getcpuclockid(3): how Linux numbers the CPU clock of another process.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _psutil_process(pid: int) -> Any:
    try:
        import psutil  # optional: the extra `benchmarks`
    except ImportError:
        return None
    return psutil.Process(pid)
