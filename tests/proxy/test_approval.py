"""A request that is held until a person resumes or kills it."""

from __future__ import annotations

import asyncio

import pytest
from mitmproxy import exceptions
from mitmproxy.test import tflow

from account_pool.proxy import flow_view
from tests.proxy.helpers import OK, post1


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
