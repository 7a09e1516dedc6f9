"""A mitmproxy script: the names of the vendors' hosts are not known, as without a network."""

from __future__ import annotations

import asyncio
import socket

HOST = "api.openai.com"


class Unresolved:
    def load(self, _loader):
        loop = asyncio.get_running_loop()
        self._connect = loop.create_connection
        loop.create_connection = self.create_connection

    async def create_connection(self, factory, host=None, port=None, **kwargs):
        if host == HOST:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return await self._connect(factory, host, port, **kwargs)


addons = [Unresolved()]
