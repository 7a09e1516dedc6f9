"""What a front end's view keeps of the pool's flows, and what an open WebSocket keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mitmproxy.addons.view import View as MitmproxyView
from mitmproxy.test import taddons, tflow

from account_pool.proxy import shown, view
from account_pool.proxy.addon import AccountPool
from account_pool.proxy.shown import MARK, REFUSED
from account_pool.proxy.view import Messages, View
from tests.proxy.helpers import service_of
from tests.proxy.test_attempt_stream import closed, frame, opened, socket  # noqa: F401


class Looking:
    """mitmproxy's view, and ours of it."""

    def __init__(self, tctx) -> None:
        self.theirs, self.service = MitmproxyView(), service_of(view_kept=3)
        tctx.master.addons.add(self.theirs)
        self.ours = View(self.service)

    def flow(self, name: str, *, size: int = 10, of_pool: bool = True, **attributes):
        """A flow that has ended."""
        flow = tflow.tflow(resp=True)
        flow.id = name
        flow.request.timestamp_start = float(self.theirs.store_count())
        flow.request.raw_content, flow.response.raw_content = b"x" * size, b""
        if of_pool:
            flow.metadata["pool.account"] = "openai/one"
        self.theirs.add([flow])
        self.ours.ended(flow)
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
    monkeypatch.setattr(view, "MAX_BYTES", 100)
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


def test_nobody_looks_in_mitmdump():
    ours = View(service_of(view_kept=3))
    flow = tflow.tflow(resp=True)
    flow.metadata["pool.account"] = "openai/one"
    with taddons.context():
        ours.ended(flow)
    assert ours._sizes == {}


def test_the_addon_is_told_of_every_end_but_of_flows_of_a_file():
    with taddons.context() as tctx:
        tctx.master.addons.add(MitmproxyView())
        addon = AccountPool()
        flow = tflow.tflow(resp=True)
        flow.metadata["pool.account"] = "openai/one"
        for live, hook in [
            (False, addon.response),
            (True, addon.response),
            (True, addon.error),
            (True, addon.websocket_end),
        ]:
            addon._view._sizes.clear()
            flow.live = live
            hook(flow)
            assert (flow.id in addon._view._sizes) is live


# -- WebSockets


def test_an_open_socket_keeps_its_last_messages(monkeypatch):
    monkeypatch.setattr(view, "MAX_SOCKET_BYTES", 100)
    flow, kept = tflow.twebsocketflow(), Messages()
    flow.comment = "mine"
    messages = flow.websocket.messages
    some = messages[0]
    messages.clear()
    for number in range(10):
        messages.append(type(some)(some.type, False, b"%d" % number * 45))
        kept.added(flow)
    assert [message.content[:1] for message in messages] == [b"8", b"9"]
    assert flow.metadata[shown.TRUNCATED]
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
