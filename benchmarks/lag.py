"""An addon that looks on: when the event loop stood still, into the file `lag-PID` of its folder.

Each line is a pause between two looks: its end and its length (seconds of the monotonic
clock), and the CPU time that the whole process used in it. Where that is less than the
length, it was other work of the machine that kept the loop waiting.
"""

import asyncio
import os
import time
from pathlib import Path

_LOOK_S = 0.002
#: shorter pauses are not written down
_NOTED_S = 0.01


class Lag:
    def running(self):
        self._file = Path(f"lag-{os.getpid()}").open("w", buffering=1)  # noqa: SIM115
        self._task = asyncio.get_running_loop().create_task(self._look())

    def done(self):
        self._task.cancel()
        self._file.close()

    async def _look(self):
        seen, used = time.monotonic(), time.process_time()
        while True:
            await asyncio.sleep(_LOOK_S)
            now, cpu = time.monotonic(), time.process_time()
            if now - seen > _NOTED_S:
                self._file.write(f"{now} {now - seen} {cpu - used}\n")
            seen, used = time.monotonic(), time.process_time()


addons = [Lag()]
