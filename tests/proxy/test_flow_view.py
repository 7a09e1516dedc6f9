"""What mitmweb, mitmproxy and dumps show of a request beside its own flow."""

from __future__ import annotations

import asyncio
import gzip
import json
from math import inf
from types import ModuleType

import pytest
from mitmproxy import exceptions, flowfilter, http
from mitmproxy.addons.view import View
from mitmproxy.io import FlowReader, FlowWriter
from mitmproxy.net.encoding import encode
from mitmproxy.options import Options
from mitmproxy.test import taddons, tflow
from mitmproxy.tools.dump import DumpMaster

from account_pool.core.account import AccountKey
from account_pool.proxy import flow_view, refused_attempts
from account_pool.proxy.addon import AccountPool
from account_pool.supervision import tasks
from tests.proxy.helpers import (
    BR,
    CHAT,
    CHUNKED,
    CLIENT_KEY,
    DELTA,
    DONE,
    JSON,
    LIMIT_BODY,
    LIMIT_EVENT,
    LIMITED,
    LIMITED_HEADERS,
    OK,
    OK_BODY,
    SSE,
    chunk,
    head1,
    http1,
    post1,
    secret,
)

ONE, TWO = secret("one"), secret("two")
KEY_ONE = AccountKey("openai", "one")
COOLS = "429 rate_limit, on cooldown for 20 s (gpt-5)"
SERVER_ERROR = http1(500, b'{"error":{"message":"oops"}}', [JSON])
BAD_REQUEST = http1(400, b'{"error":{"message":"no","type":"invalid_request_error"}}', [JSON])
LIMITED_AND_CLOSED = http1(429, LIMIT_BODY, [*LIMITED_HEADERS, "connection: close"])
EVENTS = head1(200, [SSE, CHUNKED])


@pytest.fixture
def shows(rig_of):
    """Make rigs that collect the flows they give to the front ends."""

    def build(*accounts, **settings):
        rig = rig_of(*accounts, **settings)
        rig.shown = []
        rig.service.show = lambda make: rig.shown.append(make())
        return rig

    return build


@pytest.fixture(params=[False, True], ids=["http1", "http2"])
def failover(shows, request):
    """A request that one refuses and two serves, over either HTTP."""
    rig = shows(client2=request.param, server2=request.param)
    if request.param:
        rig.ask()
        rig.server.answer(1, 429, LIMIT_BODY, LIMITED_HEADERS)
        rig.server.answer(3, 200, OK_BODY, [JSON])
    else:
        rig.send(post1())
        rig.server.send(LIMITED)
        rig.server.send(OK)
    return rig


# -- the refused attempt


def test_a_refused_attempt_is_a_flow_of_its_own(failover):
    (served,), (refused,) = failover.flows, failover.shown
    assert refused.id != served.id
    assert (refused.marked, refused.comment) == (":no_entry:", f"openai/one: {COOLS} -> openai/two")
    assert refused.request.headers["authorization"] == "Bearer pool:openai/one"
    assert served.request.headers["authorization"] == "Bearer pool:openai/two"
    assert refused.request.content == CHAT
    assert refused.request.pretty_url == served.request.pretty_url
    assert (refused.response.status_code, refused.response.content) == (429, LIMIT_BODY)
    assert refused.response.headers["retry-after"] == "20"
    assert refused.client_conn is served.client_conn
    assert refused.server_conn is failover.servers[0].connection
    assert not refused.live
    assert refused.metadata == {
        "pool.refused": True,
        "pool.account": "openai/one",
        "pool.attempt": 1,
        "pool.flow": served.id,
        "pool.comment": refused.comment,
    }


def test_it_holds_nobodys_credential(failover):
    (refused,) = failover.shown
    assert all(key not in str(refused.get_state()) for key in (ONE, TWO, CLIENT_KEY))


def test_it_tells_when_it_was_sent_and_answered(shows, clock):
    rig = shows()
    rig.send(post1())
    clock.advance(2)
    rig.server.send(LIMITED)
    rig.server.send(OK)
    (refused,) = rig.shown
    assert refused.request.timestamp_start == clock.wall_now() - 2
    assert refused.response.timestamp_end == clock.wall_now()


