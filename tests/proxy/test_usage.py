"""What is counted of an answer that passes, however it comes and however it ends."""

from __future__ import annotations

import gzip
import json
from random import Random

import brotli
import pytest

from account_pool.core.decisions import Kind
from account_pool.core.steps import Limits
from account_pool.core.usage import END_BYTES, Tally
from account_pool.providers import anthropic
from account_pool.proxy import flow_view, pooled_exchange
from account_pool.proxy.decoding import zstd
from tests.proxy.helpers import (
    CHUNKED,
    DELTA,
    DONE,
    EMPTY_CHOICES,
    JSON,
    LIMIT_EVENT,
    LIMITED,
    OK,
    SSE,
    chunk,
    event,
    head1,
    http1,
    needs_brotli,
    options_of,
    post1,
    service_of,
)

USAGE = {"prompt_tokens": 120, "completion_tokens": 30, "total_tokens": 150}
TOLD = event({"choices": [], "usage": USAGE})
EVENTS = head1(200, [SSE, CHUNKED])
LAST_CHUNK = b"0\r\n\r\n"
ONE = ("openai/one", "gpt-5")
TWO = ("openai/two", "gpt-5")
SERVED = Tally(1, 120, 0, 30)


def totals(rig):
    return rig.service.usages.totals


def answered(body: bytes, *headers: str) -> bytes:
    return http1(200, body, [JSON, *headers])


def test_a_document(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(answered(json.dumps({"choices": [{}], "usage": USAGE}).encode()))
    assert totals(rig) == {ONE: SERVED}
    rig.send(post1())
    rig.server.send(OK)
    assert totals(rig) == {ONE: Tally(2, 120, 0, 30)}


def test_a_document_in_pieces(rig_of):
    rig = rig_of()
    raw = answered(json.dumps({"usage": USAGE, "choices": ["x" * 200_000]}).encode())
    rig.send(post1())
    for start in range(0, len(raw), 1000):
        rig.server.send(raw[start : start + 1000])
    assert totals(rig) == {ONE: SERVED}


def test_a_stream(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA))
    for piece in (TOLD[:20], TOLD[20:21], TOLD[21:], DONE):
        rig.server.send(chunk(piece))
    assert totals(rig) == {}
    rig.server.send(LAST_CHUNK)
    assert totals(rig) == {ONE: SERVED}


def test_a_stream_in_one_piece(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(http1(200, DELTA + TOLD + DONE, [SSE]))
    assert totals(rig) == {ONE: SERVED}


def test_a_stream_over_http2(rig_of):
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    [request] = rig.requests
    rig.server.head(request.stream_id, 200, [SSE])
    rig.server.data(request.stream_id, DELTA)
    rig.server.data(request.stream_id, TOLD + DONE, end=True)
    assert totals(rig) == {ONE: SERVED}


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        pytest.param("br", brotli.compress, marks=needs_brotli),
        ("zstd", zstd.compress),
    ],
)
@pytest.mark.parametrize("ends", [True, False], ids=["complete", "left at the last byte"])
def test_a_compressed_stream(rig_of, encoding, encode, ends):
    rig = rig_of()
    body = encode(DELTA * 50 + TOLD + DONE)
    rig.send(post1())
    rig.server.send(head1(200, [SSE, CHUNKED, f"content-encoding: {encoding}"]))
    for start in range(0, len(body), 7):
        rig.server.send(chunk(body[start : start + 7]))
    if ends:
        rig.server.send(LAST_CHUNK)
    else:
        rig.leave()
    assert totals(rig) == {ONE: SERVED}
    assert b"".join(rig.answers[0].chunks) == body


def test_a_stream_of_damaged_compression_counts_as_a_request(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(head1(200, [SSE, CHUNKED, "content-encoding: gzip"]))
    rig.server.send(chunk(gzip.compress(DELTA)[:12] + b"damaged" * 9))
    rig.server.send(LAST_CHUNK)
    assert totals(rig) == {ONE: Tally(1)}


def test_a_stream_longer_than_its_copy(rig_of, monkeypatch):
    monkeypatch.setattr(flow_view, "MAX_COPY_BYTES", 1000)
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA))
    for _ in range(100):
        rig.server.send(chunk(DELTA * 60))
    [stream] = {
        s for s in rig.layer.streams.values() if isinstance(s, pooled_exchange.PooledExchange)
    }
    assert END_BYTES <= len(stream.copy.tail) <= 2 * END_BYTES
    for byte in TOLD:
        rig.server.send(chunk(bytes([byte])))
    rig.server.send(chunk(DONE) + LAST_CHUNK)
    assert totals(rig) == {ONE: SERVED}


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        pytest.param("br", brotli.compress, marks=needs_brotli),
        ("zstd", zstd.compress),
    ],
)
def test_a_compressed_stream_longer_than_its_copy(rig_of, monkeypatch, encoding, encode):
    monkeypatch.setattr(flow_view, "MAX_COPY_BYTES", 1000)
    rig = rig_of()
    chance = Random(1)
    deltas = (event({"choices": [{"delta": {"content": chance.random()}}]}) for _ in range(2000))
    body = encode(b"".join(deltas) + TOLD + LIMIT_EVENT)
    assert len(body) > 10_000
    rig.send(post1())
    rig.server.send(head1(200, [SSE, CHUNKED, f"content-encoding: {encoding}"]))
    for start in range(0, len(body), 700):
        rig.server.send(chunk(body[start : start + 700]))
    rig.server.send(LAST_CHUNK)
    assert totals(rig) == {ONE: SERVED}
    # The error event at its very end was read, too.
    assert rig.cooling() == {"one"}


