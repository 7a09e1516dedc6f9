"""Whose host is whose, and services of a user's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from account_pool.core.outcome import UpstreamResponse
from account_pool.providers.base import HostRule, RequestHead, Route
from account_pool.providers.definition import add_hosts, like
from account_pool.providers.registry import BUILT_IN, HostIndex

INDEX = HostIndex(BUILT_IN.values())


def names(host: str, port: int = 443, index: HostIndex = INDEX) -> list[str]:
    return [provider.name for provider in index.find(host, port)]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("api.openai.com", ["openai"]),
        ("API.OpenAI.com", ["openai"]),
        ("api.anthropic.com", ["anthropic", "claude-code"]),
        ("chatgpt.com", ["codex"]),
        ("cloudcode-pa.googleapis.com", ["gemini-cli"]),
        ("generativelanguage.googleapis.com", ["gemini"]),
        ("api.githubcopilot.com", ["copilot"]),
        ("api.individual.githubcopilot.com", ["copilot"]),
        ("copilot-proxy.githubusercontent.com", ["copilot"]),
        ("api.github.com", ["copilot"]),
        ("githubcopilot.com", []),
        ("githubcopilot.com.evil.example", []),
        ("xgithubcopilot.com", []),
        ("evil.example/api.openai.com", []),
        ("x.api.openai.com", []),
        ("openai.com", []),
        ("github.com", []),
        ("", []),
        (".", []),
        ("..githubcopilot.com", ["copilot"]),  # no such name exists
    ],
)
def test_hosts_are_matched_whole(host: str, expected: list[str]) -> None:
    assert names(host) == expected


@given(st.text("abc.:-/@", max_size=20))
def test_nothing_but_a_whole_name_matches(prefix: str) -> None:
    assert names(prefix + "api.openai.com") == (["openai"] if not prefix else [])
    assert names("api.openai.com" + prefix) == (["openai"] if not prefix else [])


@pytest.mark.parametrize("port", [1, 80, 442, 444, 8443, 65535])
@pytest.mark.parametrize("host", ["api.openai.com", "api.githubcopilot.com", "api.z.ai"])
def test_behind_another_port_is_somebody_else(host: str, port: int) -> None:
    assert names(host) != []
    assert names(host, port) == []
    assert INDEX.ports(host) == [443]


def test_a_host_without_a_port_is_at_443() -> None:
    index = HostIndex([like(BUILT_IN["openai"], "gw", map(HostRule.parse, ("a.example", "*.b.c")))])
    assert names("a.example", 443, index) == names("x.b.c", 443, index) == ["gw"]
    assert names("a.example", 8443, index) == names("x.b.c", 8443, index) == []
    assert (index.ports("x.b.c"), index.ports("b.c"), index.ports("d.example")) == ([443], [], [])


def test_a_port_can_be_added_to_a_host_that_is_built_in() -> None:
    index = HostIndex([add_hosts(BUILT_IN["openai"], [HostRule.parse("api.openai.com:8443")])])
    for port in (443, 8443):
        assert names("api.openai.com", port, index) == ["openai"]
    assert index.ports("api.openai.com") == [443, 8443]
    again = add_hosts(BUILT_IN["openai"], [HostRule.parse("api.openai.com")])
    assert names("api.openai.com", 8443, HostIndex([again])) == []


def test_a_port_can_be_named() -> None:
    index = HostIndex([add_hosts(BUILT_IN["openai"], [HostRule.parse("localhost:9443")])])
    assert names("localhost", 9443, index) == ["openai"]
    assert names("localhost", 443, index) == []
    assert names("api.openai.com", 443, index) == ["openai"]


def test_a_host_may_have_several_providers_in_order() -> None:
    hosts = [HostRule("localhost", 1)]
    first = like(BUILT_IN["openai"], "first", hosts)
    index = HostIndex([add_hosts(BUILT_IN["anthropic"], hosts), first, first])
    assert names("localhost", 1, index) == ["anthropic", "first"]


ORGANISATION = {"openai-organization": "acme", "anthropic-organization-id": "acme"}
LIMITED = UpstreamResponse(
    status=429,
    payload={
        "error": {
            "message": "Rate limit reached for model `m` in organization `org_1` on tokens",
            "status": "RESOURCE_EXHAUSTED",
            "details": [{"metadata": {"consumer": "projects/1"}}],
        }
    },
)


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_a_gateway_does_not_say_whose_its_keys_are(name: str) -> None:
    more = ["llm.example.com", "*.example.net", "*.openai.com", "*.anthropic.com"]
    index = HostIndex([add_hosts(BUILT_IN[name], map(HostRule.parse, more))])
    for host in ("llm.example.com", "a.example.net", f"eu.{name}.com"):
        (gateway,) = index.find(host, 443)
        assert gateway.owner is None
    (own,) = index.find(f"api.{name}.com", 443)
    assert own.owner(ORGANISATION) == "acme"


@pytest.mark.parametrize("name", ["groq", "gemini"])
def test_nor_does_the_body_of_its_refusal(name: str) -> None:
    base, hosts = BUILT_IN[name], [HostRule("llm.example.com")]
    (added,) = HostIndex([add_hosts(base, hosts)]).find("llm.example.com", 443)
    told = base.classify(LIMITED)
    assert told.owner is not None
    for gateway in (added, like(base, "gw", hosts)):
        assert gateway.classify(LIMITED) == replace(told, owner=None)


GATEWAY = like(BUILT_IN["openai"], "gateway", [HostRule("llm.example.com")])


def head(method: str, path: str, **fields: dict[str, str]) -> RequestHead:
    return RequestHead(method=method, host="llm.example.com", port=443, path=path, **fields)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/chat/completions", Route.POOL),
        ("POST", "/v1/chat/completions", Route.POOL),
        ("POST", "/api/v1/chat/completions", Route.POOL),
        ("POST", "/openai/deployments/x/chat/completions", Route.POOL),
        ("POST", "/inference/v1/embeddings", Route.POOL),
        ("GET", "/api/v1/models", Route.POOL),
        ("GET", "/models/x", Route.POOL),
        ("POST", "/v1/files", Route.POOL),
        ("POST", "/xresponses", Route.PASS),
        ("POST", "/chat/completions/x", Route.PASS),
        ("GET", "/chat/completions", Route.PASS),
        ("POST", "/a" * 50 + "/chat/completions", Route.PASS),
        ("POST", "", Route.PASS),
    ],
)
def test_a_service_like_openai_may_have_any_prefix(method: str, path: str, expected: Route) -> None:
    assert GATEWAY.route(head(method, path)) is expected


def test_a_service_of_ones_own_shares_nothing_but_the_dialect() -> None:
    assert GATEWAY.name == "gateway"
    assert GATEWAY.hosts == (HostRule("llm.example.com"),)
    assert GATEWAY.env == ()
    assert GATEWAY.judge is BUILT_IN["openai"].judge
    assert BUILT_IN["openai"].hosts == (HostRule("api.openai.com"),)


def test_a_service_may_be_like_any_provider() -> None:
    claude = like(BUILT_IN["anthropic"], "relay", [HostRule("llm.example.com")])
    assert claude.route(head("POST", "/relay/v1/messages")) is Route.POOL
    subscription = {"authorization": "Bearer sk-ant-oat01-x"}
    assert claude.route(head("POST", "/v1/messages", headers=subscription)) is Route.PASS
    google = like(BUILT_IN["gemini"], "vertexish", [HostRule("llm.example.com")])
    assert google.route(head("POST", "/x/v1beta/models/m:generateContent")) is Route.POOL


@pytest.mark.parametrize("provider", BUILT_IN.values(), ids=BUILT_IN)
def test_providers_are_complete(provider: object) -> None:
    assert BUILT_IN[provider.name] is provider  # type: ignore[attr-defined]


@given(
    st.sampled_from(["GET", "POST", "PUT", "odd"]),
    st.text(max_size=40),
    st.text(max_size=20),
    st.dictionaries(
        st.sampled_from(["authorization", "upgrade", "anthropic-beta", "x-api-key"]), st.text()
    ),
    st.binary(max_size=40),
)
def test_no_request_breaks_a_provider(
    method: str, path: str, query: str, headers: dict[str, str], body: bytes
) -> None:
    request = RequestHead(
        method=method, host="h", port=1, path=path, query=query, headers=headers, body=body
    )
    for provider in (*BUILT_IN.values(), GATEWAY):
        assert provider.route(request) in Route
        assert provider.kind is None or isinstance(provider.kind(request), str)
        assert provider.model is None or isinstance(provider.model(request), str | None)


@given(
    st.dictionaries(
        st.sampled_from(["authorization", "upgrade", "anthropic-beta", "user-agent", "x-api-key"]),
        st.sampled_from(["websocket", "Bearer sk-ant-oat01-fake", "Bearer ek_fake"]) | st.text(),
    )
)
def test_posts_are_what_route_says_of_them(headers: dict[str, str]) -> None:
    assert BUILT_IN["openai"].posts and BUILT_IN["groq"].posts
    for provider in (*BUILT_IN.values(), GATEWAY):
        for path in provider.posts:
            request = RequestHead(method="POST", host="h", port=1, path=path, headers=headers)
            assert provider.route(request) is Route.POOL, (provider.name, path)


LISTS = ("", "/v1", "/api/v1", "/v1beta", "/openai", "/openai/v1", "/compatible-mode/v1", "/zen/v1")


@pytest.mark.parametrize("step", ["/..", "/%2E.", "/..%2F..", "/a%2f..", "/.", "\\..", "/..;"])
def test_no_list_of_models_leads_elsewhere(step: str) -> None:
    """A server that reads `..` would answer of an account's own keys or purse."""
    for provider in (*BUILT_IN.values(), GATEWAY):
        for prefix in LISTS:
            for path in (f"{prefix}/models{step}", f"{prefix}/models{step}%2fkeys"):
                request = RequestHead(
                    method="GET",
                    host="h",
                    port=1,
                    path=path,
                    headers={"user-agent": "claude-cli/2.1"},
                )
                assert provider.route(request) is Route.PASS, (provider.name, path)


