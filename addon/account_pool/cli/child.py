"""Runs the tool as a child: its terminal, its signals, its exit code, and what it writes.

The tool stays in our process group, so that the terminal's own signals (Ctrl-C, Ctrl-Z)
reach it as they always do; what others send to us is passed on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from account_pool.core.outcome import OutcomeClass, UpstreamResponse
from account_pool.providers.base import Provider

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

    *passed*: a signal was passed on, or typed: whoever sent it wants the tool to end.
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
        self,
        command: Sequence[str],
        program: str,
        environ: Mapping[str, str],
        tee: Tee | None,
        *,
        cwd: Path | None = None,
        stdout: int | None = None,
    ) -> int:
        """Run *command* and return its exit code, 128 + n if signal n ended it.

        *cwd* and *stdout* are its own folder and descriptor; None: ours.

        Raises CannotRun.
        """
        # Windows finds scripts (.cmd) by their whole name only.
        words = [program, *command[1:]] if os.name == "nt" else command
        self._starting = True
        try:
            self._tool = tool = subprocess.Popen(  # noqa: S603 - what the user wrote, no shell
                words,
                executable=program,
                env=environ,
                cwd=cwd,
                stdout=stdout,
                stderr=tee.end if tee else None,
            )
        except OSError as error:
            raise CannotRun(f"{command[0]}: {error.strerror}", NOT_EXECUTABLE) from None
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
            # The tool may be running already, and its process id is not known yet.
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


# -- its stderr: read, and passed on at once
#
# A tool looks whether its stderr is a terminal before it draws: where ours is one, it gets a
# terminal of the same size. Stdin and stdout are left as they are.

#: The end of what was written: enough for the words a tool ends with.
KEPT_BYTES = 16 * 1024
#: A process that the tool left behind may hold its stderr for ever.
LAST_WORDS_S = 0.5
_STDERR = 2


class Tee:
    """The stderr of one tool, to which *end* is given."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._copy, name="stderr of the tool", daemon=True)
        self._terminal = sys.platform != "win32" and os.isatty(_STDERR)
        self._ours, self.end = _terminal_like(_STDERR) if self._terminal else os.pipe()
        self._resized: object = None

    def __enter__(self) -> Tee:
        if self._terminal:
            self._resized = signal.signal(
                signal.SIGWINCH, lambda *_: _same_size(_STDERR, self._ours)
            )
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._resized is not None:
            signal.signal(signal.SIGWINCH, self._resized)  # type: ignore[arg-type]  # as it was
        if not self._thread.ident:
            os.close(self.end)
        else:
            self._thread.join(LAST_WORDS_S)
        if not self._thread.is_alive():
            os.close(self._ours)

    def begin(self) -> None:
        """Begin to read: the tool has its end by now."""
        os.close(self.end)
        self._thread.start()

    def text(self) -> str:
        """Return the end of what the tool wrote. Call it after the block."""
        return bytes(self._kept).decode(errors="replace")

    def _copy(self) -> None:
        # A terminal without users ends with an error, a pipe with nothing.
        with contextlib.suppress(OSError):
            while chunk := os.read(self._ours, 65536):
                self._kept += chunk
                del self._kept[:-KEPT_BYTES]
                # Our stderr may be closed; the tool must not block on that.
                with contextlib.suppress(OSError):
                    _write(chunk)


def _write(chunk: bytes) -> None:
    while chunk:
        chunk = chunk[os.write(_STDERR, chunk) :]


def _terminal_like(descriptor: int) -> tuple[int, int]:
    """Return both ends of a new terminal, of the size of *descriptor*."""
    import pty  # noqa: PLC0415 - not on Windows
    import termios  # noqa: PLC0415 - the same

    ours, theirs = pty.openpty()
    # Line ends are the real terminal's business: made twice they would move the cursor.
    settings = termios.tcgetattr(theirs)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    _same_size(descriptor, theirs)
    return ours, theirs


def _same_size(shown: int, copy: int) -> None:
    import termios  # noqa: PLC0415 - the same

    with contextlib.suppress(OSError, termios.error):
        termios.tcsetwinsize(copy, termios.tcgetwinsize(shown))


