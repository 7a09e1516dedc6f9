"""Which recorded answers mitmproxy plays back, and for which requests."""

from __future__ import annotations

import pytest
from mitmproxy import http
from mitmproxy.addons.serverplayback import ServerPlayback
from mitmproxy.test import taddons, tflow

from account_pool.providers import gemini
from account_pool.proxy import playback, shown
from tests.proxy.helpers import service_of

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
            playback.prepare(addon, service)
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
    playback.prepare(addon, played.service)
    assert len(caplog.records) == 1
    assert addon.count() == 1


def test_another_mitmproxy_is_left_alone():
    playback.prepare(None, service_of("one"))
    playback.prepare(object(), service_of("one"))
    assert shown.REFUSED == "pool.refused"