KEYS = [
    *("error", "code", "type", "message", "status", "details", "metadata", "violations"),
    *("quotaId", "quotaDimensions", "model", "retryDelay", "quotaValue", "reason", "choices"),
    *("response", "candidates", "headers", "errors", "error_details", "usageMetadata"),
]
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=20,
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("retry-after", "retry-after-ms", "date", "x-ratelimit-exceeded"),
            *("x-ratelimit-reset", "x-usage-ratelimit-session", "x-should-retry"),
            "anthropic-ratelimit-unified-5h-status",
            "anthropic-ratelimit-unified-5h-reset",
            "anthropic-ratelimit-unified-status",
        ]
    ),
    st.sampled_from(["rejected", "rem=0&rst=x", "9" * 40, "-1", "::"]) | st.text(max_size=9),
)


@given(ANY_JSON, HEADERS, st.integers(100, 599), st.booleans(), st.floats())
def test_no_answer_breaks_a_provider(
    payload: object, headers: dict[str, str], status: int, in_stream: bool, now: float
) -> None:
    answer = UpstreamResponse(
        status=status, headers=headers, payload=payload, in_stream=in_stream, wall_now=now
    )
    for provider in BUILT_IN.values():
        provider.judge(None, payload)
        wait = provider.classify(answer).cooldown_s
        assert wait is None or 0 <= wait <= 366 * 86400


