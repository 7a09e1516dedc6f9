"""A proxy that is asked to end lets what is under way finish, and begins nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import ssl
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e import harness
from tests.e2e.harness import CLIENT, FIRST, SECOND, TIMEOUT_S, chat, in_order
from tests.e2e.test_mitmweb import mitmweb  # noqa: F401 - a fixture
from tests.e2e.test_websocket import ACCEPTED, open_socket
from tests.patience import PATIENCE_S
from tests.scripts import openai
from tests.upstream.exchange import Reply
from tests.upstream.replies import EVENT_STREAM, by_credential

CHAT = openai.chat_stream(["Good", " morning"])
ONE = in_order("first")
#: No verdict depends on how long it takes.
LONG = {"pool_drain": PATIENCE_S}
SHUTTING = "account-pool: shutting down: 1 request may take"
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)


def slow(finish: asyncio.Event) -> Reply:
    """An answer that begins at once and ends when *finish* is set."""
    first, second, *rest = openai.chat_events(["Good", " morning"])
    return Reply(headers=EVENT_STREAM, steps=(first, second, finish, *rest))


async def ended(proxy: Any) -> int:
    async with asyncio.timeout(TIMEOUT_S):
        return await proxy._process.wait()


class Kept:
    """A connection through a tunnel, kept open; by hand, because clients close idle ones."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self) -> tuple[int, dict[str, str], bytes]:
        body = json.dumps(chat(stream=False)["json"]).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: api.openai.com\r\n"
            f"authorization: Bearer {CLIENT}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        async with asyncio.timeout(TIMEOUT_S):
            start, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
            headers = dict(line.lower().split(": ", 1) for line in lines)
            content = await self.reader.readexactly(int(headers["content-length"]))
        return int(start.split()[1]), headers, content

    async def is_closed(self) -> bool:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.reader.read() == b""


@asynccontextmanager
async def kept(proxy: Any):
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"CONNECT api.openai.com:443 HTTP/1.1\r\nhost: api.openai.com:443\r\n\r\n")
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    await writer.start_tls(
        ssl.create_default_context(cafile=str(proxy.trusted)), server_hostname="api.openai.com"
    )
    yield Kept(reader, writer)
    writer.close()
    with suppress(OSError, ssl.SSLError):
        await writer.wait_closed()


@pytest.fixture
async def finish():
    return asyncio.Event()


@pytest.fixture
async def upstream(provider, finish):
    """Answers at once, then as `finish` says, then at once."""
    good = openai.chat_complete("Good morning")
    return await provider(by_credential({FIRST: [good, slow(finish), CHAT]}))


@asynccontextmanager
async def answering(proxy: Any, **how: Any):
    """Have an answer under way; gives its client, and what is still to come of it."""
    async with proxy.client(**how) as http, http.stream(**chat()) as response:
        pieces = response.aiter_raw()
        first = await anext(pieces)

        async def rest() -> bytes:
            return first + b"".join([piece async for piece in pieces])

        yield http, rest


@SIGNALS
@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_what_is_under_way_finishes_and_the_rest_is_refused(
    upstream, finish, pool_proxy, http2, number
):
    proxy = await pool_proxy(ONE, provider=upstream, options=LONG)
    async with kept(proxy) as idle:
        assert (await idle.ask())[0] == 200
        async with answering(proxy, http2=http2) as (http, rest):
            os.kill(proxy.pid, number)
            await proxy.until_printed(SHUTTING)
            await proxy.until_printed("stopped")
            status, headers, body = await idle.ask()
            assert (status, headers["connection"]) == (503, "close")
            assert "shutting down" in json.loads(body)["error"]["message"]
            assert await idle.is_closed()
            if http2:
                # On the same connection as what is under way.
                assert (await http.request(**chat())).status_code == 503
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", proxy.port)
            assert proxy.returncode is None
            finish.set()
            assert await rest() == CHAT.body
        assert await ended(proxy) == 0
    assert upstream.journal.credentials == [FIRST, FIRST]


