"""Gemini: the model in the path, three places for a key, google.rpc errors."""

# ruff: noqa: E501 - a table reads better with a row in a line

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.providers.outcomes import classify

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.core.outcome import UpstreamResponse
from account_pool.core.sse import Verdict
from account_pool.providers.base import RequestHead, Route
from account_pool.providers.gemini import PROVIDER

NOW = datetime(2026, 10, 1, 10, tzinfo=UTC).timestamp()


def head(method: str, path: str, **fields: Any) -> RequestHead:
    host = "generativelanguage.googleapis.com"
    return RequestHead(method=method, host=host, port=443, path=path, **fields)


M = "/v1beta/models/gemini-2.5-pro"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", M + ":generateContent", Route.POOL),
        ("POST", M + ":streamGenerateContent", Route.POOL),
        ("POST", M + ":countTokens", Route.POOL),
        ("POST", M + ":embedContent", Route.POOL),
        ("POST", M + ":batchEmbedContents", Route.POOL),
        ("POST", "/v1/models/m:generateContent", Route.POOL),
        ("POST", "/v1alpha/models/m:generateContent", Route.POOL),
        ("GET", "/v1beta/models", Route.POOL),
        ("GET", M, Route.POOL),
        ("POST", "/v1beta/openai/chat/completions", Route.POOL),
        ("POST", "/v1beta/openai/embeddings", Route.POOL),
        ("GET", "/v1beta/openai/models", Route.POOL),
        ("POST", "/v1beta/openai/files", Route.PASS),
        ("POST", M + ":batchGenerateContent", Route.POOL),
        ("POST", M + ":predictLongRunning", Route.PASS),
        ("POST", "/v1beta/tunedModels/t:generateContent", Route.PASS),
        ("POST", "/v1beta/files", Route.POOL),
        ("POST", "/upload/v1beta/files", Route.POOL),
        ("POST", "/v1beta/cachedContents", Route.POOL),
        ("GET", "/v1beta/batches/b", Route.POOL),
        ("PATCH", "/v1beta/cachedContents/c", Route.POOL),
        ("GET", "/download/v1beta/files/f:download", Route.POOL),
        ("PUT", "/v1beta/files/f", Route.PASS),
        ("POST", "/v1beta/interactions", Route.POOL),
        ("POST", "/v1/interactions", Route.POOL),
        ("GET", "/v1beta/interactions/v1_a", Route.POOL),
        ("DELETE", "/v1beta/interactions/v1_a", Route.POOL),
        ("POST", "/v1beta/interactions/v1_a/cancel", Route.POOL),
        ("GET", "/v1beta/interactions", Route.PASS),
        ("GET", "/v1beta/interactions/live", Route.PASS),
        ("POST", "/v1beta/interactionsX", Route.PASS),
        ("GET", M + "/operations/o", Route.PASS),
        ("DELETE", M, Route.PASS),
        ("POST", "/v9/models/m:generateContent", Route.PASS),
    ],
)
def test_route(method: str, path: str, expected: Route) -> None:
    assert PROVIDER.route(head(method, path)) is expected


def test_a_google_login_is_no_key() -> None:
    login = {"authorization": "Bearer ya29.x"}
    assert PROVIDER.route(head("POST", M + ":generateContent", headers=login)) is Route.PASS
    token = head("POST", M + ":generateContent", query="access_token=ya29.x")
    assert PROVIDER.route(token) is Route.PASS
    key = {"authorization": "Bearer AIzaX"}
    path = "/v1beta/openai/chat/completions"
    assert PROVIDER.route(head("POST", path, headers=key)) is Route.POOL


