"""Anthropic: API keys and refusals."""

import json
from typing import Any

import pytest
from tests.providers.outcomes import classify

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.core.outcome import UpstreamResponse
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
        ("POST", "/v1/messages/batches", Route.POOL),
        ("GET", "/v1/messages/batches/b", Route.POOL),
        ("POST", "/v1/files", Route.POOL),
        ("POST", "/v1/skills", Route.POOL),
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


def test_the_keys_of_an_organisation_share_their_limits() -> None:
    headers = {"anthropic-organization-id": "org-1", "retry-after": "8"}
    assert PROVIDER.owner(headers) == "org-1"
    assert PROVIDER.owner({}) is None
    assert PROVIDER.classify(UpstreamResponse(status=429, headers=headers, payload=LIMIT)).shared


def test_resets_are_told_anew_as_anthropic_spells_them() -> None:
    told = PROVIDER.instants["anthropic-ratelimit-requests-reset"]
    assert told(1_785_510_000.2) == "2026-07-31T15:00:01Z"


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
    got = PROVIDER.classify(UpstreamResponse(status=status, payload=json.loads(made.body)))
    assert str(got.cls) != "ok"
