"""The proxy serves this machine, unless its user asks for more."""

from __future__ import annotations

import re
import socket

import httpx
import pytest

from account_pool.demo.scripts import by_credential, openai
from tests.e2e.harness import CLIENT, FIRST, OPENAI, TWO, chat, client

GOOD = openai.chat_stream(["Good"])


def own_address() -> str | None:
    """Return an address of this machine that is not loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: connecting a datagram socket only picks a route.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else address


needs_network = pytest.mark.skipif(own_address() is None, reason="only loopback here")


async def test_it_listens_on_loopback_by_default(pool_proxy):
    # An empty host is mitmproxy's default: every address.
    proxy = await pool_proxy(TWO, extra_args=["--listen-host", ""])
    ports = await listening(proxy)
    assert [host for host, _ in ports][-1] == "127.0.0.1"
    if address := own_address():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, int(ports[-1][1])), timeout=5)


async def listening(proxy) -> list[tuple[str, str]]:
    return re.findall(r"listening at (\S+):(\d+)\.", proxy.output)


@needs_network
@pytest.mark.parametrize("allowed", [False, True], ids=["by default", "pool_allow_remote"])
async def test_a_remote_client_gets_no_lease_unless_allowed(provider, pool_proxy, allowed):
    upstream = await provider(by_credential({FIRST: GOOD, CLIENT: GOOD}))
    proxy = await pool_proxy(
        TWO,
        provider=upstream,
        options={"pool_allow_remote": str(allowed).lower()},
        extra_args=["--listen-host", "0.0.0.0"],
    )
    url = f"http://{own_address()}:{proxy.port}"
    async with client(proxy.trusted, url) as http:
        answer = await http.request(**chat())
    if allowed:
        assert answer.status_code == 200
        assert upstream.journal.credentials == [FIRST]
    else:
        assert answer.status_code in (401, 403)
        assert upstream.journal.requests == []


@needs_network
async def test_a_remote_client_that_authenticates_gets_a_lease(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: GOOD}))
    proxy = await pool_proxy(
        TWO,
        provider=upstream,
        options={"proxyauth": "somebody:sesame"},
        extra_args=["--listen-host", "0.0.0.0"],
    )
    url = f"http://somebody:sesame@{own_address()}:{proxy.port}"
    async with client(proxy.trusted, url) as http:
        assert (await http.request(**chat())).status_code == 200
    async with client(proxy.trusted, url.replace("sesame", "wrong")) as http:
        with pytest.raises(httpx.ProxyError):
            await http.get(OPENAI)
    assert upstream.journal.credentials == [FIRST]
