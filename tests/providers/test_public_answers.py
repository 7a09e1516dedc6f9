"""What vendors, gateways and networks in front of them answer, as quoted in public bug reports.

Facts and codes are those of the reports; sentences are shortened, names and keys are made up.
Beside each kind stand its siblings: other words, other vendors, other envelopes. What is no
limit must neither cool an account down nor disable it.
"""

# ruff: noqa: E501, RUF001 - a table reads better with a row in a line; Chinese punctuation

import json
from collections.abc import Callable
from typing import Any

import pytest

from account_pool.cli.classify import classify

NOW = "2026-09-20T12:00:00Z"
Q, QM = "quota account", "quota account+model"
R, RM, RN = "rate_limit account", "rate_limit account+model", "rate_limit none"
REQ, OL, S = "request_error none", "overloaded server", "server_error server"
F, FM = "forbidden_account account", "forbidden_account account+model"
AI, OK = "auth_invalid account", "ok none"


def E(message: str, type_: str | None = None, code: Any = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "code": code}}


def C(type_: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": type_, "message": message}, "request_id": "req_1"}


def cloudflare(status: int, code: int, name: str) -> dict[str, Any]:
    return {
        "title": f"Error {code}",
        "status": status,
        "error_code": code,
        "error_name": name,
        "cloudflare_error": True,
    }


def realtime(status: str, code: str, message: str) -> dict[str, Any]:
    error = {"type": code, "code": code, "message": message} if code else None
    details = {"type": status, "error": error}
    return {"type": "response.done", "response": {"status": status, "status_details": details}}


CHALLENGE = "<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"
BLOCKED = "<html><head><title>Web filter</title></head><body>Category: generative AI</body></html>"

# fmt: off
#: provider, status, body, what it means, headers
ROWS: list[tuple[str, int, Any, str] | tuple[str, int, Any, str, dict[str, str]]] = [
    # what stands in front of the API: about the address or the client
    *((name, 403, "error code: 1010", S) for name in ("groq", "together", "openai", "claude-code", "codex", "gateway")),
    *((name, 403, CHALLENGE, S) for name in ("anthropic", "gemini", "copilot", "openrouter", "deepseek", "zai", "xai", "azure")),
    *((name, 403, BLOCKED, S) for name in ("claude-code", "openai", "gemini", "copilot")),
    *((name, 429, "error code: 1015", S) for name in ("openai", "anthropic", "codex", "groq", "gateway")),
    ("gateway", 403, "error code: 1020\n", S),
    ("opencode-zen", 403, cloudflare(403, 1010, "browser_signature_banned"), S),
    ("gateway", 429, {**cloudflare(429, 1015, "rate_limited"), "retry_after": 30}, f"{S} 30"),
    ("gateway", 403, {"title": "Error 1010: Access denied", "status": 403, "error_code": 1010, "error_name": "browser_signature_banned"}, S),
    ("gateway", 403, {"error": {"message": "[x/y] [403]: " + json.dumps({"type": "https://developers.cloudflare.com/x", **cloudflare(403, 1010, "browser_signature_banned")})}}, S),
    ("gateway", 403, {"error": {"message": "Access denied (error_code: 1010)", "error_code": 1010, "error_name": "browser_signature_banned"}}, S),
    ("gateway", 403, {"error": {"message": "Access denied", "error_code": 1010}}, F),
    ("gateway", 403, "\ufeff<html><title>Access Denied</title></html>", S),
    # the vendors' codes of the same number mean something else
    ("minimax", 403, cloudflare(403, 1008, "ip_banned"), S),
    ("zai", 403, cloudflare(403, 1003, "direct_ip_access"), S),
    ("gateway", 403, "", S, {"cf-mitigated": "challenge"}),
    ("gateway", 429, "", S, {"x-vercel-mitigated": "deny"}),
    ("gateway", 429, "<html><title>429 Too Many Requests</title></html>", RN),
    ("openai", 524, "error code: 524", S),
    # codes around the sentence
    ("minimax", 500, C("api_error", "insufficient balance (1008)"), Q),
    ("zai", 429, C("rate_limit_error", "[1305][x][20260101]"), OL),
    ("minimax", 401, C("authentication_error", "login fail: the key belongs in the header (1004)"), AI),
    ("minimax", 400, C("bad_request_error", "invalid params, context window exceeds limit (2013)"), REQ),
    ("minimax", 500, C("api_error", "unknown error, 794 (1000)"), S),
    ("minimax", 500, C("api_error", "your current token plan not support model, M2.7-highspeed (2061)"), FM),
    ("minimax", 429, C("rate_limit_error", "usage limit exceeded, 5-hour usage limit reached, resets at 2026-09-20T15:00:00Z (2056)"), f"{Q} 10800"),
    ("minimax", 500, C("api_error", "rate limit exceeded (1002)"), R),
    ("minimax", 529, C("overloaded_error", "当前服务集群负载较高，请稍后重试 (2064)"), OL),
    ("zai", 400, C("invalid_request_error", "[1211][模型不存在][20260101]"), REQ),
    ("zai", 500, C("api_error", "[1234][网络错误，请稍后重试][20260101]"), S),
    ("zai", 429, C("rate_limit_error", "[1113][余额不足或无可用资源包,请充值。]"), Q),
    ("zai", 429, C("rate_limit_error", "[1302][x][20260101]"), R),
    ("zai", 429, C("rate_limit_error", "[1313][x]"), F),
    ("gateway", 400, E("the image is larger than the limit (4096)"), REQ),
    # the plan of the account, whatever the status
    ("gateway", 500, E("Your plan does not include this model"), FM),
    ("gateway", 503, E("Your subscription does not support this model"), FM),
    ("gateway", 500, E("The plan of the query is not supported"), S),
    # a quota whose end is named beside a code that stands for money
    ("gateway", 402, E("Free quota used (30 requests / 5h). Resets at 13:00 UTC.", "insufficient_quota", "free_quota_exceeded"), f"{Q} 3600"),
    ("gateway", 429, E("Daily quota exceeded. Try again in 2 hours.", "insufficient_quota"), f"{Q} 7200"),
    ("gateway", 429, E("You exceeded your current quota.", "insufficient_quota"), Q),
    ("openai", 429, E("You exceeded your current quota, please check your plan.", "insufficient_quota", "insufficient_quota"), Q, {"retry-after": "20"}),
    ("gateway", 402, {**E("已达到每日费用限制 ($60)", "insufficient_quota", "daily_cost_limit_exceeded"), "resetAt": "2026-09-20T16:00:00.000Z"}, f"{Q} 14400"),
    ("gateway", 402, E("已达到总费用限制 ($60)", "insufficient_quota", "total_cost_limit_exceeded"), Q),
    # where gateways put the moment: beside the error, in any case
    ("gateway", 429, {"error": "Daily cost limit exceeded", "message": "x", "resetAt": "2026-09-20T16:00:00Z"}, f"{Q} 14400"),
    ("gateway", 429, {"error": "rate_limit_exceeded", "retryAfter": "60s"}, f"{R} 60"),
    ("gateway", 429, {**E("Rate limit exceeded"), "retry_after_ms": 1500}, f"{R} 1.5"),
    ("gateway", 429, {"error": {"code": "model_cooldown", "message": "All credentials for model gpt-5 are cooling down via provider codex", "reset_seconds": 123, "reset_time": "2m3s"}}, f"{OL} 123"),
    ("gateway", 429, "All accounts exhausted. Last error: HTTP 429", OL),
    ("gateway", 503, E("No available accounts", "api_error"), OL),
    ("gateway", 429, E("All premium requests for this month have been used"), Q),
    ("gateway", 429, {"error": {"code": "model_cooldown", "message": "All credentials are cooling down (last error: " + json.dumps(E("x", code=429)) + ")", "reset_seconds": 60}}, f"{R} 60"),
    ("yandex", 429, {"error": {"grpcCode": 8, "message": "ai.textGenerationCompletionSessionsCount.count gauge quota limit exceed: allowed 1 requests"}}, R),
    # paying cures it
    ("vercel", 403, E("AI Gateway requires a valid credit card on file to service requests.", "customer_verification_required"), Q),
    ("deepinfra", 403, {"detail": {"error": "inference prohibited, please enter a payment method in the dashboard"}}, Q),
    ("gateway", 400, E("This model requires a credit card number field in the schema"), REQ),
    # blocked until, as a 400
    ("anthropic", 400, C("invalid_request_error", "Usage blocked until 2026-10-01T00:00:00+00:00 due to user specified spend limits."), f"{Q} 907200"),
    ("anthropic", 400, C("invalid_request_error", "Access paused until 2026-10-01 00:00 UTC because of your organization's monthly budget."), f"{Q} 907200"),
    ("gateway", 400, E("Request blocked by content policy"), REQ),
    ("claude-code", 400, C("invalid_request_error", "Fast mode requires extra usage. Enable it to go on."), QM),
    ("claude-code", 400, C("invalid_request_error", "Fast mode is not a valid value of speed"), REQ),
    # the vendor limits itself
    ("claude-code", 429, C("rate_limit_error", "Server is temporarily limiting requests (not your usage limit) · Rate limited"), OL),
    ("gateway", 429, E("Too many requests per minute right now, not related to your plan limits"), OL),
    ("cloudflare", 429, {"errors": [{"message": "AiError: Capacity temporarily exceeded, please try again.", "code": 3040}], "success": False}, OL),
    ("cloudflare", 429, {"errors": [{"message": "AiError: you have used up your daily free allocation of 10,000 neurons", "code": 4006}], "success": False}, Q),
    # a client that is not served: no account is at fault
    ("gateway", 403, {"error": {"type": "client_validation_error", "message": "This endpoint only accepts requests from Claude Code CLI"}}, REQ),
    ("gateway", 403, "Your client is not authorized to use this API key", REQ),
    ("gateway", 403, {"error": "Client not allowed", "message": "Your client is not authorized to use this API key"}, REQ),
    ("gateway", 403, E("该 API Key 仅限 Claude Code 客户端使用"), REQ),
    ("gateway", 403, E("Your usage of Claude Code is limited: you have reached your weekly limit"), Q),
    ("gateway", 400, E("Request denied by upstream policy. This model is restricted to authorized applications.", code=1369), REQ),
    ("kimi-code", 403, E("Kimi For Coding is currently only available for Coding Agents such as x", "access_terminated_error"), REQ),
    ("anthropic", 403, {"error": {"type": "forbidden", "message": "Request not allowed"}}, REQ),
    # what was asked is refused, also as a 403; who asks is another thing
    ("openai", 403, E("Your request was rejected as a result of our safety system.", "image_generation_user_error", "moderation_blocked"), REQ),
    ("gateway", 403, E("Blocked by content filter"), REQ),
    ("gateway", 403, E('x/y requires moderation. Your input was flagged for "violence". No credits were charged.', code=403), REQ),
    ("gateway", 402, E("You have no credits left"), Q),
    ("gateway", 429, E("x", "invalid_request_error", "context_length_exceeded"), REQ),
    ("gateway", 429, E("Rate limit reached", "requests", "context_length_exceeded"), R),
    ("gateway", 403, E("输入内容违规，请修改后重试"), REQ),
    ("gateway", 403, E("账号已被封禁，因内容违规"), F),
    ("gateway", 403, E("Your account has been blocked by our safety team"), F),
    ("gateway", 403, E("Requests are blocked by your workspace's spend limit."), Q),
    ("gateway", 403, "Your request was blocked.", S),
    ("gateway", 403, "upstream returned HTTP 403: Your request was blocked.", S),
    ("openai", 403, E("Your request was blocked."), S),
    ("openrouter", 403, E("The request is prohibited due to a violation of provider Terms Of Service.", code=403), REQ),
    # no access to a model
    ("bedrock", 403, {"message": "You don't have access to the model with the specified model ID."}, FM),
    ("gateway", 401, E("key not allowed to access model. This key can only access models=['a']. Tried to access b"), FM),
    ("gateway", 403, E("Your team doesn’t have permission to use this model"), FM),
    ("cloudflare", 403, {"errors": [{"message": "AiError: The account is not allowed to access this model", "code": 5018}]}, FM),
    ("openai", 403, E("You are not allowed to generate embeddings from this model", "invalid_request_error"), FM),
    ("gateway", 403, E("You do not have access to this resource"), F),
    # a success that is none: vendors that say so in members of their own
    ("baidu", 200, {"error_code": 17, "error_msg": "Open api daily request limit reached"}, Q),
    ("baidu", 200, {"error_code": 18, "error_msg": "Open api qps request limit reached"}, R),
    ("baidu", 200, {"error_code": 19, "error_msg": "Open api total request limit reached"}, Q),
    ("baidu", 200, {"error_code": 110, "error_msg": "Access token invalid or no longer valid"}, AI),
    ("baidu", 200, {"error_code": 111, "error_msg": "Access token expired"}, "auth_expired account"),
    ("baidu", 200, {"error_code": 336100, "error_msg": "try again"}, S),
    # a code that looks like a status and is none
    ("iflow", 200, {"status": "449", "msg": "You exceeded your current rate limit", "body": None, "success": False}, R),
    ("iflow", 200, {"status": "434", "msg": "Invalid apiKey", "body": None, "success": False}, AI),
    ("iflow", 200, {"status": "439", "msg": "Your API Token has expired.", "success": False}, "auth_expired account"),
    ("gateway", 200, {"status": "429", "msg": "x", "success": False}, RN),
    ("tencent", 200, {"Response": {"Error": {"Code": "LimitExceeded", "Message": "请求限频"}, "RequestId": "r"}}, R),
    ("tencent", 200, {"Response": {"Error": {"Code": "FailedOperation.ResourcePackExhausted", "Message": "资源包已用尽"}}}, Q),
    ("tencent", 200, {"Response": {"Error": {"Code": "AuthFailure.SignatureFailure", "Message": "x"}, "RequestId": "r"}}, AI),
    ("iflytek", 200, {"header": {"code": 11202, "message": "AppIdQpsOverFlowError: qps limit"}}, R),
    ("gateway", 200, {"header": {"code": 0, "message": "Success"}, "payload": {"choices": {"text": [{"content": "x"}]}}}, OK),
    ("gateway", 200, {"Response": {"Choices": [{"Message": {"Content": "x"}}], "RequestId": "r"}}, OK),
    ("gateway", 200, {"error_code": 0, "result": "request limit exceeded"}, OK),
    # OpenAI's realtime API: a response is done, and has failed
    ("openai", 200, realtime("failed", "insufficient_quota", "You exceeded your current quota, please check your plan."), Q),
    ("openai", 200, realtime("failed", "rate_limit_exceeded", "Rate limit reached for gpt-realtime on tokens per min (TPM). Please try again in 6s."), f"{RM} 6"),
    ("openai", 200, realtime("failed", "server_error", "The server had an error."), S),
    ("openai", 200, realtime("cancelled", "", ""), OK),
    # rates and capacity in other words
    ("modelscope", 429, {"errors": {"message": "Request limit exceeded."}, "request_id": "r"}, R),
    ("novita", 429, {"code": 429, "reason": "SERVER_OVERLOAD", "message": "x"}, OL),
    ("nvidia", 429, E("ResourceExhausted: Worker local total request limit reached (33/32)", "Too Many Requests", 429), OL),
    # a wait named in the body or in the IETF's header is as good as one in Retry-After
    ("gateway", 429, {"error": {"message": "slow down", "retry_after": 12}}, f"{R} 12"),
    ("gateway", 429, "", f"{R} 30", {"ratelimit": '"burst";r=0;t=30, "day";r=40;t=9000', "ratelimit-policy": '"burst";q=10;w=60'}),
    ("gateway", 429, "", f"{Q} 9000", {"ratelimit": '"burst";r=0;t=30, "day";r=0;t=9000'}),
    ("gateway", 429, "", f"{R} 30", {"ratelimit": "limit=100, remaining=0, reset=30"}),
    ("gateway", 429, "", f"{R}", {"ratelimit": "limit=100, remaining=10, reset=30"}),
    ("gateway", 429, "", f"{R} 30", {"x-rate-limit-remaining": "0", "x-rate-limit-reset": "30"}),
    # a sentence in the place of a code is none; the name of an AWS exception is one
    ("gateway", 429, {"error": "Too Many Requests"}, RN),
    ("gateway", 429, {"error": json.dumps({"message": "Limit Exceeded"})}, RN),
    ("gateway", 400, {"__type": "com.amazon.coral.service#ThrottlingException", "message": "Too many requests, please wait before trying again."}, R),
    # credits for one model or feature: all else serves
    *((name, status, {"type": "error", "error": {"type": type_, "message": "Usage credits are required for this model.", **more}}, QM)
      for name in ("claude-code", "anthropic") for status, type_, more in (
          (429, "rate_limit_error", {}),
          (429, "rate_limit_error", {"details": {"error_code": "credits_required", "model": "claude-fable-5", "disabled_reason": "org_level_disabled_until"}}),
          (400, "invalid_request_error", {"details": {"error_code": "credits_required"}}))),
    ("claude-code", 429, {"type": "error", "error": {"type": "rate_limit_error", "message": "x", "details": {"error_code": "credits_required"}}}, QM),
    ("claude-code", 429, C("rate_limit_error", "Fable 5 requires usage credits."), QM),
    ("claude-code", 429, C("rate_limit_error", "This request would exceed your account's rate limit."), f"{QM} 3600", {"anthropic-ratelimit-unified-status": "allowed", "anthropic-ratelimit-unified-7d-status": "allowed", "anthropic-ratelimit-unified-7d-opus-status": "rejected", "anthropic-ratelimit-unified-7d-opus-reset": "1789909200"}),
    ("claude-code", 403, {"type": "error", "error": {"type": "permission_error", "message": "x", "details": {"error_code": "oauth_not_allowed_for_organization"}}}, F),
    ("gateway", 404, E("Model 'a/gpt-5.5-pro' requires available credits. Your account balance is too low."), QM),
    # what the plan does not have is no fault of the request, whatever the status
    ("gateway", 404, E("Model 'gpt-5' is not available on the Free Tier. Upgrade or pick a free model."), FM),
    ("gateway", 404, E("The model gpt-5-pro is not available on your current plan.", "not_found_error"), FM),
    ("gateway", 404, E("Model is not enabled for your organization."), FM),
    ("gateway", 400, E("This model requires a paid plan. Please upgrade.", "invalid_request_error"), FM),
    ("gateway", 400, E("User is not subscribed to required model plan"), FM),
    ("claude-code", 400, C("invalid_request_error", "Claude Opus is not available with the Claude Pro plan."), FM),
    ("gateway", 400, E("The model exceeded the maximum budget of steps"), REQ),
    ("gateway", 400, E("the user wrote: Opus is not available with the Pro plan"), REQ),
    ("gateway", 400, E("The model requires the `plan` field"), REQ),
    # spent, in other words; in Traditional Chinese
    ("gateway", 429, "You have 0 weighted tokens left", Q),
    ("gateway", 429, E("Free limit reached on model acme/foo, try again in 3h"), f"{QM} 10800"),
    ("gateway", 200, E("Free limit reached on model acme/foo, try again in 3h"), f"{QM} 10800"),
    ("gemini-cli", 200, E("You have exhausted your capacity on this model. Your quota will reset after 3s."), f"{RM} 3"),
    ("gateway", 429, E("Rate limit exceeded. Feel free to request a higher limit"), R),
    ("new-api", 403, E("使用者額度不足,剩餘額度:0", "new_api_error"), Q),
    ("gateway", 403, E("預扣費額度失敗, 使用者剩餘額度: 0.01, 需要預扣費額度: 0.05"), Q),
    ("gateway", 429, E("請求過於頻繁,請 30 秒後再試"), f"{R} 30"),
    ("gateway", 200, E("您已達到請求數限制:1分鐘內最多請求60次"), R),
    # a limit of the address: one account after another would be on cooldown for it
    ("gateway", 429, E("Rate limit exceeded for IP 203.0.113.9", "rate_limit_error"), RN),
    ("gateway", 429, {"error": "We had to rate limit your IP (203.0.113.9). Create an account"}, RN),
    ("gateway", 429, E("IP rate limit exceeded", code="ip_rate_limit_exceeded"), RN),
    # rates and capacity that code and status call otherwise
    ("gateway", 429, E("You've made too many requests to this model within a short time window.", code="quota_exceeded"), RM),
    ("gateway", 400, E("Request rate increased too quickly.", "limit_burst_rate", "limit_burst_rate"), R),
    ("kimi-code", 429, E("We're receiving too many requests at the moment. Please wait a moment.", "rate_limit_reached_error"), OL),
    ("gateway", 429, E("We are receiving a large number of requests from your account"), RN),
    ("gateway", 400, {"message": "I am experiencing high traffic", "reason": "INSUFFICIENT_MODEL_CAPACITY"}, OL),
    ("gateway", 400, {"status": 400, "title": "Bad Request", "detail": "Function id '0': DEGRADED function cannot be invoked"}, S),
    # a request's own fault beside the type of a limit
    ("gateway", 429, E("maximum context length is 32768 tokens", "rate_limit_error", "context_length_exceeded"), REQ),
    # a key that is refused as a 400 or 403, and what only speaks of keys
    ("gemini", 400, [{"error": {"code": 400, "message": "Please pass a valid API key", "status": "INVALID_ARGUMENT"}}], AI),
    ("gateway", 400, E("Invalid API key provided", "invalid_request_error"), AI),
    ("gateway", 403, E("API key is disabled."), AI),
    ("gateway", 400, E("Invalid API key format in tool 'weather'"), REQ),
    ("gateway", 400, E("API key must be a string"), REQ),
    ("copilot", 429, "too many requests", f"{Q} 43200", {"x-ratelimit-exceeded": "copilot-chat:global-cogs-7-day-key:userID:pro"}),
    # failures inside a success: vLLM's and Mistral's objects, a status as a code, a list
    ("openai", 200, {"object": "error", "message": "x", "type": "InternalServerError", "code": 500}, S),
    ("gateway", 200, {"object": "error", "message": "maximum context length", "type": "BadRequestError", "code": 400}, REQ),
    ("gateway", 200, {"code": 401, "msg": "not logged in", "data": None}, AI),
    ("gateway", 200, {"status": "error", "message": "Rate limit exceeded"}, R),
    ("gateway", 200, [E("x", "rate_limit_error", 429)], R),
    ("gateway", 200, {"type": "error", "message": "overloaded"}, OL),
    ("openai", 200, {"object": "list", "data": [{"object": "error"}]}, OK),
    ("gateway", 200, {"object": "batch", "id": "b", "status": "failed", "errors": {"data": []}}, OK),
    ("gateway", 200, {"code": 200, "msg": "rate limit", "data": {"x": 1}}, OK),
    ("gateway", 200, {"code": 400, "message": "x", "choices": [{"message": {"content": "y"}}]}, OK),
    ("cohere", 429, {"message": "You are past the per month request limit for this model, please wait and try again later."}, QM),
    # OpenCode's own types, and what is behind it; a type in front of its sentence
    ("opencode-zen", 403, {"type": "error", "error": {"type": "FreeTierError", "message": "OpenCode's free tier can only be used from within OpenCode"}}, REQ),
    ("opencode-zen", 403, {"type": "error", "error": {"type": "DataPolicyError", "message": "policy"}}, FM),
    ("opencode-zen", 402, {"type": "error", "error": {"type": "error", "message": "Upstream request failed: Insufficient account funds"}}, OL),
    ("gateway", 429, E("FreeUsageLimitError: try later"), Q),
    ("gateway", 429, E("You are approaching your usage limit"), RN),
    # what belongs to the vendor or to the settings of the account
    ("gemini", 499, {"error": {"code": 499, "message": "The operation was cancelled.", "status": "CANCELLED"}}, S),
    ("gemini-cli", 429, {"error": {"code": 429, "message": "Individual quota reached.", "details": [{"quotaResetDelay": "1h27m36s"}]}}, f"{Q} 5256"),
    ("openrouter", 404, E("No endpoints found matching your data policy (Free model publication). Configure: https://openrouter.ai/settings/privacy", code=404), FM),
    ("openrouter", 404, E("No endpoints found for acme/foo.", code=404), REQ),
]
# fmt: on


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1]} {str(row[2])[:60]}")
def test_public_answers(row: Any) -> None:
    provider, status, body, meaning, *more = row
    line = {
        "provider": provider,
        "status": status,
        "headers": more[0] if more else {},
        "body": body if isinstance(body, str) else json.dumps(body),
        "now": NOW,
    }
    outcome = classify(line)
    assert f"{outcome.cls} {outcome.scope}" == " ".join(meaning.split()[:2])
    named = meaning.split()[2:]
    assert not named or outcome.cooldown_s == float(named[0])


