"""Anthropic: API keys, the windows of subscriptions, refusals."""

import json
from typing import Any

import pytest
from tests.providers.outcomes import classify

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.core.outcome import Answer
from account_pool.core.sse import Verdict
from account_pool.providers.anthropic import PROVIDER
from account_pool.providers.base import RequestHead, Route


def head(method: str = "POST", path: str = "/v1/messages", **headers: str) -> RequestHead:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestHead(method=method, host="api.anthropic.com", port=443, path=path, headers=named)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/messages", Route.POOL),
        ("POST", "/v1/messages/count_tokens", Route.POOL),
        ("POST", "/v1/chat/completions", Route.POOL),
        ("POST", "/v1/complete", Route.POOL),
        ("GET", "/v1/models", Route.POOL),
        ("GET", "/v1/models/claude-opus-5-5", Route.POOL),
        ("GET", "/v1/messages", Route.PASS),
        ("POST", "/v1/messages/batches", Route.PASS),
        ("GET", "/v1/messages/batches/b", Route.PASS),
        ("POST", "/v1/files", Route.PASS),
        ("POST", "/v1/skills", Route.PASS),
        ("GET", "/v1/organizations/users", Route.PASS),
        ("GET", "/api/oauth/usage", Route.PASS),
        ("GET", "/api/claude_code/settings", Route.PASS),
        ("POST", "/api/event_logging/v2/batch", Route.PASS),
    ],
)
def test_route(method: str, path: str, expected: Route) -> None:
    assert PROVIDER.route(head(method, path)) is expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x_api_key": "sk-ant-api03-x"}, Route.POOL),
        ({"x_api_key": "placeholder"}, Route.POOL),
        # An API key as Bearer: anthropic-sdk-python 2
        ({"authorization": "Bearer sk-ant-api03-x"}, Route.POOL),
        ({"authorization": "Bearer sk-ant-oat01-x"}, Route.PASS),
        ({"authorization": "bearer  sk-ant-oat01-x"}, Route.PASS),
        ({"x_api_key": "sk-ant-oat01-x"}, Route.PASS),
        ({"anthropic_beta": "claude-code-20250219,oauth-2025-04-20"}, Route.PASS),
        ({"anthropic_beta": "context-1m-2025-08-07"}, Route.POOL),
    ],
)
def test_a_subscription_never_mixes_with_keys(headers: dict[str, str], expected: Route) -> None:
    assert PROVIDER.route(head(**headers)) is expected


def test_exactly_one_credential_header_remains() -> None:
    account = Account(provider="anthropic", label="a")
    made = PROVIDER.swap(account, Credential(kind="key", secret=Secret("sk-ant-api03-new")))
    assert made.headers == ((b"x-api-key", b"sk-ant-api03-new"),)
    assert made.drop == {b"authorization", b"x-api-key"}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        # https://docs.anthropic.com/en/docs/build-with-claude/streaming
        ("message_start", {"type": "message_start", "message": {}}, Verdict.CONTINUE),
        ("ping", {"type": "ping"}, Verdict.CONTINUE),
        ("content_block_start", {"type": "content_block_start"}, Verdict.COMMIT),
        ("message_delta", {"type": "message_delta"}, Verdict.COMMIT),
        ("error", {"type": "error", "error": {"type": "overloaded_error"}}, Verdict.REFUSE),
        (None, {"type": "error", "error": {"type": "api_error"}}, Verdict.REFUSE),
        (None, {"type": "message", "content": []}, Verdict.COMMIT),
        (None, {"choices": []}, Verdict.CONTINUE),
        (None, {"input_tokens": 5}, Verdict.COMMIT),
    ],
)
def test_judge(name: str | None, value: Any, expected: Verdict) -> None:
    assert PROVIDER.judge(name, value) is expected


def error(kind: str, message: str = "") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "r"}


LIMIT = error("rate_limit_error", "Rate limited.")
INPUT_SPENT = {
    "anthropic-ratelimit-input-tokens-remaining": "0",
    "anthropic-ratelimit-input-tokens-reset": "2026-10-01T10:00:40Z",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2026-10-01T10:05:00Z",
    "date": "Thu, 01 Oct 2026 10:00:00 GMT",
}


@pytest.mark.parametrize(
    ("status", "headers", "payload", "expected"),
    [
        # https://docs.anthropic.com/en/api/rate-limits
        (429, {"retry-after": "31", **INPUT_SPENT}, LIMIT, "rate_limit account+model 31"),
        (429, INPUT_SPENT, LIMIT, "rate_limit account+model 40"),
        (
            429,
            {"retry-after": "8"},
            error("rate_limit_error", "would exceed ... 50,000 input tokens per minute"),
            "rate_limit account+model 8",
        ),
        (429, {"retry-after": "8"}, LIMIT, "rate_limit account 8"),
        (429, {"retry-after": "90000"}, LIMIT, "quota account 90000"),
        (429, {"x-should-retry": "true"}, LIMIT, "rate_limit none -"),
        (429, {}, None, "rate_limit none -"),
        # https://docs.anthropic.com/en/api/errors
        (529, {}, error("overloaded_error"), "overloaded server -"),
        (500, {}, error("api_error"), "server_error server -"),
        (504, {}, error("timeout_error"), "server_error server -"),
        (413, {}, error("request_too_large"), "request_error none -"),
        (404, {}, error("not_found_error", "model: claude-9"), "request_error none -"),
        (401, {}, error("authentication_error", "invalid x-api-key"), "auth_invalid account -"),
        (403, {}, error("permission_error"), "forbidden_account account -"),
        (403, {}, error("forbidden", "Request not allowed"), "request_error none -"),
        # money
        (402, {}, error("billing_error"), "quota account -"),
        (429, {}, error("enforced_spend_limit_reached"), "quota account -"),
        (
            400,
            {"date": "Wed, 30 Sep 2026 12:00:00 GMT"},
            error(
                "invalid_request_error",
                "You have reached your specified API usage limits. You will regain access on "
                "2026-10-01 at 00:00 UTC.",
            ),
            "quota account 43200",
        ),
        (
            400,
            {},
            error("invalid_request_error", "Your credit balance is too low to access the API"),
            "quota account -",
        ),
        (
            400,
            {},
            error("invalid_request_error", "This organization has been disabled."),
            "forbidden_account account -",
        ),
        # what a user wrote comes back in a message
        (
            400,
            {},
            error("invalid_request_error", "tools.0: 'Your credit balance is too low'"),
            "request_error none -",
        ),
    ],
)
def test_classify(status: int, headers: dict[str, str], payload: Any, expected: str) -> None:
    assert classify(PROVIDER, status, headers, payload) == expected