def test_live_api() -> None:
    path = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
    upgrade = {"upgrade": "websocket"}
    assert PROVIDER.route(head("GET", path, headers=upgrade)) is Route.POOL
    assert PROVIDER.route(head("GET", path)) is Route.PASS
    live = head("GET", "/v1beta/interactions/live", headers=upgrade)
    assert PROVIDER.route(live) is Route.POOL
    # Ephemeral tokens belong to who minted them.
    assert PROVIDER.route(head("GET", path + "Constrained", headers=upgrade)) is Route.PASS


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (M + ":generateContent", b'{"model":"other"}', "gemini-2.5-pro"),
        ("/v1/models/a%2Fb:countTokens", b"", "a/b"),
        (M, b"", "gemini-2.5-pro"),
        ("/v1beta/openai/chat/completions", b'{"model":"gemini-2.0-flash"}', "gemini-2.0-flash"),
        ("/v1beta/models", b"", None),
        ("/v1beta/files", b"\x00", None),
        ("/v1beta/interactions", b'{"model":"gemini-3.5-flash","input":"Hi"}', "gemini-3.5-flash"),
        # An agent has limits of its own.
        ("/v1beta/interactions", b'{"agent":"deep-research","input":"Hi"}', "deep-research"),
        ("/v1beta/interactions", b'{"agent":{"name":"a"}}', None),
    ],
)
def test_model(path: str, body: bytes, expected: str | None) -> None:
    assert PROVIDER.model(head("POST", path, body=body)) == expected


def test_exactly_one_credential_remains() -> None:
    account = Account(provider="gemini", label="a")
    made = PROVIDER.swap(account, Credential(kind="key", secret=Secret("AIzaNew")))
    native = made.for_path(M + ":generateContent")
    compatible = made.for_path("/v1beta/openai/chat/completions")
    assert native.headers == ((b"x-goog-api-key", b"AIzaNew"),)
    assert compatible.headers == ((b"authorization", b"Bearer AIzaNew"),)
    for swap in (native, compatible):
        assert {b"authorization", b"x-goog-api-key", b"x-goog-user-project"} == swap.drop
        assert swap.drop_query == ("key", "access_token")
    assert "AIzaNew" not in repr(made)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"candidates": [{}], "usageMetadata": {}}, Verdict.COMMIT),
        ({"usageMetadata": {}, "modelVersion": "m"}, Verdict.CONTINUE),
        ({"promptFeedback": {"blockReason": "SAFETY"}}, Verdict.CONTINUE),
        ({"error": {"code": 429}}, Verdict.REFUSE),
        ({"response": {"candidates": []}, "traceId": "t"}, Verdict.COMMIT),
        ({"response": {"usageMetadata": {}}, "traceId": "t"}, Verdict.CONTINUE),
        ({"totalTokens": 5}, Verdict.COMMIT),
        ({"models": []}, Verdict.COMMIT),
        ({"choices": []}, Verdict.CONTINUE),  # the OpenAI-compatible path
        ({"choices": [{"delta": {}}]}, Verdict.COMMIT),
        ({}, Verdict.COMMIT),
        (None, Verdict.COMMIT),
    ],
)
def test_judge(value: Any, expected: Verdict) -> None:
    assert PROVIDER.judge(None, value) is expected


TYPE = "type.googleapis.com/google.rpc."


