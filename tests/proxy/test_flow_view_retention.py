"""What a front end's view keeps of the pool's flows, and what an open WebSocket keeps."""

from __future__ import annotations

import zlib

import pytest
from mitmproxy.addons.view import View as MitmproxyView
from mitmproxy.test import taddons, tflow
from msgspec.structs import replace
from wsproto.connection import Connection, ConnectionType
from wsproto.events import Ping

from account_pool.proxy import flow_view
from account_pool.proxy.flow_view import MARK, REFUSED, MessageRetention, ViewRetention
from account_pool.proxy.websocket import MAX_FRAMES
from tests.proxy.helpers import head1, post1, service_of
from tests.proxy.test_http_stream import (
    CREATE,
    UPGRADE,
    closed,
    frame,
    opened,
    socket,  # noqa: F401
)


class Looking:
    """mitmproxy's view, and ours of it."""

    def __init__(self, tctx) -> None:
        self.theirs, self.service = MitmproxyView(), service_of(view_kept=3)
        tctx.master.addons.add(self.theirs)
        self.ours = ViewRetention(self.service, self.theirs)

    def flow(self, name: str, *, size: int = 10, of_pool: bool = True, **attributes):
        """A flow that has ended."""
        flow = tflow.tflow(resp=True)
        flow.id = name
        flow.request.timestamp_start = float(self.theirs.store_count())
        flow.request.raw_content, flow.response.raw_content = b"x" * size, b""
        if of_pool:
            flow.metadata["pool.account"] = "openai/one"
        self.theirs.add([flow])
        self.ours.response(flow)
        flow.live = False
        for attribute, value in attributes.items():
            setattr(flow, attribute, value)
        return flow

    @property
    def names(self) -> str:
        return "".join(sorted(flow.id for flow in self.theirs))


@pytest.fixture
def looking():
    with taddons.context() as tctx:
        looking = Looking(tctx)
        # mitmproxy puts the first one into focus, which stays.
        looking.flow("z", of_pool=False)
        yield looking


def test_the_oldest_go(looking):
    for name in "abcde":
        looking.flow(name)
    assert looking.names == "cdez"


def test_what_is_in_focus_stays(looking):
    looking.theirs.focus.flow = looking.flow("a")
    for name in "bcde":
        looking.flow(name)
    assert looking.names == "adez"


def test_refused_attempts_go_although_we_have_marked_them(looking):
    for name in "abcd":
        flow = looking.flow(name, marked=MARK)
        flow.metadata[REFUSED] = True
    assert looking.names == "bcdz"


@pytest.mark.parametrize(
    "attributes", [{"marked": ":grapes:"}, {"intercepted": True}, {"live": True}]
)
def test_what_somebody_works_with_stays(looking, attributes):
    looking.flow("a", **attributes)
    for name in "bcdef":
        looking.flow(name)
    assert looking.names == "aefz"


def test_others_are_never_dropped(looking):
    for name in "abcdefgh":
        looking.flow(name, of_pool=False)
    assert looking.names == "abcdefghz"


def test_all_is_kept_where_that_is_wanted(looking):
    looking.service.settings = replace(looking.service.settings, view_kept=0)
    for name in "abcdefgh":
        looking.flow(name)
    assert looking.names == "abcdefghz"


def test_their_bodies_are_bounded_together(looking, monkeypatch):
    monkeypatch.setattr(flow_view, "MAX_BYTES", 100)
    looking.service.settings = replace(looking.service.settings, view_kept=1000)
    for name in "abcd":
        looking.flow(name, size=40)
    assert looking.names == "cdz"
    looking.flow("e", size=4000)
    assert looking.names == "ez"


def test_what_its_owner_has_cleared_counts_no_more(looking):
    for name in "abc":
        looking.flow(name)
    looking.theirs.clear()
    looking.flow("z", of_pool=False)
    for name in "def":
        looking.flow(name)
    assert looking.names == "defz"


def test_it_is_told_of_every_end_but_of_flows_of_a_file(looking):
    flow = tflow.tflow(resp=True)
    flow.metadata["pool.account"] = "openai/one"
    ours = looking.ours
    for live, hook in [
        (False, ours.response),
        (True, ours.response),
        (True, ours.error),
        (True, ours.websocket_end),
    ]:
        ours._sizes.clear()
        flow.live = live
        hook(flow)
        assert (flow.id in ours._sizes) is live


# -- WebSockets


def test_an_open_socket_keeps_its_last_messages(monkeypatch):
    monkeypatch.setattr(flow_view, "MAX_SOCKET_BYTES", 100)
    flow, kept = tflow.twebsocketflow(), MessageRetention()
    flow.comment = "mine"
    messages = flow.websocket.messages
    some = messages[0]
    messages.clear()
    for number in range(10):
        messages.append(type(some)(some.type, False, b"%d" % number * 45))
        kept.added(flow)
    assert [message.content[:1] for message in messages] == [b"8", b"9"]
    assert flow.metadata[flow_view.TRUNCATED]
    assert flow.comment == "mine; only the last messages are kept (0 MiB)"