def test_a_tenant_of_ghe_com_is_a_copilot_of_ones_own() -> None:
    tenant = like(BUILT_IN["copilot"], "acme", [HostRule.parse("*.acme.ghe.com")])
    index = HostIndex([tenant])

    def routed(method: str, host: str, path: str) -> Route | None:
        found = index.find(host, 443)
        head = RequestHead(method=method, host=host, port=443, path=path)
        return found[0].route(head) if found else None

    assert routed("POST", "copilot-api.acme.ghe.com", "/chat/completions") is Route.POOL
    assert routed("GET", "api.acme.ghe.com", "/copilot_internal/v2/token") is Route.LOCAL
    assert routed("GET", "api.acme.ghe.com", "/copilot_internal/user") is Route.POOL
    assert routed("GET", "api.acme.ghe.com", "/models") is Route.PASS
    assert routed("GET", "api.other.ghe.com", "/copilot_internal/user") is None


def test_behind_a_gateway_nobody_is_taken_for_an_owner() -> None:
    gateway = like(BUILT_IN["openai"], "mine", [HostRule.parse("llm.example.com")])
    assert gateway.owner is None
    assert BUILT_IN["openai"].owner({"openai-organization": "org-1"}) == "org-1"
    both = {"openai-organization": "org-1", "openai-project": "proj-1"}
    assert BUILT_IN["openai"].owner(both) == "org-1/proj-1"
    assert BUILT_IN["openai"].owner({"openai-project": "proj-1"}) is None


@pytest.mark.parametrize(
    ("headers", "message", "scope"),
    [
        ({"retry-after": "18000"}, "Too many requests", "account"),
        ({"retry-after": "18000"}, "Too many requests for model m-1", "account+model"),
        ({}, "Your plan's weekly limit is reached", "account"),
        ({}, "Rate limit reached for m-1 on tokens per day (TPD): Limit 1", "account+model"),
        ({"retry-after": "20"}, "Too many requests", "account+model"),
    ],
)
def test_a_limit_of_the_plan_reaches_the_account_of_an_unknown_service(
    headers: dict[str, str], message: str, scope: str
) -> None:
    gateway = like(BUILT_IN["openai"], "gw", [HostRule("llm.example.com")])
    payload = {"error": {"code": "odd", "message": message}}
    told = gateway.classify(UpstreamResponse(status=429, headers=headers, payload=payload))
    assert told.scope == scope
