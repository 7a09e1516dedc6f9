"""Copilot: GitHub tokens are exchanged at start, and no client ever needs or sees one."""

from __future__ import annotations

import time

import pytest

from tests.e2e.harness import CLIENT, TIMEOUT_S, in_order, secret
from tests.scripts import framed, openai
from tests.upstream.exchange import Framing, Reply, Request
from tests.upstream.replies import by_credential, json_reply

HOST = "https://api.individual.githubcopilot.com"
USER = "https://api.github.com/copilot_internal/user"
EXCHANGE = "https://api.github.com/copilot_internal/v2/token"
TWO = in_order("first", "second", provider="copilot", account_type="individual")
#: What the exchange gives for the GitHub token of an account.
COPILOT = {label: f"tid=fake;{secret('copilot_' + label)}" for label in ("first", "second")}
EDITOR = {
    "authorization": f"Bearer {CLIENT}",
    "editor-version": "vscode/1.110.0",
    "editor-plugin-version": "copilot-chat/0.40.0",
    "copilot-integration-id": "vscode-chat",
    "user-agent": "GitHubCopilotChat/0.40.0",
    "x-github-api-version": "2025-05-01",
}
CHAT = {"model": "gpt-4.1", "stream": True, "messages": [{"role": "user", "content": "Hello?"}]}
GOOD = openai.chat_stream(["Good", " morning"], model="gpt-4.1")
LIMITED = framed(
    json_reply({"error": {"message": "slow down", "code": "user_global_rate_limited:pro"}}, 429),
    Framing.LENGTH,
    ("retry-after", "60"),
    ("x-ratelimit-exceeded", "global-chat:global-user-tps-high:userID:PLAN"),
)


def exchange(request: Request) -> Reply:
    """Answer the token exchange for the account whose GitHub token it carries."""
    label = next(label for label in COPILOT if request.credential == secret(label))
    now = int(time.time())
    return json_reply(
        {
            "token": COPILOT[label],
            "expires_at": now + 1800,
            "refresh_in": 1500,
            "sku": "monthly_subscriber",
            "individual": True,
            "endpoints": {"api": HOST, "proxy": HOST, "telemetry": HOST},
        }
    )


def script(chat_script):
    def answer(request: Request) -> Reply:
        return (
            exchange(request)
            if request.path == "/copilot_internal/v2/token"
            else chat_script(request)
        )

    return answer


@pytest.fixture
async def world(provider, pool_proxy):
    async def start(chat_script, **settings):
        upstream = await provider(script(chat_script))
        proxy = await pool_proxy(
            TWO,
            provider=upstream,
            options={"pool_editor_version": "vscode/1.110.0"},
            **settings,
        )
        return upstream.journal, proxy

    return start


async def test_an_editor_is_served_with_exchanged_tokens(world):
    journal, proxy = await world(
        by_credential({COPILOT["first"]: LIMITED, COPILOT["second"]: GOOD})
    )
    for label in COPILOT:  # or the one that has its token first is asked first
        await proxy.until_printed(rf"copilot/{label}.*token")
    async with proxy.client(timeout=TIMEOUT_S) as http:
        answer = await http.post(f"{HOST}/chat/completions", headers=EDITOR, json=CHAT)
    assert (answer.status_code, answer.content) == (200, GOOD.body)
    exchanges = [r for r in journal.requests if r.path.startswith("/copilot_internal")]
    assert {r.credential for r in exchanges} == {secret("first"), secret("second")}
    chats = [r for r in journal.requests if r.path == "/chat/completions"]
    assert [r.credential for r in chats] == [COPILOT["first"], COPILOT["second"]]
    # Whole swaps: what says which editor it is stays the client's.
    assert {r.header("copilot-integration-id") for r in chats} == {"vscode-chat"}


async def test_one_line_per_account_says_that_it_has_a_token(world):
    _, proxy = await world(by_credential({COPILOT["first"]: GOOD}))
    for label in COPILOT:
        await proxy.until_printed(rf"copilot/{label}.*token")


async def test_the_clients_own_exchange_is_answered_here(world):
    journal, proxy = await world(by_credential({COPILOT["first"]: GOOD}))
    for label in COPILOT:
        await proxy.until_printed(rf"copilot/{label}.*token")
    before = len(journal.requests)
    async with proxy.client() as http:
        answer = await http.get(EXCHANGE, headers={**EDITOR, "authorization": f"token {CLIENT}"})
        assert answer.status_code == 200
        given = answer.json()
        assert "sk-fake" not in answer.text
        assert given["expires_at"] > time.time()
        chat = await http.post(
            f"{HOST}/chat/completions",
            headers={**EDITOR, "authorization": f"Bearer {given['token']}"},
            json=CHAT,
        )
    assert chat.content == GOOD.body
    assert [r.path for r in journal.requests[before:]] == ["/chat/completions"]


async def test_a_client_that_sends_the_github_token_itself_gets_the_accounts(world):
    journal, proxy = await world(by_credential({secret("first"): GOOD}))
    for label in COPILOT:  # or the one that has its token first is asked first
        await proxy.until_printed(rf"copilot/{label}.*token")
    headers = {
        "authorization": f"Bearer gho_{CLIENT}",
        "copilot-integration-id": "copilot-developer-cli",
        "user-agent": "copilot/1.0.102",
    }
    async with proxy.client() as http:
        answer = await http.post(f"{HOST}/chat/completions", headers=headers, json=CHAT)
    assert (answer.status_code, answer.content) == (200, GOOD.body)
    chats = [r for r in journal.requests if r.path == "/chat/completions"]
    assert [r.credential for r in chats] == [secret("first")]


async def test_the_cli_with_a_placeholder_login_is_told_who_the_account_is(world):
    """It does not start without; the plan and its host are the account's own."""
    user = json_reply({"login": "octocat", "endpoints": {"api": HOST}})
    journal, proxy = await world(by_credential({secret("first"): user}))
    for label in COPILOT:
        await proxy.until_printed(rf"copilot/{label}.*token")
    async with proxy.client() as http:
        answer = await http.get(USER, headers={"authorization": f"Bearer gho_{CLIENT}"})
    assert (answer.status_code, answer.content) == (200, user.body)
    (asked,) = (r for r in journal.requests if r.path == "/copilot_internal/user")
    assert asked.host == "api.github.com"
    assert asked.header("authorization") == f"Bearer {secret('first')}"


async def test_a_token_that_cannot_be_exchanged_serves_the_cli_only(provider, pool_proxy):
    """As `gh auth token` prints one: GitHub answers 404 to its exchange."""
    refused = json_reply({"message": "Not Found"}, 404)
    chats = by_credential({secret("first"): GOOD})

    def answer(request: Request) -> Reply:
        return refused if request.path == "/copilot_internal/v2/token" else chats(request)

    upstream = await provider(answer)
    proxy = await pool_proxy(TWO[:1], provider=upstream, options={"pool_max_wait": 0})
    await proxy.until_printed("copilot/first: its token cannot be exchanged")
    cli = {"authorization": f"Bearer gho_{CLIENT}", "user-agent": "copilot/1.0.102"}
    async with proxy.client() as http:
        served = await http.post(f"{HOST}/chat/completions", headers=cli, json=CHAT)
        editor = await http.post(f"{HOST}/chat/completions", headers=EDITOR, json=CHAT)
    assert (served.status_code, served.content) == (200, GOOD.body)
    assert editor.status_code == 401  # only its owner can cure that
