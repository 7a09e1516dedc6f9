"""Lines that mitmproxy's parsers cannot read, and what is said of them: nothing that quotes."""

from __future__ import annotations

import pytest
from hyperframe.frame import GoAwayFrame, HeadersFrame

from tests.proxy.helpers import CHUNKED, CLIENT_KEY, OK, head1, post1, secret

BEARER = f"Bearer {CLIENT_KEY}"
ECHO = f"Bearer {secret('one')}".encode()


def said(rig) -> str:
    """Return everything the log and the flows say."""
    errors = [flow.error.msg for flow in rig.flows if flow.error]
    return "\n".join([*rig.logs, *errors])


@pytest.mark.parametrize(
    "data",
    [
        f"POST / HTTP/1.1\r\nAuthorization: {BEARER}\r\n",
        f"POST / HTTP/1.1\r\nAuthorization {BEARER}\r\n\r\n",
        f"POST /?key={CLIENT_KEY} HTTP/1.1 x\r\n\r\n",
        f"POST / {BEARER}\r\n\r\n",
        f"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{BEARER}\r\n",
    ],
)
def test_the_clients_over_http1(rig_of, data):
    rig = rig_of()
    rig.send(data.encode())
    rig.leave()
    assert "[not shown]" in said(rig)
    assert CLIENT_KEY not in said(rig)


@pytest.mark.parametrize("held", [False, True])
def test_the_clients_over_http2(rig_of, held):
    """The error ends every stream of the connection, also one that waits for a hook."""
    rig = rig_of(client2=True, server2=True)
    if held:
        rig.held.add("request")
    rig.ask()
    block = rig.reader.h2.encoder.encode([(":method", "POST"), ("authorization", f" {BEARER}")])
    rig.send(HeadersFrame(3, data=block, flags=["END_HEADERS"]).serialize())
    rig.held.clear()
    if held:
        rig.complete()
    assert rig.logs
    assert rig.flows[0].error is not None
    assert said(rig).count("[not shown]") == 2
    assert CLIENT_KEY not in said(rig)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 401 Unauthorized\r\nx-echo: " + ECHO + b"\r\n",
        b"HTTP/1.1 401 Unauthorized\r\nx-echo " + ECHO + b"\r\n\r\n",
        b"HTTP/1.1 " + ECHO + b"\r\n\r\n",
        b"HTTP/1.1 401 Unauthorized\r\ncontent-length: " + ECHO + b"\r\n\r\n",
        OK + b"HTTP/1.1 400 Bad\r\nx-echo: " + ECHO + b"\r\n\r\n",
        head1(200, [CHUNKED]) + ECHO + b"\r\n",
        head1(200, [CHUNKED]) + b"2\r\n{}\r\n0\r\nx-echo " + ECHO + b"\r\n\r\n",
    ],
)
def test_the_accounts_in_an_answer(rig_of, data):
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(data)
    rig.server.close()
    assert secret("one") not in said(rig)
    assert secret("one").encode() not in rig.received


def test_the_accounts_in_a_frame(rig_of):
    rig = rig_of("one", client2=True, server2=True)
    rig.ask()
    rig.server.head(1, 200, ["content-type: text/event-stream"])
    rig.server.data(1, b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n')
    rig.server.send(GoAwayFrame(0, last_stream_id=1, additional_data=ECHO).serialize())
    rig.server.close()
    assert "peer closed connection" in said(rig)
    assert secret("one") not in said(rig)


def test_other_hosts_are_told_of_in_full(rig_of):
    rig = rig_of(address=("www.example.com", 443))
    rig.send(b"GET / HTTP/1.1\r\nno colon\r\n\r\n")
    assert "no colon" in said(rig)
