"""Everything a scripted provider was asked, in order, and a way to wait for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from account_pool.demo.exchange import (
    Ending,
    Exchange,
    Headers,
    Reply,
    Request,
    Script,
    find_credential,
)

#: What a loaded machine needs for anything that happens at all; it only bounds a hang.
WAIT_S = 180.0


class Journal:
    """The record of a provider. One per provider; all its connections write to it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.exchanges: list[Exchange] = []
        #: Exceptions of the script: a test that ignores them would test nothing.
        self.errors: list[Exception] = []
        #: Called with an exchange as soon as its reply is known.
        self.on_reply: Callable[[Exchange], None] = lambda _exchange: None
        self.connections = 0
        self._turns: Counter[str] = Counter()
        self._changed = asyncio.Event()

    @property
    def requests(self) -> list[Request]:
        return [exchange.request for exchange in self.exchanges]

    @property
    def credentials(self) -> list[str]:
        """The credential of each request, in order of arrival."""
        return [request.credential for request in self.requests]

    @property
    def statuses(self) -> list[tuple[str, int]]:
        """Credential and status of each exchange that was answered so far."""
        return [(e.request.credential, e.reply.status) for e in self.exchanges if e.reply]

    def connect(self) -> int:
        """Number a new connection."""
        self.connections += 1
        return self.connections

    def begin(
        self,
        *,
        connection: int,
        on_connection: int,
        http_version: str,
        method: str,
        host: str,
        path: str,
        headers: Headers,
    ) -> Exchange:
        """Note a request whose headers have arrived."""
        credential = find_credential(headers, path)
        self._turns[credential] += 1
        request = Request(
            number=len(self.exchanges) + 1,
            turn=self._turns[credential],
            connection=connection,
            on_connection=on_connection,
            http_version=http_version,
            method=method,
            host=host,
            path=path,
            headers=headers,
            credential=credential,
        )
        exchange = Exchange(request=request, on_change=self._notify)
        self.exchanges.append(exchange)
        self._notify()
        return exchange

    def receive(self, exchange: Exchange, data: bytes) -> None:
        """Note a piece of a request's body."""
        exchange.request.receive(data)
        self._notify()

    def answer(self, exchange: Exchange) -> Reply:
        """Note the end of a request and return what the script says to it."""
        exchange.request.finish()
        try:
            exchange.reply = self.script(exchange.request)
        except Exception as error:
            # Any mistake in a script: keep it for the test, and let the client see one.
            self.errors.append(error)
            exchange.reply = Reply(status=599, steps=(b"the script failed",))
        self.on_reply(exchange)
        self._notify()
        return exchange.reply

    async def until(self, happened: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Return as soon as *happened()* is true. Raises TimeoutError after *timeout_s*."""
        async with asyncio.timeout(timeout_s):
            while not happened():
                await self._changed.wait()

    async def until_answered(self, count: int) -> None:
        """Return when *count* exchanges have ended, however they ended."""
        await self.until(lambda: sum(e.ending is not None for e in self.exchanges) >= count)

    async def until_ended(self, index: int) -> Ending:
        """Return how exchange number *index* (from 0) ended, as soon as it has."""
        await self.until(
            lambda: len(self.exchanges) > index and self.exchanges[index].ending is not None
        )
        ending = self.exchanges[index].ending
        assert ending is not None
        return ending

    def _notify(self) -> None:
        # Wakes everyone who waits; they look for themselves whether it was for them.
        self._changed.set()
        self._changed = asyncio.Event()
