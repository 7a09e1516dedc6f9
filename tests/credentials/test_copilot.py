"""The exchange over real HTTP, against a scripted server on loopback."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any

import pytest
from tests.credentials.fakes import REAL_TOKEN, START, FakeClock, FakeGitHub, answer, until

from account_pool.core.account import Account
from account_pool.core.credential import Secret
from account_pool.credentials.copilot import CopilotExchange, EditorHeaders, ExchangeSettings
from account_pool.credentials.errors import ExchangeFailed, ExchangeRefused
from account_pool.credentials.http import OWN_NAME, Http, check_token_url
from account_pool.providers.base import HostRule

GITHUB = Secret("ghu_secret-of-me")
ME = Account(provider="copilot", label="me")


def exchange_with(
    url: str, *hosts: HostRule, editor: EditorHeaders | None = None, proxy: str | None = None
) -> CopilotExchange:
    return CopilotExchange(
        {"copilot": ExchangeSettings(token_url=url, hosts=hosts)},
        editor or EditorHeaders(),
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
    exchange = exchange_with(github.url, editor=EditorHeaders("ed/9"))
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
    with pytest.raises(ExchangeRefused, match="302"):
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
        EditorHeaders(),
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
    assert EditorHeaders().headers() == {"user-agent": OWN_NAME, "editor-version": OWN_NAME}


def test_the_option_names_the_editor_only() -> None:
    assert EditorHeaders("ed/9").headers() == {"user-agent": OWN_NAME, "editor-version": "ed/9"}


def test_the_client_last_seen_comes_first_and_only_its_editor_headers() -> None:
    editor = EditorHeaders("ed/9")
    editor.client_seen(CLIENT)
    expected = {name: CLIENT[name] for name in list(CLIENT)[:5]}
    assert editor.headers() == expected
    editor.client_seen({"editor-version": "other/1"})
    assert editor.headers() == {"user-agent": OWN_NAME, "editor-version": "other/1"}


def test_what_is_no_editor_changes_nothing() -> None:
    editor = EditorHeaders()
    editor.client_seen(CLIENT)
    before = editor.headers()
    editor.client_seen({"user-agent": "curl/8"})
    editor.client_seen({"editor-version": "x" * 500})
    editor.client_seen({"editor-version": "a\r\nb: c"})
    assert editor.headers() == before
