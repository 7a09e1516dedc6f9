"""What the vendors with an OpenAI-compatible API share, as one table; then what is their own."""

# ruff: noqa: E501 - a table reads better with a row in a line

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.core.outcome import OutcomeClass, UpstreamResponse
from account_pool.core.sse import Verdict
from account_pool.core.steps import REMEDIES
from account_pool.providers.base import RequestHead, Route, body_model
from account_pool.providers.registry import BUILT_IN, HostIndex

#: Vendor: host, a pooled path, and one that belongs to the client's account.
VENDORS = {
    "openrouter": ("openrouter.ai", "/api/v1/chat/completions", "/api/v1/keys"),
    "groq": ("api.groq.com", "/openai/v1/chat/completions", "/openai/v1/fine_tunings"),
    "mistral": ("api.mistral.ai", "/v1/chat/completions", "/v1/agents/completions"),
    "xai": ("api.x.ai", "/v1/chat/completions", "/v1/collections"),
    "deepseek": ("api.deepseek.com", "/chat/completions", "/user/balance"),
    "together": ("api.together.xyz", "/v1/chat/completions", "/v1/fine-tunes"),
    "fireworks": ("api.fireworks.ai", "/inference/v1/chat/completions", "/v1/accounts/a/datasets"),
    "cohere": ("api.cohere.com", "/v2/chat", "/v1/datasets"),
    "cerebras": ("api.cerebras.ai", "/v1/chat/completions", "/v1/batches"),
    "perplexity": ("api.perplexity.ai", "/chat/completions", "/async/chat/completions"),
}
INDEX = HostIndex([BUILT_IN[name] for name in VENDORS])
NAMES = pytest.mark.parametrize("name", VENDORS)


def head(name: str, path: str, method: str = "POST", **fields: Any) -> RequestHead:
    return RequestHead(method=method, host=VENDORS[name][0], port=443, path=path, **fields)


def route(name: str, path: str, method: str = "POST", **fields: Any) -> Route:
    return BUILT_IN[name].route(head(name, path, method, **fields))


# -- what they share


@NAMES
def test_host_and_paths(name: str) -> None:
    host, pooled, own = VENDORS[name]
    assert [found.name for found in INDEX.find(host, 443)] == [name]
    assert INDEX.find(f"x.{host}", 443) == ()
    assert INDEX.find(f"{host}.evil.example", 443) == ()
    assert route(name, pooled) is Route.POOL
    assert route(name, own) is Route.PASS
    assert route(name, pooled, "GET") is Route.PASS
    assert route(name, pooled, "DELETE") is Route.PASS
    assert route(name, pooled + "/x") is Route.PASS
    assert route(name, "/other" + pooled) is Route.PASS
    assert route(name, pooled.rsplit("/", 1)[0] + "/models") is Route.PASS


@NAMES
def test_an_environment_variable_of_its_own(name: str) -> None:
    others = {env for other in BUILT_IN.values() if other.name != name for env in other.env}
    assert BUILT_IN[name].env
    assert others.isdisjoint(BUILT_IN[name].env)


@NAMES
def test_the_key_replaces_whatever_the_client_sent(name: str) -> None:
    provider = BUILT_IN[name]
    account = Account(provider=name, label="a")
    made = provider.swap(account, Credential(kind="key", secret=Secret("sk-fake-new")))
    assert made.headers == ((b"authorization", b"Bearer sk-fake-new"),)
    assert {b"authorization", b"x-api-key", b"api-key"} <= made.drop
    assert made.drop <= provider.credential_headers
    assert (made.origin, made.path, made.body) == (None, None, None)
    assert "sk-fake" not in repr(made)


@NAMES
def test_kind_and_model(name: str) -> None:
    request = head(name, VENDORS[name][1], body=b'{"model":"org/m-1:free","stream":true}')
    assert (BUILT_IN[name].kind, BUILT_IN[name].token_kind) == (None, "key")
    assert BUILT_IN[name].model is None
    assert body_model(request) == "org/m-1:free"
    assert body_model(head(name, VENDORS[name][1], body=b"--form")) is None


CHUNK = {"id": "x", "object": "chat.completion.chunk"}