def test_a_long_message_grows_in_place(socket):  # noqa: F811
    """mitmproxy copied all of it for each piece that came."""
    rig = opened(socket("one", websockets="pin"))
    rig.send(frame(b"hello", masked=True))
    layer = next(s for i, s in rig.layer.streams.items() if i > 0).child_layer
    size = 400_000
    rig.server.send(b"\x82\x7f" + size.to_bytes(8) + b"x" * 1000)
    grows = layer.server_ws.frame_buf[-1]
    for _ in range(99):
        rig.server.send(b"x" * 1000)
        assert layer.server_ws.frame_buf[-1] is grows
    rig.server.send(b"x" * 300_000)
    messages = rig.flows[0].websocket.messages
    assert messages[-1].content == b"x" * size
    assert type(messages[-1].content) is bytes
    rig.server.send(frame(b"again"))
    assert messages[-1].content == b"again"
    assert rig.answers[0].body.endswith(b"x" * size + b"\x81\x05again")
    closed(rig)


def piece(data: bytes, *, first: bool = False, last: bool = False) -> bytes:
    """A frame of a binary message of a server."""
    length = bytes([len(data)]) if len(data) < 126 else b"\x7e" + len(data).to_bytes(2)
    return bytes([(0x80 if last else 0) | (2 if first else 0)]) + length + data


@pytest.mark.parametrize("turn", [False, True], ids=["idle", "in a turn"])
def test_a_message_without_end_is_closed_with(socket, monkeypatch, turn):  # noqa: F811
    monkeypatch.setattr("account_pool.proxy.websocket.MAX_MESSAGE_BYTES", 100_000)
    rig = opened(socket("one", websockets="pin"))
    rig.send(CREATE if turn else frame(b"hello", masked=True))
    rig.server.send(piece(b"", first=True))
    for _ in range(99):
        rig.server.send(piece(b"x" * 1000))
    assert not rig.client_closed
    rig.server.send(piece(b"x" * 2000))
    assert rig.answers[0].body.startswith(b"\x88")
    assert rig.flows[0].websocket.close_code == 1009
    assert rig.client_closed and rig.server.closed
    assert rig.in_flight() == 0
    closed(rig)


def test_messages_are_bounded_each(socket, monkeypatch):  # noqa: F811
    monkeypatch.setattr("account_pool.proxy.websocket.MAX_MESSAGE_BYTES", 100_000)
    rig = opened(socket("one", websockets="pin"))
    rig.send(frame(b"hello", masked=True))
    for _ in range(3):
        rig.server.send(piece(b"x" * 60_000, first=True) + piece(b"x" * 40_000, last=True))
    assert [len(m.content) for m in rig.flows[0].websocket.messages] == [5, *[100_000] * 3]
    closed(rig)


def test_a_bomb_is_closed_with(rig_of, monkeypatch):
    monkeypatch.setattr("account_pool.proxy.websocket.MAX_MESSAGE_BYTES", 1_000_000)
    offered = ["Sec-WebSocket-Extensions: permessage-deflate"]
    rig = rig_of("one")
    rig.send(post1("/v1/responses", b"", [*UPGRADE, *offered], method="GET"))
    rig.server.send(head1(101, ["Upgrade: websocket", "Connection: Upgrade", *offered]))
    rig.send(frame(b"hello", masked=True))
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = (packer.compress(bytes(8_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    rig.server.send(b"\xc2\x7e" + len(bomb).to_bytes(2) + bomb)
    assert rig.flows[0].websocket.close_code == 1009
    assert rig.in_flight() == 0
    closed(rig)


@pytest.mark.parametrize("frames", [3, MAX_FRAMES, 3 * MAX_FRAMES])
def test_a_message_of_many_frames_goes_on_with_few(socket, frames):  # noqa: F811
    rig = opened(socket("one", websockets="pin"))
    rig.send(frame(b"hello", masked=True))
    size = len(rig.answers[0].body)
    rig.server.send(
        piece(b"0", first=True)
        + frame(b"ping", opcode=9)
        + b"".join(piece(b"%d" % (n % 10)) for n in range(1, frames - 1))
        + piece(b"!", last=True)
    )
    said = b"".join(b"%d" % (n % 10) for n in range(frames - 1)) + b"!"
    assert rig.flows[0].websocket.messages[-1].content == said
    reader = Connection(ConnectionType.CLIENT)
    reader.receive_data(rig.answers[0].body[size:])
    came = list(reader.events())
    assert came[0] == Ping(b"ping")
    assert b"".join(bytes(event.data) for event in came[1:]) == said
    assert len(came) - 1 == min(frames, MAX_FRAMES)
    assert came[-1].message_finished
    closed(rig)
