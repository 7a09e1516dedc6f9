"""Gemini CLI with a Google login: whose request, the project in the body, quotas."""

import json
from typing import Any

import pytest
from tests.providers.outcomes import classify

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.core.outcome import UpstreamResponse
from account_pool.providers.base import CannotSwap, RequestHead, Route, body_model
from account_pool.providers.gemini_cli import PROVIDER

GEMINI_CLI = "GeminiCLI/0.61.0/gemini-3.1-pro-preview (linux; x64; terminal)"
AT_START = "google-api-nodejs-client/9.15.1"
NOW = 1_790_000_000.0


def head(method: str, path: str, client: str = GEMINI_CLI, body: bytes = b"") -> RequestHead:
    return RequestHead(
        method=method,
        host="cloudcode-pa.googleapis.com",
        port=443,
        path=path,
        headers={"user-agent": client},
        body=body,
    )


@pytest.mark.parametrize(
    ("method", "path", "client", "expected"),
    [
        ("POST", "/v1internal:generateContent", GEMINI_CLI, Route.POOL),
        ("POST", "/v1internal:streamGenerateContent", GEMINI_CLI, Route.POOL),
        ("POST", "/v1internal:countTokens", GEMINI_CLI, Route.POOL),
        ("POST", "/v1internal:loadCodeAssist", AT_START, Route.POOL),
        ("POST", "/v1internal:retrieveUserQuota", AT_START, Route.POOL),
        ("POST", "/v1internal:listExperiments", GEMINI_CLI, Route.POOL),
        ("POST", "/v1internal:fetchAdminControls", GEMINI_CLI, Route.POOL),
        ("POST", "/v1internal:onboardUser", GEMINI_CLI, Route.PASS),
        ("POST", "/v1internal:recordCodeAssistMetrics", GEMINI_CLI, Route.PASS),
        ("POST", "/v1internal:setCodeAssistGlobalUserSetting", GEMINI_CLI, Route.PASS),
        ("GET", "/v1internal/operations/o", GEMINI_CLI, Route.PASS),
        ("GET", "/v1internal:generateContent", GEMINI_CLI, Route.PASS),
        # Only Gemini CLI itself is served.
        ("POST", "/v1internal:generateContent", AT_START, Route.PASS),
        ("POST", "/v1internal:generateContent", "antigravity/1.107.0 linux/x64", Route.PASS),
        ("POST", "/v1internal:loadCodeAssist", "curl/8", Route.PASS),
    ],
)
def test_route(method: str, path: str, client: str, expected: Route) -> None:
    assert PROVIDER.route(head(method, path, client)) is expected


def test_model() -> None:
    body = b'{"model":"gemini-3.1-pro-preview","project":"p"}'
    asked = head("POST", "/v1internal:generateContent", body=body)
    assert PROVIDER.model is None
    assert body_model(asked) == "gemini-3.1-pro-preview"


def swapped(content: bytes, method: str = "generateContent", project: str | None = "ours") -> bytes:
    companions = {"project": project} if project else {}
    credential = Credential(kind="oauth", secret=Secret("ya29.new"), companions=companions)
    made = PROVIDER.swap(Account(provider="gemini-cli", label="me"), credential)
    assert made.headers == ((b"authorization", b"Bearer ya29.new"),)
    assert made.drop >= {b"authorization", b"x-goog-user-project"}
    assert made.body is not None
    return made.body(f"/v1internal:{method}", content)


def body(project: str) -> bytes:
    """Return a request in which the same words stand in other places as well."""
    decoy = {"project": "theirs", "metadata": {"duetProject": "theirs"}}
    parts = [{"text": json.dumps(decoy)}, {"functionResponse": {"response": decoy}}]
    request = {"contents": [{"parts": parts}], "session_id": "s"}
    whole = {"model": "m", "project": project, "user_prompt_id": "u", "request": request}
    return json.dumps(whole, indent=1, ensure_ascii=False).encode()


def test_the_project_moves_and_nothing_else() -> None:
    assert swapped(body("theirs")) == body("ours")
    assert swapped(body("theirs"), "streamGenerateContent") == body("ours")
    same = body("ours")
    assert swapped(same) is same


@pytest.mark.parametrize(
    ("method", "sent", "expected"),
    [
        ("generateContent", b'{"model":"m"}', b'{"project":"ours","model":"m"}'),
        ("generateContent", b" { } ", b' {"project":"ours" } '),
        ("generateContent", b'{"project":null,"a":1}', b'{"project":"ours","a":1}'),
        (
            "generateContent",
            b'{"project":"","project":"x"}',
            b'{"project":"ours","project":"ours"}',
        ),
        ("countTokens", b'{"request":{"project":"x"}}', b'{"request":{"project":"x"}}'),
        (
            "loadCodeAssist",
            b'{"cloudaicompanionProject":"x","metadata":{"a":[],"duetProject":"x"}}',
            b'{"cloudaicompanionProject":"ours","metadata":{"a":[],"duetProject":"ours"}}',
        ),
        (
            "loadCodeAssist",
            b'{"metadata":{"ideType":"IDE_UNSPECIFIED"}}',
            b'{"metadata":{"ideType":"IDE_UNSPECIFIED"}}',
        ),
        ("retrieveUserQuota", b'{"project":"x"}', b'{"project":"ours"}'),
        (
            "listExperiments",
            b'{"project":"x","metadata":{"duetProject":"x"}}',
            b'{"project":"ours","metadata":{"duetProject":"ours"}}',
        ),
    ],
)
def test_where_a_project_stands(method: str, sent: bytes, expected: bytes) -> None:
    assert swapped(sent, method) == expected


