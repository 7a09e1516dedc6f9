"""The mask on what is shown, and the copy that is sent."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.test import tflow, tutils

from account_pool.core.credential import Credential, Secret
from account_pool.providers import anthropic, copilot, gemini, openai
from account_pool.providers.base import Origin, Swap
from account_pool.proxy import credential_swap
from tests.proxy.helpers import account

PROVIDERS = [openai.PROVIDER, anthropic.PROVIDER, gemini.PROVIDER, copilot.PROVIDER]
KINDS = {"copilot": "copilot"}
ACCOUNT_KEY = "sk-ACCOUNT-0123456789"

token = st.text("abcdefXYZ0123456789-_.", min_size=12, max_size=30).map(lambda t: f"CLIENT{t}")
scheme = st.sampled_from(["", "Bearer ", "bearer ", "token ", "Basic ", "Secretscheme "])


def cased(name: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from([name, name.title(), name.upper()])


@st.composite
def requests(draw, provider):
    """A request with any number of credentials anywhere among other headers."""
    secrets: list[str] = []
    fields: list[tuple[bytes, bytes]] = []
    for _ in range(draw(st.integers(0, 8))):
        if draw(st.booleans()):
            name = draw(cased(draw(st.sampled_from(sorted(provider.credential_headers)))))
            secret = draw(token)
            secrets.append(secret)
            fields.append((name, (draw(scheme) + secret).encode()))
        else:
            name = draw(st.sampled_from([b"X-A", b"accept", b"User-Agent", b"x-a", b"Cookie"]))
            fields.append((name, draw(st.binary(max_size=8))))
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        if provider.credential_query and draw(st.booleans()):
            secret = draw(token)
            secrets.append(secret)
            parts.append(
                f"{draw(st.sampled_from(['key', '%6bey', 'k%65y', '%6B%65%79']))}={secret}"
            )
        else:
            parts.append(draw(st.sampled_from(["alt=sse", "a", "keys=1", "a=key", "", "%zz=1"])))
    path = "/v1/x" + ("?" + "&".join(parts) if parts else "")
    request = tutils.treq(path=path.encode(), headers=http.Headers(fields))
    return request, secrets


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: p.name)
@given(st.data())
def test_nothing_of_the_client_is_left_on_the_flow_and_all_of_it_comes_back(provider, data):
    request, secrets = data.draw(requests(provider))
    before = (request.headers.fields, request.data.path)
    masked = credential_swap.mask(request, provider, provider.name)
    for name in ("", "openai/work", "openai/other"):
        if name:
            credential_swap.rename(request, masked, name)
        shown = str(tflow.tflow(req=request).get_state())
        assert not [s for s in secrets if s in shown]
        assert not [s for s in secrets if s in repr(masked)]
        assert [n for n, _ in request.headers.fields] == [n for n, _ in before[0]]
    back = credential_swap.restored(request, masked)
    assert (back.headers.fields, back.data.path) == before
    assert back.data.content == request.data.content


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: p.name)
@given(st.data())
def test_what_is_sent_has_exactly_one_credential(provider, data):
    request, secrets = data.draw(requests(provider))
    others = [
        (n, v)
        for n, v in request.headers.fields
        if n.lower() not in provider.credential_headers | credential_swap.ALWAYS_MASKED
    ]
    masked = credential_swap.mask(request, provider, provider.name)
    credential_swap.rename(request, masked, f"{provider.name}/work")
    kind = KINDS.get(provider.name, "key")
    swap = provider.swap(
        account("work", provider.name), Credential(kind=kind, secret=Secret(ACCOUNT_KEY))
    )
    sent = credential_swap.outgoing(request, swap, masked)
    raw = b"\n".join(n + b": " + v for n, v in sent.headers.fields) + b"\n" + sent.data.path
    assert raw.count(ACCOUNT_KEY.encode()) == 1
    assert not [s for s in secrets if s.encode() in raw]
    assert credential_swap.PLACEHOLDER.encode() not in raw
    # Everything else is as it was, in its order.
    put = {name for name, _ in swap.headers}
    assert [(n, v) for n, v in sent.headers.fields if n.lower() not in put] == others
    # And the flow has seen nothing of it.
    assert ACCOUNT_KEY not in str(tflow.tflow(req=request).get_state())


def request_of(*fields: tuple[bytes, bytes], path: bytes = b"/v1/x") -> http.Request:
    return tutils.treq(path=path, headers=http.Headers(fields))


SWAP = Swap(
    headers=((b"authorization", b"Bearer new"),),
    drop=frozenset({b"authorization", b"openai-organization"}),
)


def test_the_account_stands_where_the_client_stood():
    request = request_of((b"A", b"1"), (b"AUTHORIZATION", b"Bearer x"), (b"B", b"2"))
    masked = credential_swap.mask(request, openai.PROVIDER, "openai")
    sent = credential_swap.outgoing(request, SWAP, masked)
    assert sent.headers.fields == ((b"A", b"1"), (b"AUTHORIZATION", b"Bearer new"), (b"B", b"2"))


def test_a_second_credential_of_the_client_goes():
    request = request_of((b"Authorization", b"Bearer x"), (b"authorization", b"Bearer y"))
    masked = credential_swap.mask(request, openai.PROVIDER, "openai")
    assert credential_swap.outgoing(request, SWAP, masked).headers.fields == (
        (b"Authorization", b"Bearer new"),
    )


def test_a_client_without_a_credential():
    request = request_of((b"A", b"1"))
    masked = credential_swap.mask(request, openai.PROVIDER, "openai")
    credential_swap.rename(request, masked, "openai/work")
    sent = credential_swap.outgoing(request, SWAP, masked)
    assert sent.headers.fields == ((b"A", b"1"), (b"authorization", b"Bearer new"))


@pytest.mark.parametrize(
    "change",
    [
        lambda headers: headers.insert(0, "X-First", "1"),
        lambda headers: headers.__delitem__("A"),
        lambda headers: headers.add("Authorization", "Bearer another"),
        lambda headers: headers.__delitem__("Authorization"),
    ],
    ids=["inserted", "removed", "added", "taken away"],
)
def test_headers_that_another_addon_moved(change):
    """Places noted before must not be used after: the credential would go elsewhere."""
    request = request_of((b"A", b"1"), (b"Authorization", b"Bearer x"), (b"B", b"2"))
    masked = credential_swap.mask(request, openai.PROVIDER, "openai")
    change(request.headers)
    for name in ("openai/one", "openai/two"):
        credential_swap.rename(request, masked, name)
        others = [f for f in request.headers.fields if f[0].lower() != b"authorization"]
        sent = credential_swap.outgoing(request, SWAP, masked)
        assert [f for f in sent.headers.fields if f[0].lower() != b"authorization"] == others
        assert sent.headers.get_all("authorization") == ["Bearer new"]
        credential_swap.restored(request, masked)


def test_headers_that_are_moved_between_two_attempts():
    request = request_of((b"A", b"1"), (b"Authorization", b"Bearer x"), (b"B", b"2"))
    masked = credential_swap.mask(request, openai.PROVIDER, "openai")
    credential_swap.rename(request, masked, "openai/one")
    request.headers.insert(0, "X-First", "1")
    credential_swap.rename(request, masked, "openai/two")
    sent = credential_swap.outgoing(request, SWAP, masked)
    assert sent.headers["authorization"] == "Bearer new"
    assert request.headers["authorization"] == "Bearer pool:openai/two"
    assert sent.headers["A"] == "1"


def test_a_swap_with_more_headers_than_the_client_may_send():
    swap = Swap(headers=((b"x-new", b"1"), (b"authorization", b"Bearer new")), drop=SWAP.drop)
    request = request_of((b"X-New", b"old"), (b"Authorization", b"Bearer x"))
    masked = credential_swap.mask(request, openai.PROVIDER, "openai")
    sent = credential_swap.outgoing(request, swap, masked)
    assert sent.headers.fields == ((b"X-New", b"1"), (b"Authorization", b"Bearer new"))


@pytest.mark.parametrize(
    ("path", "shown", "sent"),
    [
        (b"/x?key=S", b"/x?key=pool:gemini", b"/x"),
        (b"/x?alt=sse&key=S", b"/x?alt=sse&key=pool:gemini", b"/x?alt=sse"),
        (b"/x?key=S&alt=sse", b"/x?key=pool:gemini&alt=sse", b"/x?alt=sse"),
        (b"/x?%6Bey=S&key=T", b"/x?%6Bey=pool:gemini&key=pool:gemini", b"/x"),
        (b"/x?keys=S&akey=T", b"/x?keys=S&akey=T", b"/x?keys=S&akey=T"),
        (b"/x?a=key", b"/x?a=key", b"/x?a=key"),
        (b"/x?key", b"/x", b"/x"),
        (b"/key=S", b"/key=S", b"/key=S"),
        (b"/x?", b"/x?", None),
    ],
)
def test_key_of_the_query(path, shown, sent):
    request = request_of(path=path)
    masked = credential_swap.mask(request, gemini.PROVIDER, "gemini")
    assert request.data.path == shown
    swap = Swap(headers=((b"x-goog-api-key", b"new"),), drop_query=("key",))
    if sent is not None:
        assert credential_swap.outgoing(request, swap, masked).data.path == sent
    assert credential_swap.restored(request, masked).data.path == path


def test_what_another_provider_of_the_host_would_take():
    """Its key is not shown, and neither the key nor what stands for it is sent with ours."""
    places = credential_swap.Places.of([openai.PROVIDER, gemini.PROVIDER])
    fields = ((b"A", b"1"), (b"Authorization", b"Bearer x"), (b"x-goog-api-key", b"y"))
    request = request_of(*fields, path=b"/x?key=S&alt=sse")
    masked = credential_swap.mask(request, places, "openai")
    credential_swap.rename(request, masked, "openai/work")
    assert request.headers["x-goog-api-key"] == "pool:openai/work"
    assert request.data.path == b"/x?key=pool:openai/work&alt=sse"
    sent = credential_swap.outgoing(request, SWAP, masked)
    assert sent.headers.fields == ((b"A", b"1"), (b"Authorization", b"Bearer new"))
    assert sent.data.path == b"/x?alt=sse"
    back = credential_swap.restored(request, masked)
    assert (back.headers.fields, back.data.path) == (fields, b"/x?key=S&alt=sse")


def test_a_key_that_is_percent_encoded_itself():
    value = quote("s/ecret+key")
    request = request_of(path=f"/x?key={value}".encode())
    credential_swap.mask(request, gemini.PROVIDER, "gemini")
    assert value.encode() not in request.data.path


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"Bearer s", b"Bearer pool:a"),
        (b"token s", b"token pool:a"),
        (b"s", b"pool:a"),
        (b"", b"pool:a"),
        (b"mysecret s", b"pool:a"),
        (b" Bearer s", b"pool:a"),
    ],
)
def test_placeholders_keep_a_known_scheme_only(value, shown):
    request = request_of((b"authorization", value))
    credential_swap.mask(request, openai.PROVIDER, "a")
    assert request.headers.fields[0][1] == shown


def test_redirected():
    request = request_of((b"Host", b"a.example"), (b"Authorization", b"Bearer x"))
    request.authority = "a.example"
    masked = credential_swap.mask(request, copilot.PROVIDER, "copilot")
    swap = Swap(headers=SWAP.headers, origin=Origin("b.example", 8443))
    sent = credential_swap.outgoing(request, swap, masked)
    assert (sent.host, sent.port, sent.scheme) == ("b.example", 8443, "https")
    assert sent.headers["host"] == sent.authority == "b.example:8443"
    assert request.headers["host"] == request.authority == "a.example"


def test_the_copy_shares_the_body_and_nothing_that_can_change():
    request = request_of((b"Authorization", b"Bearer x"))
    masked = credential_swap.mask(request, openai.PROVIDER, "openai")
    sent = credential_swap.outgoing(request, SWAP, masked)
    assert sent.raw_content is request.raw_content
    sent.headers["x"] = "1"
    sent.path = "/other"
    assert "x" not in request.headers
    assert request.path == "/v1/x"


def test_repr_of_a_mask_and_of_a_swap_show_no_value():
    request = request_of((b"Authorization", b"Bearer hidden-1"), path=b"/x?key=hidden-2")
    masked = credential_swap.mask(request, gemini.PROVIDER, "gemini")
    assert "hidden" not in repr(masked) + repr(SWAP)


def test_repr_of_what_is_sent_shows_no_credential():
    request = request_of((b"Authorization", b"Bearer hidden-1"), path=b"/x?key=hidden-2")
    sent = credential_swap.Outgoing(request, ("api.example.com", 443), True)
    assert "hidden" not in repr(sent)


PROTOCOLS = b"realtime, openai-insecure-api-key.sk-one,openai-insecure-api-key.sk-two, beta-v1"


def test_a_key_among_the_subprotocols():
    """How a browser gives its key to a WebSocket."""
    request = request_of(
        (b"Sec-WebSocket-Protocol", PROTOCOLS),
        (b"sec-websocket-protocol", b"openai-insecure-api-key.sk-three"),
        (b"Sec-WebSocket-Protocol", b"plain"),
    )
    before = request.headers.fields
    masked = credential_swap.mask(request, openai.PROVIDER, "openai")
    assert "sk-" not in str(tflow.tflow(req=request).get_state())
    assert request.headers.fields[0][1].startswith(b"realtime, openai-insecure-api-key.pool:")
    assert credential_swap.restored(request, masked).headers.fields == before
    # An account's credential goes in its own header, and no placeholder goes anywhere.
    credential_swap.rename(request, masked, "openai/work")
    assert credential_swap.outgoing(request, SWAP, masked).headers.fields == (
        (b"Sec-WebSocket-Protocol", b"realtime, beta-v1"),
        (b"Sec-WebSocket-Protocol", b"plain"),
        (b"authorization", b"Bearer new"),
    )


def test_cookies_are_dropped_with_an_account_and_come_back_without():
    request = request_of((b"Cookie", b"a=1"), (b"X", b"1"), (b"cookie", b"b=2"))
    before = request.headers.fields
    masked = credential_swap.mask(request, openai.PROVIDER, "openai")
    assert [v for _, v in request.headers.fields] == [b"pool:openai", b"1", b"pool:openai"]
    sent = credential_swap.outgoing(request, SWAP, masked)
    assert sent.headers.fields == ((b"X", b"1"), (b"authorization", b"Bearer new"))
    assert credential_swap.restored(request, masked).headers.fields == before


def test_what_another_addon_set_is_not_taken_back():
    request = request_of((b"Authorization", b"Bearer x"), (b"OpenAI-Organization", b"org"))
    masked = credential_swap.mask(request, openai.PROVIDER, "openai")
    request.headers["Authorization"] = "Bearer of-the-addon"
    assert credential_swap.restored(request, masked).headers.fields == (
        (b"Authorization", b"Bearer of-the-addon"),
        (b"OpenAI-Organization", b"org"),
    )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/v1/x", b"/v1/x?key=a%2Fb%2B1"),
        (b"/v1/x?key=of-the-client", b"/v1/x?key=a%2Fb%2B1"),
        (b"/v1/x?a=1&k%65y=of-the-client", b"/v1/x?a=1&key=a%2Fb%2B1"),
    ],
)
def test_a_credential_in_the_query_takes_the_place_of_the_clients(path, expected):
    request = tutils.treq(path=path)
    masked = credential_swap.mask(request, gemini.PROVIDER, "gemini")
    swap = Swap(headers=(), drop_query=("key",), query=(("key", "a/b+1"),))
    assert credential_swap.outgoing(request, swap, masked).data.path == expected
    assert b"of-the-client" not in request.data.path
