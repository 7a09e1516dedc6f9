"""Who sent a request: what browsers say is believed, what is not understood is a page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core import browser
from account_pool.core.browser import Sender, is_own_host, origin_of, sender_of
from account_pool.core.wrong import Wrong

OWN = "http://localhost:8080"
NAMED = browser.read_origins("https://named.example, http://localhost:3000/,chrome-extension://abc")
PROGRAM, SAME, PAGE = Sender.PROGRAM, Sender.SAME_ORIGIN, Sender.PAGE


@pytest.mark.parametrize(
    ("origins", "sites", "expected"),
    [
        ([], [], PROGRAM),
        ([], ["none"], PROGRAM),
        ([], ["NONE"], PROGRAM),
        ([], ["same-origin"], SAME),
        ([], ["none", "same-origin"], SAME),
        ([], ["same-site"], PAGE),
        ([], ["cross-site"], PAGE),
        ([], ["Cross-Site"], PAGE),
        ([], ["none", "cross-site"], PAGE),
        ([], ["future-site"], PAGE),
        ([], [""], PAGE),
        # A page of one's own, and libraries that send the server's origin.
        ([OWN], ["same-origin"], SAME),
        ([OWN], [], PROGRAM),
        ([OWN.upper()], [], PROGRAM),
        ([OWN], ["cross-site"], PAGE),
        ([OWN, "https://evil.example"], ["same-origin"], PAGE),
        (["http://localhost:8081"], [], PAGE),
        (["https://localhost:8080"], [], PAGE),
        # The web.
        (["https://evil.example"], [], PAGE),
        (["https://evil.example"], ["none"], PAGE),
        (["https://evil.example"], ["same-origin"], PAGE),
        (["HTTPS://EVIL.EXAMPLE"], [], PAGE),
        (["null"], [], PAGE),
        (["NULL"], [], PAGE),
        (["file://"], [], PAGE),
        (["chrome-extension://other"], [], PAGE),
        (["moz-extension://abc"], ["none"], PAGE),
        (["tauri://localhost"], [], PAGE),
        (["https://vscode-webview.example"], [], PAGE),
        # No origins at all.
        ([""], [], PAGE),
        (["evil"], [], PAGE),
        (["https://named.example https://evil.example"], [], PAGE),
        (["https://named.example, https://named.example"], [], PAGE),
        (["https://named.example/path"], [], PAGE),
        (["https://user@named.example"], [], PAGE),
        (["https://named.example:443x"], [], PAGE),
        (["vscode-webview"], [], PAGE),
        # Known tools, and what the owner has named, whatever else is said.
        (["vscode-file://vscode-app"], ["cross-site"], PROGRAM),
        (["vscode-webview://1a2b3c"], ["cross-site"], PROGRAM),
        (["app://-"], ["cross-site"], PROGRAM),
        (["app://"], [], PROGRAM),
        (["https://named.example"], ["cross-site"], PROGRAM),
        (["https://named.example:443"], ["cross-site"], PROGRAM),
        (["https://NAMED.example."], [], PROGRAM),
        (["http://localhost:3000"], ["same-site"], PROGRAM),
        (["chrome-extension://abc"], [], PROGRAM),
        (["http://named.example"], [], PAGE),
        (["https://named.example:8443"], [], PAGE),
        (["https://sub.named.example"], [], PAGE),
        (["https://named.example", "https://evil.example"], [], PAGE),
        (["https://named.example", "null"], [], PAGE),
        (["https://named.example", "app://-"], [], PROGRAM),
    ],
)
def test_who_sent_it(origins, sites, expected):
    assert sender_of(origins, sites, OWN, NAMED) is expected


TEXTS = st.text(max_size=20) | st.sampled_from(["null", OWN, "https://a.b", "none", "same-origin"])


@given(st.lists(TEXTS, max_size=3), st.lists(TEXTS, max_size=3))
def test_a_program_says_nothing_or_what_is_known(origins, sites):
    sender = sender_of(origins, sites, OWN, NAMED)
    if sender is not PAGE:
        for text in origins:
            one = origin_of(text)
            assert one is not None
            assert one == OWN or one in NAMED or one.partition("://")[0] in browser.TOOL_SCHEMES
    if not origins and not sites:
        assert sender is PROGRAM


@given(st.sampled_from(["http", "https"]), st.from_regex(r"[a-z]{1,8}\.example", fullmatch=True),
       st.none() | st.integers(0, 65535))  # fmt: skip
def test_an_origin_has_one_spelling(scheme, host, port):
    text = f"{scheme}://{host}" + ("" if port is None else f":{port}")
    one = origin_of(text)
    assert one == origin_of(text.upper()) == origin_of(f" {text} ")
    assert origin_of(one) == one
    assert browser.read_origins(f"{text}, {text}/") == {one}


@pytest.mark.parametrize(
    ("named", "ours"),
    [
        ([], False),
        (["localhost"], True),
        (["localhost:8080"], True),
        (["LOCALHOST:8080"], True),
        (["localhost.:8080"], True),
        (["localhost:"], True),
        (["127.0.0.1:8080"], True),
        (["127.8.8.8"], True),
        (["[::1]:8080"], True),
        (["[0:0:0:0:0:0:0:1]:8080"], True),
        (["[::ffff:127.0.0.1]"], True),
        (["app.localhost:8080"], True),
        (["192.0.2.5:8080"], True),
        (["[::ffff:192.0.2.5]"], True),
        (["192.0.2.6:8080"], False),
        (["0.0.0.0:8080"], False),
        (["evil.example:8080"], False),
        (["localhost.evil.example:8080"], False),
        (["127.0.0.1.evil.example"], False),
        (["notlocalhost"], False),
        (["evil.example@localhost"], False),
        (["localhost, evil.example"], False),
        (["localhost/evil.example"], False),
        (["::1"], False),
        ([""], False),
        (["llm.lan:1234"], True),
        (["LLM.lan."], True),
        (["gate.lan:8080"], True),
        (["gate.lan:8081"], False),
        (["gate.lan"], False),
        (["localhost", "llm.lan"], True),
        (["localhost", "evil.example"], False),
        (["evil.example", "localhost"], False),
    ],
)
def test_what_may_stand_for_us(named, ours):
    allowed = browser.read_hosts("llm.lan, gate.lan:8080")
    assert is_own_host(named, {"192.0.2.5"}, allowed) is ours


@given(st.text(max_size=30))
def test_a_name_that_was_not_given_is_somebody_elses(text):
    host = browser.host_of(text)
    expected = host is not None and browser.is_loopback(host[0])
    assert is_own_host([text], (), ()) is expected


@pytest.mark.parametrize("text", ["", " ", ",", " , ,"])
def test_nothing_is_named(text):
    assert browser.read_origins(text) == browser.read_hosts(text) == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "null",
        "evil",
        "https://*.example.com",
        "https://a.example/x",
        "https://",
        "//a.example",
    ],
)
def test_what_is_no_origin_is_not_taken(text):
    with pytest.raises(Wrong):
        browser.read_origins(f"https://a.example,{text}")


@pytest.mark.parametrize("text", ["*", "*.lan", "http://llm.lan", "llm.lan/x", "a b", "[::1"])
def test_what_is_no_host_is_not_taken(text):
    with pytest.raises(Wrong):
        browser.read_hosts(f"a.lan,{text}")
