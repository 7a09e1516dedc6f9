"""What chatgpt.com says to Codex: its limits. Answers are those of the responses API.

Shapes follow openai/codex `codex-rs/codex-api` and the captures in its issues.
"""

from __future__ import annotations

import time
from typing import Any

from tests.scripts.openai import response_opening
from tests.upstream.exchange import Headers, Reply
from tests.upstream.replies import event, json_reply, stream_reply


def windows(primary: float, secondary: float, primary_s: float, secondary_s: float) -> Headers:
    """Return the headers of both windows: used percent, and seconds until they end."""
    now = time.time()
    return (
        ("x-codex-primary-used-percent", f"{primary}"),
        ("x-codex-primary-window-minutes", "300"),
        ("x-codex-primary-reset-at", f"{now + primary_s:.0f}"),
        ("x-codex-secondary-used-percent", f"{secondary}"),
        ("x-codex-secondary-window-minutes", "10080"),
        ("x-codex-secondary-reset-at", f"{now + secondary_s:.0f}"),
        ("x-codex-turn-state", "sticky-fake"),
    )


def usage_limit(
    seconds: float = 5400, status: int = 429, headers: Headers = (), used: float = 100.0
) -> Reply:
    """Return the refusal of a plan whose window is spent; `resets_at` may be outdated.

    *used*: how much of the short window is, in percent; less than all for another limit.
    """
    error = {
        "type": "usage_limit_reached",
        "message": "The usage limit has been reached",
        "plan_type": "plus",
        "resets_at": int(time.time()) - 60,
        "resets_in_seconds": round(seconds),
    }
    said = windows(used, 40.0, seconds, 400_000)
    return json_reply({"error": error}, status, said + headers)


def limit_in_stream() -> Reply:
    """Return a 200 whose stream fails for the limit, after events that say nothing."""
    limits = {"type": "codex.rate_limits", "rate_limits": {"limit_reached": True}}
    error: dict[str, Any] = {"code": "usage_limit_reached", "message": "The usage limit ..."}
    failed = {"type": "response.failed", "response": {"status": "failed", "error": error}}
    events = [event(limits), *response_opening(), event(failed, "response.failed")]
    return stream_reply(events)
