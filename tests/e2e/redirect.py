"""A mitmproxy script: connections to the vendors' hosts end at the scripted provider.

Tests can so use the real host names, and the addon cannot tell the difference: what
changes is where the event loop connects to, not a word of what mitmproxy believes.
"""

from __future__ import annotations

import asyncio
from typing import Any

from mitmproxy import ctx
from mitmproxy.addonmanager import Loader

#: Every name a test may use; the provider's certificate holds them all.
HOSTS = (
    "api.openai.com",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "api.github.com",
    "api.githubcopilot.com",
    "api.individual.githubcopilot.com",
    "api.business.githubcopilot.com",
    "chatgpt.com",
    "cloudcode-pa.googleapis.com",
    "first.openai.azure.com",
    "second.openai.azure.com",
    "openrouter.ai",
    "api.groq.com",
    "api.mistral.ai",
    "api.x.ai",
    "api.deepseek.com",
    "api.together.xyz",
    "api.fireworks.ai",
    "api.cohere.com",
    "api.cerebras.ai",
    "api.kimi.com",
    "api.minimax.io",
    "api.z.ai",
    "dashscope.aliyuncs.com",
    "ollama.com",
    "opencode.ai",
    "api.perplexity.ai",
    # Nobody's API: what the pool has to leave alone.
    "www.example.com",
)
LOOPBACK = "127.0.0.1"
HTTPS = 443


class Redirect:
    def load(self, loader: Loader) -> None:
        loader.add_option("redirect_port", int, 0, "Port of the scripted provider.")
        loop: Any = asyncio.get_running_loop()
        self._connect = loop.create_connection
        self._resolve = loop.getaddrinfo
        loop.create_connection = self.create_connection
        loop.getaddrinfo = self.getaddrinfo

    async def create_connection(
        self, factory: Any, host: Any = None, port: Any = None, **kwargs: Any
    ) -> Any:
        if port == HTTPS and host in (*HOSTS, LOOPBACK):
            host, port = LOOPBACK, ctx.options.redirect_port
        return await self._connect(factory, host, port, **kwargs)

    async def getaddrinfo(self, host: Any, port: Any, **kwargs: Any) -> Any:
        # A client that resolves by itself (httpx does) then connects to the address.
        name = host.decode() if isinstance(host, bytes) else host
        return await self._resolve(LOOPBACK if name in HOSTS else host, port, **kwargs)


addons = [Redirect()]
