"""Which connections are ours, and how our layer gets under them."""

from __future__ import annotations

import ssl

import pytest
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Server
from mitmproxy.proxy import events, layer, layers
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.test import taddons

from account_pool.providers import copilot, openai
from account_pool.providers.base import HostRule
from account_pool.providers.definition import add_hosts
from account_pool.proxy import next_layer
from account_pool.proxy.http_layer import PoolHttpLayer
from tests.proxy.helpers import client_connection, service_of


def client_hello(name: str | None) -> bytes:
    """What a TLS client sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.fixture
def built_in():
    with taddons.context(Proxyserver(), NextLayer()) as tctx:
        addon = tctx.master.addons.get("nextlayer")
        tctx.configure(addon)
        yield tctx, addon


class Ask:
    """One connection that asks for its next layer."""

    def __init__(self, built_in, service, address=None, mode="regular", below=None) -> None:
        tctx, self.addon = built_in
        self.service = service
        self.context = Context(client_connection(mode=mode), tctx.options)
        self.context.server = Server(address=address)
        below = below if below is not None else [modes.HttpProxy, layers.HttpLayer, object]
        for kind in below:
            if kind is layers.HttpLayer:
                kind(self.context, HTTPMode.regular)
            elif kind is object:
                http_layers.HttpStream(self.context.fork(), 1)
                self.context.layers.append(object())
            else:
                kind(self.context)
        self.next = layer.NextLayer(self.context)

    def __call__(self, data: bytes) -> layer.Layer | None:
        self.next.events.append(events.DataReceived(self.context.client, data))
        next_layer.choose(self.next, self.addon, self.service)
        return self.next.layer


@pytest.fixture
def ask(built_in):
    def build(address=("api.openai.com", 443), *, providers=(openai.PROVIDER,), **settings):
        how = {name: settings.pop(name) for name in ("mode", "below") if name in settings}
        kind = "copilot" if providers[0] is copilot.PROVIDER else "key"
        service = service_of("one", providers=providers, kind=kind, **settings)
        return Ask(built_in, service, address, **how)

    return build


def is_tunnel(chosen) -> bool:
    return type(chosen) is layers.TCPLayer and chosen.flow is None


def is_intercepted(chosen) -> bool:
    return isinstance(chosen, layers.ServerTLSLayer)


@pytest.mark.parametrize(
    ("address", "name", "ours"),
    [
        ("api.openai.com", "api.openai.com", True),
        ("API.OpenAI.com.", "api.openai.com", True),
        ("api.openai.com", None, True),
        ("example.com", "example.com", False),
        ("192.0.2.1", "api.openai.com", True),
        ("192.0.2.1", "example.com", False),
        ("192.0.2.1", None, False),
        # Whoever answers for the server name gets what is sent.
        ("api.openai.com", "evil.example", False),
        ("evil.example", "api.openai.com", False),
        ("api.openai.com.evil.example", "api.openai.com.evil.example", False),
        ("evil-api.openai.com", "evil-api.openai.com", False),
        ("xapi.openai.com", "xapi.openai.com", False),
        ("openai.com", "openai.com", False),
    ],
)
def test_by_host_and_server_name(ask, address, name, ours):
    chosen = ask((address, 443))(client_hello(name))
    assert is_intercepted(chosen) is ours
    assert is_tunnel(chosen) is not ours


def test_another_port_of_a_host_is_left_alone_and_said_once(ask, caplog):
    caplog.set_level("INFO")
    asked = ask(("api.openai.com", 8443))
    assert is_tunnel(asked(client_hello("api.openai.com")))
    asked.next.layer = None
    assert is_tunnel(asked(b""))
    said = "api.openai.com:8443 passes through, not pooled: the pool serves it at port 443; "
    assert caplog.text.count(said) == 1
    own = add_hosts(openai.PROVIDER, [HostRule.parse("api.openai.com:8443")])
    chosen = ask(("api.openai.com", 8443), providers=[own])(client_hello("api.openai.com"))
    assert is_intercepted(chosen)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("api.githubcopilot.com", True),
        ("api.business.githubcopilot.com", True),
        ("githubcopilot.com", False),
        ("xgithubcopilot.com", False),
        ("githubcopilot.com.evil.example", False),
        ("api.github.com", True),
        ("github.com", False),
    ],
)
def test_hosts_with_sub_domains(ask, name, ours):
    chosen = ask((name, 443), providers=[copilot.PROVIDER])(client_hello(name))
    assert is_intercepted(chosen) is ours


def test_a_hello_in_pieces_is_waited_for(ask):
    asked = ask(("192.0.2.1", 443))
    hello = client_hello("api.openai.com")
    for start in range(0, len(hello) - 40, 40):
        assert asked(hello[start : start + 40]) is None
    assert is_intercepted(asked(hello[start + 40 :]))


def test_a_hello_that_begins_with_one_byte_is_waited_for(ask):
    asked = ask()
    hello = client_hello("api.openai.com")
    layers_before = list(asked.context.layers)
    assert asked(hello[:1]) is None
    assert asked(hello[1:2]) is None
    assert asked.context.layers == layers_before
    assert is_intercepted(asked(hello[2:]))


def test_a_hello_in_pieces_of_a_host_that_is_not_ours(ask):
    asked = ask(("192.0.2.1", 443))
    hello = client_hello("example.com")
    assert asked(hello[:50]) is None
    assert is_tunnel(asked(hello[50:]))


def test_tls_that_cannot_be_read_is_left_alone(ask):
    garbage = b"\x16\x03\x01\x00\x08\x01\x00\x00\x04" + b"\xff" * 4
    assert is_tunnel(ask(("192.0.2.1", 443))(garbage))
    assert is_tunnel(ask(("api.openai.com", 443))(garbage))


def test_every_host_where_the_user_wants_that(ask):
    chosen = ask(("example.com", 443), intercept_all=True)(client_hello("example.com"))
    assert is_intercepted(chosen)


def test_without_an_account_nothing_is_decrypted(built_in):
    service = service_of()
    asked = Ask(built_in, service, ("api.openai.com", 443))
    assert is_tunnel(asked(client_hello("api.openai.com")))


def test_what_another_addon_chose_stays(ask):
    asked = ask()
    mine = layers.TCPLayer(asked.context)
    asked.next.layer = mine
    assert asked(client_hello("example.com")) is mine


def test_hosts_the_user_ignores_stay_ignored(ask, built_in):
    tctx, addon = built_in
    tctx.configure(addon, ignore_hosts=["api.openai.com"])
    assert is_tunnel(ask()(client_hello("api.openai.com")))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("aiplatform.googleapis.com", "vertex"),
        ("us-central1-aiplatform.googleapis.com", "vertex"),
        ("bedrock-runtime.us-east-1.amazonaws.com", "bedrock"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "bedrock"),
        ("bedrock-runtime.cn-north-1.amazonaws.com.cn", "bedrock"),
        ("xaiplatform.googleapis.com", None),
        ("bedrock-runtime.us-east-1.amazonaws.com.evil.example", None),
        ("s3.us-east-1.amazonaws.com", None),
    ],
)
def test_what_cannot_be_swapped_passes_and_is_said_once(built_in, caplog, name, why):
    service = service_of("one", providers=(openai.PROVIDER,))
    with caplog.at_level("INFO", "account_pool"):
        for _ in range(3):
            assert is_tunnel(Ask(built_in, service, (name, 443))(client_hello(name)))
    said = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert len(said) == (1 if why else 0)
    assert why is None or why in said[0]


REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def assert_ours(chosen, context, mode) -> None:
    assert type(chosen) is PoolHttpLayer
    assert chosen.mode is mode
    # The discarded layer has gone, and ours is there once.
    http = [item for item in context.layers if isinstance(item, layers.HttpLayer)]
    assert http[-1] is chosen
    assert [type(item) for item in http].count(PoolHttpLayer) == 1


@pytest.mark.parametrize(
    ("mode", "below", "http_mode"),
    [
        ("regular", [modes.HttpProxy], HTTPMode.regular),
        ("upstream:http://127.0.0.1:9", [modes.HttpUpstreamProxy], HTTPMode.upstream),
    ],
)
def test_the_proxy_leg(ask, mode, below, http_mode):
    asked = ask(None, mode=mode, below=below)
    assert_ours(asked(REQUEST), asked.context, http_mode)


def test_the_proxy_leg_over_tls_is_never_a_tunnel(ask):
    """The client talks to the proxy itself by TLS."""
    asked = ask(None, below=[modes.HttpProxy])
    chosen = asked(client_hello("proxy.example"))
    assert isinstance(chosen, layers.ClientTLSLayer)
    assert_ours(chosen.child_layer, asked.context, HTTPMode.regular)


def test_already_http(ask):
    asked = ask()
    assert_ours(asked(REQUEST), asked.context, HTTPMode.transparent)


def test_plain_http_to_any_host_is_our_layer_that_leaves_it_alone(ask):
    asked = ask(("example.com", 80))
    assert_ours(asked(REQUEST), asked.context, HTTPMode.transparent)


@pytest.mark.parametrize("tls", [True, False])
def test_reverse_mode(ask, tls):
    mode = "reverse:https://api.openai.com"
    asked = ask(("api.openai.com", 443), mode=mode, below=[modes.ReverseProxy])
    chosen = asked(client_hello("localhost") if tls else REQUEST)
    assert isinstance(chosen, layers.ServerTLSLayer)
    at = chosen
    while not isinstance(at, layers.HttpLayer):
        at = at.child_layer
    assert_ours(at, asked.context, HTTPMode.transparent)
    assert asked.context.layers[1:] == [
        item for item in asked.context.layers[1:] if item is not None
    ]


@pytest.mark.parametrize(
    "begins",
    [b"P", b"PO", b"POST", b"\r\nPOST / HTTP/1.1\r\n", b"{}", b"\x00\x01\x02", b"SSH-2.0-x"],
)
def test_to_a_host_of_the_pool_it_is_http_however_it_begins(ask, begins):
    """As raw bytes a request would go there with the client's own credential."""
    asked = ask()
    assert_ours(asked(begins), asked.context, HTTPMode.transparent)


