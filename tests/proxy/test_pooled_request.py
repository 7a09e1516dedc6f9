"""Where a request really goes."""

from __future__ import annotations

import base64

import pytest
from mitmproxy.net.server_spec import ServerSpec
from mitmproxy.proxy.context import Context

from account_pool.core.browser import is_loopback
from account_pool.proxy import pooled_request
from account_pool.proxy.pooled_request import Destination
from tests.proxy.helpers import client_connection, options_of


def context(address, *, tls=True, server_sni=None, client_sni=None) -> Context:
    made = Context(client_connection(), options_of())
    made.server.address, made.server.tls, made.server.sni = address, tls, server_sni
    made.client.sni = client_sni
    return made


@pytest.mark.parametrize(
    ("address", "server_sni", "client_sni", "name"),
    [
        (("API.OpenAI.com.", 443), None, None, "api.openai.com"),
        (("api.openai.com", 443), None, "api.openai.com", "api.openai.com"),
        # The certificate is verified against the server name, whatever was connected to.
        (("api.openai.com", 443), None, "evil.example", "evil.example"),
        (("evil.example", 443), None, "api.openai.com", "api.openai.com"),
        (("192.0.2.1", 443), None, "api.openai.com", "api.openai.com"),
        (("192.0.2.1", 443), None, None, "192.0.2.1"),
        (("2001:db8::1", 443), "api.openai.com", None, "api.openai.com"),
        # Reverse mode: what mitmproxy was told comes before what the client says.
        (("api.openai.com", 443), "api.openai.com", "localhost", "api.openai.com"),
    ],
)
def test_of_a_tls_connection(address, server_sni, client_sni, name):
    made = context(address, server_sni=server_sni, client_sni=client_sni)
    assert pooled_request.of_connection(made) == Destination(name, address[1], True)


def test_of_a_plain_connection_the_server_name_of_an_outer_one_is_nothing():
    """A client that talks to the proxy itself by TLS."""
    made = context(("192.0.2.1", 80), tls=False, client_sni="api.openai.com")
    assert pooled_request.of_connection(made) == Destination("192.0.2.1", 80, False)


def test_of_a_connection_the_name_asked_for_now():
    made = context(("192.0.2.1", 443), tls=False)
    assert pooled_request.of_connection(made, "api.openai.com").name == "api.openai.com"


def test_behind_another_proxy():
    made = context(("127.0.0.1", 80), tls=False)
    assert pooled_request.of_connection(made).private
    made.server.via = ServerSpec(("http", ("proxy.example", 3128)))
    found = pooled_request.of_connection(made)
    assert found == Destination("127.0.0.1", 80, False, via=True)
    assert not found.local
    assert not found.private
    assert not pooled_request.of_request("localhost", 80, "http", via=True).private
    assert pooled_request.of_request("localhost", 443, "https", via=True).private


def test_of_no_connection():
    assert pooled_request.of_connection(context(None)) is None


def test_of_a_request():
    assert pooled_request.of_request("API.openai.com.", 443, "https") == Destination(
        "api.openai.com", 443, True
    )
    assert not pooled_request.of_request("api.openai.com", 80, "http").private


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.1", False),
        ("192.0.2.1", False),
        ("0.0.0.0", False),
        ("localhost.evil.example", False),
        ("evillocalhost", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("api.openai.com", False),
    ],
)
def test_is_loopback(host, expected):
    assert is_loopback(host) is expected
    assert Destination(host, 80, False).private is expected
    assert Destination(host, 443, True).private


@pytest.mark.parametrize(
    ("name", "named"), [("a.example", True), ("192.0.2.1", False), ("::1", False)]
)
def test_named(name, named):
    assert Destination(name, 443, True).named is named


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("openai/work:x", "openai/work"),
        ("openai/work", "openai/work"),
        ("openai%2Fwork:", "openai/work"),
        ("openai/work,gemini/me:x", "openai/work,gemini/me"),
        ("somebody:secret", None),
        ("a\nb/c:x", None),
        ("", None),
    ],
)
def test_the_accounts_that_a_user_name_names(user, expected):
    header = "Basic " + base64.b64encode(user.encode()).decode()
    assert pooled_request.user_of(header) == expected


@pytest.mark.parametrize("header", ["", "Basic", "Basic ***", "Basic /w==", "Bearer b3BlbmFpL3g="])
def test_other_authorizations_name_no_account(header):
    assert pooled_request.user_of(header) is None
