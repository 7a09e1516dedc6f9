"""Copilot: two kinds of token, a host per plan, codes with and without a window."""

# ruff: noqa: E501 - a table reads better with a row in a line

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.providers.outcomes import brief, classify

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.core.outcome import UpstreamResponse
from account_pool.core.sse import Verdict
from account_pool.providers.base import Origin, RequestHead, Route
from account_pool.providers.copilot import PROVIDER, classify_exchange

NOW = datetime(2026, 10, 1, 10, tzinfo=UTC).timestamp()  # a Thursday
API = "api.individual.githubcopilot.com"


def head(method: str, path: str, host: str = API, **fields: Any) -> RequestHead:
    return RequestHead(method=method, host=host, port=443, path=path, **fields)


UPGRADE = {"upgrade": "websocket"}


@pytest.mark.parametrize(
    ("method", "host", "path", "headers", "expected"),
    [
        ("POST", API, "/chat/completions", {}, Route.POOL),
        ("POST", API, "/responses", {}, Route.POOL),
        ("POST", API, "/v1/messages", {}, Route.POOL),
        ("POST", API, "/embeddings", {}, Route.POOL),
        ("GET", API, "/models", {}, Route.POOL),
        ("GET", API, "/responses", UPGRADE, Route.POOL),
        (
            "POST",
            "proxy.individual.githubcopilot.com",
            "/v1/engines/gpt-41-copilot/completions",
            {},
            Route.POOL,
        ),
        (
            "POST",
            "copilot-proxy.githubusercontent.com",
            "/v1/engines/e/completions",
            {},
            Route.POOL,
        ),
        ("GET", "api.github.com", "/copilot_internal/v2/token", {}, Route.LOCAL),
        ("GET", "localhost", "/copilot_internal/v2/token", {}, Route.LOCAL),
        ("POST", "api.github.com", "/copilot_internal/v2/token", {}, Route.PASS),
        ("GET", "api.github.com", "/copilot_internal/user", {}, Route.POOL),
        ("POST", "api.github.com", "/copilot_internal/user", {}, Route.PASS),
        ("GET", "api.github.com", "/copilot_internal/managed_settings", {}, Route.PASS),
        ("GET", "api.github.com", "/user", {}, Route.PASS),
        # GHE.com: what GitHub serves for a tenant, and its Copilot API
        ("GET", "api.acme.ghe.com", "/copilot_internal/v2/token", {}, Route.LOCAL),
        ("GET", "api.acme.ghe.com", "/copilot_internal/user", {}, Route.POOL),
        ("GET", "api.acme.ghe.com", "/models", {}, Route.PASS),
        ("POST", "api.acme.ghe.com", "/chat/completions", {}, Route.PASS),
        ("GET", "copilot-api.acme.ghe.com", "/models", {}, Route.POOL),
        ("POST", "copilot-api.acme.ghe.com", "/chat/completions", {}, Route.POOL),
        ("POST", "copilot-api.acme.ghe.com", "/v1/messages", {}, Route.POOL),
        ("GET", "api.github.com", "/models", {}, Route.PASS),
        ("GET", "api.github.com", "/repos/github/copilot-cli/releases", {}, Route.PASS),
        # issued by one account, returned to it
        ("POST", API, "/chat/completions", {"copilot-session-token": "t"}, Route.PASS),
        ("POST", API, "/chat/completions", {"copilot-edits-session": "t"}, Route.PASS),
        ("POST", API, "/models/session", {}, Route.PASS),
        ("POST", API, "/models/gpt-4o/policy", {}, Route.PASS),
        ("GET", API, "/responses", {}, Route.PASS),
        ("GET", API, "/agents/swe/internal/memory/v0/enabled", {}, Route.PASS),
        ("POST", API, "/mcp/readonly", {}, Route.PASS),
        ("GET", API, "/skills", {}, Route.PASS),
        ("POST", API, "/search/code", {}, Route.PASS),
        ("POST", "telemetry.individual.githubcopilot.com", "/telemetry", {}, Route.PASS),
    ],
)
def test_route(method: str, host: str, path: str, headers: dict[str, str], expected: Route) -> None:
    assert PROVIDER.route(head(method, path, host, headers=headers)) is expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": "Bearer tid=1;exp=2:mac"}, "copilot"),
        ({"authorization": "Bearer placeholder"}, "copilot"),
        ({}, "copilot"),
        ({"authorization": "Bearer gho_x"}, "github"),
        ({"authorization": "bearer ghu_x"}, "github"),
        ({"authorization": "token ghp_x"}, "github"),
        ({"authorization": "Bearer github_pat_x"}, "github"),
        (
            {"authorization": "Bearer x", "copilot-integration-id": "copilot-developer-cli"},
            "github",
        ),
        ({"copilot-integration-id": "vscode-chat"}, "copilot"),
    ],
)
def test_kind(headers: dict[str, str], expected: str) -> None:
    assert PROVIDER.kind(head("POST", "/responses", headers=headers)) == expected


