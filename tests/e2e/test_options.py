"""Options of mitmproxy that change what passes us: failover, streaming and secrecy hold.

Or the start says that they do not. Each row is one option; a client asks one account after
the other, and nobody but the provider sees their credentials.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import replace
from typing import Any

import httpx
import pytest
from mitmproxy.net import tls
from OpenSSL import SSL

from tests.e2e.harness import CLIENT, FIRST, OPENAI, SECOND, TIMEOUT_S, TWO, chat, client
from tests.e2e.test_admin import direct
from tests.e2e.test_causes import self_signed
from tests.e2e.upstream_proxy import UpstreamProxy
from tests.scripts import openai
from tests.upstream.exchange import Reply
from tests.upstream.replies import EVENT_STREAM, by_credential

LIMITED = openai.rate_limited(3600)

#: Options that requests of the pool follow, or that do not touch them: nothing is said.
QUIET: dict[str, dict[str, Any]] = {
    "lazy": {"connection_strategy": "lazy"},
    "eager": {"connection_strategy": "eager"},
    "no http2": {"http2": "false"},
    "no upstream certificate": {"upstream_cert": "false"},
    "anticomp": {"anticomp": "true"},
    "anticache": {"anticache": "true"},
    "a limit that is kept": {"body_size_limit": "10m"},
    "a header more": {"modify_headers": "/~q/x-own/yes"},
    "another credential": {"modify_headers": "/~q/Authorization/Bearer other"},
    "no credential": {"modify_headers": "/~q/Authorization/"},
    "a header of answers": {"modify_headers": "/~s/x-own/yes"},
    "headers as they are": {"validate_inbound_headers": "false"},
    "names as they are": {"normalize_outbound_headers": "false"},
    "no ping": {"http2_ping_keepalive": "0"},
    "many pings": {"http2_ping_keepalive": "1"},
    "no raw TCP": {"rawtcp": "false"},
    "blocks others": {"block_list": "/~d www.example.com/403"},
    "blocks the world": {"block_global": "true"},
    "whole bodies": {"store_streamed_bodies": "true"},
    "allowed": {"allow_hosts": "openai"},
    "ignores others": {"ignore_hosts": "example"},
    "maps others": {"map_local": "|www.example.com|/tmp"},
    "no upstream tls 1.2": {"tls_version_server_min": "TLS1_3"},
    "no onboarding": {"onboarding": "false"},
    "no HTTP/3": {"http3": "false"},
    "another address to come from": {"connect_addr": "127.0.0.1"},
    "TLS 1.2 upstream": {"tls_version_server_max": "TLS1_2"},
    "the client's Host in a tunnel": {"keep_host_header": "true"},
    "raw TCP to others": {"tcp_hosts": "example"},
    "played back to others": {"server_replay_extra": "404"},
    "no host in a tunnel": {"http_connect_send_host_header": "false"},
    "the name that is shown": {"showhost": "true"},
}

#: Options that are not followed wholly, and what is said of them.
TOLD: dict[str, tuple[dict[str, Any], str]] = {
    "stream_large_bodies": ({"stream_large_bodies": "10"}, "stream_large_bodies: requests of the"),
    "modify_body": ({"modify_body": "/~s/Good/Bad"}, "modify_body: answers of the pool"),
    "map_remote": ({"map_remote": "|www.example.com|localhost"}, "map_remote: a request of the"),
    "stickycookie": ({"stickycookie": ".*"}, "stickycookie: no cookie"),
    "stickyauth": ({"stickyauth": ".*"}, "stickyauth: the credential"),
    "websocket": ({"websocket": "false"}, "websocket: limits told inside"),
}


def knows_tls_versions() -> bool:
    """Say whether mitmproxy itself takes its options of TLS versions with this OpenSSL."""
    try:
        for version in tls.Version:
            tls.is_supported_version(version)
    except SSL.Error:
        return False
    return True


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
@pytest.mark.parametrize("which", [*QUIET, *TOLD])
async def test_failover_streaming_and_secrecy(provider, pool_proxy, which, http2):
    options, said = TOLD.get(which) or (QUIET[which], None)
    if any(name.startswith("tls_version") for name in options) and not knows_tls_versions():
        pytest.skip("this mitmproxy ends with these options, and this OpenSSL")
    events, received = openai.chat_events(["Good", " morning"]), asyncio.Event()
    # The rest is sent when its beginning has come.
    good = Reply(headers=EVENT_STREAM, steps=[events[0], events[1], received, *events[2:]])
    upstream = await provider(by_credential({FIRST: LIMITED, SECOND: good}))
    proxy = await pool_proxy(TWO, provider=upstream, options=options, extra_args=["-w", "dump"])
    async with proxy.client(http2=http2) as http, http.stream(**chat()) as answer:
        assert answer.status_code == 200
        body = b""
        async for piece in answer.aiter_raw():
            body += piece
            received.set()
    assert body == good.body
    assert upstream.journal.statuses == [(FIRST, 429), (SECOND, 200)]
    assert CLIENT not in repr(upstream.journal.requests)
    assert_secret(proxy)
    told = [line for line in proxy.lines if re.search(r"account-pool: [a-z_]+: ", line)]
    assert [said in line for line in told] == ([True] if said else [])


def assert_secret(proxy) -> None:
    saved = (proxy.folder / "dump").read_bytes() if (proxy.folder / "dump").exists() else b""
    for secret in (FIRST, SECOND, CLIENT):
        assert secret.encode() not in saved
        assert secret not in proxy.output


GOOD = openai.chat_complete("Good morning")


async def ask(proxy, **client_settings: Any) -> Any:
    async with proxy.client(**client_settings) as http:
        return await http.request(**chat(stream=False))


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"block_list": "/~d api.openai.com/403"}, 403),
        ({"block_list": "/~d api.openai.com/444"}, None),
        ({"map_local": "|https://api.openai.com|{folder}/local.json"}, 200),
        ({"map_local": "|https://api.openai.com|{folder}"}, 404),
    ],
    ids=str,
)
async def test_what_another_addon_answers_costs_no_account(
    provider, pool_proxy, tmp_path, options, status
):
    upstream = await provider(by_credential({FIRST: GOOD}))
    (tmp_path / "local.json").write_text("{}")
    given = {name: value.format(folder=tmp_path) for name, value in options.items()}
    proxy = await pool_proxy(TWO, provider=upstream, options=given)
    if status is None:
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(proxy)
    else:
        assert (await ask(proxy)).status_code == status
    assert upstream.journal.requests == []
    await assert_nothing_was_served(proxy)


async def assert_nothing_was_served(proxy) -> None:
    """No account was asked, none is held, and nothing was counted."""
    async with direct(proxy) as own:
        accounts = (await own.get("/account-pool")).json()["accounts"]
        assert (await own.get("/usage")).json()["days"] == []
    assert [account["state"] for account in accounts] == ["available"] * len(accounts)
    assert {account["in_flight"] for account in accounts} == {0}
    assert {account["served"] for account in accounts} == {0}


async def test_what_other_addons_change(provider, pool_proxy):
    """Of the request before its first attempt, of the answer when it is known to be good."""
    upstream = await provider(by_credential({FIRST: LIMITED, SECOND: GOOD}))
    args = ["--modify-body", "/~q/Hello/Goodbye", "--modify-body", "/~s/Good/Bad"]
    args += ["--modify-headers", "/~s/retry-after/1", "--modify-headers", "/~q/x-own/yes"]
    proxy = await pool_proxy(TWO, provider=upstream, extra_args=args)
    answer = await ask(proxy)
    assert answer.json()["choices"][0]["message"]["content"] == "Bad morning"
    assert answer.headers["retry-after"] == "1"
    for asked in upstream.journal.requests:
        assert b"Goodbye?" in asked.body
        assert asked.header("x-own") == "yes"
    # What is believed of an account is what the provider said of it.
    assert "on cooldown for 60 min" in await proxy.until_printed("openai/first: 429")


async def test_a_cookie_stays_with_its_account(provider, pool_proxy):
    cookie = (("set-cookie", "own=fake-cookie-000; Path=/"),)
    good = replace(GOOD, headers=(*GOOD.headers, *cookie))
    upstream = await provider(by_credential({FIRST: [good, LIMITED], SECOND: good}))
    proxy = await pool_proxy(TWO, provider=upstream, options={"stickycookie": ".*"})
    for _ in range(2):
        assert (await ask(proxy)).status_code == 200
    assert upstream.journal.statuses == [(FIRST, 200), (FIRST, 429), (SECOND, 200)]
    assert [asked.header("cookie") for asked in upstream.journal.requests] == [None] * 3


@pytest.mark.parametrize("target", ["https://www.example.com", "http://api.openai.com"])
async def test_a_request_that_is_mapped_elsewhere_carries_no_credential(
    provider, pool_proxy, target
):
    upstream = await provider(by_credential({FIRST: GOOD, CLIENT: GOOD}))
    options = {"map_remote": f"|https://api.openai.com|{target}"}
    proxy = await pool_proxy(TWO, provider=upstream, options=options)
    answer = await ask(proxy)
    assert answer.status_code == 421
    assert "another addon" in answer.json()["error"]["message"]
    assert upstream.journal.requests == []
    assert "map_remote: a request of the pool" in proxy.output


async def test_a_body_over_the_limit_of_mitmproxy(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream, options={"body_size_limit": "10"})
    answer = await ask(proxy)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (413, "false")
    assert "body_size_limit" in answer.json()["error"]["message"]
    assert upstream.journal.requests == []


async def test_a_password_for_the_proxy_itself(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: LIMITED, SECOND: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream, options={"proxyauth": "me:sesame-0"})
    with pytest.raises(httpx.ProxyError, match="407"):
        await ask(proxy)
    own = httpx.Proxy(proxy.url, auth=("me", "sesame-0"))
    tls = httpx.create_ssl_context(verify=str(proxy.trusted))
    async with httpx.AsyncClient(proxy=own, verify=tls, timeout=TIMEOUT_S) as http:
        answer = await http.request(**chat(stream=False))
    assert answer.status_code == 200
    assert upstream.journal.statuses == [(FIRST, 429), (SECOND, 200)]
    assert "proxy-authorization" not in repr(upstream.journal.requests).lower()


async def test_a_password_for_the_proxy_in_reverse_mode(provider, pool_proxy, setting):
    """It stands where the client's credential for the pool does: the start says so."""
    upstream = await provider(by_credential({FIRST: GOOD, CLIENT: GOOD}))
    proxy = await pool_proxy(
        TWO,
        provider=upstream,
        options={"proxyauth": "me:sesame-0"},
        extra_args=["--mode", f"reverse:{OPENAI}"],
    )
    async with client(setting.trusted) as http:
        answer = await http.request(**chat(stream=False, base=proxy.url))
    assert answer.status_code == 401
    assert upstream.journal.requests == []
    await proxy.until_printed("proxyauth: in reverse mode")