def error(code: int, status: str, message: str = "", *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": [*details]}}


def info(reason: str, **metadata: str) -> dict[str, Any]:
    return {"@type": TYPE + "ErrorInfo", "reason": reason, "metadata": metadata}


def quota(*ids: str, model: str | None = "m", value: str = "5") -> dict[str, Any]:
    violations = [
        {"quotaId": i, "quotaValue": value, "quotaDimensions": {"model": model} if model else {}}
        for i in ids
    ]
    return {"@type": TYPE + "QuotaFailure", "violations": violations}


def retry(delay: str) -> dict[str, Any]:
    return {"@type": TYPE + "RetryInfo", "retryDelay": delay}


SPENT = "RESOURCE_EXHAUSTED"
SENTENCE = (
    "You exceeded your current quota, please check your plan and billing details. \n"
    "* Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_requests, "
)
MINUTE = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
DAY = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"


@pytest.mark.parametrize(
    ("status", "payload", "expected"),
    [
        # https://ai.google.dev/gemini-api/docs/rate-limits
        (429, error(429, SPENT, SENTENCE, quota(MINUTE), retry("9s")), "rate_limit account+model 9"),
        (429, error(429, SPENT, SENTENCE, quota(DAY), retry("9s")), "quota account+model 75600"),
        (
            429,
            error(429, SPENT, SENTENCE, quota(MINUTE, DAY), retry("9s")),
            "quota account+model 75600",
        ),
        (
            429,
            error(429, SPENT, "", quota("RequestsPerDayPerProject", model=None)),
            "quota account 75600",
        ),
        (
            429,
            error(429, SPENT, "", quota("RequestsPerMinutePerProject", model=None), retry("3s")),
            "rate_limit account 3",
        ),
        (
            429,
            error(429, SPENT, SENTENCE + "limit: 2\nPlease retry in 900.2ms."),
            "rate_limit account+model 0.9002",
        ),
        (
            429,
            error(429, SPENT, SENTENCE + "limit: 10, model: gemini-3\nPlease retry in 5s."),
            "rate_limit account+model 5",
        ),
        (
            429,
            error(429, SPENT, SENTENCE + "limit: 0, model: gemini-3\nPlease retry in 5s."),
            "forbidden_account account+model -",
        ),
        (429, error(429, SPENT, SENTENCE + "limit: 0.5"), "rate_limit account+model -"),
        (
            429,
            error(429, SPENT, SENTENCE, quota(DAY, value="0"), retry("9s")),
            "forbidden_account account+model -",
        ),
        (429, error(429, SPENT, "Resource has been exhausted (e.g. check quota)."), "rate_limit account -"),
        (429, error(429, SPENT, "Please retry in 12.5s."), "rate_limit account 12.5"),
        # the older form of a quota
        (
            429,
            error(429, SPENT, "", info("RATE_LIMIT_EXCEEDED", quota_limit="PerDayPerProject")),
            "quota account 75600",
        ),
        (429, None, "rate_limit none -"),
        # code assist
        (
            429,
            error(429, SPENT, "", info("RATE_LIMIT_EXCEEDED", model="m", quotaResetDelay="539.4ms")),
            "rate_limit account+model 0.5394",
        ),
        (
            429,
            error(429, SPENT, "", info("QUOTA_EXHAUSTED", quotaResetDelay="1h43m56s")),
            "quota account+model 6236",
        ),
        (
            429,
            error(429, SPENT, "", info("QUOTA_EXHAUSTED", quotaResetDelay="5s"), retry("5s")),
            "quota account+model -",
        ),
        (429, error(429, SPENT, "", info("MODEL_CAPACITY_EXHAUSTED")), "overloaded server -"),
        (429, error(429, SPENT, "", info("INSUFFICIENT_G1_CREDITS_BALANCE")), "quota account -"),
        (403, error(403, "PERMISSION_DENIED", "", info("VALIDATION_REQUIRED")), "forbidden_account account -"),
        # https://ai.google.dev/gemini-api/docs/troubleshooting
        (503, error(503, "UNAVAILABLE", "The model is overloaded."), "overloaded server -"),
        (500, error(500, "INTERNAL"), "server_error server -"),
        (504, error(504, "DEADLINE_EXCEEDED"), "server_error server -"),
        (400, error(400, "INVALID_ARGUMENT", "API key not valid.", info("API_KEY_INVALID")), "auth_invalid account -"),
        (400, error(400, "INVALID_ARGUMENT", "API key not valid. Please pass"), "auth_invalid account -"),
        (400, error(400, "INVALID_ARGUMENT", "Unknown name \"x\""), "request_error none -"),
        (400, error(400, "FAILED_PRECONDITION", "User location is not supported"), "request_error none -"),
        (401, error(401, "UNAUTHENTICATED"), "auth_invalid account -"),
        (401, error(401, "UNAUTHENTICATED", "", info("ACCESS_TOKEN_EXPIRED")), "auth_expired account -"),
        (403, error(403, "PERMISSION_DENIED", "", info("SERVICE_DISABLED")), "forbidden_account account -"),
        (403, error(403, "PERMISSION_DENIED", "Your API key was reported as leaked."), "auth_invalid account -"),
        (403, error(403, "PERMISSION_DENIED", "Consumer 'api_key:*' has been suspended."), "forbidden_account account -"),
        (400, error(400, "FAILED_PRECONDITION", "Gemini API free tier is not available in your country."), "forbidden_account account -"),
        # What a user wrote comes back in a 400.
        (400, error(400, "INVALID_ARGUMENT", "Invalid JSON payload received. Unknown name \"note: user has been suspended\" at 'contents[0]': Cannot find field."), "request_error none -"),
        (400, error(400, "INVALID_ARGUMENT", "Invalid JSON payload received. Unknown name \"Consumer 'x' has been suspended\": Cannot find field."), "request_error none -"),
        (400, error(400, "INVALID_ARGUMENT", "Invalid value at 'x' (TYPE_ENUM), \"Your API key was reported as leaked\""), "request_error none -"),
        (400, error(400, "INVALID_ARGUMENT", "Invalid value at 'x' (TYPE_ENUM), \"the free tier is not available in your country\""), "request_error none -"),
        (403, error(403, "PERMISSION_DENIED", "Requests from referer are blocked.", info("API_KEY_HTTP_REFERRER_BLOCKED")), "forbidden_account account -"),
        (403, error(403, "PERMISSION_DENIED", "You do not have permission to access the File x"), "request_error none -"),
        (404, error(404, "NOT_FOUND", "models/x is not found"), "request_error none -"),
    ],
)  # fmt: skip
def test_classify(status: int, payload: Any, expected: str) -> None:
    assert classify(PROVIDER, status, {}, payload, wall_now=NOW) == expected
    if payload:  # the stream endpoint without alt=sse
        assert classify(PROVIDER, status, {}, [payload], wall_now=NOW) == expected


def test_a_daily_quota_needs_a_clock() -> None:
    payload = error(429, SPENT, "", quota(DAY), retry("9s"))
    assert classify(PROVIDER, 429, {}, payload) == "quota account+model -"
    headers = {"date": "Thu, 01 Oct 2026 06:00:00 GMT"}
    assert classify(PROVIDER, 429, headers, payload) == "quota account+model 3600"


def test_classify_in_stream() -> None:
    payload = error(429, SPENT, "", quota(MINUTE), retry("7s"))
    got = classify(PROVIDER, 200, {}, payload, in_stream=True)
    assert got == "rate_limit account+model 7"
    assert classify(PROVIDER, 200, {}, error(503, "UNAVAILABLE"), in_stream=True) == (
        "overloaded server -"
    )


def test_the_model_named_is_told_when_the_requests_is_not_known() -> None:
    payload = error(429, SPENT, "", quota(MINUTE, model="gemini-3-pro"))
    assert PROVIDER.classify(UpstreamResponse(status=429, payload=payload)).model == "gemini-3-pro"


def test_refusal_is_googles_envelope() -> None:
    made = PROVIDER.refusal(429, "m", 12.3)
    assert json.loads(made.body) == {
        "error": {
            "code": 429,
            "message": "m",
            "status": "RESOURCE_EXHAUSTED",
            "details": [{"@type": TYPE + "RetryInfo", "retryDelay": "13s"}],
        }
    }
    assert dict(made.headers)["retry-after"] == "13"
    assert json.loads(PROVIDER.refusal(403, "m", None).body)["error"]["status"] == (
        "PERMISSION_DENIED"
    )


def test_the_delays_of_a_body_are_rewritten() -> None:
    text = json.dumps(
        error(429, SPENT, SENTENCE + "limit: 2\nPlease retry in 56.185908122s.", retry("56s"))
    )
    rewritten = PROVIDER.delay_body(text, 300, 0.0)
    assert '"retryDelay": "300s"' in rewritten
    assert 'Please retry in 300s."' in rewritten
    assert "56" not in rewritten
    assert PROVIDER.delay_body("no JSON", 3, 0.0) == "no JSON"
    got = PROVIDER.classify(UpstreamResponse(status=429, payload=json.loads(rewritten)))
    assert got.cooldown_s == 300


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"event_type": "interaction.created", "interaction": {"id": "v1_a"}}, Verdict.CONTINUE),
        ({"event_type": "interaction.start", "interaction": {"id": "v1_a"}}, Verdict.CONTINUE),
        ({"event_type": "interaction.status_update", "status": "in_progress"}, Verdict.CONTINUE),
        ({"event_type": "error", "error": {"code": "quota_exceeded"}}, Verdict.REFUSE),
        ({"event_type": "error"}, Verdict.REFUSE),
        ({"event_type": "step.start", "index": 0, "step": {"type": "thought"}}, Verdict.COMMIT),
        ({"event_type": "step.delta", "index": 0, "delta": {"text": "Hi"}}, Verdict.COMMIT),
        ({"event_type": "never seen"}, Verdict.COMMIT),
        # in one piece
        ({"id": "v1_a", "object": "interaction", "status": "completed"}, Verdict.COMMIT),
    ],
)
def test_events_of_an_interaction(event: dict[str, Any], expected: Verdict) -> None:
    assert PROVIDER.judge(None, event) is expected
