"""What refusals say: limits in every wording and status, and what only looks like one."""

# ruff: noqa: E501, RUF001 - a table reads better with a row in a line; Chinese has its own commas

import copy
import gc
import importlib
import pkgutil
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import account_pool
from account_pool.core.meaning import (
    ABOUT_ACCOUNT,
    LazyPattern,
    Meaning,
    is_about_model,
    meaning_of,
)
from account_pool.core.reset_hints import SAME_SECONDS, SECONDS, window_s

EVERY_STATUS = (400, *sorted(ABOUT_ACCOUNT))

PLAN = [
    "You've reached your weekly (7-day) usage limit. Your quota will reset when the current 7-day window ends. To continue now, purchase extra usage or upgrade your plan: https://www.kimi.com/membership/subscription?tab=quota",
    "You've reached your usage limit for this billing cycle. Your quota will be refreshed in the next cycle.",
    "You've reached your monthly usage limit for this billing cycle",
    "You’ve reached your 5-hour usage limit.",
    "Usage limit reached for 5 hour. Your limit will reset at 2026-09-09 05:38:28",
    "Usage limit reached for the past 7 days. Insufficient balance for extra usage. Resets at 2026-08-07T05:00:00Z",
    "Weekly/Monthly Limit Exhausted. Your limit will reset at 2026-07-14 07:49:08",
    "[1310][Weekly/Monthly Limit Exhausted. Your limit will reset at 2026-07-14 07:49:08]",
    "usage limit exceeded, 5-hour usage limit reached for Token Plan Starter (0/0 used), resets at 2026-05-15T15:00:00Z (2056)",
    "Token Plan usage limit reached: Upgrade your Token Plan or purchase Credits for more usage. (2056)",
    "you (some-user) have reached your session usage limit, please wait or upgrade to continue",
    "you (a.very.long-user-name_with.dots.and-dashes-0123456789-0123456789-0123456789@example.com) have reached your weekly usage limit, please wait or upgrade to continue",
    "You have exceeded the 5-hour usage quota. It will reset at 2026-08-03 23:59:59 +0800 CST.",
    "You have exceeded the monthly usage quota. It will reset at 2026-08-03 23:59:59 +0800 CST.",
    "hour allocated quota exceeded",
    "week allocated quota exceeded.",
    "Budget has been exceeded! Current cost: 26.075, Max budget: 0.25",
    "litellm.BudgetExceededError: Budget has been exceeded! Team=team-7 Current cost: 10.1, Max budget: 10.0",
    "user quota is not enough (request id: 202502281247138307582052662997)",
    "token quota is not enough, token remain quota: $0.250000, need quota: $5.500000",
    "Weekly usage limit reached. Resets in 19hr. To continue using this model now, enable usage from your available balance",
    "Your workspace has reached its monthly spending limit of $20. Manage your limits here: https://opencode.ai/workspace/wrk_x/billing",
    "You have reached your monthly spending limit of $5. Manage your limits here: https://opencode.ai/x",
    "You've hit your org's monthly spend limit",
    "You've hit your session limit · resets 4:20pm (UTC)",
    "You've hit your daily limit · resets midnight (UTC)",
    "You exceeded your current quota, please check your plan and billing details.",
    "Individual quota reached. Contact your administrator to enable overages. Resets in 3h25m10s.",
    "You have exhausted your monthly included credits limit.",
    'Free tier of the model has been exhausted. If you wish to continue access the model on a paid basis, please disable the "use free tier only" mode in the management console.',
    "Free usage exceeded, subscribe to Go",
    "Your account has exceeded its daily quota of requests.",
    "Error code: 429 - Daily usage quota exceeded",
    "Overage rejected.",
    "You have used all of the tokens included in your plan this month",
    "All premium requests for this month have been used",
    "Requests quota for plan Lite depleted",
    "API Key 已达到消费上限",
    "已达到 5 小时的使用上限。您的限额将在 2026-08-25 07:41:44 重置。",
    "您的账户已达到每周使用上限,请等待重置",
    "用户额度不足, 剩余额度: $-0.000002 (request id: 202608190933135792535838268d9d6rhgZmzsh)",
    "预扣费额度失败, 用户剩余额度: ¥0.230000, 需要预扣费额度: ¥0.290000",
    "该令牌额度已用尽",
    "本月套餐用量已用完",
    "今日免费额度已用尽，请明天再试",
]
MONEY = [
    "Insufficient balance. Manage your billing here: https://opencode.ai/workspace/wrk_x/billing",
    "insufficient balance",
    "Insufficient Balance",
    "Sorry, your account balance is insufficient",
    "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits.",
    "余额不足或无可用资源包,请充值。",
    "账户余额不足，请前往控制台充值",
    "您的账户已欠费，请及时充值",
    "Your account is in arrears, please recharge and try again",
    "Your account org-1 <ak-2> is suspended due to insufficient balance, please recharge your account or check your plan and billing details",
    "You have no credits left",
    "You don't have enough credits to run this request",
    "Your organization is out of usage credits.",
    "Account has an overdue balance",
    "Your GLM Coding Plan package has expired and is temporarily unavailable. You can resume using it after renewing the subscription on the official website. https://z.ai/subscribe",
    "You have run out of credits.",
    "您的套餐已过期，请续费",
]
RATE = [
    "High concurrency usage of this API, please reduce concurrency or contact customer service to increase limits",
    "High frequency usage of this API, please reduce frequency or contact customer service to increase limits",
    "Rate limit reached for requests",
    "concurrency limit reached for requests: zai-org/GLM-5.2-project limit reached",
    "concurrency allocated quota exceeded",
    "Your account org-x<ak-y> request reached organization max concurrency: 1, please try again after 1 seconds",
    "Your account org-x<ak-y> request reached organization TPM rate limit, current: 33, limit: 32",
    "Your account org-x request reached max RPM: 3, please try again later",
    "Requests rate limit exceeded, please try again later.",
    "您当前使用该API的并发数过高，请降低并发",
    "请求过于频繁，请稍后再试",
    "已触发限流,每分钟请求数超限",
]
INNOCENT = [
    # what a user wrote
    "Invalid value: 'You have reached your usage limit'. Supported values are: 'user'.",
    "messages.0: your credit balance is too low is what the user wrote",
    "messages[3].content: You have exceeded your current quota",
    "Invalid 'messages[0].content': string \"insufficient balance\" is not allowed",
    "Failed to parse tool call arguments: insufficient balance for transfer",
    "The text 'weekly limit reached' is not valid JSON",
    "Your prompt says you have reached your usage limit",
    "Unknown parameter: 'quota_limit'.",
    "Function get_balance: quota exceeded is not a valid enum value",
    "tool `check_quota` returned: balance insufficient",
    # policy
    "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_CSAM",
    "Your request was rejected as a result of our safety system. Your prompt may contain text that is not allowed by our usage policies.",
    "Output blocked by content filtering policy",
    "系统检测到输入或生成内容可能包含不安全或敏感内容，请您避免输入易产生敏感内容的提示语",
    # size of the request
    "This model's maximum context length is 128000 tokens. However, your messages resulted in 140000 tokens.",
    "prompt is too long: 210000 tokens > 200000 maximum",
    "Input tokens exceed the configured limit of 272000 tokens.",
    "max_tokens: 300000 > 64000, which is the maximum allowed number of output tokens",
    "Range of input length should be [1, 98304]",
    "Request too large for gpt-5 in organization org-x on tokens per min (TPM): Limit 30000, Requested 45000. The input or output tokens must be reduced",
    "The total number of tokens exceeds the limit of the model",
    "输入长度超过模型上限",
    "文件大小超过限制",
    "File size exceeds the limit of 20 MB",
    "File size exceeds your plan's limit of 20 MB",
    "You have exceeded the maximum number of tools (128)",
    "Invalid 'tools': array too long. Expected an array with maximum length 128, but got an array with length 130 instead.",
    "Too many images in request: limit is 20",
    "Number of images exceeds the limit",
    "File quota for this assistant exceeded: remove files",
    "image exceeds 5 MB maximum: 6000000 bytes > 5242880 bytes",
    "The thinking budget 50000 is invalid. Please choose a value between 512 and 24576.",
    "`max_tokens` must be greater than `thinking.budget_tokens`",
    "Thinking budget exceeded the maximum of 24576",
    # about neither
    "Missing required field: model",
    "The model `gpt-9` does not exist or you do not have access to it.",
    "Invalid model: quota-exceeded-1",
    "Model gpt-9 is not supported",
    "Kimi For Coding is currently only available for Coding Agents such as Kimi CLI, Claude Code, Roo Code, Kilo Code, etc.",
    "value 53429 is not a valid quota",
    "no such path, quota 429",
    "rate limit of 5 is no valid temperature",
]


