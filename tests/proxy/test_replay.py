"""A replayed flow is served by an account; recorded responses are those that clients got."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest
from mitmproxy import http
from mitmproxy.addons.clientplayback import ClientPlayback
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.serverplayback import ServerPlayback
from mitmproxy.test import taddons, tflow
from msgspec.structs import replace

from account_pool.providers import gemini, openai
from account_pool.providers.base import HostRule
from account_pool.proxy import flow_view, replay
from tests.proxy.helpers import (
    CHAT,
    CHUNKED,
    CLIENT_KEY,
    DELTA,
    DONE,
    LIMITED,
    OK,
    OK_BODY,
    SSE,
    FakeClock,
    chunk,
    head1,
    secret,
    service_of,
)

ONE, TWO = secret("one"), secret("two")
STREAM = head1(200, [SSE, CHUNKED]) + chunk(DELTA) + chunk(DONE) + b"0\r\n\r\n"


class Broken(bytes):
    """An answer after which the connection is closed."""


class Upstream:
    """A server that gives answers in order, and notes the credentials it was sent.

    None is no answer at all.
    """

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.keys: list[str] = []
        self.asked = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await reader.readexactly(len(CHAT))
                lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
                self.keys.append(lines["authorization"].removeprefix("bearer "))
                self.asked.set()
                answer = self.answers.pop(0)
                if answer is None:
                    await reader.read()
                    break
                writer.write(answer)
                if isinstance(answer, Broken):
                    break
        writer.close()


@pytest.fixture
async def world():
    """Start a server of these answers; return it, a service, and a flow to replay."""

    @asynccontextmanager
    async def build(*answers: bytes | None, **settings):
        upstream = Upstream(*answers)
        server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
        upstream.port = server.sockets[0].getsockname()[1]
        here = replace(openai.PROVIDER, hosts=(HostRule("127.0.0.1", upstream.port),))
        service = service_of("one", "two", clock=FakeClock(), providers=(here,), **settings)
        with taddons.context(Proxyserver(), ClientPlayback()) as tctx:
            async with server:
                yield upstream, service, tctx
        assert sum(state.in_flight for state in service.pool.accounts) == 0
        assert not service.running

    return build


def replayed(upstream: Upstream, key: str = "pool:openai/old") -> http.HTTPFlow:
    flow = tflow.tflow()
    flow.request = http.Request.make(
        "POST",
        f"http://127.0.0.1:{upstream.port}/v1/chat/completions",
        CHAT,
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    flow.is_replay = "request"
    return flow


@pytest.mark.parametrize(("answer", "body"), [(OK, OK_BODY), (STREAM, DELTA + DONE)])
async def test_a_replay_takes_a_lease(world, answer, body):
    async with world(answer) as (upstream, service, _):
        flow = replayed(upstream)
        await replay.answer(flow, service)
        assert (flow.response.status_code, flow.response.content) == (200, body)
        assert upstream.keys == [ONE]
        assert flow.request.headers["authorization"] == "Bearer pool:openai/one"
        assert flow.metadata == {
            "pool.account": "openai/one",
            "pool.attempts": 1,
            "pool.comment": "openai/one",
        }
        assert ONE not in str(flow.get_state())


async def test_a_comment_stays_when_its_flow_is_replayed(world):
    async with world(OK, OK) as (upstream, service, _):
        flow = replayed(upstream)
        flow.comment = "look here"
        for _ in range(2):
            await replay.answer(flow, service)
            assert flow.comment == "look here; openai/one"


async def test_the_credential_of_a_foreign_dump_is_masked(world):
    async with world(OK) as (upstream, service, _):
        flow = replayed(upstream, CLIENT_KEY)
        await replay.answer(flow, service)
        assert upstream.keys == [ONE]
        assert CLIENT_KEY not in str(flow.get_state())


async def test_a_replay_fails_over(world):
    async with world(LIMITED, OK) as (upstream, service, _):
        shows = []
        service.show = lambda make: shows.append(make())
        flow = replayed(upstream)
        await replay.answer(flow, service)
        assert upstream.keys == [ONE, TWO]
        assert flow.response.content == OK_BODY
        assert flow.comment.startswith("openai/two <- one 429; openai/one: 429 ")
        assert [f.metadata["pool.flow"] for f in shows] == [flow.id]
        assert [f.is_replay for f in shows] == ["request"]


async def test_a_refused_attempt_that_is_replayed_becomes_an_ordinary_flow(world):
    async with world(OK) as (upstream, service, _):
        flow = replayed(upstream)
        flow.marked = flow_view.MARK
        flow.metadata = {flow_view.REFUSED: True, "pool.attempt": 1, "pool.flow": "x"}
        flow_view.comment(flow, "openai/old: 429 -> openai/one")
        await replay.answer(flow, service)
        assert flow.response.content == OK_BODY
        assert (flow.marked, flow.comment) == ("", "openai/one")
        assert set(flow.metadata) == {"pool.account", "pool.attempts", "pool.comment"}


async def test_refused_attempts_of_a_dump_are_not_sent_again(world, tmp_path):
    """Each request goes out once, not once more for every account that refused it."""
    (tmp_path / "dump").touch()
    async with world() as (upstream, service, tctx):
        tctx.options.client_replay = [str(tmp_path / "dump")]
        flow = replayed(upstream)
        flow.metadata[flow_view.REFUSED] = True
        await replay.answer(flow, service)
        assert flow.response.status_code == 409
        assert upstream.keys == []


async def test_manual_approval_is_given_by_whoever_replays(world):
    async with world(OK, manual_approve=True) as (upstream, service, _):
        flow = replayed(upstream)
        await replay.answer(flow, service)
        assert flow.response.content == OK_BODY


@pytest.mark.parametrize("answer", [b"", STREAM[:-10], head1(200, ["content-length: 9"]) + b"half"])
async def test_an_answer_that_breaks_off(world, answer, caplog):
    async with world(Broken(answer)) as (upstream, service, _):
        flow = replayed(upstream)
        await replay.answer(flow, service)
        assert flow.response.status_code == 502
        assert upstream.keys == [ONE]
    assert "Traceback" not in caplog.text


async def test_a_replay_that_is_given_up(world, caplog):
    """The lease comes back, and nobody is to blame."""
    async with world(None) as (upstream, service, _):
        task = asyncio.ensure_future(replay.answer(replayed(upstream), service))
        await upstream.asked.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert "internal error" not in caplog.text


async def test_other_hosts_are_left_to_mitmproxy(world):
    async with world() as (_, service, _):
        flow = tflow.tflow()
        flow.is_replay = "request"
        await replay.answer(flow, service)
        assert flow.response is None


# -- recorded responses


URL = "https://generativelanguage.googleapis.com/v1beta/models/gemini-3:generateContent"


def recorded(status: int = 200, key: str = "pool:gemini/one", **metadata: object) -> http.HTTPFlow:
    flow = tflow.tflow(resp=http.Response.make(status, b"recorded"))
    flow.request = http.Request.make("POST", f"{URL}?key={key}", b"{}")
    flow.metadata.update({name.replace("_", "."): value for name, value in metadata.items()})
    return flow


@pytest.fixture
def played():
    """Load flows; return what is played back for a request, whose key was masked."""
    service = service_of("one", providers=(gemini.PROVIDER,))
    with taddons.context() as tctx:
        addon = ServerPlayback()
        tctx.master.addons.add(addon)

        def play(*flows: http.HTTPFlow) -> http.HTTPFlow | None:
            addon.load_flows(flows)
            replay.prepare_playback(addon, service)
            return addon.next_flow(recorded(key="pool:gemini"))

        play.addon, play.service = addon, service
        yield play


@pytest.mark.parametrize("key", ["pool:gemini/one", "sk-fake-client-000"])
def test_the_key_of_a_recorded_request_does_not_matter(played, key):
    flow = recorded(key=key)
    found = played(flow)
    assert found is not None
    assert found.response.content == b"recorded"
    # It may be a flow of a view, where it stays as it is.
    assert key in flow.request.url
    assert "sk-fake" not in found.request.url


def test_a_refused_attempt_is_not_what_the_client_got(played):
    served = recorded()
    refused = recorded(429, pool_refused=True, pool_flow=served.id)
    found = played(refused, served)
    assert found is not None
    assert found.response.status_code == 200


def test_a_refused_attempt_that_somebody_chose_is_played_back(played):
    found = played(recorded(429, pool_refused=True, pool_flow="not among them"))
    assert found is not None
    assert found.response.status_code == 429


@pytest.mark.parametrize("flow", [recorded(101), recorded(pool_truncated=True)])
def test_what_cannot_be_played_back_whole_is_not(played, flow, caplog):
    assert played(flow) is None
    assert "1 of 1 recorded answers are not played back" in caplog.text


def test_flows_are_looked_at_once(played, caplog):
    played(recorded(), recorded(pool_truncated=True))
    # As they are after the first look, with what is left of them.
    assert len(caplog.records) == 1
    addon = played.addon
    replay.prepare_playback(addon, played.service)
    assert len(caplog.records) == 1
    assert addon.count() == 1


def test_another_mitmproxy_is_left_alone():
    replay.prepare_playback(None, service_of("one"))
    replay.prepare_playback(object(), service_of("one"))
    assert flow_view.REFUSED == "pool.refused"
