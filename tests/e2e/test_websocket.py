"""A WebSocket whose handshake is refused is opened on another account."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e import breaking
from tests.e2e.harness import (
    CLIENT,
    FIRST,
    SECOND,
    TIMEOUT_S,
    TWO,
    chat,
    in_order,
    point_clients_at,
)
from tests.scripts import openai
from tests.upstream import provider as scripted
from tests.upstream.exchange import Ending, Reply
from tests.upstream.replies import by_credential

HOST = "api.openai.com"
URL = f"wss://{HOST}/v1/responses"


def echo(message):
    return [f"you said {message}" if isinstance(message, str) else message[::-1]]


ACCEPTED = Reply(status=101, socket=echo)


@asynccontextmanager
async def open_socket(proxy, address=None, *, user: str = "", **headers: str):
    """Open a WebSocket through *proxy*, the tunnel by hand: websockets 14 has no proxies."""
    login = base64.b64encode(f"{user}:x".encode()).decode()
    more = f"proxy-authorization: Basic {login}\r\n" if user else ""
    tls = ssl.create_default_context(cafile=str(proxy.trusted))
    reader, writer = await asyncio.open_connection(*(address or ("127.0.0.1", proxy.port)))
    writer.write(f"CONNECT {HOST}:443 HTTP/1.1\r\nhost: {HOST}:443\r\n{more}\r\n".encode())
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    # The socket goes to the client, the transport that made it lets go of a duplicate.
    sock = writer.get_extra_info("socket")._sock.dup()
    writer.close()
    async with connect(
        URL,
        sock=sock,
        ssl=tls,
        server_hostname=HOST,
        additional_headers={"authorization": f"Bearer {CLIENT}"} | headers,
    ) as socket:
        yield socket


async def test_a_refused_handshake_is_replayed(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: openai.rate_limited(), SECOND: ACCEPTED}))
    proxy = await pool_proxy(TWO, provider=upstream)
    async with open_socket(proxy) as socket:
        await socket.send("hello")
        assert await socket.recv() == "you said hello"
        await socket.send(b"\x00\x01\x02")
        assert await socket.recv() == b"\x02\x01\x00"
        await socket.send("x" * 200_000)
        assert await socket.recv() == "you said " + "x" * 200_000
    assert upstream.journal.statuses == [(FIRST, 429), (SECOND, 101)]
    assert await upstream.journal.until_ended(1) is Ending.ANSWERED
    assert upstream.journal.exchanges[1].messages[:2] == ["hello", b"\x00\x01\x02"]


async def test_a_socket_holds_its_account_until_it_closes(provider, pool_proxy):
    def script(request) -> Reply:
        socket = request.header("upgrade") == "websocket"
        return ACCEPTED if socket else openai.chat_stream(["Good"])

    upstream = await provider(script)
    proxy = await pool_proxy(in_order("first", "second", max_concurrent=1), provider=upstream)
    async with open_socket(proxy) as socket:
        await socket.send("hello")
        await socket.recv()
        async with proxy.client() as http:
            assert (await http.request(**chat())).status_code == 200
    await upstream.journal.until_answered(2)
    async with proxy.client() as http:
        assert (await http.request(**chat("Another conversation."))).status_code == 200
    assert upstream.journal.credentials == [FIRST, SECOND, FIRST]


async def test_a_handshake_nobody_accepts_is_refused_in_the_providers_words(provider, pool_proxy):
    refusal = openai.rate_limited(3600)
    upstream = await provider(by_credential({FIRST: refusal, SECOND: refusal}))
    proxy = await pool_proxy(TWO, provider=upstream, options={"pool_max_wait": 0})
    with pytest.raises(InvalidStatus) as caught:
        async with open_socket(proxy):
            pass
    assert caught.value.response.status_code == 429
    assert json.loads(caught.value.response.body)["error"]["code"] == "rate_limit_exceeded"
    assert "retry-after" in caught.value.response.headers
    assert upstream.journal.statuses == [(FIRST, 429), (SECOND, 429)]


CODEX = {"openai-beta": "responses_websockets=2026-02-06"}
PREFERENCES = {
    "codex": ("", CODEX, 426),
    "codex, pinned": ("pin", CODEX, 101),
    "others": ("", {}, 101),
    "others, refused": ("refuse", {}, 426),
}


@pytest.mark.parametrize(
    ("preference", "headers", "status"), PREFERENCES.values(), ids=PREFERENCES.keys()
)
async def test_who_gets_a_socket(provider, pool_proxy, preference, headers, status):
    """A 426 makes Codex use HTTP at once, where every request can be replayed."""
    upstream = await provider(by_credential({FIRST: ACCEPTED}))
    proxy = await pool_proxy(TWO, provider=upstream, options={"pool_websockets": preference})
    if status == 101:
        async with open_socket(proxy, **headers) as socket:
            await socket.send("hello")
            assert await socket.recv() == "you said hello"
        assert upstream.journal.statuses == [(FIRST, 101)]
        return
    with pytest.raises(InvalidStatus) as caught:
        async with open_socket(proxy, **headers):
            pass
    assert caught.value.response.status_code == status
    assert upstream.journal.requests == []


CREATE = json.dumps({"type": "response.create", "model": "gpt-6", "input": []})
CREATED = json.dumps({"type": "response.created", "response": {"id": "resp_1"}})
DELTA = json.dumps({"type": "response.output_text.delta", "delta": "Good"})
LIMITED = json.dumps(
    {
        "type": "error",
        "status": 429,
        "error": {"type": "requests", "code": "rate_limit_exceeded", "message": "Slow down."},
        "headers": {"retry-after": "600"},
    }
)


def says(*frames: str) -> Reply:
    return Reply(status=101, socket=lambda _message: frames)


async def test_a_limit_before_an_answer_is_replayed_inside_the_socket(provider, pool_proxy):
    """The client keeps its socket and sees the answer of the other account alone."""
    upstream = await provider(
        by_credential({FIRST: says(CREATED, LIMITED), SECOND: says(CREATED, DELTA)})
    )
    proxy = await pool_proxy(TWO, provider=upstream)
    async with open_socket(proxy) as socket:
        await socket.send(CREATE)
        assert [await socket.recv(), await socket.recv()] == [CREATED, DELTA]
        # It stays there.
        await socket.send(CREATE)
        assert [await socket.recv(), await socket.recv()] == [CREATED, DELTA]
    assert upstream.journal.statuses == [(FIRST, 101), (SECOND, 101)]
    assert upstream.journal.exchanges[1].messages == [CREATE, CREATE]
    line = await proxy.until_printed("-> openai/second")
    assert "openai/first: 429 rate_limit" in line


@pytest.mark.parametrize(
    "what",
    [
        "account_pool.core.websocket_moves:move",
        "account_pool.proxy.websocket_exchange:WebsocketReplay._open",
        "account_pool.proxy.websocket_exchange:WebsocketReplay._opened",
    ],
)
async def test_an_error_of_ours_ends_the_socket_alone(provider, setting, what):
    """The client has the provider's own words; no account is kept busy by it."""
    upstream = await provider(
        by_credential({FIRST: says(CREATED, LIMITED), SECOND: says(CREATED, DELTA)})
    )
    broken = setting.prepare(
        TWO,
        provider=upstream,
        options={"break_what": what},
        extra_args=["-s", breaking.__file__],
    )
    async with broken as proxy, open_socket(proxy) as socket:
        await socket.send(CREATE)
        assert [await socket.recv(), await socket.recv()] == [CREATED, LIMITED]
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), TIMEOUT_S)
        async with proxy.client() as http:
            shown = (await http.get(f"{proxy.url}/account-pool")).json()["accounts"]
        assert [account["in_flight"] for account in shown] == [0, 0]
        place = await proxy.until_printed("internal error in a WebSocket")
        assert "RuntimeError at" in place
        assert breaking.SECRET not in proxy.output


