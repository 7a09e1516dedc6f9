"""What else runs on this machine: the wall clock is right only where little does."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.cpu import cpu_seconds

#: cores that others may use before times by the wall clock are not to be trusted
QUIET_CORES = 0.15


class Others:
    """Measures the CPU time that is spent from now on by what does not belong to the run.

    Args:
        pids: our processes that outlive the measurement; those that end in it are known.
    """

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._pids = pids
        self._started_at = time.monotonic()
        self._spent_s = self._spent()

    def cores(self) -> float | None:
        """Return how many cores the others have kept busy; None where nothing tells it."""
        now = self._spent()
        if self._spent_s is None or now is None:
            return None
        return max(now - self._spent_s, 0.0) / max(time.monotonic() - self._started_at, 1e-9)

    def _spent(self) -> float | None:
        everybody = _everybody()
        if everybody is None:
            return None
        ours = sum(os.times()[:4])  # ours and that of children that have ended
        return everybody - ours - sum(cpu_seconds(pid) or 0.0 for pid in self._pids)


def _everybody() -> float | None:
    """Return the CPU time of all processes since the machine started, seconds."""
    try:
        first = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal: proc_stat(5)
    ticks = [int(field) for field in first.split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def describe() -> str:
    """Return Python, mitmproxy and the processor in one line."""
    return (
        f"Python {platform.python_version()}, mitmproxy {metadata.version('mitmproxy')}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{_processor()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f" ({names[0]})" if names else ""
