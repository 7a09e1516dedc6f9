"""What a tool's last words on stderr say about why it ended."""

from __future__ import annotations

import pytest

from account_pool.cli.child import LAST_LINES, limit_in
from account_pool.providers.registry import BUILT_IN


def told(text: str) -> str | None:
    return limit_in(text, BUILT_IN.values())


@pytest.mark.parametrize(
    "line",
    [
        # The tools' own words, measured.
        "You've hit your 5-hour limit · resets 5:41am (UTC)",
        "Credit balance is too low",
        "ERROR: You've hit your usage limit. Upgrade to Pro or try again in 3 hours.",
        "ERROR: Quota exceeded. Check your plan and billing details.",
        "ERROR: exceeded retry limit, last status: 429 Too Many Requests, request id: x",
        "TerminalQuotaError: You have exhausted your daily quota on this model.",
        # The providers' words, as tools quote them.
        "Error: 429 You exceeded your current quota, please check your plan and billing details.",
        "openai.RateLimitError: Error code: 429 - {'error': {'code': 'insufficient_quota'}}",
        'API Error: 429 {"type":"error","error":{"type":"rate_limit_error","message":"x"}}',
        "Rate limit reached for gpt-5 in organization org-fake on tokens per min (TPM)",
        "│ status: RESOURCE_EXHAUSTED",
        "\x1b[31mError\x1b[0m: \x1b[1musage_limit_reached\x1b[0m",
        "Error: You've exceeded your weekly rate limit. Please wait 12 hours.",
        "HTTP 429: Too Many Requests",
    ],
)
def test_a_limit_is_known_by_the_providers_wording(line):
    assert told(f"starting\n{line}\r\nbye\n") is not None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Traceback (most recent call last):",
        "No such file or directory: limit.txt",
        "write: disk quota exceeded",
        "exit code 429",
        "401 invalid_api_key: Incorrect API key provided",
        "Error: context_length_exceeded",
        "overloaded_error: Overloaded",
        "assert usage_limit == 3",
        "FAILED tests/test_rate_limit.py::test_rate_limit_header",
        "model not found",
        "panic: stack overflow, recursion limit",
        "{'not': 'json",
        "{" * 5000,
    ],
)
def test_other_ends_are_no_limit(line):
    assert told(line) is None


def test_the_last_line_that_says_it_is_shown():
    text = "Error: insufficient_quota (first)\nError: insufficient_quota (second)\nbye\n"
    assert told(text) == "Error: insufficient_quota (second)"


def test_what_was_said_long_before_the_end_does_not_count():
    assert told("Error: insufficient_quota\n" + "working\n" * LAST_LINES) is None
