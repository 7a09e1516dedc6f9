"""Requests of web pages, event by event: they get no account, and a preflight no permission."""

from __future__ import annotations

import pytest
from mitmproxy.proxy.mode_specs import ProxyMode

from account_pool.core.browser import Allowed, read_hosts, read_origins
from tests.proxy.helpers import CLIENT_KEY, JSON, OK, http1, post1, secret

ONE = secret("one")
EVIL = "Origin: https://evil.example"
CROSS = "Sec-Fetch-Site: cross-site"
PREFLIGHT = [
    EVIL, CROSS, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x",
]  # fmt: skip
LENIENT = ["Access-Control-Allow-Origin: *"]
OURS = "127.0.0.1:8080"


@pytest.fixture
def reverse(rig_of):
    """Make rigs whose clients take the proxy for the provider."""

    def build(*, origins="", hosts="", mode="reverse:https://api.openai.com", **how):
        allowed = Allowed(read_origins(origins), read_hosts(hosts))
        rig = rig_of(allowed=allowed, **how)
        rig.client.proxy_mode = ProxyMode.parse(mode)
        rig.client.tls = False
        return rig

    return build


def bare(path="/v1/chat/completions", headers=(), *, host=OURS, method="POST", version="1.1"):
    """A request without a credential, as a page sends it to a port of this machine."""
    lines = [f"{method} {path} HTTP/{version}", *([f"Host: {host}"] if host else []), *headers]
    body = b"{}" if method == "POST" else b""
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


def refused(rig, status: int) -> None:
    [answer] = rig.answers
    assert (answer.status, answer.complete) == (status, True)
    assert b'"error"' in answer.body
    assert not [name for name, _ in answer.headers if name.lower().startswith("access-control")]
    assert (rig.opened, rig.keys) == ([], [])


def served(rig) -> None:
    assert rig.keys == [ONE]
    rig.server.send(OK)
    assert rig.answers[-1].status == 200


# -- reverse mode


@pytest.mark.parametrize(
    "headers",
    [
        [EVIL],
        [EVIL, CROSS],
        [CROSS],
        ["Sec-Fetch-Site: same-site"],
        ["Sec-Fetch-Site: SOMETHING"],
        ["Origin: null"],
        ["Origin: file://"],
        ["Origin: chrome-extension://abc"],
        ["Origin: tauri://localhost"],
        ["Origin: http://127.0.0.1:8080", EVIL],
        ["Origin: http://127.0.0.1:8081"],
        ["ORIGIN: HTTPS://EVIL.EXAMPLE"],
        [EVIL, "content-type: text/plain"],
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/assistants", "/"])
def test_a_page_gets_nothing_in_reverse_mode(reverse, headers, method, path):
    rig = reverse()
    rig.send(bare(path, headers, method=method))
    refused(rig, 403)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Referer: https://evil.example/"],
        ["Sec-Fetch-Site: none"],
        ["Sec-Fetch-Site: same-origin"],
        ["Origin: http://127.0.0.1:8080", "Sec-Fetch-Site: same-origin"],
        ["Origin: vscode-file://vscode-app", CROSS],
        ["Origin: vscode-webview://1a2b", CROSS],
        ["Origin: app://-", CROSS],
        ["Origin: https://named.example", CROSS],
    ],
)
def test_others_are_served_in_reverse_mode(reverse, headers):
    rig = reverse(origins="https://named.example")
    rig.send(bare(headers=headers))
    served(rig)


@pytest.mark.parametrize(
    "host",
    ["evil.example:8080", "localhost.evil.example", "192.0.2.1:8080", "", None, "evil@localhost"],
)
@pytest.mark.parametrize("headers", [[], ["Sec-Fetch-Site: same-origin"]])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/assistants"])
def test_a_rebound_name_gets_nothing(reverse, host, headers, path):
    rig = reverse()
    rig.send(bare(path, headers, host=host, version="1.0" if host is None else "1.1"))
    if rig.answers[0].status == 400:
        rig.flows.clear()  # mitmproxy refuses what it cannot read
        rig.layer.streams.clear()
    else:
        refused(rig, 421)
    assert rig.opened == []


