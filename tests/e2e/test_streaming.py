"""The good answer streams as it would without us: same bytes, each chunk at its time.

Nothing here measures time. The provider does not send a chunk before the client has
acknowledged the one before it: a proxy that held anything back would wait for ever.
"""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from tests.e2e.harness import (
    FIRST,
    SECOND,
    chat,
    generate,
    in_order,
    messages,
    respond,
)
from tests.scripts import anthropic, gemini, openai
from tests.upstream.exchange import Pause, Reply, Step
from tests.upstream.replies import EVENT_STREAM, by_credential

WORDS = [f" word{n}" for n in range(20)]

#: name: request, events that do not commit, committing events and the rest, refusal
STREAMS = {
    "openai chat": ("openai", chat(), [], openai.chat_events(WORDS), openai.rate_limited()),
    "openai responses": (
        "openai",
        respond(),
        openai.response_opening(),
        openai.response_events(WORDS)[2:],
        openai.limit_in_stream(),
    ),
    "anthropic": (
        "anthropic",
        messages(),
        anthropic.message_opening(),
        anthropic.message_events(WORDS)[2:],
        anthropic.limit_in_stream(),
    ),
    "gemini": ("gemini", generate(), [], gemini.content_events(WORDS), gemini.per_minute()),
}


class Handshakes:
    """A reply that waits after each chunk until the client says that it has it."""

    def __init__(self, chunks: list[bytes], opening: bytes = b"") -> None:
        self.chunks = [opening + chunks[0], *chunks[1:]]
        self._received = [asyncio.Event() for _ in self.chunks]

    @property
    def reply(self) -> Reply:
        steps: list[Step] = []
        for chunk, received in zip(self.chunks, self._received, strict=True):
            steps += [chunk, received]
        return Reply(headers=EVENT_STREAM, steps=tuple(steps))

    async def receive(self, response) -> bytes:
        """Read *response*, acknowledging each chunk; return what was read."""
        data, ends = b"", []
        for chunk in self.chunks:
            ends.append((ends[-1] if ends else 0) + len(chunk))
        async for piece in response.aiter_raw():
            data += piece
            for end, received in zip(ends, self._received, strict=True):
                if len(data) >= end:
                    received.set()
        return data


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
@pytest.mark.parametrize(
    ("name", "request_", "opening", "events", "refusal"), STREAMS.values(), ids=STREAMS.keys()
)
async def test_each_chunk_arrives_before_the_next_is_sent(
    *, provider, pool_proxy, name, request_, opening, events, refusal, http2
):
    # The chat's first chunk says only who speaks; no need to decide here if that commits.
    first, rest = (events[:2], events[2:]) if name == "openai" and not opening else ([], events)
    good = Handshakes(rest, b"".join([*opening, *first]))
    upstream = await provider(by_credential({FIRST: refusal, SECOND: good.reply}))
    proxy = await pool_proxy(in_order("first", "second", provider=name), provider=upstream)
    async with (
        proxy.client(http2=http2) as http,
        http.stream(**request_) as response,
    ):
        received = await good.receive(response)
    sent = good.reply.body
    assert hashlib.sha256(received).hexdigest() == hashlib.sha256(sent).hexdigest()
    assert upstream.journal.statuses == [(FIRST, refusal.status), (SECOND, 200)]


async def test_headers_arrive_with_the_first_committing_event(provider, pool_proxy):
    client_has_headers = asyncio.Event()
    steps = (*openai.chat_events(WORDS)[:2], client_has_headers, b"data: [DONE]\n\n")
    upstream = await provider(by_credential({FIRST: Reply(headers=EVENT_STREAM, steps=steps)}))
    proxy = await pool_proxy(in_order("first"), provider=upstream)
    async with proxy.client() as http, http.stream(**chat()) as response:
        client_has_headers.set()
        body = await response.aread()
    assert body == b"".join(step for step in steps if isinstance(step, bytes))


#: What a stream may hold before anything was generated: none of it ends the wait.
UNDECIDED = {
    "comments": [b": keep-alive\n\n"] * 3,
    "response.created": openai.response_opening(),
    "codex.rate_limits": [b'event: codex.rate_limits\ndata: {"type":"codex.rate_limits"}\n\n'],
    "retry field": [b"retry: 500\n\n"],
}


@pytest.mark.parametrize("opening", UNDECIDED.values(), ids=UNDECIDED.keys())
async def test_a_limit_after_events_that_say_nothing_is_still_replaced(
    provider, pool_proxy, opening
):
    failing = Reply(
        headers=EVENT_STREAM,
        steps=(*opening, Pause(0.01), *openai.limit_in_stream().steps[-1:]),
    )
    good = openai.response_stream(WORDS)
    upstream = await provider(by_credential({FIRST: failing, SECOND: good}))
    proxy = await pool_proxy(in_order("first", "second"), provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**respond())
    assert answer.content == good.body


async def test_events_split_anywhere_are_read_as_whole(provider, pool_proxy):
    body = openai.limit_in_stream().body
    failing = Reply(
        headers=EVENT_STREAM,
        steps=tuple(body[n : n + 7] for n in range(0, len(body), 7)),
    )
    good = openai.response_stream(WORDS)
    upstream = await provider(by_credential({FIRST: failing, SECOND: good}))
    proxy = await pool_proxy(in_order("first", "second"), provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**respond())
    assert answer.content == good.body


BOUNDS = {
    "events": [b": nothing\n\n" * 2, *[b'data: {"choices":[]}\n\n'] * 70],
    "bytes": [b": " + b"x" * 70_000 + b"\n\n"],
}


@pytest.mark.parametrize("opening", BOUNDS.values(), ids=BOUNDS.keys())
async def test_the_gate_opens_at_its_bound(provider, pool_proxy, opening):
    """Past the bound the client gets what there is, also if the stream says nothing more."""
    client_has_headers = asyncio.Event()
    steps = (*opening, client_has_headers, b"data: [DONE]\n\n")
    upstream = await provider(by_credential({FIRST: Reply(headers=EVENT_STREAM, steps=steps)}))
    # A gate that would only open by its time: far beyond the patience of this test.
    proxy = await pool_proxy(in_order("first"), provider=upstream, options={"pool_gate": 3600})
    async with proxy.client() as http, http.stream(**chat()) as response:
        client_has_headers.set()
        body = await response.aread()
    assert body == b"".join(step for step in steps if isinstance(step, bytes))


async def test_the_gate_opens_after_its_time(provider, pool_proxy):
    client_has_headers = asyncio.Event()
    steps = (b": nothing yet\n\n", client_has_headers, b"data: [DONE]\n\n")
    upstream = await provider(by_credential({FIRST: Reply(headers=EVENT_STREAM, steps=steps)}))
    proxy = await pool_proxy(in_order("first"), provider=upstream, options={"pool_gate": 0.1})
    async with proxy.client() as http, http.stream(**chat()) as response:
        client_has_headers.set()
        body = await response.aread()
    assert body == b"".join(step for step in steps if isinstance(step, bytes))


async def test_an_error_after_the_commit_point_is_the_clients_to_see(provider, pool_proxy):
    events = [*openai.response_events(WORDS)[:6], *openai.limit_in_stream().steps[-1:]]
    failing = Reply(headers=EVENT_STREAM, steps=tuple(events))
    upstream = await provider(
        by_credential({FIRST: failing, SECOND: openai.response_stream(WORDS)})
    )
    proxy = await pool_proxy(in_order("first", "second"), provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**respond())
    assert answer.content == failing.body
    assert upstream.journal.credentials == [FIRST]