@pytest.mark.parametrize("status", EVERY_STATUS)
@pytest.mark.parametrize("message", PLAN)
def test_a_spent_plan_is_one_in_every_status(message: str, status: int) -> None:
    assert meaning_of(status, message, frozenset()) is Meaning.PLAN


@pytest.mark.parametrize("status", EVERY_STATUS)
@pytest.mark.parametrize("message", MONEY)
def test_an_empty_purse_is_one_in_every_status(message: str, status: int) -> None:
    assert meaning_of(status, message, frozenset()) is Meaning.MONEY


@pytest.mark.parametrize("message", RATE)
def test_a_rate(message: str) -> None:
    assert meaning_of(429, message, frozenset()) is Meaning.RATE
    # Beside a 400 it would be a word about the request.
    assert meaning_of(400, message, frozenset()) is None


@pytest.mark.parametrize("status", [400, 404, 413, 422, 500])
@pytest.mark.parametrize("message", INNOCENT)
def test_what_is_about_the_request_is_no_limit(message: str, status: int) -> None:
    assert meaning_of(status, message, frozenset()) is None


@pytest.mark.parametrize("message", [m for m in INNOCENT if "Request too large" not in m])
def test_nor_where_the_status_is_about_the_account(message: str) -> None:
    if not any(
        word in message
        for word in (
            "wrote",
            "messages[3]",
            "rate limit",
            "tool call",
            "Your prompt says",
            "tool `",
        )
    ):
        assert meaning_of(403, message, frozenset()) is None


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ("Usage credits are required for long context requests.", Meaning.EXTRA),
        ("Extra usage is required for long context requests.", Meaning.EXTRA),
        ("Long context requests require extra usage to be enabled", Meaning.EXTRA),
        ("Your current subscription plan does not yet include access to GLM-5", Meaning.NOT_INCLUDED),
        ("this model requires a subscription, upgrade for access: https://ollama.com/upgrade", Meaning.NOT_INCLUDED),
        ("This model is not available in your plan", Meaning.NOT_INCLUDED),
        ("This model is only available on the Pro plan", Meaning.NOT_INCLUDED),
        ("claude-opus is only available to Max subscribers", Meaning.NOT_INCLUDED),
        ("Model gpt-5 is not enabled for your workspace", Meaning.NOT_INCLUDED),
        ("Kimi For Coding is only available for coding agents", None),
        ("Your organization has run out of its monthly token budget.", Meaning.PLAN),
        ("The token budget of this request exceeds the limit", None),
        ("当前套餐不支持该模型", Meaning.NOT_INCLUDED),
        ("The service may be temporarily overloaded, please try again later", Meaning.CAPACITY),
        ("当前分组上游负载已饱和，请稍后再试", Meaning.CAPACITY),
        ("该模型当前访问量过大，请您稍后再试", Meaning.CAPACITY),
        ("No deployments available for selected model, Try again in 30 seconds.", Meaning.CAPACITY),
        ("Server is temporarily limiting requests (not your usage limit)", Meaning.CAPACITY),
        ("Upstream capacity exhausted", Meaning.CAPACITY),
        ("The model is at full capacity right now", Meaning.CAPACITY),
        # Mistral, Groq: a tier's capacity is the account's
        ("Service tier capacity exceeded for this model.", None),
        ("OAuth token has expired", None),
        ("Your subscription token has expired, please log in again", None),
        ("Invalid API key", None),
        ("Your team does not have permission to perform this action", None),
    ],
)  # fmt: skip
def test_others(message: str, meaning: Meaning | None) -> None:
    assert meaning_of(429, message, frozenset()) is meaning


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ("You have exceeded your monthly quota.", Meaning.PLAN),
        ("Your account balance is insufficient", Meaning.MONEY),
        ("您的余额不足", Meaning.MONEY),
        ("quota service failed: rate limit lookup", None),
        ("Service quota exceeded upstream", None),
        ("Insufficient capacity", None),
    ],
)
def test_a_server_error_counts_where_it_speaks_to_the_owner(
    message: str, meaning: Meaning | None
) -> None:
    assert meaning_of(500, message, frozenset()) is meaning


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        *((code, Meaning.MONEY) for code in ("account_overdue_error", "arrearage", "credits_error", "insufficient_balance", "insufficient_credit_balance", "balance_insufficient", "service_overdue_error", "subscription_expired", "postpaid_bill_overdue")),
        *((code, Meaning.PLAN) for code in ("monthly_limit_error", "go_usage_limit_error", "free_usage_limit_error", "account_quota_exceeded", "usage_limit_reached", "daily_quota_exhausted", "budget_exceeded", "quota_limit_exceeded", "insufficient_user_quota", "spend_limit_exceeded")),
        *((code, None) for code in ("context_length_exceeded", "token_quota_exceeded", "rate_limit_exceeded", "max_tokens_exceeded", "file_quota_exceeded", "storage_limit_exceeded", "invalid_request_error", "model_not_found", "usage_policy_violation", "tool_limit_exceeded", "1308", "permission_error")),
    ],
)  # fmt: skip
def test_codes(code: str, meaning: Meaning | None) -> None:
    assert meaning_of(403, "", frozenset({code})) is meaning


