"""The bytes a provider answers with: OpenAI's chat completions, as its headers and bodies look.

No answer names an organisation: accounts that share one would share their limits.
"""

from __future__ import annotations

import json
import random
from email.utils import formatdate
from functools import lru_cache

_ALWAYS = (
    "access-control-expose-headers: X-Request-ID\r\n"
    "openai-processing-ms: 12\r\n"
    "openai-version: 2020-10-01\r\n"
    "x-ratelimit-limit-requests: 10000\r\n"
    "x-ratelimit-limit-tokens: 2000000\r\n"
    "x-ratelimit-remaining-tokens: 1999000\r\n"
    "x-ratelimit-reset-tokens: 30ms\r\n"
    "x-request-id: req_0123456789abcdef0123456789abcdef\r\n"
)
#: requests that are left where nobody counts them
PLENTY = 9999


@lru_cache
def json_body(size: int = 0) -> bytes:
    """Return the body of a good answer of about *size* bytes; 0 for a small one."""
    message = {"role": "assistant", "content": text(size) or "Hello from the provider."}
    return json.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1700000000,
            "model": "gpt-5",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15},
        }
    ).encode()


def text(size: int) -> str:
    """Return the same *size* characters each time, in which no two pieces are alike."""
    return random.Random(size).randbytes(size // 2).hex()


def json_answer(size: int = 0, remaining: int = PLENTY) -> bytes:
    """Return a good answer with the body `json_body(size)`, and so many requests left."""
    body = json_body(size)
    return _head("200 OK", "application/json", len(body), remaining) + body


def limit_answer(reset_ms: int) -> bytes:
    """Return a 429 that asks to come back in *reset_ms*."""
    error = {
        "message": f"Rate limit reached for requests. Please try again in {reset_ms}ms.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    body = json.dumps({"error": error}).encode()
    extra = f"retry-after-ms: {reset_ms}\r\nx-ratelimit-reset-requests: {reset_ms}ms\r\n"
    if reset_ms >= 1000:
        extra += f"retry-after: {reset_ms // 1000}\r\n"
    return _head("429 Too Many Requests", "application/json", len(body), 0, extra) + body


def stream_head() -> bytes:
    """Return the head of an event stream; its chunks follow."""
    return _head("200 OK", "text/event-stream; charset=utf-8", None, PLENTY)


def events(name: str, count: int) -> list[bytes]:
    """Return the *count* events of the stream called *name*: role, words, the end, `[DONE]`."""
    words = [_event(name, {"content": f" word {n} of {name}"}) for n in range(count - 3)]
    first, last = _event(name, {"role": "assistant", "content": ""}), _event(name, {}, "stop")
    return [first, *words, last, b"data: [DONE]\n\n"][-count:]


def chunk(data: bytes) -> bytes:
    """Return *data* framed for chunked transfer encoding (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(name: str, delta: dict[str, str], finish: str | None = None) -> bytes:
    value = {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-5",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: %b\n\n" % json.dumps(value).encode()


def _head(
    status: str, content_type: str, length: int | None, remaining: int, extra: str = ""
) -> bytes:
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return (
        f"HTTP/1.1 {status}\r\ndate: {formatdate(usegmt=True)}\r\n"
        f"content-type: {content_type}\r\n{framing}\r\n"
        f"{_ALWAYS}x-ratelimit-remaining-requests: {remaining}\r\n{extra}\r\n"
    ).encode()