async def test_the_sdk_of_openai_keeps_its_socket(provider, pool_proxy, monkeypatch):
    from openai import OpenAI

    if not hasattr(OpenAI(api_key=CLIENT).responses, "connect"):
        pytest.skip("this openai has no WebSocket mode")
    completed = json.dumps({"type": "response.completed", "response": {"id": "resp_1"}})
    upstream = await provider(
        by_credential({FIRST: says(LIMITED), SECOND: says(CREATED, DELTA, completed)})
    )
    proxy = await pool_proxy(TWO, provider=upstream)
    point_clients_at(proxy, monkeypatch)

    def ask() -> list[str]:
        with OpenAI(api_key=CLIENT, max_retries=0).responses.connect() as connection:
            connection.response.create(model="gpt-6", input="Hello?")
            seen = []
            for event in connection:
                seen.append(event.type)
                if event.type in ("response.completed", "error"):
                    return seen
        raise AssertionError(seen)

    events = await asyncio.to_thread(ask)
    assert events == ["response.created", "response.output_text.delta", "response.completed"]
    assert upstream.journal.statuses == [(FIRST, 101), (SECOND, 101)]


async def test_a_limit_in_a_later_turn_is_told_and_closes_the_socket(provider, pool_proxy):
    """The client opens another one, which another account serves."""
    turns = iter([[DELTA], [CREATED, LIMITED]])
    later = Reply(status=101, socket=lambda _message: next(turns))
    upstream = await provider(by_credential({FIRST: later, SECOND: says(CREATED, DELTA)}))
    proxy = await pool_proxy(TWO, provider=upstream)
    async with open_socket(proxy) as socket:
        await socket.send(CREATE)
        assert await socket.recv() == DELTA
        await socket.send(CREATE)
        assert [await socket.recv(), await socket.recv()] == [CREATED, LIMITED]
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1013
    async with open_socket(proxy) as socket:
        await socket.send(CREATE)
        assert [await socket.recv(), await socket.recv()] == [CREATED, DELTA]
    assert upstream.journal.statuses == [(FIRST, 101), (SECOND, 101)]
    line = await proxy.until_printed("in a WebSocket")
    assert "openai/first: 429 rate_limit, on cooldown for 10 min" in line


