"""What the demo's provider says: replies and a script made of them.

Shapes are those of OpenAI (https://platform.openai.com/docs/api-reference/chat and
https://platform.openai.com/docs/guides/rate-limits); tests/scripts has more of it, and what
other vendors say. Events are complete blocks of an event stream, one per item, so that a test
can put whatever it wants between two of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from account_pool.demo.exchange import Framing, Headers, Pause, Reply, Request, Script, Step

JSON: Headers = (("content-type", "application/json"),)
EVENT_STREAM: Headers = (("content-type", "text/event-stream; charset=utf-8"),)

MODEL = "gpt-5-nano"
CREATED = 1_790_000_000
#: On every answer of the API that reached a model.
BUDGET: Headers = (
    ("x-ratelimit-limit-requests", "500"),
    ("x-ratelimit-remaining-requests", "499"),
    ("x-ratelimit-reset-requests", "120ms"),
)


def by_credential(replies: Mapping[str, Reply | Sequence[Reply]]) -> Script:
    """Return a script that answers by credential: the nth reply to its nth request.

    The last reply repeats. A credential that is not in the table is answered 401, in
    no provider's envelope: whoever sends it is not meant to.
    """
    table = {c: [r] if isinstance(r, Reply) else list(r) for c, r in replies.items()}

    def script(request: Request) -> Reply:
        row = table.get(request.credential)
        if row is None:
            return json_reply({"error": "the script does not know this credential"}, status=401)
        return row[min(request.turn, len(row)) - 1]

    return script


def json_reply(value: Any, status: int = 200, headers: Headers = ()) -> Reply:
    """Return *value* as a JSON body of known length."""
    body = json.dumps(value).encode()
    return Reply(status=status, headers=JSON + headers, steps=(body,), framing=Framing.LENGTH)


def stream_reply(events: Iterable[bytes], pause_s: float = 0, headers: Headers = ()) -> Reply:
    """Return an event stream, one step per event, with a pause after each of them."""
    steps: list[Step] = []
    for event in events:
        steps += [event, Pause(pause_s)] if pause_s else [event]
    return Reply(headers=EVENT_STREAM + headers, steps=tuple(steps))


def event(data: Any, name: str | None = None) -> bytes:
    """Return one block of an event stream. Strings are sent as they are."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


# -- OpenAI


def chat_events(words: Sequence[str], model: str = MODEL) -> list[bytes]:
    """Return the events of a streamed chat completion, one per word and some around."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "", "refusal": None}]
    deltas += [{"content": word} for word in words]
    chunks = [_chunk(model, [_choice(delta)]) for delta in deltas]
    chunks.append(_chunk(model, [_choice({}, "stop")]))
    chunks.append(_chunk(model, [], usage=chat_usage(words)))
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


def chat_usage(words: Sequence[str]) -> dict[str, Any]:
    """Return the usage of a chat completion of *words*."""
    return {
        "prompt_tokens": 9,
        "completion_tokens": len(words),
        "total_tokens": 9 + len(words),
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    }


def _quota_error() -> dict[str, Any]:
    return {
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "type": "insufficient_quota",
        "param": None,
        "code": "insufficient_quota",
    }