NOW = 1_785_510_000.0
UNIFIED = "anthropic-ratelimit-unified-"


def window(**headers: str) -> dict[str, str]:
    return {UNIFIED + name.strip("_").replace("__", "-"): v for name, v in headers.items()}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        # tombii/better-ccflare docs/routing-architecture.md
        (
            window(_5h__status="rejected", _5h__reset=f"{NOW + 600:.0f}", _7d__status="allowed"),
            "quota account 600",
        ),
        (
            window(
                _5h__status="rejected",
                _5h__reset=f"{NOW + 600:.0f}",
                _7d__status="blocked",
                _7d__reset=f"{NOW + 90000:.0f}",
            ),
            "quota account 90000",
        ),
        # The reset of an allowed window is information only.
        (
            window(
                _5h__status="rejected",
                _5h__reset=f"{NOW + 600:.0f}",
                _7d__status="allowed_warning",
                _7d__reset=f"{NOW + 90000:.0f}",
            ),
            "quota account 600",
        ),
        (
            {**window(_7d__status="rejected", _5h__status="allowed"), "retry-after": "5000"},
            "quota account 5000",
        ),
        # Both are spent, one has no reset of its own.
        (
            {
                **window(
                    _5h__status="rejected",
                    _5h__reset=f"{NOW + 600:.0f}",
                    _7d__status="rejected",
                ),
                "retry-after": "400000",
            },
            "quota account 400000",
        ),
        (
            window(
                status="rejected",
                _5h__status="allowed",
                _7d__status="allowed",
                _7d_opus__status="rejected",
                _7d_opus__reset=f"{NOW + 700:.0f}",
            ),
            "quota account+model 700",
        ),
        (
            window(status="rejected", representative__claim="seven_day", reset=f"{NOW + 60:.0f}"),
            "quota account 60",
        ),
        (
            window(
                status="rejected", representative__claim="seven_day_sonnet", _5h__status="allowed"
            ),
            "quota account+model -",
        ),
        (
            window(status="rejected", representative__claim="seven_day", _5h__status="allowed"),
            "quota account -",
        ),
        (window(status="Rejected"), "quota account -"),
        (window(_1h__status="rejected", _1h__reset=f"{NOW + 60:.0f}"), "rate_limit account 60"),
        (window(overage__disabled__reason="out_of_credits"), "quota account+model -"),
        (window(overage__status="rejected", _5h__status="allowed"), "rate_limit account -"),
    ],
)
def test_windows_of_a_subscription(headers: dict[str, str], expected: str) -> None:
    assert classify(PROVIDER, 429, headers, LIMIT, wall_now=NOW) == expected


def test_a_spent_window_does_not_make_another_error_a_limit() -> None:
    headers = window(_5h__status="rejected", _5h__reset=f"{NOW + 600:.0f}")
    bad = error("invalid_request_error", "max_tokens: field required")
    assert classify(PROVIDER, 400, headers, bad, wall_now=NOW) == "request_error none -"
    overloaded = error("overloaded_error")
    got = classify(PROVIDER, 200, headers, overloaded, in_stream=True, event="error")
    assert got == "overloaded server -"


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (401, "OAuth token has expired. Please obtain a new token", "auth_expired account -"),
        (403, "OAuth token has been revoked.", "auth_invalid account -"),
        (401, "OAuth authentication is currently not supported.", "request_error none -"),
        (
            403,
            "OAuth authentication is currently not allowed for this organization.",
            "forbidden_account account -",
        ),
        (
            403,
            "This credential is only authorized for use with Claude Code and cannot be used",
            "request_error none -",
        ),
    ],
)
def test_subscription_tokens(status: int, message: str, expected: str) -> None:
    assert classify(PROVIDER, status, {}, error("permission_error", message)) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("rate_limit_error", "rate_limit account -"),
        ("overloaded_error", "overloaded server -"),
        ("api_error", "server_error server -"),
        ("invalid_request_error", "request_error none -"),
        ("authentication_error", "auth_invalid account -"),
        ("billing_error", "quota account -"),
        ("something_new", "server_error server -"),
    ],
)
def test_classify_in_stream(kind: str, expected: str) -> None:
    assert classify(PROVIDER, 200, {}, error(kind), in_stream=True, event="error") == expected


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, "rate_limit_error"),
        (503, "overloaded_error"),
        (403, "permission_error"),
        (400, "invalid_request_error"),
        (502, "api_error"),
    ],
)
def test_refusal_is_anthropics_envelope(status: int, kind: str) -> None:
    made = PROVIDER.refusal(status, "m", 30)
    assert json.loads(made.body) == {"type": "error", "error": {"type": kind, "message": "m"}}
    assert dict(made.headers)["retry-after"] == "30"
    got = PROVIDER.classify(Answer(status=status, payload=json.loads(made.body)))
    assert str(got.cls) != "ok"
