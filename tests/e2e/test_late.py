"""A limit that comes after the first byte: the answer goes on unchanged, and the pool learns."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

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
from tests.upstream.exchange import Reply
from tests.upstream.replies import by_credential, stream_reply


def event(data: Any, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


QUOTA = {"message": "You exceeded your current quota.", "code": "insufficient_quota"}
CLAUDE = {"type": "rate_limit_error", "message": "This request would exceed your rate limit."}
FAILED = {"type": "response.failed", "response": {"status": "failed", "error": QUOTA}}

LATE: dict[str, tuple[str, dict[str, Any], list[bytes], Reply]] = {
    "openai chat": (
        "openai",
        chat(),
        [*openai.chat_events(["Good"])[:2], event({"error": QUOTA})],
        openai.chat_stream(["Good"]),
    ),
    "openai responses": (
        "openai",
        respond(),
        [*openai.response_events(["Good"])[:5], event(FAILED, "response.failed")],
        stream_reply(openai.response_events(["Good"])),
    ),
    "anthropic": (
        "anthropic",
        messages(),
        [
            *anthropic.message_events(["Good", " day"])[:4],
            event({"type": "error", "error": CLAUDE}, "error"),
        ],
        anthropic.message_stream(["Good"]),
    ),
    "gemini": (
        "gemini",
        generate(),
        [
            gemini.content_events(["Good", " day"])[0],
            event(gemini.exhausted("GenerateRequestsPerDayPerProjectPerModel-FreeTier", 25)),
        ],
        gemini.content_stream(["Good"]),
    ),
}


@pytest.mark.parametrize(("name", "asked", "events", "good"), LATE.values(), ids=LATE.keys())
async def test_the_next_request_begins_elsewhere(
    *, provider, pool_proxy, name, asked, events, good
):
    late = stream_reply(events)
    upstream = await provider(by_credential({FIRST: late, SECOND: good}))
    proxy = await pool_proxy(in_order("first", "second", provider=name), provider=upstream)
    async with proxy.client() as http:
        broken = await http.request(**asked)
        following = await http.request(**asked)
        shown = (await http.get(f"{proxy.url}/account-pool")).json()["accounts"]
    assert (broken.status_code, broken.content) == (200, b"".join(events))
    assert following.status_code == 200
    assert upstream.journal.credentials == [FIRST, SECOND]
    assert shown[0]["cooldowns"]


async def test_a_window_that_is_used_up_is_left_at_the_next_request(provider, pool_proxy):
    """The answer was good, and was billed as overage: the next is asked where there is room."""
    good = openai.chat_complete("Good morning")
    others = tuple(h for h in good.headers if not h[0].startswith("x-ratelimit-"))
    spent = replace(
        good,
        headers=(
            *others,
            ("x-ratelimit-limit-requests", "1000"),
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "20h"),
        ),
    )
    upstream = await provider(by_credential({FIRST: spent, SECOND: good}))
    proxy = await pool_proxy(in_order("first", "second"), provider=upstream)
    request = chat(stream=False)
    request["headers"]["x-session-id"] = "mine"
    async with proxy.client() as http:
        answers = [await http.request(**request) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert upstream.journal.credentials == [FIRST, SECOND, SECOND]
