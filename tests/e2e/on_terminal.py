"""Programs on a terminal of their own, which can be closed like a window."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import struct
import termios
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from account_pool.demo.mitmdump import mitmdump_command
from tests.e2e.harness import PATH_OF_PACKAGE, SERVE, TIMEOUT_S, Proxy, Setting

ROWS, COLUMNS = 40, 200
#: Where it listens, in the log of mitmdump and at the bottom of the console.
PORT = re.compile(r"127\.0\.0\.1:(\d+)[].]")


class Terminal:
    """A terminal, and the program that runs on it.

    Another program has it open as well, as a shell has.
    """

    def __init__(self) -> None:
        self._outside, self._inside = os.openpty()
        size = struct.pack("HHHH", ROWS, COLUMNS, 0, 0)
        fcntl.ioctl(self._inside, termios.TIOCSWINSZ, size)
        self._process: Process | None = None
        self._written = asyncio.Event()
        self._screen = b""

    async def start(
        self, command: Sequence[str], *, own: bool, hangups: bool, **how: Any
    ) -> Terminal:
        """Run *command*; this has what is needed of its process.

        Args:
            own: the terminal is the one that controls it.
            hangups: it does not ignore SIGHUP.
        """

        def prepare() -> None:
            if own:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            # Whatever we have inherited: `nohup` and some runners ignore it.
            signal.signal(signal.SIGHUP, signal.SIG_DFL if hangups else signal.SIG_IGN)

        inside = self._inside
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            preexec_fn=prepare,
            **how,
        )
        asyncio.get_running_loop().add_reader(self._outside, self._read)
        return self

    @property
    def process(self) -> Process:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    async def wait(self) -> int:
        return await self.process.wait()

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    @property
    async def stdout(self) -> AsyncIterator[bytes]:
        """Give out all that was written, each time that it is more: a screen has no lines."""
        while self._outside != -1:
            self._written.clear()
            yield self._screen
            await self._written.wait()

    def close(self) -> None:
        """Close it, as a person closes a window."""
        if self._outside != -1:
            asyncio.get_running_loop().remove_reader(self._outside)
            os.close(self._outside)
            self._outside = -1
            self._written.set()

    def throw_away(self) -> None:
        self.close()
        os.close(self._inside)

    def _read(self) -> None:
        # It ends with an error, when nobody has it open any more.
        with suppress(OSError):
            self._screen += os.read(self._outside, 65536)
        self._written.set()


class OnTerminal(Proxy):
    """A mitmproxy on a terminal; *program* may also be words of `account-pool serve`."""

    terminal: Terminal
    own = hangups = True

    def close_terminal(self) -> None:
        self.terminal.close()

    async def ended(self) -> int:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.terminal.wait()

    async def _launch(self) -> Any:
        served = self._program.startswith("--")
        command = [*SERVE, self._program] if served else mitmdump_command(self._program)
        self.terminal = Terminal()
        return await self.terminal.start(
            [*command, *self._args],
            own=self.own,
            hangups=self.hangups,
            cwd=self.folder,
            env=self._env,
        )

    def _notify(self) -> None:
        if not self.port and self.lines and (found := PORT.search(self.lines[-1])):
            self.port = int(found[1])
        super()._notify()

    async def stop(self) -> None:
        try:
            self.terminal.close()
            await super().stop()
        finally:
            self.terminal.throw_away()


def on_terminal(setting: Setting, accounts: Any, *, program: str, **how: Any) -> OnTerminal:
    """Return a proxy with *accounts*, as `Setting.prepare` does, to be started on a terminal."""
    proxy = setting.prepare(
        accounts,
        program=program,
        # `serve` loads the addon by itself.
        addon=not program.startswith("--"),
        ready="account-pool: ready",
        env={"TERM": "xterm", "LANG": "C.UTF-8", **PATH_OF_PACKAGE},
        **how,
    )
    proxy.__class__ = OnTerminal
    assert isinstance(proxy, OnTerminal)
    return proxy
