"""A credential goes to its provider and nowhere else.

Every place a proxy writes to is searched for every secret of the run, the client's own
included; and the same search finds them when a script shows one on purpose.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import ssl
import zlib
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from tests.e2e import leak
from tests.e2e.harness import (
    CLIENT,
    FIRST,
    OPENAI,
    account,
    chat,
    generate,
    messages,
    respond,
    secret,
)
from tests.scripts import anthropic, gemini, openai
from tests.upstream.exchange import Fault, Reply, Request, find_header

SECRET = re.compile(rb"sk-fake-\w+-000")
BASE64 = [base64.b64encode(b"x" * shift + b"sk-fake-")[4:-4] for shift in range(3)]
#: Shown where the client wrote it, and kept nowhere else.
AS_ID = "sk-fake-as-id"
LABELS = ("first", "second", "third")
ACCOUNTS = [
    account(f"{provider}-{label}".replace("-", "_"), provider)
    for provider in ("openai", "anthropic", "gemini")
    for label in LABELS
]


def script(request: Request) -> Reply:
    """Refuse the first account of each provider, break with the second, then answer."""
    if "first" in request.credential:
        refuse = {"o": openai.rate_limited, "a": anthropic.rate_limited, "g": gemini.per_minute}
        refusal = refuse[request.credential.removeprefix("sk-fake-")[0]]()
        return echoing(refusal, request.credential)
    if "second" in request.credential and request.turn == 2:
        return Reply(fault=Fault.RESET)
    if request.path.startswith("/v1/messages"):
        return anthropic.message_stream(["Good"])
    if ":streamGenerateContent" in request.path:
        return gemini.content_stream(["Good"])
    if request.path == "/v1/responses":
        return openai.response_stream(["Good"])
    return openai.chat_stream(["Good"])


def echoing(refusal: Reply, credential: str) -> Reply:
    """Return *refusal* as a service words it that says who was refused."""
    error = {"echo": credential, **json.loads(refusal.body)}
    told = (("x-ratelimit-reset-requests", credential), ("x-echo", f"Bearer {credential}"))
    return replace(refusal, headers=(*refusal.headers, *told), steps=(json.dumps(error).encode(),))


def with_key_as_id() -> list[dict]:
    """Requests of clients that tell their conversations by a key."""
    by_header, by_body = chat(), chat()
    by_header["headers"]["x-session-id"] = AS_ID
    by_body["json"]["prompt_cache_key"] = AS_ID
    return [by_header, by_body]


async def told_by(proxy) -> bytes:
    """Return what the proxy tells of itself to anybody on this machine."""
    told = b""
    async with httpx.AsyncClient(trust_env=False, base_url=proxy.url) as http:
        for path in ("/account-pool", "/decisions", "/sessions", "/usage", "/metrics", "/health"):
            answer = await http.get(path)
            assert answer.status_code == 200, path
            told += answer.content
    return told


async def everything_a_client_sees(proxy) -> bytes:
    """Send requests of all kinds, good and bad, and return all that comes back."""
    seen = b""
    requests = [chat(), respond(), messages(), generate(), generate(key_in_query=True)] * 3
    requests += with_key_as_id()
    requests += [
        {"method": "GET", "url": f"{OPENAI}/v1/models"} | {"headers": chat()["headers"]},
        {"method": "POST", "url": f"{OPENAI}/v1/chat/completions", "content": b"\xff{not json"},
    ]
    for http2 in (False, True):
        async with proxy.client(http2=http2) as http:
            for request in requests:
                try:
                    answer = await http.request(**request)
                except httpx.TransportError as error:
                    seen += repr(error).encode()
                    continue
                seen += b"".join(b": ".join(pair) for pair in answer.headers.raw)
                seen += answer.content
    return seen


def unpacked(data: bytes) -> bytes:
    """Return *data* and what is compressed in it, as a dump keeps bodies."""
    parts = [data]
    for match in re.finditer(rb"\x1f\x8b\x08", data):
        try:
            parts.append(gzip.decompress(data[match.start() :]))
        except (OSError, EOFError, zlib.error):
            continue
    return b"\n".join(parts)


def written_by(folder: Path) -> dict[str, bytes]:
    """Return the files a proxy wrote, but the one its user wrote."""
    return {
        path.name: unpacked(path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name != "accounts.yaml" and "mitmproxy" not in path.parts[-2]
    }


async def places(setting, upstream, *scripts: str) -> dict[str, bytes]:
    """Run a proxy with everything that writes switched on; return what each place holds."""
    proxy = setting.prepare(
        ACCOUNTS,
        provider=upstream,
        options={
            "termlog_verbosity": "debug",
            "flow_detail": 4,
            "hardump": "traffic.har",
            "pool_max_wait": 0,
            "pool_state": "state.sqlite",
        },
        extra_args=["-w", "traffic.mitm", *scripts],
    )
    async with proxy:
        seen = await everything_a_client_sees(proxy)
        told = await told_by(proxy)
    return {
        "client": seen,
        "told": told,
        "log": proxy.output.encode(),
        **written_by(proxy.folder),
    }


def found(data: bytes) -> set[bytes]:
    return set(SECRET.findall(data)) | {text for text in BASE64 if text in data}


async def test_no_secret_of_the_run_is_anywhere_but_at_the_provider(provider, setting):
    upstream = await provider(script)
    searched = await places(setting, upstream)
    assert {"client", "log", "traffic.mitm", "traffic.har", "state.sqlite"} <= set(searched)
    assert {name: found(data) for name, data in searched.items() if found(data)} == {}
    for place in ("told", "state.sqlite"):
        assert b"openai/openai_first" in searched[place]
        assert AS_ID.encode() not in searched[place]
    # The search had something to find: every provider was asked with several accounts.
    used = set(upstream.journal.credentials)
    for name in ("openai", "anthropic", "gemini"):
        assert len([secret for secret in used if name in secret]) >= 2
    assert json.loads(searched["traffic.har"])["log"]["entries"]


@pytest.mark.parametrize("place", ["client", "log", "traffic.mitm", "traffic.har"])
async def test_the_search_finds_what_is_shown_on_purpose(provider, setting, place):
    upstream = await provider(script)
    searched = await places(setting, upstream, "-s", leak.__file__)
    assert found(searched[place])


async def test_what_is_shown_names_the_account_instead(provider, setting):
    upstream = await provider(script)
    searched = await places(setting, upstream)
    assert b"pool:openai/openai_" in searched["traffic.mitm"]
    assert CLIENT.encode() not in searched["traffic.mitm"]


# -- what cannot be read

VERBOSE = {"termlog_verbosity": "debug", "flow_detail": 4, "pool_max_wait": 0}


def shown(proxy) -> bytes:
    """Return the log of *proxy* and all it wrote."""
    return proxy.output.encode() + b"".join(written_by(proxy.folder).values())


@asynccontextmanager
async def tunnel(proxy, *alpn: str):
    """A connection to OpenAI's host through *proxy*, to be written to by hand."""
    tls = ssl.create_default_context(cafile=str(proxy.trusted))
    tls.set_alpn_protocols(list(alpn))
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"CONNECT api.openai.com:443 HTTP/1.1\r\nhost: api.openai.com:443\r\n\r\n")
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    await writer.start_tls(tls, server_hostname="api.openai.com")
    yield writer
    writer.close()


POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: api.openai.com\r\n"
KEY = b"Bearer " + CLIENT.encode()
UNREADABLE = {
    "half a head": (POST + b"authorization: " + KEY + b"\r\n", "before completing"),
    "no colon": (POST + b"authorization " + KEY + b"\r\n\r\n", "Invalid header line"),
    "request line": (b"GET /?key=" + KEY + b" x\r\n\r\n", "Bad HTTP request line"),
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_a_request_that_cannot_be_read_is_not_quoted(provider, pool_proxy, name):
    data, said = UNREADABLE[name]
    proxy = await pool_proxy([account("first")], provider=await provider(script), options=VERBOSE)
    async with tunnel(proxy, "http/1.1") as writer:
        writer.write(data)
        writer.close()
        line = await proxy.until_printed(said)
    assert "[not shown]" in line
    assert CLIENT.encode() not in shown(proxy)


async def test_a_request_that_cannot_be_read_is_not_quoted_over_http2(provider, pool_proxy):
    proxy = await pool_proxy([account("first")], provider=await provider(script), options=VERBOSE)
    client = H2Connection(
        H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
    )
    client.initiate_connection()
    pseudo = [(":method", "POST"), (":scheme", "https"), (":authority", "api.openai.com")]
    key = ("authorization", f"Bearer {CLIENT} ")
    client.send_headers(1, [*pseudo, (":path", "/v1/chat/completions"), key])
    async with tunnel(proxy, "h2") as writer:
        writer.write(client.data_to_send())
        line = await proxy.until_printed("HTTP/2 protocol error")
    assert "[not shown]" in line
    assert CLIENT.encode() not in shown(proxy)


ECHO = b"Bearer " + FIRST.encode()
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
REFUSED = b"HTTP/1.1 401 Unauthorized\r\n"
BROKEN = {
    "half a head": REFUSED + b"x-echo: " + ECHO + b"\r\n",
    "no colon": REFUSED + b"x-echo " + ECHO + b"\r\n\r\n",
    "status line": b"HTTP/1.1 " + ECHO + b"\r\n\r\n",
    "length": REFUSED + b"content-length: " + ECHO + b"\r\n\r\n",
    "unasked": OK + b"content-length: 2\r\n\r\n{}" + REFUSED + b"x-echo: " + ECHO + b"\r\n\r\n",
    "chunk": OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n" + ECHO + b"\r\n",
    "trailer": OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: " + ECHO + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_an_answer_that_cannot_be_read_is_not_quoted(certificate, pool_proxy, name):
    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        await reader.readexactly(int(length[1]))
        writer.write(BROKEN[name])
        await writer.drain()
        writer.close()

    context = certificate.server_context(("http/1.1",))
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        upstream = SimpleNamespace(port=server.sockets[0].getsockname()[1])
        proxy = await pool_proxy(
            [account("first")], provider=upstream, options=VERBOSE, extra_args=["-w", "x.mitm"]
        )
        async with proxy.client() as http:
            try:
                answered = await http.request(**chat(stream=False))
            except httpx.TransportError as error:
                assert name == "chunk", error  # cut off after its first byte
            else:
                assert FIRST not in f"{answered.headers} {answered.text}"
                assert (answered.text == "{}") is (name in ("unasked", "trailer"))
        if name == "unasked":
            await proxy.until_printed(r"Unexpected data from server: \[not shown\]")
    await proxy.stop()
    assert FIRST.encode() not in shown(proxy)


async def test_the_keys_of_two_providers_that_share_a_host(provider, pool_proxy):
    """Neither is shown, and neither goes out with an account of the other."""
    upstream = await provider(lambda _request: openai.chat_complete("Good"))
    gateway = {
        "like": "openai",
        "hosts": ["api.openai.com"],
        "paths": ["POST /v9/chat"],
        "credential": {"header": "x-foo"},
    }
    proxy = await pool_proxy(
        [account("first"), account("second", "gw")],
        provider=upstream,
        providers={"gw": gateway},
        options=VERBOSE,
        extra_args=["-w", "x.mitm"],
    )
    keys = {"x-foo": CLIENT, "authorization": f"Bearer {CLIENT}"}
    async with proxy.client() as http:
        for path in ("/v9/chat", "/v1/chat/completions", "/other"):
            await http.post(OPENAI + path, headers=keys, json={"model": "m"})
    sent = [
        [find_header(request.headers, name) for name in keys]
        for request in upstream.journal.requests
    ]
    assert sent == [
        [secret("second"), None],
        [None, f"Bearer {FIRST}"],
        list(keys.values()),
    ]
    await proxy.stop()
    assert CLIENT.encode() not in shown(proxy)