def test_it_is_saved_and_read_again(failover, tmp_path):
    with (tmp_path / "dump").open("wb") as file:
        FlowWriter(file).add(failover.shown[0])
    with (tmp_path / "dump").open("rb") as file:
        (read,) = FlowReader(file).stream()
    assert (read.marked, read.comment) == (failover.shown[0].marked, failover.shown[0].comment)
    assert read.metadata == failover.shown[0].metadata


@pytest.mark.parametrize(
    ("expression", "finds"),
    [
        ("~marked", "refused"),
        ("~marker no_entry", "refused"),
        ("~meta pool.refused", "refused"),
        ("~comment 'one: 429 rate_limit'", "refused served"),
        ("~meta 'pool.account: openai/two'", "served"),
        ("~meta 'pool.attempts: 2'", "served"),
    ],
)
def test_filters_find_it(failover, expression, finds):
    flows = {"refused": failover.shown[0], "served": failover.flows[0]}
    matches = flowfilter.parse(expression)
    assert [name for name, flow in flows.items() if matches(flow)] == finds.split()


def refused_with(shows, status, headers, body):
    """Return the flow of an attempt that was refused with this."""
    rig = shows()
    rig.send(post1())
    rig.server.send(http1(status, body, headers))
    rig.server.send(OK)
    (refused,) = rig.shown
    return refused


def test_an_echo_of_the_credential_is_masked(shows):
    body = json.dumps({"error": {"code": "rate_limit_exceeded", "message": f"key {ONE}"}})
    flow = refused_with(shows, 429, [*LIMITED_HEADERS, f"x-key: {ONE}"], body.encode())
    assert flow.response.text == body.replace(ONE, "*" * len(ONE))
    assert flow.response.headers["x-key"] == "*" * len(ONE)
    assert ONE not in str(flow.get_state())


def test_an_echo_in_a_compressed_body_is_masked(shows):
    body = json.dumps({"error": {"code": "rate_limit_exceeded", "message": f"key {ONE}"}})
    headers = [*LIMITED_HEADERS, "content-encoding: gzip"]
    flow = refused_with(shows, 429, headers, gzip.compress(body.encode()))
    assert flow.response.text == body.replace(ONE, "*" * len(ONE))


def test_a_compressed_body_stays_as_it_came(shows):
    headers = [*LIMITED_HEADERS, "content-encoding: gzip"]
    raw = gzip.compress(LIMIT_BODY)
    flow = refused_with(shows, 429, headers, raw)
    assert flow.response.raw_content == raw
    assert flow.response.content == LIMIT_BODY


def test_a_body_that_cannot_be_searched_is_not_shown(shows):
    headers = [*LIMITED_HEADERS, "content-encoding: lzma"]
    flow = refused_with(shows, 429, headers, ONE.encode())
    assert flow.response.raw_content is None


def test_a_refusal_inside_a_stream(shows):
    rig = shows()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(LIMIT_EVENT) + b"0\r\n\r\n")
    rig.server.send(OK)
    (refused,) = rig.shown
    assert (refused.response.status_code, refused.response.content) == (200, LIMIT_EVENT)
    assert refused.comment.startswith("openai/one: rate_limit")


def test_a_credential_that_was_renewed(shows):
    rig = shows()
    rig.refreshed = True
    rig.send(post1())
    rig.server.send(http1(401, b'{"error":{"code":"invalid_api_key"}}', [JSON]))
    rig.server.send(OK)
    assert [f.comment for f in rig.shown] == ["openai/one: 401 auth_invalid -> openai/one"]


def test_a_long_request_is_kept_once(shows, monkeypatch):
    """A part of it would pass for the whole when it is replayed."""
    monkeypatch.setattr(flow_view, "MAX_COPY_BYTES", len(CHAT) - 1)
    rig = shows()
    rig.send(post1())
    rig.server.send(LIMITED)
    rig.server.send(OK)
    (refused,) = rig.shown
    assert refused.request.raw_content is None
    assert refused.metadata["pool.truncated"] is True
    assert "kept only on the flow that was served" in refused.comment
    assert rig.flows[0].request.content == CHAT


# -- the flow that was served


