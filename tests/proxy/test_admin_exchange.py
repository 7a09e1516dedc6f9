"""Requests to the proxy itself: recognised, read, answered, and never a flow."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
from mitmproxy.connection import Server
from mitmproxy.proxy import server_hooks
from mitmproxy.proxy.layers.http import HTTPMode

from account_pool import supervision
from account_pool.admin.http import ADMIN_HOST, MAX_BODY_BYTES, AdminRequest, AdminResponse
from account_pool.core.credential import Secret
from account_pool.proxy import admin_exchange
from account_pool.proxy.admin_exchange import guard_of, is_for_us, refuse_connection
from account_pool.proxy.events import Chunks
from account_pool.proxy.pooled_request import of_request
from tests.patience import PATIENCE_S
from tests.proxy.helpers import FakeClock, Rig, client_connection, service_of

OWN = "127.0.0.1:8080"
SECRET = "sk-fake-new-000"
DONE = AdminResponse(200, ((b"content-type", b"text/plain"), (b"content-length", b"4")), b"done")


def asked(target: str = "/health", body: bytes = b"", *lines: str, method: str = "GET") -> bytes:
    head = [f"{method} {target} HTTP/1.1", *(lines or (f"Host: {OWN}",))]
    if body:
        head.append(f"content-length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


@pytest.fixture
def regular(rig_of):
    """A rig of a proxy's own port whose pauses are answered with DONE."""

    def build(**settings):
        settings.setdefault("mode", HTTPMode.regular)
        rig = rig_of(**settings)
        rig.on["pool_pause"] = lambda pause: setattr(pause, "reply", DONE)
        return rig

    return build


def visits(rig) -> list[AdminRequest]:
    return [pause.step for pause in rig.pauses if isinstance(pause.step, AdminRequest)]


@pytest.mark.parametrize(
    ("target", "host", "ours"),
    [
        ("/health", OWN, True),
        ("/health", "localhost:8080", True),
        ("/health", "[::1]:8080", True),
        (f"http://{OWN}/health", OWN, True),
        ("http://localhost:8080/health", "localhost:8080", True),
        ("http://pool.mitm.it/health", "pool.mitm.it", True),
        ("http://POOL.mitm.it./health", "pool.mitm.it", True),
        # what we are asked is told by the address, never by the Host header alone
        (f"http://{OWN}/health", "other.example", True),
        ("http://other.example/health", OWN, False),
        ("http://other.example/health", "pool.mitm.it", False),
        ("http://other.example:8080/health", "other.example:8080", False),
        ("/health", "other.example", False),
        # a page that has bound its name to this machine: ours to refuse
        ("/health", "evil.example:8080", True),
        ("http://127.0.0.1:8081/health", "127.0.0.1:8081", False),
        ("http://127.0.0.1/health", "127.0.0.1", False),
    ],
)
def test_which_requests_are_for_us(regular, target, host, ours):
    rig = regular()
    rig.send(asked(target, b"", f"Host: {host}"))
    assert bool(visits(rig)) is ours
    assert bool(rig.servers) is not ours
    if ours:
        assert rig.answers[0].body == b"done"
        assert rig.hooks == ["pool_pause"]
        assert visits(rig)[0].target == "/health"


@pytest.mark.parametrize(
    ("url", "peer", "direct", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", False, True),
        ("0x7f.1", "127.0.0.1", False, False),
        ("evil.example", "127.0.0.1", True, True),
        ("evil.example", "127.0.0.1", False, False),
        # from another machine it may be meant for a server that we forward to
        ("evil.example", "10.0.0.9", True, False),
        (ADMIN_HOST, "10.0.0.9", False, True),
    ],
)
def test_is_for_us(url, peer, direct, expected):
    target = of_request(url, 8080, "http")
    assert is_for_us(target, client_connection(peer), direct=direct) is expected


def test_tls_to_our_port_is_not_for_us():
    target = of_request("127.0.0.1", 8080, "https")
    assert not is_for_us(target, client_connection(), direct=False)


def test_what_comes_through_ourselves_comes_from_nobody(regular):
    rig = regular()
    rig.service.recognizer.own_ends.add((rig.client.peername[:2], rig.client.sockname[:2]))
    rig.send(asked())
    assert visits(rig)[0].peer == ""


