"""Nothing is shown at the edges either: additions, pages, odd answers, other proxies, the end.

The search is that of test_secrets.py, which finds what is shown on purpose.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
from dataclasses import replace

import httpx
import pytest
from h2.events import StreamEnded

from tests.e2e.harness import CLIENT, FIRST, OPENAI, SECOND, TWO, account, chat, secret
from tests.e2e.peer import Line, Line2, Peer
from tests.e2e.test_admin import admin, direct
from tests.e2e.test_drain import LONG, SHUTTING, ended, slow
from tests.e2e.test_secrets import VERBOSE, found, unpacked
from tests.e2e.upstream_proxy import UpstreamProxy, refused
from tests.scripts import openai
from tests.upstream.replies import by_credential, json_reply

GOOD = openai.chat_complete("Good")
KEPT = ["-w", "traffic.mitm", "--set", "hardump=traffic.har"]
PASSWORD = "open-sesame-4711"


async def shown_by(proxy, *, stop: bool = True) -> dict[str, bytes]:
    """Stop *proxy*; return its log and what it wrote, but where credentials are kept."""
    if stop:
        await proxy.stop()
    files = {
        path.name: unpacked(path.read_bytes())
        for path in proxy.folder.rglob("*")
        if path.is_file() and "accounts.yaml" not in path.name and path.parent.name != "mitmproxy"
    }
    assert b"" not in (files["traffic.mitm"], files["traffic.har"])
    return {"log": proxy.output.encode(), **files}


def assert_hidden(searched: dict[str, bytes], *more: str) -> None:
    for name, data in searched.items():
        assert not found(data), name
        for text in more:
            encoded = base64.b64encode(text.encode()).rstrip(b"=")
            assert text.encode() not in data and encoded not in data, name


# -- additions

#: What may be sent by mistake to add an account; each holds a secret, few are taken.
ADDED = [
    {"provider": "openai", "label": "new", "token": secret("new")},
    {"provider": "codex", "label": "x", "enabled": False,
     "token": {"oauth": {"refresh_token": secret("refresh"), "access_token": secret("access")}}},
    {"provider": "openai", "label": "new", "token": secret("twice")},
    {"provider": "openai", "label": secret("label"), "token": "x"},
    {"provider": secret("provider"), "label": "a", "token": "x"},
    {"provider": "openai", "label": "a", "token": f"{secret('one')} {secret('two')}"},
    {"provider": "openai", "label": "a", "token": {"env": secret("env")}},
    {"provider": "openai", "label": "a", "token": {"file": secret("file")}},
    {"provider": "openai", "label": "a", "token": {"command": f"echo {secret('command')}"}},
    {"provider": "openai", "label": "a", "token": {"keychain": secret("keychain")}},
    {"provider": "openai", "label": "a", "token": {secret("key"): "x"}},
    {"provider": "openai", "label": "a", "token": [secret("list")]},
    {"provider": "codex", "label": "a",
     "token": {"oauth": {"refresh_token": secret("r"), "token_url": f"https://{secret('u')}/"}}},
    {"provider": "codex", "label": "a",
     "token": {"oauth": {"refresh_token": "r", "expires_at": secret("at")}}},
    {"provider": "openai", "label": "a", "token": "x", "priority": secret("priority")},
    {"provider": "openai", "label": "a", "token": "x", secret("name"): 1},
    {"provider": "openai", "label": "a", "token": "x", "models": [secret("model")]},
    {"provider": "openai", "label": "a", "token": "x", "host": secret("host")},
]  # fmt: skip


async def test_what_is_added_is_not_shown(provider, pool_proxy):
    """Straight to the port, through the proxy in plain text, and inside a tunnel."""
    upstream = await provider(by_credential({FIRST: GOOD, secret("new"): GOOD}))
    proxy = await pool_proxy([account("first")], provider=upstream, options=VERBOSE,
                             extra_args=KEPT)  # fmt: skip
    statuses, seen = [], b""
    async with direct(proxy) as own, proxy.client() as through:
        for http, base in (
            (own, ""), (through, "http://pool.mitm.it"), (through, "https://pool.mitm.it"),
        ):  # fmt: skip
            url = f"{base}/account-pool/add"
            for body in ADDED:
                answer = await http.post(url, json=body, headers=admin(proxy))
                statuses.append(answer.status_code)
                seen += answer.content
            for content in (
                json.dumps(ADDED[0])[:-1], json.dumps([secret("list")]), secret("text"),
                secret("long") * 10_000,
            ):  # fmt: skip
                headers = {**admin(proxy), "content-type": "application/json"}
                answer = await http.post(url, content=content, headers=headers)
                seen += answer.content
                wrong = {"authorization": f"Bearer {secret('admin')}"}
                seen += (await http.post(url, json=ADDED[0], headers=wrong)).content
        assert (await through.request(**chat(stream=False))).status_code == 200
        seen += (await own.get("/account-pool")).content
    assert statuses[:2] == [201, 201]
    assert set(statuses[2:]) == {409, 422}
    searched = {"client": seen, **await shown_by(proxy)}
    token = admin(proxy)["authorization"].removeprefix("Bearer ")
    assert_hidden(searched, token, "sk-fake")


# -- web pages


@pytest.mark.parametrize("mode", ["regular", f"reverse:{OPENAI}"])
async def test_what_pages_send_is_not_shown(provider, pool_proxy, mode):
    upstream = await provider(lambda _: GOOD)
    proxy = await pool_proxy(
        [account("first")],
        provider=upstream,
        options={**VERBOSE, "mode": mode},
        extra_args=KEPT,
    )
    base = OPENAI if mode == "regular" else proxy.url
    seen = b""
    client = proxy.client if mode == "regular" else lambda: direct(proxy)
    async with client() as http:
        for headers in (
            {"origin": "https://evil.example"},
            {"origin": "null", "sec-fetch-site": "cross-site"},
            {"origin": "null", "cookie": f"session={secret('cookie')}"},
            {"sec-fetch-site": "same-site", "host": "evil.example"},
        ):
            for key in ({"authorization": f"Bearer {CLIENT}"}, {}):
                request = {**chat(base=base, stream=False), "headers": {**headers, **key}}
                answer = await http.request(**request)
                seen += answer.content + repr(answer.headers).encode()
    sent = {request.credential for request in upstream.journal.requests}
    assert FIRST not in sent
    assert sent == ({CLIENT, ""} if mode == "regular" else set())
    assert_hidden({"client": seen, **await shown_by(proxy)})


# -- answers

ECHO = f"Bearer {FIRST}".encode()
BODY = GOOD.body
FINE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
    BODY
)
ODD = {
    "interim": b"HTTP/1.1 103 Early Hints\r\nlink: " + ECHO + b"\r\n\r\n" + FINE + BODY,
    "reason": b"HTTP/1.1 102 " + ECHO + b"\r\n\r\n" + FINE + BODY,
    "101": b"HTTP/1.1 101 " + ECHO + b"\r\nupgrade: " + ECHO + b"\r\n\r\n" + ECHO,
    "999": b"HTTP/1.1 999 " + ECHO + b"\r\ncontent-length: 0\r\nx: " + ECHO + b"\r\n\r\n",
    "half": b"HTTP/1.1 103 Early Hints\r\nlink: " + ECHO,
}


@pytest.mark.parametrize("name", ODD)
async def test_answers_that_are_none_are_not_shown(certificate, pool_proxy, name):
    async def talk(line: Line) -> None:
        await line.request()
        await line.send(ODD[name])
        await line.close()

    async with Peer(talk, certificate) as peer:
        proxy = await pool_proxy(
            [account("first")], provider=peer, options=VERBOSE, extra_args=KEPT
        )
        async with proxy.client() as http:
            answer = await http.request(**chat(stream=False))
    assert (answer.status_code == 200) is (name in ("interim", "reason"))
    client = f"{answer.headers} {answer.reason_phrase} {answer.text}".encode()
    assert_hidden({"client": client, **await shown_by(proxy)})


@pytest.mark.parametrize("how", ["goaway", "reset", "interim"])
async def test_what_http2_says_beside_answers_is_not_shown(certificate, pool_proxy, how):
    async def talk(line: Line) -> None:
        line2 = Line2(line)
        await line2.begin()
        while stream := await line2.until(StreamEnded):
            if how == "goaway":
                line2.h2.close_connection(additional_data=ECHO, last_stream_id=0)
            elif how == "interim":
                line2.h2.send_headers(stream, [(":status", "103"), ("link", ECHO.decode())])
            if how != "goaway":
                line2.h2.reset_stream(stream, 2)
            await line2.flush()
            if how == "goaway":
                return

    async with Peer(talk, certificate, ["h2"]) as peer:
        proxy = await pool_proxy(TWO, provider=peer, options=VERBOSE, extra_args=KEPT)
        async with proxy.client(http2=True) as http:
            answer = await http.request(**chat(stream=False))
    assert answer.status_code >= 400
    client = f"{answer.headers} {answer.text}".encode()
    assert_hidden({"client": client, **await shown_by(proxy)})


# -- token servers

REFRESH, NEW, APP = secret("refresh"), secret("new"), secret("app")
SAYS = {
    "message": ({"error": "invalid_grant", "error_description": f"{REFRESH} {NEW} {APP}"}, 400),
    "code": ({"error": REFRESH}, 400),
    "another code": ({"error": {"code": NEW, "message": NEW}}, 400),
    "of the client": ({"error": "invalid_client", "error_description": f"not {APP}"}, 401),
    "broken": ({"error": f"x {REFRESH}", "message": NEW}, 500),
    "redirect": ({}, 302),
    "tokens": ({"access_token": f"{NEW} {NEW}", "token_type": REFRESH}, 200),
}


@pytest.mark.parametrize("name", SAYS)
async def test_what_a_token_server_says_is_not_shown(provider, pool_proxy, tmp_path, name):
    said = json_reply(*SAYS[name])
    echo = (("location", f"https://{NEW}.example/{REFRESH}"), ("retry-after", REFRESH))
    said = replace(said, headers=(*said.headers, *echo))
    logins = await provider(lambda _: said, certificate=None)
    upstream = await provider(lambda _: GOOD)
    oauth = {"refresh_token": REFRESH, "client_id": "me", "client_secret": APP,
             "token_url": f"{logins.url}/token"}  # fmt: skip
    proxy = await pool_proxy(
        [account("a", token={"oauth": oauth}, priority=0), account("first", priority=1)],
        provider=upstream,
        options={**VERBOSE, "pool_state": tmp_path / "pool.sqlite"},
        extra_args=KEPT,
    )
    await proxy.until_printed("openai/a: (the refresh|its login)")
    async with proxy.client() as http:
        assert (await http.request(**chat(stream=False))).status_code == 200
    seen = b""
    async with direct(proxy) as own:
        for path in ("/account-pool", "/health", "/decisions", "/metrics"):
            seen += (await own.get(path, headers=admin(proxy))).content
    assert b"openai/a" in seen
    assert_hidden({"client": seen, **await shown_by(proxy)}, REFRESH, NEW, APP)


# -- other proxies, and the end


@pytest.mark.parametrize("answer", [
    refused(407, f"No me:{PASSWORD}!"),
    b"HTTP/1.1 503 x\r\nx-echo: me:%b\r\ncontent-length: 0\r\n\r\n" % PASSWORD.encode(),
    b"HTTP/1.1 4%b\r\n\r\n" % PASSWORD.encode(),
    b"",
], ids=["407", "503", "nonsense", "silence"])  # fmt: skip
async def test_the_password_of_another_proxy_is_not_shown(provider, pool_proxy, answer):
    upstream = await provider(by_credential({FIRST: GOOD}))
    auth = f"me:{PASSWORD}"
    async with UpstreamProxy(upstream.port, [answer]) as way:
        proxy = await pool_proxy(
            TWO,
            provider=upstream,
            options={**VERBOSE, "mode": way.mode, "upstream_auth": auth},
            extra_args=KEPT,
        )
        async with proxy.client() as http:
            try:
                seen = (await http.request(**chat(stream=False))).content
            except httpx.TransportError as error:
                seen = repr(error).encode()
        assert {connect.password for connect in way.connects} == {auth}
    assert_hidden({"client": seen, **await shown_by(proxy)}, PASSWORD, auth)


async def test_a_drain_shows_nothing(provider, pool_proxy):
    finish = asyncio.Event()
    limit = openai.rate_limited()
    upstream = await provider(by_credential({FIRST: limit, SECOND: slow(finish)}))
    proxy = await pool_proxy(TWO, provider=upstream, options={**VERBOSE, **LONG}, extra_args=KEPT)
    async with proxy.client() as http, http.stream(**chat()) as answer:
        pieces = answer.aiter_bytes()
        seen = await anext(pieces)
        os.kill(proxy.pid, signal.SIGTERM)
        await proxy.until_printed(re.escape(SHUTTING))
        finish.set()
        seen += b"".join([piece async for piece in pieces])
    await ended(proxy)
    assert upstream.journal.credentials == [FIRST, SECOND]
    assert b"[DONE]" in seen
    assert_hidden({"client": seen, **await shown_by(proxy)})
