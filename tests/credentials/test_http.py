"""One request of our own. What is sent and what may go wrong is in `test_copilot.py` as well."""

from __future__ import annotations

import asyncio
import base64
import gzip
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from mitmproxy.addons.upstream_auth import UpstreamAuth
from mitmproxy.test import taddons
from tests.credentials.fakes import FakeGitHub
from tests.e2e.test_causes import self_signed
from tests.e2e.upstream_proxy import OPEN, UpstreamProxy, refused
from tests.patience import PATIENCE_S
from tests.upstream.certificates import Certificate
from tests.upstream.replies import json_reply

from account_pool.credentials import http as http_module
from account_pool.credentials.http import BARRED_WAIT_S, Http, HttpFailed, HttpResponse, _plain
from account_pool.proxy.wiring import own_http


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[" * 200_000])
def test_a_body_that_is_no_json_says_nothing(body: bytes) -> None:
    assert HttpResponse(status=200, body=body).json() is None


async def test_a_question_and_its_answer(github: FakeGitHub) -> None:
    github.script = [(201, {"X-Name": "value"}, {"a": 1})]
    made: list[ssl.SSLContext] = []

    def trust() -> ssl.SSLContext:
        made.append(ssl.create_default_context())
        return made[-1]

    http = Http(trust=trust)
    assert made == []
    answer = await http.ask(
        "POST", github.url, headers={"x-secret": "secret"}, content=b"secret", timeout_s=PATIENCE_S
    )
    assert (answer.status, answer.headers["x-name"], answer.json()) == (201, "value", {"a": 1})
    assert "secret" not in repr(answer)
    assert github.requests[0][0] == "POST /copilot_internal/v2/token HTTP/1.1"


async def test_what_went_wrong_quotes_nothing(github: FakeGitHub) -> None:
    http = Http(trust=ssl.create_default_context)
    with pytest.raises(
        HttpFailed, match=r"cannot reach 127.0.0.1 \(LocalProtocolError\)"
    ) as caught:
        await http.ask("GET", github.url, headers={"x-secret": "sec\nret"}, timeout_s=PATIENCE_S)
    assert "sec" not in str(caught.value) and caught.value.__cause__ is None


async def test_an_address_that_only_the_library_does_not_take_is_one_more_failure() -> None:
    """A `token_url` may name it: the account waits, and is no error of ours each time."""
    http = Http(trust=ssl.create_default_context)
    with pytest.raises(HttpFailed, match=r"cannot reach .* \(InvalidURL\)") as caught:
        await http.ask("POST", "https://\u2603.example/token", headers={}, timeout_s=PATIENCE_S)
    assert not caught.value.sent and caught.value.__cause__ is None


# -- answers that are not ended

WHOLE = b'{"a": {"b": "}"}}'
CHUNKS = b"transfer-encoding: chunked\r\n\r\n%x\r\n"
NOT_ENDED = {
    "length": b"content-length: 99\r\n\r\n" + WHOLE,
    "chunked": CHUNKS % len(WHOLE) + WHOLE + b"\r\n",
    "packed": b"content-encoding: gzip\r\n"
    + CHUNKS % len(PACKED := gzip.compress(WHOLE))
    + PACKED
    + b"\r\n",
    "neither": b"\r\n" + WHOLE,
}


@asynccontextmanager
async def server(*pieces: bytes, breaks: bool = False) -> AsyncIterator[str]:
    """Answer with *pieces*, and either break then or say nothing more."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if not breaks:
            await reader.read()  # until the client goes
        writer.transport.abort()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as there:
        yield f"http://127.0.0.1:{there.sockets[0].getsockname()[1]}/"


async def ask_loopback(url: str, **how: Any) -> HttpResponse:
    http = Http(trust=ssl.create_default_context)
    return await http.ask("GET", url, headers={}, **{"timeout_s": PATIENCE_S, **how})


@pytest.mark.parametrize("breaks", [False, True], ids=["goes on", "breaks"])
@pytest.mark.parametrize("how", NOT_ENDED)
async def test_a_body_that_is_whole_is_an_answer(how: str, breaks: bool) -> None:
    """It may hold the only tokens there are, whatever its connection does then."""
    async with server(b"HTTP/1.1 200 OK\r\n" + NOT_ENDED[how], breaks=breaks) as url:
        assert (await ask_loopback(url)).json() == {"a": {"b": "}"}}


async def test_a_body_in_many_pieces() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(WHOLE)
    async with server(head, *(bytes([byte]) for byte in WHOLE)) as url:
        assert (await ask_loopback(url)).body == WHOLE


async def test_a_body_that_is_not_whole_is_none() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n"
    async with server(head + WHOLE[:-1], breaks=True) as url:
        with pytest.raises(HttpFailed, match="cannot reach") as told:
            await ask_loopback(url)
        assert told.value.sent


@pytest.mark.parametrize("came", [True, False])
async def test_what_came_while_the_process_was_stopped_is_read(
    monkeypatch: pytest.MonkeyPatch, came: bool
) -> None:
    """Its time is over as well when it goes on."""
    monkeypatch.setattr(http_module, "AGAIN_S", PATIENCE_S if came else 0.0)
    loop = asyncio.get_running_loop()
    asked, stopped, sent = (threading.Event() for _ in range(3))
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as thread:

        def talk() -> None:
            line, _ = listening.accept()
            with line:
                assert line.recv(10_000)
                asked.set()
                stopped.wait(PATIENCE_S)
                if came:
                    line.sendall(b"HTTP/1.1 200 OK\r\n" + NOT_ENDED["length"])
                sent.set()
                line.recv(1)

        talking = thread.submit(talk)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        asking = asyncio.create_task(ask_loopback(url, answer_s=PATIENCE_S))
        await asyncio.to_thread(asked.wait, PATIENCE_S)
        stopped.set()
        assert sent.wait(PATIENCE_S)  # this blocks the loop
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + 2 * PATIENCE_S)
        if came:
            assert (await asking).json() is not None
        else:
            with pytest.raises(HttpFailed, match="did not answer within"):
                await asking
        talking.result(PATIENCE_S)


# -- through the upstream proxy of a company

#: A password may hold anything.
PASSWORD = "p@ss/w?rd#1:%41 ü"
BUSY = refused(503, "Too busy")


def asks(certificate: Certificate, way: UpstreamProxy, **how: Any) -> Http:
    """What asks through *way*, with that password unless *how* says another."""
    auth = how.pop("auth", f"me:{PASSWORD}").encode()
    return Http(
        trust=partial(ssl.create_default_context, cafile=certificate.authority),
        proxy=way.mode.removeprefix("upstream:"),
        proxy_auth=f"Basic {base64.b64encode(auth).decode()}",
        **how,
    )


async def ask(http: Http, host: str = "api.github.com") -> HttpResponse:
    return await http.ask("GET", f"https://{host}/", headers={}, timeout_s=PATIENCE_S)


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
async def test_any_password_for_a_proxy(provider, certificate: Certificate, secure: bool) -> None:
    upstream = await provider(lambda _: json_reply({"a": 1}))
    own = certificate if secure else None
    async with UpstreamProxy(upstream.port, certificate=own) as way:
        http = asks(certificate, way)
        assert (await ask(http)).json() == {"a": 1}
        assert [connect.password for connect in way.connects] == [f"me:{PASSWORD}"]
    assert PASSWORD not in repr(http)


async def test_a_wrong_password_is_sent_once(certificate: Certificate) -> None:
    """By all accounts together, and not again for a while."""
    async with UpstreamProxy(0, [refused(407, f"No {PASSWORD}")]) as way:
        http = asks(certificate, way)
        results = await asyncio.gather(*[ask(http) for _ in range(5)], return_exceptions=True)
        results.append(await asyncio.gather(ask(http), return_exceptions=True))
        assert len(way.connects) == 1
        place = f"127.0.0.1:{way.port}"
    expected = (
        f"cannot reach api.github.com (Upstream proxy {place} refused HTTP CONNECT request: 407 "
        "Proxy Authentication Required; see the option upstream_auth)"
    )
    for error in results[:5]:
        assert isinstance(error, HttpFailed)
        assert str(error) == expected
        assert error.retry_after_s is not None
        assert BARRED_WAIT_S - PATIENCE_S < error.retry_after_s <= BARRED_WAIT_S


async def test_a_password_that_was_good_is_no_queue(provider, certificate: Certificate) -> None:
    upstream = await provider(lambda _: json_reply({}))
    async with UpstreamProxy(upstream.port, [OPEN]) as way:
        http = asks(certificate, way)
        await ask(http)
        async with http.gate.enter(guarded=True), http.gate.enter(guarded=True):
            pass  # two at once


@pytest.mark.parametrize(
    ("answer", "barred"),
    [(refused(403, "No"), True), (refused(302, "Found"), True), (BUSY, False)],
    ids=["403", "302", "503"],
)
async def test_another_refusal(certificate: Certificate, answer: bytes, barred: bool) -> None:
    async with UpstreamProxy(0, [answer]) as way:
        http = asks(certificate, way)
        for _ in range(2):
            with pytest.raises(HttpFailed, match=r"refused HTTP CONNECT request: [345]") as caught:
                await ask(http)
            assert caught.value.retry_after_s == (BARRED_WAIT_S if barred else None)
        assert len(way.connects) == 2


async def test_a_certificate_that_is_not_trusted(provider, certificate: Certificate) -> None:
    upstream = await provider(lambda _: json_reply({}))
    http = Http(trust=ssl.create_default_context)
    with pytest.raises(HttpFailed, match="Certificate verify failed: unable to get local") as told:
        await http.ask("GET", upstream.url, headers={}, timeout_s=PATIENCE_S)
    assert told.value.retry_after_s == BARRED_WAIT_S
    assert "_ssl.c" not in str(told.value) and "trusted_ca" in str(told.value)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: Hostname mismatch, "
            "certificate is not valid for 'a.example'. (_ssl.c:1018)",
            "Certificate verify failed: Hostname mismatch, certificate is not valid for "
            "'a.example'.",
        ),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version (_ssl.c:1)", "server does not speak TLS"),
        ("[SSL: TLSV1_ALERT_PROTOCOL_VERSION] alert (_ssl.c:1)", "cannot agree on a TLS version"),
        ("[Errno -2] Name or service not known", "[Errno -2] Name or service not known"),
        ("All connection attempts failed", "All connection attempts failed"),
        ("", ""),
    ],
)
def test_in_the_words_of_mitmproxy(text: str, plain: str) -> None:
    assert _plain(text).endswith(plain)


# -- options of mitmproxy


@pytest.mark.parametrize(
    ("mode", "proxy"),
    [
        ("upstream:http://proxy.example.com@8081", "http://proxy.example.com:80"),
        ("upstream:https://[::1]:3128", "https://[::1]:3128"),
        ("upstream:proxy.example.com:3128", "http://proxy.example.com:3128"),
        ("reverse:https://api.example.com", None),
        ("regular@8080", None),
    ],
)
def test_the_proxy_of_a_mode(mode: str, proxy: str | None) -> None:
    with taddons.context() as context:
        context.options.update(mode=[mode])
        assert own_http(context.options).proxy == proxy


def test_the_options_of_a_company() -> None:
    with taddons.context(UpstreamAuth()) as context:
        context.options.update(
            mode=["upstream:http://proxy.example.com:3128@8081"], upstream_auth=f"me:{PASSWORD}"
        )
        http = own_http(context.options)
        assert http.proxy == "http://proxy.example.com:3128"
        assert http.proxy_auth is not None
        sent = base64.b64decode(http.proxy_auth.removeprefix("Basic "))
        assert sent.decode() == f"me:{PASSWORD}"
        # Whoever asks shares what is known of the proxy; a new password begins anew.
        assert own_http(context.options).gate is http.gate
        context.options.update(upstream_auth="me:another")
        assert own_http(context.options).gate is not http.gate


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
async def test_our_certificate_is_shown(certificate, tmp_path, as_folder) -> None:
    """To whom mitmproxy shows it as well, and to nobody else."""
    asked: list[bool] = []
    tls = certificate.server_context(["http/1.1"])
    shown = self_signed(tmp_path)
    tls.load_verify_locations(shown.chain)
    tls.verify_mode = ssl.CERT_OPTIONAL

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(bool(writer.get_extra_info("peercert")))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    ours = tmp_path / ("localhost.pem" if as_folder else "ours.pem")
    ours.write_bytes(shown.chain.read_bytes() + shown.key.read_bytes())
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    with taddons.context() as context:
        context.options.update(
            ssl_verify_upstream_trusted_ca=str(certificate.authority),
            client_certs=str(tmp_path if as_folder else ours),
        )
        http = own_http(context.options)
        for host in ("localhost", "127.0.0.1"):
            url = f"https://{host}:{port}"
            await http.ask("GET", url, headers={}, timeout_s=PATIENCE_S)
    server.close()
    assert asked == [True, not as_folder]
