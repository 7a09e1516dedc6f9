"""Where an answer names its reset."""

import pytest

from account_pool.core.outcome import UpstreamResponse, read_facts
from account_pool.core.signals import USUAL_WAITS, first_wait


@pytest.mark.parametrize(
    ("headers", "message", "wait"),
    [
        ({"retry-after": "20"}, "", 20),
        ({"retry-after-ms": "1500", "retry-after": "20"}, "", 1.5),
        ({"retry-after": "20"}, "try again in 5s", 20),
        ({"retry-after": "garbage"}, "try again in 5s", 5),
        ({"retry-after": "0"}, "try again in 5s", 5),
        ({"retry-after": "0"}, "", 0),
        # Only what is spent counts, and of that the latest.
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "6m0s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "2s",
            },
            "",
            360,
        ),
        (
            {
                "x-ratelimit-remaining-requests": "7",
                "x-ratelimit-reset-requests": "6m0s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "2s",
            },
            "",
            2,
        ),
        (
            {"x-ratelimit-reset-tokens-hour": "1200", "x-ratelimit-reset-tokens-minute": "5"},
            "Tokens per hour limit exceeded",
            1200,
        ),
        (
            {"x-ratelimit-reset-tokens-minute": "5", "x-ratelimit-reset-requests-minute": "9"},
            "Requests per minute limit exceeded",
            9,
        ),
        ({"x-ratelimit-reset": "33"}, "", 33),
        ({"x-ratelimit-reset-a": "33", "x-ratelimit-reset-b": "44"}, "", None),
        ({"retry-after": "99999999999"}, "", None),
    ],
)
def test_where_a_wait_is_found(headers: dict[str, str], message: str, wait: float | None) -> None:
    payload = {"error": {"code": "limit", "message": message}}
    facts = read_facts(UpstreamResponse(status=429, payload=payload, headers=headers))
    assert first_wait(facts, USUAL_WAITS) == wait


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        # What is relative comes first: the moment may be outdated (Codex).
        ({"resets_at": 1_699_999_940, "resets_in_seconds": 77}, 77),
        ({"resets_at": 1_700_000_050}, 50),
        ({"resets_at": 1_699_999_940}, 0),
        ({"retry_after": "1.5"}, 1.5),
        ({"metadata": {"retry_after_seconds": 8}}, 8),
        ({"resets_at": 1e300, "resets_in_seconds": -5, "retry_after": True}, None),
    ],
)
def test_waits_of_a_body(error: dict[str, object], wait: float | None) -> None:
    answer = UpstreamResponse(status=429, payload={"error": error}, wall_now=1_700_000_000.0)
    assert first_wait(read_facts(answer), USUAL_WAITS) == wait
