"""A real mitmdump as a child process: started, listening, read, stopped; why one did not start."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import account_pool
from account_pool.core.wrong import without_secrets

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


# -- why it did not start, by what it printed
#
# It prints a traceback for a script that cannot be imported, one line for a mistake in
# accounts.yaml or an address in use, and around them connections, what it listens on, and the
# CancelledError of whatever was going on when it ended.

#: What mitmdump puts before each line.
TIME = re.compile(r"^\[\d\d:\d\d:\d\d\.\d+\]\s*")
_OURS = "account-pool: "
#: Lines that stand there whether it starts or not.
_USUAL = re.compile(
    r"Loading script|listening at |exiting\.\.\.|Shutting down| stopped\.$|Try specifying a "
    r"|^\[[^\]]*\] ?(?:client|server) (?:dis)?connect"
    r"|^account-pool: (?:ready with|no accounts)| is skipped: |can be read by other users"
)
_ERROR = re.compile(r"error|fail|cannot|denied|not found|no such|invalid", re.IGNORECASE)
_TRACEBACK = "Traceback (most recent call last):"
#: They end what was going on, and are never why.
_CONSEQUENCES = ("CancelledError", "KeyboardInterrupt", "SystemExit")
INCOMPLETE = "the installation is incomplete: install the package again"
_REMEDIES = (
    ("No module named", INCOMPLETE),
    ("cannot import name", INCOMPLETE),
    ("address already in use", "name another port"),
)


def cause(lines: Sequence[str], exit_code: int | None) -> str:
    """Return the line of the output that says why, with a remedy where one is known.

    *exit_code* is negative for a signal, None while it runs.
    """
    texts = [TIME.sub("", line).rstrip() for line in lines]
    raised = list(_raised(texts))
    telling = [text.strip() for text in texts if text.strip() and not _USUAL.search(text)]
    ours = [text.removeprefix(_OURS) for text in telling if text.startswith(_OURS)]
    if raised:
        found = raised[-1]
    elif ours:
        more = len(ours) - 1
        found = f"{ours[0]} (and {more} more)" if more else ours[0]
    else:
        errors = [text for text in telling if _ERROR.search(text)]
        found = (errors[:1] or telling[-1:] or [_silence(exit_code)])[0]
    remedy = next((remedy for sign, remedy in _REMEDIES if sign.lower() in found.lower()), "")
    return without_secrets(f"{found}; {remedy}" if remedy else found)


def _raised(texts: Sequence[str]) -> Iterator[str]:
    """Yield the last line of each traceback that can be a cause."""
    inside = False
    for text in texts:
        if text.strip() == _TRACEBACK:
            inside = True
        elif inside and text and not text.startswith(" "):
            inside = False
            if not any(name in text.partition(":")[0] for name in _CONSEQUENCES):
                yield text


def _silence(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"it was ended by signal {-exit_code}"
    return "it said nothing"
