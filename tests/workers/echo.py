"""A worker without mitmproxy, run by the tests of the launcher. Argument: the port.

Says its number and process id to whoever connects, and does what it is sent: `hang`, `ask`,
`ask nonsense`, `start`, `tell`; anything else comes back.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from account_pool.workers.worker import VARIABLE, Link

#: Exists: it cannot start.
BROKEN = Path("broken")


def say_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Echo(asyncio.Protocol):
    def __init__(self, link: Link) -> None:
        self._link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(f"{self._link.number} {os.getpid()}\n".encode())

    def connection_lost(self, _error: Exception | None) -> None:
        self._link.closed()

    def data_received(self, data: bytes) -> None:
        word = data.decode().strip()
        if word == "hang":
            say_line("hangs")
            time.sleep(3600)
        elif word.startswith("ask"):
            self._asking = asyncio.ensure_future(self._ask(word[4:] or "name"))
        elif word == "start":
            helper = subprocess.Popen(["sleep", "3600"])  # its output is ours
            self._transport.write(f"{helper.pid}\n".encode())
        elif word.startswith("tell "):
            self._link.tell({"do": "heard", "text": word[5:]})
        else:
            self._transport.write(data)

    async def _ask(self, what: str) -> None:
        said = await self._link.ask(what)
        self._transport.write(json.dumps(said).encode() + b"\n")


async def main() -> None:
    if BROKEN.exists():
        sys.exit("broken")
    link = Link(json.loads(os.environ[VARIABLE]))
    over = asyncio.Event()
    link.end = lambda _at_once: over.set()
    link.heard = lambda message: say_line(f"heard {message}")

    async def say(what: str) -> str:
        if what == "nonsense":
            raise ValueError(what)
        return f"{what} {link.number} " + "x" * 100_000

    link.say = say
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, say_line, "reloaded")
    try:
        server = await link.listen(lambda: Echo(link), "127.0.0.1", int(sys.argv[1]), 100)
    except OSError as e:
        sys.exit(f"cannot listen: {e.errno}")
    link.ready(0.0, float("inf"))
    say_line("ready")
    await over.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
