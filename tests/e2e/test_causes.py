"""Why a request did not reach its provider: told to client, log and decisions, once.

And what another try would only make worse is not tried again.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.e2e import redirect, unresolved
from tests.e2e import test_copilot as copilot
from tests.e2e.harness import CLIENT, FIRST, OPENAI, SECOND, TIMEOUT_S, TWO, chat, client
from tests.e2e.test_admin import direct
from tests.e2e.test_curl import CURL
from tests.e2e.test_keepalive import upstream_at
from tests.e2e.upstream_proxy import OPEN, UpstreamProxy, refused
from tests.scripts import openai
from tests.upstream.certificates import Certificate, make_certificate
from tests.upstream.replies import by_credential

GOOD = openai.chat_complete("Good morning")
NEEDS_PASSWORD = refused(407, "Proxy Authentication Required")
FORBIDDEN = refused(403, "Not by this company")
BUSY = refused(503, "Too busy")
#: Not the password of any account.
PASSWORD = "p@ss/w?rd#1:%41"

STRATEGIES = pytest.mark.parametrize("strategy", ["eager", "lazy"])
ANY_CLIENT = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


async def ask(proxy, *, http2: bool = False, times: int = 1) -> Any:
    async with proxy.client(http2=http2) as http:
        answers = [await http.request(**chat(stream=False)) for _ in range(times)]
    return answers[-1]


async def assert_told(proxy, answer, cause: str) -> None:
    """*cause* is told to the client, the log and the decision: once, with the account's name."""
    await assert_said(proxy, answer, cause)
    async with direct(proxy) as own:
        made = (await own.get("/decisions")).json()["decisions"]
    refusal = next(d for d in made if d["kind"] == "refusal")
    assert refusal["account"] == "openai/first"
    assert refusal["reason"].startswith(f"no connection to api.openai.com: {cause}")
    assert refusal["class"] == "transport"
    assert not any(secret in str(made) for secret in (FIRST, SECOND, CLIENT, PASSWORD))


async def assert_said(proxy, answer, cause: str) -> None:
    """*cause* is told to the client and the log."""
    said = f"openai/first: no connection to api.openai.com: {cause}"
    assert answer.status_code == 502
    error = answer.json()["error"]
    assert error["message"].startswith(said), error
    line = await proxy.until_printed("request refused")
    assert said in line
    for text in (error["message"], line):
        assert text.count("openai/first") == 1
        assert text.count("no connection to") == 1
        assert "openai: " not in text
    for secret in (FIRST, SECOND, CLIENT, PASSWORD):
        assert secret not in f"{proxy.output}{answer.text}"


@STRATEGIES
@ANY_CLIENT
@pytest.mark.parametrize(
    "answer",
    [NEEDS_PASSWORD, FORBIDDEN, refused(302, "Found"), BUSY],
    ids=["407", "403", "302", "503"],
)
async def test_a_refused_tunnel(provider, pool_proxy, strategy, http2, answer):
    connects = 2 if answer == BUSY else 1
    upstream = await provider(by_credential({FIRST: GOOD, SECOND: GOOD}))
    async with UpstreamProxy(upstream.port, [answer]) as way:
        proxy = await pool_proxy(
            TWO,
            provider=upstream,
            options={"connection_strategy": strategy, "mode": way.mode},
        )
        told = await ask(proxy, http2=http2)
        place = f"127.0.0.1:{way.port}"
        status = answer.partition(b"\r\n")[0].decode().removeprefix("HTTP/1.1 ")
        cause = f"Upstream proxy {place} refused HTTP CONNECT request: {status}"
        await assert_told(proxy, told, cause)
        assert len(way.connects) == connects
        # The vendor's client is told not to try three times by itself.
        assert told.headers.get("x-should-retry") == ("false" if connects == 1 else None)
    assert upstream.journal.requests == []


@STRATEGIES
async def test_a_proxy_that_is_busy_for_a_moment(provider, pool_proxy, strategy):
    upstream = await provider(by_credential({FIRST: GOOD}))
    async with UpstreamProxy(upstream.port, [BUSY, OPEN]) as way:
        options = {"connection_strategy": strategy, "mode": way.mode}
        proxy = await pool_proxy(TWO, provider=upstream, options=options)
        assert (await ask(proxy)).status_code == 200
        assert len(way.connects) == 2