@NAMES
@pytest.mark.parametrize(
    ("event", "value", "expected"),
    [
        (None, {**CHUNK, "choices": [{"delta": {"content": "Hi"}}]}, Verdict.COMMIT),
        (None, {**CHUNK, "choices": [{"delta": {}, "finish_reason": "stop"}]}, Verdict.COMMIT),
        (None, {**CHUNK, "choices": []}, Verdict.CONTINUE),
        (None, {"error": {"message": "x"}}, Verdict.REFUSE),
        (None, {"error": "x", "code": "y"}, Verdict.REFUSE),
        (
            None,
            {**CHUNK, "error": {"code": 429}, "choices": [{"finish_reason": "error"}]},
            Verdict.REFUSE,
        ),
        (
            None,
            {**CHUNK, "choices": [{"finish_reason": "error", "delta": {"content": ""}}]},
            Verdict.REFUSE,
        ),
        (None, {**CHUNK, "choices": [{"error": {"code": 502}}]}, Verdict.REFUSE),
        (
            None,
            {**CHUNK, "choices": [{"delta": {"content": '"error"'}, "error": None}]},
            Verdict.COMMIT,
        ),
        ("message_start", {"type": "message_start", "message": {}}, Verdict.CONTINUE),
        ("ping", {"type": "ping"}, Verdict.CONTINUE),
        ("message-start", {"type": "message-start", "delta": {}}, Verdict.CONTINUE),
        ("content-delta", {"type": "content-delta", "delta": {}}, Verdict.COMMIT),
        ("error", {"type": "error", "error": {"type": "overloaded_error"}}, Verdict.REFUSE),
        ("response.created", {"type": "response.created", "response": {}}, Verdict.CONTINUE),
        ("response.failed", {"type": "response.failed", "response": {}}, Verdict.REFUSE),
        (None, None, Verdict.COMMIT),  # [DONE]
    ],
)
def test_first_events(name: str, event: str | None, value: Any, expected: Verdict) -> None:
    assert BUILT_IN[name].judge(event, value) is expected


@NAMES
@pytest.mark.parametrize(
    ("status", "headers", "body", "cls"),
    [
        (200, {"x-ratelimit-over-limit": "yes", "x-ratelimit-remaining-tokens": "0"}, "{}", "ok"),
        (
            200,
            {},
            '{"choices":[{"message":{"content":"429 rate limit exceeded, no quota"}}]}',
            "ok",
        ),
        (
            400,
            {"retry-after": "9"},
            '{"message":"rate limit of 5 is no valid temperature"}',
            "request_error",
        ),
        (404, {}, '{"error":{"message":"no such path, quota 429"}}', "request_error"),
        (422, {}, '{"detail":[{"msg":"x","input":"insufficient balance"}]}', "request_error"),
        (403, {}, "<html>Cloudflare</html>", "server_error"),
        (
            500,
            {"x-ratelimit-remaining-requests": "0"},
            '{"message":"quota service failed"}',
            "server_error",
        ),
        (502, {}, "<html>502</html>", "server_error"),
        (503, {}, '{"message":"overloaded"}', "overloaded"),
        (529, {}, "", "overloaded"),
    ],
)
def test_what_is_no_limit_cools_nobody(
    name: str, status: int, headers: dict[str, str], body: str, cls: str
) -> None:
    payload = json.loads(body) if body.startswith("{") else None
    answer = UpstreamResponse(status=status, headers=headers, text=body, payload=payload)
    outcome = BUILT_IN[name].classify(answer)
    assert outcome.cls == cls
    assert outcome.scope in ("none", "server")


@NAMES
@given(
    wait=st.integers(1, 3000),
    header=st.sampled_from(["retry-after", "Retry-After"]),
    model=st.sampled_from(["a-1", "org/b:free"]),
)
def test_a_wait_in_retry_after_is_believed(name: str, wait: int, header: str, model: str) -> None:
    answer = UpstreamResponse(
        status=429, headers={header.lower(): str(wait)}, text="slow down", model=model
    )
    outcome = BUILT_IN[name].classify(answer)
    assert (outcome.cls, outcome.cooldown_s, outcome.replayable) == ("rate_limit", wait, True)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("groq", "Rate limit reached for model `m` in organization `o`. Please try again in {}."),
        ("openai", "Rate limit reached for m in organization o. Please try again in {}. Visit x"),
        ("azure", "Requests to the X have exceeded token rate limit. Please retry after {}."),
        ("mistral", "Rate limit exceeded, please wait {} before retrying"),
    ],
)
@given(
    hours=st.integers(0, 200),
    minutes=st.integers(0, 59),
    seconds=st.integers(1, 59),
    spelling=st.sampled_from(["{}h{}m{}s", "{}h {}m {}s", "{} hours {} minutes {} seconds"]),
)
def test_a_wait_in_the_sentence_is_believed_and_says_the_class(
    name: str, body: str, *, hours: int, minutes: int, seconds: int, spelling: str
) -> None:
    wait = hours * 3600 + minutes * 60 + seconds
    message = body.format(spelling.format(hours, minutes, seconds))
    outcome = classified(name, 429, {"error": {"message": message}})
    assert outcome.cooldown_s == wait
    assert outcome.cls == ("rate_limit" if wait <= 3600 else "quota")