@pytest.mark.parametrize(
    ("provider", "status", "message"),
    [
        ("cerebras", 404, "Model zai-glm-4.7 is archived and unavailable for the organization."),
        ("gateway", 404, "The model `x` does not exist."),
        ("gateway", 400, 'model "llama3" not found, try pulling it first'),
        ("gateway", 404, "Function '0000': Not found for account 'abc'"),
        ("gateway", 400, "model not found"),
    ],
)
def test_a_model_another_account_may_have(provider: str, status: int, message: str) -> None:
    body = json.dumps({"message": message, "code": status})
    outcome = classify({"provider": provider, "status": status, "body": body})
    assert (outcome.cls, outcome.missing_model) == ("request_error", True)


@pytest.mark.parametrize(
    ("message", "feature"),
    [
        ("Usage credits are required for long context requests.", "long-context"),
        ("Usage credits are required for fast mode.", "fast-mode"),
        ("Usage credits are required for this model.", None),
    ],
)
def test_what_needs_credits_is_named(message: str, feature: str | None) -> None:
    body = json.dumps(C("rate_limit_error", message))
    line = {"provider": "claude-code", "status": 429, "body": body, "model": "claude-fable-5"}
    outcome = classify(line)
    assert (outcome.cls, outcome.money, outcome.model) == ("quota", True, feature)


