"""What a naive reading of refusals gets wrong, one test each."""

# ruff: noqa: E501 - a table reads better with a row in a line

import json
from typing import Any

import pytest

from account_pool.cli.classify import classify
from account_pool.core.outcome import Outcome

NOW = "2026-11-20T22:00:00Z"


def read(
    provider: str, status: int, body: Any = None, *, sse: str | None = None, **headers: str
) -> Outcome:
    """Return what an answer means; `retry_after="5"` is the header `retry-after`."""
    line: dict[str, Any] = {"provider": provider, "status": status, "now": NOW, "sse": sse}
    line["headers"] = {name.replace("_", "-"): value for name, value in headers.items()}
    line["body"] = body if isinstance(body, str | None) else json.dumps(body)
    return classify(line)


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


def test_digits_of_429_in_an_id_or_a_message_say_nothing() -> None:
    ids = {"x-github-request-id": "C6FD:A429:AEB5500", "x-request-id": "429"}
    body = error("input[3] must be below 53429", code="invalid_request_body")
    line = {"provider": "copilot", "status": 400, "headers": ids, "body": json.dumps(body)}
    assert classify(line).cls == "request_error"


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        (
            "cerebras",
            {
                "message": "Tokens per minute limit exceeded",
                "param": "quota",
                "code": "token_quota_exceeded",
            },
        ),
        (
            "gemini",
            error(
                "You exceeded your current quota, please check your plan and billing details. Please retry in 9s.",
                code=429,
                status="RESOURCE_EXHAUSTED",
            ),
        ),
        (
            "together",
            error(
                "You have been rate limited. Your rate limit is 60 queries per minute.",
                type="credit_limit",
            ),
        ),
    ],
)
def test_the_word_quota_may_be_about_a_minute(provider: str, body: Any) -> None:
    assert read(provider, 429, body).cls == "rate_limit"


@pytest.mark.parametrize(
    ("provider", "status", "body", "cls"),
    [
        ("codex", 400, {"error": {"type": "usage_limit_reached"}}, "quota"),
        (
            "anthropic",
            400,
            {
                "type": "error",
                "error": {
                    "type": "invalid_request_error",
                    "message": "Your credit balance is too low to access the Anthropic API.",
                },
            },
            "quota",
        ),
        (
            "xai",
            403,
            {
                "code": "x",
                "error": "Your team t has either used all available credits or reached its monthly spending limit.",
            },
            "quota",
        ),
        ("fireworks", 412, error("Account a is suspended"), "quota"),
        ("cerebras", 403, {"message": "Your trial has ended"}, "quota"),
        (
            "azure",
            403,
            {
                "statusCode": 403,
                "message": "Out of call volume quota. Quota will be replenished in 00:10:00.",
            },
            "quota",
        ),
        (
            "perplexity",
            401,
            error("You exceeded your current quota", type="insufficient_quota"),
            "quota",
        ),
        ("groq", 498, error("flex", code="capacity_exceeded"), "overloaded"),
        (
            "groq",
            413,
            error("Request too large for model `m`", code="rate_limit_exceeded"),
            "request_error",
        ),
        (
            "openrouter",
            402,
            {
                "error": {
                    "code": 402,
                    "message": "x",
                    "metadata": {"limit_source": "openrouter_in_flight_budget"},
                }
            },
            "rate_limit",
        ),
        ("copilot", 403, {"message": "API rate limit exceeded for user ID 1."}, "rate_limit"),
    ],
)
def test_the_code_counts_before_the_status(provider: str, status: int, body: Any, cls: str) -> None:
    assert read(provider, status, body).cls == cls


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        ("openai", error("Request too large for gpt-5", type="tokens", code="rate_limit_exceeded")),
        ("openai", error("x", type="server_error", code="flex_capacity_exceeded")),
        ("copilot", {"code": "extension_blocked"}),
        (
            "gemini-cli",
            {"error": {"code": 429, "details": [{"reason": "MODEL_CAPACITY_EXHAUSTED"}]}},
        ),
        (
            "openrouter",
            {
                "error": {
                    "code": 429,
                    "message": "x",
                    "metadata": {"limit_source": "upstream_provider_shared_pool"},
                }
            },
        ),
        ("cerebras", {"message": "high traffic", "code": "queue_exceeded"}),
    ],
)
def test_a_429_that_must_not_cool_the_account(provider: str, body: Any) -> None:
    outcome = read(provider, 429, body)
    assert outcome.cls in ("overloaded", "request_error")
    assert outcome.scope in ("none", "server")


