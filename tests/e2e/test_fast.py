"""The shorter ways through mitmproxy: what others see of it, and what clients get, is the same."""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
import sys
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import httpx
import pytest

from account_pool.proxy.fast import known
from tests.e2e import other_addons
from tests.e2e.harness import (
    ACCOUNTS_FILE,
    CLIENT,
    FAST,
    FIRST,
    OPENAI,
    SECOND,
    TIMEOUT_S,
    TWO,
    chat,
    client,
    leave,
)
from tests.e2e.test_websocket import HOST, echo, open_socket
from tests.e2e.upstream_proxy import UpstreamProxy
from tests.proxy.fast.known import needs_known
from tests.scripts import openai
from tests.upstream.exchange import Framing, Reply
from tests.upstream.replies import EVENT_STREAM, by_credential

LIMITED, GOOD = openai.rate_limited(), openai.chat_stream(["Good", " morning"])


@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
@pytest.mark.parametrize("first", [GOOD, LIMITED], ids=["served", "limited"])
async def test_other_addons_see_the_same(provider, setting, first, http2: bool) -> None:
    seen = {}
    for fast in ("off", "table", "inline", "direct", "on"):
        upstream = await provider(by_credential({FIRST: first, SECOND: GOOD}))
        proxy = setting.prepare(
            TWO,
            provider=upstream,
            options={"pool_fast": fast, "flow_detail": "0"},
            extra_args=["-s", other_addons.__file__],
        )
        async with proxy, proxy.client(http2=http2) as http:
            for _ in range(5):
                answer = await http.request(**chat())
                assert answer.status_code == 200
            await http.aclose()
            await proxy.until_printed("hook: fails client_disconnected")
        seen[fast] = [line for line in proxy.output.splitlines() if line.startswith("hook: ")]
        if first is LIMITED:
            # The flow of the refused attempt is shown while the next one runs.
            seen[fast] = sorted(line for line in seen[fast] if "guest" not in line)
    for fast, lines in seen.items():
        assert lines == seen["off"], fast
    assert any("guest" in line for line in seen["on"]) or first is LIMITED
    assert not any("child of fails" in line for line in seen["on"])
    assert "hook: after tls_established_client" not in seen["on"]


@asynccontextmanager
async def echoing():
    """Servers that say what they hear, by TCP and by UDP; their ports."""

    async def serve(reader, writer) -> None:
        while data := await reader.read(1024):
            writer.write(data)
        writer.close()

    class Datagrams(asyncio.DatagramProtocol):
        def connection_made(self, transport) -> None:
            self.transport = transport

        def datagram_received(self, data, addr) -> None:
            self.transport.sendto(data, addr)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Datagrams, ("127.0.0.1", 0)
    )
    async with server:
        yield server.sockets[0].getsockname()[1], transport.get_extra_info("sockname")[1]
    transport.close()


async def ask_datagram(address, data: bytes) -> bytes:
    """Send *data* and return what comes back."""
    answer = asyncio.get_running_loop().create_future()

    class Asking(asyncio.DatagramProtocol):
        def datagram_received(self, data, addr) -> None:
            if not answer.done():
                answer.set_result(data)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Asking, remote_addr=address
    )
    try:
        transport.sendto(data)
        return await asyncio.wait_for(answer, TIMEOUT_S)
    finally:
        transport.close()


async def ask_bytes(address, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(data)
    answer = await reader.readexactly(len(data))
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    return answer


async def ask_by_socks(address, trusted, text: str = "", head: str = "") -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"\x05\x01\x00")
    assert await reader.readexactly(2) == b"\x05\x00"
    host = HOST.encode()
    writer.write(b"\x05\x01\x00\x03" + bytes([len(host)]) + host + (443).to_bytes(2))
    assert (await reader.readexactly(10))[:2] == b"\x05\x00"
    await writer.start_tls(ssl.create_default_context(cafile=trusted), server_hostname=HOST)
    body = f'{{"model":"gpt-5-nano","stream":true,"messages":[],"user":"{text}"}}'.encode()
    head += f"host: {HOST}\r\nauthorization: Bearer {CLIENT}\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    return answer


#: A question for the address of a name.
QUESTION = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x07example\x03com\x00\x00\x01\x00\x01"


async def try_each(at, trusted, proxy) -> list[object]:
    """Return what clients of each kind get; *at* says where mitmproxy listens for it."""
    got: list[object] = []
    for kind in ("regular", "upstream"):
        for http2 in (False, True):
            async with client(trusted, "http://{}:{}".format(*at[kind]), http2=http2) as http:
                got += [(await http.request(**chat())).content for _ in range(2)]
    async with client(trusted) as http:
        url = "http://{}:{}".format(*at["reverse"])
        got.append((await http.request(**chat(base=url))).content)
    assert got == [GOOD.body] * 9
    got.append(await ask_by_socks(at["socks"], trusted))
    got.append(await ask_bytes(at["tcp"], b"by TCP"))
    got.append(await ask_datagram(at["udp"], b"by UDP"))
    got.append(await ask_datagram(at["dns"], QUESTION))
    async with open_socket(proxy, at["regular"]) as socket:
        for text in ("one", "two"):
            await socket.send(text)
            got.append(await socket.recv())
    return got


