"""One HTTP/1.1 connection of the scripted provider, byte by byte."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from benchmarks.chaos import replies
from benchmarks.chaos.breaking import GARBAGE
from benchmarks.chaos.replies import Headers, Said
from benchmarks.chaos.site import STEP_S, TWICE, Connection, Incoming, perform

MAX_HEAD = 1 << 16


class Http1(Connection):
    """Serves requests until either side is done."""

    _chunked = False
    _close = False

    async def run(self) -> None:
        gone = asyncio.create_task(self.gone())
        try:
            while not self._close:
                head = await self.reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                fields = dict(_field(line) for line in lines[1:] if line)
                request, opened = self.begin(fields)
                act = self.site.act(request)
                if not act.startswith("early"):
                    await self.reader.readexactly(int(fields.get("content-length", "0")))
                playing = asyncio.create_task(perform(act, self, request, self.site.book))
                try:
                    await asyncio.wait({playing, gone}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    left = not playing.done()
                    playing.cancel()
                    self.site.book.end(opened, left=left)
                    if not left:
                        self.opened.clear()
                with suppress(asyncio.CancelledError):
                    await playing
                if left:
                    return
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            return
        finally:
            gone.cancel()
            self.forget()

    # -- a Wire

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        framing = ("content-length", f"{length}")
        if length is None:
            framing = ("connection", "close") if self._close else ("transfer-encoding", "chunked")
        self._chunked = length is None and not self._close
        lines = [f"HTTP/1.1 {status} Status", *(f"{n}: {v}" for n, v in (*headers, framing))]
        await self._write("\r\n".join([*lines, "", ""]).encode())

    async def data(self, data: bytes) -> None:
        if data:
            await self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def end(self) -> None:
        if self._chunked:
            await self._write(b"0\r\n\r\n")
        if self._close:
            self.writer.close()

    async def say(self, said: Said) -> None:
        self._close = self._close or said.closes
        await self.head(said.status, said.headers, len(said.body) if said.length else None)
        for piece in said.pieces:
            await self.data(piece)
        await self.end()

    def break_off(self, how: str) -> None:
        self._close = True
        # Its own end is no collateral.
        self.opened.clear()
        self.break_connection("fin" if how == "fin" else "reset")

    async def special(self, verb: str, argument: str, request: Incoming) -> None:
        good = replies.good(request.shape, request.nonce, request.vendor)
        match verb:
            case "garbage":
                await self._write(GARBAGE)
                self.break_off("fin")
            case "interim":
                # 103 has fields of its own.
                await self._write(f"HTTP/1.1 {argument} Wait\r\nlink: </x>\r\n\r\n".encode())
                await asyncio.sleep(STEP_S)
                await self.say(good)
                self.site.book.note(request.nonce, f"{request.attempt}: answered well")
            case "length-over":
                self._close = True
                self.writer.close()
            case "chunks-bad":
                await self.head(good.status, good.headers, None)
                await self.data(good.pieces[0])
                await self._write(b"zz\r\nthis is no chunk\r\n")
                self.break_off("fin")
            case "twice":
                await self.head(good.status, good.headers, len(good.body))
                await self._write(good.body + TWICE)
                self.site.book.note(request.nonce, f"{request.attempt}: answered well")
            case "close-after":
                await self.say(good)
                self.site.book.note(request.nonce, f"{request.attempt}: answered well")
                self.break_off(argument)
            case "early":
                said = replies.refusal(argument, request.nonce, request.vendor, request.credential)
                await self.say(said)
                await asyncio.sleep(STEP_S)
                self.break_off("reset")
            case _:
                raise ValueError(f"HTTP/1.1 cannot {verb}")

    async def _write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()