@pytest.mark.parametrize(
    ("provider", "status", "message", "shared"),
    [
        ("anthropic", 400, "You have reached your specified API usage limits.", True),
        ("anthropic", 400, "You have reached your specified workspace API usage limits.", False),
        ("anthropic", 400, "You have reached your monthly spending limit for this API key.", False),
        ("groq", 429, "Rate limit reached for model `x` in organization `org_1` on RPM.", True),
        ("openai", 429, "This API key has exceeded its usage limits.", False),
    ],
)
def test_whose_limit_it_is(provider: str, status: int, message: str, shared: bool) -> None:
    outcome = classify({"provider": provider, "status": status, "body": json.dumps(E(message))})
    assert outcome.is_limit
    assert outcome.shared is shared


@pytest.mark.parametrize(
    ("message", "closed"),
    [
        ("Sorry, your account was suspended. Contact Support", True),
        ("Your organization has been disabled", True),
        ("This service has been disabled in this account for violation of the terms", True),
        ("账号已被封禁", True),
        # For a time, about something else, or about money: not the account for good.
        ("Your account has been temporarily suspended", False),
        ("Public access is disabled. Please configure a private endpoint.", False),
        ("This feature is disabled for your account", False),
    ],
)
def test_only_a_sentence_that_says_so_closes_an_account(message: str, closed: bool) -> None:
    outcome = classify({"provider": "gateway", "status": 403, "body": json.dumps(E(message))})
    assert (outcome.cls, outcome.scope) == ("forbidden_account", "account")
    assert outcome.unknown is not closed


