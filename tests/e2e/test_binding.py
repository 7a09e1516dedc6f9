"""The proxy serves this machine, unless its user asks for more."""

from __future__ import annotations

import re
import socket

import httpx
import pytest

from tests.e2e.harness import CLIENT, FIRST, OPENAI, TIMEOUT_S, TWO, chat, client
from tests.scripts import openai
from tests.upstream.replies import by_credential

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
            socket.create_connection((address, int(ports[-1][1])), timeout=TIMEOUT_S)


#: Python runs a file of this name before anything else: no socket can be missed.
WATCHING = """
import socket

def listen(self, *args, listen=socket.socket.listen):
    print("listens on", self.getsockname()[0], flush=True)
    return listen(self, *args)

socket.socket.listen = listen
"""


@pytest.mark.parametrize(
    ("asked", "hosts"), [("", ["127.0.0.1"]), ("0.0.0.0", ["0.0.0.0"]), ("localhost", None)]
)
async def test_it_never_listens_anywhere_else_not_even_for_a_moment(
    pool_proxy, tmp_path, asked, hosts
):
    """From Python 3.12 on mitmproxy has begun to bind when it loads scripts."""
    (tmp_path / "sitecustomize.py").write_text(WATCHING)
    proxy = await pool_proxy(
        TWO, extra_args=["--listen-host", asked], env={"PYTHONPATH": str(tmp_path)}
    )
    seen = re.findall(r"^listens on (\S+)$", proxy.output, re.MULTILINE)
    assert seen
    assert seen == hosts if hosts else set(seen) <= {"127.0.0.1", "::1"}


async def test_a_port_that_is_taken_ends_the_start(setting):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        proxy = setting.prepare(TWO, extra_args=["--listen-host", "", "--listen-port", port])
        assert await proxy.run_to_end() == 1
    assert "address already in use" in proxy.output
    assert "account-pool: ready" not in proxy.output


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