@pytest.mark.parametrize(
    ("message", "model", "about"),
    [
        ("You've exceeded your rate limit for this model.", None, True),
        ("Rate limit of 50 per 86400s exceeded for UserByModelByDay.", None, True),
        ("You have exceeded your allocated quota for qwen3-coder-plus", "qwen3-coder-plus", True),
        ("Rate limit reached for gpt-5 in organization org-x", None, True),
        ("exceeded budget for model=claude-sonnet-4-6", None, True),
        ("该模型的额度已用尽", None, True),
        ("Usage limit reached for 5 hour.", None, False),
        ("Weekly limit reached, switch to another model", "gpt-5", False),
        ("You have reached your weekly usage limit", "gpt-5", False),
        ("all models are limited", None, False),
        ("Weekly usage limit reached. To go on with this model, upgrade.", "gpt-5", False),
        ("Usage limit reached. Requests are automatically queued.", "auto", False),
        ("Usage limit of auto reached", "auto", True),
        ("您的大模型服务额度已用尽", None, False),
    ],
)
def test_about_one_model(message: str, model: str | None, *, about: bool) -> None:
    assert is_about_model(message, model) is about


# -- what may differ


def _numbers(text: str, chance: random.Random) -> str:
    return "".join(str(chance.randint(1, 9)) if c.isdigit() else c for c in text)