ENVELOPES: dict[str, Any] = {
    "openrouter": {"error": {"code": 429, "message": "no account"}},
    "mistral": {
        "object": "error",
        "message": "no account",
        "type": "rate_limited",
        "param": None,
        "code": "1300",
    },
    "xai": {"code": "resource-exhausted", "error": "no account"},
    "cohere": {"message": "no account"},
    "cerebras": {
        "message": "no account",
        "type": "too_many_requests_error",
        "param": None,
        "code": "request_quota_exceeded",
    },
}
OPENAIS = {
    "error": {
        "message": "no account",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
}


@NAMES
@pytest.mark.parametrize("status", [400, 401, 403, 404, 426, 429, 500, 503])
def test_refusals_are_in_the_vendors_envelope(name: str, status: int) -> None:
    answer = BUILT_IN[name].refusal(status, "no account", None)
    body = json.loads(answer.body)
    expected = ENVELOPES.get(name, OPENAIS)
    assert body.keys() == expected.keys()
    assert status != 429 or body == expected
    assert "no account" in answer.body.decode()
    assert dict(answer.headers) == {"content-type": "application/json"}


@NAMES
def test_refusals_carry_the_wait(name: str) -> None:
    provider = BUILT_IN[name]
    headers = dict(provider.refusal(429, "no account", 90.2).headers)
    assert headers["retry-after"] == "91"
    assert headers["x-should-retry"] == "false"
    assert {n for n, _ in provider.delay(90.2)} <= provider.delay_headers
    text = '{"message": "Please try again in 6m 11.52s. Visit https://x/429"}'
    assert (
        provider.delay_body(text, 7, 0)
        == '{"message": "Please try again in 7 seconds. Visit https://x/429"}'
    )


@NAMES
def test_its_own_refusal_is_read_as_a_limit(name: str) -> None:
    """A pool behind a pool understands it."""
    answer = BUILT_IN[name].refusal(429, "no account", 30)
    outcome = BUILT_IN[name].classify(
        UpstreamResponse(
            status=429,
            headers=dict(answer.headers),
            text=answer.body.decode(),
            payload=json.loads(answer.body),
        )
    )
    assert (outcome.cls, outcome.cooldown_s) == ("rate_limit", 30)


# -- what is their own


@pytest.mark.parametrize(
    ("name", "method", "path", "expected"),
    [
        ("openrouter", "POST", "/api/v1/responses", Route.POOL),
        ("openrouter", "POST", "/api/v1/messages", Route.POOL),
        ("openrouter", "POST", "/api/v1/embeddings", Route.POOL),
        ("openrouter", "GET", "/api/v1/models", Route.POOL),
        ("openrouter", "GET", "/api/v1/models/deepseek/deepseek-v4:free/endpoints", Route.POOL),
        ("openrouter", "GET", "/api/v1/models/../credits", Route.PASS),
        ("openrouter", "GET", "/api/v1/models/%2e%2e/credits", Route.PASS),
        ("openrouter", "GET", "/api/v1/key", Route.PASS),
        ("openrouter", "GET", "/api/v1/credits", Route.PASS),
        ("openrouter", "GET", "/api/v1/generation", Route.PASS),
        ("openrouter", "POST", "/api/v1/auth/keys", Route.PASS),
        ("openrouter", "GET", "/docs", Route.PASS),
        ("groq", "POST", "/openai/v1/audio/transcriptions", Route.POOL),
        ("groq", "POST", "/openai/v1/responses", Route.POOL),
        ("groq", "GET", "/openai/v1/models/openai/gpt-oss-120b", Route.POOL),
        ("groq", "POST", "/openai/v1/files", Route.POOL),
        ("groq", "POST", "/openai/v1/fine_tunings", Route.PASS),
        ("mistral", "POST", "/v1/fim/completions", Route.POOL),
        ("mistral", "POST", "/v1/ocr", Route.POOL),
        ("mistral", "GET", "/v1/models", Route.POOL),
        ("mistral", "POST", "/v1/conversations", Route.PASS),
        ("mistral", "POST", "/v1/batch/jobs", Route.POOL),
        ("mistral", "GET", "/v1/libraries", Route.PASS),
        ("xai", "POST", "/v1/responses", Route.POOL),
        ("xai", "GET", "/v1/language-models/grok-4.5", Route.POOL),
        ("xai", "GET", "/v1/api-key", Route.PASS),
        ("xai", "GET", "/v1/responses/r", Route.POOL),
        ("xai", "GET", "/v1/chat/deferred-completion/x", Route.PASS),
        ("deepseek", "POST", "/v1/chat/completions", Route.POOL),
        ("deepseek", "POST", "/beta/completions", Route.POOL),
        ("deepseek", "POST", "/anthropic/v1/messages", Route.POOL),
        ("deepseek", "GET", "/models", Route.POOL),
        ("together", "POST", "/v1/images/generations", Route.POOL),
        ("together", "POST", "/v1/files/upload", Route.PASS),
        ("together", "GET", "/v1/endpoints", Route.PASS),
        ("fireworks", "POST", "/inference/v1/messages", Route.POOL),
        ("fireworks", "GET", "/inference/v1/models", Route.POOL),
        ("fireworks", "POST", "/v1/accounts/a/batchInferenceJobs", Route.PASS),
        ("cohere", "POST", "/v1/chat", Route.POOL),
        ("cohere", "POST", "/v2/embed", Route.POOL),
        ("cohere", "POST", "/v2/rerank", Route.POOL),
        ("cohere", "POST", "/compatibility/v1/chat/completions", Route.POOL),
        ("cohere", "GET", "/v1/models", Route.POOL),
        ("cohere", "POST", "/v1/embed-jobs", Route.PASS),
        ("cohere", "POST", "/v1/check-api-key", Route.PASS),
        ("cohere", "GET", "/v1/finetuning/finetuned-models", Route.PASS),
        ("cerebras", "GET", "/v1/models", Route.POOL),
        ("cerebras", "POST", "/v1/files", Route.PASS),
        ("perplexity", "POST", "/search", Route.POOL),
        ("perplexity", "GET", "/async/chat/completions/x", Route.PASS),
    ],
)
def test_paths(name: str, method: str, path: str, expected: Route) -> None:
    assert route(name, path, method) is expected


def test_both_hosts_of_together_and_cohere() -> None:
    for host, name in (("api.together.ai", "together"), ("api.cohere.ai", "cohere")):
        assert [found.name for found in INDEX.find(host, 443)] == [name]


def classified(name: str, status: int, body: Any, headers: dict[str, str] | None = None) -> Any:
    return BUILT_IN[name].classify(
        UpstreamResponse(
            status=status,
            headers=headers or {},
            payload=body,
            text=json.dumps(body),
            wall_now=1_800_000_000,
        )
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("Your API key is currently blocked.", OutcomeClass.AUTH_INVALID),
        ("The API key is not active", OutcomeClass.AUTH_INVALID),
        ("Wrong API Key is not a valid model ID", OutcomeClass.REQUEST_ERROR),
        ("Invalid value: 'note: the api key is disabled'", OutcomeClass.REQUEST_ERROR),
    ],
)
def test_what_a_user_wrote_is_no_refusal_of_the_key(error: str, expected: OutcomeClass) -> None:
    assert classified("xai", 400, {"code": "x", "error": error}).cls is expected