def test_the_served_flow_tells_the_chain(shows):
    rig = shows("one", "two", "three")
    rig.send(post1())
    rig.server.send(LIMITED)
    rig.server.send(http1(429, b'{"error":{"code":"insufficient_quota"}}', [JSON]))
    rig.server.send(OK)
    (served,) = rig.flows
    chain, first, second = served.comment.split("; ")
    assert chain == "openai/three <- one 429, two 429"
    assert first == f"openai/one: {COOLS}"
    assert second.startswith("openai/two: 429 quota, on cooldown for ")
    last = "openai/three"
    assert served.marked == ""
    assert served.metadata["pool.attempts"] == 3
    assert [flow.metadata["pool.attempt"] for flow in rig.shown] == [1, 2]
    assert [flow.comment for flow in rig.shown] == [f"{first} -> openai/two", f"{second} -> {last}"]


def test_nothing_is_built_for_an_ordinary_request(shows, monkeypatch):
    built = []
    monkeypatch.setattr(refused_attempts, "AttemptTrail", lambda *args: built.append(args))
    rig = shows()
    rig.send(post1())
    rig.server.send(OK)
    (served,) = rig.flows
    assert built == []
    assert (served.comment, rig.shown) == ("openai/one", [])
    assert served.metadata == {
        "pool.account": "openai/one",
        "pool.attempts": 1,
        "pool.comment": "openai/one",
    }


def test_a_broken_attempt_is_in_the_chain(shows):
    rig = shows()
    rig.send(post1())
    rig.server.send(OK)
    rig.send(post1())
    rig.server.close()
    rig.server.send(OK)
    assert rig.flows[1].comment == (
        "openai/one <- one transport; openai/one: transport (stale: server closed connection)"
    )
    assert rig.shown == []


def test_a_refusal_that_is_delivered_is_on_the_flow_itself(shows):
    rig = shows("one")
    rig.send(post1())
    rig.server.send(LIMITED)
    assert rig.answers[0].status == 429
    assert rig.flows[0].comment == f"openai/one: {COOLS}"
    assert rig.shown == []


def test_it_is_not_shown_twice(shows):
    """The next account cannot be reached, so the first refusal is delivered after all."""
    rig = shows()
    rig.send(post1())
    rig.refuse.extend(["no", "no"])
    rig.server.send(LIMITED_AND_CLOSED)
    assert rig.answers[0].status == 429
    assert rig.shown == []
    broken = "openai/two: transport (connect: no connection to api.openai.com: no)"
    chain, *verdicts = rig.flows[0].comment.split("; ")
    assert chain == "openai/two transport <- one 429, two transport"
    assert verdicts == [f"openai/one: {COOLS}", broken, broken]


def test_what_is_the_requests_own_fault_needs_no_comment(shows):
    rig = shows()
    rig.send(post1())
    rig.server.send(BAD_REQUEST)
    assert (rig.flows[0].comment, rig.shown) == ("openai/one", [])


def test_an_error_of_the_server(shows):
    rig = shows("one")
    rig.send(post1())
    rig.server.send(SERVER_ERROR)
    rig.server.send(SERVER_ERROR)
    assert rig.answers[0].status == 500
    assert rig.flows[0].comment.startswith("openai/one: 500 server_error")


def test_an_answer_of_our_own_is_explained(shows):
    rig = shows("one")
    rig.cool("one", 60)
    rig.send(post1())
    assert rig.flows[0].comment.startswith("openai: ")
    assert rig.requests == []


def test_an_answer_of_our_own_after_refusals_names_who_refused(shows):
    rig = shows("one", "two")
    rig.cool("two", 60)
    rig.send(post1())
    rig.refuse.extend(["no", "no"])
    rig.server.close()
    assert rig.answers[0].status == 502
    chain, message, *verdicts = rig.flows[0].comment.split("; ")
    assert chain.startswith("refused <- one transport")
    assert message and len(verdicts) == chain.count("transport")


def test_a_client_that_leaves_between_two_attempts(shows):
    """The refused attempt is shown all the same."""
    rig = shows()
    rig.send(post1())
    rig.held.add("open")
    rig.server.send(LIMITED_AND_CLOSED)
    rig.leave()
    rig.held.clear()
    rig.complete()
    assert [flow.comment for flow in rig.shown] == [f"openai/one: {COOLS} -> openai/two"]
    assert rig.flows[0].error