NAMES = json.dumps({"type": "response.create", "previous_response_id": "resp_0", "input": []})


@pytest.mark.parametrize("begun", [1, 2, 10])
async def test_a_limit_closes_the_socket_also_in_the_middle_of_a_frame(
    provider, pool_proxy, monkeypatch, begun
):
    """The next frame has begun to come: a Close frame of ours must not go into it."""
    answers = scripted._answers
    next_frame = bytes([0x81, len(CREATED)]) + CREATED.encode()
    monkeypatch.setattr(scripted, "_answers", lambda *args: answers(*args) + next_frame[:begun])
    upstream = await provider(by_credential({FIRST: says(LIMITED), SECOND: ACCEPTED}))
    proxy = await pool_proxy(TWO, provider=upstream)
    async with open_socket(proxy) as socket:
        # What continues an answer cannot be said to another account.
        await socket.send(NAMES)
        assert await socket.recv() == LIMITED
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), TIMEOUT_S)
        assert socket.close_code == 1013
    assert await upstream.journal.until_ended(0) is Ending.ANSWERED


async def test_a_limit_in_the_middle_of_an_answer_is_told(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: says(DELTA, LIMITED), SECOND: ACCEPTED}))
    proxy = await pool_proxy(TWO, provider=upstream)
    async with open_socket(proxy) as socket:
        await socket.send(CREATE)
        assert [await socket.recv(), await socket.recv()] == [DELTA, LIMITED]
    async with open_socket(proxy):
        pass
    assert upstream.journal.credentials == [FIRST, SECOND]


@pytest.mark.parametrize("headers", [{}, CODEX], ids=["others", "codex"])
async def test_after_a_limit_in_the_middle_of_an_answer_the_next_turn_is_served_elsewhere(
    provider, pool_proxy, headers
):
    error = {"code": "rate_limit_exceeded", "message": "Rate limit reached. Try again in 11m."}
    failed = json.dumps({"type": "response.failed", "response": {"error": error}})
    upstream = await provider(
        by_credential({FIRST: says(CREATED, DELTA, failed), SECOND: says(CREATED, DELTA)})
    )
    proxy = await pool_proxy(TWO, provider=upstream, options={"pool_websockets": "pin"})
    async with open_socket(proxy, **headers) as socket:
        await socket.send(CREATE)
        assert [await socket.recv() for _ in range(3)] == [CREATED, DELTA, failed]
        for _ in range(2):
            await socket.send(CREATE)
            assert [await socket.recv() for _ in range(2)] == [CREATED, DELTA]
    assert upstream.journal.statuses == [(FIRST, 101), (SECOND, 101)]
    # The limited account was not asked again.
    assert [e.messages for e in upstream.journal.exchanges] == [[CREATE], [CREATE, CREATE]]


async def test_a_limit_is_told_when_nobody_else_could_serve(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: says(LIMITED)}))
    proxy = await pool_proxy(in_order("first"), provider=upstream)
    async with open_socket(proxy) as socket:
        await socket.send(CREATE)
        assert await socket.recv() == LIMITED
        await socket.send(CREATE)
        assert await socket.recv() == LIMITED


@pytest.mark.parametrize("limited", [says(CREATED, LIMITED), openai.rate_limited(3000)])
async def test_a_socket_stays_on_the_account_that_its_client_names(provider, pool_proxy, limited):
    """Where that is limited, it is told so; the other account is not asked."""
    upstream = await provider(by_credential({FIRST: says(CREATED, DELTA), SECOND: limited}))
    proxy = await pool_proxy(TWO, provider=upstream)
    if limited.status == 101:
        async with open_socket(proxy, user="openai/second") as socket:
            await socket.send(CREATE)
            assert [await socket.recv(), await socket.recv()] == [CREATED, LIMITED]
    else:
        with pytest.raises(InvalidStatus) as refused:
            async with open_socket(proxy, user="openai/second"):
                pass
        assert refused.value.response.status_code == 429
    assert set(upstream.journal.credentials) == {SECOND}