@pytest.mark.parametrize(
    ("name", "status", "body", "owner"),
    [
        (
            "groq",
            429,
            {
                "error": {
                    "message": "Rate limit reached for model `m` in organization `org_01abc` service tier `on_demand` on tokens per minute (TPM): Limit 1"
                }
            },
            "org_01abc",
        ),
        (
            "xai",
            429,
            {
                "code": "resource-exhausted",
                "error": "Too many requests for team 00000000-0000-4000-8000-00000000000A and model m. Requests per Minute (actual/limit): 2/2",
            },
            "00000000-0000-4000-8000-00000000000a",
        ),
        (
            "xai",
            403,
            {
                "code": "x",
                "error": "Your team has used all available credits. Please purchase more credits.",
            },
            None,
        ),
        (
            "openrouter",
            429,
            {
                "error": {"code": 429, "message": "Rate limit exceeded: free-models-per-min."},
                "user_id": "user_1",
            },
            "user_1",
        ),
        (
            "openrouter",
            402,
            {"error": {"code": 402, "message": "Insufficient credits"}, "user_id": ["x"]},
            None,
        ),
    ],
)
def test_who_shares_a_limit(name: str, status: int, body: Any, owner: str | None) -> None:
    outcome = classified(name, status, body)
    assert (outcome.shared, outcome.owner) == (True, owner)