def test_model() -> None:
    body = b'{"model":"claude-sonnet-4.6"}'
    assert PROVIDER.model(head("POST", "/v1/messages", body=body)) == "claude-sonnet-4.6"
    engine = "/v1/engines/gpt-41-copilot/completions"
    assert PROVIDER.model(head("POST", engine, body=body)) == "gpt-41-copilot"
    assert PROVIDER.model(head("GET", "/models")) is None


@pytest.mark.parametrize(
    ("companions", "api", "completions"),
    [
        (
            {"host": "api.business.githubcopilot.com"},
            Origin("api.business.githubcopilot.com"),
            Origin("proxy.business.githubcopilot.com"),
        ),
        (
            {"host": "api.githubcopilot.com"},
            Origin("api.githubcopilot.com"),
            Origin("copilot-proxy.githubusercontent.com"),
        ),
        (
            {"host": "copilot-api.acme.ghe.com", "proxy": "p.acme.ghe.com"},
            Origin("copilot-api.acme.ghe.com"),
            Origin("p.acme.ghe.com"),
        ),
        ({"host": "localhost:9443"}, Origin("localhost", 9443), Origin("localhost", 9443)),
        ({}, None, None),
    ],
)
def test_a_request_goes_to_the_host_of_the_accounts_plan(
    companions: dict[str, str], api: Origin | None, completions: Origin | None
) -> None:
    credential = Credential(kind="copilot", secret=Secret("tid=9"), companions=companions)
    made = PROVIDER.swap(Account(provider="copilot", label="me"), credential)
    beside = made.for_path("/v1/engines/gpt-41-copilot/completions")
    assert made.for_path("/chat/completions").origin == api
    assert beside.origin == completions
    for swap in (made, beside):
        assert swap.headers == ((b"authorization", b"Bearer tid=9"),)
        assert b"authorization" in swap.drop
    assert "tid=9" not in repr(made)


def test_what_an_account_is_is_asked_where_the_client_asks() -> None:
    companions = {"host": "api.business.githubcopilot.com"}
    credential = Credential(kind="github", secret=Secret("gho_9"), companions=companions)
    made = PROVIDER.swap(Account(provider="copilot", label="me"), credential)
    about = made.for_path("/copilot_internal/user")
    assert (about.origin, about.headers) == (None, ((b"authorization", b"Bearer gho_9"),))
    asked = head("GET", "/copilot_internal/user", headers={"authorization": "Bearer x"})
    assert PROVIDER.kind(asked) == "github"


@pytest.mark.parametrize(
    ("principal", "shared"), [("userID", False), ("orgID", True), ("enterpriseID", True)]
)
def test_credits_of_an_organisation_are_those_of_all_its_seats(
    principal: str, shared: bool
) -> None:
    headers = {"x-ratelimit-exceeded": f"global-chat:quota_exceeded:{principal}:COPILOT_BUSINESS"}
    outcome = PROVIDER.classify(UpstreamResponse(status=402, headers=headers))
    assert (brief(outcome), outcome.shared) == ("quota account -", shared)
    companions = {"organization": "acme"}
    credential = Credential(kind="github", secret=Secret("gho_9"), companions=companions)
    assert PROVIDER.holder(credential) == "acme"