@STRATEGIES
async def test_the_next_request_of_a_client_tries_again(provider, pool_proxy, strategy):
    """It keeps its connection to us, and the password was put right meanwhile."""
    upstream = await provider(by_credential({FIRST: GOOD}))
    async with UpstreamProxy(upstream.port, [NEEDS_PASSWORD, OPEN]) as way:
        options = {"connection_strategy": strategy, "mode": way.mode}
        proxy = await pool_proxy(TWO, provider=upstream, options=options)
        assert (await ask(proxy, times=2)).status_code == 200
        assert len(way.connects) == 2


@STRATEGIES
async def test_a_proxy_that_repeats_the_password(provider, pool_proxy, strategy):
    upstream = await provider(by_credential({FIRST: GOOD}))
    auth = f"me:{PASSWORD}"
    async with UpstreamProxy(upstream.port, [refused(407, f"No {auth}!")]) as way:
        proxy = await pool_proxy(
            TWO,
            provider=upstream,
            options={
                "connection_strategy": strategy,
                "mode": way.mode,
                "upstream_auth": auth,
                "termlog_verbosity": "debug",
            },
        )
        answer = await ask(proxy)
        assert [c.password for c in way.connects] == [auth]
        await proxy.until_printed("407 No *")
    assert "407 No *" in answer.text
    for text in (answer.text, proxy.output):
        assert PASSWORD not in text


@STRATEGIES
async def test_a_proxy_that_is_not_there(provider, pool_proxy, strategy):
    upstream = await provider(by_credential({FIRST: GOOD}))
    options = {
        "connection_strategy": strategy,
        "mode": f"upstream:http://127.0.0.1:{closed_port()}",
    }
    proxy = await pool_proxy(TWO, provider=upstream, options=options)
    await assert_told(proxy, await ask(proxy), "[Errno ")


@STRATEGIES
async def test_a_secure_proxy_whose_certificate_is_not_trusted(
    provider, pool_proxy, strategy, tmp_path
):
    upstream = await provider(by_credential({FIRST: GOOD}))
    unknown = make_certificate(tmp_path)
    async with UpstreamProxy(upstream.port, certificate=unknown) as way:
        options = {"connection_strategy": strategy, "mode": way.mode}
        proxy = await pool_proxy(TWO, provider=upstream, options=options)
        answer = await ask(proxy)
        await assert_told(proxy, answer, "Certificate verify failed: unable to get local issuer")
        assert way.connects == []


# -- the provider's own end


class Server:
    """Counts the connections to it; speaks TLS, or says a few bytes when something comes."""

    def __init__(self, says: ssl.SSLContext | bytes) -> None:
        self.count = 0
        self._says = says

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        with suppress(OSError):
            if isinstance(self._says, ssl.SSLContext):
                await writer.start_tls(self._says)
            else:
                await reader.read(1)
                writer.write(self._says)
        writer.close()


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def named(folder: Path, **how: Any) -> Certificate:
    return make_certificate(folder, **{"names": redirect.HOSTS, **how})


def self_signed(folder: Path) -> Certificate:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(host) for host in redirect.HOSTS])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    files = Certificate(folder / "unused", folder / "chain.pem", folder / "key.pem")
    pem = serialization.Encoding.PEM
    files.chain.write_bytes(certificate.public_bytes(pem))
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files.key.write_bytes(key.private_bytes(pem, *form))
    return files


#: How a certificate is made, whether its authority is trusted, and what mitmproxy says of it.
CERTIFICATES: dict[str, tuple[Callable[[Path], Certificate], bool, str]] = {
    "unknown authority": (named, False, "unable to get local issuer certificate"),
    "self-signed": (self_signed, False, "self-signed certificate"),
    "wrong host": (
        partial(named, names=["other.example.com"], always=()),
        True,
        "hostname mismatch",
    ),
    "expired": (
        partial(named, valid_for=timedelta(hours=-12)),
        True,
        "certificate has expired",
    ),
}


