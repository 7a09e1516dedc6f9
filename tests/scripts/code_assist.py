"""What Gemini Code Assist says to Gemini CLI: answers in a wrapper, and its limits.

Shapes follow google-gemini/gemini-cli `packages/core/src/code_assist` and
`utils/googleQuotaErrors.test.ts`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.upstream.exchange import Reply
from tests.upstream.replies import json_reply, stream_reply

MODEL = "gemini-3.1-pro-preview"
_KIND = "type.googleapis.com/google.rpc."


def content_stream(words: Sequence[str], pause_s: float = 0) -> Reply:
    """Return a stream with `?alt=sse`; nothing marks its end."""
    parts = [{"response": {"candidates": [_candidate(word)]}, "traceId": "fake"} for word in words]
    return stream_reply([f"data: {json.dumps(part)}\r\n\r\n".encode() for part in parts], pause_s)


def content_complete(text: str) -> Reply:
    """Return an answer in one piece."""
    return json_reply({"response": {"candidates": [_candidate(text)]}, "traceId": "fake"})


def account(project: str) -> Reply:
    """Return what `:loadCodeAssist` says of an account."""
    return json_reply({"currentTier": {"id": "free-tier"}, "cloudaicompanionProject": project})


def exhausted(delay: str = "1h43m56s", reason: str = "QUOTA_EXHAUSTED") -> Reply:
    """Return the 429 of a spent quota of a model."""
    return json_reply(error(delay, reason), 429)


def limit_in_stream(delay: str = "1h43m56s") -> Reply:
    """Return a 200 whose stream begins with the refusal."""
    return stream_reply([f"data: {json.dumps(error(delay))}\r\n\r\n".encode()])


def error(delay: str, reason: str = "QUOTA_EXHAUSTED") -> dict[str, Any]:
    """Return the error envelope of a spent quota."""
    info = {
        "@type": f"{_KIND}ErrorInfo",
        "reason": reason,
        "domain": "cloudcode-pa.googleapis.com",
        "metadata": {
            "model": MODEL,
            "quotaResetDelay": delay,
            "quotaResetTimeStamp": "2020-01-01T00:00:00Z",
            "uiMessage": "true",
        },
    }
    return {
        "error": {
            "code": 429,
            "message": "You have exhausted your capacity on this model. Your quota will reset "
            f"after {delay}.",
            "status": "RESOURCE_EXHAUSTED",
            "details": [info, {"@type": f"{_KIND}RetryInfo", "retryDelay": delay}],
        }
    }


def _candidate(text: str) -> dict[str, Any]:
    return {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
