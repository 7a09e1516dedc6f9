"""What coding plans, gateways and services nobody knows say, in words no recording shows.

Written after the vocabulary of the vendors' pages, not after the rules: whoever bends a rule
to a recording sees it here.
"""

# ruff: noqa: E501, RUF001 - a table reads better with a row in a line; Chinese punctuation

import json
from typing import Any

import pytest

from account_pool.cli.classify import classify

NOW = "2026-09-20T12:00:00Z"
Q, QM = "quota account", "quota account+model"
R, RM, RN = "rate_limit account", "rate_limit account+model", "rate_limit none"
REQ, OL, S = "request_error none", "overloaded server", "server_error server"
F, FM = "forbidden_account account", "forbidden_account account+model"
AI = "auth_invalid account"


def E(message: str, type_: str | None = None, code: Any = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "code": code}}


# fmt: off
ROWS: list[tuple[str, int, Any, str]] = [
    # claude code
    ('claude-code',429,{"type":"error","error":{"type":"rate_limit_error","message":"You're out of extra usage · resets 3pm (Europe/Berlin)"}},Q),
    ('claude-code',429,{"type":"error","error":{"type":"rate_limit_error","message":"Extra usage is required for 1M context. Enable extra usage at claude.ai/settings/usage"}},QM),
    ('claude-code',429,{"type":"error","error":{"type":"rate_limit_error","message":"Long context beta requires usage credits."}},QM),
    ('claude-code',429,{"type":"error","error":{"type":"rate_limit_error","message":"You've reached your weekly limit for Opus. Resets Sep 25 at 9am (UTC)"}},QM),
    ('claude-code',403,{"type":"error","error":{"type":"permission_error","message":"Your organization has reached its monthly spend limit."}},Q),
    ('claude-code',400,{"type":"error","error":{"type":"invalid_request_error","message":"You have run out of usage credits. Purchase more at claude.ai"}},Q),
    ('claude-code',400,{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 1048577 tokens > 1000000 maximum"}},REQ),
    ('claude-code',402,{"type":"error","error":{"type":"billing_error","message":"Payment overdue"}},Q),
    ('anthropic',403,{"type":"error","error":{"type":"permission_error","message":"Your workspace has exceeded its usage limits for this month"}},Q),
    ('anthropic',400,{"type":"error","error":{"type":"invalid_request_error","message":"You have reached your organization's spend limit. You will regain access on 2026-10-01 at 00:00 UTC."}},Q),
    ('anthropic',400,{"type":"error","error":{"type":"invalid_request_error","message":"tools: Input tools exceed the limit of 128"}},REQ),
    ('anthropic',413,{"type":"error","error":{"type":"request_too_large","message":"Request exceeds the maximum allowed number of bytes"}},REQ),
    # gemini
    ('gemini',429,{"error":{"code":"quota_exceeded","message":"Daily quota exceeded for this model."}},QM),
    ('gemini-cli',429,[{"error":{"code":429,"message":"Quota exceeded for quota metric 'Gemini 3 Pro Requests' and limit 'Gemini 3 Pro Requests per minute per user per tier'","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"RATE_LIMIT_EXCEEDED","domain":"googleapis.com","metadata":{"quota_metric":"cloudcode-pa.googleapis.com/gemini_3_pro_requests","quota_limit":"Gemini3ProRequestsPerMinutePerUserPerTier"}}]}}],RM),
    ('gemini-cli',429,{"error":{"code":429,"message":"You have exhausted your capacity on this model. Your quota will reset after 12h3m.","status":"RESOURCE_EXHAUSTED"}},QM),
    ('gemini-cli',429,{"error":{"code":429,"message":"Quota exceeded for quota metric 'Code assist agent requests' and limit 'Requests per day per user' of service 'cloudcode-pa.googleapis.com'","status":"RESOURCE_EXHAUSTED"}},Q),
    ('gemini-cli',429,{"error":{"code":429,"message":"No capacity available for model gemini-3.1-pro-preview on the server","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"MODEL_CAPACITY_EXHAUSTED"}]}},OL),
    ('gemini-cli',403,{"error":{"code":403,"message":"Your current account is not eligible for Gemini Code Assist for individuals because it is not currently available in your location.","status":"PERMISSION_DENIED"}},F),
    ('mistral',429,{"object":"error","message":"Service tier capacity exceeded for this model.","type":"service_tier_capacity_exceeded","param":None,"code":"3505"},RM),
    ('mistral',401,{"message":"You have exceeded your monthly usage limit.","request_id":"x"},Q),
    # codex / openai
    ('codex',429,{"error":{"message":"You've hit your usage limit. Upgrade to Plus to continue using Codex, or try again at Sep 24th, 2026 4:36 PM.","type":None}},Q),
    ('openai',400,{"error":{"message":"Billing hard limit has been reached.","type":"invalid_request_error","code":None}},Q),
    ('openai',403,{"error":{"message":"Your organization has exceeded its monthly budget.","type":"insufficient_permissions","code":None}},Q),
    ('openai',429,{"error":{"message":"Request too large for gpt-5 (organization org-x) on tokens per min (TPM): Limit 30000, Requested 60000.","type":"tokens","code":"rate_limit_exceeded"}},REQ),
    ('openai',400,{"error":{"message":"Invalid 'input[2].content': string too long. Expected a string with maximum length 10485760","type":"invalid_request_error","code":"string_above_max_length"}},REQ),
    ('openai',400,{"error":{"message":"You can only attach up to 20 files; your file limit was exceeded.","type":"invalid_request_error"}},REQ),
    ('openai',400,{"error":{"message":"Your storage quota has been exceeded. Delete files.","type":"invalid_request_error"}},REQ),
    ('openai',400,{"error":{"message":"The requested quota 'daily limit reached' is not one of ['a','b'] - 'tools.0.function.parameters'","type":"invalid_request_error"}},REQ),
    ('copilot',402,{"error":{"message":"You have exceeded your premium request allowance.","code":"quota_exceeded"}},Q),
    ('copilot',403,"You have used all of your AI credits for this month.",Q),
    # zai
    ('zai',429,E("Usage limit reached for 1 week. Your limit will reset at 2026-09-26 05:38:28",None,"1308"),Q),
    ('zai',429,E("您的账户已达到每周使用上限。您的限额将在 2026-09-25 07:41:44 重置。",None,"1310"),Q),
    ('zai',429,E("您当前的套餐暂不支持使用 GLM-5 模型",None,"1311"),FM),
    ('zai',429,E("当前API请求过多,请稍后重试。",None,"1305"),OL),
    ('zai',429,E("您的账户当前使用模式不符合公平使用政策，您的请求频率已被限制",None,"1313"),F),
    ('zai',429,E("您当前使用该API的并发数过高,请降低并发,或联系客服增加限额。",None,"1302"),R),
    ('zai',429,{"code":1302,"msg":"您当前使用该API的并发数过高","success":False},R),
    ('zai',500,E("Network error, error id: 2026, please contact customer service",None,"1234"),S),
    ('zai',400,E("Prompt exceeds max length",None,"1261"),REQ),
    ('zai',401,E("令牌已过期或验证不正确",None,"401"),AI),
    ('zai',401,E("Authorization Failure",None,"1000"),AI),
    ('zai',429,E("Your account has been locked due to irregular activities",None,"1121"),F),
    ('zai',200,{"code":500,"msg":"404 NOT_FOUND","success":False},S),
    # moonshot
    ('moonshot',429,E("Your account d0abc<ak-x> request reached TPM rate limit, current: 1, limit: 1","rate_limit_reached_error"),R),
    ('moonshot',403,E("Your account org-x does not have sufficient balance to access this model","permission_denied_error"),Q),
    ('moonshot',429,E("您的账户余额不足，请充值","exceeded_current_quota_error"),Q),
    ('moonshot',400,E("Invalid request: tokenization failed","invalid_request_error"),REQ),
    ('moonshot',400,E("The request was rejected because it was considered high risk","content_filter"),REQ),
    ('moonshot',401,E("Invalid Authentication","invalid_authentication_error"),AI),
    # kimi
    ('kimi-code',403,{"type":"error","error":{"type":"permission_error","message":"You've reached your 5-hour usage limit. Your quota will reset in 2 hours."}},Q),
    ('kimi-code',402,E("Your Kimi membership is inactive. Please subscribe to continue.","access_terminated_error"),Q),
    ('kimi-code',403,E("Kimi For Coding is currently only available for Coding Agents such as Kimi CLI, Claude Code","permission_error"),REQ),
    ('kimi-code',404,E("Not found the model k9 or Permission denied","resource_not_found_error"),REQ),
    ('kimi-code',429,E("Too many concurrent requests, please retry later","rate_limit_reached_error"),R),
    # minimax
    ('minimax',200,{"base_resp":{"status_code":1041,"status_msg":"conn limit"}},R),
    ('minimax',200,{"base_resp":{"status_code":"1008","status_msg":"insufficient balance"}},Q),
    ('minimax',200,{"base_resp":{"status_code":2013,"status_msg":"invalid params, context window exceeds limit"}},REQ),
    ('minimax',200,{"base_resp":{"status_code":1000,"status_msg":"unknown error"}},S),
    ('minimax',402,{"type":"error","error":{"type":"insufficient_balance_error","message":"insufficient balance (1008)"}},Q),
    ('minimax',429,{"type":"error","error":{"type":"rate_limit_error","message":"rate limit exceeded(RPM) (1002)"}},R),
    ('minimax',401,{"type":"error","error":{"type":"authentication_error","message":"login fail: Please carry the API secret key in the 'X-Api-Key' field of the request header (1004)"}},AI),
    ('minimax',429,{"type":"error","error":{"type":"rate_limit_error","message":"weekly usage limit reached, resets at 2026-09-25T00:00:00+08:00 (2056)"}},Q),
    ('minimax',529,{"type":"error","error":{"type":"overloaded_error","message":"High traffic detected. Upgrade for highspeed model. (2064)"}},OL),
    # dashscope
    ('dashscope',429,{"code":"Throttling","message":"Requests throttling triggered."},RM),
    ('dashscope',429,{"code":"Throttling.BurstRate","message":"Request rate increased too quickly."},RM),
    ('dashscope',403,{"code":"AllocationQuota.FreeTierOnly","message":"The free tier of the model has been exhausted."},QM),
    ('dashscope',403,{"code":"AccessDenied","message":"Access denied."},F),
    ('dashscope',400,{"code":"InvalidParameter","message":"Range of max_tokens should be [1, 8192]"},REQ),
    ('dashscope',429,E("month allocated quota exceeded","Throttling.AllocationQuota"),Q),
    ('dashscope',401,E("Invalid API-key provided.","invalid_api_key","invalid_api_key"),AI),
    ('dashscope',429,E("Request rate increased too quickly. To ensure system stability, please adjust your client logic","limit_burst_rate","limit_burst_rate"),RM),
    ('dashscope',403,E("Your coding plan subscription has expired","coding_plan_subscription_expired","coding_plan_subscription_expired"),Q),
    # ark
    ('ark',429,E("You have exceeded the weekly usage quota. It will reset at 2026-09-28 00:00:00 +0800 CST.","TooManyRequests","AccountQuotaExceeded"),Q),
    ('ark',429,E("Your request has been rate limited","TooManyRequests","RateLimitExceeded.EndpointRPMExceeded"),RM),
    ('ark',429,E("x","TooManyRequests","APIAccountRpmRateLimitExceeded"),R),
    ('ark',429,E("The Flex inference quota exceeded","TooManyRequests","RequestBurstTooFast"),R),
    ('ark',403,E("Access denied to the resource","Forbidden","AccessDenied"),F),
    ('ark',404,E("The model or endpoint ep-x does not exist or you do not have access to it","NotFound","InvalidEndpointOrModel.NotFound"),REQ),
    ('ark',403,E("The request failed because your account has an overdue balance.","Forbidden","AccountOverdueError"),Q),
    ('ark',400,E("Total tokens of image and text exceed max message tokens","BadRequest","InvalidParameter"),REQ),
    # zen
    ('opencode-zen',401,{"type":"error","error":{"type":"CreditsError","message":"No payment method. Add one"}},Q),
    ('opencode-zen',401,{"type":"error","error":{"type":"ModelError","message":"Model glm-4.6 is disabled"}},REQ),
    ('opencode-zen',429,{"type":"error","error":{"type":"RateLimitError","message":"Rate limit exceeded. Please try again later."}},R),
    ('opencode-zen',429,{"type":"error","error":{"type":"SubscriptionError","message":"Subscription quota exceeded. Retry in 3hr 20min."}},Q),
    ('opencode-zen',500,{"type":"error","error":{"type":"error","message":"Internal server error"}},S),
    # ollama
    ('ollama-cloud',429,{"error":"you've reached your hourly usage limit, please upgrade to continue"},R),
    ('ollama-cloud',429,{"error":"you (J. Q. Public III) have reached your session usage limit"},Q),
    ('ollama-cloud',402,{"error":"payment required: your plan's extra usage balance is exhausted"},Q),
    ('ollama-cloud',404,{"error":"model 'foo' not found"},REQ),
    ('ollama-cloud',403,{"error":"upgrade your plan to access this model"},FM),
    # siliconflow
    ('siliconflow',429,{"code":20037,"message":"Request was rejected due to rate limiting. If you want more, please contact contact@siliconflow.cn. Details:TPM limit reached."},RM),
    ('siliconflow',403,{"code":30003,"message":"Model disabled."},REQ),
    ('siliconflow',401,{"code":20001,"message":"Api key is invalid"},AI),
    ('siliconflow',403,{"code":30011,"message":"Paid balance is not enough for this model"},Q),
    # wandb
    ('wandb',402,{"error":{"message":"You have exhausted your inference credits. Upgrade your plan","code":"402"}},Q),
    ('wandb',401,{"error":{"message":"Invalid Authentication","code":"401"}},AI),
    ('wandb',404,{"error":{"message":"Model not found","code":"404"}},REQ),
    ('wandb',429,{"error":{"code":"1302","message":"Concurrency limit reached for requests"}},R),
    # github
    ('github-models',429,{"error":{"code":"RateLimitReached","message":"Rate limit of 15 per 60s exceeded for UserByModelByMinute. Please wait 12 seconds before retrying.","details":"x"}},RM),
    ('github-models',401,{"error":{"code":"unauthorized","message":"Bad credentials","details":"Bad credentials"}},AI),
    ('github-models',403,{"error":{"code":"budget_limit","message":"Your GitHub Models budget for this month is exhausted"}},Q),
    ('github-models',429,"Too many requests. For more on scraping GitHub and how it may affect your rights, please review our Terms of Service",RN),
    # new-api
    ('new-api',403,E("[sk-abc***xyz] 该令牌额度已用尽 TokenStatusExhausted[sk-abc***xyz]","new_api_error"),Q),
    ('new-api',401,E("该令牌已过期 (request id: x)","new_api_error"),AI),
    ('new-api',403,E("用户已被封禁 (request id: x)","new_api_error"),F),
    ('new-api',500,E("get user quota failed","new_api_error","get_user_quota_failed"),S),
    ('new-api',503,E("No available channel for model gpt-5 under group default (distributor)","new_api_error","model_not_found"),OL),
    ('new-api',403,E("insufficient user quota, remaining: $0.00","new_api_error","insufficient_user_quota"),Q),
    ('new-api',429,E("You have reached the request limit: at most 10 requests in 1 minutes","new_api_error"),R),
    ('new-api',400,E("field messages is required","new_api_error","invalid_request"),REQ),
    ('new-api',403,E("Token quota exhausted","new_api_error","token_quota_exhausted"),Q),
    # litellm
    ('litellm',400,E("Budget has been exceeded! Key=abc Current cost: 1.2, Max budget: 1.0","budget_exceeded",None),Q),
    ('litellm',429,E("Max parallel request limit reached Hit limit for API Key: abc. Current limit: 1","None","429"),R),
    ('litellm',429,E("Key=abc over model rate limit. Rate limit type = model_per_key. Crossed TPM","None","429"),RM),
    ('litellm',401,E("Authentication Error - Expired Key. Key Expiry time 2026-01-01","expired_key","401"),AI),
    ('litellm',400,E("/chat/completions: Invalid model name passed in model=foo. Call `/v1/models` to view available models for your key.","None","400"),REQ),
    ('litellm',401,E("Team not allowed to access model. Team=x, Model=gpt-5. Allowed team models = []","team_model_access_denied","401"),FM),
    ('litellm',429,E("No deployments available for selected model. Try again in 5 seconds","None","429"),OL),
    ('litellm',500,E("litellm.InternalServerError: AnthropicException - Overloaded",None,"500"),S),
    ('litellm',400,E("litellm.ContentPolicyViolationError: Content violates policy",None,"400"),REQ),
    # unknown
    ('acme',402,{"message":"x"},Q),
    ('acme',403,{"message":"Forbidden"},F),
    ('acme',401,{"message":"nope"},AI),
    ('acme',429,"",RN),
    ('acme',400,{"error":{"code":"account_arrears","message":"bill"}},Q),
    ('acme',403,{"errors":[{"code":"PLAN_LIMIT_REACHED","message":"Plan limit reached"}]},Q),
    ('acme',403,{"status":"error","message":"Monthly token allowance used up"},Q),
    ('acme',400,{"message":"{\"error\":{\"code\":\"insufficient_balance\",\"message\":\"x\"}}"},Q),
    ('acme',403,{"error":{"message":"upstream returned 403: {\"code\":30001,\"message\":\"Sorry, your account balance is insufficient\"}"}},Q),
    ('acme',403,{"error":{"code":"E_BILLING","details":[{"type":"subscription_inactive"}],"message":"x"}},Q),
    ('acme',451,{"message":"Unavailable for legal reasons"},REQ),
    ('acme',404,{"message":"No such quota"},REQ),
    ('acme',422,{"detail":[{"loc":["body","budget"],"msg":"budget exceeded maximum value","type":"value_error"}]},REQ),
    ('acme',403,"<html>error code: 1020</html>",S),
    ('acme',400,{"message":"Your message mentions a weekly limit which is not allowed by our content policy"},REQ),
    ('acme',400,{"error":{"message":"Too many tools: limit is 64"}},REQ),
    ('acme',400,{"error":{"message":"Invalid schema for function 'get_balance': 'quota' is not of type 'object'"}},REQ),
    ('acme',400,{"error":{"message":"max_tokens (200000) exceeds your plan limit? No: it exceeds the model limit of 128000"}},REQ),
    ('acme',429,{"error":{"message":"The image is too large: 30 MB, the limit is 20 MB"}},REQ),
    ('acme',403,{"error":{"message":"本周额度已耗尽，将于下周一恢复"}},Q),
    ('acme',429,{"error":{"message":"请求频率超出限制，请 20 秒后重试"}},R),
    ('acme',403,{"error":{"message":"账号已欠费停机"}},Q),
    ('acme',400,{"error":{"message":"输入内容过长，超过模型最大长度"}},REQ),
    ('acme',400,{"error":{"message":"用户消息中包含“额度已用尽”"}},REQ),
    ('acme',503,{"error":{"message":"您的余额不足"}},Q),
    ('acme',403,{"errors":["Monthly quota exceeded"]},Q),
    ('acme',429,{"fault":{"faultstring":"Monthly quota exceeded","detail":{"errorcode":"policies.ratelimit.QuotaViolation"}}},Q),
    ('acme',403,{"Response":{"Error":{"Code":"LimitExceeded","Message":"Monthly quota exceeded"}}},Q),
    # a code about the request beside a 429: its sentence is, too, or says nothing
    ('acme',429,E("max_tokens is too large: 100000. This model supports at most 16384 completion tokens","invalid_request_error"),REQ),
    ('acme',429,E("Too many images in request. Limit is 10.","invalid_request_error"),REQ),
    ('acme',429,E("Please slow down","invalid_request_error"),RN),
    # Google's code for every quota: the sentence says which
    ('gemini',429,{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Your prepaid credits have run out."}},Q),
    ('gemini',429,{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Your project has reached its spend cap."}},Q),
    ('gemini',429,{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Your project exceeded its quota for this month."}},Q),
    # the code of a minute beside a sentence about money
    ('dashscope',429,E("Access denied, please make sure your account is in good standing.","insufficient_quota","insufficient_quota"),Q),
    ('dashscope',429,E("您的账户已欠费，请充值后重试","insufficient_quota","insufficient_quota"),Q),
    ('dashscope',429,{"code":"Throttling","message":"Your account has an overdue payment."},Q),
    # Codex without a code or window
    ('codex',429,{"detail":"You have used all of the tokens included in your plan this month"},Q),
]
# fmt: on


@pytest.mark.parametrize(("provider", "status", "body", "expected"), ROWS)
def test_unseen(provider: str, status: int, body: Any, expected: str) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    told = classify({"provider": provider, "status": status, "body": text, "now": NOW})
    assert f"{told.cls} {told.scope}" == expected