@pytest.mark.parametrize(
    ("provider", "body", "headers", "cls"),
    [
        (
            "xai",
            {
                "code": "resource-exhausted",
                "error": "team t and model m. Requests per Minute (actual/limit): 0/0.",
            },
            {},
            "forbidden_account",
        ),
        (
            "mistral",
            {"type": "rate_limited", "code": "1300"},
            {"x_ratelimit_limit_req_minute": "0"},
            "forbidden_account",
        ),
        (
            "gemini",
            error("Quota exceeded for metric: x, limit: 0", status="RESOURCE_EXHAUSTED"),
            {},
            "forbidden_account",
        ),
        ("codex", {"error": {"type": "usage_not_included"}}, {}, "forbidden_account"),
        ("openai", error("x", code="insufficient_quota"), {"retry_after": "1"}, "quota"),
    ],
)
def test_a_429_that_no_wait_cures(
    provider: str, body: Any, headers: dict[str, str], cls: str
) -> None:
    outcome = read(provider, 429, body, **headers)
    assert (outcome.cls, outcome.cooldown_s) == (cls, None)


@pytest.mark.parametrize(("wait", "cls"), [("2", "rate_limit"), ("18000", "quota")])
def test_one_code_for_two_lengths(wait: str, cls: str) -> None:
    body = error("x", code="user_global_rate_limited:edu")
    assert read("copilot", 429, body, retry_after=wait).cls == cls


def test_the_short_delay_beside_a_daily_quota_is_not_its_own() -> None:
    violation = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}
    details = [{"violations": [violation]}, {"retryDelay": "25s"}]
    body = error("x", status="RESOURCE_EXHAUSTED", details=details)
    outcome = read("gemini", 429, body, retry_after="90")
    assert (outcome.cls, outcome.cooldown_s) == ("quota", 10 * 3600)


def test_limit_headers_on_a_success_or_a_400_say_nothing() -> None:
    headers = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "9s"}
    assert read("openai", 200, {"id": "x"}, **headers).cls == "ok"
    assert read("openai", 400, error("empty", code="empty_array"), **headers).cls == "request_error"


def test_should_retry_does_not_make_a_long_window_short() -> None:
    spent = {"anthropic_ratelimit_unified_5h_status": "rejected", "x_should_retry": "true"}
    body = {"type": "error", "error": {"type": "rate_limit_error", "message": "x"}}
    outcome = read("claude-code", 429, body, retry_after="7835", **spent)
    assert (outcome.cls, outcome.cooldown_s) == ("quota", 7835)


@pytest.mark.parametrize(
    ("provider", "status", "body", "cls"),
    [
        (
            "deepseek",
            401,
            error(
                "Authentication Fails", type="authentication_error", code="invalid_request_error"
            ),
            "auth_invalid",
        ),
        (
            "openai",
            401,
            error("Incorrect API key", type="invalid_request_error", code="invalid_api_key"),
            "auth_invalid",
        ),
        (
            "claude-code",
            401,
            error("OAuth authentication is currently not supported."),
            "request_error",
        ),
        ("codex", 403, "<html>Cloudflare</html>", "server_error"),
        ("copilot", 401, {"authorize_url": "https://github.com/x"}, "request_error"),
        (
            "openrouter",
            403,
            {
                "error": {
                    "code": 403,
                    "message": "Your chosen model requires moderation and your input was flagged",
                }
            },
            "request_error",
        ),
    ],
)
def test_noise_around_credentials(provider: str, status: int, body: Any, cls: str) -> None:
    assert read(provider, status, body).cls == cls


def test_what_a_log_says_holds_nothing_of_the_vendors_text() -> None:
    body = error("Incorrect API key provided: sk-fake-0000", code="sk fake secret in a code")
    assert "fake" not in read("openai", 401, body).signal


def test_what_a_model_wrote_is_not_read() -> None:
    written = "429 Too Many Requests: rate limit exceeded, insufficient_quota"
    chunk = {"choices": [{"delta": {"content": written}}]}
    assert read("groq", 200, sse=f"data: {json.dumps(chunk)}\n\n").cls == "ok"
    assert read("cohere", 200, {"message": {"content": [{"text": written}]}}).cls == "ok"


def test_a_models_absence_is_learnt_and_benches_nobody() -> None:
    outcome = read(
        "cerebras", 404, {"message": "Model m does not exist", "code": "model_not_found"}
    )
    assert (outcome.cls, outcome.scope, outcome.missing_model) == ("request_error", "none", True)
