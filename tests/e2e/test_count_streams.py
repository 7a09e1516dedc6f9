"""`pool_count_streams`: a chat stream is counted, and its client gets what it would have got."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from tests.e2e.harness import CLIENT, FIRST, TIMEOUT_S, account, chat, in_order, point_clients_at
from tests.e2e.test_requests import until
from tests.upstream.exchange import Reply, Request
from tests.upstream.replies import EVENT_STREAM, json_reply

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
WORDS = ["Good", " morning", " to", " you"]


def events(*, asked: bool) -> Iterator[bytes]:
    """What the API sends, which says its usage where it is asked."""
    for text in WORDS:
        choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        yield event([choice], asked, None)
    yield event([{"index": 0, "delta": {}, "finish_reason": "stop"}], asked, None)
    if asked:
        yield event([], asked, USAGE)
    yield b"data: [DONE]\n\n"


def event(choices: list[object], asked: bool, usage: object) -> bytes:
    value = {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-nano",
        "choices": choices, **({"usage": usage} if asked else {}), "obfuscation": "x7Q",
    }  # fmt: skip
    return b"data: %s\n\n" % json.dumps(value, separators=(",", ":")).encode()


def asks(request: Request) -> bool:
    return bool((json.loads(request.body).get("stream_options") or {}).get("include_usage"))


def script(request: Request) -> Reply:
    return Reply(headers=EVENT_STREAM, steps=tuple(events(asked=asks(request))))


async def raw(proxy, **changes: object) -> bytes:
    async with proxy.client() as http:
        asked = chat()
        asked["json"] = {**asked["json"], **changes}
        answer = await http.request(**asked)
    assert answer.status_code == 200
    return answer.content


@pytest.mark.parametrize("fast", ["on", "short", "off"])
async def test_the_bytes_are_those_of_a_stream_that_was_not_asked(provider, pool_proxy, fast):
    upstream = await provider(script)
    options = {"pool_count_streams": "true", "pool_fast": fast}
    proxy = await pool_proxy([account("first")], provider=upstream, options=options)
    assert await raw(proxy) == b"".join(events(asked=False))
    [row] = await until(proxy.url, "", lambda rows: len(rows) == 1)
    assert (row["status"], row["tokens"]["input"], row["tokens"]["output"]) == ("ok", 9, 4)
    # Who asks, or says something about it, gets what was asked for.
    whole = b"".join(events(asked=True))
    assert await raw(proxy, stream_options={"include_usage": True}) == whole
    none = await raw(proxy, stream_options={"include_usage": False})
    assert none == b"".join(events(asked=False))
    asked = [asks(one.request) for one in upstream.journal.exchanges]
    assert asked == [True, True, False]


async def test_it_is_off_by_default(provider, pool_proxy):
    upstream = await provider(script)
    proxy = await pool_proxy([account("first")], provider=upstream)
    assert await raw(proxy) == b"".join(events(asked=False))
    [row] = await until(proxy.url, "", lambda rows: len(rows) == 1)
    assert row["tokens"]["input"] is None
    assert not asks(upstream.journal.exchanges[0].request)


async def test_the_sdk_of_openai_sees_no_difference(provider, pool_proxy, monkeypatch):
    from openai import AsyncOpenAI

    upstream = await provider(script)
    seen = []
    for on in ("true", "false"):
        proxy = await pool_proxy(
            [account("first")], provider=upstream, options={"pool_count_streams": on}
        )
        point_clients_at(proxy, monkeypatch)
        async with AsyncOpenAI(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client:
            stream = await client.chat.completions.create(
                model="gpt-5-nano", messages=[{"role": "user", "content": "Hello?"}], stream=True
            )
            seen.append([part.model_dump_json(exclude_unset=True) async for part in stream])
    assert seen[0] == seen[1]
    assert len(seen[0]) == len(WORDS) + 1
    assert [asks(one.request) for one in upstream.journal.exchanges] == [True, False]


REFUSED = {
    "error": {
        "message": "Unknown parameter: 'stream_options'.",
        "type": "invalid_request_error",
        "param": "stream_options",
        "code": "unknown_parameter",
    }
}


async def test_a_model_that_takes_no_stream_options_is_asked_without(provider, pool_proxy):
    def picky(request: Request) -> Reply:
        return json_reply(REFUSED, 400) if asks(request) else script(request)

    upstream = await provider(picky)
    proxy = await pool_proxy(
        in_order("first", "second"), provider=upstream, options={"pool_count_streams": "true"}
    )
    for _ in range(2):
        assert await raw(proxy) == b"".join(events(asked=False))
    # Once; then it is remembered. The account is not to blame.
    assert [asks(one.request) for one in upstream.journal.exchanges] == [True, False, False]
    assert upstream.journal.credentials == [FIRST, FIRST, FIRST]
    rows = await until(proxy.url, "", lambda rows: len(rows) == 2)
    assert [(row["status"], row["attempts"]) for row in rows] == [("ok", 1), ("ok", 2)]
    # Who asks itself gets the refusal.
    async with proxy.client() as http:
        asked = chat()
        asked["json"] = {**asked["json"], "stream_options": {"include_usage": True}}
        answer = await http.request(**asked)
    assert (answer.status_code, answer.json()) == (400, REFUSED)


async def test_another_400_is_handed_on(provider, pool_proxy):
    refusal = {"error": {"message": "no", "type": "invalid_request_error", "param": "model"}}
    upstream = await provider(lambda _request: json_reply(refusal, 400))
    proxy = await pool_proxy(
        [account("first")], provider=upstream, options={"pool_count_streams": "true"}
    )
    async with proxy.client() as http:
        answer = await http.request(**chat())
    assert (answer.status_code, answer.json()) == (400, refusal)
    assert len(upstream.journal.exchanges) == 1


async def test_an_answer_with_a_length(provider, pool_proxy):
    def with_length(request: Request) -> Reply:
        reply = script(request)
        size = sum(len(step) for step in reply.steps if isinstance(step, bytes))
        return replace(reply, headers=(*reply.headers, ("content-length", str(size))))

    upstream = await provider(with_length)
    proxy = await pool_proxy(
        [account("first")], provider=upstream, options={"pool_count_streams": "true"}
    )
    assert await raw(proxy) == b"".join(events(asked=False))
    async with httpx.AsyncClient(trust_env=False) as http:
        usage = (await http.get(f"{proxy.url}/usage")).json()["days"]
    assert [(one["input_tokens"], one["output_tokens"]) for one in usage] == [(9, 4)]
