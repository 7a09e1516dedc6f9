"""Each request of a client leaves a row, once, however it ends."""

from __future__ import annotations

import json

import pytest

from account_pool.core.instruments import GONE_S
from account_pool.core.request_rows import RequestRow, row_of
from account_pool.core.steps import Limits
from tests.proxy.helpers import (
    CHUNKED,
    DELTA,
    DONE,
    JSON,
    LIMIT_EVENT,
    LIMITED,
    OK,
    SSE,
    chunk,
    event,
    head1,
    http1,
    post1,
)

USAGE = {"prompt_tokens": 120, "completion_tokens": 30, "total_tokens": 150}
TOLD = http1(200, json.dumps({"choices": [{}], "usage": USAGE}).encode(), [JSON])
EVENTS = head1(200, [SSE, CHUNKED])
LAST_CHUNK = b"0\r\n\r\n"
AGENT = ["user-agent: codex_cli_rs/0.44.0"]


def rows(rig) -> list[RequestRow]:
    return [row_of(ended) for ended in rig.service.ended.waiting]


def row(rig) -> RequestRow:
    [found] = rows(rig)
    return found


def test_a_served_request(rig_of, clock):
    rig = rig_of()
    rig.send(post1(headers=AGENT))
    clock.advance(2.0)
    rig.server.send(TOLD)
    found = row(rig)
    assert (found.account, found.model, found.endpoint) == (
        "openai/one", "gpt-5", "/v1/chat/completions",
    )  # fmt: skip
    assert (found.tool, found.status, found.http_status) == ("codex", "ok", 200)
    assert (found.attempts, found.failovers, found.counted) == (1, 0, 1)
    assert (found.input_tokens, found.output_tokens) == (120, 30)
    assert (found.first_byte_s, found.duration_s) == (2.0, 2.0)
    assert found.wall_at == clock.wall_now() - 2.0


def test_a_failover_is_one_row(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(LIMITED)
    rig.server.send(TOLD)
    found = row(rig)
    assert (found.account, found.status, found.attempts, found.failovers) == (
        "openai/two", "ok", 2, 1,
    )  # fmt: skip


@pytest.mark.parametrize("refusal", [LIMITED, http1(400, b'{"error":{"message":"no"}}', [JSON])])
def test_a_refusal(rig_of, refusal):
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(refusal)
    found = row(rig)
    status = int(refusal[9:12])
    assert (found.status, found.http_status, found.counted) == ("refused", status, 0)
    assert (found.account, found.first_byte_s, found.input_tokens) == ("openai/one", None, None)


def test_a_refusal_inside_a_stream(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(http1(200, LIMIT_EVENT, [SSE]))
    assert (row(rig).status, row(rig).http_status) == ("refused", 200)


def test_nobody_can_serve(rig_of):
    rig = rig_of("one")
    rig.cool("one", 600.0)
    rig.send(post1())
    found = row(rig)
    assert (found.status, found.attempts, found.account) == ("refused", 0, None)
    assert found.http_status == 429


def test_a_wait(rig_of):
    rig = rig_of("one", limits=Limits(max_wait_s=60.0))
    rig.cool("one", 20.0)
    rig.send(post1())
    rig.server.send(OK)
    assert row(rig).status == "ok"
    assert row(rig).wait_s >= 20.0


def test_what_is_refused_without_an_attempt(rig_of):
    rig = rig_of(peer="192.0.2.1")
    rig.send(post1(headers=AGENT))
    found = row(rig)
    assert (found.status, found.http_status, found.attempts) == ("refused", 403, 0)
    assert (found.tool, found.account) == ("codex", None)


def test_a_client_that_leaves_before_the_answer(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.leave()
    assert (row(rig).status, row(rig).http_status, row(rig).account) == (
        "aborted", None, "openai/one",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (DELTA, "aborted"),
        # Clients hang up as soon as they have the last event.
        (DONE, "ok"),
        (event({"choices": [{"delta": {}, "finish_reason": "stop"}]}), "ok"),
        (event({"choices": [{"delta": {}, "finish_reason": None}]}), "aborted"),
        (event({"type": "response.completed", "response": {}}), "ok"),
    ],
)
@pytest.mark.parametrize("end", ["client", "server"])
def test_a_stream_that_is_cut_off(rig_of, last, status, end):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA))
    rig.server.send(chunk(last))
    rig.leave() if end == "client" else rig.server.close()
    assert (row(rig).status, row(rig).http_status, row(rig).counted) == (status, 200, 1)


def test_a_stream_that_ends_in_an_error(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA))
    rig.server.send(chunk(LIMIT_EVENT) + LAST_CHUNK)
    assert row(rig).status == "aborted"


def test_a_client_whose_end_is_known_before_its_event(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA) + chunk(event({"usage": USAGE})) + chunk(DONE))
    rig.service.client_gone(rig.client)
    assert rows(rig) == []
    rig.leave()
    assert (row(rig).status, row(rig).input_tokens) == ("ok", 120)


def test_a_client_whose_event_never_comes(rig_of, clock):
    rig = rig_of()
    rig.send(post1())
    rig.service.client_gone(rig.client)
    rig.service.look()
    assert rows(rig) == []
    clock.advance(GONE_S + 1)
    rig.service.look()
    rig.service.look()
    rig.leave()
    assert row(rig).status == "aborted"


def test_what_is_only_fetched_is_a_row_and_no_usage(rig_of):
    rig = rig_of()
    rig.send(post1("/v1/models", b"", method="GET"))
    rig.server.send(TOLD)
    assert (row(rig).status, row(rig).counted, row(rig).input_tokens) == ("ok", 0, None)


def test_the_name_given_to_proxyauth_is_the_tool(rig_of):
    rig = rig_of()
    rig.on["requestheaders"] = lambda flow: flow.metadata.update(proxyauth=("ci", "secret"))
    rig.send(post1(headers=AGENT))
    rig.server.send(OK)
    assert row(rig).tool == "ci"


def test_rows_add_up_to_usage(rig_of):
    rig = rig_of()
    for answer in (TOLD, OK, LIMITED, TOLD):
        rig.send(post1())
        rig.server.send(answer)
    rig.server.send(TOLD)
    totals = rig.service.usages.totals.values()
    assert sum(one.counted for one in rows(rig)) == sum(t.requests for t in totals)
    assert sum(one.input_tokens or 0 for one in rows(rig)) == sum(t.input_tokens for t in totals)


def test_nothing_that_was_said_is_in_a_row(rig_of):
    rig = rig_of()
    body = b'{"model":"gpt-5","user":"user-id-4711","messages":[{"content":"a secret prompt"}]}'
    rig.send(post1("/v1/chat/completions?key=query-secret", body, headers=[
        "user-agent: sk-agent-secret", "session_id: session-secret", "x-other: header-secret",
    ]))  # fmt: skip
    rig.server.send(http1(200, b'{"choices":[{"message":{"content":"a secret answer"}}]}', [JSON]))
    assert "secret" not in repr(row(rig))
    assert "4711" not in repr(row(rig))
