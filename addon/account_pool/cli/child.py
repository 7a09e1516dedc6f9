"""Runs the tool as a child: its terminal, its signals, its exit code.

The tool stays in our process group, so that the terminal's own signals (Ctrl-C, Ctrl-Z)
reach it as they always do; what others send to us is passed on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType

from account_pool.cli.tee import Tee

#: As shells have it (POSIX, 2.8.2).
NOT_FOUND, NOT_EXECUTABLE, SIGNALLED = 127, 126, 128

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGBREAK")
_FROM_KEYBOARD = frozenset({"SIGINT", "SIGQUIT", "SIGBREAK"})


class CannotRun(Exception):
    """There is no such program; *code* is the exit code a shell would give."""

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why)
        self.code = code


class Stopped(BaseException):
    """A signal came while no tool runs. Not an Exception: nothing may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def find_program(name: str, environ: Mapping[str, str]) -> str:
    """Return the file that *name* starts. Raises CannotRun."""
    if found := shutil.which(name, path=environ.get("PATH")):
        return found
    if os.path.dirname(name) and os.path.isfile(name):  # noqa: PTH113, PTH120 - as `which` looks
        raise CannotRun(f"{name}: is not executable", NOT_EXECUTABLE)
    raise CannotRun(f"{name}: command not found", NOT_FOUND)


class Signals:
    """What comes meanwhile goes to the tool; without a tool it ends us by `Stopped`.

    Attributes:
        passed: a signal was passed on, or typed: whoever sent it wants the tool to end.
    """

    def __init__(self) -> None:
        self.passed = False
        self._tool: subprocess.Popen[bytes] | None = None
        self._starting = False
        self._early: list[int] = []
        self._closing = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        for name in _NAMES:
            number = getattr(signal, name, None)
            # What nohup or a shell's & had ignored stays so.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # as it was given to us

    def closing(self) -> None:
        """From now on finish what is begun: cleaning up takes moments."""
        self._closing = True

    def run(
        self, command: Sequence[str], program: str, environ: Mapping[str, str], tee: Tee | None
    ) -> int:
        """Run *command* and return its exit code, 128 + n if signal n ended it.

        Raises CannotRun.
        """
        self._starting = True
        try:
            self._tool = tool = _start(command, program, environ, tee)
        finally:
            self._starting = False
        try:
            if tee:
                tee.begin()
            for number in self._early:
                self._pass_on(tool, number)
            code = tool.wait()
        finally:
            self._tool = None
        return SIGNALLED - code if code < 0 else code

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if self._closing:
            return
        if self._starting:
            # The tool may be there already, and nobody knows its number yet.
            self._early.append(number)
        elif self._tool is None:
            raise Stopped(number)
        else:
            self._pass_on(self._tool, number)

    def _pass_on(self, tool: subprocess.Popen[bytes], number: int) -> None:
        self.passed = True
        if signal.Signals(number).name in _FROM_KEYBOARD and _in_front(tool.pid):
            return  # the terminal has sent it to the tool as well
        with contextlib.suppress(ProcessLookupError, ValueError):
            tool.send_signal(number)


def _start(
    command: Sequence[str], program: str, environ: Mapping[str, str], tee: Tee | None
) -> subprocess.Popen[bytes]:
    # Windows finds scripts (.cmd) by their whole name only.
    words = [program, *command[1:]] if os.name == "nt" else command
    try:
        return subprocess.Popen(  # noqa: S603 - what the user wrote, no shell
            words, executable=program, env=environ, stderr=tee.end if tee else None
        )
    except OSError as error:
        raise CannotRun(f"{command[0]}: {error.strerror}", NOT_EXECUTABLE) from None


def _in_front(tool: int) -> bool:
    """Say whether we and the process *tool* are what a terminal's keyboard signals go to."""
    if os.name == "nt":
        return True
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp() == os.getpgid(tool)
    except OSError:
        return False
    finally:
        os.close(terminal)