# -- whether it ended because of a limit, by what it wrote
#
# The providers' own tables decide (`Provider.signals`): a line is read as the error of an
# answer, whole and from each place where a tool may begin to quote. Only a code or a sentence
# counts, never a status or a number. What the tools say in words of their own is in
# `TOOLS_OWN`.

#: How many of the last lines may say it, and how much of one is read.
LAST_LINES, LINE_CHARS = 40, 2000
_LIMITS = frozenset({OutcomeClass.RATE_LIMIT, OutcomeClass.QUOTA})
#: Rows may ask for a status, and tools seldom quote it.
_STATUSES = (429, 400, 403)
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: Where a tool begins to quote: "Error: 429 rate limit reached", "api - quota exceeded".
_BEGINNINGS = re.compile(r"(?:: |- |— |\d{3} |[\"'(\[│])\s*")
#: An identifier, not a word of a sentence: `insufficient_quota`, `RESOURCE_EXHAUSTED`.
_CODE = re.compile(r"\b[A-Za-z]+(?:_[A-Za-z]+)+\b")
#: Of this machine, not of a provider.
_DISK = re.compile(r"\bdisk quota\b", re.I)
_MAX_BEGINNINGS, _MAX_CODES = 12, 12

#: What tools say instead of the provider, measured with the tools in November 2026.
TOOLS_OWN: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("Claude Code", re.compile(r"you(?:'|’)ve hit your (?:[\w-]+ )*limit\b", re.I)),  # noqa: RUF001
    ("Claude Code", re.compile(r"\bcredit balance is too low\b", re.I)),
    ("Codex", re.compile(r"you(?:'|’)ve hit your usage limit\b", re.I)),  # noqa: RUF001
    ("Codex", re.compile(r"^(?:error: )?quota exceeded\b", re.I)),
    ("Codex", re.compile(r"\bexceeded retry limit, last status: 429\b", re.I)),
    ("Gemini CLI", re.compile(r"\bTerminalQuotaError\b")),
    ("Copilot CLI", re.compile(r"\byou(?:'|’)?(?:ve| have) exceeded your \w+ quota\b", re.I)),  # noqa: RUF001
    ("SDKs of OpenAI and Anthropic", re.compile(r"\bRateLimitError\b")),
    ("the reason phrase of 429 (RFC 6585)", re.compile(r"\btoo many requests\b", re.I)),
)


def limit_in(text: str, providers: Iterable[Provider]) -> str | None:
    """Return the line of *text* that speaks of a limit, the last one; None without one."""
    providers = tuple(providers)
    lines = _ESCAPES.sub("", text).replace("\r", "\n").splitlines()
    for line in reversed([line.strip() for line in lines if line.strip()][-LAST_LINES:]):
        if _speaks_of_limit(line[:LINE_CHARS], providers):
            return line[:200]
    return None


def _speaks_of_limit(line: str, providers: Iterable[Provider]) -> bool:
    if _DISK.search(line):
        return False
    if any(pattern.search(line) for _, pattern in TOOLS_OWN):
        return True
    errors = list(_errors(line))
    return any(_is_limit(provider, error) for provider in providers for error in errors)


def _errors(line: str) -> Iterator[Any]:
    """Yield what the provider may have said, as the body of its answer."""
    if (start := line.find("{")) >= 0 and isinstance(body := _json(line[start:]), dict):
        yield body
        return
    begins = [0, *(found.end() for found in _BEGINNINGS.finditer(line))][:_MAX_BEGINNINGS]
    for begin in dict.fromkeys(begins):
        yield {"error": {"message": line[begin:]}}
    for code in dict.fromkeys(_CODE.findall(line)[:_MAX_CODES]):
        yield {"error": {"message": "", "code": code, "type": code, "status": code}}


def _is_limit(provider: Provider, body: Any) -> bool:
    outcomes = (provider.classify(UpstreamResponse(status=s, payload=body)) for s in _STATUSES)
    return any(outcome.explicit and outcome.cls in _LIMITS for outcome in outcomes)


def _json(text: str) -> Any:
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None