async def test_nothing_under_way_it_ends_at_once(upstream, pool_proxy):
    proxy = await pool_proxy(ONE, provider=upstream, options=LONG)
    async with kept(proxy) as idle:
        assert (await idle.ask())[0] == 200
        os.kill(proxy.pid, signal.SIGTERM)
        assert await ended(proxy) == 0
        assert "shutting down" not in proxy.output
        assert await idle.is_closed()


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_a_second_signal_cuts_it_off(upstream, pool_proxy, http2):
    proxy = await pool_proxy(ONE, provider=upstream, options=LONG)
    async with kept(proxy) as idle:
        await idle.ask()
    async with answering(proxy, http2=http2) as (_, rest):
        os.kill(proxy.pid, signal.SIGTERM)
        await proxy.until_printed(SHUTTING)
        os.kill(proxy.pid, signal.SIGTERM)
        assert await ended(proxy) == 0
        with pytest.raises(httpx.HTTPError):
            await rest()


async def test_a_hangup_neither_cuts_it_off_nor_reloads(upstream, finish, pool_proxy):
    proxy = await pool_proxy(ONE, provider=upstream, options=LONG)
    async with kept(proxy) as idle:
        await idle.ask()
        async with answering(proxy) as (_, rest):
            os.kill(proxy.pid, signal.SIGTERM)
            await proxy.until_printed(SHUTTING)
            os.kill(proxy.pid, signal.SIGHUP)
            os.kill(proxy.pid, signal.SIGHUP)
            # Answered after they were heard.
            assert (await idle.ask())[0] == 503
            finish.set()
            assert await rest() == CHAT.body
        assert await ended(proxy) == 0
    assert "reloaded" not in proxy.output


async def test_what_does_not_end_in_time_is_cut_off(upstream, pool_proxy):
    proxy = await pool_proxy(ONE, provider=upstream, options={"pool_drain": "0.2"})
    async with kept(proxy) as idle:
        await idle.ask()
    async with answering(proxy) as (_, rest):
        os.kill(proxy.pid, signal.SIGTERM)
        assert await ended(proxy) == 0
        assert "account-pool: cut off after 0.2 s: 1 request" in proxy.output
        with pytest.raises(httpx.HTTPError):
            await rest()


async def until_held(proxy) -> None:
    async with asyncio.timeout(TIMEOUT_S), httpx.AsyncClient(trust_env=False) as http:
        while not (await http.get(f"{proxy.url}/decisions?kind=wait")).json()["decisions"]:
            pass


async def test_what_is_held_is_served_when_an_account_is_free(provider, finish, pool_proxy):
    good = openai.chat_complete("Good morning")
    upstream = await provider(by_credential({FIRST: [good, slow(finish), good]}))
    accounts = in_order("first", max_concurrent=1)
    options = {**LONG, "pool_max_wait": PATIENCE_S}
    proxy = await pool_proxy(accounts, provider=upstream, options=options)
    async with kept(proxy) as idle:
        await idle.ask()
        async with answering(proxy) as (_, rest):
            waiting = asyncio.create_task(idle.ask())
            await until_held(proxy)
            os.kill(proxy.pid, signal.SIGTERM)
            await proxy.until_printed("shutting down: 2 requests")
            finish.set()
            assert await rest() == CHAT.body
            assert (await waiting)[0] == 200
    assert await ended(proxy) == 0


async def test_what_is_held_in_vain_is_told_at_once(provider, pool_proxy):
    """Its account returns after the drain, so nothing is waited for."""
    limited = openai.rate_limited(seconds=4 * PATIENCE_S)
    upstream = await provider(by_credential({FIRST: limited}))
    options = {**LONG, "pool_max_wait": 8 * PATIENCE_S}
    proxy = await pool_proxy(ONE, provider=upstream, options=options)
    async with kept(proxy) as idle:
        waiting = asyncio.create_task(idle.ask())
        await until_held(proxy)
        os.kill(proxy.pid, signal.SIGTERM)
        status, _, body = await waiting
        assert status == 503
        assert "shutting down" in json.loads(body)["error"]["message"]
    assert await ended(proxy) == 0


