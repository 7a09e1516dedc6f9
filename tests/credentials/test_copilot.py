"""The exchange over real HTTP, against a scripted server on loopback; what its answers mean."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.credentials.fakes import REAL_TOKEN, START, FakeClock, FakeGitHub, answer, until

from account_pool.core.account import Account
from account_pool.core.credential import Secret
from account_pool.credentials.copilot import (
    CopilotExchange,
    Exchanged,
    ExchangeSettings,
    no_token_response,
    placeholder_response,
    read_refusal,
    read_token,
    shown_to_clients,
)
from account_pool.credentials.http import (
    OWN_NAME,
    ExchangeFailed,
    ExchangeRefused,
    Http,
    check_token_url,
)
from account_pool.providers.base import HostRule

GITHUB = Secret("ghu_secret-of-me")
ME = Account(provider="copilot", label="me")
URL = "http://127.0.0.1:1/token"


def exchange_with(
    url: str, *hosts: HostRule, editor_version: str = "", proxy: str | None = None
) -> CopilotExchange:
    return CopilotExchange(
        {"copilot": ExchangeSettings(token_url=url, hosts=hosts)},
        editor_version=editor_version,
        wall_clock=FakeClock(),
        http=Http(trust=ssl.create_default_context, proxy=proxy),
    )


async def test_what_is_sent_and_what_comes_back(github: FakeGitHub) -> None:
    exchanged = await exchange_with(github.url).exchange(ME, GITHUB)
    assert exchanged.token == Secret(REAL_TOKEN)
    ((line, headers),) = github.requests
    assert line == "GET /copilot_internal/v2/token HTTP/1.1"
    assert headers["authorization"] == "token ghu_secret-of-me"
    assert headers["user-agent"] == headers["editor-version"] == OWN_NAME.lower()
    assert "secret" not in repr(exchanged).replace("[secret]", "")
    assert "tid=" not in repr(exchanged)


async def test_the_client_last_seen_is_named(github: FakeGitHub) -> None:
    exchange = exchange_with(github.url, editor_version="ed/9")
    exchange.client_seen({"editor-version": "ed/1", "user-agent": "plug/2", "cookie": "x"})
    await exchange.exchange(ME, GITHUB)
    headers = github.requests[0][1]
    assert (headers["editor-version"], headers["user-agent"]) == ("ed/1", "plug/2")
    assert "cookie" not in headers


async def test_the_proxy_of_the_environment_is_not_used(
    github: FakeGitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    await exchange_with(github.url).exchange(ME, GITHUB)
    assert len(github.requests) == 1


async def test_an_upstream_proxy_is_used_when_told(github: FakeGitHub) -> None:
    proxy = github.url.partition("/copilot_internal")[0]
    await exchange_with("http://localhost:9/token", proxy=proxy).exchange(ME, GITHUB)
    assert github.requests[0][0].startswith("GET http://localhost:9/token ")


async def test_a_redirect_is_not_followed(github: FakeGitHub) -> None:
    github.script = [(302, {"location": github.url + "?again"}, "")]
    with pytest.raises(ExchangeFailed, match="302 is no answer to an exchange"):
        await exchange_with(github.url).exchange(ME, GITHUB)
    assert len(github.requests) == 1


@pytest.mark.parametrize(
    ("answered", "error", "text"),
    [
        ((404, {}, "<html>"), ExchangeRefused, "404: this token cannot be exchanged"),
        ((200, {}, "<html>"), ExchangeFailed, "answered 200 without a Copilot token"),
        ((200, {}, "x" * 300_000), ExchangeFailed, "more than 262144 bytes"),
        ((503, {"retry-after": "9"}, ""), ExchangeFailed, "503"),
        ((200, {"bad header\x00": "x"}, "{}"), ExchangeFailed, r"cannot reach 127.0.0.1 \(Remote"),
    ],
)
async def test_wrong_answers(
    github: FakeGitHub, answered: Any, error: type[Exception], text: str
) -> None:
    github.script = [answered]
    with pytest.raises(error, match=text):
        await exchange_with(github.url).exchange(ME, GITHUB)


async def test_nobody_there() -> None:
    with pytest.raises(ExchangeFailed, match=r"cannot reach 127\.0\.0\.1 \(") as caught:
        await exchange_with("http://127.0.0.1:9/token").exchange(ME, GITHUB)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


async def test_a_server_that_is_silent_ends_the_exchange(
    github: FakeGitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("account_pool.credentials.copilot.EXCHANGE_TIMEOUT_S", 0.05)
    github.gate.clear()
    with pytest.raises(ExchangeFailed, match=r"did not answer within 0\.05 s"):
        await exchange_with(github.url).exchange(ME, GITHUB)
    github.gate.set()


async def test_all_accounts_exchange_at_once(github: FakeGitHub) -> None:
    github.gate.clear()
    exchange = exchange_with(github.url)
    running = [asyncio.create_task(exchange.exchange(ME, GITHUB)) for _ in range(5)]
    await until(lambda: github.waiting == 5)
    github.gate.set()
    assert len(await asyncio.gather(*running)) == 5


async def test_no_secret_in_any_record_of_any_library(
    github: FakeGitHub, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        await exchange_with(github.url).exchange(ME, GITHUB)
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
    assert "ghu_secret" not in caplog.text and "0123abc" not in caplog.text


async def test_an_untrusted_host_is_ignored_with_a_warning(
    github: FakeGitHub, caplog: pytest.LogCaptureFixture
) -> None:
    github.script = [(200, {}, answer(endpoints={"api": "https://llm.example.com"}))]
    exchanged = await exchange_with(github.url).exchange(ME, GITHUB)
    assert exchanged.host is None
    assert caplog.messages == [
        "copilot/me: the exchange names the host https://llm.example.com, which is neither "
        "GitHub's nor configured; ignored. To use it, add it to providers.copilot.hosts in "
        "accounts.yaml"
    ]


@pytest.mark.parametrize(
    ("settings", "account", "endpoints", "expected"),
    [
        # The exchange names it.
        (
            ExchangeSettings(),
            {},
            {
                "api": "https://api.business.githubcopilot.com",
                "proxy": "https://proxy.business.githubcopilot.com",
            },
            {
                "host": "api.business.githubcopilot.com",
                "proxy": "proxy.business.githubcopilot.com",
            },
        ),
        # It does not: the plan's.
        (ExchangeSettings(), {}, {}, {"host": "api.individual.githubcopilot.com"}),
        (
            ExchangeSettings(),
            {"account_type": "business"},
            {},
            {"host": "api.business.githubcopilot.com"},
        ),
        (
            ExchangeSettings(),
            {"account_type": "enterprise"},
            {"api": "https://evil.example", "proxy": "https://evil.example"},
            {"host": "api.enterprise.githubcopilot.com"},
        ),
        # Hosts or an exchange of one's own: where the client sent it.
        (ExchangeSettings(hosts=(HostRule("localhost", 9443),)), {}, {}, {}),
        (ExchangeSettings(token_url="https://api.acme.ghe.com/t"), {}, {}, {}),
        # The owner's word comes first.
        (
            ExchangeSettings(),
            {"companions": {"host": "api.githubcopilot.com"}},
            {
                "api": "https://api.business.githubcopilot.com",
                "proxy": "https://proxy.business.githubcopilot.com",
            },
            {"host": "api.githubcopilot.com"},
        ),
    ],
)
async def test_the_hosts_of_an_account(
    github: FakeGitHub,
    settings: ExchangeSettings,
    account: dict[str, Any],
    endpoints: dict[str, str],
    expected: dict[str, str],
) -> None:
    github.script = [(200, {}, answer(endpoints=endpoints))]
    me = Account(provider="copilot", label="me", **account)
    exchanged = await exchange_with(github.url).exchange(me, GITHUB)
    exchange = CopilotExchange(
        {"copilot": settings},
        wall_clock=FakeClock(),
        http=Http(trust=ssl.create_default_context),
    )
    credentials = exchange.credentials(me, GITHUB, exchanged)
    assert {kind: c.kind for kind, c in credentials.items()} == {
        "copilot": "copilot",
        "github": "github",
    }
    assert [c.companions for c in credentials.values()] == [expected, expected]
    assert credentials["copilot"].secret == Secret(REAL_TOKEN)
    assert credentials["copilot"].expires_at == START + 1560
    assert credentials["github"].secret == GITHUB
    assert credentials["github"].expires_at is None


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("https://api.github.com/copilot_internal/v2/token", None),
        ("http://127.0.0.1:8000/token", None),
        ("http://[::1]/token", None),
        ("http://localhost/token", None),
        ("http://localhost.example.com/token", "a token would travel unencrypted"),
        ("http://api.localhost/token", "a token would travel unencrypted"),
        ("http://10.0.0.1/token", "a token would travel unencrypted"),
        ("ftp://localhost/token", "it is not an https address"),
        ("api.github.com/token", "it is not an address"),
        ("https:///token", "it is not an address"),
        ("https://user@host/token", "it is not an address"),
        ("https://host:port/token", "it is not an address"),
        ("", "it is not an address"),
    ],
)
def test_addresses_of_an_exchange(url: str, wrong: str | None) -> None:
    if wrong is None:
        check_token_url(url)
        return
    with pytest.raises(ValueError, match=wrong):
        ExchangeSettings(token_url=url)


CLIENT = {
    "editor-version": "ed/1.0",
    "editor-plugin-version": "plug/2.0",
    "user-agent": "Plug/2.0",
    "copilot-integration-id": "ed-chat",
    "x-github-api-version": "2025-04-01",
    "authorization": "Bearer secret",
    "x-request-id": "1",
}


def test_without_a_client_it_is_our_own_name() -> None:
    assert exchange_with(URL).editor_headers() == {
        "user-agent": OWN_NAME,
        "editor-version": OWN_NAME,
    }


def test_the_option_names_the_editor_only() -> None:
    of_option = exchange_with(URL, editor_version=" ed/9 ").editor_headers()
    assert of_option == {"user-agent": OWN_NAME, "editor-version": "ed/9"}


def test_the_client_last_seen_comes_first_and_only_its_editor_headers() -> None:
    editor = exchange_with(URL, editor_version="ed/9")
    editor.client_seen(CLIENT)
    expected = {name: CLIENT[name] for name in list(CLIENT)[:5]}
    assert editor.editor_headers() == expected
    editor.client_seen({"editor-version": "other/1"})
    assert editor.editor_headers() == {"user-agent": OWN_NAME, "editor-version": "other/1"}


def test_what_is_no_editor_changes_nothing() -> None:
    editor = exchange_with(URL)
    editor.client_seen(CLIENT)
    before = editor.editor_headers()
    editor.client_seen({"user-agent": "curl/8"})
    editor.client_seen({"editor-version": "x" * 500})
    editor.client_seen({"editor-version": "a\r\nb: c"})
    assert editor.editor_headers() == before


# -- what GitHub's answers mean, and what clients get of them


def read(payload: Any, *hosts: HostRule) -> Exchanged:
    return read_token(payload, START, hosts)


def test_a_usual_answer() -> None:
    exchanged = read(answer())
    assert exchanged.token == Secret(REAL_TOKEN)
    assert exchanged.renew_in_s == 1440
    assert exchanged.expires_at == START + 1560
    assert exchanged.host == "api.individual.githubcopilot.com"
    assert exchanged.completions_host == "proxy.individual.githubcopilot.com"
    assert exchanged.distrusted is None


@pytest.mark.parametrize(
    ("times", "renew_in_s", "life_s"),
    [
        ({"refresh_in": 1500, "expires_at": START + 600}, 1440, 600),
        # A clock that is an hour off must not end the token before it begins, or never.
        ({"refresh_in": 1500, "expires_at": START - 3600}, 1440, 1560),
        ({"refresh_in": 1500, "expires_at": START + 3600}, 1440, 1560),
        ({"refresh_in": 1500, "expires_at": None}, 1440, 1560),
        ({"refresh_in": 1500, "expires_at": "soon"}, 1440, 1560),
        ({"refresh_in": 1500, "expires_at": START * 1000}, 1440, 1560),
        ({"refresh_in": 10}, 30, 70),
        ({"refresh_in": 0}, 1440, 1560),
        ({"refresh_in": -5}, 1440, 1560),
        ({"refresh_in": True}, 1440, 1560),
        ({"refresh_in": float("nan")}, 1440, 1560),
        ({"refresh_in": 1e12}, 1440, 1560),
        ({"refresh_in": 10**400, "expires_at": 10**400}, 1440, 1560),
        ({"refresh_in": 10**400, "expires_at": -(10**400)}, 1440, 1560),
        ({"refresh_in": "1500"}, 1440, 1560),
        ({"refresh_in": None}, 1440, 1560),
    ],
)
def test_times(times: dict[str, Any], renew_in_s: float, life_s: float) -> None:
    exchanged = read(answer(**times))
    assert exchanged.renew_in_s == renew_in_s
    assert exchanged.expires_at - START == life_s


@pytest.mark.parametrize(
    ("api", "host"),
    [
        ("https://api.business.githubcopilot.com", "api.business.githubcopilot.com"),
        ("https://API.githubcopilot.com/", "api.githubcopilot.com"),
        ("https://api.githubcopilot.com:443", "api.githubcopilot.com"),
        ("https://copilot-api.acme.ghe.com", "copilot-api.acme.ghe.com"),
        ("https://llm.example.com:8443", "llm.example.com:8443"),
        ("https://[::1]:9443", "[::1]:9443"),
        ("http://api.githubcopilot.com", None),
        ("https://githubcopilot.com.example.com", None),
        ("https://xgithubcopilot.com", None),
        ("https://llm.example.com", None),
        ("https://api.githubcopilot.com@example.com", None),
        ("https://user@api.githubcopilot.com", None),
        ("https://api.githubcopilot.com/path", None),
        ("https://api.githubcopilot.com?x", None),
        ("https://api.githubcopilot.com:99999", None),
        ("https://a b.githubcopilot.com", None),
        ("https://[::1", None),
        ("api.githubcopilot.com", None),
        ("", None),
        (7, None),
    ],
)
def test_only_hosts_of_github_or_the_user_are_trusted(api: Any, host: str | None) -> None:
    configured = (HostRule("llm.example.com", 8443), HostRule("::1", 9443))
    exchanged = read(answer(endpoints={"api": api}), *configured)
    assert exchanged.host == host
    assert (exchanged.distrusted is None) == (host is not None)


@pytest.mark.parametrize("endpoints", [None, {}, [], "x", {"proxy": "https://x"}])
def test_an_answer_without_a_host(endpoints: Any) -> None:
    exchanged = read(answer(endpoints=endpoints))
    assert exchanged.host is None and exchanged.distrusted is None
    assert exchanged.completions_host is None


@pytest.mark.parametrize(
    "payload", [None, [], {}, "x", {"token": ""}, {"token": 7}, {"token": "a\nb"}, {"token": "a b"}]
)
def test_an_answer_without_a_token_is_a_failure(payload: Any) -> None:
    with pytest.raises(ExchangeFailed, match="without a Copilot token"):
        read(payload)


NO_SEAT = {
    "can_signup_for_limited": True,
    "error_details": {
        "message": "No access to GitHub Copilot found.\nSign up. ghu_secret-of-me",
        "notification_id": "no_copilot_access",
        "title": "t",
        "url": "https://github.com/x",
    },
    "message": "Resource not accessible by integration",
}


@pytest.mark.parametrize(
    ("status", "payload", "expected"),
    [
        (
            401,
            {"message": "Bad credentials"},
            "401: GitHub does not accept this token: Bad credentials",
        ),
        (
            403,
            NO_SEAT,
            "403: no Copilot access: No access to GitHub Copilot found. Sign up. [secret] "
            "(no_copilot_access)",
        ),
        (403, {"message": "Forbidden"}, "403: no Copilot access: Forbidden"),
        (403, None, "403: no Copilot access"),
        (
            404,
            {"message": "Not Found"},
            "404: this token cannot be exchanged: it is a PAT or of another app; log in with an "
            "app that has Copilot access",
        ),
        (422, ["x"], "422: the exchange refused"),
        (403, {"message": 7, "error_details": "x"}, "403: no Copilot access"),
    ],
)
def test_refusals_are_readable(status: int, payload: Any, expected: str) -> None:
    error = read_refusal(status, {}, payload, GITHUB, START)
    assert isinstance(error, ExchangeRefused)
    assert str(error) == expected
    assert error.status == status


LIMITED = {"message": "API rate limit exceeded for user ID 1."}


@pytest.mark.parametrize(
    ("status", "headers", "payload", "retry_after_s"),
    [
        (403, {"retry-after": "7"}, LIMITED, 7.0),
        (
            403,
            {"x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{START + 90:.0f}"},
            LIMITED,
            90.0,
        ),
        (403, {"x-ratelimit-remaining": "1", "x-ratelimit-reset": "9"}, LIMITED, None),
        (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "soon"}, LIMITED, None),
        (403, {}, {"error_details": {"notification_id": "server_error"}}, None),
        (429, {"retry-after": "99999999999999"}, None, 3600.0),
        (429, {"retry-after": "Fri, 15 Jan 2027 08:01:00 GMT"}, None, 60.0),
        (429, {"retry-after": "Fri, 15 Jan 1999 08:01:00 GMT"}, None, 0.0),
        (429, {"retry-after": "-5"}, None, 30.0),
        (429, {"retry-after": "²"}, None, 30.0),
        (429, {}, None, 30.0),
        (503, {}, "x", None),
        (500, {}, {"message": "oops"}, None),
    ],
)
def test_failures_that_pass(
    status: int, headers: dict[str, str], payload: Any, retry_after_s: float | None
) -> None:
    error = read_refusal(status, headers, payload, GITHUB, START)
    assert isinstance(error, ExchangeFailed)
    assert error.retry_after_s == retry_after_s
    assert str(error).startswith(str(status))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "token",
                    "refresh_in",
                    "expires_at",
                    "endpoints",
                    "api",
                    "message",
                    "error_details",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(json_values, st.integers(100, 599), st.text(max_size=30))
def test_any_answer_is_read_or_refused(payload: Any, status: int, retry_after: str) -> None:
    try:
        exchanged = read(payload)
    except ExchangeFailed:
        pass
    else:
        assert START < exchanged.expires_at <= START + 86400 + 60
        assert 30 <= exchanged.renew_in_s <= 86400
    read_refusal(status, {"retry-after": retry_after}, payload, GITHUB, START)


def test_the_answer_has_the_features_of_the_account_and_nothing_of_its_identity() -> None:
    shown = shown_to_clients(answer(), REAL_TOKEN, api_is_trusted=True)
    local = placeholder_response(shown, START)
    assert local.status == 200
    assert dict(local.headers)["content-type"] == "application/json; charset=utf-8"
    assert "x-github-request-id" in dict(local.headers)
    assert json.loads(local.body) == {
        "individual": True,
        "chat_enabled": True,
        "sku": "plus_monthly",
        "public_suggestions": "enabled",
        "telemetry": "disabled",
        "limited_user_quotas": None,
        "limited_user_reset_date": None,
        "endpoints": {
            "api": "https://api.individual.githubcopilot.com",
            "proxy": "https://proxy.individual.githubcopilot.com",
            "telemetry": "https://telemetry.individual.githubcopilot.com",
            "origin-tracker": "https://origin-tracker.individual.githubcopilot.com",
        },
        "expires_at": START + 1800,
        "refresh_in": 1500,
        "token": "tid=pool;exp=1800001800;sku=plus_monthly;st=dotcom;chat=1;mcp=1;8kp=1:pool",
    }


def test_an_endpoint_that_is_not_trusted_is_not_named() -> None:
    shown = shown_to_clients(
        answer(endpoints={"api": "https://x.example", "proxy": "javascript:x"}),
        REAL_TOKEN,
        api_is_trusted=False,
    )
    assert "endpoints" not in shown


@given(
    st.dictionaries(st.text(max_size=20), st.text(min_size=3, max_size=50) | st.booleans()),
    st.text(alphabet="abcdefghij=;:0123456789", max_size=80),
)
def test_unknown_texts_never_pass(extra: dict[str, str | bool], token: str) -> None:
    private = {f"x_{name}": value for name, value in extra.items()}
    shown = shown_to_clients(
        private, f"tid=private;{token};ip=private:private", api_is_trusted=True
    )
    body = json.loads(placeholder_response(shown, START).body)
    assert "private" not in json.dumps(body)
    assert {type(value) for name, value in body.items() if name.startswith("x_")} <= {bool}


def test_without_a_token_the_refusal_is_githubs() -> None:
    local = no_token_response("none", 5)
    assert local.status == 503
    assert json.loads(local.body) == {"message": "none"}
    assert dict(local.headers)["retry-after"] == "5"
