"""Where the proxy listens, with whatever order mitmproxy starts in."""

from __future__ import annotations

import asyncio
import socket

import pytest
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.test import taddons

from account_pool.proxy import listen


@pytest.fixture
async def server():
    """Yield a proxyserver that has been told no address, and its context."""
    proxyserver = Proxyserver()
    with taddons.context(proxyserver) as tctx:
        tctx.configure(proxyserver, listen_host="", listen_port=0)
        yield proxyserver
        for instance in proxyserver.servers:
            if instance.is_running:
                await instance.stop()


def hosts(proxyserver: Proxyserver) -> set[str]:
    return {address[0] for address in proxyserver.listen_addrs()}


async def until_resolving(setup: asyncio.Task[bool], proxyserver: Proxyserver) -> None:
    """Return when the servers have read the address, and before they are bound."""
    while not list(proxyserver.servers):
        await asyncio.sleep(0)
    assert not setup.done()
    assert not proxyserver.listen_addrs()


async def test_servers_that_are_about_to_listen_are_held_back(server):
    setup = asyncio.create_task(server.setup_servers())
    await until_resolving(setup, server)
    assert listen.default_to_loopback()
    await asyncio.wait([setup])
    assert not server.listen_addrs()
    assert await listen.bind(held_back=True)
    assert hosts(server) == {"127.0.0.1"}


async def test_before_it_begins_the_option_is_enough(server):
    assert not listen.default_to_loopback()
    assert await server.setup_servers()
    assert await listen.bind(held_back=False)
    assert hosts(server) == {"127.0.0.1"}


async def test_what_listens_everywhere_already_is_bound_anew(server):
    """No mitmproxy we know of loads scripts that late."""
    assert await server.setup_servers()
    if not hosts(server) & {"0.0.0.0", "::"}:
        pytest.skip("no address but loopback here")
    assert not listen.default_to_loopback()
    assert await listen.bind(held_back=False)
    assert hosts(server) == {"127.0.0.1"}


async def test_a_set_up_of_an_unknown_name_goes_on_and_is_put_right(server, monkeypatch):
    monkeypatch.setattr(listen, "_SETUP", "Elsewhere.begins")
    setup = asyncio.create_task(server.setup_servers())
    await until_resolving(setup, server)
    assert not listen.default_to_loopback()
    assert await setup
    assert await listen.bind(held_back=False)
    assert hosts(server) == {"127.0.0.1"}


@pytest.mark.parametrize(
    "asked", [{"listen_host": "localhost"}, {"mode": ["regular@localhost:0"]}], ids=str
)
async def test_who_asks_for_an_address_gets_it(server, asked):
    from mitmproxy import ctx

    ctx.options.update(**asked)
    setup = asyncio.create_task(server.setup_servers())
    await until_resolving(setup, server)
    assert not listen.default_to_loopback()
    assert await setup
    before = server.listen_addrs()
    assert await listen.bind(held_back=False)
    assert server.listen_addrs() == before


async def test_a_port_that_is_taken_is_said(server, caplog):
    from mitmproxy import ctx

    with socket.create_server(("127.0.0.1", 0)) as taken:
        ctx.options.update(listen_port=taken.getsockname()[1])
        setup = asyncio.create_task(server.setup_servers())
        await until_resolving(setup, server)
        assert listen.default_to_loopback()
        assert not await listen.bind(held_back=True)
    assert "address already in use" in caplog.text


async def test_a_proxy_that_cannot_start_sets_no_server_up(server):
    listen.nowhere()
    assert await server.setup_servers()
    assert not list(server.servers)


async def test_a_script_that_fails_later_leaves_the_servers_alone(server):
    assert await server.setup_servers()
    listen.nowhere()
    assert server.listen_addrs()
