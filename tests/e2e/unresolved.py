"""A mitmproxy script: the names of the vendors' hosts are not known, as without a network."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

HOST = "api.openai.com"


class Unresolved:
    def load(self, _loader: object) -> None:
        loop: Any = asyncio.get_running_loop()
        self._connect = loop.create_connection
        loop.create_connection = self.create_connection

    async def create_connection(
        self, factory: Any, host: Any = None, port: Any = None, **kwargs: Any
    ) -> Any:
        if host == HOST:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return await self._connect(factory, host, port, **kwargs)


addons = [Unresolved()]
