"""Pieces of the pool's own refusals that several providers share."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from account_pool.core.reset_hints import MAX_WAIT_S
from account_pool.providers.base import LocalAnswer

#: From here on a vendor's client is told not to wait and try again by itself.
LONG_WAIT_S = 60.0

Headers = tuple[tuple[str, str], ...]


def whole_seconds(wait_s: float) -> int:
    """Return *wait_s* rounded up to at least 1: "0" makes clients come back at once."""
    if not wait_s <= MAX_WAIT_S:  # NaN as well
        return int(MAX_WAIT_S)
    return max(1, math.ceil(wait_s))


def retry_after(wait_s: float) -> Headers:
    """Return the wait as RFC 9110 10.2.3 has it."""
    return (("retry-after", str(whole_seconds(wait_s))),)


def sdk_delay(wait_s: float) -> Headers:
    """Return the wait as the OpenAI and Anthropic SDKs read it.

    They obey `x-should-retry` before the status, then `retry-after-ms`, then
    `retry-after` (openai-python `_base_client.py`, `_should_retry`).
    """
    seconds = whole_seconds(wait_s)
    headers = (*retry_after(wait_s), ("retry-after-ms", str(seconds * 1000)))
    return (*headers, ("x-should-retry", "false")) if seconds > LONG_WAIT_S else headers


def json_answer(status: int, headers: Headers, body: Any) -> LocalAnswer:
    """Return *body* as a JSON answer."""
    return LocalAnswer(
        status, (("content-type", "application/json"), *headers), msgspec.json.encode(body)
    )
