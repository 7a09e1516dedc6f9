"""What the OpenAI API says: chat completions, responses, and its limits.

Shapes follow https://platform.openai.com/docs/api-reference (chat, responses) and
https://platform.openai.com/docs/guides/rate-limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.upstream.exchange import Headers, Reply
from tests.upstream.replies import event, json_reply, stream_reply

MODEL = "gpt-5-nano"
CREATED = 1_790_000_000
#: On every answer of the API that reached a model.
BUDGET: Headers = (
    ("x-ratelimit-limit-requests", "500"),
    ("x-ratelimit-remaining-requests", "499"),
    ("x-ratelimit-reset-requests", "120ms"),
)


def chat_events(words: Sequence[str], model: str = MODEL) -> list[bytes]:
    """Return the events of a streamed chat completion, one per word and some around."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "", "refusal": None}]
    deltas += [{"content": word} for word in words]
    chunks = [_chunk(model, [_choice(delta)]) for delta in deltas]
    chunks.append(_chunk(model, [_choice({}, "stop")]))
    chunks.append(_chunk(model, [], usage=_chat_usage(words)))
    return [*(event(chunk) for chunk in chunks), event("[DONE]")]


def chat_stream(words: Sequence[str], pause_s: float = 0, model: str = MODEL) -> Reply:
    """Return a streamed chat completion."""
    return stream_reply(chat_events(words, model), pause_s, BUDGET)


def rate_limited(seconds: float = 38, model: str = MODEL, organisation: str = "org-fake") -> Reply:
    """Return the 429 of a spent tokens-per-minute budget."""
    headers: Headers = (
        ("retry-after", f"{max(1, round(seconds))}"),
        ("retry-after-ms", f"{round(seconds * 1000)}"),
        ("x-ratelimit-limit-tokens", "30000"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", f"{seconds:g}s"),
    )
    return json_reply(rate_limit_error(seconds, model, organisation), 429, headers)


def insufficient_quota() -> Reply:
    """Return the 429 of an account without money."""
    return json_reply({"error": _quota_error()}, 429)


def rate_limit_error(
    seconds: float, model: str = MODEL, organisation: str = "org-fake"
) -> dict[str, Any]:
    """Return the error envelope of a rate limit."""
    message = (
        f"Rate limit reached for {model} in organization {organisation} on tokens per min (TPM): "
        f"Limit 30000, Used 30000, Requested 385. Please try again in {seconds:g}s. Visit "
        "https://platform.openai.com/account/rate-limits to learn more."
    )
    return {
        "error": {
            "message": message,
            "type": "tokens",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }


def chat_complete(text: str, model: str = MODEL) -> Reply:
    """Return a chat completion in one piece."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    completion = {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": _chat_usage(text.split()),
        "service_tier": "default",
        "system_fingerprint": None,
    }
    return json_reply(completion, headers=BUDGET)


def response_opening(model: str = MODEL) -> list[bytes]:
    """Return the events that come before anything was generated."""
    body = _response(model, "in_progress", [])
    return [
        _numbered(0, {"type": "response.created", "response": body}),
        _numbered(1, {"type": "response.in_progress", "response": body}),
    ]


def response_events(words: Sequence[str], model: str = MODEL) -> list[bytes]:
    """Return the events of a streamed response, one per word and those around."""
    text = "".join(words)
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
    item = _message_item("completed", [part])
    place = {"item_id": "msg_fake", "output_index": 0, "content_index": 0}
    values: list[dict[str, Any]] = [
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": _message_item("in_progress", []),
        },
        {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
    ]
    values += [
        {"type": "response.output_text.delta", **place, "delta": word, "logprobs": []}
        for word in words
    ]
    values += [
        {"type": "response.output_text.done", **place, "text": text, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {
            "type": "response.completed",
            "response": _response(model, "completed", [item], _response_usage(words)),
        },
    ]
    opening = response_opening(model)
    return opening + [_numbered(n, value) for n, value in enumerate(values, len(opening))]


def response_stream(words: Sequence[str], pause_s: float = 0, model: str = MODEL) -> Reply:
    """Return a streamed response."""
    return stream_reply(response_events(words, model), pause_s, BUDGET)


def limit_in_stream(seconds: float = 38, model: str = MODEL) -> Reply:
    """Return a 200 whose stream fails with a rate limit after `response.created`."""
    error = {
        "code": "rate_limit_exceeded",
        "message": rate_limit_error(seconds, model)["error"]["message"],
    }
    failed = {**_response(model, "failed", []), "error": error}
    opening = response_opening(model)
    last = _numbered(len(opening), {"type": "response.failed", "response": failed})
    return stream_reply([*opening, last])


def limit_in_chat_stream(seconds: float = 38, model: str = MODEL) -> Reply:
    """Return a 200 whose chat stream begins with an error object."""
    return stream_reply([event(rate_limit_error(seconds, model))])


def limit_in_json(seconds: float = 38, model: str = MODEL) -> Reply:
    """Return a 200 whose JSON body is an error envelope."""
    return json_reply(rate_limit_error(seconds, model))


def overloaded() -> Reply:
    """Return the 503 of a server that is short of capacity."""
    error = {
        "message": "The server is overloaded. Please try again later.",
        "type": "service_unavailable_error",
        "param": None,
        "code": "server_is_overloaded",
    }
    return json_reply({"error": error}, 503)


def bad_request() -> Reply:
    """Return a 400 that is the request's own fault."""
    error = {
        "message": "Invalid 'messages': empty array.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "empty_array",
    }
    return json_reply({"error": error}, 400)


def invalid_key() -> Reply:
    """Return the 401 of a key that does not exist."""
    error = {
        "message": "Incorrect API key provided.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
    return json_reply({"error": error}, 401)


def _chat_usage(words: Sequence[str]) -> dict[str, Any]:
    return {
        "prompt_tokens": 9,
        "completion_tokens": len(words),
        "total_tokens": 9 + len(words),
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    }


def _chunk(
    model: str, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": model,
        "service_tier": "default",
        "system_fingerprint": None,
        "choices": choices,
        "usage": usage,
    }


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _quota_error() -> dict[str, Any]:
    return {
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "type": "insufficient_quota",
        "param": None,
        "code": "insufficient_quota",
    }


def _response_usage(words: Sequence[str]) -> dict[str, Any]:
    return {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": len(words),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 9 + len(words),
    }


def _response(
    model: str,
    status: str,
    output: list[dict[str, Any]],
    usage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "id": "resp_fake",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage,
        "metadata": {},
    }


def _message_item(status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "msg_fake",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _numbered(number: int, value: dict[str, Any]) -> bytes:
    return event({**value, "sequence_number": number}, value["type"])