def test_an_account_is_not_had_that_way_either():
    service, client = service_of("one"), client_connection()
    assert service.recognizer.is_local(client)
    service.recognizer.own_ends.add((client.peername[:2], client.sockname[:2]))
    assert not service.recognizer.is_local(client)
    assert not service.recognizer.is_local(client_connection("10.0.0.9"))


def test_a_client_may_come_from_a_port_that_the_proxy_uses_to_a_server():
    """Two connections of one machine may, to different ports: a model served here, say."""
    service, client = service_of("one"), client_connection()
    service.recognizer.own_ends.add((client.peername[:2], ("127.0.0.1", 11434)))
    assert service.recognizer.is_local(client)


def test_secrets_come_in_and_are_on_no_flow(regular):
    rig = regular()
    body = b'{"token": "%s"}' % SECRET.encode()
    rig.send(asked("/account-pool/add", body, f"Host: {OWN}", f"Authorization: Bearer {SECRET}"))
    visit = visits(rig)[0]
    assert bytes(visit.body) == body
    assert visit.values(b"authorization") == [f"Bearer {SECRET}"]
    assert (visit.peer, visit.address) == ("127.0.0.1", ("127.0.0.1", 8080))
    assert rig.flows == []
    assert SECRET not in str(rig.logs)


def test_the_connection_is_kept(regular):
    rig = regular()
    rig.send(asked() + asked("/metrics"))
    assert [visit.target for visit in visits(rig)] == ["/health", "/metrics"]
    assert [answer.status for answer in rig.answers] == [200, 200]
    assert not rig.client_closed


def test_head_has_no_body(regular):
    rig = regular()
    rig.send(asked(method="HEAD"))
    assert b"content-length: 4" in rig.received.lower()
    assert not rig.received.endswith(b"done")


def test_a_long_body_is_not_kept(regular):
    rig = regular()
    rig.send(asked("/account-pool/add", b"x" * (3 * MAX_BODY_BYTES), method="POST"))
    assert visits(rig)[0].too_long
    assert not visits(rig)[0].body


def test_a_client_that_asks_whether_to_go_on(regular):
    rig = regular()
    head = asked("/x", b"", f"Host: {OWN}", "Expect: 100-continue", "content-length: 4")
    rig.send(head)
    assert rig.received.startswith(b"HTTP/1.1 100")
    rig.send(b"body")
    assert bytes(visits(rig)[0].body) == b"body"


@pytest.mark.parametrize(
    "lines",
    [
        ("content-length: 4", "transfer-encoding: chunked"),
        ("content-length: 4", "content-length: 5"),
        ("transfer-encoding: chunked, identity",),
        ("content-length: +4",),
    ],
)
def test_a_request_that_reads_two_ways_is_refused(regular, lines):
    rig = regular()
    smuggled = b"0\r\n\r\n" + asked("/account-pool/remove", method="POST")
    rig.send(asked("/x", b"", f"Host: {OWN}", *lines, method="POST") + smuggled)
    assert visits(rig) == []
    assert rig.client_closed or b"400" in rig.received


def test_the_client_leaves_in_the_middle(regular):
    rig = regular()
    rig.send(asked("/x", b"", f"Host: {OWN}", "content-length: 100", method="POST") + b"part")
    rig.leave()
    assert rig.hooks == []


def test_the_client_leaves_while_it_is_answered(regular):
    rig = regular()
    rig.held.add("pool_pause")
    rig.send(asked())
    rig.leave()
    rig.complete("pool_pause")
    assert rig.received == b""


def test_nobody_answers(rig_of):
    """After a live reload that failed there is no addon."""
    rig = rig_of(mode=HTTPMode.regular)
    rig.send(asked())
    assert rig.answers[0].status == 500


def test_in_a_tunnel_over_http2(regular):
    rig = regular(mode=HTTPMode.transparent, address=(ADMIN_HOST, 443), client2=True)
    rig.ask(b"{}", authority=ADMIN_HOST, path="/account-pool/next")
    assert visits(rig)[0].authority == ADMIN_HOST
    assert visits(rig)[0].tls
    assert rig.answers[0].body == b"done"
    assert not rig.servers