def test_where_mitmproxy_keeps_the_body(rig_of):
    options = options_of()
    if "store_streamed_bodies" not in options:
        pytest.skip("an option of newer mitmproxy")
    options.update(store_streamed_bodies=True)
    rig = rig_of(options=options)
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA))
    rig.server.send(chunk(TOLD + DONE) + LAST_CHUNK)
    assert totals(rig) == {ONE: SERVED}


def test_a_stream_replayed_by_hand(rig_of):
    rig = rig_of()
    rig.on["requestheaders"] = lambda flow: setattr(flow, "is_replay", "request")
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA))
    rig.server.send(chunk(TOLD + DONE) + LAST_CHUNK)
    assert totals(rig) == {ONE: SERVED}


# -- endings


def test_a_client_that_hangs_up_at_the_last_event(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA) + chunk(TOLD))
    rig.server.send(chunk(DONE))
    rig.leave()
    assert totals(rig) == {ONE: SERVED}
    assert rig.service.measured.requests == {("openai", "served"): 1}


def test_the_net_below_is_quicker_than_the_event(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA) + chunk(TOLD))
    rig.service.client_gone(rig.client)
    rig.leave()
    assert totals(rig) == {ONE: SERVED}
    assert rig.service.measured.requests == {("openai", "served"): 1}


def test_a_client_that_cancels_its_stream_in_the_middle(rig_of):
    rig = rig_of(client2=True)
    stream_id = rig.ask()
    rig.server.send(EVENTS + chunk(DELTA))
    rig.cancel(stream_id)
    assert totals(rig) == {ONE: Tally(1)}


def test_a_stream_that_breaks_tells_what_it_had_told(rig_of, clock):
    service = service_of("one", clock=clock, providers=[anthropic.PROVIDER])
    rig = rig_of(service=service, address=("api.anthropic.com", 443))
    usage = {"input_tokens": 20, "cache_read_input_tokens": 100, "output_tokens": 1}
    started = {"type": "message_start", "message": {"usage": usage}}
    delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}}
    rig.send(post1("/v1/messages", b'{"model":"claude-x"}', host="api.anthropic.com"))
    rig.server.send(EVENTS + chunk(event(started) + event(delta)))
    rig.server.close()
    assert totals(rig) == {("anthropic/one", "claude-x"): Tally(1, 120, 100, 1)}


# -- what is not served


@pytest.mark.parametrize("refusal", [LIMITED, http1(200, LIMIT_EVENT, [SSE])])
def test_a_refused_attempt_is_nobodys_usage(rig_of, refusal):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(refusal)
    rig.server.send(answered(json.dumps({"usage": USAGE}).encode()))
    assert totals(rig) == {TWO: SERVED}
    measured = rig.service.measured
    assert measured.attempts == {("openai/one", "rate_limit"): 1, ("openai/two", "ok"): 1}
    assert measured.failovers == {"openai": 1}
    assert measured.requests == {("openai", "served"): 1}


def test_a_delivered_refusal_is_no_usage(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(LIMITED)
    assert totals(rig) == {}
    rig.send(post1())
    assert rig.service.measured.requests == {("openai", "refused"): 2}


def test_an_answer_that_is_fetched_again_was_counted_before(rig_of):
    rig = rig_of()
    rig.send(post1("/v1/models", b"", method="GET"))
    rig.server.send(answered(json.dumps({"usage": USAGE}).encode()))
    assert totals(rig) == {}


def test_other_media_count_as_requests(rig_of):
    rig = rig_of()
    rig.send(post1("/v1/audio/speech"))
    rig.server.send(http1(200, json.dumps({"usage": USAGE}).encode(), ["content-type: audio/mp3"]))
    assert totals(rig) == {ONE: Tally(1)}


# -- how long things take


def test_times_of_a_request(rig_of, clock):
    rig = rig_of()
    rig.held.add("open")
    rig.send(post1())
    clock.advance(3.0)  # a connection opens: not our doing
    rig.complete()
    clock.advance(2.0)
    rig.server.send(EVENTS)
    clock.advance(0.75)
    rig.server.send(chunk(DELTA))
    rig.server.send(LAST_CHUNK)
    timings = rig.service.measured.timings["openai"]
    assert (timings.overhead.count, timings.overhead.sum) == (1, 0.0)
    assert (timings.head.count, timings.head.sum) == (1, 2.0)
    assert (timings.first_byte.count, timings.first_byte.sum) == (1, 2.75)
    assert (timings.held.count, timings.held.sum) == (1, 0.75)
    assert timings.wait.count == 0


def test_the_first_byte_is_noted_when_it_comes(rig_of, clock):
    rig = rig_of("one", "two", gate_s=100.0)
    for _ in range(20):
        rig.send(post1())
        clock.advance(1.0)
        rig.server.send(EVENTS + chunk(EMPTY_CHOICES))
        clock.advance(50.0)
        rig.server.send(chunk(DELTA) + LAST_CHUNK)
    rig.send(post1())
    clock.advance(5.0)
    rig.service.look()
    # Four times the usual second: not the time until an answer was handed on.
    assert [d.kind for d in rig.service.pool.decisions] == [Kind.SILENCE]


def test_times_of_a_wait(rig_of, clock):
    rig = rig_of("one", limits=Limits(max_wait_s=60.0))
    rig.cool("one", 20.0)
    rig.send(post1())
    rig.server.send(OK)
    timings = rig.service.measured.timings["openai"]
    assert timings.wait.count == 1
    assert 20.0 <= timings.wait.sum <= 23.0
    assert timings.overhead.sum == 0.0


def test_a_client_that_left_before_its_answer(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.leave()
    measured = rig.service.measured
    assert measured.requests == {("openai", "left"): 1}
    assert measured.attempts == {("openai/one", "left"): 1}
    assert totals(rig) == {}
