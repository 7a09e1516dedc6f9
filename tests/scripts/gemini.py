"""What the Gemini API says: generateContent, streamed and not, and its limits.

Shapes follow https://ai.google.dev/api/generate-content, errors are `google.rpc.Status`
(https://cloud.google.com/apis/design/errors).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.upstream.exchange import Reply
from tests.upstream.replies import JSON, json_reply, stream_reply

MODEL = "gemini-3.5-flash"


def content_events(words: Sequence[str], model: str = MODEL) -> list[bytes]:
    """Return the events of a stream with `?alt=sse`, one per word; nothing marks the end."""
    return [f"data: {json.dumps(part)}\r\n\r\n".encode() for part in _parts(words, model)]


def content_stream(words: Sequence[str], pause_s: float = 0, model: str = MODEL) -> Reply:
    """Return a stream with `?alt=sse`."""
    return stream_reply(content_events(words, model), pause_s)


def content_array(words: Sequence[str], model: str = MODEL) -> Reply:
    """Return a stream without `?alt=sse`: a JSON array sent in pieces."""
    parts = [json.dumps(part).encode() for part in _parts(words, model)]
    steps = [b"[" + parts[0], *(b",\r\n" + part for part in parts[1:]), b"]"]
    return Reply(headers=JSON, steps=tuple(steps))


def content_complete(text: str, model: str = MODEL) -> Reply:
    """Return an answer in one piece."""
    return json_reply(_content(text, model, 1, finished=True))


def interaction_events(words: Sequence[str], made: str = "v1_fake") -> list[bytes]:
    """Return the events of an interaction: created, one delta per word, completed.

    Shapes follow https://ai.google.dev/api/interactions-api.
    """
    about = {"id": made, "status": "in_progress", "model": MODEL, "object": "interaction"}
    deltas = [
        {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": word}}
        for word in words
    ]
    usage = {"total_input_tokens": 9, "total_output_tokens": len(words)}
    events: list[dict[str, Any]] = [
        {"event_type": "interaction.created", "interaction": about},
        {"event_type": "step.start", "index": 0, "step": {"type": "model_output"}},
        *deltas,
        {"event_type": "step.stop", "index": 0},
        {
            "event_type": "interaction.completed",
            "interaction": about | {"status": "completed", "usage": usage},
        },
    ]
    named = [f"event: {e['event_type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events]
    return [*named, b"event: done\ndata: [DONE]\n\n"]


def interaction_stream(words: Sequence[str]) -> Reply:
    """Return a streamed interaction."""
    return stream_reply(interaction_events(words))


def interaction_limited_inside() -> Reply:
    """Return a stream that begins well and is a spent daily quota after all."""
    error = {"code": "quota_exceeded", "message": "You have exceeded your daily quota."}
    refused = {"event_type": "error", "error": error}
    created = interaction_events(())[0]
    return stream_reply([created, f"event: error\ndata: {json.dumps(refused)}\n\n".encode()])


def per_minute(seconds: float = 56, model: str = MODEL) -> Reply:
    """Return the 429 of a spent per-minute quota."""
    return json_reply(
        exhausted("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", seconds, model), 429
    )


def per_day(model: str = MODEL) -> Reply:
    """Return the 429 of a spent daily quota, with its misleadingly short delay."""
    return json_reply(
        exhausted("GenerateRequestsPerDayPerProjectPerModel-FreeTier", 25, model), 429
    )


def limit_in_array(seconds: float = 56, model: str = MODEL) -> Reply:
    """Return the 429 of a stream without `?alt=sse`: the envelope inside an array."""
    quota = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
    return json_reply([exhausted(quota, seconds, model)], 429)


def overloaded() -> Reply:
    """Return the 503 of a model that is short of capacity."""
    error = {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}
    return json_reply({"error": error}, 503)


def exhausted(quota_id: str, seconds: float, model: str = MODEL) -> dict[str, Any]:
    """Return the error envelope of a spent quota."""
    violation = {
        "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
        "quotaId": quota_id,
        "quotaDimensions": {"model": model, "location": "global"},
        "quotaValue": "2",
    }
    kind = "type.googleapis.com/google.rpc."
    return {
        "error": {
            "code": 429,
            "message": "You exceeded your current quota, please check your plan and billing "
            f"details. Please retry in {seconds:g}s.",
            "status": "RESOURCE_EXHAUSTED",
            "details": [
                {"@type": f"{kind}QuotaFailure", "violations": [violation]},
                {"@type": f"{kind}RetryInfo", "retryDelay": f"{seconds:g}s"},
            ],
        }
    }


def _parts(words: Sequence[str], model: str) -> list[dict[str, Any]]:
    last = len(words) - 1
    return [_content(word, model, n + 1, finished=n == last) for n, word in enumerate(words)]


def _content(text: str, model: str, tokens: int, *, finished: bool) -> dict[str, Any]:
    candidate: dict[str, Any] = {
        "content": {"parts": [{"text": text}], "role": "model"},
        "index": 0,
    }
    if finished:
        candidate["finishReason"] = "STOP"
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": 9,
            "candidatesTokenCount": tokens,
            "totalTokenCount": 9 + tokens,
        },
        "modelVersion": model,
        "responseId": "fake",
    }
