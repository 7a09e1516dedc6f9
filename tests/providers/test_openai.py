"""OpenAI: who serves a request, the swap, events, limits, refusals."""

# ruff: noqa: E501 - a table reads better with a row in a line

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.providers.outcomes import classify

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.core.outcome import UpstreamResponse
from account_pool.core.sse import Verdict
from account_pool.providers.base import RequestHead, Route, body_model
from account_pool.providers.openai import PROVIDER, is_failure


def head(method: str = "POST", path: str = "/v1/responses", **fields: Any) -> RequestHead:
    return RequestHead(method=method, host="api.openai.com", port=443, path=path, **fields)


UPGRADE = {"upgrade": "WebSocket", "connection": "Upgrade"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("POST", "/v1/chat/completions", {}, Route.POOL),
        ("POST", "/v1/responses", {}, Route.POOL),
        ("POST", "/v1/responses/compact", {}, Route.POOL),
        ("POST", "/v1/completions", {}, Route.POOL),
        ("POST", "/v1/embeddings", {}, Route.POOL),
        ("POST", "/v1/images/generations", {}, Route.POOL),
        ("POST", "/v1/audio/transcriptions", {}, Route.POOL),
        ("POST", "/v1/moderations", {}, Route.POOL),
        ("GET", "/v1/models", {}, Route.POOL),
        ("GET", "/v1/models/gpt-4o", {}, Route.POOL),
        ("GET", "/v1/responses", UPGRADE, Route.POOL),
        ("GET", "/v1/realtime", UPGRADE, Route.POOL),
        # a key that cannot be replaced
        ("GET", "/v1/realtime", {**UPGRADE, "authorization": "Bearer ek_1"}, Route.PASS),
        (
            "GET",
            "/v1/realtime",
            {**UPGRADE, "sec-websocket-protocol": "realtime, openai-insecure-api-key.sk-1"},
            Route.PASS,
        ),
        # state of the account
        ("GET", "/v1/responses", {}, Route.PASS),
        ("GET", "/v1/responses/resp_1", {}, Route.POOL),
        ("DELETE", "/v1/responses/resp_1", {}, Route.POOL),
        ("POST", "/v1/responses/resp_1/cancel", {}, Route.POOL),
        ("POST", "/v1/files", {}, Route.POOL),
        ("POST", "/v1/uploads", {}, Route.POOL),
        ("POST", "/v1/batches", {}, Route.POOL),
        ("POST", "/v1/assistants", {}, Route.PASS),
        ("POST", "/v1/threads/t/runs", {}, Route.PASS),
        ("GET", "/v1/vector_stores", {}, Route.POOL),
        ("POST", "/v1/containers", {}, Route.POOL),
        ("POST", "/v1/conversations", {}, Route.POOL),
        ("POST", "/v1/fine_tuning/jobs", {}, Route.PASS),
        ("DELETE", "/v1/models/ft:gpt", {}, Route.PASS),
        ("POST", "/v1/realtime/client_secrets", {}, Route.PASS),
        ("GET", "/v1/chat/completions", {}, Route.PASS),
        # administration, and what is not the API
        ("GET", "/v1/organization/usage/completions", {}, Route.PASS),
        ("OPTIONS", "/v1/chat/completions", {}, Route.PASS),
        ("POST", "/v1/chat/completions/../files", {}, Route.PASS),
        ("GET", "/", {}, Route.PASS),
        ("POST", "", {}, Route.PASS),
    ],
)
def test_route(method: str, path: str, headers: dict[str, str], expected: Route) -> None:
    assert PROVIDER.route(head(method, path, headers=headers)) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"gpt-4o","input":"x"}', "gpt-4o"),
        (b'  {"input":{"model":"no"},"model":"gpt-5"}', "gpt-5"),
        (b'{"input":1}', None),
        (b'{"model":5}', None),
        (b'{"model":""}', None),
        (b'{"model":"gpt', None),
        (b"[]", None),
        (b"--boundary", None),
        (b"", None),
    ],
)
def test_model(body: bytes, expected: str | None) -> None:
    assert PROVIDER.model is None
    assert body_model(head(body=body)) == expected