#: What gateways make of the answer of a vendor.
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "a text": lambda body: f"All accounts exhausted. Last error: HTTP 429: {json.dumps(body)}",
    "a sentence": lambda body: E(f"Error from provider(429): {json.dumps(body)}", "api_error"),
    "as Python prints it": lambda body: E(f"Error code: 429 - {body}"),
    "text in a member": lambda body: {"statusCode": 200, "body": json.dumps(body)},
    "an object in a member": lambda body: {"success": False, "data": body},
    "a detail": lambda body: {"detail": body},
    "a list": lambda body: {"errors": [body]},
    "lists": lambda body: [[body]],
}
WRAPPED = [
    ("openai", 429, E("x", "insufficient_quota", "insufficient_quota"), Q),
    ("anthropic", 400, C("invalid_request_error", "Your credit balance is too low"), Q),
    ("minimax", 500, C("api_error", "insufficient balance (1008)"), Q),
    ("zai", 429, {"error": {"code": "1302", "message": "x"}}, R),
    ("mistral", 429, {"object": "error", "message": "x", "code": "3505"}, RM),
    ("gateway", 429, {"detail": "Infrastructure is at maximum capacity, try again later"}, OL),
    ("gateway", 429, {"errors": [{"message": "Capacity temporarily exceeded", "code": 3}]}, OL),
    ("gateway", 429, {"ok": False, "error": "rate_limit_exceeded"}, R),
    ("gateway", 403, E("Your plan does not include this model"), FM),
    ("gateway", 400, E("maximum context length is 8192 tokens", "invalid_request_error"), REQ),
]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("row", WRAPPED, ids=lambda row: f"{row[0]} {row[1]}")
def test_what_a_gateway_wraps_means_the_same(row: Any, wrapper: str) -> None:
    provider, status, body, meaning = row
    wrapped = WRAPPERS[wrapper](body)
    text = wrapped if isinstance(wrapped, str) else json.dumps(wrapped)
    outcome = classify({"provider": provider, "status": status, "body": text, "now": NOW})
    assert f"{outcome.cls} {outcome.scope}" == meaning


def test_text_that_quotes_what_a_user_sent_says_nothing_of_the_account() -> None:
    text = 'Failed to read {"model": "x", "messages": [{"error": "insufficient_quota"}]}'
    outcome = classify({"provider": "gateway", "status": 422, "body": text})
    assert f"{outcome.cls} {outcome.scope}" == REQ