needs_addresses = pytest.mark.skipif(
    sys.platform != "linux", reason="needs more addresses of this machine"
)


def hosts_of(modes) -> dict[str, str]:
    """Return an address of its own for each of *modes*."""
    return {kind: f"127.0.0.{number}" for number, kind in enumerate(modes, 11)}


def at_addresses(modes) -> list[str]:
    """Return arguments of mitmproxy: each mode at its address, at a free port."""
    hosts = hosts_of(modes)
    return [x for k, mode in modes.items() for x in ("--mode", f"{mode}@{hosts[k]}:0")]


async def listening(proxy, modes) -> dict[str, tuple[str, int]]:
    """Return where *proxy* listens, by the name of the mode."""
    at = {}
    for kind, host in hosts_of(modes).items():
        line = await proxy.until_printed(rf"listening at .*{re.escape(host)}:\d")
        at[kind] = (host, int(line.partition(f"{host}:")[2].rstrip(".")))
    return at


@needs_addresses
@pytest.mark.parametrize("hold", ["false", "true"], ids=["passes", "held"])
async def test_each_kind_of_client_and_of_flow(provider, setting, hold: str) -> None:
    def script(request) -> Reply:
        return Reply(status=101, socket=echo) if request.header("upgrade") else GOOD

    one = await provider(script)
    seen, got = {}, {}
    async with echoing() as (tcp, udp), UpstreamProxy(one.port) as upstream:
        modes = {
            "regular": "regular",
            "reverse": f"reverse:{OPENAI}",
            "socks": "socks5",
            "upstream": upstream.mode,
            "tcp": f"reverse:tcp://127.0.0.1:{tcp}",
            "udp": f"reverse:udp://127.0.0.1:{udp}",
            "dns": "dns",
        }
        for fast in ("off", "on"):
            proxy = setting.prepare(
                TWO,
                provider=one,
                options={"pool_fast": fast, "hold": hold},
                extra_args=["-s", other_addons.__file__, *at_addresses(modes)],
            )
            async with proxy:
                at = await listening(proxy, modes)
                got[fast] = await try_each(at, setting.trusted, proxy)
                await proxy.until(partial(all_have_left, proxy))
            said = [line for line in proxy.lines if line.startswith("hook: ")]
            seen[fast] = Counter(line for line in said if "guest" not in line)
            assert not re.search("Unhandled|crashed", proxy.output)
    assert got["on"] == got["off"]
    assert seen["on"] == seen["off"]
    assert {*other_addons.HELD} <= {line.split()[2] for line in seen["on"]}


def all_have_left(proxy) -> bool:
    """Say whether the last addon saw the end of all but UDP, for which mitmproxy waits long."""
    came, went = (
        proxy.lines.count(f"hook: fails client_{what}") for what in ("connected", "disconnected")
    )
    return came == went + 2


BYTES = random.Random(1).randbytes(10_000_001)


def as_long(request) -> Reply:
    """Answer with as much as is asked for, in pieces of an odd size."""
    size, step = int(request.header("x-size")), 99_991
    return Reply(
        headers=(("content-type", "application/octet-stream"),),
        steps=[BYTES[at : min(at + step, size)] for at in range(0, size, step)],
        framing=Framing.LENGTH if request.header("x-whole") else Framing.CHUNKED,
    )


async def exchange_long(at, proxy, size: int) -> list[bytes]:
    """Return what clients of each kind get that send so much, and ask for as much."""
    url = {kind: "http://{}:{}".format(*address) for kind, address in at.items()}
    text = "x" * size

    def question(**how):
        asked = chat(text, **how)
        return asked | {"headers": asked["headers"] | {"x-size": f"{size}"}}

    async def ask(kind: str, *, http2: bool) -> bytes:
        async with client(proxy.trusted, url[kind], http2=http2) as http:
            return (await http.request(**question())).content

    async def ask_in_reverse() -> bytes:
        async with client(proxy.trusted) as http:
            return (await http.request(**question(base=url["reverse"]))).content

    async def ask_socks() -> bytes:
        head = f"x-size: {size}\r\nx-whole: yes\r\n"
        answer = await ask_by_socks(at["socks"], proxy.trusted, text, head)
        return answer.partition(b"\r\n\r\n")[2]

    slow = client(proxy.trusted, url["regular"], http2=True)
    async with slow, slow.stream(**question()) as answer:
        got = await asyncio.gather(
            *(ask(kind, http2=h2) for kind in ("regular", "upstream") for h2 in (False, True)),
            ask_in_reverse(),
            ask_socks(),
        )
        return [*got, await answer.aread()]


