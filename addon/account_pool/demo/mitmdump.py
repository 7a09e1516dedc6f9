"""A real mitmdump as a child process: started, listening, read, stopped."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import account_pool
from account_pool.demo.start_failure import cause

#: mitmdump says where it listens once it does; with port 0 that is how we learn it.
LISTENING = r"listening at (?:.*, )?\S+:(\d+)\.$"
#: What the addon says when it has read its accounts.
POOL_READY = r"account-pool: (ready|no accounts)"
#: Importing mitmproxy takes about a second; a loaded machine may need many. One that
#: ends instead is noticed at once, so this only bounds a hang.
START_TIMEOUT_S = 180.0
#: mitmdump ends within a few milliseconds of a SIGTERM, on a machine with nothing to do.
STOP_TIMEOUT_S = 20.0


class MitmdumpFailed(Exception):
    """mitmdump ended, or did not get ready, before it was asked to stop."""


class Mitmdump:
    """Runs mitmdump on a free port of 127.0.0.1 for as long as its block lasts.

    Args:
        args: more arguments of mitmdump.
        folder: its working directory.
        env: its whole environment; default: ours.
        ready: a regular expression; it is ready when it has printed a line with this.
            mitmdump listens a moment before its scripts have said whether they work.
        on_line: called with each line it prints.
        program: `mitmdump`, or `mitmweb`, which takes the same arguments.
    """

    def __init__(
        self,
        *args: str,
        folder: Path,
        env: Mapping[str, str] | None = None,
        ready: str = LISTENING,
        on_line: Callable[[str], None] = lambda _line: None,
        program: str = "mitmdump",
    ) -> None:
        self.lines: list[str] = []
        self.port = 0
        self._args = ("--listen-host", "127.0.0.1", "--listen-port", "0", *args)
        self.folder = folder
        self._env = {**(os.environ if env is None else env), "PYTHONUNBUFFERED": "1"}
        self._ready = ready
        self._on_line = on_line
        self._program = program
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode if self._process else None

    @property
    def output(self) -> str:
        """Everything it printed so far."""
        return "\n".join(self.lines)

    async def __aenter__(self) -> Mitmdump:
        try:
            await self._start()
            await self.until_printed(self._ready, START_TIMEOUT_S)
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def run_to_end(self, timeout_s: float = START_TIMEOUT_S) -> int:
        """Start it and return its exit code. Raises TimeoutError if it keeps running."""
        try:
            await self._start()
            assert self._process is not None and self._reading is not None
            async with asyncio.timeout(timeout_s):
                await self._reading
                return await self._process.wait()
        finally:
            await self.stop()

    async def until(self, happened: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        """Return as soon as *happened()* is true; looked at after each line printed.

        Raises MitmdumpFailed if the process ends first, TimeoutError after *timeout_s*.
        """
        assert self._reading is not None
        async with asyncio.timeout(timeout_s):
            while not happened():
                if self._reading.done():
                    raise MitmdumpFailed(f"mitmdump ended: {cause(self.lines, self.returncode)}")
                await self._changed.wait()

    async def until_printed(self, pattern: str, timeout_s: float = START_TIMEOUT_S) -> str:
        """Return the first line in which the regular expression *pattern* is found."""
        await self.until(lambda: any(re.search(pattern, line) for line in self.lines), timeout_s)
        return next(line for line in self.lines if re.search(pattern, line))

    async def stop(self) -> None:
        """End it, kindly first. Does nothing if it is not running."""
        process = self._process
        if process is None:
            return
        # Already gone: a Ctrl-C in the terminal reaches it as well as us. Then it is not to
        # be signalled: `terminate` would collect its exit code before asyncio does.
        if self._reading is None or not self._reading.done():
            with suppress(ProcessLookupError):
                process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._reading:
            await self._reading

    async def _start(self) -> None:
        self._process = await self._launch()
        self._reading = asyncio.create_task(self._read(self._process))

    async def _launch(self) -> Process:
        return await asyncio.create_subprocess_exec(
            *mitmdump_command(self._program),
            *self._args,
            cwd=self.folder,
            env=self._env,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            limit=1 << 20,
        )

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        async for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self.lines.append(line)
            if not self.port and (listening := re.search(LISTENING, line)):
                self.port = int(listening[1])
            self._on_line(line)
            self._notify()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def mitmdump_command(program: str = "mitmdump") -> Sequence[str]:
    """Return how to start the mitmdump, or other *program*, that belongs to this interpreter."""
    script = shutil.which(program, path=str(Path(sys.executable).parent))
    if script:
        return [script]
    return [sys.executable, "-c", f"from mitmproxy.tools.main import {program}; {program}()"]


def addon_script() -> Path:
    """Return the script to give to `mitmdump -s`: of the checkout, or of the wheel."""
    package = Path(account_pool.__file__).parent
    checkout = package.parent / "pool.py"
    return checkout if checkout.exists() else package / "script" / "pool.py"
