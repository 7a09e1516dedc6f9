"""One request event by event: attempts, gates, deliveries, failures of our own."""

from __future__ import annotations

import gzip
import json
import logging
import zlib

import brotli
import pytest
from mitmproxy import http
from mitmproxy.net.server_spec import ServerSpec
from mitmproxy.proxy.layers.http import HTTPMode, RequestEndOfMessage, ResponseData, ResponseHeaders
from msgspec.structs import replace

from account_pool.core import steps
from account_pool.core.pool import Pool
from account_pool.core.steps import Limits
from account_pool.providers import anthropic, copilot, gemini, openai
from account_pool.providers.base import HostRule, LocalResponse
from account_pool.providers.definition import add_hosts
from account_pool.proxy import flow_view, pooled_exchange, refused_attempts, stream
from account_pool.proxy.decoding import zstd
from account_pool.proxy.http_layer import KEPT_CLOSED, SWEEP_S, PoolHttpLayer
from account_pool.proxy.pooled_request import Recognizer
from tests.proxy.helpers import (
    CHAT,
    CHUNKED,
    CLIENT_KEY,
    DELTA,
    DONE,
    EMPTY_CHOICES,
    JSON,
    LIMIT_BODY,
    LIMIT_EVENT,
    LIMITED,
    LIMITED_HEADERS,
    OK,
    OK_BODY,
    SSE,
    account,
    chunk,
    head1,
    http1,
    needs_brotli,
    options_of,
    post1,
    secret,
    service_of,
)

ONE, TWO = secret("one"), secret("two")
LAST_CHUNK = b"0\r\n\r\n"
EVENTS = head1(200, [SSE, CHUNKED])
PATIENT = Limits(max_wait_s=30.0)


def ok(rig, answer=-1) -> None:
    message = rig.answers[answer]
    assert (message.status, message.body, message.complete) == (200, OK_BODY, True)


# -- a refusal is replayed