def test_what_is_no_limit_is_not_shared() -> None:
    outcome = classified("openrouter", 401, {"error": {"code": 401}, "user_id": "user_1"})
    assert (outcome.shared, outcome.owner) == (False, None)


@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        (
            "xai",
            404,
            {
                "code": "not-found",
                "error": "The model grok-9 does not exist or your team t does not have access to it.",
            },
        ),
        ("mistral", 400, {"message": "Invalid model: m", "type": "invalid_model", "code": "1500"}),
        (
            "fireworks",
            404,
            {"error": {"message": "Model not found, inaccessible, and/or not deployed"}},
        ),
        (
            "cohere",
            404,
            {"message": "model 'm' not found, make sure the correct model ID was used"},
        ),
        (
            "cerebras",
            404,
            {
                "message": "Model m does not exist or you do not have access to it.",
                "code": "model_not_found",
            },
        ),
        ("azure", 404, {"error": {"code": "DeploymentNotFound", "message": "x"}}),
    ],
)
def test_a_model_an_account_does_not_have(name: str, status: int, body: Any) -> None:
    outcome = classified(name, status, body)
    assert (outcome.cls, outcome.scope, outcome.missing_model) == ("request_error", "none", True)


def test_openrouter_names_the_moment_in_header_and_body() -> None:
    provider = BUILT_IN["openrouter"]
    assert provider.instants["x-ratelimit-reset"](1_800_000_000.25) == "1800000000250"
    body = '{"error":{"metadata":{"headers":{"X-RateLimit-Reset":"1741305600000","X-RateLimit-Limit":"50"}}}}'
    told = json.loads(provider.delay_body(body, 12.5, 1_800_000_000))
    assert told["error"]["metadata"]["headers"] == {
        "X-RateLimit-Reset": "1800000013000",
        "X-RateLimit-Limit": "50",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Please try again in 1.574s.", "Please try again in 40 seconds."),
        ("Please retry after 22 seconds. Please go", "Please retry after 40 seconds. Please go"),
        ("try again in 6m0s", "try again in 40 seconds"),
        ("Please retry in 900.2ms", "Please retry in 40 seconds"),
        ("Please try again later.", "Please try again later."),
        ("Try again in 3 messages", "Try again in 3 messages"),
        ('{"m":"try again in 12s"}', '{"m":"try again in 40 seconds"}'),
    ],
)
def test_the_sentence_is_told_anew(text: str, expected: str) -> None:
    assert BUILT_IN["groq"].delay_body(text, 40, 0) == expected


#: Google says of a project that does not pay that it is barred.
OURS = {401: {"auth_invalid"}, 402: {"quota", "forbidden_account"}}


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@pytest.mark.parametrize("status", OURS)
def test_what_only_the_owner_can_cure_is_read_as_that(name: str, status: int) -> None:
    """By a pool behind this one too: it is no overload, and asks for no retries."""
    made = BUILT_IN[name].refusal(status, f"{name}: {REMEDIES[status]}", None)
    body = json.loads(made.body)
    outcome = BUILT_IN[name].classify(
        UpstreamResponse(status=made.status, headers=dict(made.headers), text="", payload=body)
    )
    # There the code of OpenAI's envelope is that of a minute's limit.
    assert outcome.cls in OURS[status] or (name, outcome.cls) == ("dashscope", "rate_limit")
    assert made.status < 500