@given(st.binary() | st.text().map(str.encode))
def test_model_is_total(body: bytes) -> None:
    body_model(head(body=b"{" + body))


def swap(companions: dict[str, str]) -> Any:
    account = Account(provider="openai", label="work", companions=companions)
    return PROVIDER.swap(account, Credential(kind="key", secret=Secret("sk-new")))


def test_the_clients_organisation_goes_with_its_key() -> None:
    made = swap({})
    assert made.headers == ((b"authorization", b"Bearer sk-new"),)
    assert {b"authorization", b"openai-organization", b"openai-project"} <= made.drop
    # A sticky token that another account gave to Codex.
    assert b"x-codex-turn-state" in made.drop
    assert made.for_path("/v1/responses") is made


def test_the_accounts_organisation_and_project_come_with_its_key() -> None:
    made = swap({"organization": "org-1", "openai_project": "proj_1"})
    assert dict(made.headers) == {
        b"authorization": b"Bearer sk-new",
        b"openai-organization": b"org-1",
        b"openai-project": b"proj_1",
    }
    assert "sk-new" not in repr(made)


def test_everything_that_may_carry_the_clients_credential_is_dropped() -> None:
    assert PROVIDER.credential_headers <= swap({}).drop


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        # https://platform.openai.com/docs/api-reference/responses-streaming
        ("response.created", {"type": "response.created", "response": {}}, Verdict.CONTINUE),
        (None, {"type": "response.in_progress"}, Verdict.CONTINUE),
        (None, {"type": "response.queued"}, Verdict.CONTINUE),
        (None, {"type": "codex.rate_limits", "rate_limits": {}}, Verdict.CONTINUE),
        (None, {"type": "response.output_item.added"}, Verdict.COMMIT),
        (None, {"type": "response.output_text.delta"}, Verdict.COMMIT),
        (None, {"type": "response.incomplete", "response": {"error": None}}, Verdict.COMMIT),
        (None, {"type": "response.failed", "response": {"error": {}}}, Verdict.REFUSE),
        ("error", {"type": "error", "error": {"code": "x"}}, Verdict.REFUSE),
        (None, {"type": "error", "code": "x", "message": "y"}, Verdict.REFUSE),
        ("error", None, Verdict.REFUSE),
        ("error", {"message": "x"}, Verdict.REFUSE),
        (None, {"choices": [{"delta": {"role": "assistant"}}]}, Verdict.COMMIT),
        (None, {"choices": [], "prompt_filter_results": []}, Verdict.CONTINUE),
        (None, {"error": {"message": "x"}, "choices": None}, Verdict.REFUSE),
        (None, {"error": "x"}, Verdict.REFUSE),
        (None, None, Verdict.COMMIT),  # [DONE]
        (None, [], Verdict.COMMIT),
        (None, [{"error": {"code": 503}}], Verdict.REFUSE),  # Google's dialect
        (None, [{"error": None}], Verdict.COMMIT),
        (None, {"object": "error", "message": "x", "code": 500}, Verdict.REFUSE),  # vLLM
        # whole bodies
        (None, {"object": "response", "error": None}, Verdict.COMMIT),
        (None, {"object": "response", "status": "failed", "error": {"code": 1}}, Verdict.REFUSE),
        (None, {"object": "list", "data": []}, Verdict.COMMIT),
        (None, {"type": ["odd"]}, Verdict.COMMIT),
    ],
)
def test_judge(name: str | None, value: Any, expected: Verdict) -> None:
    assert PROVIDER.judge(name, value) is expected


def error(message: str = "", **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "param": None, **fields}}


RATE = "rate_limit_exceeded"
TPM = "Rate limit reached for m in organization o on tokens per min (TPM): Limit 1, Used 1."