def test_in_a_tunnel_to_somebody_else(regular):
    rig = regular(mode=HTTPMode.transparent, address=("other.example", 443))
    rig.send(asked("/health", b"", f"Host: {ADMIN_HOST}"))
    assert visits(rig) == []


def test_a_tunnel_to_us_leads_nowhere_else():
    # Not one of the fixture's: what is left at rest of a tunnel is mitmproxy's business.
    rig = Rig(service_of("one"), FakeClock(), mode=HTTPMode.regular)
    rig.send(asked(f"{ADMIN_HOST}:443", b"", f"Host: {ADMIN_HOST}:443", method="CONNECT"))
    assert rig.received.startswith(b"HTTP/1.1 200")
    assert rig.opened == []


@pytest.mark.parametrize(
    ("name", "kept"), [(ADMIN_HOST, True), ("Pool.Mitm.It.", True), ("mitm.it", False)]
)
def test_our_name_is_never_connected_to(name, kept):
    server = Server(address=(name, 443))
    refuse_connection(server_hooks.ServerConnectionHookData(server, client_connection()))
    assert bool(server.error) is kept


# -- a response that goes on


class Source:
    """Chunks that a test hands out, and whether they were closed."""

    def __init__(self) -> None:
        self.chunks = self._chunks()

    async def _chunks(self):
        yield b""


@pytest.fixture
def streaming(rig_of):
    """A rig whose visits are answered with a stream; `chunk` is what comes next."""

    def build(*chunks: bytes, **settings):
        rig = rig_of(mode=HTTPMode.regular, **settings)
        left = list(chunks)
        head = AdminResponse(200, ((b"content-type", b"text/event-stream"),), b"", Source().chunks)

        def on_pause(pause):
            if isinstance(pause.step, Chunks):
                pause.chunk = left.pop(0) if left else b""
            else:
                pause.reply = head

        rig.on["pool_pause"] = on_pause
        return rig

    return build


def test_chunks_come_as_they_are_and_the_connection_is_kept(streaming):
    rig = streaming(b"one", b"two")
    rig.send(asked("/events") + asked("/health"))
    assert [answer.body for answer in rig.answers][:1] == [b"onetwo"]
    assert b"transfer-encoding: chunked" in rig.received.lower()
    assert not rig.client_closed


def test_an_old_client_gets_no_chunks(streaming):
    rig = streaming(b"one")
    rig.send(asked("/events").replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert b"chunked" not in rig.received
    assert rig.received.endswith(b"one")
    assert rig.client_closed


def test_the_client_leaves_a_stream(streaming):
    rig = streaming(b"one")
    rig.held.add("pool_pause")
    rig.send(asked("/events"))
    rig.complete("pool_pause")
    pause = rig.pauses[-1]
    assert isinstance(pause.step, Chunks)
    rig.leave()
    # It need not wait for the next event.
    assert pause.woken.is_set()
    rig.complete("pool_pause")
    assert b"one" not in rig.received


# -- the admin token


def test_a_token_on_a_disk_that_hangs_stops_no_start_and_counts_once_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    goes_on, real = threading.Event(), admin_exchange.admin_token
    readings: list[Future[None]] = []

    def hang(path: Path) -> Secret:
        assert goes_on.wait(PATIENCE_S)
        return real(path)

    def begun(reading: Callable[[], None]) -> Future[None]:
        readings.append(supervision.begun(reading))
        return readings[-1]

    monkeypatch.setattr(admin_exchange, "admin_token", hang)
    monkeypatch.setattr(admin_exchange, "begun", begun)
    monkeypatch.setattr(admin_exchange, "TOKEN_S", 0.01)
    path = tmp_path / "token"
    guard = guard_of(path)
    assert f"the admin token {path} does not answer" in caplog.text
    at_first = guard.token.reveal()
    goes_on.set()
    readings[0].result(PATIENCE_S)
    assert guard.token.reveal() == path.read_text().strip() != at_first


def test_without_a_file_for_the_token_it_is_a_random_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "folder"
    path.mkdir()
    guard = guard_of(path)
    assert "it is a directory" in caplog.text and "the REST API is read-only" in caplog.text
    assert len(guard.token.reveal()) > 32