@STRATEGIES
@ANY_CLIENT
@pytest.mark.parametrize("which", CERTIFICATES)
async def test_a_certificate_that_is_not_trusted(pool_proxy, strategy, http2, which, tmp_path):
    make, trusted, cause = CERTIFICATES[which]
    bad = make(tmp_path)
    options = {"connection_strategy": strategy}
    if trusted:
        options["ssl_verify_upstream_trusted_ca"] = str(bad.authority)
    async with Server(bad.server_context(["h2", "http/1.1"])) as server:
        proxy = await pool_proxy(TWO, provider=upstream_at(server.port), options=options)
        answer = await ask(proxy, http2=http2)
        await assert_told(proxy, answer, f"Certificate verify failed: {cause}")
        assert server.count == 1
        assert answer.headers["x-should-retry"] == "false"
        # What helps is named where it would help.
        assert ("ssl_verify_upstream_trusted_ca" in answer.text) != trusted
        # Nothing is remembered for longer than the request.
        await ask(proxy, http2=http2)
        assert server.count == 2


@STRATEGIES
@ANY_CLIENT
async def test_a_certificate_behind_a_proxy_on_the_way(pool_proxy, strategy, http2, tmp_path):
    async with (
        Server(named(tmp_path).server_context(["h2", "http/1.1"])) as server,
        UpstreamProxy(server.port) as way,
    ):
        options = {"connection_strategy": strategy, "mode": way.mode}
        proxy = await pool_proxy(TWO, options=options)
        answer = await ask(proxy, http2=http2)
        await assert_told(proxy, answer, "Certificate verify failed: unable to get local issuer")
        assert (len(way.connects), server.count) == (1, 1)
        assert answer.headers["x-should-retry"] == "false"


# -- where the server is known before the request


async def ask_base(proxy, trusted: Path, scheme: str) -> Any:
    async with client(trusted) as http:
        base = proxy.url.replace("http:", f"{scheme}:")
        return await http.request(**chat(stream=False, base=base))


REVERSE = ["--mode", f"reverse:{OPENAI}"]
BOTH_SCHEMES = pytest.mark.parametrize("scheme", ["http", "https"])


@STRATEGIES
@BOTH_SCHEMES
async def test_a_certificate_in_reverse_mode(pool_proxy, setting, strategy, scheme, tmp_path):
    async with Server(named(tmp_path).server_context(["h2", "http/1.1"])) as server:
        proxy = await pool_proxy(
            TWO,
            provider=upstream_at(server.port),
            options={"connection_strategy": strategy},
            extra_args=REVERSE,
        )
        answer = await ask_base(proxy, setting.trusted, scheme)
        assert server.count == 1
        assert answer.headers["x-should-retry"] == "false"
        await assert_said(proxy, answer, "Certificate verify failed: unable to get local issuer")


@STRATEGIES
@BOTH_SCHEMES
async def test_nobody_listens_in_reverse_mode(pool_proxy, setting, strategy, scheme):
    """mitmproxy would hang up."""
    proxy = await pool_proxy(
        TWO,
        provider=upstream_at(closed_port()),
        options={"connection_strategy": strategy},
        extra_args=REVERSE,
    )
    await assert_said(proxy, await ask_base(proxy, setting.trusted, scheme), "[Errno ")


@STRATEGIES
async def test_a_host_that_is_not_the_pools_is_left_to_mitmproxy(pool_proxy, setting, strategy):
    proxy = await pool_proxy(
        TWO,
        provider=upstream_at(closed_port()),
        options={"connection_strategy": strategy},
        extra_args=["--mode", "reverse:https://www.example.com"],
    )
    if strategy == "eager":
        # An end, or a reset: the request may be sent while mitmproxy hangs up.
        with pytest.raises((httpx.RemoteProtocolError, httpx.NetworkError)):
            await ask_base(proxy, setting.trusted, "http")
    else:
        assert (await ask_base(proxy, setting.trusted, "http")).status_code == 502
    await proxy.until_printed("error establishing server connection")