async def test_a_host_of_ones_own_is_kept(provider, pool_proxy, setting):
    upstream = await provider(by_credential({FIRST: GOOD, CLIENT: GOOD}))
    proxy = await pool_proxy(
        TWO,
        provider=upstream,
        options={"keep_host_header": "true"},
        extra_args=["--mode", f"reverse:{OPENAI}"],
    )
    async with client(setting.trusted) as http:
        answer = await http.request(**chat(stream=False, base=proxy.url))
    assert answer.status_code in (421, 502)
    assert upstream.journal.requests == []
    await proxy.until_printed("keep_host_header: a request of the pool")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ignore_hosts": r"api\.openai\.com"}, "ignore_hosts: it covers api.openai.com:443"),
        ({"allow_hosts": r"example\.com"}, "allow_hosts: it leaves out api.openai.com:443"),
        ({"tcp_hosts": "openai"}, "tcp_hosts: it covers api.openai.com:443"),
    ],
)
async def test_a_host_that_is_ignored_passes_unpooled(provider, pool_proxy, setting, options, said):
    upstream = await provider(by_credential({CLIENT: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream, options=options)
    assert said in proxy.output or await proxy.until_printed(said)
    # With tcp_hosts mitmproxy decrypts it all the same.
    decrypted = "tcp_hosts" in options
    trusted = setting.trusted if decrypted else setting.certificate.authority
    async with client(trusted, proxy.url) as http:
        answer = await http.request(**chat(stream=False))
    assert answer.status_code == 200
    assert upstream.journal.credentials == [CLIENT]


async def test_no_credential_without_verification(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: GOOD, CLIENT: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream, options={"ssl_insecure": "true"})
    answer = await ask(proxy)
    assert (answer.status_code, upstream.journal.requests) == (400, [])
    await proxy.until_printed("ssl_insecure: no credential")


async def test_a_proxy_on_the_way_with_a_password(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: LIMITED, SECOND: GOOD}))
    auth = "me:p@ss/w?rd#1:%41"
    async with UpstreamProxy(upstream.port, check=lambda c: c.password == auth) as way:
        options = {"mode": way.mode, "upstream_auth": auth}
        proxy = await pool_proxy(TWO, provider=upstream, options=options)
        assert (await ask(proxy)).status_code == 200
    assert upstream.journal.statuses == [(FIRST, 429), (SECOND, 200)]
    assert "proxy-authorization" not in repr(upstream.journal.requests).lower()