def test_without_a_front_end_only_the_comment_is_written(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(LIMITED)
    rig.server.send(OK)
    assert rig.flows[0].comment == f"openai/two <- one 429; openai/one: {COOLS}"


def test_a_long_answer_says_that_it_is_cut_off(shows, monkeypatch):
    monkeypatch.setattr(flow_view, "MAX_COPY_BYTES", 1024)
    rig = shows()
    rig.send(post1())
    rig.server.send(LIMITED)
    rig.server.send(EVENTS + chunk(DELTA))
    for _ in range(100):
        rig.server.send(chunk(DELTA))
    rig.server.send(chunk(DONE) + b"0\r\n\r\n")
    (served,) = rig.flows
    assert served.comment == (
        f"openai/two <- one 429; openai/one: {COOLS}; "
        "only the beginning of the answer is kept (1 KiB)"
    )


@pytest.mark.parametrize("encoding", ["gzip", BR])
def test_an_answer_whose_client_hung_up_can_be_read(shows, encoding):
    """Many do as soon as they have the last event; the end of the encoding is missing then."""
    events = DELTA * 50 + DONE
    rig = shows()
    rig.send(post1())
    rig.server.send(head1(200, [SSE, CHUNKED, f"content-encoding: {encoding}"]))
    rig.server.send(chunk(encode(events, encoding)[:-4]))
    rig.leave()
    (served,) = rig.flows
    assert served.error
    assert served.response.headers["content-encoding"] == encoding
    assert events.startswith(served.response.content)
    assert DELTA in served.response.content


# -- comments


def test_what_a_person_wrote_stays():
    flow = tflow.tflow()
    flow.comment = "look here"
    flow_view.comment(flow, "a -> b")
    assert flow.comment == "look here; a -> b"
    flow_view.comment(flow, "a -> b -> c")
    assert flow.comment == "look here; a -> b -> c"
    flow_view.comment(flow, "")
    assert flow.comment == "look here"
    flow.comment = "and there"
    flow_view.comment(flow, "a")
    assert flow.comment == "and there; a"


def test_a_comment_of_ours_alone():
    flow = tflow.tflow()
    flow_view.comment(flow, "a")
    flow_view.mark_truncated(flow, "half of it")
    assert flow.comment == "a; half of it (1024 KiB)"
    flow_view.comment(flow, "b")
    assert flow.comment == "b"


def test_where_nobody_looks_nothing_is_made(shows, clock):
    """That is asked once a second, and again when an option was changed."""
    rig, asked = shows(), []
    rig.service.is_looked_at = lambda: bool(asked.append(1) or len(asked) > 2)

    def fail_over():
        rig.service.pool.accounts.clear_cooldown(KEY_ONE, now=clock.now())
        rig.send(post1())
        rig.server.send(LIMITED)
        rig.server.send(OK)
        return rig.flows[-1]

    for _ in range(2):
        flow = fail_over()
        assert (flow.comment, rig.shown) == ("openai/one", [])
        assert (flow.metadata["pool.account"], flow.metadata["pool.attempts"]) == ("openai/two", 2)
    assert len(asked) == 1
    clock.advance(refused_attempts.LOOKED_AT_S)
    fail_over()
    assert (len(asked), rig.shown) == (2, [])
    rig.service.unseen_until = -inf  # as `AccountPool.configure` does
    assert fail_over().comment.startswith("openai/two <- one 429")
    assert len(rig.shown) == 1


# -- the way to the front ends


class Recorder:
    """An addon that notes what it is told, and does to flows what some addons do."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, http.HTTPFlow]] = []
        self.on_request = lambda _flow: None

    def request(self, flow):
        self.seen.append(("request", flow))
        self.on_request(flow)

    def response(self, flow):
        self.seen.append(("response", flow))

    def update(self, flows):
        self.seen.append(("update", flows[0]))


async def load(*addons, **of_recorder):
    recorder = Recorder()
    vars(recorder).update(of_recorder)
    flow = tflow.tflow(resp=True)
    with taddons.context(recorder, *addons):
        flow_view.load(lambda: flow)
        assert recorder.seen == []  # not before the event is handled
        await asyncio.gather(*tasks._running)
    assert not tasks._running
    return flow, recorder


async def test_every_addon_is_told():
    flow, recorder = await load()
    assert [name for name, _ in recorder.seen if name != "update"] == ["request", "response"]
    assert all(seen is flow for _, seen in recorder.seen)


async def test_an_attempt_is_not_held():
    flow, recorder = await load(on_request=lambda flow: flow.intercept())
    assert not flow.intercepted
    assert recorder.seen[-1] == ("update", flow)


async def test_an_attempt_keeps_its_answer():
    """`proxyauth`, for one, would ask it for a password."""
    flow, recorder = await load(
        on_request=lambda flow: setattr(flow, "response", http.Response.make(407))
    )
    assert flow.response.status_code == 200
    assert recorder.seen[-1] == ("update", flow)


def master_with(tmp_path, **options) -> DumpMaster:
    """mitmdump with the pool, as `-s addon/pool.py` loads it."""
    master = DumpMaster(Options(confdir=str(tmp_path)), with_termlog=True)
    script = ModuleType("pool")
    script.addons = [AccountPool()]
    script.addon, script.name = AccountPool, "pool.py"
    master.options.update(**{"flow_detail": 0, **options})
    master.addons.get("scriptloader").addons = [script]
    return master


class Unknown:
    """An addon of somebody else."""


@pytest.mark.parametrize(
    ("options", "looks"),
    [
        ({}, False),
        ({"flow_detail": 1}, True),
        ({"save_stream_file": "dump"}, True),
        ({"hardump": "dump.har"}, True),
        ({"stickycookie": "."}, True),
        ({"modify_headers": ["/~q/x/y"]}, False),
    ],
)
async def test_an_option_has_flows_looked_at(tmp_path, monkeypatch, options, looks):
    monkeypatch.chdir(tmp_path)
    master = master_with(tmp_path, **options)
    assert flow_view.is_looked_at() is looks
    master.addons.get("save").done()


@pytest.mark.parametrize("addon", [Unknown(), View(), ModuleType("other")])
async def test_who_is_not_known_may_look(tmp_path, addon):
    master = master_with(tmp_path)
    assert not flow_view.is_looked_at()
    master.addons.chain.append(addon)
    assert flow_view.is_looked_at()
    master.addons.chain.remove(addon)
    master.addons.get("scriptloader").addons.append(addon)
    assert flow_view.is_looked_at()


def test_our_own_hooks_leave_it_alone(failover):
    (refused,) = failover.shown
    assert AccountPool().request(refused) is None


# -- a request that is held until a person resumes or kills it


@pytest.fixture
def flow():
    flow = tflow.tflow()
    flow_view.hold_for_approval(flow)
    return flow


@pytest.mark.parametrize("end", ["resume", "kill"])
async def test_both_end_the_wait(flow, end):
    waiting = asyncio.ensure_future(flow.wait_for_resume())
    await asyncio.sleep(0)
    assert not waiting.done()
    getattr(flow, end)()
    await waiting
    assert not flow.intercepted
    assert bool(flow.error) is (end == "kill")


def test_a_flow_that_is_over_cannot_be_killed(flow):
    flow.live = False
    with pytest.raises(exceptions.ControlException):
        flow.kill()


@pytest.fixture
def held(rig_of):
    """A request that waits for approval."""
    rig = rig_of(manual_approve=True)
    rig.held.add("request")
    rig.send(post1())
    assert rig.flows[0].intercepted
    assert (rig.requests, rig.in_flight()) == ([], 0)
    return rig


def test_no_account_is_chosen_before_it_is_resumed(held):
    (flow,) = held.flows
    flow.resume()
    held.complete("request")
    assert held.in_flight() == 1
    held.server.send(OK)
    assert held.answers[0].status == 200


def test_a_killed_request_ends(held):
    (flow,) = held.flows
    flow.kill()
    held.complete("request")
    assert held.client_closed
    assert (held.requests, held.answers) == ([], [])


def test_a_client_that_leaves_while_it_is_held(held):
    held.leave()
    held.flows[0].resume()
    held.complete("request")
    assert held.requests == []
