"""mitmdump without the second that its imports take: forked from a process that has them.

Each is a process of its own, with its own folder, environment and output, in which the
program's main function runs from its first line. What a start does before that is seen
by the tests of `account-pool demo` and `run`, and by all with POOL_EXEC=1.

Run as a program it is that first process: it forks for each line on its socket, given
with the descriptors of an output and of a status, to which the forked one's process id
and exit code are written.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import account_pool

#: Other systems do not fork well, or not at all.
_AVAILABLE = sys.platform == "linux" and not os.environ.get("POOL_EXEC")
_MAX_BYTES = 1 << 20


def is_possible(env: Mapping[str, str]) -> bool:
    """Say whether a process with *env* can be forked: what Python reads at its start cannot."""
    started_with = {name for name in env if name.startswith("PYTHON")} - {"PYTHONUNBUFFERED"}
    return _AVAILABLE and not started_with


class Forked:
    """The part of `asyncio.subprocess.Process` that is needed, for a forked process."""

    def __init__(self, pid: int, stdout: asyncio.StreamReader, status: asyncio.StreamReader):
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self._ending = asyncio.create_task(self._end(status))

    async def wait(self) -> int:
        return await asyncio.shield(self._ending)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    async def _end(self, status: asyncio.StreamReader) -> int:
        code = int(await status.readline())
        # To its end, or the loop of the test may end before the pipe is closed.
        await status.read()
        self.returncode = code
        return code


class Forks:
    """The process that forks; one for all tests of a worker, started when first needed."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def start(
        self, program: str, args: Sequence[str], *, cwd: Path, env: dict[str, str]
    ) -> Forked:
        request = json.dumps([program, list(args), str(cwd), env]).encode()
        output, status = os.pipe(), os.pipe()
        socket.send_fds(self._server(), [request], [output[1], status[1]])
        os.close(output[1])
        os.close(status[1])
        said = await _reader(status[0])
        return Forked(int(await said.readline()), await _reader(output[0]), said)

    def _server(self) -> socket.socket:
        if self._socket is None:
            # Whole messages, and an end when this process ends, however it does.
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            path = str(Path(account_pool.__file__).parents[1])
            self._process = subprocess.Popen(
                [sys.executable, "-u", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
            )
            theirs.close()
        return self._socket


FORKS = Forks()


async def _reader(descriptor: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=_MAX_BYTES)
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: protocol, os.fdopen(descriptor, "rb", buffering=0)
    )
    return reader


# -- the process that forks


def serve(connection: socket.socket) -> None:
    """Fork for each request until the other side has gone."""
    # As it is when mitmdump is started: its own folder comes first, not this one.
    sys.path[0] = str(Path(sys.executable).parent)

    import account_pool.proxy.addon  # noqa: F401

    gc.freeze()
    while True:
        request, descriptors, *_ = socket.recv_fds(connection, _MAX_BYTES, 2)
        if not request:
            return
        if os.fork() == 0:
            connection.close()
            os._exit(keep(json.loads(request), *descriptors))
        for descriptor in descriptors:
            os.close(descriptor)
        collect()


def collect() -> None:
    """Take notice of those that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def keep(request: list[Any], output: int, status: int) -> int:
    """Fork the program itself, and tell of its beginning and its end."""
    pid = os.fork()
    if pid == 0:
        os.close(status)
        play(output, *request)
        # Not at once: an interpreter that ends waits for threads, and runs what waits for its end.
        sys.exit()
    # Whoever reads it waits for the program to close it, and for nobody else.
    os.close(output)
    # A Ctrl-C is the program's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.write(status, b"%d\n" % pid)
    _, ended = os.waitpid(pid, 0)
    os.write(status, b"%d\n" % os.waitstatus_to_exitcode(ended))
    return 0


def play(output: int, program: str, args: list[str], cwd: str, env: dict[str, str]) -> None:
    """Be the program. Returns, or raises, as that does."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [str(Path(sys.executable).with_name(program)), *args]
    from mitmproxy.tools import main

    getattr(main, program)()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