@pytest.mark.parametrize(
    "host",
    [
        OURS, "localhost", "LOCALHOST:8080", "localhost.:8080", "[::1]:8080", "127.0.0.1:9",
        "llm.lan:1", "api.openai.com",
    ],
)  # fmt: skip
def test_names_of_ours_are_served(reverse, host):
    rig = reverse(hosts="llm.lan")
    rig.send(bare(host=host))
    served(rig)


def test_an_absolute_address_is_a_name_too(reverse):
    rig = reverse()
    rig.send(bare("http://evil.example:8080/v1/chat/completions"))
    refused(rig, 421)


@pytest.mark.parametrize("authority", ["evil.example", "localhost:8080"])
@pytest.mark.parametrize("host", ["evil.example", "localhost:8080", None])
def test_each_name_counts_over_http2(reverse, authority, host):
    rig = reverse(client2=True)
    rig.client.tls = True
    rig.ask(authority=authority, **({"host": host} if host else {}))
    if "evil.example" in (authority, host):
        assert rig.opened == []
    else:
        assert rig.keys == [ONE]


@pytest.mark.parametrize("headers", [[EVIL], [EVIL, CROSS]])
def test_a_websocket_of_a_page(reverse, headers):
    upgrade = [
        "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]  # fmt: skip
    rig = reverse()
    rig.send(bare("/v1/realtime?model=x", [*upgrade, *headers], method="GET"))
    refused(rig, 403)


def test_an_origin_is_told_once(reverse, caplog):
    rig = reverse()
    for _ in range(3):
        rig.send(bare(headers=[EVIL]))
    rig.send(bare(headers=["Origin: https://sk-fake-0123456789.example"]))
    assert caplog.text.count("web page (https://evil.example) was given no account (403)") == 1
    assert "sk-fake-0123456789" not in caplog.text
    assert b"pool_allow_origins" in rig.answers[0].body


# -- a browser's tunnel


@pytest.mark.parametrize(
    "headers",
    [[EVIL], [CROSS], [EVIL, CROSS], ["Sec-Fetch-Site: same-origin"], ["Origin: null"]],
)
def test_in_a_tunnel_a_page_goes_its_own_way(rig_of, headers, caplog):
    rig = rig_of()
    rig.send(post1(headers=headers))
    assert rig.keys == [CLIENT_KEY]
    answer = http1(429, b"{}", [JSON, *LENIENT])
    rig.server.send(answer)
    assert rig.received == answer
    assert rig.cooling() == set()
    assert CLIENT_KEY not in str(rig.flows[0].get_state())


@pytest.mark.parametrize("headers", [[EVIL], [CROSS], ["Sec-Fetch-Site: same-origin"]])
def test_in_a_tunnel_a_page_without_a_credential_gets_none(rig_of, headers):
    rig = rig_of()
    rig.send(bare(headers=headers, host="api.openai.com"))
    refused(rig, 403)


def test_in_a_tunnel_a_preflight_is_the_providers(rig_of):
    rig = rig_of()
    rig.send(bare(headers=PREFLIGHT, host="api.openai.com", method="OPTIONS"))
    assert rig.keys == [""]
    answer = http1(204, b"", LENIENT)
    rig.server.send(answer)
    assert rig.received == answer


def test_libraries_that_send_the_origin_of_the_server_are_no_pages(rig_of):
    rig = rig_of()
    rig.send(post1(headers=["Origin: https://api.openai.com"]))
    served(rig)


def test_named_origins_are_served_in_a_tunnel(rig_of):
    rig = rig_of(allowed=Allowed(read_origins("https://evil.example")))
    rig.send(post1(headers=[EVIL, CROSS]))
    served(rig)
