"""Pieces of the pool's own refusals that several providers share."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from account_pool.core.meaning import LazyPattern
from account_pool.core.reset_hints import MAX_WAIT_S
from account_pool.providers.base import LocalResponse

#: From this wait on, in seconds, a vendor's client must not wait and try again by itself.
LONG_WAIT_S = 60.0

Headers = tuple[tuple[str, str], ...]


def whole_seconds(wait_s: float) -> int:
    """Return *wait_s* rounded up to at least 1: "0" makes clients come back at once."""
    if not wait_s <= MAX_WAIT_S:  # NaN as well
        return int(MAX_WAIT_S)
    return max(1, math.ceil(wait_s))


def epoch_seconds(at: float) -> str:
    """Return a moment as whole seconds since the epoch."""
    return str(math.ceil(at))


def rfc3339(at: float) -> str:
    """Return a moment, seconds since the epoch, as `2026-10-01T10:00:00Z` (RFC 3339)."""
    return datetime.fromtimestamp(math.ceil(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
    return (*headers, (SHOULD_RETRY, "false")) if seconds > LONG_WAIT_S else headers


#: Whether to try again: obeyed before the status.
SHOULD_RETRY = "x-should-retry"
#: The headers of `sdk_delay`, for `Provider.delay_headers`.
SDK_DELAY_HEADERS = frozenset({"retry-after", "retry-after-ms", SHOULD_RETRY})

_AMOUNT = r"[0-9][0-9.]*(?:ms|[smhd]| (?:second|minute|hour|day)s?)"
_WAIT_SENTENCE = LazyPattern(
    rf"(\b(?:try again in|retry in|retry after) ){_AMOUNT}(?:[ ,]{{0,2}}{_AMOUNT}){{0,3}}"
    r"(?![a-z0-9])",
    re.IGNORECASE,
)


def delay_sentence(text: str, wait_s: float, _wall_now: float) -> str:
    """Rewrite "Please try again in 1.574s" of a refusal: some clients obey the sentence."""
    return _WAIT_SENTENCE.sub(rf"\g<1>{whole_seconds(wait_s)} seconds", text)


def json_response(status: int, headers: Headers, body: Any) -> LocalResponse:
    """Return *body* as a JSON response."""
    return LocalResponse(
        status, (("content-type", "application/json"), *headers), msgspec.json.encode(body)
    )


def sdk_response(status: int, wait_s: float | None, body: Any) -> LocalResponse:
    """Return *body* as a JSON response with the wait, if there is one, as `sdk_delay` has it."""
    return json_response(status, () if wait_s is None else sdk_delay(wait_s), body)