async def test_a_certificate_of_ones_own(provider, pool_proxy, tmp_path):
    """A gateway that wants one gets it with every attempt."""
    shown = self_signed(tmp_path)
    (tmp_path / "ours.pem").write_bytes(shown.chain.read_bytes() + shown.key.read_bytes())
    upstream = await provider(by_credential({FIRST: LIMITED, SECOND: GOOD}))
    assert upstream._tls is not None
    upstream._tls.load_verify_locations(shown.chain)
    upstream._tls.verify_mode = ssl.CERT_REQUIRED
    for path, status in ((tmp_path / "ours.pem", 200), (None, 502)):
        options = {"client_certs": path} if path else {}
        proxy = await pool_proxy(TWO, provider=upstream, options=options)
        assert (await ask(proxy)).status_code == status
    assert upstream.journal.statuses == [(FIRST, 429), (SECOND, 200)]


async def test_what_is_remembered_never_holds_a_credential(provider, pool_proxy):
    """A request that is not pooled gets the client's own credential, or none."""
    upstream = await provider(by_credential({FIRST: GOOD, CLIENT: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream, options={"stickyauth": ".*"})
    async with proxy.client() as http:
        assert (await http.request(**chat(stream=False))).status_code == 200
        await http.get("https://api.openai.com/v1/assistants")
    first, second = upstream.journal.requests
    assert first.credential == FIRST
    assert FIRST not in repr(second)
    assert second.header("authorization") is None