@pytest.mark.parametrize(
    ("status", "headers", "payload", "expected"),
    [
        # https://platform.openai.com/docs/guides/rate-limits
        (
            429,
            {},
            error(f"{TPM} Please try again in 6m0s.", code=RATE),
            "rate_limit account+model 360",
        ),
        (
            429,
            {},
            error(f"{TPM} Please try again in 20ms.", type="tokens"),
            "rate_limit account+model 0.02",
        ),
        (429, {"retry-after": "20"}, None, "rate_limit account+model 20"),
        (429, {"retry-after-ms": "22000"}, error(code=RATE), "rate_limit account+model 22"),
        (429, {"retry-after": "7200"}, error(code=RATE), "quota account+model 7200"),
        (
            429,
            {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m2s"},
            error(code=RATE),
            "rate_limit account+model 62",
        ),
        (
            429,
            {},
            error("on requests per day (RPD): Limit 200. Please try again in 7m12s.", code=RATE),
            "quota account+model 432",
        ),
        (429, {}, error(code=RATE.upper()), "rate_limit account+model -"),
        (429, {}, None, "rate_limit none -"),
        # https://platform.openai.com/docs/guides/error-codes
        (429, {"retry-after": "1"}, error(code="insufficient_quota"), "quota account -"),
        (429, {}, error(code=None, type="insufficient_quota"), "quota account -"),
        (429, {}, {"type": "insufficient_quota", "code": None}, "quota account -"),
        (429, {}, error("You exceeded your current quota, please check"), "quota account -"),
        (400, {}, error(code="billing_hard_limit_reached"), "quota account -"),
        (429, {}, error(code="billing_not_active"), "quota account -"),
        (429, {}, error(code="organization_spend_limit_exceeded"), "quota account -"),
        # not a limit of the account
        (
            429,
            {},
            error("Request too large for m: Limit 3, Requested 4", code=RATE, type="tokens"),
            "request_error none -",
        ),
        (413, {}, error("Request too large for model", code=RATE), "request_error none -"),
        (429, {}, error(code="flex_capacity_exceeded"), "overloaded server -"),
        (429, {}, error(code="resource_unavailable"), "overloaded server -"),
        (503, {"retry-after": "9"}, error(code="slow_down"), "overloaded server 9"),
        (500, {}, error(type="server_error"), "server_error server -"),
        (502, {}, None, "server_error server -"),
        (401, {}, error("Incorrect API key", code="invalid_api_key"), "auth_invalid account -"),
        (401, {}, error(type="invalid_request_error"), "auth_invalid account -"),
        (401, {}, error("Your token has expired"), "auth_expired account -"),
        (403, {}, error("You have insufficient permissions"), "forbidden_account account -"),
        (
            403,
            {},
            error("Project `p` does not have access to model `m`", code="model_not_found"),
            "forbidden_account account+model -",
        ),
        (
            403,
            {},
            error(code="unsupported_country_region_territory"),
            "request_error none -",
        ),
        (
            404,
            {},
            error("The model `m` does not exist", code="model_not_found"),
            "request_error none -",
        ),
        (
            400,
            {},
            error("Your organization must be verified to stream this model."),
            "forbidden_account account+model -",
        ),
        # what a user wrote comes back in a message
        (400, {}, error("Invalid value: 'rate limit reached, billing'"), "request_error none -"),
        (
            422,
            {},
            error("try again in 5s: You exceeded your current quota"),
            "request_error none -",
        ),
        (200, {}, {"object": "chat.completion", "choices": [{}]}, "ok none -"),
    ],
)
def test_classify(status: int, headers: dict[str, str], payload: Any, expected: str) -> None:
    assert classify(PROVIDER, status, headers, payload) == expected


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"type": "response.failed", "response": error(f"{TPM} Please try again in 11.054s.", code=RATE)}, ("rate_limit", 11.054)),
        ({"type": "response.failed", "response": error(code="insufficient_quota")}, ("quota", None)),
        ({"type": "response.failed", "response": error(code="server_error")}, ("server_error", None)),
        ({"type": "response.failed", "response": error(code="server_is_overloaded")}, ("overloaded", None)),
        ({"type": "response.failed", "response": error(code="invalid_prompt")}, ("request_error", None)),
        ({"type": "response.failed", "response": error(code="image_too_large")}, ("request_error", None)),
        ({"type": "response.failed", "response": {}}, ("server_error", None)),
        ({"type": "error", "code": RATE, "message": "Please try again in 2s"}, ("rate_limit", 2)),
        (error(type="tokens"), ("rate_limit", None)),
        ({"type": "error", "status": 400, "error": {"code": "websocket_connection_limit_reached"}}, ("request_error", None)),
        ({"type": "error", "status": 429, "error": {"code": RATE}, "headers": {"Retry-After": "4"}}, ("rate_limit", 4)),
    ],
)  # fmt: skip
def test_classify_in_stream(payload: Any, expected: tuple[str, float | None]) -> None:
    got = PROVIDER.classify(UpstreamResponse(status=200, payload=payload, in_stream=True))
    assert (got.cls, got.cooldown_s) == expected


