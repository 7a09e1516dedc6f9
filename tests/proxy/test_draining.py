"""What a request gets that comes, or is held, while the proxy shuts down; what is waited for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.websocket import WebSocketMessage
from ruamel.yaml import YAML
from wsproto.frame_protocol import Opcode

from account_pool.config.options import POOL_OPTIONS
from account_pool.core.attempts import Attempts
from account_pool.core.lease import RequestFacts
from account_pool.core.steps import Limits
from account_pool.providers import openai
from account_pool.proxy import draining
from account_pool.proxy.draining import Drain
from account_pool.proxy.events import Pause
from account_pool.proxy.websocket import GOING_AWAY, GoingAway, WebsocketReader
from account_pool.store.sqlite_state import BUSY_TIMEOUT_S
from tests.patience import PATIENCE_S
from tests.proxy.helpers import (
    CHUNKED,
    DELTA,
    DONE,
    LIMITED,
    OK,
    OK_BODY,
    SSE,
    FakeClock,
    Rig,
    account,
    chunk,
    head1,
    post1,
    service_of,
)
from tests.proxy.test_http_stream import ACCEPTED, UPGRADE, closed
from tests.proxy.test_websocket import CREATE

PATIENT = Limits(max_wait_s=60.0)


def streams(rig: Rig) -> list[Any]:
    return [stream for i, stream in rig.layer.streams.items() if i > 0]


def under_way(rig: Rig) -> int:
    return sum(stream.under_way for stream in streams(rig))


# -- requests


def test_a_new_request_is_refused_in_the_providers_envelope(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(OK)
    rig.service.stop()
    rig.send(post1())
    answer = rig.answers[1]
    assert (answer.status, answer.get("connection")) == (503, "close")
    assert answer.get("retry-after") == "1"
    assert "shutting down" in json.loads(answer.body)["error"]["message"]
    assert len(rig.requests) == 1
    assert rig.client_closed


def test_over_http2_it_has_no_connection_header_and_the_others_go_on(rig_of):
    rig = rig_of("one", client2=True)
    first = rig.ask()
    rig.service.stop()
    second = rig.ask()
    refused = rig.reader.of(second)
    assert (refused.status, refused.get("connection"), refused.complete) == (503, None, True)
    assert under_way(rig) == 1
    rig.server.send(OK)
    assert rig.reader.of(first).body == OK_BODY
    assert not rig.reader.gone
    assert under_way(rig) == 0


def test_its_body_is_read_to_the_end_before_it_is_answered(rig_of):
    rig = rig_of("one")
    rig.service.stop()
    whole = post1(body=b"x" * 5000)
    rig.send(whole[:-100])
    assert rig.answers == []
    assert under_way(rig) == 1
    rig.send(whole[-100:])
    assert rig.answers[0].status == 503
    assert under_way(rig) == 0


def test_a_request_to_another_host_is_refused_in_plain_words(rig_of):
    rig = rig_of("one", address=("example.com", 443), sni="example.com")
    rig.service.stop()
    rig.send(post1(host="example.com", method="GET", body=b""))
    assert (rig.answers[0].status, rig.answers[0].get("connection")) == (503, "close")
    assert b"shutting down" in rig.answers[0].body
    assert rig.requests == []


def test_no_tunnel_is_opened(rig_of):
    rig = rig_of("one", mode=HTTPMode.regular)
    rig.service.stop()
    rig.send(b"CONNECT api.openai.com:443 HTTP/1.1\r\nhost: api.openai.com:443\r\n\r\n")
    assert (rig.answers[0].status, rig.answers[0].get("connection")) == (503, "close")
    assert rig.opened == []


def test_what_streams_goes_on(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(head1(200, [SSE, CHUNKED]) + chunk(DELTA))
    rig.service.stop()
    assert under_way(rig) == 1
    rig.server.send(chunk(DONE) + chunk(b"") + b"0\r\n\r\n")
    assert rig.answers[0].body == DELTA + DONE
    assert under_way(rig) == 0


def test_an_attempt_that_is_refused_is_still_replayed(rig_of):
    rig = rig_of("one", "two")
    rig.send(post1())
    rig.service.stop()
    rig.server.send(LIMITED)
    rig.server.send(OK)
    assert rig.answers[0].status == 200


def test_what_is_held_is_told_when_it_is_in_vain(rig_of):
    rig = rig_of("one", limits=PATIENT)
    rig.cool("one", 20.0)
    rig.held.add("pool_pause")
    rig.send(post1())
    assert rig.answers == []
    rig.service.stop()
    rig.service.turn_away()
    rig.held.clear()
    rig.complete("pool_pause")
    assert rig.answers[0].status == 503
    assert "shutting down" in json.loads(rig.answers[0].body)["error"]["message"]
    assert under_way(rig) == 0


@pytest.mark.parametrize("late", [False, True])
async def test_those_who_wait_are_woken(clock: FakeClock, late):
    """Also one that begins to wait when all others were woken."""
    service = service_of(account("one", max_concurrent=1), clock=clock, limits=PATIENT)
    facts = RequestFacts(provider="openai", kind="key", model="gpt-5")
    service.pool.acquire(facts, now=clock.now())
    attempts = Attempts(pool=service.pool, facts=facts, limits=PATIENT, chance=lambda: 0.5)
    pause = Pause(attempts.begin(clock.now()))
    if late:
        service.turn_away()
    waiting = asyncio.ensure_future(service.carry_out(pause))
    await asyncio.sleep(0)
    service.turn_away()
    async with asyncio.timeout(PATIENCE_S):
        await waiting
    assert pause.woken.is_set(), "it has not merely waited as long as it may"
    attempts.left(clock.now())


# -- WebSockets


@pytest.fixture
def socket(rig_of):
    """A WebSocket of the pool, open."""
    rig = rig_of("one", websockets="pin")
    rig.send(post1("/v1/responses", b"", UPGRADE, method="GET"))
    rig.server.send(ACCEPTED)
    assert streams(rig)[0].is_open_socket
    yield rig
    closed(rig)


def test_a_socket_between_two_turns_is_not_waited_for(socket):
    assert under_way(socket) == 0


@pytest.mark.parametrize(
    "last",
    [
        b'{"type":"response.completed","response":{}}',
        b'{"type": "response.failed"}',
        b'{"sequence_number":9,"type":"response.incomplete"}',
        b'{"type":"response.done","event_id":"x"}',
        b'{"type":"error","status":400}',
    ],
)
def test_a_turn_is_under_way_until_its_last_message(last):
    reader = WebsocketReader(openai.PROVIDER)
    assert not reader.running
    reader.client_said(CREATE)
    reader.server_said(b'{"type":"response.output_text.delta","delta":"response.completed"}', 0.0)
    assert reader.running
    reader.server_said(last, 0.0)
    assert not reader.running


def test_it_is_told_that_the_proxy_goes_away(socket):
    flow = socket.flows[0]
    event = GoingAway(flow, WebSocketMessage(Opcode.TEXT, False, b""))
    socket.feed(event)
    # A Close frame of the server: unmasked, two bytes of code.
    assert socket.answers[0].body == b"\x88\x02" + GOING_AWAY.to_bytes(2)
    assert flow.websocket.close_code == GOING_AWAY
    assert flow.websocket.messages == []
    assert not streams(socket)[0].is_open_socket
    assert under_way(socket) == 0


# -- the end of the proxy


class Master:
    """Counts how often it was ended."""

    def __init__(self) -> None:
        self.ended = 0
        self.addons: dict[str, Any] = {}

    def shutdown(self) -> None:
        self.ended += 1


class Proxy:
    """A drain that ends a master, with what is under way set by hand."""

    def __init__(self, **settings: Any) -> None:
        self.master, self.service = Master(), service_of("one", **settings)
        self.refreshing = False
        self.written = 0
        self.drain = Drain(
            self.master, self.service, refreshing=lambda: self.refreshing, write=self.write
        )
        self.drain.install()

    async def write(self) -> None:
        self.written += 1

    async def until(self, happened: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not happened():
                await asyncio.sleep(0)


@pytest.fixture
async def proxy():
    return Proxy()


@pytest.fixture(autouse=True)
def everything_is_logged(caplog):
    caplog.set_level("INFO")


async def test_it_ends_at_once_when_nothing_is_under_way(proxy, caplog):
    proxy.master.shutdown()
    await proxy.until(lambda: proxy.master.ended)
    assert proxy.service.stopping
    assert caplog.messages == []


async def test_it_waits_for_what_is_under_way_and_writes_before(proxy, caplog):
    proxy.refreshing = True
    proxy.master.shutdown()
    await proxy.until(lambda: caplog.messages and proxy.written)
    assert "the refresh of a login may take 10 s" in caplog.messages[0]
    assert proxy.master.ended == 0
    proxy.refreshing = False
    await proxy.until(lambda: proxy.master.ended)
    assert len(caplog.messages) == 1


async def test_what_takes_too_long_is_cut_off(proxy, caplog):
    proxy.refreshing = True
    proxy.master.shutdown()
    await proxy.until(lambda: proxy.written)
    assert proxy.master.ended == 0
    proxy.service.now = lambda: 2000.0
    await proxy.until(lambda: proxy.master.ended)
    assert caplog.messages[-1] == "account-pool: cut off after 10 s: the refresh of a login"


async def test_a_second_signal_ends_it_at_once(proxy):
    proxy.refreshing = True
    proxy.master.shutdown()
    await proxy.until(lambda: proxy.written)
    proxy.master.shutdown()
    await proxy.until(lambda: proxy.master.ended)
    assert proxy.refreshing


async def test_what_is_said_twice_of_a_terminal_is_no_second_signal(proxy):
    proxy.refreshing = True
    proxy.drain.begin()
    await proxy.until(lambda: proxy.written)
    proxy.drain.begin()
    proxy.drain.begin()
    assert proxy.drain._cutting is None
    assert not proxy.drain._task.cancelling()
    # A signal is one.
    proxy.master.shutdown()
    await proxy.until(lambda: proxy.master.ended)
    assert proxy.refreshing


async def test_what_comes_after_has_the_same_deadline(proxy, caplog):
    now = proxy.service.now()
    assert proxy.drain.over_at == now
    proxy.refreshing = True
    proxy.master.shutdown()
    await proxy.until(lambda: proxy.written)
    proxy.service.now = lambda: now + 100.0
    await proxy.until(lambda: proxy.master.ended)
    assert proxy.drain.over_at == now + 10.0


async def test_what_comes_after_a_second_signal_counts_from_there(proxy):
    now = proxy.service.now()
    proxy.refreshing = True
    proxy.master.shutdown()
    await proxy.until(lambda: proxy.written)
    proxy.service.now = lambda: now + 3.0
    proxy.master.shutdown()
    await proxy.until(lambda: proxy.master.ended)
    proxy.service.now = lambda: now + 5.0
    assert proxy.drain.over_at == now + 3.0


async def test_a_step_that_hangs_is_left(proxy, monkeypatch):
    monkeypatch.setattr(draining, "STEP_S", 0.0)
    never = asyncio.Event()
    server = SimpleNamespace(is_running=True, stop=never.wait)
    proxyserver = SimpleNamespace(servers=[server], connections={})
    proxy.master.addons["proxyserver"] = proxyserver
    proxy.master.shutdown()
    await proxy.until(lambda: proxy.master.ended)


def test_compose_kills_later():
    """Whatever hangs: clients that do not hear, a token server, a disk, another proxy."""
    compose = YAML(typ="safe").load(Path(__file__).parents[2] / "compose.yaml")
    grace_s = int(compose["services"]["pool"]["stop_grace_period"].removesuffix("s"))
    (drain_s,) = (option.default for option in POOL_OPTIONS if option.name == "drain")
    hanging_up_s = draining.STEP_S + draining.CUT_LOOKS * draining.LOOK_S
    after_s = max(hanging_up_s, draining.ANSWER_S, draining.WRITE_S) + BUSY_TIMEOUT_S
    assert drain_s + after_s < grace_s


async def test_no_time_to_drain_ends_it_at_once():
    proxy = Proxy(drain_s=0.0)
    proxy.refreshing = True
    proxy.master.shutdown()
    await proxy.until(lambda: proxy.master.ended)
    assert proxy.written == 0


async def test_an_error_while_it_drains_does_not_keep_it_alive(proxy, caplog):
    def fails() -> bool:
        raise ValueError("sk-fake-secret")

    proxy.drain._refreshing = fails
    proxy.master.shutdown()
    await proxy.until(lambda: proxy.master.ended)
    assert "ValueError" in caplog.text
    assert "sk-fake" not in caplog.text


async def test_it_is_mitmproxys_own_again_afterwards(proxy):
    proxy.drain.uninstall()
    proxy.master.shutdown()
    assert proxy.master.ended == 1


async def test_servers_stop_listening_and_clients_are_sent_what_is_written(proxy):
    left = [700, 300, 0]
    stopped = []

    class Server:
        is_running = True

        async def stop(self) -> None:
            stopped.append(self)
            raise OSError("not there")

    transport = SimpleNamespace(get_write_buffer_size=lambda: left.pop(0) if left else 0)
    client = object()
    io = SimpleNamespace(writer=SimpleNamespace(transport=transport))
    handler = SimpleNamespace(client=client, transports={client: io})
    gone = SimpleNamespace(client=object(), transports={})
    proxyserver = SimpleNamespace(
        servers=[Server(), Server()], connections={"a": gone, "b": handler}
    )
    proxy.master.addons["proxyserver"] = proxyserver
    proxy.master.shutdown()
    await proxy.until(lambda: proxy.master.ended)
    assert len(stopped) == 2
    assert left == []


async def test_what_http2_keeps_for_a_client_is_waited_for(proxy):
    """It is in front of the client's window, and in no buffer of its socket."""
    client = object()
    kept = {1: [b"the rest"], 3: []}

    class Layer:
        streams: ClassVar[dict[int, object]] = {}
        context = SimpleNamespace(client=client)
        connections: ClassVar[dict[object, object]] = {
            client: SimpleNamespace(h2_conn=SimpleNamespace(stream_buffers=kept))
        }

    layer = Layer()
    proxy.service.layers.add(layer)
    assert proxy.drain._in_flight() == "an answer"
    kept[1].clear()
    assert proxy.drain._in_flight() == ""
