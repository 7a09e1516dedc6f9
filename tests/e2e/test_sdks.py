"""The vendors' own SDKs, set up as a user does: a proxy and a CA in the environment.

Their stream parsers judge what the proxy delivers; their retries are off, so that a
refusal they saw would be an exception here.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.harness import CLIENT, FIRST, SECOND, TIMEOUT_S, in_order, point_clients_at
from tests.scripts import anthropic as anthropic_script
from tests.scripts import gemini
from tests.scripts import openai as openai_script
from tests.upstream.replies import by_credential

WORDS = ["Good", " morning", " to", " you"]
TEXT = "".join(WORDS)
PROMPT = [{"role": "user", "content": "Hello?"}]


@pytest.fixture
async def through_pool(provider, pool_proxy, monkeypatch):
    """Start provider and proxy, and point the environment of every client to it."""

    async def start(name: str, refusal, good):
        upstream = await provider(by_credential({FIRST: refusal, SECOND: good}))
        proxy = await pool_proxy(in_order("first", "second", provider=name), provider=upstream)
        point_clients_at(proxy, monkeypatch)
        return upstream.journal

    return start


def assert_failed_over(journal, refusal_status: int = 429) -> None:
    assert journal.statuses == [(FIRST, refusal_status), (SECOND, 200)]


async def test_openai_chat_stream(through_pool):
    from openai import AsyncOpenAI

    journal = await through_pool(
        "openai", openai_script.rate_limited(), openai_script.chat_stream(WORDS)
    )
    async with AsyncOpenAI(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client:
        stream = await client.chat.completions.create(
            model="gpt-5-nano",
            messages=PROMPT,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert chunks[-1].usage.completion_tokens == len(WORDS)
    assert_failed_over(journal)


async def test_openai_chat_stream_that_begins_with_an_error(through_pool):
    from openai import AsyncOpenAI

    journal = await through_pool(
        "openai", openai_script.limit_in_chat_stream(), openai_script.chat_stream(WORDS)
    )
    async with AsyncOpenAI(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client:
        stream = await client.chat.completions.create(
            model="gpt-5-nano", messages=PROMPT, stream=True
        )
        text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    assert text == TEXT
    assert_failed_over(journal, 200)


async def test_openai_responses_stream(through_pool):
    from openai import AsyncOpenAI

    journal = await through_pool(
        "openai", openai_script.limit_in_stream(), openai_script.response_stream(WORDS)
    )
    async with (
        AsyncOpenAI(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client,
        client.responses.stream(model="gpt-5-nano", input="Hello?") as stream,
    ):
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == TEXT
    assert kinds.count("response.created") == 1
    assert "error" not in kinds and "response.failed" not in kinds
    assert_failed_over(journal, 200)


async def test_openai_in_one_piece(through_pool):
    from openai import OpenAI

    journal = await through_pool(
        "openai", openai_script.insufficient_quota(), openai_script.chat_complete(TEXT)
    )

    def ask() -> str:
        with OpenAI(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client:
            answer = client.chat.completions.create(model="gpt-5-nano", messages=PROMPT)
            return answer.choices[0].message.content

    assert await asyncio.to_thread(ask) == TEXT
    assert_failed_over(journal)


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (anthropic_script.rate_limited(), 429),
        (anthropic_script.credit_too_low(), 400),
        (anthropic_script.limit_in_stream(), 200),
    ],
    ids=["rate limit", "credit", "error in the stream"],
)
async def test_anthropic_stream(through_pool, refusal, status):
    from anthropic import AsyncAnthropic

    journal = await through_pool("anthropic", refusal, anthropic_script.message_stream(WORDS))
    async with (
        AsyncAnthropic(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client,
        client.messages.stream(model="claude-haiku-4-5", max_tokens=64, messages=PROMPT) as stream,
    ):
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == TEXT
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == len(WORDS)
    assert_failed_over(journal, status)


async def test_anthropic_in_one_piece(through_pool):
    from anthropic import Anthropic

    journal = await through_pool(
        "anthropic", anthropic_script.rate_limited(), anthropic_script.message_complete(TEXT)
    )

    def ask() -> str:
        with Anthropic(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client:
            answer = client.messages.create(
                model="claude-haiku-4-5", max_tokens=64, messages=PROMPT
            )
            return answer.content[0].text

    assert await asyncio.to_thread(ask) == TEXT
    assert_failed_over(journal)


async def test_google_genai_stream(through_pool):
    from google import genai

    journal = await through_pool("gemini", gemini.per_minute(), gemini.content_stream(WORDS))

    def ask() -> list[str]:
        client = genai.Client(api_key=CLIENT)
        stream = client.models.generate_content_stream(model="gemini-3.5-flash", contents="Hello?")
        return [chunk.text for chunk in stream]

    assert await asyncio.to_thread(ask) == WORDS
    assert_failed_over(journal)


async def test_google_genai_in_one_piece(through_pool):
    from google import genai

    journal = await through_pool("gemini", gemini.per_day(), gemini.content_complete(TEXT))

    def ask() -> str:
        client = genai.Client(api_key=CLIENT)
        return client.models.generate_content(model="gemini-3.5-flash", contents="Hello?").text

    assert await asyncio.to_thread(ask) == TEXT
    assert_failed_over(journal)


@pytest.mark.parametrize(
    "refusal", [gemini.per_day(), gemini.interaction_limited_inside()], ids=["429", "inside a 200"]
)
async def test_google_genai_interaction(through_pool, refusal):
    from google import genai

    if not hasattr(genai.Client, "interactions"):
        pytest.skip("this google-genai has no Interactions API")
    journal = await through_pool("gemini", refusal, gemini.interaction_stream(WORDS))

    def ask() -> list[str]:
        client = genai.Client(api_key=CLIENT)
        stream = client.interactions.create(model="gemini-3.5-flash", input="Hello?", stream=True)
        deltas = [e.delta for e in stream if e.event_type == "step.delta"]
        # Older ones know no steps, and hand on what they read.
        return [d["text"] if isinstance(d, dict) else d.text for d in deltas]

    assert await asyncio.to_thread(ask) == WORDS
    assert [credential for credential, _status in journal.statuses] == [FIRST, SECOND]