def test_limited_then_good_on_the_same_connection(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(LIMITED)
    assert rig.keys == [ONE, TWO]
    assert rig.received == b""
    rig.server.send(OK)
    ok(rig)
    assert len(rig.servers) == 1
    assert rig.cooling() == {"one"}
    assert len(rig.answers) == 1


def test_both_attempts_are_the_same_but_for_the_credential(rig_of):
    rig = rig_of()
    rig.send(post1("/v1/chat/completions?x=1", headers=["X-Own: a", "x-own: b"]))
    rig.server.send(LIMITED)
    first, second = rig.requests
    assert [h for h in first.headers if h[0] != "Authorization"] == [
        h for h in second.headers if h[0] != "Authorization"
    ]
    assert [name for name, _ in first.headers] == [
        "Host", "Authorization", "X-Own", "x-own", "content-length",
    ]  # fmt: skip
    assert (first.body, second.body) == (CHAT, CHAT)


def test_connection_close_is_followed_by_a_new_connection(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(http1(429, LIMIT_BODY, [*LIMITED_HEADERS, "Connection: close"]))
    assert len(rig.servers) == 2
    assert rig.servers[0].closed
    rig.server.send(OK)
    ok(rig)
    assert rig.keys == [ONE, TWO]


def test_a_refusal_that_ends_with_its_connection(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(head1(429, LIMITED_HEADERS) + LIMIT_BODY)
    assert len(rig.servers) == 1
    rig.server.close()
    assert len(rig.servers) == 2
    rig.server.send(OK)
    ok(rig)


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "content-length"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_any_split_of_both_answers(rig_of, chunked, size):
    rig = rig_of()
    rig.send(post1())
    server = rig.server
    for answer in (http1(429, LIMIT_BODY, LIMITED_HEADERS, chunked=chunked), OK):
        for start in range(0, len(answer), size):
            server.send(answer[start : start + size])
    ok(rig)
    assert rig.keys == [ONE, TWO]
    assert len(rig.servers) == 1


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        pytest.param("br", brotli.compress, marks=needs_brotli),
        ("zstd", zstd.compress),
        ("deflate", zlib.compress),
    ],
)
@pytest.mark.parametrize("chunked", [True, False])
def test_compressed_refusals_are_understood(rig_of, encoding, encode, chunked):
    """`insufficient_quota` is only in the body: the account cools as it says."""
    body = encode(b'{"error": {"code": "insufficient_quota", "message": "You are out of money"}}')
    rig = rig_of()
    rig.send(post1())
    rig.server.send(http1(429, body, [JSON, f"content-encoding: {encoding}"], chunked=chunked))
    rig.server.send(OK)
    ok(rig)
    state = next(iter(rig.service.pool.accounts))
    assert "insufficient_quota" in state.cooldowns[None].cause.signal


def test_damaged_compression_is_a_refusal_by_its_status(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(http1(429, b"no gzip", [*LIMITED_HEADERS, "content-encoding: gzip"]))
    rig.server.send(OK)
    ok(rig)


def test_broken_off_in_the_middle_of_a_refusal(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(LIMITED[:-5])
    rig.server.close()
    assert rig.keys == [ONE, TWO]
    rig.server.send(OK)
    ok(rig)
    assert rig.cooling() == {"one"}


def test_an_unending_refusal_is_cut_off_and_replayed(rig_of):
    rig = rig_of()
    rig.send(post1())
    first = rig.server
    first.send(head1(429, [*LIMITED_HEADERS, CHUNKED]) + chunk(LIMIT_BODY))
    assert rig.keys == [ONE]
    rig.advance(6)
    rig.advance(1)
    assert first.closed
    assert rig.keys == [ONE, TWO]
    rig.server.send(OK)
    ok(rig)


def test_a_refusal_with_a_length_that_stalls_is_cut_off_too(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(LIMITED[:-5])
    rig.advance(6)
    rig.advance(1)
    assert rig.keys == [ONE, TWO]
    rig.server.send(OK)
    ok(rig)


def test_a_huge_refusal_is_not_kept_whole(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(head1(429, [*LIMITED_HEADERS, CHUNKED]) + chunk(LIMIT_BODY))
    for _ in range(5):
        rig.server.send(chunk(b" " * 20_000))
    rig.server.send(LAST_CHUNK)
    assert rig.keys == [ONE, TWO]
    rig.server.send(OK)
    ok(rig)


def test_a_request_error_is_delivered_as_it_is(rig_of):
    body = b'{"error": {"message": "too long", "code": "context_length_exceeded"}}'
    answer = http1(404, body, [JSON, "X-Request-Id: r1"])
    rig = rig_of()
    rig.send(post1())
    rig.server.send(answer)
    assert rig.received == answer
    assert rig.keys == [ONE]
    assert rig.cooling() == set()


def test_nobody_left_delivers_the_last_refusal_with_the_wait_of_the_pool(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(http1(429, LIMIT_BODY, [JSON, "retry-after: 20"]))
    rig.server.send(http1(429, LIMIT_BODY, [JSON, "retry-after: 50"]))
    answer = rig.answers[0]
    assert (answer.status, answer.body) == (429, LIMIT_BODY)
    assert 18 <= int(answer.get("retry-after")) <= 22
    assert rig.cooling() == {"one", "two"}
    # The connection to the client stays, and tells the next request the same.
    rig.send(post1())
    assert rig.answers[1].status == 429
    assert len(rig.requests) == 2


def test_waits_for_an_account_and_serves(rig_of):
    rig = rig_of("one", limits=PATIENT)
    rig.send(post1())
    rig.server.send(LIMITED)
    assert rig.keys == [ONE, ONE]
    rig.server.send(OK)
    ok(rig)


def test_the_most_attempts(rig_of):
    rig = rig_of("one", "two", "three", limits=Limits(max_attempts=2))
    rig.send(post1())
    rig.server.send(LIMITED)
    rig.server.send(LIMITED)
    assert len(rig.requests) == 2
    assert rig.answers[0].status == 429


def test_a_refused_credential_is_renewed_and_tried_again(rig_of):
    rig = rig_of("one")
    rig.refreshed = True
    rig.send(post1())
    rig.server.send(http1(401, b'{"error": {"code": "invalid_api_key", "message": "no"}}', [JSON]))
    assert rig.keys == [ONE, ONE]
    rig.server.send(OK)
    ok(rig)


DEAD_KEY = http1(401, b'{"error": {"code": "invalid_api_key", "message": "no"}}', [JSON])


def test_what_all_accounts_refuse_disables_nobody(rig_of):
    """Only those are benched whose key was named."""
    rig = rig_of("one", "two")
    rig.send(post1())
    rig.server.send(DEAD_KEY)
    rig.server.send(DEAD_KEY)
    assert rig.answers[0].status == 401
    assert rig.cooling() == {"one", "two"}
    assert all(state.enabled for state in rig.service.pool.accounts)
    assert rig.keys == [ONE, TWO]


def test_a_good_account_behind_dead_ones_is_asked(rig_of):
    rig = rig_of("one", "two", "three")
    rig.send(post1())
    rig.server.send(DEAD_KEY)
    rig.server.send(DEAD_KEY)
    rig.server.send(OK)
    ok(rig)
    assert [state.enabled for state in rig.service.pool.accounts] == [False, False, True]


def test_an_echoed_credential_does_not_reach_the_client(rig_of):
    body = json.dumps({"error": {"message": f"Incorrect API key: {ONE}", "code": "x"}}).encode()
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(http1(400, body, [JSON, f"X-Echo: {ONE}"]))
    assert rig.answers[0].status == 400
    assert ONE.encode() not in rig.received
    assert b"*" * len(ONE) in rig.received


def test_an_echoed_credential_does_not_reach_later_clients(rig_of):
    """The refusal that is told again while an account cools is cleaned as well."""
    body = json.dumps(
        {"error": {"message": f"Rate limit of key {ONE}", "code": "rate_limit_exceeded"}}
    ).encode()
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(http1(429, body, [*LIMITED_HEADERS, f"X-Echo: {ONE}"]))
    rig.send(post1())
    assert [a.status for a in rig.answers] == [429, 429]
    assert len(rig.requests) == 1
    assert ONE.encode() not in rig.received


STARS = b"*" * len(ONE)
ECHO = json.dumps({"error": {"message": f"bad key {ONE} here", "code": "x"}}).encode()


def test_an_echo_in_a_refusal_that_stalls(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(head1(400, [JSON, CHUNKED, f"X-Echo: {ONE}"]) + chunk(ECHO))
    assert rig.received == b""
    rig.advance(6)
    # It is delivered while it still comes; this echo is cut in two.
    rig.server.send(chunk(ONE[:5].encode()))
    rig.server.send(chunk(ONE[5:].encode()))
    rig.server.send(LAST_CHUNK)
    answer = rig.answers[0]
    assert (answer.status, answer.complete) == (400, True)
    assert answer.body == ECHO.replace(ONE.encode(), STARS) + STARS
    assert ONE.encode() not in rig.received
    assert len(rig.answers) == 1


def test_an_echo_in_a_refusal_that_is_too_big(rig_of):
    body = b" " * 70_000 + ECHO
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(http1(400, body, [JSON]))
    assert rig.answers[0].complete
    assert rig.answers[0].body == body.replace(ONE.encode(), STARS)
    assert rig.answers[0].get("content-length") == str(len(body))


def test_an_echo_in_a_refusal_that_stalls_and_is_compressed(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    encoded = [JSON, CHUNKED, "content-encoding: gzip"]
    rig.server.send(head1(400, encoded) + chunk(gzip.compress(ECHO)[:-9]))
    rig.advance(6)
    assert rig.answers[0].status == 400
    assert rig.answers[0].get("content-encoding") is None
    assert json.loads(rig.answers[0].body)["error"]
    assert ONE.encode() not in rig.received


def test_an_echo_in_an_error_inside_a_200(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    wrong = ECHO.replace(b'"x"', b'"invalid_api_key"')
    rig.server.send(http1(200, wrong, [JSON, f"X-Echo: {ONE}"]))
    assert (rig.answers[0].status, rig.answers[0].complete) == (200, True)
    assert rig.answers[0].body == wrong.replace(ONE.encode(), STARS)
    assert ONE.encode() not in rig.received


def test_an_echo_in_a_redirect(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(http1(307, b"see " + ONE.encode(), [f"Location: https://x/?key={ONE}"]))
    answer = rig.answers[0]
    assert answer.get("location") == "https://x/?key=" + STARS.decode()
    assert (answer.status, answer.body, answer.complete) == (307, b"see " + STARS, True)
    assert rig.cooling() == set()


def test_an_echo_that_is_encoded_twice(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    twice = gzip.compress(gzip.compress(ECHO))
    rig.server.send(http1(400, twice, [JSON, "content-encoding: gzip, gzip"]))
    assert rig.answers[0].status == 400
    assert rig.answers[0].get("content-encoding") is None
    assert rig.answers[0].body == ECHO.replace(ONE.encode(), STARS)


@pytest.mark.parametrize("encoding", ["x-own", "gzip, x-own", "gzip, gzip, gzip, gzip"])
def test_an_echo_that_cannot_be_searched_for(rig_of, encoding):
    rig = rig_of("one")
    rig.send(post1())
    head = [JSON, f"content-encoding: {encoding}", "x-request-id: r1"]
    rig.server.send(http1(400, ECHO, head))
    assert rig.answers[0].status == 400
    assert rig.answers[0].get("content-encoding") is None
    assert rig.answers[0].get("x-request-id") == "r1"
    assert b"cannot read" in rig.answers[0].body


def test_an_echo_around_an_empty_frame(rig_of):
    """An empty frame is not the end, to the scrubber or to a client that gets chunks."""
    rig = rig_of("one", server2=True)
    rig.send(post1())
    rig.server.head(1, 400, [JSON])
    rig.advance(6)
    rig.server.data(1, b"key " + ONE[:5].encode())
    rig.server.data(1, b"")
    rig.server.data(1, ONE[5:].encode() + b" here", end=True)
    assert rig.answers[0].body == b"key " + STARS + b" here"


# -- the first-event gate


def test_chunks_of_a_good_stream_pass_one_by_one(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS)
    assert rig.received == b""
    rig.server.send(chunk(DELTA))
    assert rig.received == EVENTS + chunk(DELTA)
    rig.server.send(chunk(b"data: par") + chunk(b"tial\n\n"))
    assert rig.received == EVENTS + chunk(DELTA) + chunk(b"data: par") + chunk(b"tial\n\n")
    assert rig.in_flight() == 1
    rig.server.send(LAST_CHUNK)
    assert rig.received.endswith(LAST_CHUNK)
    assert rig.in_flight() == 0
    assert rig.flows[0].response.raw_content == DELTA + b"data: partial\n\n"


def test_a_limit_inside_a_stream_is_replayed_and_its_events_are_not_seen(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(b": comment\n\n") + chunk(EMPTY_CHOICES))
    rig.server.send(chunk(LIMIT_EVENT))
    assert rig.keys == [ONE]
    rig.server.send(chunk(DONE) + LAST_CHUNK)
    # It was read to its end: the connection is used again.
    assert rig.keys == [ONE, TWO]
    assert len(rig.servers) == 1
    rig.server.send(EVENTS + chunk(DELTA) + chunk(DONE) + LAST_CHUNK)
    assert rig.received == EVENTS + chunk(DELTA) + chunk(DONE) + LAST_CHUNK
    assert rig.cooling() == {"one"}


def test_a_refused_stream_that_does_not_end_is_cut_off(rig_of):
    rig = rig_of()
    rig.send(post1())
    first = rig.server
    first.send(EVENTS + chunk(LIMIT_EVENT))
    rig.advance(refused_attempts.DRAIN_S)
    assert first.closed
    assert rig.keys == [ONE, TWO]
    assert rig.received == b""
    rig.server.send(OK)
    ok(rig)


@pytest.mark.parametrize("piece", [1000, 60_000, 2_000_000])
def test_a_refused_stream_that_says_too_much_is_cut_off(rig_of, piece):
    rig = rig_of()
    rig.send(post1())
    first = rig.server
    rest = chunk(b"x" * 900) * 2000
    first.send(EVENTS + chunk(LIMIT_EVENT))
    for start in range(0, len(rest), piece):
        if not first.closed:
            first.send(rest[start : start + piece])
    assert first.closed
    assert rig.keys == [ONE, TWO]
    rig.server.send(OK)
    ok(rig)


def test_a_refused_stream_that_breaks_while_it_is_drained(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(LIMIT_EVENT))
    rig.server.close()
    assert rig.keys == [ONE, TWO]
    rig.server.send(OK)
    ok(rig)
    rig.advance(10)


def test_gate_time_is_over(rig_of):
    rig = rig_of(gate_s=5.0)
    rig.send(post1())
    rig.server.send(EVENTS + chunk(EMPTY_CHOICES))
    rig.advance(4.9)
    assert rig.received == b""
    rig.advance(0.2)
    assert rig.received == EVENTS + chunk(EMPTY_CHOICES)
    # Past the commit point an error is the client's to see.
    rig.server.send(chunk(LIMIT_EVENT) + LAST_CHUNK)
    assert rig.keys == [ONE]
    assert rig.received.endswith(chunk(LIMIT_EVENT) + LAST_CHUNK)


def test_gate_time_is_over_although_the_length_is_known(rig_of):
    head = head1(200, [JSON, f"content-length: {len(OK_BODY)}"])
    rig = rig_of(gate_s=5.0)
    rig.send(post1())
    rig.server.send(head + OK_BODY[:9])
    rig.advance(4.9)
    assert rig.received == b""
    rig.advance(0.2)
    assert rig.received == head + OK_BODY[:9]
    rig.server.send(OK_BODY[9:])
    ok(rig)


def test_an_answer_that_comes_with_its_head_needs_no_timer(rig_of):
    rig = rig_of(gate_s=5.0)
    rig.send(post1())
    rig.server.send(OK)
    ok(rig)
    assert [timer.delay for _, timer in rig.timers] == [SWEEP_S]


@pytest.mark.parametrize(
    "quiet", [chunk(EMPTY_CHOICES) * 64, chunk(b": " + b"x" * 1020 + b"\n\n") * 64]
)
def test_gate_is_bounded(rig_of, quiet):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + quiet)
    assert rig.received == EVENTS + quiet


def test_a_json_error_in_a_200_is_replayed(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(http1(200, LIMIT_BODY, [JSON]))
    assert rig.keys == [ONE, TWO]
    rig.server.send(OK)
    ok(rig)


@pytest.mark.parametrize("body", [b"", b"[]", b"not json", b'{"error":null,"id":"r"}', b"{"])
def test_any_other_json_passes(rig_of, body):
    answer = http1(200, body, [JSON])
    rig = rig_of()
    rig.send(post1())
    rig.server.send(answer)
    assert rig.received == answer


def test_an_error_in_a_stream_that_is_the_requests_own_is_delivered(rig_of):
    wrong = b'data: {"type":"error","error":{"type":"invalid_request_error","message":"x"}}\n\n'
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(wrong))
    assert rig.received == EVENTS + chunk(wrong)
    rig.server.send(LAST_CHUNK)
    assert rig.keys == [ONE]
    assert rig.answers[0].complete


def test_gzipped_stream_is_judged_and_passed_as_it_came(rig_of):
    body = gzip.compress(DELTA + DONE)
    rig = rig_of()
    rig.send(post1())
    head = head1(200, [SSE, CHUNKED, "content-encoding: gzip"])
    rig.server.send(head + chunk(body) + LAST_CHUNK)
    assert rig.answers[0].body == body


def test_an_encoding_nobody_knows_passes(rig_of):
    answer = http1(200, b"\x00\x01", [SSE, "content-encoding: x-own"])
    rig = rig_of()
    rig.send(post1())
    rig.server.send(answer)
    assert rig.received == answer


def test_a_stream_that_breaks_behind_the_gate_is_answered_with_an_error(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(EMPTY_CHOICES))
    rig.server.close()
    assert rig.answers[0].status == 502
    assert rig.keys == [ONE]
    assert rig.cooling() == set()


def test_it_is_sent_again_where_the_user_wants_that(rig_of):
    rig = rig_of(limits=Limits(max_wait_s=0, retry_broken=True))
    rig.send(post1())
    rig.server.send(EVENTS + chunk(EMPTY_CHOICES))
    rig.server.close()
    assert rig.keys == [ONE, ONE]
    rig.server.send(OK)
    ok(rig)


def test_broken_after_the_commit_point(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA))
    rig.server.close()
    assert rig.received == EVENTS + chunk(DELTA)
    assert rig.client_closed  # without the last chunk: the client sees that it broke
    assert rig.keys == [ONE]
    assert rig.cooling() == set()
    assert rig.hooks[-1] == "error"


# -- connections


def test_a_stale_kept_connection_is_replaced(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(OK)
    rig.send(post1())
    rig.server.close()
    assert len(rig.servers) == 2
    assert rig.keys == [ONE, ONE, ONE]
    rig.server.send(OK)
    ok(rig)


def test_a_connection_that_lay_idle_may_be_stale(rig_of):
    rig = rig_of()
    rig.send(post1(method="GET", path="/v1/unknown"))  # passes, and is never answered
    rig.server.send(http1(204))
    rig.advance(100)
    rig.send(post1())
    rig.server.close()
    assert rig.requests[-1].key == ONE
    rig.server.send(OK)
    ok(rig)


def test_a_broken_attempt_is_not_taken_for_the_refusal_before_it(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(LIMITED)
    rig.server.close()
    assert rig.keys == [ONE, TWO, TWO]
    assert rig.cooling() == {"one"}
    rig.server.send(OK)
    ok(rig)


def test_a_kept_connection_that_closes_late_may_have_run_it(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(OK)
    rig.send(post1())
    rig.advance(steps.STALE_WITHIN_S + 0.1)
    rig.server.close()
    assert rig.answers[1].status == 502
    assert len(rig.requests) == 2


def test_a_fresh_connection_that_closes_may_have_run_it(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.close()
    assert rig.answers[0].status == 502
    assert rig.keys == [ONE]


def test_a_connection_that_took_long_to_open_is_no_kept_one(rig_of):
    """It was used the moment it was there, so what closed it has seen the request."""
    rig = rig_of()
    rig.held.add("open")
    rig.send(post1())
    rig.held.clear()
    rig.advance(3)
    rig.complete("open")
    assert rig.clock.wall_now() - rig.opened[-1].timestamp_start >= 3
    rig.server.close()
    assert rig.answers[0].status == 502
    assert rig.keys == [ONE]


def test_connecting_fails_once(rig_of):
    rig = rig_of(limits=PATIENT)
    rig.refuse.append("connection refused")
    rig.send(post1())
    assert len(rig.opened) == 2
    rig.server.send(OK)
    ok(rig)


def test_connecting_fails(rig_of):
    rig = rig_of(limits=PATIENT)
    rig.refuse.extend(["connection refused"] * 2)
    rig.send(post1())
    assert rig.answers[0].status == 502
    assert rig.requests == []
    assert rig.cooling() == set()


def test_a_failed_connection_is_not_remembered_for_ever(rig_of):
    """mitmproxy repeats the error of a connection to every later request of a client."""
    rig = rig_of(limits=PATIENT)
    rig.refuse.extend(["connection refused"] * 2)
    rig.send(post1())
    assert rig.answers[0].status == 502
    rig.send(post1())
    rig.server.send(OK)
    ok(rig)


def test_the_last_refusal_is_delivered_although_a_later_attempt_broke(rig_of):
    """One was refused, two's kept connection is stale, and two cools in the meantime."""
    rig = rig_of("one", "two")
    rig.send(post1())
    rig.server.send(LIMITED)
    assert rig.keys == [ONE, TWO]
    rig.cool("two", 30)
    rig.server.close()
    assert rig.answers[0].status == 429
    assert rig.answers[0].body == LIMIT_BODY


# -- requests that are not served by an account


def test_pass_routes_go_out_as_the_client_sent_them_and_are_shown_masked(rig_of):
    rig = rig_of()
    shown = []
    rig.on["request"] = lambda flow: shown.append(flow.request.headers["Authorization"])
    rig.send(post1("/v1/assistants?x=1", b"abc", ["OpenAI-Organization: org-own"]))
    assert rig.keys == [CLIENT_KEY]
    assert rig.requests[0].get("openai-organization") == "org-own"
    rig.server.send(http1(429, LIMIT_BODY, LIMITED_HEADERS))
    assert rig.answers[0].status == 429
    assert rig.cooling() == set()
    assert shown == ["Bearer pool:openai"]
    assert CLIENT_KEY not in str(rig.flows[0].get_state())
    assert "org-own" not in str(rig.flows[0].get_state())


def test_pass_what_another_addon_changed_stays_changed(rig_of):
    """In the manner of modify_headers."""
    rig = rig_of()

    def change(flow):
        flow.request.headers["Authorization"] = "Bearer sk-of-the-addon"
        flow.request.headers["X-New"] = "1"

    rig.on["request"] = change
    rig.send(post1("/v1/assistants", b"abc", ["Cookie: a=client"]))
    assert rig.keys == ["sk-of-the-addon"]
    assert rig.requests[0].get("x-new") == "1"
    assert rig.requests[0].get("cookie") == "a=client"
    rig.server.send(OK)


def test_cookies_of_the_client_are_not_the_accounts(rig_of):
    rig = rig_of()
    rig.send(post1(headers=["Cookie: __cf_bm=client"]))
    assert rig.keys == [ONE]
    assert rig.requests[0].get("cookie") is None
    assert "__cf_bm" not in str(rig.flows[0].get_state())
    rig.server.send(OK)
    rig.send(post1("/v1/assistants", headers=["Cookie: __cf_bm=client"]))
    assert rig.requests[1].get("cookie") == "__cf_bm=client"
    assert "__cf_bm" not in str(rig.flows[1].get_state())
    rig.server.send(OK)


def test_pass_websocket_is_left_to_mitmproxy(rig_of):
    rig = rig_of()
    upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
               "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]  # fmt: skip
    rig.send(post1("/v1/unknown", b"", upgrade, method="GET"))
    assert rig.keys == [CLIENT_KEY]
    rig.server.send(head1(101, ["Upgrade: websocket", "Connection: Upgrade"]))
    rig.server.send(b"\x81\x02hi")
    assert rig.answers[0].body == b"\x81\x02hi"
    rig.server.close()
    rig.leave()
    rig.layer.streams.clear()  # mitmproxy keeps a WebSocket as long as its client


def test_hosts_that_are_not_ours_are_mitmproxys(rig_of):
    rig = rig_of(address=("example.com", 443))
    rig.send(post1(host="example.com"))
    assert rig.keys == [CLIENT_KEY]
    rig.server.send(LIMITED)
    assert rig.received == LIMITED


@pytest.mark.parametrize("direct", [True, False])
def test_another_port_of_a_host_never_gets_a_credential(rig_of, direct):
    if direct:
        rig = rig_of(address=("api.openai.com", 8443))
        rig.send(post1(host="api.openai.com:8443"))
    else:
        rig = rig_of(mode=HTTPMode.regular)
        url = "https://api.openai.com:8443/v1/chat/completions"
        rig.send(post1(url, host="api.openai.com:8443"))
    assert rig.keys == [CLIENT_KEY]
    rig.server.send(LIMITED)
    assert rig.received == LIMITED


def test_a_host_header_with_another_port_is_refused(rig_of):
    rig = rig_of()
    rig.send(post1(host="api.openai.com:8443"))
    assert rig.answers[0].status == 421
    assert rig.opened == []


def test_plain_http_is_refused(rig_of):
    rig = rig_of(tls=False, address=("api.openai.com", 80))
    rig.send(post1())
    assert rig.answers[0].status == 400
    assert b"plain HTTP" in rig.received
    assert rig.opened == []


def test_plain_http_to_a_pool_host_in_absolute_form_is_refused(rig_of):
    rig = rig_of(mode=HTTPMode.regular)
    rig.send(post1("http://api.openai.com/v1/chat/completions"))
    assert rig.answers[0].status == 400
    assert rig.opened == []


def test_absolute_form_over_tls_is_served(rig_of):
    rig = rig_of(mode=HTTPMode.regular)
    rig.send(post1("https://api.openai.com/v1/chat/completions"))
    assert rig.keys == [ONE]
    assert rig.server.connection.tls
    rig.server.send(OK)
    ok(rig)


@pytest.mark.parametrize("tls", [True, False])
def test_sent_to_the_proxy_itself_the_host_header_counts_as_for_mitmproxy(rig_of, tls):
    rig = rig_of(mode=HTTPMode.regular)
    rig.client.tls = tls
    rig.send(post1())
    if tls:
        assert rig.keys == [ONE]
        assert rig.server.connection.address == ("api.openai.com", 443)
    else:
        assert rig.answers[0].status == 400
        assert rig.opened == []
    assert CLIENT_KEY not in str(rig.flows[0].get_state())


def test_sent_to_the_proxy_itself_without_a_host(rig_of):
    rig = rig_of(mode=HTTPMode.regular)
    rig.send(b"GET / HTTP/1.1\r\n\r\n")
    assert rig.answers[0].status == 400
    rig.flows.clear()  # it ends before mitmproxy's first hook
    rig.layer.streams.clear()


def test_plain_http_to_this_machine_is_served(rig_of, clock):
    local = add_hosts(openai.PROVIDER, [HostRule("localhost", 9000)])
    service = service_of("one", clock=clock, providers=[local])
    rig = rig_of(service=service, tls=False, address=("localhost", 9000))
    rig.send(post1(host="localhost:9000"))
    assert rig.keys == [ONE]
    assert not rig.server.connection.tls
    rig.server.send(OK)
    ok(rig)


def test_this_machine_is_another_one_behind_another_proxy(rig_of, clock):
    local = add_hosts(openai.PROVIDER, [HostRule("localhost", 9000)])
    service = service_of("one", clock=clock, providers=[local])
    rig = rig_of(service=service, mode=HTTPMode.regular)
    # As in mode upstream, which sets it before our layer starts.
    rig.context.server.via = ServerSpec(("http", ("proxy.example", 3128)))
    rig.send(post1("http://localhost:9000/v1/chat/completions", host="localhost:9000"))
    assert rig.answers[0].status == 400
    assert b"plain HTTP" in rig.received
    assert rig.opened == []


def test_clients_of_other_machines_get_nothing(rig_of):
    rig = rig_of(peer="192.0.2.7")
    rig.send(post1())
    assert rig.answers[0].status == 403
    assert b"pool_allow_remote" in rig.received
    assert rig.opened == []


def test_clients_of_other_machines_are_served_when_allowed(rig_of):
    rig = rig_of(peer="192.0.2.7", remote=True)
    rig.send(post1())
    assert rig.keys == [ONE]


def test_without_verification_nothing_is_sent(rig_of):
    rig = rig_of(insecure=True)
    rig.send(post1())
    assert rig.answers[0].status == 400
    assert b"ssl_insecure" in rig.received


def test_a_local_answer(rig_of, clock):
    service = service_of("one", clock=clock, providers=[copilot.PROVIDER], kind="copilot")
    rig = rig_of(service=service, address=("api.github.com", 443))
    rig.local = LocalResponse(200, (("content-type", "application/json"),), b'{"token":"x"}')
    rig.send(post1(copilot.EXCHANGE_PATH, b"", method="GET", host="api.github.com"))
    assert (rig.answers[0].status, rig.answers[0].body) == (200, b'{"token":"x"}')
    assert rig.opened == []


def test_a_turn_that_fails_is_answered_locally(rig_of, caplog):
    rig = rig_of("one", limits=PATIENT)
    rig.cool("one", 20)

    def break_it(pause):
        pause.failed = RuntimeError(f"about {ONE}")

    rig.on["pool_pause"] = break_it
    rig.send(post1())
    assert rig.answers[0].status == 500
    assert "internal error RuntimeError at" in caplog.text
    assert ONE not in caplog.text


def test_a_local_answer_that_cannot_be_given_is_an_error(rig_of, clock):
    """The hook failed: mitmproxy logs it and completes it without an answer."""
    service = service_of("one", clock=clock, providers=[copilot.PROVIDER], kind="copilot")
    rig = rig_of(service=service, address=("api.github.com", 443))
    rig.send(post1(copilot.EXCHANGE_PATH, b"", method="GET", host="api.github.com"))
    assert rig.answers[0].status >= 500
    assert rig.opened == []


# -- where it goes


def test_connected_by_address_the_server_name_counts(rig_of):
    rig = rig_of(address=("192.0.2.1", 443), sni="api.openai.com")
    rig.send(post1())
    assert rig.keys == [ONE]
    assert rig.server.connection.address == ("192.0.2.1", 443)
    assert rig.server.connection.sni == "api.openai.com"
    rig.server.send(OK)
    ok(rig)


def test_an_address_without_a_name_is_nobodys(rig_of):
    rig = rig_of(address=("192.0.2.1", 443))
    rig.send(post1())
    assert rig.keys == [CLIENT_KEY]


@pytest.mark.parametrize(
    "host", ["evil.example", "api.openai.com.evil.example", "api.openai.com, x"]
)
def test_a_host_header_that_names_another_host_gets_no_credential(rig_of, host):
    """A shared front end would route the request, and the credential, by that header."""
    rig = rig_of()
    rig.send(post1(host=host))
    assert rig.answers[0].status == 421
    assert rig.requests == []


@pytest.mark.parametrize("host", ["API.OpenAI.com", "api.openai.com:443", "api.openai.com."])
def test_other_spellings_of_the_host_are_served(rig_of, host):
    rig = rig_of()
    rig.send(post1(host=host))
    assert rig.keys == [ONE]
    assert rig.requests[0].get("host") == host


def test_an_authority_that_names_another_host_gets_no_credential(rig_of):
    rig = rig_of(client2=True, server2=True)
    rig.ask(authority="evil.example")
    assert rig.answers[0].status == 421
    assert rig.requests == []


def test_a_server_name_that_differs_from_the_connect_host_gets_no_credential(rig_of):
    """The certificate is verified against the server name: a front end shared with
    somebody else would hand the request to them."""
    rig = rig_of(address=("api.openai.com", 443), sni="evil.example")
    rig.send(post1(host="evil.example"))
    assert ONE not in rig.keys


def test_another_addon_sends_it_elsewhere(rig_of, caplog):
    rig = rig_of()

    def move(flow):
        flow.request.host = "evil.example"

    rig.on["request"] = move
    rig.send(post1())
    assert rig.answers[0].status == 421
    assert rig.opened == []


def test_another_addon_takes_the_encryption_away(rig_of):
    rig = rig_of()

    def move(flow):
        flow.request.scheme = "http"

    rig.on["request"] = move
    rig.send(post1())
    assert rig.answers[0].status == 421
    assert rig.opened == []


def test_another_addon_moves_it_to_a_host_of_the_same_provider(rig_of, clock):
    wide = add_hosts(openai.PROVIDER, [HostRule("eu.api.openai.com")])
    rig = rig_of(service=service_of("one", clock=clock, providers=[wide]))

    def move(flow):
        flow.request.host = "eu.api.openai.com"

    rig.on["request"] = move
    rig.send(post1())
    assert rig.server.connection.address == ("eu.api.openai.com", 443)
    assert rig.keys == [ONE]


COPILOT = {"host": "api.business.githubcopilot.com", "proxy": "proxy.business.githubcopilot.com"}


def copilot_service(clock, *labels):
    return service_of(
        *(labels or ("one",)),
        clock=clock,
        providers=[copilot.PROVIDER],
        kind="copilot",
        companions=COPILOT,
    )


def test_redirected_to_the_host_of_the_plan(rig_of, clock):
    rig = rig_of(service=copilot_service(clock), address=("api.githubcopilot.com", 443))
    rig.send(post1("/chat/completions", host="api.githubcopilot.com"))
    assert rig.server.connection.address == ("api.business.githubcopilot.com", 443)
    assert rig.server.connection.sni == "api.business.githubcopilot.com"
    assert rig.requests[0].get("host") == "api.business.githubcopilot.com"
    rig.server.send(OK)
    ok(rig)
    assert rig.flows[0].request.headers["Host"] == "api.githubcopilot.com"


def test_without_verification_nothing_is_sent_to_the_host_of_the_plan(rig_of, clock):
    """The request itself stays on this machine; its account would send it elsewhere."""
    local = add_hosts(copilot.PROVIDER, [HostRule("localhost", 9000)])
    service = service_of(
        "one", clock=clock, providers=[local], kind="copilot", companions=COPILOT, insecure=True
    )
    rig = rig_of(service=service, address=("localhost", 9000))
    rig.send(post1("/chat/completions", host="localhost:9000"))
    assert rig.answers[0].status == 400
    assert b"ssl_insecure" in rig.received
    assert rig.opened == []


def test_redirected_over_http2(rig_of, clock):
    rig = rig_of(
        service=copilot_service(clock),
        address=("api.githubcopilot.com", 443),
        client2=True,
        server2=True,
    )
    rig.ask(path="/chat/completions", authority="api.githubcopilot.com")
    assert rig.requests[0].get(":authority") == "api.business.githubcopilot.com"
    rig.server.answer(1, 200, OK_BODY, [JSON])
    ok(rig)


def test_completions_have_a_host_of_their_own(rig_of, clock):
    rig = rig_of(
        service=copilot_service(clock), address=("copilot-proxy.githubusercontent.com", 443)
    )
    path = "/v1/engines/gpt-41-copilot/completions"
    rig.send(post1(path, host="copilot-proxy.githubusercontent.com"))
    assert rig.server.connection.address == ("proxy.business.githubcopilot.com", 443)


def test_gemini_takes_bearer_on_the_compatible_path(rig_of, clock):
    service = service_of("one", clock=clock, providers=[gemini.PROVIDER])
    host = "generativelanguage.googleapis.com"
    rig = rig_of(service=service, address=(host, 443))
    rig.send(post1("/v1beta/openai/chat/completions", host=host))
    assert rig.requests[0].key == ONE
    assert rig.requests[0].get("x-goog-api-key") is None


def test_gemini_key_of_the_query_is_replaced(rig_of, clock):
    service = service_of("one", clock=clock, providers=[gemini.PROVIDER])
    host = "generativelanguage.googleapis.com"
    rig = rig_of(service=service, address=(host, 443))
    raw = post1(f"/v1beta/models/g:generateContent?alt=sse&key={CLIENT_KEY}", host=host)
    rig.send(raw.replace(b"Authorization: Bearer " + CLIENT_KEY.encode() + b"\r\n", b""))
    request = rig.requests[0]
    assert request.start == "POST /v1beta/models/g:generateContent?alt=sse HTTP/1.1"
    assert request.get("x-goog-api-key") == ONE
    assert CLIENT_KEY not in str(rig.flows[0].get_state())


# -- other addons


def test_another_addon_answers(rig_of):
    rig = rig_of()

    def answer(flow):
        flow.response = http.Response.make(200, b"mine")

    rig.on["request"] = answer
    rig.send(post1())
    assert rig.answers[0].body == b"mine"
    assert rig.opened == []
    assert rig.in_flight() == 0


@pytest.mark.parametrize("hook", ["requestheaders", "request"])
def test_another_addon_kills_the_flow(rig_of, hook):
    rig = rig_of()
    rig.on[hook] = lambda flow: flow.kill()
    rig.send(post1())
    assert rig.received == b""
    assert rig.client_closed
    assert rig.opened == []
    assert rig.hooks[-1] == "error"


def test_killed_in_responseheaders(rig_of):
    rig = rig_of()
    rig.on["responseheaders"] = lambda flow: flow.kill()
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA))
    assert rig.received == b""
    assert rig.servers[0].closed
    assert rig.in_flight() == 0
    assert rig.cooling() == set()


def test_killed_while_a_local_answer_is_given(rig_of):
    rig = rig_of(peer="192.0.2.7")
    rig.on["response"] = lambda flow: flow.kill()
    rig.send(post1())
    assert rig.received == b""
    assert rig.client_closed


def test_another_addon_replaces_the_answer_in_responseheaders(rig_of):
    rig = rig_of()

    def replace_it(flow):
        flow.response = http.Response.make(299, b"", {"x-mine": "1"})
        flow.response.headers.pop("content-length")

    rig.on["responseheaders"] = replace_it
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA) + chunk(DONE) + LAST_CHUNK)
    assert rig.answers[0].status == 299
    assert rig.in_flight() == 0


def test_another_addon_changes_the_stream(rig_of):
    rig = rig_of()

    def shout(flow):
        flow.response.stream = lambda data: data.upper()

    rig.on["responseheaders"] = shout
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA) + chunk(DONE) + LAST_CHUNK)
    assert rig.answers[0].body == (DELTA + DONE).upper()


def test_another_addon_wants_the_whole_answer(rig_of):
    rig = rig_of()

    def buffer(flow):
        flow.response.stream = False

    def change(flow):
        assert flow.response.content == DELTA + DONE
        flow.response.content = b"changed"

    rig.on["responseheaders"], rig.on["response"] = buffer, change
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA))
    assert rig.received == b""
    rig.server.send(chunk(DONE) + LAST_CHUNK)
    assert rig.answers[0].body == b"changed"


def test_flows_name_the_account_and_hold_no_credential(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(LIMITED)
    rig.server.send(OK)
    (flow,) = rig.flows
    assert flow.request.headers["Authorization"] == "Bearer pool:openai/two"
    assert flow.metadata["pool.account"] == "openai/two"
    for value in (CLIENT_KEY, ONE, TWO):
        assert value not in str(flow.get_state())
    # A failover costs no walk over the addons.
    assert rig.hooks == ["requestheaders", "request", "responseheaders", "response"]


def test_manual_approve_holds_the_request(rig_of):
    rig = rig_of(manual_approve=True)
    seen = []
    rig.on["request"] = lambda flow: seen.append(flow.intercepted)
    rig.send(post1())
    assert seen == [True]


def test_manual_approve_leaves_what_is_not_served_alone(rig_of):
    rig = rig_of(manual_approve=True)
    seen = []
    rig.on["request"] = lambda flow: seen.append(flow.intercepted)
    rig.send(post1("/v1/assistants"))
    assert seen == [False]


def test_manual_approve_holds_large_requests_too(rig_of, monkeypatch):
    monkeypatch.setattr(pooled_exchange, "MAX_REPLAYABLE_BYTES", 10)
    rig = rig_of(manual_approve=True)
    seen = []
    for hook in ("requestheaders", "request"):
        rig.on[hook] = lambda flow: seen.append((flow.intercepted, len(rig.requests)))
    rig.send(post1())
    assert (True, 0) in seen


def test_the_whole_body_is_stored_where_mitmproxy_is_told_to(rig_of):
    options = options_of()
    if "store_streamed_bodies" not in options:
        pytest.skip("an option of newer mitmproxy")
    options.update(store_streamed_bodies=True)
    rig = rig_of(options=options)
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA))
    rig.server.send(chunk(DONE))
    rig.server.send(LAST_CHUNK)
    assert rig.flows[0].response.raw_content == DELTA + DONE


@pytest.mark.parametrize("chunked", [False, True])
def test_an_answer_over_the_body_limit_of_mitmproxy(rig_of, chunked):
    rig = rig_of(options=options_of(body_size_limit="50"))
    rig.send(post1(body=b"{}"))
    rig.server.send(http1(200, OK_BODY, [JSON], chunked=chunked))
    assert rig.answers[0].status == 502
    error = json.loads(rig.answers[0].body)["error"]
    assert error["message"] == "openai: the answer is larger than mitmproxy's body_size_limit"
    assert rig.in_flight() == 0
    rig.assert_at_rest()
    rig.send(post1(body=b"{}"))
    rig.server.send(http1(200, b"{}", [JSON]))
    assert rig.answers[1].status == 200


@pytest.mark.parametrize("client2", [False, True])
@pytest.mark.parametrize("announced", [True, False])
def test_a_request_over_the_body_limit_of_mitmproxy(rig_of, client2, announced):
    """It is refused in its provider's envelope, costs nobody an attempt, and has one ending."""
    rig = rig_of(options=options_of(body_size_limit="50"), client2=client2)
    if client2:
        length = {"content-length": "200"} if announced else {}
        rig.ask(b"x" * 200, **length)
    elif announced:
        rig.send(post1(body=b"x" * 200))
    else:
        rig.send(post1(body=b"", headers=[CHUNKED]) + chunk(b"x" * 40))
        rig.send(chunk(b"x" * 40))
        rig.send(chunk(b"x" * 40) + LAST_CHUNK)
    assert [a.status for a in rig.answers] == [413]
    error = json.loads(rig.answers[0].body)["error"]
    assert error["message"] == "openai: the request is larger than mitmproxy's body_size_limit"
    assert (rig.opened, rig.in_flight()) == ([], 0)
    assert [rig.ended[flow.id] for flow in rig.flows] == [1]


def test_whoever_is_refused_at_the_head_is_not_told_of_a_limit(rig_of):
    """As proxyauth does."""
    rig = rig_of(options=options_of(body_size_limit="50"))

    def answer(flow):
        flow.response = http.Response.make(407, b"no")

    rig.on["requestheaders"] = answer
    rig.send(post1(body=b"x" * 200))
    assert [(a.status, a.body) for a in rig.answers] == [(407, b"no")]


def test_the_body_limit_of_mitmproxy_holds_for_what_is_not_pooled(rig_of):
    rig = rig_of(options=options_of(body_size_limit="50"))
    rig.send(post1("/v1/assistants", body=b"x" * 200))
    assert [a.status for a in rig.answers] == [413]
    assert rig.opened == []


# -- large bodies


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(pooled_exchange, "MAX_REPLAYABLE_BYTES", 100)


BIG = b"x" * 300


def test_large_bodies_are_streamed_through_once(rig_of, small):
    rig = rig_of()
    raw = post1(body=BIG)
    rig.send(raw[:-200])
    assert rig.requests[0].key == ONE
    assert not rig.requests[0].complete
    rig.send(raw[-200:])
    assert rig.requests[0].body == BIG
    rig.server.send(LIMITED)
    assert rig.answers[0].status == 429
    assert rig.keys == [ONE]
    assert rig.cooling() == {"one"}


def test_large_bodies_get_their_answer(rig_of, small):
    rig = rig_of()
    rig.send(post1(body=BIG))
    assert rig.requests[0].complete
    rig.server.send(EVENTS + chunk(DELTA) + LAST_CHUNK)
    assert rig.answers[0].body == DELTA
    assert rig.in_flight() == 0
    rig.send(post1())
    rig.server.send(OK)
    ok(rig)


def test_a_chunked_body_grows_past_the_bound(rig_of, small):
    rig = rig_of()
    rig.send(post1(body=b"", headers=[CHUNKED]))
    for _ in range(2):
        rig.send(chunk(b"x" * 40))
    assert rig.requests == []
    rig.send(chunk(b"y" * 40))
    assert rig.requests[0].body == b"x" * 80 + b"y" * 40
    rig.send(chunk(b"z" * 40) + LAST_CHUNK)
    assert rig.requests[0].body == b"x" * 80 + b"y" * 40 + b"z" * 40
    assert rig.requests[0].complete
    rig.server.send(OK)
    ok(rig)


def test_a_body_that_is_not_the_pools_grows_past_the_bound(rig_of, small):
    rig = rig_of()
    rig.send(post1("/v1/assistants", body=b"", headers=[CHUNKED]))
    for _ in range(4):
        rig.send(chunk(b"x" * 40))
    rig.send(LAST_CHUNK)
    assert rig.requests[0].body == b"x" * 160
    assert rig.keys == [CLIENT_KEY]
    rig.server.send(OK)
    ok(rig)


def test_a_large_body_nobody_can_serve(rig_of, small):
    rig = rig_of("one")
    rig.cool("one", 50)
    raw = post1(body=BIG)
    rig.send(raw[:-200])
    assert [a.status for a in rig.answers] == [429]
    rig.send(raw[-200:])
    rig.send(post1())
    assert [a.status for a in rig.answers] == [429, 429]
    assert rig.requests == []


@pytest.mark.parametrize("streaming", [True, False])
def test_answered_before_the_upload_ends(rig_of, small, streaming):
    rig = rig_of()
    raw = post1(body=BIG)
    rig.send(raw[:-200])
    answer = EVENTS + chunk(DELTA) + LAST_CHUNK if streaming else OK
    rig.server.send(answer)
    assert rig.answers[0].status == 200
    rig.send(raw[-200:])
    assert rig.requests[0].complete
    rig.send(post1())
    rig.server.send(OK)
    ok(rig)
    assert len(rig.answers) == 2


@pytest.mark.parametrize("status", [429, 400])
def test_refused_before_the_upload_ends(rig_of, small, status):
    rig = rig_of("one", "two")
    raw = post1(body=BIG)
    rig.send(raw[:-200])
    rig.server.send(http1(status, LIMIT_BODY, LIMITED_HEADERS))
    assert rig.answers[0].status == status
    rig.send(raw[-200:])
    # The next request must not meet a connection that waits for the rest of this one.
    rig.send(post1())
    rig.server.send(OK)
    ok(rig)


def test_killed_while_a_refusal_is_given_before_the_upload_ends(rig_of, small):
    rig = rig_of("one")
    raw = post1(body=BIG)
    rig.send(raw[:-200])
    rig.on["response"] = lambda flow: flow.kill()
    rig.server.send(LIMITED)
    assert rig.received == b""
    assert rig.client_closed


def test_the_connection_breaks_during_the_upload(rig_of, small):
    rig = rig_of()
    raw = post1(body=BIG)
    rig.send(raw[:-200])
    rig.server.close()
    assert rig.answers[0].status == 502
    rig.send(raw[-200:])
    rig.send(post1())
    rig.server.send(OK)
    ok(rig)


def test_the_client_leaves_during_the_upload(rig_of, small):
    rig = rig_of()
    rig.send(post1(body=BIG)[:-200])
    rig.leave()
    assert rig.server.closed
    assert rig.in_flight() == 0
    assert rig.cooling() == set()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/assistants"])
@pytest.mark.parametrize("headers", [[], [CHUNKED]], ids=["content-length", "chunked"])
def test_another_addon_answers_a_large_request_at_its_head(rig_of, small, path, headers):
    """As proxyauth does: who is refused there must not be served because of its size."""
    rig = rig_of()

    def answer(flow):
        flow.response = http.Response.make(407, b"no")

    rig.on["requestheaders"] = answer
    rig.send(post1(path, b"" if headers else BIG, headers))
    if headers:
        for _ in range(4):
            rig.send(chunk(b"x" * 40))
        rig.send(LAST_CHUNK)
    assert [(a.status, a.body) for a in rig.answers] == [(407, b"no")]
    assert rig.opened == []
    rig.on.clear()
    rig.send(post1())
    assert rig.keys == [ONE]


@pytest.mark.parametrize("raw", [post1(body=BIG), post1(body=b"", headers=[CHUNKED]) + chunk(BIG)])
def test_a_large_request_is_replayed_although_mitmproxy_would_stream_it(rig_of, raw):
    rig = rig_of(options=options_of(stream_large_bodies="100"))
    rig.send(raw)
    if b"chunked" in raw:
        rig.send(LAST_CHUNK)
    assert rig.keys == [ONE]
    rig.server.send(LIMITED)
    assert rig.keys == [ONE, TWO]
    assert [r.body for r in rig.requests] == [BIG, BIG]
    rig.server.send(EVENTS + chunk(DELTA) + LAST_CHUNK)
    assert rig.answers[0].body == DELTA
    assert rig.in_flight() == 0


def test_mitmproxys_option_streams_what_is_not_pooled(rig_of):
    rig = rig_of(options=options_of(stream_large_bodies="100"))
    rig.send(post1("/v1/assistants", body=BIG)[:-10])
    assert len(rig.requests) == 1  # on its way before it is complete


# -- failures of our own


def fail(*_args, **_kwargs):
    raise RuntimeError(f"a text that quotes {ONE} and {CLIENT_KEY}")


def assert_failed_locally(rig, caplog):
    assert rig.answers[0].status == 500
    assert "error" in json.loads(rig.answers[0].body)
    assert rig.in_flight() == 0
    assert rig.cooling() == set()
    for value in (ONE, CLIENT_KEY):
        assert value not in caplog.text
        assert value.encode() not in rig.received
    assert "internal error RuntimeError at" in caplog.text


@pytest.mark.parametrize("part", ["classify", "judge", "swap", "kind", "model"])
def test_a_provider_that_fails_is_answered_locally(rig_of, clock, caplog, part):
    caplog.set_level(logging.DEBUG)
    broken = replace(openai.PROVIDER, **{part: fail})
    rig = rig_of(service=service_of("one", clock=clock, providers=[broken]))
    rig.send(post1())
    if rig.servers:
        rig.server.send(LIMITED if part == "classify" else EVENTS + chunk(DELTA))
    assert_failed_locally(rig, caplog)
    assert ONE not in rig.keys or rig.server.closed
    rig.send(post1())  # the connection to the client is good
    assert len(rig.answers) == 2 or part in ("classify", "judge")


@pytest.mark.parametrize("part", ["acquire", "release"])
def test_a_pool_that_fails_is_answered_locally(rig_of, clock, caplog, monkeypatch, part):
    caplog.set_level(logging.DEBUG)
    rig = rig_of("one")
    real = Pool.release

    def release(self, lease, outcome, *, now):
        if outcome is not None:
            fail()
        real(self, lease, outcome, now=now)

    monkeypatch.setattr(Pool, part, fail if part == "acquire" else release)
    rig.send(post1())
    if part == "release":
        rig.server.send(LIMITED)
        assert rig.answers[0].status == 500
        next(iter(rig.service.pool.accounts)).in_flight = 0
        return
    assert_failed_locally(rig, caplog)
    assert rig.opened == []


@pytest.mark.parametrize("part", ["recognize", "_denied"])
def test_failing_before_it_is_known_whose_request_it_is(rig_of, caplog, monkeypatch, part):
    caplog.set_level(logging.DEBUG)
    rig = rig_of("one")
    monkeypatch.setattr(Recognizer, part, fail)
    rig.send(post1())
    assert rig.answers[0].status == 502
    assert rig.client_closed
    assert rig.opened == []
    assert ONE not in caplog.text


def test_failing_before_it_is_known_whose_request_it_is_over_http2(rig_of, monkeypatch):
    rig = rig_of("one", client2=True)
    monkeypatch.setattr(Recognizer, "recognize", fail)
    stream_id = rig.ask(end=False)
    assert rig.answers[0].status == 502
    assert rig.layer.streams == {}
    rig.reader.h2.send_data(stream_id, b"more", end_stream=True)
    rig.flush()
    monkeypatch.undo()


def test_failing_after_the_commit_point_ends_the_flow(rig_of, caplog, monkeypatch):
    """An error hook, so that every front end knows; a cut-off answer for the client."""
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(EVENTS + chunk(DELTA))
    monkeypatch.setattr(flow_view.BodyCopy, "put_on", fail)
    rig.server.send(LAST_CHUNK)
    monkeypatch.undo()
    assert rig.hooks[-1] == "error"
    assert rig.client_closed
    assert not rig.received.endswith(LAST_CHUNK)
    assert ONE not in caplog.text


def test_anthropic_errors_have_its_envelope(rig_of, clock):
    broken = replace(anthropic.PROVIDER, classify=fail)
    service = service_of("one", clock=clock, providers=[broken])
    rig = rig_of(service=service, address=("api.anthropic.com", 443))
    rig.send(post1("/v1/messages", host="api.anthropic.com"))
    rig.server.send(LIMITED)
    body = json.loads(rig.answers[0].body)
    assert (rig.answers[0].status, body["type"]) == (500, "error")


# -- models and members


def test_an_account_that_may_not_serve_the_model_is_not_asked(rig_of, clock):
    from account_pool.core.account import ModelFilter

    service = service_of(
        account("one", models=ModelFilter(("claude-*",))), account("two"), clock=clock
    )
    rig = rig_of(service=service)
    rig.send(post1())
    assert rig.keys == [TWO]


def test_an_account_removed_while_it_serves(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.service.pool.accounts.remove(next(iter(rig.service.pool.accounts)).key, now=0.0)
    rig.server.send(LIMITED)
    assert rig.keys == [ONE, TWO]
    rig.server.send(OK)
    ok(rig)


def test_a_turn_that_nobody_takes_ends_in_an_error(rig_of, monkeypatch):
    """After a failed live reload there is no addon: no asking again and again."""
    rig = rig_of()
    monkeypatch.setattr(rig, "_end_pause", lambda pause: None)
    rig.send(post1())
    rig.server.send(head1("401 Unauthorized", ["content-length: 0"]))
    assert rig.answers[0].status == 500


@pytest.mark.parametrize("stream", [False, True, lambda data: data])
def test_an_echo_is_masked_whatever_another_addon_does_with_the_stream(rig_of, stream):
    rig = rig_of("one")
    rig.on["responseheaders"] = lambda flow: setattr(flow.response, "stream", stream)
    rig.send(post1())
    rig.server.send(head1("307 Moved", ["transfer-encoding: chunked"]))
    rig.server.send(chunk(b"moved, " + ONE.encode()[:4]) + chunk(ONE.encode()[4:]) + LAST_CHUNK)
    assert rig.answers[0].status == 307
    assert rig.answers[0].body == b"moved, " + b"*" * len(ONE)


def test_a_redirect_that_cannot_be_searched_loses_its_body(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    body = gzip.compress(ONE.encode())
    rig.server.send(http1(307, body, ["content-encoding: gzip", f"location: /?key={ONE}"]))
    assert (rig.answers[0].status, rig.answers[0].body) == (307, b"")
    assert ONE.encode() not in rig.received
    assert rig.in_flight() == 0


# -- a client that stays for days


def served(rig) -> None:
    rig.ask()
    rig.server.send(http1(200, OK_BODY, [JSON]))


@pytest.mark.parametrize("server2", [False, True])
def test_connections_that_are_over_are_forgotten(rig_of, server2):
    rig = rig_of(client2=True, server2=server2)
    for _ in range(5 * KEPT_CLOSED):
        if server2:
            rig.ask()
            rig.server.answer(1, 200, OK_BODY, [JSON])
        else:
            served(rig)
        rig.server.close()
    layer = rig.layer
    known = (layer.connections, layer.http2, layer.answered, layer.used, layer._looked_at)
    assert max(map(len, known)) <= KEPT_CLOSED + 3
    assert [answer.status for answer in rig.answers] == [200] * 5 * KEPT_CLOSED


def test_connections_that_could_not_be_opened_are_forgotten(rig_of):
    rig = rig_of("one", client2=True)
    served(rig)
    for _ in range(2 * KEPT_CLOSED):
        rig.server.close()
        rig.held.add("open")
        rig.ask()
        while rig.waiting:
            rig.complete(error="refused")
        rig.held.clear()
        served(rig)
    assert len(rig.layer.connections) <= KEPT_CLOSED + 3
    assert len(rig.layer._unopened) <= KEPT_CLOSED


def test_a_request_under_way_knows_which_connections_are_newer(rig_of):
    """Also after those before its own were forgotten."""
    rig = rig_of(client2=True)
    for _ in range(KEPT_CLOSED - 2):
        served(rig)
        rig.server.close()
    served(rig)
    rig.ask()  # on the same connection
    kept, stream = rig.server, next(iter(rig.layer.attempts.values()))
    rig.ask()
    rig.server.send(http1(200, OK_BODY, [JSON, "connection: close"]))
    rig.server.close()
    rig.ask()
    assert kept.connection in rig.layer.connections
    assert len(rig.layer.connections) < KEPT_CLOSED
    assert [*rig.layer.connections][stream.sent_among - 1] is kept.connection


# -- an error of ours, or of mitmproxy's


@pytest.mark.parametrize("server2", [False, True])
@pytest.mark.parametrize("limited", [False, True])
def test_an_error_while_an_answer_is_read_ends_its_connection(
    rig_of, monkeypatch, caplog, server2, limited
):
    """A request that hangs would be worse; after a refusal it is tried elsewhere."""
    rig = rig_of(client2=True, server2=server2)
    rig.ask()
    received = ResponseData if limited else ResponseHeaders
    handle = PoolHttpLayer.event_to_child

    def fails(self, child, event):
        if isinstance(event, received):
            monkeypatch.setattr(PoolHttpLayer, "event_to_child", handle)
            raise KeyError(ONE)
        return handle(self, child, event)

    monkeypatch.setattr(PoolHttpLayer, "event_to_child", fails)
    first = rig.server
    if server2:
        first.answer(1, 429, LIMIT_BODY, LIMITED_HEADERS)
    else:
        answer = http1(429, LIMIT_BODY, LIMITED_HEADERS)
        first.send(answer.removesuffix(LIMIT_BODY))
        first.send(LIMIT_BODY)
    assert first.closed
    assert "KeyError at" in caplog.text
    assert ONE not in caplog.text
    if limited:
        assert rig.server is not first
        rig.server.answer(1, 200, OK_BODY, [JSON]) if server2 else rig.server.send(OK)
    assert [answer.status for answer in rig.answers] == [200 if limited else 502]


def test_an_error_while_a_request_is_read_ends_its_clients_connection(rig_of, monkeypatch, caplog):
    rig = rig_of(client2=True)
    handle = PoolHttpLayer.event_to_child

    def fails(self, child, event):
        if isinstance(event, RequestEndOfMessage):
            raise KeyError(ONE)
        return handle(self, child, event)

    monkeypatch.setattr(PoolHttpLayer, "event_to_child", fails)
    rig.ask()
    assert rig.client_closed
    assert rig.in_flight() == 0
    assert "KeyError at" in caplog.text


@pytest.mark.parametrize(
    ("path", "chosen"),
    [
        ("/v1/chat/completions", pooled_exchange.PooledExchange),
        ("/v1/unknown", stream.Passthrough),
    ],
)
def test_the_head_of_a_request_chooses_the_class_for_the_rest(rig_of, path, chosen):
    rig = rig_of()
    rig.send(post1(path, b"", ["content-length: 9"]))
    (only,) = rig.layer.streams.values()
    assert type(only) is chosen
