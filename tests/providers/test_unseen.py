"""Answers no recording shows, written after the vendors' documents, SDKs and public issues.

What they have in common with the recordings is the vocabulary, nothing else: if a rule
was bent to a recording, it fails here.
"""

# ruff: noqa: E501 - a table reads better with a row in a line

import json
from typing import Any

import pytest
from tests.cli.test_classify import MUTATIONS
from tests.providers.outcomes import brief

from account_pool.cli.classify import classify

NOW = "2026-11-20T22:00:00Z"
#: NOW, in the spellings vendors use.
EPOCH = 1_795_212_000
TWO_HOURS_LATER = "2026-11-21T00:00:00Z"


def error(message: str, type_: str | None = None, code: Any = None, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": None, "code": code, **more}}


def flat(message: str, **more: Any) -> dict[str, Any]:
    return {"message": message, **more}


def claude(type_: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": type_, "message": message}, "request_id": "req_1"}


def google(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def info(reason: str, **metadata: str) -> dict[str, Any]:
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    return {"@type": kind, "reason": reason, "domain": "googleapis.com", "metadata": metadata}


def retry(delay: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def quota(quota_id: str, model: str | None = "gemini-3.1-pro", value: str = "25") -> dict[str, Any]:
    violation = {"quotaId": quota_id, "quotaMetric": "generativelanguage.googleapis.com/x"}
    dimensions = {"location": "global", **({"model": model} if model else {})}
    return {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{**violation, "quotaDimensions": dimensions, "quotaValue": value}],
    }


def windows(**statuses: tuple[str, int | None]) -> dict[str, str]:
    """Return unified headers: window (`w7d_opus`) to status and seconds from NOW."""
    headers = {}
    for name, (status, seconds) in statuses.items():
        window = f"anthropic-ratelimit-unified-{name.removeprefix('w')}"
        headers[f"{window}-status"] = status
        if seconds is not None:
            headers[f"{window}-reset"] = str(EPOCH + seconds)
    return headers


def sse(*events: tuple[str | None, Any]) -> str:
    return "".join(
        (f"event: {name}\n" if name else "") + f"data: {json.dumps(data)}\n\n"
        for name, data in events
    )


REQUEST, OVERLOADED, SERVER = "request_error none -", "overloaded server -", "server_error server -"

# fmt: off
OPENAI = [
    (429, {}, error("You exceeded your current quota.", "insufficient_quota", "credit_balance_exhausted"), "quota account -"),
    (429, {}, error("x", "insufficient_quota", "organization_usage_limit_exceeded"), "quota account -"),
    (429, {}, error("x", "invalid_request_error", "project_spend_limit_exceeded"), "quota account -"),
    (429, {"retry-after": "6"}, error("Slow down.", "rate_limit_error", "slow_down"), "rate_limit account+model 6"),
    (503, {}, error("Slow down.", "service_unavailable_error", "slow_down"), OVERLOADED),
    (429, {"retry-after": "20", "retry-after-ms": "19850"}, error("Rate limit reached for gpt-5.2 in organization org-x on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s.", "requests", "rate_limit_exceeded"), "rate_limit account+model 19.85"),
    (429, {}, error("Rate limit reached for gpt-image-1 in organization org-x on input-images per min: Limit 5, Used 5, Requested 1. Please try again in 12s.", "input-images", "rate_limit_exceeded"), "rate_limit account+model 12"),
    (429, {}, error("Rate limit reached for gpt-5 in organization org-x on requests per day (RPD): Limit 200, Used 200, Requested 1. Please try again in 7m12s.", "requests", "rate_limit_exceeded"), "quota account+model 432"),
    (429, {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-requests": "499", "x-ratelimit-reset-requests": "120ms"}, error("Rate limit reached.", "tokens", "rate_limit_exceeded"), "rate_limit account+model 360"),
    (429, {}, error("You exceeded your current quota, please check your plan and billing details.", "insufficient_quota", "insufficient_quota"), "quota account -"),
    (429, {}, error("Billing hard limit has been reached", "invalid_request_error", "billing_hard_limit_reached"), "quota account -"),
    (400, {}, error("Billing hard limit has been reached", "image_generation_user_error", "billing_hard_limit_reached"), "quota account -"),
    (429, {}, error("Your account is not active, please check your billing details on our website.", "billing_not_active", "billing_not_active"), "quota account -"),
    (401, {}, error("Incorrect API key provided: sk-fake********0000. You can find your API key at https://platform.openai.com/account/api-keys.", "invalid_request_error", "invalid_api_key"), "auth_invalid account -"),
    (401, {}, error("You must be a member of an organization to use the API.", "invalid_request_error", None), "auth_invalid account -"),
    (403, {}, error("Country, region, or territory not supported", "request_forbidden", "unsupported_country_region_territory"), REQUEST),
    (403, {}, error("Project `proj_x` does not have access to model `gpt-5-pro`", "invalid_request_error", "model_not_found"), "forbidden_account account+model -"),
    (404, {}, error("The model `gpt-9` does not exist or you do not have access to it.", "invalid_request_error", "model_not_found"), REQUEST),
    (403, {}, error("You are not allowed to sample from this model", "invalid_request_error", None), "forbidden_account account+model -"),
    (429, {}, error("Rate limit reached for gpt-9 in organization org-x on tokens per min (TPM): Limit 0, Used 0, Requested 12.", "tokens", "rate_limit_exceeded"), "forbidden_account account+model -"),
    (400, {}, error("Your organization must be verified to stream this model. Please go to: https://platform.openai.com/settings/organization/general", "invalid_request_error", "unsupported_value"), "forbidden_account account+model -"),
    (413, {}, "<html><head><title>413 Request Entity Too Large</title></head></html>", REQUEST),
    (400, {"x-ratelimit-remaining-requests": "0", "retry-after": "30"}, error("Invalid value: 'rate limit exceeded'. Supported values are: 'user'.", "invalid_request_error", "invalid_value"), REQUEST),
    (500, {}, error("The server had an error while processing your request. Sorry about that!", "server_error", None), SERVER),
    (503, {"retry-after": "4"}, error("That model is currently overloaded with other requests.", "server_error", None), "overloaded server 4"),
    (429, {}, error("The engine is currently overloaded, please try again later", "engine_overloaded", None), OVERLOADED),
    (429, {}, error("Flex is currently at capacity.", "resource_unavailable", "resource_unavailable"), OVERLOADED),
    (502, {"content-type": "text/html"}, "<html>cloudflare 502 Bad gateway</html>", SERVER),
    (403, {"server": "cloudflare"}, "<!DOCTYPE html><title>Attention Required! | Cloudflare</title>", SERVER),
    (200, {}, sse(("response.created", {"type": "response.created", "response": {"error": None}}), ("response.failed", {"type": "response.failed", "response": {"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "Rate limit reached for gpt-5.4 in organization org-x on tokens per min (TPM): Limit 1. Please try again in 11.054s."}}})), "rate_limit account+model 11.054"),
    (200, {}, sse(("error", {"type": "error", "code": "insufficient_quota", "message": "You exceeded your current quota, please check your plan and billing details.", "param": None, "sequence_number": 2})), "quota account -"),
    (200, {}, sse((None, {"error": {"message": "The server had an error processing your request.", "type": "server_error", "code": None}})), SERVER),
    (200, {}, sse((None, {"choices": [{"index": 0, "delta": {"content": '{"error": {"code": "rate_limit_exceeded"}}'}}]})), "ok none -"),
    (200, {}, {"id": "resp_1", "object": "response", "error": None, "output": [{"type": "message", "content": [{"text": "429 Too Many Requests: rate limit exceeded"}]}]}, "ok none -"),
]

ANTHROPIC = [
    (429, {"retry-after": "41", "anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": "2026-11-20T22:00:41Z"}, claude("rate_limit_error", "Number of requests has exceeded your rate limit"), "rate_limit account+model 41"),
    (429, {"anthropic-ratelimit-input-tokens-remaining": "0", "anthropic-ratelimit-input-tokens-reset": "2026-11-20T22:00:30Z", "anthropic-ratelimit-output-tokens-remaining": "8000", "anthropic-ratelimit-output-tokens-reset": "2026-11-20T22:00:01Z"}, claude("rate_limit_error", "This request would exceed your organization's rate limit of 30,000 input tokens per minute."), "rate_limit account+model 30"),
    (429, {}, claude("rate_limit_error", "This request would exceed your organization's maximum usage increase rate for input tokens per minute. Please scale up your input tokens usage more gradually."), "rate_limit account+model -"),
    (400, {}, claude("invalid_request_error", "Your credit balance is too low to access the Claude API. Please go to Plans & Billing to upgrade or purchase credits."), "quota account -"),
    (400, {}, claude("invalid_request_error", "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."), "quota account 871200"),
    (400, {}, claude("invalid_request_error", "This organization has been disabled."), "forbidden_account account -"),
    (400, {}, claude("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"), REQUEST),
    (400, {}, claude("invalid_request_error", "messages.0: your credit balance is too low is what the user wrote"), REQUEST),
    (401, {}, claude("authentication_error", "invalid x-api-key"), "auth_invalid account -"),
    (403, {}, claude("permission_error", "Your API key does not have permission to use the specified resource."), "forbidden_account account -"),
    (404, {}, claude("not_found_error", "model: claude-opus-9"), REQUEST),
    (413, {}, claude("request_too_large", "Request exceeds the maximum size"), REQUEST),
    (500, {"x-should-retry": "true"}, claude("api_error", "Internal server error"), SERVER),
    (529, {"x-should-retry": "true"}, claude("overloaded_error", "Overloaded"), OVERLOADED),
    (200, {}, sse(("message_start", {"type": "message_start", "message": {}}), ("ping", {"type": "ping"}), ("error", {"type": "error", "error": {"type": "rate_limit_error", "message": "This request would exceed your rate limit of 80,000 output tokens per minute"}})), "rate_limit account+model -"),
    (200, {}, sse(("error", claude("api_error", "Internal server error"))), SERVER),
]

CLAUDE_CODE = [
    (429, {}, claude("rate_limit_error", "You've reached your weekly limit for Opus. Resets Nov 22, 10pm (UTC)"), "quota account+model 172800"),
    (429, {}, claude("rate_limit_error", "You've reached your Opus limit. Switch to Sonnet to go on."), "quota account+model -"),
    (429, {}, claude("rate_limit_error", "You've hit your weekly limit. Switch to Sonnet to go on."), "quota account -"),
    (429, {"x-should-retry": "true"}, claude("rate_limit_error", "You've hit your session limit · resets 3:30am (Asia/Shanghai)"), "quota account 77400"),
    (429, {}, claude("rate_limit_error", "You've hit your weekly limit · resets Nov 22, 10pm (UTC)"), "quota account 172800"),
    (429, {"x-should-retry": "true"}, claude("rate_limit_error", "Usage credits are required for long context requests."), "quota account+model -"),
    (429, {"anthropic-ratelimit-unified-status": "rejected", "anthropic-ratelimit-unified-representative-claim": "overage", "anthropic-ratelimit-unified-reset": str(EPOCH + 900_000), "retry-after": "900000"}, claude("rate_limit_error", "x"), "quota account -"),
    (429, {**windows(w5h=("rejected", 3000)), "anthropic-ratelimit-unified-status": "rejected", "anthropic-ratelimit-unified-representative-claim": "overage", "anthropic-ratelimit-unified-reset": str(EPOCH + 900_000)}, claude("rate_limit_error", "x"), "quota account 3000"),
    (429, {**windows(w5h=("rejected", 3600), w7d=("allowed", 500_000)), "anthropic-ratelimit-unified-status": "rejected", "retry-after": "3600"}, claude("rate_limit_error", "This request would exceed your account's rate limit. Please try again later."), "quota account 3600"),
    (429, {**windows(w5h=("allowed_warning", 900), w7d=("rejected", 90_000)), "anthropic-ratelimit-unified-status": "rejected"}, claude("rate_limit_error", "x"), "quota account 90000"),
    (429, {**windows(w5h=("allowed", 900), w7d=("allowed", 90_000), w7d_opus=("rejected", 200_000)), "anthropic-ratelimit-unified-status": "rejected", "anthropic-ratelimit-unified-representative-claim": "seven_day_opus"}, claude("rate_limit_error", "x"), "quota account+model 200000"),
    (429, {"x-should-retry": "true"}, claude("rate_limit_error", "Error"), "rate_limit none -"),
    (429, {}, claude("rate_limit_error", "Extra usage is required for long context requests."), "quota account+model -"),
    (400, {}, claude("invalid_request_error", "You're out of extra usage. Add more at claude.ai/settings/usage and keep going."), "quota account -"),
    (403, {}, claude("permission_error", "OAuth token has been revoked. Please obtain a new token."), "auth_invalid account -"),
    (403, {}, claude("permission_error", "OAuth authentication is currently not allowed for this organization."), "forbidden_account account -"),
    (401, {}, claude("authentication_error", "OAuth token has expired. Please obtain a new token or refresh your existing token."), "auth_expired account -"),
    (403, {}, claude("permission_error", "This credential is only authorized for use with Claude Code and cannot be used for other API requests."), REQUEST),
    (200, windows(w5h=("allowed_warning", 900), w7d=("rejected", 90_000)), {"type": "message", "content": []}, "ok none -"),
    (529, windows(w5h=("allowed", 900)), claude("overloaded_error", "Overloaded"), OVERLOADED),
]

CODEX = [
    (429, {"x-codex-primary-used-percent": "100", "x-codex-primary-reset-at": str(EPOCH + 7200)}, {"error": {"type": "usage_limit_reached", "message": "The usage limit has been reached", "plan_type": "plus", "resets_at": EPOCH + 7200, "resets_in_seconds": 7200}}, "quota account 7200"),
    (429, {}, {"error": {"type": "usage_limit_reached", "plan_type": "team", "resets_at": EPOCH + 500_000}}, "quota account 500000"),
    (400, {}, {"error": {"type": "usage_limit_reached", "message": "x", "resets_in_seconds": 4000}}, "quota account 4000"),
    (429, {}, {"error": {"type": "usage_not_included", "message": "To use Codex with your ChatGPT plan, upgrade to Plus"}}, "forbidden_account account -"),
    (400, {}, {"error": {"message": "Selected model is at capacity. Please try a different model."}}, OVERLOADED),
    (401, {}, {"error": {"message": "Your authentication token has expired. Please try signing in again.", "code": "token_expired"}}, "auth_expired account -"),
    (401, {}, {"error": {"message": "Your account has been deactivated.", "code": "account_deactivated"}}, "forbidden_account account -"),
    (403, {}, "<html><body>Just a moment...</body></html>", SERVER),
    (503, {}, error("Our servers are currently overloaded. Please try again later.", "service_unavailable_error", "server_is_overloaded"), OVERLOADED),
    (400, {}, error("Previous response with id 'resp_1' not found.", "invalid_request_error", "previous_response_not_found"), REQUEST),
    (400, {}, error("The encrypted content could not be verified.", "invalid_request_error", "invalid_encrypted_content"), REQUEST),
    (101, {}, [{"type": "codex.rate_limits", "rate_limits": {}}, {"type": "error", "status": 429, "error": {"type": "usage_limit_reached", "resets_in_seconds": 90}, "headers": {}}], "quota account 90"),
]

COPILOT = [
    (429, {"retry-after": "7", "x-ratelimit-exceeded": "global-chat:global-user-tps-high-2026-01-01:userID:COPILOT_PLAN_BUSINESS"}, error("Sorry, you have been rate-limited.", None, "user_global_rate_limited:business"), "rate_limit account 7"),
    (429, {"retry-after": "100800"}, error("Sorry, you've exceeded your weekly rate limit.", None, "user_weekly_rate_limited:pro"), "quota account 100800"),
    (429, {}, error("Sorry, you've exceeded your rate limit for this model. Please wait 12 hours.", None, "user_model_rate_limited:pro"), "quota account+model 43200"),
    (429, {"retry-after": "45"}, error("rate limited", None, "user_model_rate_limited:individual"), "rate_limit account+model 45"),
    (429, {}, error("x", None, "integration_rate_limited"), OVERLOADED),
    (402, {"retry-after": "Tue, 01 Dec 2026 00:00:00 GMT"}, error("You have exceeded your premium request allowance", None, "quota_exceeded"), "quota account 871200"),
    (402, {}, error("x", None, "overage_limit_reached"), "quota account -"),
    (503, {}, error("upstream provider rate limit", None, "upstream_provider_rate_limit"), OVERLOADED),
    (400, {}, error("The requested model is not supported.", "invalid_request_error", "model_not_supported"), "forbidden_account account+model -"),
    (401, {}, "unauthorized: token expired\n", "auth_expired account -"),
    (401, {}, {"authorize_url": "https://github.com/login/oauth/authorize?x"}, REQUEST),
    (422, {}, error("filtered by RAI", None, "content_filter"), REQUEST),
    (400, {}, error("previous response not found", None, "previous_response_not_found"), REQUEST),
    (200, {}, sse((None, {"choices": [], "prompt_filter_results": []}), (None, {"choices": None, "error": {"message": "Rate limit exceeded", "code": "rate_limited"}})), "rate_limit account -"),
]

GEMINI = [
    (429, {}, {"error": {"code": "quota_exceeded", "message": "You have exceeded your daily quota."}}, "quota account+model 36000"),
    (429, {}, {"error": {"code": "rate_limit_exceeded", "message": "Too many requests."}}, "rate_limit account -"),
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing details.", quota("GenerateContentInputTokensPerModelPerMinute-FreeTier"), retry("13s")), "rate_limit account+model 13"),
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "gemini-3.8-flash"), retry("2s")), "quota account+model 36000"),
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", quota("GenerateRequestsPerDayPerProjectPerModel", value="0")), "forbidden_account account+model -"),
    (400, {}, google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", info("API_KEY_INVALID", service="generativelanguage.googleapis.com")), "auth_invalid account -"),
    (400, {}, google(400, "FAILED_PRECONDITION", "User location is not supported for the API use."), REQUEST),
    (403, {}, google(403, "PERMISSION_DENIED", "Generative Language API has not been used in project 1 before or it is disabled.", info("SERVICE_DISABLED")), "forbidden_account account -"),
    (404, {}, google(404, "NOT_FOUND", "models/gemini-9 is not found for API version v1beta"), REQUEST),
    (503, {}, google(503, "UNAVAILABLE", "The model is overloaded. Please try again later."), OVERLOADED),
    (504, {}, google(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."), SERVER),
    (400, {}, google(400, "INVALID_ARGUMENT", "The input token count (2000000) exceeds the maximum number of tokens allowed (1048576)."), REQUEST),
    (200, {}, sse((None, google(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."))), "rate_limit account -"),
    (200, {}, [google(503, "UNAVAILABLE", "The model is overloaded.")], OVERLOADED),
]

GEMINI_CLI = [
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric 'Gemini 3 Flash Requests' and limit 'Gemini 3 Flash Requests per day per user per tier' of service 'cloudcode-pa.googleapis.com'.", info("RATE_LIMIT_EXCEEDED", quota_metric="cloudcode-pa.googleapis.com/gemini_3_flash_requests", quota_limit="Gemini3FlashRequestsPerDayPerUserPerTier", consumer="projects/681255809395")), "quota account+model 36000"),
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric 'Gemini 3.1 Pro Requests' and limit 'Gemini 3.1 Pro Requests per day per user per tier' of service 'cloudcode-pa.googleapis.com' for consumer 'project_number:681255809395'."), "quota account+model 36000"),
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric 'Requests' and limit 'Requests per day per user' of service 'cloudcode-pa.googleapis.com'."), "quota account 36000"),
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric 'Requests' and limit 'Requests per day per user per tier'.", info("RATE_LIMIT_EXCEEDED", quota_metric="cloudcode-pa.googleapis.com/requests", quota_limit="RequestsPerDayPerUserPerTier")), "quota account 36000"),
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "Individual quota reached. Please upgrade your subscription to increase your limits. Resets in 47h55m14s.", info("QUOTA_EXHAUSTED", quotaResetDelay="172514s")), "quota account 172514"),
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "Individual quota reached. Contact your administrator to enable overages. Resets in 3h25m10s."), "quota account 12310"),
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "No capacity available for model gemini-3.1-pro on the server"), OVERLOADED),
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "You have exhausted your capacity on this model. Your quota will reset after 1h43m56s.", info("QUOTA_EXHAUSTED", model="gemini-3.1-pro-preview", quotaResetDelay="1h43m56.2s", quotaResetTimeStamp=TWO_HOURS_LATER)), "quota account+model 6236.2"),
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "x", info("RATE_LIMIT_EXCEEDED", model="gemini-3.8-flash", quotaResetDelay="8.2s"), retry("8.2s")), "rate_limit account+model 8.2"),
    (403, {}, google(403, "PERMISSION_DENIED", "Verify your account to continue.", info("VALIDATION_REQUIRED", validation_link="https://accounts.google.com/x")), "forbidden_account account -"),
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "No capacity available for model x on the server", info("MODEL_CAPACITY_EXHAUSTED", model="x")), OVERLOADED),
    (401, {}, google(401, "UNAUTHENTICATED", "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.", info("ACCESS_TOKEN_EXPIRED")), "auth_expired account -"),
]

AZURE = [
    (429, {"retry-after-ms": "3000"}, {"error": {"code": "429", "message": "Rate limit is exceeded. Try again in 3 seconds."}}, "rate_limit account+model 3"),
    (429, {}, {"error": {"code": "429", "message": "Requests to gpt-5 have been limited."}}, "rate_limit account+model -"),
    (429, {"retry-after-ms": "900"}, {"error": {"code": "429", "message": "The service is temporarily unable to process your request. Please try again later."}}, "overloaded server 0.9"),
    (403, {}, {"error": {"code": "403", "message": "Your resource has been temporarily blocked because we detected behavior that may violate our content policy."}}, "forbidden_account account -"),
    (429, {"retry-after": "22", "retry-after-ms": "21310"}, error("Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2025-04-01-preview have exceeded token rate limit of your current AIServices S0 pricing tier. Please retry after 22 seconds.", code="429"), "rate_limit account+model 21.31"),
    (429, {}, {"error": {"code": "RateLimitReached", "message": "Your requests to gpt-5 for gpt-5 in East US have exceeded the token rate limit for your current pricing tier. Please retry after 58 seconds."}}, "rate_limit account+model 58"),
    (429, {"retry-after": "1"}, {"error": {"code": "too_many_requests", "message": "Too Many Requests"}}, "rate_limit account+model 1"),
    (429, {"retry-after": "9"}, {"error": {"code": "429", "message": "The system is currently experiencing high demand and cannot process your request. Your request exceeds the maximum usage size allowed during peak load."}}, "overloaded server 9"),
    (429, {}, {"statusCode": 429, "message": "Rate limit is exceeded. Try again in 55 seconds."}, "rate_limit account 55"),
    (403, {}, {"statusCode": 403, "message": "Out of call volume quota. Quota will be replenished in 01:58:12."}, "quota account 7092"),
    (403, {}, {"statusCode": 403, "message": "Out of call volume quota. Quota will be replenished in 2.11:58:12."}, "quota account 215892"),
    (403, {}, {"statusCode": 403, "message": "Token quota is exceeded. Try again in 9 days."}, "quota account 777600"),
    (401, {}, {"error": {"code": "401", "message": "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an active subscription and use a correct regional API endpoint for your resource."}}, "auth_invalid account -"),
    (401, {}, {"statusCode": 401, "message": "Unauthorized. Access token is missing, invalid, audience is incorrect (https://cognitiveservices.azure.com), or have expired."}, "auth_expired account -"),
    (401, {}, {"error": {"code": "PermissionDenied", "message": "Principal does not have access to API/Operation."}}, "forbidden_account account -"),
    (403, {}, {"error": {"code": "AccessDenied", "message": "Access denied due to Virtual Network/Firewall rules."}}, "forbidden_account account -"),
    (400, {}, error("The response was filtered due to the prompt triggering Azure OpenAI's content management policy.", code="content_filter", status=400), REQUEST),
    (404, {}, {"error": {"code": "404", "message": "Resource not found"}}, REQUEST),
    (500, {}, {"error": {"code": "InternalServerError", "message": "Backend returned unexpected response."}}, SERVER),
    (408, {}, {"error": {"code": "Timeout", "message": "The operation was timeout."}}, REQUEST),
    (200, {}, sse((None, {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}), (None, {"choices": [{"delta": {"role": "assistant"}}]})), "ok none -"),
]

OPENROUTER = [
    (403, {}, {"error": {"code": 403, "message": "Budget limit exceeded", "metadata": {"limit_source": "openrouter_workspace_budget", "scope": "workspace", "limit_usd": 5, "spend_usd": 5, "resets_at": TWO_HOURS_LATER}}}, "quota account 7200"),
    (403, {}, {"error": {"code": 403, "message": "Budget limit exceeded", "metadata": {"limit_source": "openrouter_key_limit", "error_type": "permission_denied"}}}, "quota account -"),
    (402, {}, {"error": {"code": 402, "message": "x", "metadata": {"reason": "weight_exceeds_budget", "limit_source": "openrouter_credits"}}}, "quota account -"),
    (429, {}, {"error": {"code": 429, "message": "Rate limit exceeded", "metadata": {"error_type": "rate_limit_exceeded"}}}, "rate_limit account -"),
    (429, {"retry-after": "8"}, {"error": {"code": 429, "message": "Rate limit exceeded", "metadata": {"error_type": "rate_limit_exceeded", "provider_code": "rate_limit_error"}}}, "overloaded server 8"),
    (503, {}, {"error": {"code": 503, "message": "x", "metadata": {"error_type": "provider_overloaded"}}}, OVERLOADED),
    (200, {}, sse((None, {"id": "cmpl-1", "error": {"code": 429, "message": "Rate limit exceeded"}, "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]})), "rate_limit account -"),
    (400, {}, {"error": {"code": 400, "message": "x", "metadata": {"error_type": "token_limit_exceeded"}}}, REQUEST),
    (429, {}, {"error": {"code": 429, "message": "Rate limit exceeded: free-models-per-day-high-balance.", "metadata": {"headers": {"X-RateLimit-Limit": "1000", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str((EPOCH + 7200) * 1000)}}}, "user_id": "user_x"}, "quota account 7200"),
    (429, {}, {"error": {"code": 429, "message": "Free tier limit", "metadata": {"limit_source": "openrouter_free_tier_daily"}}}, "quota account 7200"),
    (429, {}, {"error": {"code": 429, "message": "Rate limit exceeded: free-models-per-min. ", "metadata": {"headers": {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str((EPOCH + 31) * 1000)}}}}, "rate_limit account 31"),
    (429, {}, {"error": {"code": 429, "message": "Provider returned error", "metadata": {"raw": "deepseek/deepseek-v4:free is temporarily rate-limited upstream. Please retry shortly, or add your own key", "provider_name": "Chutes"}}, "user_id": "u"}, OVERLOADED),
    (429, {"retry-after": "3"}, {"error": {"code": 429, "message": "Too many", "metadata": {"limit_source": "upstream_provider_shared_pool", "provider_code": 429}}}, "overloaded server 3"),
    (429, {}, {"error": {"code": 429, "message": "Rate limit exceeded: limit_rpm/google/gemini-3.1-pro/1f0c. High demand for google/gemini-3.1-pro on OpenRouter - limited to 1 requests per minute. Please retry shortly."}}, "rate_limit account+model -"),
    (429, {}, {"error": {"code": 429, "message": "Rate limit exceeded: limit_rpd/google/gemini-3.1-pro/1f0c. "}}, "quota account+model 7200"),
    (402, {}, {"error": {"code": 402, "message": "Insufficient credits. This account never purchased credits. Make sure your key is on the correct account or org, and if so, purchase more at https://openrouter.ai/settings/credits"}}, "quota account -"),
    (403, {}, {"error": {"code": 403, "message": "Key limit exceeded (total limit). Manage it using https://openrouter.ai/settings/keys"}}, "quota account -"),
    (402, {"retry-after": "5"}, {"error": {"code": 402, "message": "x", "metadata": {"limit_source": "openrouter_in_flight_budget"}}}, "rate_limit account 5"),
    (401, {}, {"error": {"code": 401, "message": "No auth credentials found"}}, "auth_invalid account -"),
    (401, {}, {"error": {"code": 401, "message": "User not found."}}, "auth_invalid account -"),
    (403, {}, {"error": {"code": 403, "message": 'openai/gpt-5 requires moderation on OpenInference. Your input was flagged for "violence".', "metadata": {"reasons": ["violence"], "flagged_input": "rate limit exceeded"}}}, REQUEST),
    (404, {}, {"error": {"code": 404, "message": "No allowed providers are available for the selected model."}}, REQUEST),
    (408, {}, {"error": {"code": 408, "message": "Request timed out"}}, REQUEST),
    (502, {}, {"error": {"code": 502, "message": "Provider returned error", "metadata": {"provider_name": "x", "raw": "rate limit"}}}, SERVER),
    (503, {}, {"error": {"code": 503, "message": "No instances available"}}, OVERLOADED),
    (200, {}, ": OPENROUTER PROCESSING\n\n" + sse((None, {"id": "gen-1", "choices": [{"delta": {"content": ""}, "finish_reason": "error", "error": {"code": 502, "message": "Upstream error"}}]})), SERVER),
    (200, {}, ": OPENROUTER PROCESSING\n\n" + sse((None, {"error": {"code": "server_error", "message": "Provider disconnected unexpectedly"}, "choices": [{"delta": {"content": ""}, "finish_reason": "error"}]})), SERVER),
    (200, {}, ": OPENROUTER PROCESSING\n\n" + sse((None, {"choices": [{"delta": {"content": "Hi"}}]})), "ok none -"),
]

GROQ = [
    (429, {"retry-after": "87", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m26.4s"}, error("Rate limit reached for model `qwen/qwen3-32b` in organization `org_x` service tier `on_demand` on requests per day (RPD): Limit 1000, Used 1000, Requested 1. Please try again in 1m26.4s.", "requests", "rate_limit_exceeded"), "quota account+model 87"),
    (429, {}, error("Rate limit reached for model `whisper-large-v3` in organization `org_x` service tier `on_demand` on seconds of audio per hour (ASPH): Limit 7200, Used 7161, Requested 152. Please try again in 56.5s.", "seconds", "rate_limit_exceeded"), "rate_limit account+model 56.5"),
    (429, {}, error("Rate limit reached for model `x` in organization `org_x` service tier `on_demand` on tokens per day (TPD): Limit 100000, Used 99990. Please try again in 6m 11.52s.", "tokens", "rate_limit_exceeded"), "quota account+model 371.52"),
    (429, {"retry-after": "2", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1.9s"}, error("Rate limit reached", "tokens", "rate_limit_exceeded"), "rate_limit account+model 2"),
    (413, {}, error("Request too large for model `x` in organization `org_x` service tier `on_demand` on tokens per minute (TPM): Limit 6000, Requested 9000, please reduce your message size and try again.", "tokens", "rate_limit_exceeded"), REQUEST),
    (498, {}, error("Flex tier capacity exceeded", "flex", "capacity_exceeded"), OVERLOADED),
    (400, {}, error("Organization has been restricted. Please reach out to support if you believe this was in error.", "invalid_request_error", "organization_restricted"), "forbidden_account account -"),
    (403, {}, error("The model `x` is blocked at the organization level.", "permissions_error", "model_permission_blocked_org"), "forbidden_account account+model -"),
    (403, {}, error("Access denied. Please check your network settings."), SERVER),
    (400, {}, error("The model `x` has been decommissioned and is no longer supported.", "invalid_request_error", "model_decommissioned"), REQUEST),
    (400, {}, error("Failed to call a function.", "invalid_request_error", "tool_use_failed", failed_generation="rate limit exceeded, please wait 3 hours"), REQUEST),
    (503, {}, error("Service unavailable", "internal_server_error", "service_unavailable"), OVERLOADED),
]

MISTRAL = [
    (429, {"retry-after": "12"}, flat("Service tier capacity exceeded for this model.", object="error", type="service_tier_capacity_exceeded", param=None, code="3505"), "rate_limit account+model 12"),
    (503, {"retry-after": "12"}, flat("x", object="error", type="service_tier_capacity_exceeded", code=3505), "rate_limit account+model 12"),
    (429, {}, flat("Service tier capacity exceeded for this model.", object="error", type="invalid_request_error", param=None, code=None), "rate_limit account+model -"),
    (429, {}, flat("Rate limit exceeded", type="rate_limit_error", code="1300", raw_status_code=429), "rate_limit account -"),
    (404, {}, flat("x", type="invalid_request_error", param="model", code="unknown_model"), REQUEST),
    (429, {}, flat("Requests rate limit exceeded"), "rate_limit account -"),
    (429, {}, flat("Rate limit exceeded", object="error", type="rate_limited", param=None, code="1300"), "rate_limit account -"),
    (429, {"x-ratelimitbysize-remaining-minute": "0", "ratelimitbysize-reset": "24"}, flat("Requests rate limit exceeded"), "rate_limit account 24"),
    (429, {"x-ratelimitbysize-remaining-month": "0", "ratelimitbysize-reset": "24"}, flat("Requests rate limit exceeded"), "quota account -"),
    (429, {"x-ratelimit-limit-tokens-month": "0"}, flat("Rate limit exceeded", type="rate_limited", code="1300"), "forbidden_account account -"),
    (403, {}, flat("This model is not available in your tier", type="tier_not_allowed", code="1910"), "forbidden_account account+model -"),
    (401, {}, flat("Unauthorized", request_id="x"), "auth_invalid account -"),
    (401, {}, {"detail": "Unauthorized"}, "auth_invalid account -"),
    (400, {}, flat("Invalid model: mistral-huge", object="error", type="invalid_model", code="1500"), REQUEST),
    (422, {}, {"object": "error", "message": {"detail": [{"type": "missing", "loc": ["body", "model"], "msg": "Field required", "input": "you have no quota"}]}, "type": "invalid_request_error"}, REQUEST),
    (503, {}, flat("Service unavailable.", object="error", type="internal_server_error", code="1000"), OVERLOADED),
    (500, {}, flat("Service unavailable.", object="error", type="internal_server_error"), SERVER),
]

XAI = [
    (429, {}, {"code": "resource-exhausted", "error": "Too many requests for team 00000000-0000-4000-8000-000000000000 and model grok-4.5. Your team's rate limit is - Requests per Minute (actual/limit): 61/60."}, "rate_limit account+model -"),
    (429, {"retry-after": "40"}, {"code": "Some resource has been exhausted", "error": "Too many requests for team 00000000-0000-4000-8000-000000000000 and model grok-code-fast-2. Tokens per Minute (actual/limit): 2000001/2000000"}, "rate_limit account+model 40"),
    (403, {}, {"code": "permission-denied", "error": "Your newly created team doesn't have any credits or licenses yet. You can purchase those on https://console.x.ai/team/x."}, "quota account -"),
    (429, {}, {"code": "resource-exhausted", "error": "Your team x has either used all available credits or reached its monthly spending limit. To continue making API requests, please purchase more credits or raise your spending limit."}, "quota account -"),
    (403, {}, {"code": "permission-denied", "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_CSAM"}, REQUEST),
    (400, {}, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xai-***0000. You can obtain an API key from https://console.x.ai."}, "auth_invalid account -"),
    (401, {}, {"code": "unauthenticated:bad-credentials", "error": "Invalid or expired credentials"}, "auth_invalid account -"),
    (404, {}, {"code": "Some requested entity was not found", "error": "The model grok-9 does not exist or your team x does not have access to it."}, REQUEST),
    (400, {}, {"code": "Client specified an invalid argument", "error": "This model's maximum prompt length is 131072 but the request contains 200000 tokens."}, REQUEST),
    (503, {}, {"code": "The service is currently unavailable", "error": "Service temporarily unavailable. The model is at capacity and currently cannot serve this request."}, OVERLOADED),
    (429, {}, {"code": "The service is currently unavailable", "error": "The model is at capacity"}, OVERLOADED),
]

DEEPSEEK = [
    (402, {}, error("Insufficient Balance", "unknown_error", "invalid_request_error"), "quota account -"),
    (401, {}, error("Authentication Fails, Your api key: ****0000 is invalid", "authentication_error", "invalid_request_error"), "auth_invalid account -"),
    (429, {}, error("Too many requests. Please wait and try again.", "rate_limit_error", "rate_limit_error"), "rate_limit account -"),
    (400, {}, error("Model Not Exist", "invalid_request_error", "invalid_request_error"), REQUEST),
    (422, {}, error("Failed to deserialize the JSON body into the target type", "invalid_request_error", "invalid_request_error"), REQUEST),
    (503, {}, error("Service is too busy. We advise users to temporarily switch to alternative LLM API service providers.", "service_unavailable_error", "service_unavailable_error"), OVERLOADED),
    (500, {}, error("Server Error", "api_error", None), SERVER),
]

TOGETHER = [
    (429, {"x-ratelimit-reset": "4"}, {"error": {"message": "Too many requests", "type": "rate_limit", "error_type": "dynamic_token_limited"}}, "rate_limit account+model 4"),
    (403, {}, error("`inputs` tokens + `max_new_tokens` must be <= 4097. Given: 5000", "invalid_request_error", None), REQUEST),
    (402, {}, {"id": "x", "error": {"message": "Credit limit exceeded, please navigate to https://api.together.ai/settings/billing to add credit.", "type": "credit_limit", "param": None, "code": None}}, "quota account -"),
    (429, {}, {"id": "x", "error": {"message": "Request was rejected due to request rate limiting. Your rate limits are 60 RPM (1 QPS) and 60000 TPM (1000 TPS).", "type": "credit_limit", "param": None, "code": None}}, "rate_limit account -"),
    (429, {}, error("You have been rate limited for model moonshotai/Kimi-K3.", "model_rate_limit", None), "rate_limit account+model -"),
    (429, {"x-ratelimit-reset": "11"}, error("Too many requests", "rate_limit", "rate_limit"), "rate_limit account 11"),
    (401, {}, error("Invalid API key provided.", "invalid_request_error", "invalid_api_key"), "auth_invalid account -"),
    (404, {}, error("Unable to access model x. Please visit https://api.together.ai/models", "invalid_request_error", "model_not_available"), REQUEST),
    (503, {}, error("The engine is currently overloaded, please try again later.", "server_error", None), OVERLOADED),
    (500, {}, error("Internal server error", "server_error", None), SERVER),
]

FIREWORKS = [
    (429, {}, {"error": "Too Many Requests", "message": "You have exceeded your usage limits. Please try again later or contact Fireworks to explore dedicated capacity."}, "rate_limit account -"),
    (412, {}, {"error": {"object": "error", "type": "invalid_request_error", "code": "PRECONDITION_FAILED", "message": "Account someone is suspended, possibly due to reaching the monthly spending limit or failure to pay past invoices."}}, "quota account -"),
    (429, {"retry-after": "2"}, {"error": {"object": "error", "type": "rate_limit_error", "code": "rate_limit_exceeded", "message": "Rate limit exceeded, please try again later"}}, "rate_limit account 2"),
    (429, {}, {"error": {"message": "deployment overloaded, please try again later", "type": "error", "code": "overloaded"}}, OVERLOADED),
    (404, {}, {"error": {"object": "error", "type": "invalid_request_error", "code": "NOT_FOUND", "message": "Model not found, inaccessible, and/or not deployed"}}, REQUEST),
    (401, {}, {"error": {"message": "The API key you provided is invalid.", "code": "UNAUTHORIZED"}}, "auth_invalid account -"),
    (412, {}, {"error": {"message": "Deployment is not ready", "code": "PRECONDITION_FAILED"}}, REQUEST),
    (503, {}, {"error": {"message": "service unavailable"}}, OVERLOADED),
]

COHERE = [
    (429, {}, flat("You are past the per minute request limit, please wait and try again later."), "rate_limit account -"),
    (400, {}, flat("too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 4292."), REQUEST),
    (429, {}, flat("You are using a Trial key, which is limited to 1000 API calls / month. You can continue to use the Trial key for free or upgrade to a Production key with higher rate limits at 'https://dashboard.cohere.com/api-keys'."), "quota account -"),
    (429, {}, flat("trial token rate limit exceeded, limit is 100000 tokens per minute"), "rate_limit account -"),
    (429, {"retry-after": "6"}, flat("Please wait and try again later"), "rate_limit account 6"),
    (402, {}, flat("Please add or update your payment method at https://dashboard.cohere.com/billing"), "quota account -"),
    (401, {}, flat("invalid api token"), "auth_invalid account -"),
    (498, {}, flat("invalid token"), "auth_invalid account -"),
    (404, {}, flat("model 'command-z' not found, make sure the correct model ID was used and that you have access to the model."), REQUEST),
    (400, {}, flat("invalid request: message must be at least 1 token long or tool results must be specified."), REQUEST),
    (503, {}, flat("upstream connect error"), OVERLOADED),
    (500, {}, flat("internal server error, this has been reported to our developers. id 429"), SERVER),
]

CEREBRAS = [
    (429, {"x-ratelimit-reset-tokens-minute": "12.5", "x-ratelimit-reset-tokens-day": "33011.5", "x-ratelimit-remaining-tokens-minute": "0"}, flat("Tokens per minute limit exceeded - too many tokens processed.", type="too_many_tokens_error", param="quota", code="token_quota_exceeded"), "rate_limit account+model 12.5"),
    (429, {"x-ratelimit-reset-tokens-minute": "12.5", "x-ratelimit-reset-tokens-day": "33011.5"}, flat("Tokens per day limit exceeded - too many tokens processed.", type="too_many_tokens_error", param="quota", code="token_quota_exceeded"), "quota account+model 33011.5"),
    (429, {}, flat("We're experiencing high traffic right now! Please try again soon.", type="too_many_requests_error", param="queue", code="queue_exceeded"), OVERLOADED),
    (403, {}, flat("Your free trial has ended. Please upgrade your plan."), "quota account -"),
    (404, {}, flat("Model qwen-4 does not exist or you do not have access to it.", type="not_found_error", param="model", code="model_not_found"), REQUEST),
    (500, {}, flat("Encountered a server error, please try again.", type="server_error", code=None), SERVER),
]

PERPLEXITY = [
    (429, {}, error("Request rate limit exceeded, please try again later.", "request_rate_limit_exceeded", 429), "rate_limit account -"),
    (401, {}, error("You exceeded your current quota, please check your plan and billing details.", "insufficient_quota", 401), "quota account -"),
    (401, {}, error("Invalid API key provided. You can obtain an API key from https://www.perplexity.ai/settings/api.", "invalid_api_key", 401), "auth_invalid account -"),
    (401, {}, "<html>\r\n<head><title>401 Authorization Required</title></head>\r\n<body><center>openresty</center></body></html>", "auth_invalid account -"),
    (400, {}, error("Invalid model 'sonar-x'.", "invalid_model", 400), REQUEST),
    (403, {}, "<!DOCTYPE html><title>Just a moment...</title>", SERVER),
    (502, {}, "", SERVER),
]

VERTEX = [
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "Quota exceeded for aiplatform.googleapis.com/generate_content_requests_per_minute_per_project_per_base_model with base model: gemini-3.1-pro. Please submit a quota increase request."), "rate_limit account+model -"),
    (429, {}, google(429, "RESOURCE_EXHAUSTED", "Resource exhausted. Please try again later."), "rate_limit account+model -"),
    (403, {}, google(403, "PERMISSION_DENIED", "Permission 'aiplatform.endpoints.predict' denied on resource"), "forbidden_account account -"),
]

BEDROCK = [
    (429, {"x-amzn-errortype": "ThrottlingException:http://internal.amazon.com/coral/com.amazon.bedrock/"}, flat("Too many requests, please wait before trying again."), "rate_limit account+model -"),
    (429, {}, {"__type": "ThrottlingException", "message": "Too many tokens per day, please wait before trying again."}, "quota account+model -"),
    (429, {"x-amzn-errortype": "ModelNotReadyException"}, flat("The model is not ready for inference."), OVERLOADED),
    (403, {}, flat("The security token included in the request is expired"), "auth_expired account -"),
    (403, {}, flat("The security token included in the request is invalid."), "auth_invalid account -"),
    (400, {}, flat("The provided model identifier is invalid."), REQUEST),
    (503, {}, flat("Bedrock is unable to process your request."), OVERLOADED),
]

UNKNOWN = [
    (401, {}, error("令牌已过期"), "auth_expired account -"),
    (401, {}, error("令牌无效或已过期"), "auth_invalid account -"),
    (403, {}, error("Your organization has run out of its monthly token budget."), "quota account -"),
    (403, {}, error("This model is only available on the Pro plan."), "forbidden_account account+model -"),
    (429, {}, error("Rate limit exceeded. Retry after: 30"), "rate_limit account 30"),
    (429, {"retry-after": "Fri, 20 Nov 2026 22:05:00 GMT"}, "slow down", "rate_limit account 300"),
    (429, {"retry-after": "9999999999999999999999999999999"}, "slow down", "rate_limit account -"),
    (429, {"retry-after": "-5"}, "slow down", "rate_limit account -"),
    (429, {"x-request-id": "quota429"}, "", "rate_limit none -"),
    (402, {}, error("You have no credits left"), "quota account -"),
    (401, {}, "Unauthorized", "auth_invalid account -"),
    (500, {}, error("quota service failed: rate limit lookup"), SERVER),
    (504, {}, "<html>504</html>", SERVER),
    (422, {}, {"detail": [{"msg": "value 53429 is not a valid quota", "input": "429"}]}, REQUEST),
]
# fmt: on

TABLES = {
    "openai": OPENAI,
    "anthropic": ANTHROPIC,
    "claude-code": CLAUDE_CODE,
    "codex": CODEX,
    "copilot": COPILOT,
    "gemini": GEMINI,
    "gemini-cli": GEMINI_CLI,
    "azure": AZURE,
    "openrouter": OPENROUTER,
    "groq": GROQ,
    "mistral": MISTRAL,
    "xai": XAI,
    "deepseek": DEEPSEEK,
    "together": TOGETHER,
    "fireworks": FIREWORKS,
    "cohere": COHERE,
    "cerebras": CEREBRAS,
    "perplexity": PERPLEXITY,
    "vertex": VERTEX,
    "bedrock": BEDROCK,
    "acme": UNKNOWN,
}
ROWS = [
    pytest.param(provider, *row, id=f"{provider}-{number}-{row[0]}")
    for provider, rows in TABLES.items()
    for number, row in enumerate(rows)
]


WRAPPERS = {
    "error": lambda inner: {"error": inner},
    "flat": lambda inner: inner,
    "detail": lambda inner: {"detail": inner},
    "detail.error": lambda inner: {"detail": {"error": inner}},
    "errors": lambda inner: {"success": False, "errors": [inner], "result": None},
    "list": lambda inner: [{"error": inner}],
    "error list": lambda inner: {"error": [inner]},
    "twice": lambda inner: {"error": {"code": 429, "error": inner}},
    "response": lambda inner: {"type": "x", "response": {"error": inner}},
    "data": lambda inner: {"data": {"error": inner}},
    "choice": lambda inner: {"choices": [{"error": inner}]},
    "text": lambda inner: json.dumps({"error": inner}),
    "text in error": lambda inner: {"error": json.dumps({"error": inner})},
    "text in message": lambda inner: {"error": {"code": 429, "message": json.dumps({"error": inner})}},
}  # fmt: skip
INNER = {
    "quota account -": {"message": "x", "code": "InsufficientQuota"},
    "rate_limit account+model 1.5": {
        "message": "Rate limit reached. Please try again in 1.5s.",
        "code": "rate-limit-exceeded",
    },
}


@pytest.mark.parametrize("expected", INNER)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_any_wrapper_and_spelling_of_a_code(wrapper: str, expected: str) -> None:
    line = recorded("openai", 429, {}, WRAPPERS[wrapper](INNER[expected]))
    assert brief(classify(line)) == expected


def recorded(provider: str, status: int, headers: dict[str, str], body: Any) -> dict[str, Any]:
    """Return a row in the form of a recording."""
    line: dict[str, Any] = {"provider": provider, "status": status, "headers": headers, "now": NOW}
    line["body"] = None
    if status == 101:
        line["ws"] = [json.dumps(frame) for frame in body]
    elif status == 200 and isinstance(body, str):
        line["sse"] = body
    else:
        line["body"] = body if isinstance(body, str) else json.dumps(body)
    return line


@pytest.mark.parametrize(("provider", "status", "headers", "body", "expected"), ROWS)
def test_unseen(
    provider: str, status: int, headers: dict[str, str], body: Any, expected: str
) -> None:
    outcome = classify(recorded(provider, status, headers, body))
    assert brief(outcome) == expected
    passed_through = provider in ("vertex", "bedrock")
    moves = outcome.cls not in ("ok", "request_error", "overloaded", "server_error")
    assert outcome.replayable == (moves and not passed_through)


@pytest.mark.parametrize(("provider", "status", "headers", "body", "expected"), ROWS)
def test_what_must_not_matter_does_not(
    provider: str, status: int, headers: dict[str, str], body: Any, expected: str
) -> None:
    got = {
        mutate.__name__: brief(classify(mutate(recorded(provider, status, headers, body))))
        for mutate in MUTATIONS
    }
    assert got == dict.fromkeys(got, expected)
