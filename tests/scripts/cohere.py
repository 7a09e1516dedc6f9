"""What the Cohere API says: chat of its second version, and its limits.

Shapes follow https://docs.cohere.com/reference/chat-stream and
https://docs.cohere.com/reference/errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.upstream.exchange import Reply
from tests.upstream.replies import event, json_reply, stream_reply


def chat_stream(words: Sequence[str], pause_s: float = 0) -> Reply:
    """Return a streamed chat."""
    opening = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": []}
    values: list[dict[str, Any]] = [
        {"id": "chat-fake", "type": "message-start", "delta": {"message": opening}},
        _content("content-start", {"type": "text", "text": ""}),
        *(_content("content-delta", {"text": word}) for word in words),
        {"type": "content-end", "index": 0},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": _usage(words)}},
    ]
    return stream_reply((event(value, value["type"]) for value in values), pause_s)


def chat_complete(text: str) -> Reply:
    """Return a chat in one piece."""
    message = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    answer = {"id": "chat-fake", "finish_reason": "COMPLETE", "message": message}
    return json_reply({**answer, "usage": _usage(text.split())})


def limited(calls: int = 40, window: str = "minute") -> Reply:
    """Return the 429 of a trial key: per minute or per month, only the last word differs."""
    message = f"You are using a Trial key, which is limited to {calls} API calls / {window}."
    return json_reply({"message": message}, 429)


def _content(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "index": 0, "delta": {"message": {"content": content}}}


def _usage(words: Sequence[str]) -> dict[str, Any]:
    counted = {"input_tokens": 9, "output_tokens": len(words)}
    return {"billed_units": counted, "tokens": counted}
