"""What the Anthropic API says: messages, and its limits.

Shapes follow https://docs.anthropic.com/en/api/messages, /messages-streaming, /errors
and /rate-limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.upstream.exchange import Headers, Reply
from tests.upstream.replies import event, json_reply, stream_reply

MODEL = "claude-haiku-4-5"
REQUEST_ID: Headers = (("request-id", "req_fake"),)


def message_opening(model: str = MODEL) -> list[bytes]:
    """Return the events that come before anything was generated."""
    start = {"type": "message_start", "message": _message(model, [], None, 1)}
    return [_named(start), _named({"type": "ping"})]


def message_events(words: Sequence[str], model: str = MODEL) -> list[bytes]:
    """Return the events of a streamed message, one per word and those around."""
    values: list[dict[str, Any]] = [
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        }
    ]
    values += [
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": word},
        }
        for word in words
    ]
    values += [
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": len(words)},
        },
        {"type": "message_stop"},
    ]
    return message_opening(model) + [_named(value) for value in values]


def message_stream(words: Sequence[str], pause_s: float = 0, model: str = MODEL) -> Reply:
    """Return a streamed message."""
    return stream_reply(message_events(words, model), pause_s, REQUEST_ID)


def message_complete(text: str, model: str = MODEL) -> Reply:
    """Return a message in one piece."""
    content = [{"type": "text", "text": text}]
    message = _message(model, content, "end_turn", len(text.split()))
    return json_reply(message, headers=REQUEST_ID)


def rate_limited(seconds: float = 38) -> Reply:
    """Return the 429 of a spent requests-per-minute budget."""
    reset = datetime.now(UTC) + timedelta(seconds=seconds)
    headers: Headers = (
        ("retry-after", f"{max(1, round(seconds))}"),
        ("anthropic-ratelimit-requests-limit", "50"),
        ("anthropic-ratelimit-requests-remaining", "0"),
        ("anthropic-ratelimit-requests-reset", reset.strftime("%Y-%m-%dT%H:%M:%SZ")),
    )
    message = (
        "This request would exceed the rate limit for your organization of 50 requests per "
        "minute. Please try again later."
    )
    return json_reply(error_envelope("rate_limit_error", message), 429, REQUEST_ID + headers)


def window_spent(seconds: float = 7835, family: str = "") -> Reply:
    """Return the 429 of a subscription whose 5-hour window, or that of a family, is spent."""
    at = f"{datetime.now(UTC).timestamp() + seconds:.0f}"
    week = f"{datetime.now(UTC).timestamp() + 400_000:.0f}"
    unified = {
        "5h-reset": week if family else at,
        "5h-status": "allowed" if family else "rejected",
        "7d-reset": week,
        "7d-status": "allowed",
        "representative-claim": f"seven_day_{family}" if family else "five_hour",
        "reset": at,
        "status": "rejected",
    }
    if family:
        unified |= {f"7d_{family}-reset": at, f"7d_{family}-status": "rejected"}
    headers: Headers = tuple(
        (f"anthropic-ratelimit-unified-{name}", value) for name, value in unified.items()
    )
    message = "This request would exceed your account's rate limit. Please try again later."
    said: Headers = (("retry-after", f"{seconds:.0f}"), ("x-should-retry", "true"))
    return json_reply(error_envelope("rate_limit_error", message), 429, REQUEST_ID + headers + said)


def credit_too_low() -> Reply:
    """Return the 400 of an account without money."""
    message = (
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & "
        "Billing to upgrade or purchase credits."
    )
    return json_reply(error_envelope("invalid_request_error", message), 400, REQUEST_ID)


def overloaded() -> Reply:
    """Return the 529 of a server that is short of capacity."""
    return json_reply(error_envelope("overloaded_error", "Overloaded"), 529, REQUEST_ID)


def limit_in_stream() -> Reply:
    """Return a 200 whose stream fails with a rate limit after `message_start` and `ping`."""
    envelope = error_envelope("rate_limit_error", "Rate limited. Please try again later.")
    return stream_reply([*message_opening(), _named(envelope)], headers=REQUEST_ID)


def error_envelope(kind: str, message: str) -> dict[str, Any]:
    """Return the envelope of an error, the same in a body and in a stream."""
    return {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": "req_fake",
    }


def _message(
    model: str, content: list[dict[str, Any]], stop_reason: str | None, output_tokens: int
) -> dict[str, Any]:
    return {
        "id": "msg_fake",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 9,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output_tokens,
            "service_tier": "standard",
        },
    }


def _named(value: dict[str, Any]) -> bytes:
    return event(value, value["type"])