MUTATIONS = {
    "upper": lambda text, _: text.upper(),
    "lower": lambda text, _: text.lower(),
    "numbers": _numbers,
    "blanks": lambda text, _: "  " + text.replace(" ", "  ") + "\n",
    "wrapped": lambda text, _: "litellm.APIError: OpenAIException - " + text,
    "error": lambda text, _: "Error: " + text,
    "longer": lambda text, _: (
        text + " For more information see the documentation of your console, or contact support."
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.parametrize("status", [400, 403, 429])
def test_wording_that_must_not_matter(name: str, status: int) -> None:
    chance = random.Random(3)
    for meaning, messages in ((Meaning.PLAN, PLAN), (Meaning.MONEY, MONEY)):
        for message in messages:
            changed = MUTATIONS[name](message, chance)
            assert meaning_of(status, changed, frozenset()) is meaning, changed


@given(
    st.sampled_from((*PLAN, *MONEY, *RATE, *INNOCENT)), st.text(max_size=300), st.integers(0, 599)
)
@settings(deadline=None)
def test_total(message: str, noise: str, status: int) -> None:
    meaning_of(status, noise + message * 50 + noise, frozenset({noise[:50].lower()}))
    is_about_model(noise + message + noise, noise)


def wording(message: str) -> str:
    return SECONDS.sub(SAME_SECONDS, message)


def test_a_sentence_is_read_once(monkeypatch) -> None:
    """Whatever asks about it: each pattern over prose costs as much as choosing an account."""
    read: list[str] = []
    seen = SimpleNamespace(search=read.append)
    monkeypatch.setattr("account_pool.core.meaning._EXTRA", seen)
    begins = "Rate limit reached for requests of sentences that are read once"
    for wait in ("7 s", "8.25s", "1m30s", "1574ms", "20 seconds", "2m0.5s"):
        message = wording(f"{begins}. Please try again in {wait}.")
        assert meaning_of(429, message, frozenset()) is Meaning.RATE
        assert not is_about_model(message, "gpt-5")
    ends = ("9 s", "9s", "1m9s", "9ms", "9 seconds", "2m9s")
    assert read == [f"{begins}.", *(f"Please try again in {end}." for end in ends)]


SAMPLES = sorted(
    {
        text
        for file in (Path(__file__).parents[1] / "data").glob("*.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
        for text in re.findall(r'"((?:[^"\\]|\\.){8,})"', line)
    }
)


def test_no_meaning_hangs_on_a_number_of_seconds() -> None:
    changed = [text for text in SAMPLES if wording(text) != text]
    assert len(changed) > 10
    for text in changed:
        for status in EVERY_STATUS:
            assert meaning_of(status, text, frozenset()) is meaning_of(
                status, wording(text), frozenset()
            )
        assert window_s(text) == window_s(wording(text))
        assert is_about_model(text, "gpt-5") == is_about_model(wording(text), "gpt-5")


@pytest.mark.parametrize("text", ["60 requests per 60 s", "limit reached for 5 hours", "5h limit"])
def test_a_window_is_no_wait(text: str) -> None:
    assert wording(text) == text


# -- patterns


def test_every_pattern_can_be_compiled() -> None:
    """A mistake in one would be noticed by the first response that it is for."""
    for module in pkgutil.walk_packages(account_pool.__path__, "account_pool."):
        if not re.search(r"\.(?:cli|demo|__main__|price_child)\b", module.name):
            importlib.import_module(module.name)
    patterns = [one for one in gc.get_objects() if isinstance(one, LazyPattern)]
    assert len(patterns) > 100
    for pattern in patterns:
        pattern.search(pattern.pattern[:0])


def test_a_pattern_has_no_more_than_it_says() -> None:
    pattern = LazyPattern("a|b")
    assert pattern.split("1a2b3") == ["1", "2", "3"]
    assert not hasattr(pattern, "groups")
    assert copy.copy(LazyPattern("c")).fullmatch("c")