def test_refusal_is_openais_envelope() -> None:
    made = PROVIDER.refusal(429, "all accounts are limited", 61.2)
    assert made.status == 429
    assert json.loads(made.body) == {
        "error": {
            "message": "all accounts are limited",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }
    assert dict(made.headers) == {
        "content-type": "application/json",
        "retry-after": "62",
        "retry-after-ms": "62000",
        "x-should-retry": "false",
    }


@pytest.mark.parametrize("status", [400, 401, 403, 413, 429, 500, 502, 503])
def test_a_refusal_is_understood_by_its_own_rules(status: int) -> None:
    made = PROVIDER.refusal(status, "m", None)
    got = PROVIDER.classify(UpstreamResponse(status=status, payload=json.loads(made.body)))
    assert str(got.cls) != "ok"
    assert dict(made.headers) == {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("wait", "seconds"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (59.1, "60"), (-5.0, "1")]
)
def test_a_short_delay_lets_the_client_try_again(wait: float, seconds: str) -> None:
    assert dict(PROVIDER.delay(wait)) == {
        "retry-after": seconds,
        "retry-after-ms": seconds + "000",
    }
    assert set(dict(PROVIDER.delay(wait))) <= PROVIDER.delay_headers


@pytest.mark.parametrize("wait", [float("nan"), float("inf"), 1e300])
def test_an_absurd_delay_is_bounded(wait: float) -> None:
    assert dict(PROVIDER.delay(wait))["retry-after"] == str(366 * 86400)


@pytest.mark.parametrize(
    ("value", "failure"),
    [
        ({"choices": None, "base_resp": {"status_code": 1008, "status_msg": "x"}}, True),
        ({"choices": [], "base_resp": {"status_code": 0, "status_msg": ""}}, False),
        ({"code": 1113, "msg": "余额不足", "success": False}, True),
        ({"code": "QUOTA_EXCEEDED", "message": "Your quota is exhausted"}, True),
        ({"success": False, "message": "Your plan has expired"}, True),
        # an answer, whatever it says
        ({"code": 0, "msg": "ok", "data": {"text": "quota exceeded"}}, False),
        ({"code": 200, "message": "your quota is exhausted", "success": True}, False),
        ({"code": "x", "content": [{"text": "quota exceeded"}], "message": "quota used up"}, False),
        # nothing that is understood: it goes to the client
        ({"code": 4711, "message": "pong"}, False),
        ({"type": "message_start"}, False),
        ({}, False),
    ],
)
def test_a_failure_inside_a_success(value: dict[str, Any], failure: bool) -> None:
    assert is_failure(value) is failure
