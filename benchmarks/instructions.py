"""How many instructions a process retires, where Linux lets us count them.

The steadiest figure there is: it does not feel what else runs on the machine, down to
a tenth of a percent. But it is not time: cache misses and the kernel's work are not in
it. So it informs, next to the CPU time that the targets are about.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
from pathlib import Path
from typing import Self

#: perf_event_open(2) has no wrapper in libc: its number, by machine
_SYSCALL = {"x86_64": 298, "aarch64": 241}
_HARDWARE, _INSTRUCTIONS, _EXCLUDE_KERNEL = 0, 1, 1 << 5
_ATTRIBUTES_SIZE = 112


class Instructions:
    """Counts user-space instructions of all threads a process has when it is opened."""

    def __init__(self, pid: int) -> None:
        self._files: list[int] = []
        number = _SYSCALL.get(platform.machine())
        if sys.platform != "linux" or number is None:
            return
        libc = ctypes.CDLL(None)
        head = struct.pack(
            "=IIQQQQQ", _HARDWARE, _ATTRIBUTES_SIZE, _INSTRUCTIONS, 0, 0, 0, _EXCLUDE_KERNEL
        )
        attributes = head.ljust(_ATTRIBUTES_SIZE, b"\0")
        for thread in Path(f"/proc/{pid}/task").iterdir():
            file = libc.syscall(number, attributes, int(thread.name), -1, -1, 0)
            if file < 0:  # not allowed, or no counters in a virtual machine
                self.close()
                return
            self._files.append(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._files:
            with contextlib.suppress(OSError):
                os.close(self._files.pop())

    def read(self) -> int | None:
        """Return the count since it was opened, None where nothing counts."""
        if not self._files:
            return None
        return sum(int.from_bytes(os.read(file, 8), sys.byteorder) for file in self._files)