@STRATEGIES
@pytest.mark.skipif(CURL is None, reason="curl is not installed")
async def test_nobody_listens_behind_socks(pool_proxy, setting, strategy):
    proxy = await pool_proxy(
        TWO,
        provider=upstream_at(closed_port()),
        options={"connection_strategy": strategy},
        extra_args=["--mode", "socks5"],
    )
    process = await asyncio.create_subprocess_exec(
        *(CURL, "-sS", "--max-time", str(TIMEOUT_S), "--cacert", str(setting.trusted)),
        *("--socks5-hostname", proxy.url.removeprefix("http://")),
        *("-H", f"authorization: Bearer {CLIENT}", "--json", '{"model": "gpt-5-nano"}'),
        f"{OPENAI}/v1/chat/completions",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert json.loads(out)["error"]["message"].startswith(
        "openai/first: no connection to api.openai.com: [Errno "
    )


#: TLS alert, fatal: protocol_version (RFC 8446, 6).
OTHER_VERSION = b"\x15\x03\x03\x00\x02\x02\x46"


@STRATEGIES
@pytest.mark.parametrize(
    ("says", "cause"),
    [
        (OTHER_VERSION, "The remote server and mitmproxy cannot agree on a TLS version"),
        (refused(400, "Bad Request"), "The remote server does not speak TLS"),
    ],
    ids=["another version of TLS", "no TLS"],
)
async def test_no_tls_in_common(pool_proxy, strategy, says, cause):
    async with Server(says) as server:
        options = {"connection_strategy": strategy}
        proxy = await pool_proxy(TWO, provider=upstream_at(server.port), options=options)
        await assert_told(proxy, await ask(proxy), cause)
        assert server.count == 1


@STRATEGIES
@ANY_CLIENT
async def test_nobody_listens(pool_proxy, strategy, http2):
    options = {"connection_strategy": strategy}
    proxy = await pool_proxy(TWO, provider=upstream_at(closed_port()), options=options)
    await assert_told(proxy, await ask(proxy, http2=http2), "[Errno ")


@STRATEGIES
async def test_a_name_that_is_not_known(pool_proxy, strategy):
    proxy = await pool_proxy(
        TWO,
        options={"connection_strategy": strategy},
        extra_args=["-s", unresolved.__file__],
    )
    await assert_told(proxy, await ask(proxy), "[Errno -2] Name or service not known")


# -- our own exchanges of tokens


async def test_an_exchange_through_a_proxy_with_any_password(provider, pool_proxy):
    upstream = await provider(copilot.script(by_credential({copilot.COPILOT["first"]: GOOD})))
    auth = f"me:{PASSWORD}"
    async with UpstreamProxy(upstream.port, check=lambda c: c.password == auth) as way:
        proxy = await pool_proxy(
            copilot.TWO,
            provider=upstream,
            options={
                "mode": way.mode,
                "upstream_auth": auth,
                "pool_editor_version": "vscode/1.110.0",
                "termlog_verbosity": "debug",
            },
        )
        await proxy.until_printed("copilot/first: .*token")
        async with proxy.client() as http:
            url = f"{copilot.HOST}/chat/completions"
            answer = await http.post(url, headers=copilot.EDITOR, json=copilot.CHAT)
        assert (answer.status_code, answer.content) == (200, GOOD.body)
        assert {connect.password for connect in way.connects} == {auth}
    assert PASSWORD not in proxy.output


async def test_an_exchange_whose_password_is_wrong(provider, pool_proxy):
    upstream = await provider(copilot.script(by_credential({})))
    async with UpstreamProxy(upstream.port, [NEEDS_PASSWORD]) as way:
        options = {"mode": way.mode, "upstream_auth": f"me:{PASSWORD}"}
        proxy = await pool_proxy(copilot.TWO, provider=upstream, options=options)
        for label in ("first", "second"):
            said = await proxy.until_printed(f"copilot/{label}: cannot reach")
            assert "407 Proxy Authentication Required; see the option upstream_auth" in said
        assert len(way.connects) == 1
