"""An addon that records, when it is asked to, which functions of the package are entered.

mitmdump loads it by its path, so it imports nothing of ours. It listens on a port, which it
writes into the file that the option `hops_port` names. Each line that comes in is answered
with a line of JSON: `stop` with a list in which `[file, function]` stands for a function
that was entered (or resumed) and null for one that was left (or suspended), `start` and
any command of mitmproxy with null.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from mitmproxy import ctx
from mitmproxy.addonmanager import Loader

#: Turns of the event loop in which a request may finish what it has left for later.
_TURNS = 50
#: How `account_pool.supervision` names its tasks.
_TASK = "account-pool "
#: Frames of their own before Python 3.12 only.
_COMPREHENSIONS = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>"})


class Recorder:
    """Records the thread of the event loop, without the tasks that are in the background."""

    def __init__(self) -> None:
        self._package = ""
        self._entries: list[list[str] | None] = []
        self._background: set[asyncio.Task[Any]] = set()
        #: frames of the package on the stack: those that are recorded, and those that are not
        self._recorded = self._ignored = 0
        self._server: asyncio.Server | None = None

    def load(self, loader: Loader) -> None:
        loader.add_option("hops_port", str, "", "File that the port of the recorder goes into.")

    async def running(self) -> None:
        file = sys.modules["account_pool"].__file__
        assert file is not None
        self._package = str(Path(file).parent)
        self._server = await asyncio.start_server(self._obey, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        # Nobody asks it for hooks from here on, as nobody does where it is not.
        loaded = ctx.master.addons.get("scriptloader")
        loaded.addons = [script for script in loaded.addons if script.fullpath != __file__]
        whole = Path(ctx.options.hops_port)
        part = whole.with_suffix(".part")
        part.write_text(str(port))
        part.rename(whole)

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            answer = None
            match line.decode().strip():
                case "start":
                    self._start()
                case "stop":
                    answer = await self._stop()
                case command:
                    ctx.master.commands.execute(command)
            writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()

    def _start(self) -> None:
        self._entries = []
        self._recorded = self._ignored = 0
        self._background = {t for t in asyncio.all_tasks() if t.get_name().startswith(_TASK)}
        sys.setprofile(self._profile)

    async def _stop(self) -> list[list[str] | None]:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        sys.setprofile(None)
        return self._entries

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(self._package) or code.co_name in _COMPREHENSIONS:
            return
        if event == "call":
            if self._ignored or (not self._recorded and self._is_in_background()):
                self._ignored += 1
            else:
                self._recorded += 1
                file = code.co_filename[len(self._package) + 1 :]
                self._entries.append([file, code.co_qualname])
        elif event == "return":
            if self._ignored:
                self._ignored -= 1
            elif self._recorded:
                self._recorded -= 1
                self._entries.append(None)

    def _is_in_background(self) -> bool:
        return asyncio.current_task() in self._background


addons = [Recorder()]