async def test_what_is_refused_meanwhile_gets_its_next_attempt(provider, finish, pool_proxy):
    """Also where it waits a moment for the account of its conversation."""
    limited = replace(openai.rate_limited(2), steps=(finish, *openai.rate_limited(2).steps))
    script = by_credential({FIRST: [CHAT, limited, CHAT], SECOND: CHAT})
    upstream = await provider(script)
    proxy = await pool_proxy(in_order("first", "second"), provider=upstream, options=LONG)
    asked = chat()
    asked["headers"]["session_id"] = "one"
    async with proxy.client() as http:
        assert (await http.request(**asked)).content == CHAT.body
        second = asyncio.create_task(http.request(**asked))
        async with asyncio.timeout(TIMEOUT_S):
            while len(upstream.journal.requests) < 2:
                await asyncio.sleep(0)
        os.kill(proxy.pid, signal.SIGTERM)
        await proxy.until_printed(SHUTTING)
        finish.set()
        answer = await second
    assert (answer.status_code, answer.content) == (200, CHAT.body)
    assert len(upstream.journal.requests) == 3
    assert await ended(proxy) == 0


async def test_what_was_learnt_is_written_before_it_waits(provider, finish, pool_proxy, tmp_path):
    """Whoever kills it while it waits takes nothing away."""
    path = tmp_path / "pool.sqlite"
    script = {FIRST: slow(finish)}
    upstream = await provider(by_credential(script))
    proxy = await pool_proxy(ONE, provider=upstream, options={**LONG, "pool_state": path})
    async with answering(proxy):
        os.kill(proxy.pid, signal.SIGTERM)
        await proxy.until_printed(SHUTTING)
        async with asyncio.timeout(TIMEOUT_S):
            while not bindings_in(path):
                await asyncio.sleep(0)
        os.kill(proxy.pid, signal.SIGKILL)


def bindings_in(path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM bindings").fetchone()
    return count


async def test_sockets_are_told_that_it_goes_away(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: ACCEPTED}))
    proxy = await pool_proxy(ONE, provider=upstream, options=LONG)
    async with open_socket(proxy) as socket:
        await socket.send("hello")
        assert await socket.recv() == "you said hello"
        os.kill(proxy.pid, signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(TIMEOUT_S):
                await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
    assert await ended(proxy) == 0


async def drains(proxy: Any, finish: asyncio.Event, number: signal.Signals) -> None:
    """What is under way when the signal comes is finished, and then the proxy ends."""
    async with kept(proxy) as idle:
        await idle.ask()
    async with answering(proxy) as (_, rest):
        os.kill(proxy.pid, number)
        await proxy.until_printed(SHUTTING)
        finish.set()
        assert await rest() == CHAT.body
    assert await ended(proxy) == 0


async def test_mitmweb_drains_too(upstream, finish, mitmweb):  # noqa: F811
    async with mitmweb(upstream, **LONG) as (proxy, _):
        await drains(proxy, finish, signal.SIGINT)


class Served(harness.Proxy):
    """What `account-pool serve` becomes, which loads the addon by itself."""

    async def _launch(self) -> Any:
        return await asyncio.create_subprocess_exec(
            *harness.SERVE,
            *self._args,
            cwd=self.folder,
            env=self._env,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
        )


@pytest.mark.skipif(os.name == "nt", reason="there it stays a process of its own")
async def test_account_pool_serve_drains_too(upstream, finish, setting):
    env = harness.PATH_OF_PACKAGE
    proxy = setting.prepare(ONE, provider=upstream, options=LONG, addon=False, env=env)
    proxy.__class__ = Served
    async with proxy:
        await proxy.until_printed("account-pool: ready")
        await drains(proxy, finish, signal.SIGTERM)