@pytest.mark.parametrize(
    "snapshot",
    [
        "ent=0&rem=0.0&rst=2026-10-01T11:00:00Z",
        {"entitlement": "0", "percent_remaining": 0, "reset_date": "2026-10-01T11:00:00Z"},
    ],
)
def test_a_frame_holds_what_is_left(snapshot: Any) -> None:
    frame = {
        "type": "error",
        **error("user_global_rate_limited:pro"),
        "copilot_quota_snapshots": {"5Hour-Session-RateLimits": snapshot},
    }
    got = classify(PROVIDER, 101, {}, frame, in_stream=True, wall_now=NOW)
    assert got == "rate_limit account 3600"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"choices": [], "prompt_filter_results": []}, Verdict.CONTINUE),
        ({"choices": [{"delta": {"content": "x"}}]}, Verdict.COMMIT),
        ({"choices": None, "error": {"message": "x"}}, Verdict.REFUSE),
        ({"type": "message_start"}, Verdict.CONTINUE),
        ({"type": "response.created"}, Verdict.CONTINUE),
        ({"type": "error", "error": {"code": "rate_limited"}}, Verdict.REFUSE),
        ({"type": "response.output_text.delta"}, Verdict.COMMIT),
    ],
)
def test_judge(value: Any, expected: Verdict) -> None:
    assert PROVIDER.judge(None, value) is expected


def key(name: str, service: str = "global-chat") -> dict[str, str]:
    return {"x-ratelimit-exceeded": f"{service}:{name}:userID:COPILOT_PLAN_INDIVIDUAL"}


def error(code: str, message: str = "") -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


TO_MONDAY = str((3 * 24 + 14) * 3600)


@pytest.mark.parametrize(
    ("status", "headers", "payload", "expected"),
    [
        # One code, windows of seconds and of hours: the key, the wait, the sentence tell.
        (429, {"retry-after": "2", **key("global-user-tps-high-2025-04-08")}, None, "rate_limit account 2"),
        (429, {"retry-after": "6311", **key("global-usage-5-hour-key")}, None, "quota account 6311"),
        (429, {"retry-after": "90", **key("global-usage-5-hour-key")}, None, "quota account 90"),
        (429, key("global-usage-weekly-key"), None, f"quota account {TO_MONDAY}"),
        (429, {"retry-after": "5", **key("user-model-requests")}, None, "rate_limit account+model 5"),
        (429, {"x-ratelimit-user-retry-after": "9"}, error("rate_limited"), "rate_limit account 9"),
        (429, {"retry-after": "9"}, error("user_global_rate_limited:pro"), "rate_limit account 9"),
        (429, {"retry-after": "9"}, error("rate_limited", "You have exhausted this model's rate limit."), "rate_limit account+model 9"),
        (429, {"retry-after": "35040"}, error("user_global_rate_limited:pro"), "quota account 35040"),
        (429, {}, error("user_global_rate_limited:max", "exceeded your 5 hour session limits"), "quota account -"),
        (429, {}, error("rate_limited", "Please wait 9 hours 44 minutes."), "quota account 35040"),
        (429, {}, error("user_weekly_rate_limited:pro", "Please wait 12 hours."), "quota account 43200"),
        (429, {}, error("user_weekly_rate_limited"), f"quota account {TO_MONDAY}"),
        (429, {"retry-after": "30"}, error("user_model_rate_limited:pro_plus"), "rate_limit account+model 30"),
        (429, {"retry-after": "60"}, error("agent_mode_limit_exceeded"), "rate_limit account 60"),
        (429, {"retry-after": "60"}, "too many requests", "rate_limit account 60"),
        (429, {}, {"message": "slow down", "code": "rate_limited"}, "rate_limit account -"),
        (429, {}, None, "rate_limit none -"),
        # nobody's limit
        (429, {}, error("extension_blocked"), "request_error none -"),
        (429, {}, error("model_overloaded"), "overloaded server -"),
        (429, {}, error("upstream_provider_rate_limit"), "overloaded server -"),
        (429, {}, error("integration_rate_limited"), "overloaded server -"),
        (503, {}, "upstream provider rate limit", "overloaded server -"),
        # money
        (402, {"retry-after": "Thu, 01 Oct 2026 11:00:00 GMT"}, error("quota_exceeded"), "quota account 3600"),
        (402, {}, error("free_quota_exceeded"), "quota account -"),
        (402, {}, error("overage_limit_reached"), "quota account -"),
        (402, {}, error("billing_not_configured"), "quota account -"),
        (402, {}, error("additional_spend_limit_reached"), "quota account -"),
        (429, {}, error("session_quota_exceeded"), "quota account -"),
        (402, {}, "You have no quota", "quota account -"),
        (
            402,
            {"x-quota-snapshot-premium_models": "rst=2026-11-01T00%3A00%3A00Z&rem=0.0&ent=300&ovPerm=false"},
            error("quota_exceeded"),
            f"quota account {31 * 86400 - 10 * 3600}",
        ),
        # credentials
        (401, {}, "unauthorized: token expired", "auth_expired account -"),
        (401, {}, "bad credentials", "auth_invalid account -"),
        (401, {}, {"authorize_url": "https://x"}, "request_error none -"),
        (403, {}, "", "forbidden_account account -"),
        (403, {}, "<html>blocked</html>", "server_error server -"),
        (400, {}, "bad request: Personal Access Tokens are not supported", "auth_invalid account -"),
        (400, {}, "bad request: invalid value 'checking whether access tokens are not logged'", "request_error none -"),
        (403, {"x-ratelimit-reset": str(int(NOW) + 900)}, {"message": "API rate limit exceeded for user ID 1."}, "rate_limit account 900"),
        (403, {"retry-after": "60"}, {"message": "You have exceeded a secondary rate limit."}, "rate_limit account 60"),
        # the request's own fault
        (400, {}, error("model_not_supported"), "forbidden_account account+model -"),
        (400, {}, error("previous_response_not_found"), "request_error none -"),
        (400, {}, error("off_topic"), "request_error none -"),
        (400, {}, error("invalid_request_body", "wait 5 hours, weekly"), "request_error none -"),
        (404, {}, "404 page not found", "request_error none -"),
        (408, {}, None, "request_error none -"),
        (413, {}, None, "request_error none -"),
        (421, {}, "Misdirected Request", "request_error none -"),
        (422, {}, error("content_filter"), "request_error none -"),
        (424, {}, None, "request_error none -"),
        (466, {}, None, "request_error none -"),
        (499, {}, None, "request_error none -"),
        (200, {"x-usage-ratelimit-session": "rem=0.0&rst=2026-10-01T11:00:00Z"}, {"choices": [{}]}, "ok none -"),
    ],
)  # fmt: skip
def test_classify(status: int, headers: dict[str, str], payload: Any, expected: str) -> None:
    assert classify(PROVIDER, status, headers, payload, wall_now=NOW) == expected


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (error("rate_limited"), "rate_limit account -"),
        (error("quota_exceeded"), "quota account -"),
        (error("service_unavailable"), "overloaded server -"),
        (error("previous_response_not_found"), "request_error none -"),
        ({"error": {"message": "rate limit exceeded"}, "choices": None}, "rate_limit account -"),
        ({"error": {"message": "upstream provider rate limit"}}, "overloaded server -"),
        ({"error": {"message": "something else"}}, "server_error server -"),
    ],
)
def test_classify_in_stream(payload: Any, expected: str) -> None:
    frame = {"type": "error", **payload}
    assert classify(PROVIDER, 101, {}, frame, in_stream=True) == expected
    assert classify(PROVIDER, 200, {}, payload, in_stream=True) == expected


