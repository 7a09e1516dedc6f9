"""A credential that a command prints; all of the command is taken down when it must end.

No shell is involved, so nothing in the command is expanded. What it prints on its output is a
secret and is never repeated; the last line of its error output is what its owner needs to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from account_pool.core.credential import MASK, Secret
from account_pool.core.wrong import without_secrets
from account_pool.credentials.sources import CredentialError, Reading, Source, usable
from account_pool.credentials.vendor_logins import LOGINS
from account_pool.filesystem import reason_of
from account_pool.providers.token_forms import hidden, remedy

#: Long enough for a finger print, short enough to notice a command that waits for input.
COMMAND_TIMEOUT_S = 30.0
#: A credential is a line. What goes beyond is read, so that the command can end, and dropped.
MAX_OUTPUT_BYTES = 64 * 1024
MAX_SHOWN_CHARS = 200
SHORTEST_MASKED_CHARS = 4
#: What was killed is gone at once; what left its group and holds its pipes is not waited for.
KILLED_S = 5.0
#: How often it is checked whether a command has ended whose pipes are open, in seconds.
LOOK_S = 0.1


@dataclass(slots=True)
class CommandSource(Source):
    """What a command prints. It is run without a shell.

    The result is remembered until the server refuses it: some commands ask their user
    for a finger print.
    """

    command: str
    environ: Mapping[str, str] = field(repr=False, compare=False)
    timeout_s: float = COMMAND_TIMEOUT_S
    _remembered: Secret | None = field(default=None, repr=False, compare=False)

    @property
    def shown(self) -> str:
        """The command as messages name it: one that holds a token does not show it."""
        return hidden(self.command)

    def describe(self) -> str:
        return f"command {self.shown}"

    async def read(self) -> Reading:
        if self._remembered is None:
            arguments = shlex.split(self.command)
            printed = await run(arguments, self.shown, self.environ, self.timeout_s)
            if not printed.strip():
                raise CredentialError(
                    f"the command {self.shown} printed nothing",
                    "run it by hand: it must print the token",
                )
            self._remembered = usable(printed, f"what the command {self.shown} printed")
        return Reading(secret=self._remembered)

    def refused(self, secret: Secret) -> None:
        if self._remembered == secret:
            self._remembered = None


async def run(
    arguments: Sequence[str], shown: str, environ: Mapping[str, str], timeout_s: float
) -> str:
    """Run *arguments* and return what they print.

    The command gets a process group of its own, and the group is killed at *timeout_s*
    (seconds) or when the caller is cancelled: helpers must not outlive it. A helper that it
    leaves behind when it has ended, such as an agent, is not waited for. *shown* stands for
    the command in messages. Raises CredentialError.
    """
    process = await _start(arguments, shown, environ)
    printed, complained = bytearray(), bytearray()
    pipes = (process.stdout, printed), (process.stderr, complained)
    reading = [asyncio.ensure_future(_read(*pipe)) for pipe in pipes]
    status = None
    try:
        async with asyncio.timeout(timeout_s):
            status = await _status(process, {*reading}, printed)
    except TimeoutError:
        raise CredentialError(
            f"the command {shown} did not finish within {timeout_s:g} s",
            "run it by hand: it must print the token without asking for anything",
        ) from None
    finally:
        for task in reading:
            task.cancel()
        if status is None:
            await kill_group(process)
        process._transport.close()  # type: ignore[attr-defined]
    output, errors = (kept.decode("utf-8", "replace") for kept in (printed, complained))
    if status != 0:
        raise CredentialError(
            f"the command {shown} exited with status {status}{_last_line(errors, output)}",
            _by_hand(arguments[0]),
        )
    return output


def _by_hand(program: str) -> str:
    login = LOGINS.get(Path(program).stem)
    also = f"; if it is logged out, {login.how}" if login else ""
    return f"run it by hand and fix what it reports{also}"


async def _start(arguments: Sequence[str], shown: str, environ: Mapping[str, str]) -> Process:
    try:
        return await started(arguments, environ, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    except (OSError, ValueError) as error:
        raise CredentialError(
            f"the command {shown} cannot be started ({reason_of(error)})",
            remedy(arguments[0], "install it, or write its full path"),
        ) from None


async def _status(
    process: Process, reading: Collection[asyncio.Future[None]], printed: bytearray
) -> int:
    """Return the exit status of *process* once it has ended, and all that it printed is read."""
    while reading:
        # Before Python 3.13 `wait` waits for the pipes too.
        status = process.returncode
        _, reading = await asyncio.wait(reading, timeout=LOOK_S)
        if status is not None and (printed or status):
            return status
    return await process.wait()


async def _read(stream: asyncio.StreamReader | None, kept: bytearray) -> None:
    """Read *stream* to its end, and keep its beginning."""
    assert stream is not None  # both are pipes
    while chunk := await stream.read(MAX_OUTPUT_BYTES):
        kept += chunk[: MAX_OUTPUT_BYTES - len(kept)]


async def started(
    arguments: Sequence[str], environ: Mapping[str, str], *, stdin: int, stdout: int, stderr: int
) -> Process:
    """Start *arguments* in a process group of its own. Raises OSError or ValueError.

    A caller who is cancelled meanwhile leaves nothing of it: asyncio itself would end the
    process and not its group, and wait for whoever of that has its pipes open.
    """
    start = asyncio.create_subprocess_exec(
        *arguments,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=dict(environ),
        start_new_session=sys.platform != "win32",
    )
    starting = asyncio.ensure_future(start)
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError, ValueError):
            await kill_group(await starting)
        raise


async def kill_group(process: Process) -> None:
    """End the process and everything in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform != "win32":
            os.killpg(process.pid, signal.SIGKILL)
        elif process.returncode is None:
            process.kill()
    # Its pipes may be open in those that have left its group: before Python 3.13 it has not
    # ended for asyncio until they are closed.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILLED_S):
            await process.wait()
    process._transport.close()  # type: ignore[attr-defined]


def _last_line(errors: str, output: str) -> str:
    """Return ": <last line of *errors*>", without anything that *output* has too."""
    lines = errors.strip().splitlines()
    if not lines:
        return ""
    line = "".join(c if c.isprintable() else " " for c in lines[-1]).strip()
    # A command that shows its token on both must not get it into our log.
    for word in output.split():
        if len(word) >= SHORTEST_MASKED_CHARS:
            line = line.replace(word, MASK)
    # What it complains about may be an argument, and that a token.
    return ": " + without_secrets(hidden(line))[:MAX_SHOWN_CHARS]