def test_without_a_project_inference_is_not_sent() -> None:
    for method in ("generateContent", "streamGenerateContent"):
        with pytest.raises(CannotSwap, match="gemini-cli/me: its project is not known"):
            swapped(body("theirs"), method, project=None)
    # What the account is can be asked without one, never with that of another.
    asked = b'{"cloudaicompanionProject":"theirs"}'
    assert swapped(asked, "loadCodeAssist", None) == b'{"cloudaicompanionProject":null}'


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"project"])
def test_what_is_no_object_is_not_sent(content: bytes) -> None:
    with pytest.raises(CannotSwap):
        swapped(content)


KIND = "type.googleapis.com/google.rpc."


def refused(
    reason: str = "", message: str = "", delay: str = "", **metadata: str
) -> dict[str, Any]:
    details: list[dict[str, Any]] = []
    if reason:
        info = {"@type": KIND + "ErrorInfo", "reason": reason, "metadata": metadata}
        details.append({**info, "domain": "cloudcode-pa.googleapis.com"})
    if delay:
        details.append({"@type": KIND + "RetryInfo", "retryDelay": delay})
    error = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": message, "details": details}
    return {"error": error}


PRO = {"model": "gemini-2.5-pro"}


@pytest.mark.parametrize(
    ("status", "payload", "expected"),
    [
        # google-gemini/gemini-cli packages/core/src/utils/googleQuotaErrors.test.ts
        (429, refused("RATE_LIMIT_EXCEEDED", delay="0.5s", **PRO), "rate_limit account+model 0.5"),
        (429, refused("RATE_LIMIT_EXCEEDED", delay="3s"), "rate_limit account+model 3"),
        (
            429,
            refused("RATE_LIMIT_EXCEEDED", quotaResetDelay="539.477544ms", **PRO),
            "rate_limit account+model 0.539477544",
        ),
        (
            429,
            refused("QUOTA_EXHAUSTED", quotaResetDelay="13h2m3s", **PRO),
            "quota account+model 46923",
        ),
        (
            429,
            refused("QUOTA_EXHAUSTED", quotaResetTimeStamp="2026-09-22T01:00:00Z"),
            "quota account+model 38800",
        ),
        (429, refused("QUOTA_EXHAUSTED", delay="0.5s", **PRO), "quota account+model -"),
        (
            429,
            refused("QUOTA_EXHAUSTED", "Your quota will reset after 156h14m36s.", **PRO),
            "quota account+model 562476",
        ),
        (429, refused("MODEL_CAPACITY_EXHAUSTED", **PRO), "overloaded server -"),
        (503, refused("MODEL_CAPACITY_EXHAUSTED", **PRO), "overloaded server -"),
        (429, [refused("MODEL_CAPACITY_EXHAUSTED", **PRO)], "overloaded server -"),
        (429, refused("INSUFFICIENT_G1_CREDITS_BALANCE"), "quota account -"),
        (403, refused("VALIDATION_REQUIRED"), "forbidden_account account -"),
        (403, refused("UNSUPPORTED_CLIENT"), "forbidden_account account -"),
        (
            403,
            {"error": {"code": 403, "status": "PERMISSION_DENIED"}},
            "forbidden_account account -",
        ),
        (429, refused(message="Resource has been exhausted"), "rate_limit account+model -"),
        (401, refused("ACCESS_TOKEN_EXPIRED"), "auth_expired account -"),
        (401, {"error": {"code": 401, "status": "UNAUTHENTICATED"}}, "auth_invalid account -"),
        (400, {"error": {"code": 400, "status": "INVALID_ARGUMENT"}}, "request_error none -"),
        (404, {"error": {"code": 404, "status": "NOT_FOUND"}}, "request_error none -"),
        (500, {"error": {"code": 500, "status": "INTERNAL"}}, "server_error server -"),
        (200, {"response": {"candidates": [{}]}}, "ok none -"),
    ],
)
def test_classify(status: int, payload: Any, expected: str) -> None:
    assert classify(PROVIDER, status, {}, payload, wall_now=NOW) == expected


def test_the_return_of_a_quota_is_told_anew_in_every_spelling() -> None:
    sentence = (
        "You have exhausted your capacity on this model. Your quota will reset after 1h43m56s."
    )
    metadata = {"quotaResetDelay": "1h43m56.4s", "quotaResetTimeStamp": "2026-09-30T00:00:00Z"}
    text = json.dumps(refused("QUOTA_EXHAUSTED", sentence, "6236.4s", **metadata, **PRO))
    told = json.loads(PROVIDER.delay_body(text, 29.5, NOW))
    again = refused(
        "QUOTA_EXHAUSTED",
        sentence.replace("1h43m56s", "30s"),
        "30s",
        quotaResetDelay="30s",
        quotaResetTimeStamp="2026-09-21T14:13:50Z",
        **PRO,
    )
    assert told == again


@pytest.mark.parametrize(
    ("token", "word"), [("ya29.x", None), ("AIzaSyx", "gemini"), ("1//0x", "refresh_token")]
)
def test_misplaced_tokens_are_told_where_they_belong(token: str, word: str | None) -> None:
    where = PROVIDER.misplaced(token)
    assert (where is None) if word is None else (where is not None and word in where)


def test_refusal_is_googles_envelope() -> None:
    made = PROVIDER.refusal(429, "m", 30)
    error = json.loads(made.body)["error"]
    assert (error["status"], error["details"][0]["retryDelay"]) == ("RESOURCE_EXHAUSTED", "30s")
    assert (
        PROVIDER.classify(UpstreamResponse(status=429, payload={"error": error})).cooldown_s == 30
    )