def test_to_a_host_of_the_pool_it_is_http_when_the_server_speaks_first(ask):
    asked = ask()
    asked.next.events.append(
        events.DataReceived(asked.context.server, b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    )
    assert_ours(asked(REQUEST), asked.context, HTTPMode.transparent)


def test_no_http_to_others_is_left_to_mitmproxy(ask):
    assert type(ask(("example.com", 443))(b"SSH-2.0-x\r\n")) is layers.TCPLayer


@pytest.mark.parametrize(
    "wish",
    [
        {"tcp_hosts": ["openai"]},
        {"ignore_hosts": ["openai"], "show_ignored_hosts": True},
        {"allow_hosts": ["example"], "show_ignored_hosts": True},
    ],
)
def test_hosts_the_user_wants_raw_stay_raw(ask, built_in, wish):
    tctx, addon = built_in
    tctx.configure(addon, **wish)
    assert type(ask()(b"P")) is layers.TCPLayer


def test_udp_is_left_to_mitmproxy(ask):
    asked = ask(("api.openai.com", 443))
    asked.context.client.transport_protocol = "udp"
    assert not isinstance(asked(b"\x00" * 40), PoolHttpLayer)


def test_it_waits_where_mitmproxy_waits(ask, built_in):
    tctx, addon = built_in
    tctx.configure(addon, ignore_hosts=["nothing"])
    asked = ask(("192.0.2.1", 443))
    assert asked(b"GET / HTTP/1.1\r\nHo") is None
