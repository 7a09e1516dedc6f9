"""The vendors' own SDKs, where the pool moves a conversation between two requests.

After a limit that came behind the first byte, and after an overload. Retries of the SDKs are
off: what they see is what the proxy delivered, and each request is one of the user's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.harness import CLIENT, FIRST, SECOND, TIMEOUT_S, in_order, point_clients_at
from tests.scripts import anthropic, gemini, openai
from tests.upstream.exchange import Reply
from tests.upstream.replies import by_credential, stream_reply

TEXT = "Good morning"
WORDS = ["Good", " morning"]
PROMPT = [{"role": "user", "content": "Hello?"}]


def event(data: Any, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


QUOTA = {"message": "You exceeded your current quota.", "code": "insufficient_quota"}
CLAUDE = {"type": "rate_limit_error", "message": "This request would exceed your rate limit."}
FAILED = {"type": "response.failed", "response": {"status": "failed", "error": QUOTA}}
GEMINI = gemini.exhausted("GenerateRequestsPerDayPerProjectPerModel-FreeTier", 25)


def openai_chat() -> tuple[str, bool]:
    from openai import APIError, OpenAI

    seen: list[str] = []
    with OpenAI(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client:
        try:
            for chunk in client.chat.completions.create(
                model="gpt-5-nano", messages=PROMPT, stream=True
            ):
                seen += [c.delta.content or "" for c in chunk.choices]
        except APIError:
            return "".join(seen), True
    return "".join(seen), False


def openai_responses() -> tuple[str, bool]:
    from openai import APIError, OpenAI

    seen, failed = [], False
    with OpenAI(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client:
        try:
            for one in client.responses.create(model="gpt-5-nano", input="Hello?", stream=True):
                seen += [one.delta] if one.type == "response.output_text.delta" else []
                failed = failed or one.type == "response.failed"
        except APIError:
            failed = True
    return "".join(seen), failed


def anthropic_messages() -> tuple[str, bool]:
    from anthropic import Anthropic, APIError

    seen: list[str] = []
    with Anthropic(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client:
        try:
            with client.messages.stream(
                model="claude-haiku-4-5", max_tokens=64, messages=PROMPT
            ) as stream:
                seen += stream.text_stream
        except APIError:
            return "".join(seen), True
    return "".join(seen), False


def google_genai() -> tuple[str, bool]:
    from google import genai
    from google.genai.errors import APIError

    seen: list[str] = []
    client = genai.Client(api_key=CLIENT)
    try:
        stream = client.models.generate_content_stream(model="gemini-3.5-flash", contents="Hello?")
        seen.extend(chunk.text or "" for chunk in stream)
    except APIError:
        return "".join(seen), True
    return "".join(seen), False


@dataclass(frozen=True, kw_only=True)
class Sdk:
    """One SDK: how it asks, a stream that ends in a limit, a good one, and an overload."""

    provider: str
    ask: Callable[[], tuple[str, bool]]
    late: list[bytes]
    good: Reply
    overloaded: Reply


SDKS = {
    "openai chat": Sdk(
        provider="openai",
        ask=openai_chat,
        late=[*openai.chat_events(WORDS)[:3], event({"error": QUOTA})],
        good=openai.chat_stream(WORDS),
        overloaded=openai.overloaded(),
    ),
    "openai responses": Sdk(
        provider="openai",
        ask=openai_responses,
        late=[*openai.response_events(WORDS)[:6], event(FAILED, "response.failed")],
        good=openai.response_stream(WORDS),
        overloaded=openai.overloaded(),
    ),
    "anthropic": Sdk(
        provider="anthropic",
        ask=anthropic_messages,
        late=[
            *anthropic.message_events(WORDS)[:4],
            event({"type": "error", "error": CLAUDE}, "error"),
        ],
        good=anthropic.message_stream(WORDS),
        overloaded=anthropic.overloaded(),
    ),
    "google-genai": Sdk(
        provider="gemini",
        ask=google_genai,
        late=[gemini.content_events(WORDS)[0], event(GEMINI)],
        good=gemini.content_stream(WORDS),
        overloaded=gemini.overloaded(),
    ),
}


@pytest.fixture(params=SDKS.values(), ids=SDKS.keys())
def sdk(request) -> Sdk:
    return request.param


@pytest.fixture
async def through_pool(provider, pool_proxy, monkeypatch):
    """Start provider and proxy, and point the environment of every client to it."""

    async def start(name: str, first: Any, second: Any):
        upstream = await provider(by_credential({FIRST: first, SECOND: second}))
        proxy = await pool_proxy(in_order("first", "second", provider=name), provider=upstream)
        point_clients_at(proxy, monkeypatch)
        return upstream.journal

    return start


async def test_after_a_limit_behind_the_first_byte_the_next_request_is_served_elsewhere(
    through_pool, sdk
):
    journal = await through_pool(sdk.provider, stream_reply(sdk.late), sdk.good)
    text, _failed = await asyncio.to_thread(sdk.ask)
    # What had come is there, and no more than the provider sent.
    assert text
    assert TEXT.startswith(text)
    assert await asyncio.to_thread(sdk.ask) == (TEXT, False)
    assert journal.statuses == [(FIRST, 200), (SECOND, 200)]


async def test_an_overload_is_tried_in_place_and_elsewhere_where_the_next_request_begins(
    through_pool, sdk
):
    journal = await through_pool(sdk.provider, sdk.overloaded, sdk.good)
    assert await asyncio.to_thread(sdk.ask) == (TEXT, False)
    assert journal.credentials == [FIRST, FIRST, SECOND]
    assert await asyncio.to_thread(sdk.ask) == (TEXT, False)
    assert journal.credentials == [FIRST, FIRST, SECOND, SECOND]


async def test_an_overload_of_both_is_delivered(through_pool, sdk):
    journal = await through_pool(sdk.provider, sdk.overloaded, sdk.overloaded)
    assert await asyncio.to_thread(sdk.ask) == ("", True)
    assert journal.credentials == [FIRST, FIRST, SECOND]
