"""The scripted provider: a process of its own, told what to do in lines of JSON.

Run by `rig.py` as `python -m benchmarks.chaos.provider`. The first line on its input says
how to begin, each further one asks something; it answers each with a line.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections import deque
from contextlib import suppress
from random import Random
from typing import Any

from benchmarks.chaos.breaking import GARBAGE, reset
from benchmarks.chaos.http1 import Http1
from benchmarks.chaos.http2 import Http2
from benchmarks.chaos.logins import Logins
from benchmarks.chaos.replies import OPENAI, VENDORS
from benchmarks.chaos.site import STEP_S, Book, Site

LINE_LIMIT = 1 << 22
#: A fatal alert (handshake_failure) in the place of a ServerHello.
ALERT = b"\x15\x03\x03\x00\x02\x02\x28"


class Lane:
    """A port whose next connections fail as they are told to."""

    def __init__(self) -> None:
        self.faults: deque[str] = deque()
        self.port = 0
        self.server: asyncio.Server | None = None


class Provider:
    """All ports, and what is asked of them."""

    def __init__(self, how: dict[str, Any]) -> None:
        self.book = Book({v: set(how["allowed"][v]) for v in VENDORS}, how["limits"])
        allowed = self.book.allowed[OPENAI]
        self.logins = Logins(Random(how["seed"]), allowed, how["sabotage"])
        self.site = Site(self.book, self.logins, how["sabotage"])
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(how["chain"], how["key"])
        self._tls.set_alpn_protocols(["h2", "http/1.1"])
        self.lanes = [Lane() for _ in range(how["lanes"])]
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> dict[str, Any]:
        """Open every port, and return them."""
        ports: dict[str, Any] = {}
        for vendor in VENDORS:
            ports[vendor] = await self._open(vendor, None)
        ports["lanes"] = [await self._open(OPENAI, lane) for lane in self.lanes]
        server = await asyncio.start_server(self.logins.serve, "127.0.0.1", 0)
        ports["tokens"] = server.sockets[0].getsockname()[1]
        return ports

    async def _open(self, vendor: str, lane: Lane | None, port: int = 0) -> int:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(vendor, lane, reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", port, limit=1 << 20, backlog=500)
        found: int = server.sockets[0].getsockname()[1]
        if lane is not None:
            lane.server, lane.port = server, found
        return found

    async def _serve(
        self,
        vendor: str,
        lane: Lane | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            if lane is not None and lane.faults:
                await _fail(lane.faults.popleft(), reader, writer)
                return
            await writer.start_tls(self._tls)
            chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
            kind = Http2 if chosen == "h2" else Http1
            await kind(self.site, vendor, reader, writer).run()
        except OSError:
            return
        finally:
            writer.close()

    async def asked(self, question: dict[str, Any]) -> Any:
        """Answer one line."""
        logins = self.logins
        match question["ask"]:
            case "history":
                return self.book.history.get(question["nonce"], [])
            case "arm":
                await self._arm(self.lanes[question["lane"]], question["faults"])
                return True
            case "login":
                access, refresh = logins.log_in(question["label"])
                return {"access": access, "refresh": refresh}
            case "killed":
                logins.kills.append(time.monotonic())
                return True
            case "dead":
                return sorted(logins.dead)
            case "report":
                return {
                    "attempts": self.book.attempts.total(),
                    "broken rules": self.book.broken_rules,
                    "leaks": self.book.leaks,
                    "crowds": self.book.crowds,
                    "refreshes": logins.refreshes,
                    "lost": logins.lost,
                    "causes": logins.causes,
                }
            case other:
                raise ValueError(other)

    async def _arm(self, lane: Lane, faults: list[str]) -> None:
        """Let the next connections of *lane* fail so; `refused`: all, until it is armed anew."""
        assert lane.server is not None
        lane.server.close()
        lane.faults = deque(faults)
        if faults != ["refused"]:
            await self._open(OPENAI, lane, lane.port)


async def _fail(fault: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if fault == "reset":
        reset(writer)
        return
    if fault == "lapse":
        # Connected, and gone before the proxy has anything to say.
        await asyncio.sleep(STEP_S)
        writer.close()
        return
    # Once something has come: before, nobody would read it.
    await reader.read(1)
    writer.write({"alert": ALERT, "garbage": GARBAGE}.get(fault, b""))
    writer.close()


async def main() -> None:
    """Serve until the input ends."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=LINE_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    provider = Provider(json.loads(await lines.readline()))
    print(json.dumps(await provider.listen()), flush=True)
    while line := await lines.readline():
        print(json.dumps(await provider.asked(json.loads(line))), flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