def test_a_request_id_is_no_status() -> None:
    headers = {"x-github-request-id": "C6FD:A429:AEB5500:CC3FDF2:6ABA4D81"}
    assert classify(PROVIDER, 400, headers, {"message": "A429"}) == "request_error none -"


@pytest.mark.parametrize(
    ("status", "payload", "expected"),
    [
        (404, None, "forbidden_account account -"),
        (404, {"message": "Not Found", "status": "404"}, "forbidden_account account -"),
        (403, {"message": "x", "error_details": {"notification_id": "no_copilot_access"}}, "forbidden_account account -"),
        (403, {"message": "x", "error_details": {"notification_id": "server_error"}}, "server_error server -"),
        (403, {"message": "API rate limit exceeded for user ID 1."}, "rate_limit account -"),
        (401, {"message": "Bad credentials"}, "auth_invalid account -"),
        (500, None, "server_error server -"),
        (200, {"token": "t"}, "ok none -"),
    ],
)  # fmt: skip
def test_the_exchange(status: int, payload: Any, expected: str) -> None:
    assert brief(classify_exchange(UpstreamResponse(status=status, payload=payload))) == expected


def test_refusal_is_copilots_envelope() -> None:
    made = PROVIDER.refusal(429, "m", 12.3)
    headers = dict(made.headers)
    assert json.loads(made.body) == {"error": {"message": "m", "code": "rate_limited"}}
    assert headers["retry-after"] == headers["x-ratelimit-user-retry-after"] == "13"
    # Without it VS Code warns of an intercepting proxy.
    assert headers["x-github-request-id"]
    assert set(dict(PROVIDER.delay(5))) == PROVIDER.delay_headers
