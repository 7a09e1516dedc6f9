"""Every vendor: a limited first account, a good second, and a client that sees only success."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.harness import CLIENT, FIRST, SECOND, TIMEOUT_S, account, in_order, point_clients_at
from tests.scripts import cohere, openai
from tests.upstream.exchange import Reply
from tests.upstream.replies import by_credential, event, json_reply, stream_reply

WORDS = ["Good", " morning", " to", " you"]
TEXT = "".join(WORDS)
CHAT_STREAM = openai.chat_stream(WORDS)
CHAT_COMPLETE = openai.chat_complete(TEXT)
PROMPT = [{"role": "user", "content": "Hello?"}]


@dataclass(frozen=True)
class Vendor:
    """How one vendor is asked and how it refuses."""

    url: str
    refusal: Reply
    in_stream: Reply | None = None
    stream: Reply = CHAT_STREAM
    complete: Reply = CHAT_COMPLETE

    @property
    def host(self) -> str:
        return self.url.split("/")[2]

    @property
    def path(self) -> str:
        return "/" + self.url.split("/", 3)[3]

    def request(self, *, stream: bool) -> dict[str, Any]:
        return {
            "method": "POST",
            "url": self.url,
            "headers": {"authorization": f"Bearer {CLIENT}", "x-api-key": CLIENT},
            "json": {"model": "some/model-1", "stream": stream, "messages": PROMPT},
        }


def error(status: int, message: str, type_: str | None = None, code: Any = None) -> Reply:
    value = {"message": message, "type": type_, "param": None, "code": code}
    return json_reply({"error": value}, status)


SHARED_POOL_ENDS = {"code": 429, "message": "Rate limit exceeded: free-models-per-min."}

VENDORS = {
    "openrouter": Vendor(
        "https://openrouter.ai/api/v1/chat/completions",
        json_reply({"error": {"code": 402, "message": "Insufficient credits"}}, 402),
        stream_reply([b": OPENROUTER PROCESSING\n\n", event({"error": SHARED_POOL_ENDS})]),
    ),
    "groq": Vendor(
        "https://api.groq.com/openai/v1/chat/completions",
        error(429, "Rate limit reached for model `m` in organization `org_1` on tokens per day "
              "(TPD): Limit 1. Please try again in 6m 11.52s.", "tokens", "rate_limit_exceeded"),
    ),
    "mistral": Vendor(
        "https://api.mistral.ai/v1/chat/completions",
        json_reply({"object": "error", "message": "Rate limit exceeded", "type": "rate_limited",
                    "param": None, "code": "1300"}, 429),
    ),
    "xai": Vendor(
        "https://api.x.ai/v1/chat/completions",
        json_reply({"code": "permission-denied", "error": "Your team t has either used all "
                    "available credits or reached its monthly spending limit."}, 403),
    ),
    "deepseek": Vendor(
        "https://api.deepseek.com/chat/completions",
        error(402, "Insufficient Balance", "unknown_error", "invalid_request_error"),
        stream_reply([b": keep-alive\n\n", b"\n",
                      event({"error": {"message": "Rate Limit Reached"}})]),
    ),
    "together": Vendor(
        "https://api.together.xyz/v1/chat/completions",
        error(429, "You have been rate limited. Your rate limit is 60 queries per minute.",
              "credit_limit"),
    ),
    "fireworks": Vendor(
        "https://api.fireworks.ai/inference/v1/chat/completions",
        error(412, "Account a is suspended, possibly due to reaching the monthly spending limit.",
              None, "PRECONDITION_FAILED"),
    ),
    "cohere": Vendor(
        "https://api.cohere.com/v2/chat",
        cohere.limited(1000, "month"),
        stream=cohere.chat_stream(WORDS),
        complete=cohere.chat_complete(TEXT),
    ),
    "cerebras": Vendor(
        "https://api.cerebras.ai/v1/chat/completions",
        json_reply({"message": "Tokens per day limit exceeded", "type": "too_many_tokens_error",
                    "param": "quota", "code": "token_quota_exceeded"}, 429,
                   (("x-ratelimit-reset-tokens-day", "33011.5"),)),
    ),
    "perplexity": Vendor(
        "https://api.perplexity.ai/chat/completions",
        error(401, "You exceeded your current quota, please check your plan and billing details.",
              "insufficient_quota", 401),
    ),
}  # fmt: skip


def assert_failed_over(journal, status: int, hosts: tuple[str, str]) -> None:
    """Each attempt carried its account's credential, went to its host, and nothing else's."""
    assert journal.statuses == [(FIRST, status), (SECOND, 200)]
    assert tuple(request.host for request in journal.requests) == hosts
    for request in journal.requests:
        sent = f"{request.path} {request.headers} {request.body!r}"
        assert CLIENT not in sent
        assert sent.count("sk-fake-") == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "one piece"])
@pytest.mark.parametrize(("name", "vendor"), VENDORS.items(), ids=VENDORS)
async def test_the_client_sees_only_the_good_answer(provider, pool_proxy, name, vendor, stream):
    good = vendor.stream if stream else vendor.complete
    upstream = await provider(by_credential({FIRST: vendor.refusal, SECOND: good}))
    proxy = await pool_proxy(in_order("first", "second", provider=name), provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**vendor.request(stream=stream))
    assert answer.status_code == 200
    assert answer.content == good.body
    assert_failed_over(upstream.journal, vendor.refusal.status, (vendor.host, vendor.host))
    for request in upstream.journal.requests:
        assert request.path == vendor.path
        assert request.header("authorization") == f"Bearer {request.credential}"
        assert request.header("x-api-key") is None


#: Coding plans and gateways: how each says that a period or the purse is spent.
PLANS = {
    "zai": Vendor(
        "https://api.z.ai/api/coding/paas/v4/chat/completions",
        error(429, "已达到 5 小时的使用上限。您的限额将在下周一重置。", None, "1308"),
    ),
    "kimi-code": Vendor(
        "https://api.kimi.com/coding/v1/messages",
        error(403, "You've reached your weekly (7-day) usage limit.", "access_terminated_error"),
    ),
    "minimax": Vendor(
        "https://api.minimax.io/v1/chat/completions",
        json_reply({"choices": None, "base_resp": {"status_code": 1008, "status_msg": "x"}}),
    ),
    "dashscope": Vendor(
        "https://dashscope.aliyuncs.com/compatible-mode/v1/chat/completions",
        error(400, "Access denied, please make sure your account is in good standing.",
              "Arrearage", "Arrearage"),
    ),
    "opencode-zen": Vendor(
        "https://opencode.ai/zen/v1/chat/completions",
        error(401, "Insufficient balance. Manage your billing here: https://x", "CreditsError"),
    ),
    "ollama-cloud": Vendor(
        "https://ollama.com/v1/chat/completions",
        json_reply({"error": "you (a.long_name@x) have reached your session usage limit"}, 429),
    ),
    # A service nobody has heard of, of the user's own.
    "gateway": Vendor(
        "https://www.example.com/api/v1/chat/completions",
        json_reply({"code": 40203, "msg": "账户余额不足，请充值", "success": False}),  # noqa: RUF001
    ),
}  # fmt: skip
GATEWAYS = {"gateway": {"like": "new-api", "hosts": ["www.example.com"]}}


@pytest.mark.parametrize(("name", "vendor"), PLANS.items(), ids=PLANS)
async def test_a_spent_plan_moves_the_account_in_any_status(provider, pool_proxy, name, vendor):
    upstream = await provider(by_credential({FIRST: vendor.refusal, SECOND: vendor.complete}))
    accounts = in_order("first", "second", provider=name)
    proxy = await pool_proxy(accounts, provider=upstream, providers=GATEWAYS)
    async with proxy.client() as http:
        first = await http.request(**vendor.request(stream=False))
        # Another model does not ask the spent account again: the plan is that of all models.
        other = vendor.request(stream=False)
        other["json"]["model"] = "some/other-2"
        second = await http.request(**other)
    assert first.content == second.content == vendor.complete.body
    status = vendor.refusal.status
    assert upstream.journal.statuses == [(FIRST, status), (SECOND, 200), (SECOND, 200)]


IN_STREAM = {name: vendor for name, vendor in VENDORS.items() if vendor.in_stream}


@pytest.mark.parametrize(("name", "vendor"), IN_STREAM.items(), ids=IN_STREAM)
async def test_a_limit_after_comments_in_a_stream(provider, pool_proxy, name, vendor):
    upstream = await provider(by_credential({FIRST: vendor.in_stream, SECOND: vendor.stream}))
    proxy = await pool_proxy(in_order("first", "second", provider=name), provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**vendor.request(stream=True))
    assert answer.content == vendor.stream.body
    assert_failed_over(upstream.journal, 200, (vendor.host, vendor.host))


#: Those whose envelope is their own.
ENVELOPES = {name: VENDORS[name] for name in ("openrouter", "mistral", "xai", "cohere", "cerebras")}


@pytest.mark.parametrize(("name", "vendor"), ENVELOPES.items(), ids=ENVELOPES)
async def test_nobody_left_the_refusal_is_the_vendors_own(provider, pool_proxy, name, vendor):
    upstream = await provider(by_credential({FIRST: vendor.refusal, SECOND: vendor.refusal}))
    proxy = await pool_proxy(
        in_order("first", "second", provider=name), provider=upstream, options={"pool_max_wait": 0}
    )
    async with proxy.client() as http:
        answer = await http.request(**vendor.request(stream=True))
        at_once = await http.request(**vendor.request(stream=True))
    assert answer.status_code == at_once.status_code == vendor.refusal.status
    assert answer.json().keys() == json.loads(vendor.refusal.body).keys()
    assert at_once.json().keys() == answer.json().keys()
    assert len(upstream.journal.requests) == 2


# -- Azure: another host, another deployment

AZURE_LIMIT = json_reply(
    {
        "error": {
            "code": "429",
            "message": "Requests to the ChatCompletions_Create Operation under Azure OpenAI API "
            "version 2025-04-01-preview have exceeded token rate limit of your current S0 pricing "
            "tier. Please retry after 22 seconds.",
        }
    },
    429,
    (("retry-after", "22"),),
)
RESOURCES = ("first.openai.azure.com", "second.openai.azure.com")
AZURE = [
    account("first", "azure", priority=0, host=RESOURCES[0]),
    account("second", "azure", priority=1, host=RESOURCES[1], deployments={"gpt": "gpt eu"}),
]


@pytest.mark.parametrize(
    ("path", "paths", "models"),
    [
        (
            "/openai/deployments/gpt/chat/completions?api-version=2025-04-01-preview",
            ["gpt/chat", "gpt%20eu/chat"],
            ["gpt", "gpt"],
        ),
        ("/openai/v1/chat/completions", ["/v1/chat", "/v1/chat"], ["gpt", "gpt eu"]),
    ],
    ids=["deployment in the path", "model in the body"],
)
async def test_azure_goes_to_the_accounts_resource(provider, pool_proxy, path, paths, models):
    upstream = await provider(by_credential({FIRST: AZURE_LIMIT, SECOND: CHAT_STREAM}))
    proxy = await pool_proxy(AZURE, provider=upstream)
    async with proxy.client() as http:
        answer = await http.post(
            f"https://{RESOURCES[0]}{path}",
            headers={"api-key": CLIENT},
            json={"model": "gpt", "stream": True, "messages": PROMPT},
        )
    assert answer.content == CHAT_STREAM.body
    assert_failed_over(upstream.journal, 429, RESOURCES)
    for request, part, model in zip(upstream.journal.requests, paths, models, strict=True):
        assert part in request.path
        assert request.path.endswith(path.partition("/chat")[2])
        assert request.json()["model"] == model
        assert request.header("api-key") == request.credential
        assert request.header("authorization") is None


# -- the vendors' own SDKs


@pytest.fixture
async def through_pool(provider, pool_proxy, monkeypatch):
    """Start provider and proxy, and point the environment of every client to it."""

    async def start(name: str, *, stream: bool):
        vendor = VENDORS[name]
        good = vendor.stream if stream else vendor.complete
        upstream = await provider(by_credential({FIRST: vendor.refusal, SECOND: good}))
        proxy = await pool_proxy(in_order("first", "second", provider=name), provider=upstream)
        point_clients_at(proxy, monkeypatch)
        return upstream.journal

    return start


def groq_stream() -> str:
    from groq import Groq

    with Groq(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client:
        chunks = client.chat.completions.create(model="m", messages=PROMPT, stream=True)
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def groq_complete() -> str:
    from groq import Groq

    with Groq(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client:
        answer = client.chat.completions.create(model="m", messages=PROMPT)
        return answer.choices[0].message.content


def _mistral() -> Any:
    try:
        from mistralai.client import Mistral
    except ImportError:  # before 2.0
        from mistralai import Mistral
    return Mistral(api_key=CLIENT, timeout_ms=int(TIMEOUT_S * 1000))


def mistral_stream() -> str:
    with _mistral() as client, client.chat.stream(model="m", messages=PROMPT) as events:
        choices = [choice for item in events for choice in item.data.choices]
        return "".join(choice.delta.content or "" for choice in choices)


def mistral_complete() -> str:
    with _mistral() as client:
        answer = client.chat.complete(model="m", messages=PROMPT)
        return answer.choices[0].message.content


def cohere_stream() -> str:
    from cohere import ClientV2

    with ClientV2(api_key=CLIENT, timeout=TIMEOUT_S) as client:
        events = client.chat_stream(model="m", messages=PROMPT)
        deltas = [item for item in events if item.type == "content-delta"]
    return "".join(item.delta.message.content.text for item in deltas)


def cohere_complete() -> str:
    from cohere import ClientV2

    with ClientV2(api_key=CLIENT, timeout=TIMEOUT_S) as client:
        answer = client.chat(model="m", messages=PROMPT)
    return answer.message.content[0].text


@pytest.mark.parametrize(
    ("name", "ask", "stream"),
    [
        ("groq", groq_stream, True),
        ("groq", groq_complete, False),
        ("mistral", mistral_stream, True),
        ("mistral", mistral_complete, False),
        ("cohere", cohere_stream, True),
        ("cohere", cohere_complete, False),
    ],
)
async def test_with_the_vendors_sdk(through_pool, name, ask, stream):
    pytest.importorskip({"mistral": "mistralai"}.get(name, name))
    journal = await through_pool(name, stream=stream)
    assert await asyncio.to_thread(ask) == TEXT
    host = VENDORS[name].host
    assert_failed_over(journal, VENDORS[name].refusal.status, (host, host))


# -- Node

#: Node's own https through CONNECT: no package, so nothing has to be installed.
NODE_CLIENT = """
const http = require('http'), https = require('https');
const [proxy, host, path, token] = process.argv.slice(1);
const { hostname, port } = new URL(proxy);
http.request({ host: hostname, port, method: 'CONNECT', path: `${host}:443` })
  .on('connect', (_answer, socket) => {
    const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' };
    https.request({ host, path, method: 'POST', headers, socket, agent: false }, (answer) => {
      process.stdout.write(`${answer.statusCode}\\n`);
      answer.pipe(process.stdout);
    }).end(JSON.stringify({ model: 'm', stream: true, messages: [] }));
  }).end();
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("name", ["groq", "openrouter"])
async def test_with_node(provider, pool_proxy, name):
    vendor = VENDORS[name]
    upstream = await provider(by_credential({FIRST: vendor.refusal, SECOND: vendor.stream}))
    proxy = await pool_proxy(in_order("first", "second", provider=name), provider=upstream)
    node = await asyncio.create_subprocess_exec(
        *("node", "-e", NODE_CLIENT, "--", proxy.url, vendor.host, vendor.path, CLIENT),
        stdout=asyncio.subprocess.PIPE,
        env={"NODE_EXTRA_CA_CERTS": str(proxy.trusted)},
    )
    printed, _ = await node.communicate()
    assert printed == b"200\n" + vendor.stream.body
    assert_failed_over(upstream.journal, vendor.refusal.status, (vendor.host, vendor.host))
