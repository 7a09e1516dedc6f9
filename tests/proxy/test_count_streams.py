"""Streams that are asked for their usage, event by event through the layer."""

from __future__ import annotations

import gzip
import json

import pytest

from account_pool.core.usage import Tally
from tests.core.test_usage_streams import DONE, USAGE, WORDS, event, streams
from tests.proxy.helpers import CHUNKED, JSON, LIMITED, SSE, chunk, head1, http1, post1

ASKED, PLAIN = streams()
STREAM = b'{"model":"gpt-5","stream":true,"messages":[]}'
LAST_CHUNK = b"0\r\n\r\n"
ONE, TWO = ("openai/one", "gpt-5"), ("openai/two", "gpt-5")
SERVED = Tally(1, 9, 0, 4)


@pytest.fixture
def counting(rig_of):
    return lambda *labels, **how: rig_of(*labels, count_streams=True, **how)


def asks(request) -> bool:
    assert len(request.body) == int(request.get("content-length"))
    return "stream_options" in json.loads(request.body)


@pytest.mark.parametrize("fast", [(), ("relay",)])
@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_in_pieces_of_any_size(counting, size, fast):
    rig = counting(fast=frozenset(fast))
    rig.send(post1(body=STREAM, headers=["accept-encoding: gzip"]))
    [request] = rig.requests
    assert asks(request)
    assert request.get("accept-encoding") == "identity"
    rig.server.send(head1(200, [SSE, CHUNKED]))
    for start in range(0, len(ASKED), size):
        rig.server.send(chunk(ASKED[start : start + size]))
    rig.server.send(LAST_CHUNK)
    assert rig.answers[0].body == PLAIN
    assert rig.answers[0].complete
    assert rig.service.usages.totals == {ONE: SERVED}


def test_each_event_goes_on_when_it_is_there(counting):
    rig = counting()
    rig.send(post1(body=STREAM))
    first, second = (event({**word, "usage": None}) for word in WORDS[:2])
    rig.server.send(head1(200, [SSE, CHUNKED]) + chunk(first))
    rig.server.send(chunk(second))
    assert rig.answers[0].body == event(WORDS[0]) + event(WORDS[1])
    rig.leave()


@pytest.mark.parametrize("how", [{"client2": True}, {"server2": True}, {}])
def test_over_either_version_and_in_one_piece(counting, how):
    rig = counting(**how)
    if how.get("client2"):
        rig.ask(body=STREAM)
    else:
        rig.send(post1(body=STREAM))
    if how.get("server2"):
        [request] = rig.requests
        rig.server.head(request.stream_id, 200, [SSE])
        rig.server.data(request.stream_id, ASKED, end=True)
    else:
        rig.server.send(http1(200, ASKED, [SSE]))
    assert rig.answers[0].body == PLAIN
    assert rig.service.usages.totals == {ONE: SERVED}


def test_a_failover_asks_again(counting):
    rig = counting()
    rig.send(post1(body=STREAM))
    rig.server.send(LIMITED)
    assert [asks(request) for request in rig.requests] == [True, True]
    rig.server.send(http1(200, ASKED, [SSE]))
    assert rig.answers[0].body == PLAIN
    assert rig.service.usages.totals == {TWO: SERVED}


def test_what_is_compressed_all_the_same_is_left_as_it_is(counting):
    rig = counting()
    rig.send(post1(body=STREAM))
    body = gzip.compress(ASKED)
    rig.server.send(http1(200, body, [SSE, "content-encoding: gzip"]))
    assert rig.answers[0].body == body
    assert rig.service.usages.totals == {ONE: SERVED}


def test_a_client_that_leaves_at_the_last_event(counting):
    rig = counting()
    rig.send(post1(body=STREAM))
    rig.server.send(head1(200, [SSE, CHUNKED]) + chunk(ASKED[: -len(DONE)]))
    rig.server.send(chunk(DONE))
    rig.leave()
    assert rig.service.usages.totals == {ONE: SERVED}
    [ended] = rig.service.ended.waiting
    assert ended.whole


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/chat/completions", b'{"model":"gpt-5","messages":[]}', []),
        ("/v1/chat/completions", b'{"stream":true,"stream_options":{}}', []),
        ("/v1/chat/completions", gzip.compress(STREAM, mtime=0), ["content-encoding: gzip"]),
        ("/v1/responses", STREAM, []),
        ("/v1/completions", STREAM, []),
    ],
)
def test_what_is_not_asked(counting, path, body, headers):
    rig = counting()
    rig.send(post1(path, body, headers))
    assert rig.requests[0].body == body
    rig.server.send(http1(200, ASKED, [SSE]))
    assert rig.answers[0].body == ASKED


def test_without_the_option_nothing_is_asked(rig_of):
    rig = rig_of()
    rig.send(post1(body=STREAM))
    assert rig.requests[0].body == STREAM
    rig.server.send(http1(200, ASKED, [SSE]))
    assert rig.answers[0].body == ASKED


REFUSED = http1(400, b'{"error":{"message":"no stream_options","param":"stream_options"}}', [JSON])


def test_a_refusal_of_ours_is_replayed_and_remembered(counting):
    rig = counting("one")
    rig.send(post1(body=STREAM))
    rig.server.send(REFUSED)
    assert [asks(request) for request in rig.requests] == [True, False]
    rig.server.send(http1(200, PLAIN, [SSE]))
    assert rig.answers[0].body == PLAIN
    rig.send(post1(body=STREAM))
    assert not asks(rig.requests[2])
    # What is refused without it is the client's own.
    rig.server.send(REFUSED)
    assert rig.answers[1].status == 400
    assert rig.cooling() == set()


def test_a_refusal_of_ours_with_no_attempt_left_is_delivered(rig_of):
    from account_pool.core.steps import Limits

    rig = rig_of("one", count_streams=True, limits=Limits(max_wait_s=0.0, max_attempts=1))
    rig.send(post1(body=STREAM))
    rig.server.send(REFUSED)
    assert rig.answers[0].status == 400
    assert USAGE
