"""Refusals that are large, compressed, slow or cut off: whole or in our words, never a part."""

from __future__ import annotations

import functools
import gzip
import json
import random
import tracemalloc
import zlib

import brotli
import pytest
from mitmproxy import http

from account_pool.providers import gemini
from account_pool.proxy import decoding, response_reader
from account_pool.proxy.decoding import zstd
from tests.proxy.helpers import (
    BR,
    CHUNKED,
    DELTA,
    JSON,
    LIMIT_BODY,
    LIMITED_HEADERS,
    OK,
    OLD_BROTLI,
    SSE,
    chunk,
    event,
    head1,
    http1,
    post1,
    secret,
    service_of,
)

ONE, TWO = secret("one"), secret("two")
LAST_CHUNK = b"0\r\n\r\n"
MIB = 1 << 20
PACK = {
    "": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "br": lambda data: brotli.compress(data, quality=5),
    "gzip, zstd": lambda data: zstd.compress(gzip.compress(data)),
}
ENCODINGS = [BR if name == "br" else name for name in PACK]


def text(size: int) -> str:
    """Text that no packing makes short."""
    return random.Random(size).randbytes(size // 2).hex()


def refusal(size: int, code: str = "invalid_request_error") -> bytes:
    """A refusal that says what it is at its very end."""
    return json.dumps({"error": {"input": text(size), "code": code, "message": "no"}}).encode()


def sent(rig, data: bytes, size: int = 16_384) -> None:
    for start in range(0, len(data), size):
        rig.server.send(data[start : start + size])


def encoded(encoding: str) -> list[str]:
    return [JSON, f"content-encoding: {encoding}"] if encoding else [JSON]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", [70_000, 550_000, 6 * MIB])
def test_it_is_delivered_byte_for_byte(rig_of, size, encoding, chunked):
    body = PACK[encoding](refusal(size))
    rig = rig_of()
    rig.send(post1())
    sent(rig, http1(422, body, encoded(encoding), chunked=chunked))
    (answer,) = rig.answers
    assert (answer.status, answer.complete) == (422, True)
    assert answer.body == body
    assert answer.get("content-encoding") == (encoding or None)
    assert rig.keys == [ONE]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_over_http2(rig_of, encoding):
    body = PACK[encoding](refusal(550_000))
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    rig.server.head(1, 422, encoded(encoding))
    for start in range(0, len(body), 16_384):
        rig.server.data(1, body[start : start + 16_384])
    rig.server.data(1, b"", end=True)
    assert (rig.answers[0].status, rig.answers[0].body) == (422, body)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", [70_000, MIB])
def test_what_it_says_at_its_end_is_understood(rig_of, encoding, size):
    rig = rig_of()
    rig.send(post1())
    sent(rig, http1(429, PACK[encoding](refusal(size, "insufficient_quota")), encoded(encoding)))
    rig.server.send(OK)
    assert rig.received == OK
    state = next(iter(rig.service.pool.accounts))
    assert "insufficient_quota" in state.cooldowns[None].cause.signal


def test_a_page_of_an_edge(rig_of):
    page = b"<!DOCTYPE html><title>Attention Required</title>" + text(300_000).encode()
    rig = rig_of("one")
    rig.send(post1())
    sent(rig, http1(404, page, ["content-type: text/html"]))
    assert (rig.answers[0].status, rig.answers[0].body) == (404, page)


def test_beyond_all_bounds_it_is_handed_on_as_it_comes(rig_of, monkeypatch):
    monkeypatch.setattr(response_reader, "MAX_REFUSAL_BYTES", 100_000)
    body = refusal(300_000)
    rig = rig_of()
    rig.send(post1())
    sent(rig, http1(422, body, [JSON]))
    assert (rig.answers[0].status, rig.answers[0].body) == (422, body)
    assert rig.answers[0].complete


@pytest.mark.parametrize("encoding", ["gzip", BR])
def test_beyond_all_bounds_and_compressed_it_is_said_in_our_words(rig_of, monkeypatch, encoding):
    monkeypatch.setattr(response_reader, "MAX_REFUSAL_BYTES", 100_000)
    rig = rig_of()
    rig.send(post1())
    head = [*encoded(encoding), "x-request-id: r1"]
    sent(rig, http1(422, PACK[encoding](refusal(500_000)), head))
    (said,) = rig.answers
    assert (said.status, said.complete, said.get("x-request-id")) == (422, True, "r1")
    assert said.get("content-encoding") is None
    assert "too long" in json.loads(said.body)["error"]["message"]


def test_one_that_was_replayed_and_cut_off_is_not_delivered_in_part(rig_of, monkeypatch):
    monkeypatch.setattr(response_reader, "MAX_REFUSAL_BYTES", 1000)
    monkeypatch.setattr(response_reader, "MAX_DRAIN_BYTES", 1000)
    rig = rig_of()
    rig.send(post1())
    sent(rig, http1(429, refusal(50_000), [*LIMITED_HEADERS]), 600)
    assert rig.keys == [ONE, TWO]
    rig.server.close()
    (said,) = rig.answers
    assert (said.status, said.complete) == (429, True)
    assert "too long" in json.loads(said.body)["error"]["message"]
    assert said.get("retry-after") is not None


@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize("cut", [0, 1000, -1])
@pytest.mark.parametrize("chunked", [False, True])
def test_one_that_broke_off_is_said_in_our_words(rig_of, encoding, cut, chunked):
    body = PACK[encoding](refusal(100_000))
    whole = http1(413, body, [*encoded(encoding), "retry-after: 7"], chunked=chunked)
    rig = rig_of()
    rig.send(post1())
    sent(rig, whole[: whole.index(b"\r\n\r\n") + 4 + cut] if cut >= 0 else whole[:cut])
    assert rig.received == b""
    rig.server.close()
    (said,) = rig.answers
    assert (said.status, said.complete, said.get("retry-after")) == (413, True, "7")
    assert said.get("content-encoding") is None
    assert "broke off" in json.loads(said.body)["error"]["message"]


def test_one_that_stops_is_handed_on_while_it_lasts_with_the_wait_of_the_pool(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    head = [JSON, "retry-after: 600", CHUNKED]
    rig.server.send(head1(429, head) + chunk(LIMIT_BODY[:20]))
    rig.clock.advance(60)
    rig.advance(6)
    said = rig.answers[0]
    assert (said.status, said.body, said.complete) == (429, LIMIT_BODY[:20], False)
    assert said.get("retry-after") is not None
    rig.server.send(chunk(LIMIT_BODY[20:]) + LAST_CHUNK)
    assert (said.body, said.complete) == (LIMIT_BODY, True)


def test_one_that_stops_and_is_compressed_is_said_in_our_words(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    body = gzip.compress(refusal(1000))
    rig.server.send(head1(400, [*encoded("gzip"), CHUNKED]) + chunk(body[:100]))
    rig.advance(6)
    assert (rig.answers[0].status, rig.answers[0].complete) == (400, True)
    assert "too slowly" in json.loads(rig.answers[0].body)["error"]["message"]


@pytest.mark.parametrize("encoding", ["gzip", BR, "zstd", "deflate"])
def test_a_packed_body_without_its_end_is_delivered_as_it_came(rig_of, encoding):
    body = PACK[encoding](refusal(1000))[:-5]
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(http1(400, body, encoded(encoding)))
    assert (rig.answers[0].status, rig.answers[0].body) == (400, body)


# -- bombs

BOMBS = [BR if name == "br" else name for name in PACK if name]


@functools.cache
def bomb(encoding: str) -> bytes:
    return PACK[encoding](bytes(160 * MIB))


@pytest.mark.parametrize("encoding", BOMBS)
@pytest.mark.parametrize("status", [400, 429])
def test_a_bomb_is_judged_by_its_head(rig_of, encoding, status):
    rig = rig_of("one")
    rig.send(post1())
    sent(rig, http1(status, bomb(encoding), [*encoded(encoding), "retry-after: 600"]))
    (said,) = rig.answers
    assert said.status == status
    assert "cannot read" in json.loads(said.body)["error"]["message"]
    assert rig.cooling() == ({"one"} if status == 429 else set())


@pytest.mark.parametrize("encoding", BOMBS)
def test_many_bombs_at_once_hold_no_memory(encoding):
    """Each of them becomes 16 MiB before it is known for one."""
    piece = bomb(encoding)[:65_536]
    response = http.Response.make(429, b"", {"content-encoding": encoding})
    readers = [response_reader.ResponseReader(response.copy(), gemini.PROVIDER) for _ in range(10)]
    tracemalloc.start()
    try:
        for reader in readers:
            reader.feed(piece)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * MIB


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("status", [400, 429])
def test_so_is_one_in_too_many_frames(rig_of, encoding, status):
    rig = rig_of("one")
    rig.send(post1())
    body = PACK[encoding](b"") * 5_000
    sent(rig, http1(status, body, [*encoded(encoding), "retry-after: 600"]))
    (said,) = rig.answers
    assert said.status == status
    assert "cannot read" in json.loads(said.body)["error"]["message"]
    assert rig.cooling() == ({"one"} if status == 429 else set())


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name])
def test_a_refusal_is_unpacked_once(rig_of, encoding, monkeypatch):
    """However often it is looked at: that is the longest work there is."""
    fed = []
    feed = decoding.Decoder.feed
    monkeypatch.setattr(
        decoding.Decoder, "feed", lambda self, data: fed.append(len(data)) or feed(self, data)
    )
    rig = rig_of()
    rig.send(post1())
    body = PACK[encoding](refusal(550_000, "insufficient_quota"))
    sent(rig, http1(429, body, encoded(encoding)))
    rig.server.send(http1(429, body, encoded(encoding)))
    assert rig.answers[0].body == body
    assert sum(fed) == 2 * len(body)


@pytest.mark.parametrize("encoding", BOMBS)
@pytest.mark.parametrize("kind", [SSE, JSON])
def test_a_bomb_in_a_good_answer_passes_untouched(rig_of, encoding, kind, monkeypatch):
    unpacked = []
    step = decoding.Decoder._step
    monkeypatch.setattr(
        decoding.Decoder,
        "_step",
        lambda self, piece: unpacked.append(out := step(self, piece)) or out,
    )
    rig = rig_of("one")
    rig.send(post1())
    sent(rig, http1(200, bomb(encoding), [kind, f"content-encoding: {encoding}"]))
    assert (rig.answers[0].status, rig.answers[0].body) == (200, bomb(encoding))
    assert rig.answers[0].complete
    assert sum(map(len, unpacked)) < 64 * MIB


@pytest.mark.skipif(not OLD_BROTLI, reason="this brotli can be bounded")
@pytest.mark.parametrize("body", [brotli.compress(LIMIT_BODY), brotli.compress(bytes(160 * MIB))])
@pytest.mark.parametrize("status", [400, 429])
def test_what_an_old_brotli_cannot_bound_is_delivered_as_it_came(rig_of, body, status):
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(http1(status, body, [*encoded("br"), "retry-after: 600"]))
    assert (rig.answers[0].status, rig.answers[0].body) == (status, body)
    assert rig.answers[0].get("content-encoding") == "br"
    assert rig.cooling() == ({"one"} if status == 429 else set())


@pytest.mark.skipif(not OLD_BROTLI, reason="this brotli can be bounded")
def test_what_an_old_brotli_cannot_search_for_a_key_that_was_refused_stays_here(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    rig.server.send(http1(401, brotli.compress(LIMIT_BODY), encoded("br")))
    assert rig.answers[0].status == 401
    assert rig.answers[0].get("content-encoding") is None


# -- what was decided stays


def test_the_time_bound_does_not_change_what_is_decided(rig_of):
    """All of the body is here, its end is not."""
    body = b'{"error":{"code":"rate_limit_exceeded","message":"Rate limit reached"}}'
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    rig.server.head(1, 200, [JSON, f"content-length: {len(body)}"])
    rig.server.data(1, body)
    assert rig.keys == [ONE]
    rig.advance(6)
    rig.advance(1)
    assert rig.keys == [ONE, TWO]
    assert rig.answers == []
    rig.server.answer(3, 200, b"{}", [JSON])
    assert rig.answers[0].body == b"{}"


def test_a_stream_as_long_as_announced_that_began_well_is_handed_on(rig_of):
    body = DELTA + event({"error": {"code": "rate_limit_exceeded"}})
    rig = rig_of(client2=True, server2=True)
    rig.ask()
    rig.server.head(1, 200, [SSE, f"content-length: {len(body)}"])
    rig.server.data(1, DELTA)
    rig.server.data(1, body[len(DELTA) :])
    rig.advance(6)
    rig.server.data(1, b"", end=True)
    assert (rig.answers[0].body, rig.answers[0].complete) == (body, True)


# -- what is kept


def test_a_long_refusal_is_not_remembered(rig_of, monkeypatch):
    monkeypatch.setattr(response_reader, "MAX_REMEMBERED_BYTES", 1000)
    rig = rig_of("one")
    rig.send(post1())
    sent(rig, http1(429, refusal(5000, "rate_limit_exceeded"), LIMITED_HEADERS))
    rig.send(post1())
    assert [a.status for a in rig.answers] == [429, 429]
    assert len(rig.answers[1].body) < 1000


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_delay_in_a_large_body_is_told_as_it_holds(rig_of, clock, encoding):
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "600s"}
    error = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": text(200_000)}
    body = json.dumps({"error": {**error, "details": [retry]}}).encode()
    service = service_of("one", clock=clock, providers=(gemini.PROVIDER,))
    rig = rig_of(service=service, address=("generativelanguage.googleapis.com", 443))
    path = "/v1beta/models/gemini-3.5-flash:generateContent"
    rig.send(post1(path, b"{}", [f"x-goog-api-key: {ONE}"], host=rig.context.server.address[0]))
    sent(rig, http1(429, PACK[encoding](body), encoded(encoding)))
    said = rig.answers[0].body
    if rig.answers[0].get("content-encoding"):
        said = gzip.decompress(said)
    said = json.loads(said)["error"]
    assert said["message"] == error["message"]
    assert 599 < float(said["details"][0]["retryDelay"].removesuffix("s")) < 700