@needs_addresses
@pytest.mark.parametrize("size", [100_000, 1_000_000, 10_000_000])
async def test_long_bodies_are_whole_both_ways(provider, setting, size: int) -> None:
    """By every way at once, beside a client that takes its answer when all others have theirs."""
    asked = {}
    for fast in ("off", "on"):
        one = await provider(as_long)
        async with UpstreamProxy(one.port) as upstream:
            modes = {
                "regular": "regular",
                "reverse": f"reverse:{OPENAI}",
                "socks": "socks5",
                "upstream": upstream.mode,
            }
            options, args = {"pool_fast": fast}, at_addresses(modes)
            proxy = setting.prepare(TWO, provider=one, options=options, extra_args=args)
            async with proxy:
                got = await exchange_long(await listening(proxy, modes), proxy, size)
                assert [answer == BYTES[:size] for answer in got] == [True] * 7
        asked[fast] = Counter(r.body_sha256 for r in one.journal.requests)
        assert all(r.complete and r.body_size > size for r in one.journal.requests)
    assert asked["on"] == asked["off"]
    assert asked["on"].total() == 7


@pytest.mark.parametrize("fast", ["off", "on"])
async def test_an_addon_that_acts_in_a_hook(provider, setting, fast: str) -> None:
    """It answers, closes the client's connection, replays the flow, breaks a layer."""
    upstream = await provider(by_credential({FIRST: GOOD}))
    proxy = setting.prepare(
        TWO,
        provider=upstream,
        # Of the broken client, of which nothing comes any more, the drain would wait for the end.
        options={"pool_fast": fast, "pool_drain": "0"},
        extra_args=["-s", other_addons.__file__],
    )

    async def act(http, what: str):
        asked = chat()
        return await http.request(**{**asked, "url": f"{asked['url']}?act={what}"})

    async with proxy, proxy.client() as http, proxy.client() as other:
        assert (await act(http, "nothing")).content == GOOD.body
        assert (await act(http, "answer")).status_code == 418
        with pytest.raises(httpx.TransportError):
            await act(http, "close")
        assert (await act(http, "replay")).content == GOOD.body
        # Its own end, and that of its replay.
        line = "hook: fails response /v1/chat/completions?act=no+more"
        await proxy.until(lambda: proxy.lines.count(line) == 2)
        # Whatever becomes of that client, nobody else notices.
        broken = asyncio.create_task(act(other, "crash"))
        await proxy.until_printed("mitmproxy has crashed!")
        assert (await act(http, "nothing")).content == GOOD.body
        await leave(broken)
    # That of the client that was closed may have been on its way.
    asked = [r.path.partition("act=")[2] for r in upstream.journal.requests]
    assert [x for x in asked if x != "close"] == ["nothing", "replay", "no+more", "nothing"]


NEIGHBOUR = """
import asyncio
from mitmproxy import http

def responseheaders(flow: http.HTTPFlow) -> None:
    flow.response.headers["x-neighbour"] = "VERSION"
    flow.response.headers["x-task"] = asyncio.current_task().get_name()
"""


@needs_known
@pytest.mark.skipif(bool(FAST), reason="the command line says which ways, not the file")
async def test_ways_and_scripts_change_while_answers_flow(provider, setting, tmp_path) -> None:
    """Each connection goes on as it began, and every one of them sees the script as it is."""
    over = asyncio.Event()
    events = openai.chat_events(["Good", " morning"])
    slow = Reply(headers=EVENT_STREAM, steps=(*events[:2], over, *events[2:]))
    upstream = await provider(lambda request: slow if b"slow" in request.body else GOOD)
    script = tmp_path / "neighbour.py"
    script.write_text(NEIGHBOUR.replace("VERSION", "1"))
    proxy = setting.prepare(
        TWO,
        provider=upstream,
        options={"termlog_verbosity": "debug"},
        extra_args=["-s", str(script)],
    )
    all_of_them = "table, inline" + (", direct, short, relay" if known.knows_reading() else "")
    ways = {"true": all_of_them, "false": "none", '["table"]': "table"}

    async def neighbour(http) -> tuple[str, bool]:
        """Which script was asked, and whether that was in the task of a connection."""
        headers = (await http.request(**chat())).headers
        return headers["x-neighbour"], "connection handler" in headers["x-task"]

    async with proxy, AsyncExitStack() as stack:
        begun = []
        for written, used in ways.items():
            (proxy.folder / ACCOUNTS_FILE).write_text(
                f'{{"accounts": {json.dumps(TWO)}, "pool": {{"fast": {written}}}}}'
            )
            await proxy.until_printed(f"shorter ways through mitmproxy in use: {used}$")
            http = await stack.enter_async_context(proxy.client())
            assert await neighbour(http) == ("1", "inline" in used)
            answer = await stack.enter_async_context(http.stream(**chat("slow")))
            pieces = answer.aiter_raw()
            begun.append((http, used, pieces, await anext(pieces)))
        script.write_text(NEIGHBOUR.replace("VERSION", "second"))
        await proxy.until(lambda: proxy.output.count("Loading script " + str(script)) == 2)
        over.set()
        for http, used, pieces, first in begun:
            rest = b"".join([piece async for piece in pieces])
            assert first + rest == b"".join(events)
            assert await neighbour(http) == ("second", "inline" in used)
