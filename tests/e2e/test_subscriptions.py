"""Logins of Codex, Claude Code and Gemini CLI: whole swaps, or none."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from typing import Any

import pytest
from mitmproxy.net.encoding import decode, encode

from account_pool.cli.run import placeholder_home
from tests.cli.authorisation import vendor_tool
from tests.e2e.harness import CLIENT, FIRST, SECOND, THIRD, account, secret
from tests.patience import PATIENCE_S
from tests.scripts import anthropic, code_assist, codex, openai
from tests.upstream.exchange import Request
from tests.upstream.replies import by_credential, json_reply

WORDS = ["Good", " morning"]
#: Of the client's own account: the provider must never see it on a request of the pool.
FOREIGN = "99999999-2222-4333-8444-555555555555"
IDS = {
    label: f"{n}" * 8 + "-2222-4333-8444-555555555555" for n, label in ((1, "first"), (2, "second"))
}

# -- Codex

CODEX = "https://chatgpt.com/backend-api/codex"
CODEX_TWO = [
    account(label, "codex", priority=n, account_id=IDS[label])
    for n, label in enumerate(("first", "second"))
]
RESPONSE = openai.response_stream(WORDS)
#: No API key: with one, Codex asks as its owner.
CLIENT_LOGIN = "fake-login-of-the-client"


def ask_codex(
    encoding: str = "zstd", model: str = "gpt-5.5-codex", **headers: str
) -> dict[str, Any]:
    body = {"model": model, "stream": True, "store": False, "input": [], "prompt_cache_key": "k"}
    return {
        "method": "POST",
        "url": f"{CODEX}/responses",
        "headers": {
            "authorization": f"Bearer {CLIENT_LOGIN}",
            "chatgpt-account-id": FOREIGN,
            "x-openai-fedramp": "true",
            "x-codex-turn-state": "sticky-of-another-account",
            "x-openai-account-routing-override": "us_cr",
            "originator": "codex_cli_rs",
            "content-type": "application/json",
            "content-encoding": encoding,
            **headers,
        },
        "content": encode(json.dumps(body).encode(), encoding),
    }


@pytest.mark.parametrize(
    "limited",
    [codex.usage_limit(), codex.usage_limit(status=400), codex.limit_in_stream()],
    ids=["429", "400", "inside the stream"],
)
async def test_codex_moves_with_token_and_account(provider, pool_proxy, limited):
    upstream = await provider(by_credential({FIRST: limited, SECOND: RESPONSE}))
    proxy = await pool_proxy(CODEX_TWO, provider=upstream)
    asked = ask_codex()
    async with proxy.client() as http:
        answer = await http.request(**asked)
    assert (answer.status_code, answer.content) == (200, RESPONSE.body)
    for request, label in zip(upstream.journal.requests, IDS, strict=True):
        assert request.credential == secret(label)
        assert (request.host, request.path) == ("chatgpt.com", "/backend-api/codex/responses")
        assert request.header("chatgpt-account-id") == IDS[label]
        assert request.header("x-openai-fedramp") is None
        assert request.header("x-codex-turn-state") is None
        assert request.header("x-openai-account-routing-override") is None
        assert request.header("originator") == "codex_cli_rs"
        # Not changed, so not even compressed anew.
        assert request.body == asked["content"]


async def test_the_model_of_a_compressed_request_is_known(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: RESPONSE, SECOND: RESPONSE}))
    accounts = [{**CODEX_TWO[0], "models": ["!gpt-5.5-*"]}, CODEX_TWO[1]]
    proxy = await pool_proxy(accounts, provider=upstream)
    async with proxy.client() as http:
        for encoding in ("zstd", "gzip"):
            await http.request(**ask_codex(encoding))
        await http.request(**ask_codex(model="gpt-5", **{"thread-id": "another"}))
    assert upstream.journal.credentials == [SECOND, SECOND, FIRST]


async def test_an_account_is_read_from_its_token(provider, pool_proxy):
    claims = {
        "exp": int(time.time()) + 3600,
        "https://api.openai.com/auth": {
            "chatgpt_account_id": IDS["second"],
            "chatgpt_account_is_fedramp": True,
        },
    }
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    token = f"eyJhbGciOiJub25lIn0.{body}.sk-fake-signature"
    upstream = await provider(by_credential({token: RESPONSE}))
    proxy = await pool_proxy([{**account("first", "codex"), "token": token}], provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**ask_codex())
    assert answer.status_code == 200
    (request,) = upstream.journal.requests
    assert request.header("chatgpt-account-id") == IDS["second"]
    assert request.header("x-openai-fedramp") == "true"


async def test_a_token_without_its_account_is_never_sent(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: RESPONSE, SECOND: RESPONSE}))
    proxy = await pool_proxy([account("first", "codex"), CODEX_TWO[1]], provider=upstream)
    await proxy.until_printed(r"codex/first: .*account_id")
    async with proxy.client() as http:
        answers = [await http.request(**ask_codex()) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert set(upstream.journal.credentials) == {SECOND}


async def test_codex_is_sent_from_its_socket_to_http(provider, pool_proxy):
    """Where every request can be replayed; it falls back at once and says nothing."""
    upstream = await provider(by_credential({FIRST: RESPONSE}))
    proxy = await pool_proxy(CODEX_TWO, provider=upstream)
    upgrade = {
        "authorization": f"Bearer {CLIENT_LOGIN}",
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "openai-beta": "responses_websockets=2026-02-06",
    }
    async with proxy.client() as http:
        answer = await http.get(f"{CODEX}/responses", headers=upgrade)
    assert answer.status_code == 426
    assert upstream.journal.requests == []


PASSING = {
    "Codex looks for its own account": ("GET", "/wham/accounts/check", f"Bearer {CLIENT}"),
    "a key asks for its models": ("GET", "/codex/models", "Bearer sk-client"),
    "signed": ("POST", "/codex/responses", "AgentAssertion signed-for-this-task"),
}


@pytest.mark.parametrize(("method", "path", "value"), PASSING.values(), ids=PASSING.keys())
async def test_what_is_the_clients_own_passes(provider, pool_proxy, method, path, value):
    upstream = await provider(lambda _request: json_reply({"passed": True}))
    proxy = await pool_proxy(CODEX_TWO, provider=upstream)
    headers = {"authorization": value, "chatgpt-account-id": FOREIGN}
    async with proxy.client() as http:
        answer = await http.request(
            method, f"https://chatgpt.com/backend-api{path}", headers=headers
        )
    assert answer.json() == {"passed": True}
    (request,) = upstream.journal.requests
    assert request.header("authorization") == value
    assert request.header("chatgpt-account-id") == FOREIGN


async def test_a_codex_with_a_placeholder_login_is_told_that_its_account_is_there(
    provider, pool_proxy
):
    """It looks for its own account before its first prompt; a real login gets the real answer."""
    upstream = await provider(lambda _request: json_reply({"detail": "Unauthorized"}, 401))
    proxy = await pool_proxy(CODEX_TWO, provider=upstream)
    headers = {"authorization": f"Bearer {CLIENT_LOGIN}", "chatgpt-account-id": FOREIGN}
    base = "https://chatgpt.com/backend-api/wham"
    async with proxy.client() as http:
        known = await http.get(f"{base}/accounts/check", headers=headers)
        other = await http.get(f"{base}/settings/user", headers=headers)
    assert (known.status_code, known.json()["accounts"][0]["id"]) == (200, FOREIGN)
    assert known.json()["default_account_id"] == FOREIGN
    assert (other.status_code, other.json()) == (401, {"detail": "Unauthorized"})
    assert [r.header("authorization") for r in upstream.journal.requests] == [
        f"Bearer {CLIENT_LOGIN}"
    ] * 2


async def test_a_limit_of_a_feature_leaves_the_account_to_others(provider, pool_proxy):
    images = (("x-codex-active-limit", "image_gen"), ("x-image-gen-primary-used-percent", "100"))
    of_images = codex.usage_limit(headers=images, used=60.0)
    upstream = await provider(by_credential({FIRST: [of_images, RESPONSE], SECOND: RESPONSE}))
    proxy = await pool_proxy(CODEX_TWO, provider=upstream)
    async with proxy.client() as http:
        answers = [await http.request(**ask_codex(**{"thread-id": t})) for t in ("one", "two")]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert upstream.journal.credentials == [FIRST, SECOND, FIRST]


async def test_the_seats_of_a_workspace_share_its_credits(provider, pool_proxy):
    """Whom the first refusal speaks of is not asked, though it never answered before."""
    accounts = [
        account("first", "codex", account_id=IDS["first"]),
        account("second", "codex", priority=1, account_id=IDS["first"]),
        account("third", "codex", priority=2, account_id=IDS["second"]),
    ]
    kind = ("x-codex-rate-limit-reached-type", "workspace_member_credits_depleted")
    replies = {FIRST: codex.usage_limit(headers=(kind,)), SECOND: RESPONSE, THIRD: RESPONSE}
    upstream = await provider(by_credential(replies))
    proxy = await pool_proxy(accounts, provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**ask_codex())
    assert answer.status_code == 200
    assert upstream.journal.credentials == [FIRST, THIRD]


async def test_when_all_are_spent_codex_is_told_the_soonest_return(provider, pool_proxy):
    replies = {FIRST: codex.usage_limit(1800), SECOND: codex.usage_limit(5400)}
    upstream = await provider(by_credential(replies))
    proxy = await pool_proxy(CODEX_TWO, provider=upstream, options={"pool_max_wait": 0})
    async with proxy.client() as http:
        for _ in range(2):
            answer = await http.request(**ask_codex())
            error = answer.json()["error"]
            assert (answer.status_code, error["type"]) == (429, "usage_limit_reached")
            assert near(error["resets_in_seconds"], 1800)
            assert near(error["resets_at"] - time.time(), 1800)
            assert near(float(answer.headers["x-codex-primary-reset-at"]) - time.time(), 1800)
            assert near(float(answer.headers["retry-after"]), 1800)
    assert len(upstream.journal.requests) == 2


def near(seconds: float, expected: float) -> bool:
    """Allow for a slow machine, and for the jitter of deadlines."""
    return 0.9 * expected <= seconds <= 1.1 * expected + 60


# -- Claude Code

CLAUDE = "https://api.anthropic.com"
CLAUDE_TWO = [
    account("first", "claude-code", account_id=IDS["first"]),
    account("second", "claude-code", priority=1),
]
MESSAGE = anthropic.message_stream(WORDS)
OLD = "user_" + "0a" * 32 + "_account_{}_session_77777777-2222-4333-8444-555555555555"
LOGIN = {
    "authorization": "Bearer sk-ant-oat01-placeholder",
    "anthropic-beta": "claude-code-20250219,oauth-2025-04-20",
}
KEY = {"x-api-key": CLIENT, "anthropic-beta": "claude-code-20250219"}


def new(account_id: str) -> str:
    return json.dumps({"device_id": "d", "account_uuid": account_id, "session_id": "s"})


def claude_body(user_id: str) -> bytes:
    content = [{"role": "user", "content": f"My account is {FOREIGN}, {new(FOREIGN)}"}]
    body = {"model": "claude-opus-5-5", "max_tokens": 64, "stream": True, "messages": content}
    return json.dumps({**body, "metadata": {"user_id": user_id}}, indent=1).encode()


def ask_claude(content: bytes, encoding: str | None = None, **headers: str) -> dict[str, Any]:
    told = {"content-encoding": encoding} if encoding else {}
    return {
        "method": "POST",
        "url": f"{CLAUDE}/v1/messages?beta=true",
        "headers": {
            "user-agent": "claude-cli/2.1.329 (external, cli)",
            "content-type": "application/json",
            **told,
            **headers,
        },
        "content": encode(content, encoding) if encoding else content,
    }


@pytest.mark.parametrize("spelling", [OLD.format, new], ids=["old user_id", "new user_id"])
@pytest.mark.parametrize("client", [LOGIN, KEY], ids=["login", "API key"])
@pytest.mark.parametrize("encoding", [None, "gzip"])
async def test_claude_code_moves_with_its_account(
    *, provider, pool_proxy, spelling, client, encoding
):
    upstream = await provider(by_credential({FIRST: anthropic.window_spent(), SECOND: MESSAGE}))
    proxy = await pool_proxy(CLAUDE_TWO, provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(
            **ask_claude(claude_body(spelling(FOREIGN)), encoding, **client)
        )
    assert (answer.status_code, answer.content) == (200, MESSAGE.body)
    # The second account's id is not known: the client's goes all the same.
    for request, label, ours in zip(
        upstream.journal.requests, ("first", "second"), (IDS["first"], ""), strict=True
    ):
        assert request.header("authorization") == f"Bearer {secret(label)}"
        assert request.header("x-api-key") is None
        assert request.header("anthropic-beta") == "claude-code-20250219,oauth-2025-04-20"
        assert request.path == "/v1/messages?beta=true"
        body = decode(request.body, encoding) if encoding else request.body
        assert body == claude_body(spelling(ours))


async def test_a_limit_inside_the_stream_moves_claude_code(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: anthropic.limit_in_stream(), SECOND: MESSAGE}))
    proxy = await pool_proxy(CLAUDE_TWO, provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**ask_claude(claude_body(new(FOREIGN)), **LOGIN))
    assert (answer.status_code, answer.content) == (200, MESSAGE.body)
    assert upstream.journal.credentials == [FIRST, SECOND]


async def test_keys_and_subscriptions_serve_their_own_clients(provider, pool_proxy):
    key = {**account("third", "anthropic")}
    upstream = await provider(by_credential({FIRST: MESSAGE, secret("third"): MESSAGE}))
    proxy = await pool_proxy([*CLAUDE_TWO[:1], key], provider=upstream)
    sdk = {"user-agent": "Anthropic/Python 2.11.0"}
    body = claude_body("u")
    async with proxy.client() as http:
        for headers in (LOGIN, KEY, {**KEY, **sdk}):
            answer = await http.request(**ask_claude(body, **headers))
            assert answer.status_code == 200
    third = secret("third")
    assert upstream.journal.credentials == [FIRST, third, third]


async def test_other_clients_are_never_given_a_subscription(provider, pool_proxy):
    upstream = await provider(by_credential({CLIENT: MESSAGE, FIRST: MESSAGE}))
    proxy = await pool_proxy(CLAUDE_TWO[:1], provider=upstream)
    headers = {**KEY, "user-agent": "Anthropic/Python 2.11.0"}
    async with proxy.client() as http:
        await http.request(**ask_claude(claude_body("u"), **headers))
    assert upstream.journal.credentials == [CLIENT]


async def test_the_window_of_a_family_leaves_the_others(provider, pool_proxy):
    def script(request: Request):
        opus = b"claude-opus" in request.body
        spent = opus and request.credential == FIRST
        return anthropic.window_spent(family="opus") if spent else MESSAGE

    upstream = await provider(script)
    proxy = await pool_proxy(CLAUDE_TWO, provider=upstream)
    opus = claude_body("u")
    sonnet, other_opus = (
        opus.replace(b"claude-opus-5-5", model)
        for model in (b"claude-sonnet-5-5", b"claude-opus-4")
    )
    async with proxy.client() as http:
        for body in (opus, sonnet, other_opus):
            assert (await http.request(**ask_claude(body, **LOGIN))).status_code == 200
    assert upstream.journal.credentials == [FIRST, SECOND, FIRST, SECOND]


async def test_when_all_are_spent_claude_code_is_told_the_soonest_return(provider, pool_proxy):
    replies = {FIRST: anthropic.window_spent(1800), SECOND: anthropic.window_spent(7200)}
    upstream = await provider(by_credential(replies))
    proxy = await pool_proxy(CLAUDE_TWO, provider=upstream, options={"pool_max_wait": 0})
    async with proxy.client() as http:
        for _ in range(2):
            answer = await http.request(**ask_claude(claude_body("u"), **LOGIN))
            assert answer.status_code == 429
            for name in ("reset", "5h-reset"):
                at = float(answer.headers[f"anthropic-ratelimit-unified-{name}"])
                assert near(at - time.time(), 1800)
            assert near(float(answer.headers["retry-after"]), 1800)


# -- Gemini CLI

ASSIST = "https://cloudcode-pa.googleapis.com/v1internal"
ASSIST_TWO = [
    account(label, "gemini-cli", priority=n, project=f"{label}-project")
    for n, label in enumerate(("first", "second"))
]
CONTENT = code_assist.content_stream(WORDS)


def assist_body(project: str) -> bytes:
    parts = [{"text": f'{{"project": "{FOREIGN}"}}'}]
    request = {"contents": [{"role": "user", "parts": parts}], "session_id": "s"}
    body = {"model": code_assist.MODEL, "project": project, "user_prompt_id": "u"}
    return json.dumps({**body, "request": request}, indent=1).encode()


def ask_assist(
    content: bytes, method: str = "streamGenerateContent?alt=sse", encoding: str | None = None
) -> dict[str, Any]:
    told = {"content-encoding": encoding} if encoding else {}
    return {
        "method": "POST",
        "url": f"{ASSIST}:{method}",
        "headers": {
            "authorization": f"Bearer {CLIENT}",
            "user-agent": "GeminiCLI/0.61.0/gemini-3.1-pro-preview (linux; x64; terminal)",
            "content-type": "application/json",
            **told,
        },
        "content": encode(content, encoding) if encoding else content,
    }


@pytest.mark.parametrize("encoding", [None, "gzip", "zstd"])
@pytest.mark.parametrize(
    "limited",
    [code_assist.exhausted(), code_assist.limit_in_stream()],
    ids=["429", "inside the stream"],
)
async def test_gemini_cli_moves_with_its_project(*, provider, pool_proxy, limited, encoding):
    upstream = await provider(by_credential({FIRST: limited, SECOND: CONTENT}))
    proxy = await pool_proxy(ASSIST_TWO, provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**ask_assist(assist_body(FOREIGN), encoding=encoding))
    assert (answer.status_code, answer.content) == (200, CONTENT.body)
    for request, label in zip(upstream.journal.requests, ("first", "second"), strict=True):
        assert request.header("authorization") == f"Bearer {secret(label)}"
        body = decode(request.body, encoding) if encoding else request.body
        assert body == assist_body(f"{label}-project")
        assert request.header("content-length") == str(len(request.body))


def quota_exceeded(what: str) -> Any:
    """Return the 429 of a daily quota of each user: of one model, or of all requests."""
    named = "".join(what.split()).replace(".", "")
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "RATE_LIMIT_EXCEEDED",
        "domain": "googleapis.com",
        "metadata": {
            "quota_limit": f"{named}PerDayPerUserPerTier",
            # Google's own project, the same for every account.
            "consumer": "projects/681255809395",
        },
    }
    message = (
        f"Quota exceeded for quota metric '{what}' and limit '{what} per day per user per tier'"
    )
    error = {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": [info]}
    return json_reply({"error": error}, 429)


@pytest.mark.parametrize(
    ("what", "other_model_asks"), [("Gemini 3.1 Pro Requests", FIRST), ("Requests", SECOND)]
)
async def test_a_daily_quota_reaches_as_far_as_it_says(
    provider, pool_proxy, what, other_model_asks
):
    spent = quota_exceeded(what)
    upstream = await provider(by_credential({FIRST: [spent, CONTENT], SECOND: CONTENT}))
    proxy = await pool_proxy(ASSIST_TWO, provider=upstream)
    body = assist_body(FOREIGN)
    async with proxy.client() as http:
        first = await http.request(**ask_assist(body))
        flash = body.replace(code_assist.MODEL.encode(), b"gemini-3-flash-preview")
        # Another conversation: a bound one would stay where it is.
        second = await http.request(**ask_assist(flash.replace(b'"s"', b'"other"')))
    assert first.content == second.content == CONTENT.body
    assert upstream.journal.credentials == [FIRST, SECOND, other_model_asks]


async def test_a_placeholder_login_learns_the_accounts_project(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: code_assist.account("first-project")}))
    proxy = await pool_proxy(ASSIST_TWO[:1], provider=upstream)
    metadata = {"ideType": "IDE_UNSPECIFIED", "duetProject": FOREIGN}
    body = {"cloudaicompanionProject": FOREIGN, "metadata": metadata}
    async with proxy.client() as http:
        answer = await http.request(**ask_assist(json.dumps(body).encode(), "loadCodeAssist"))
    assert answer.json()["cloudaicompanionProject"] == "first-project"
    assert upstream.journal.requests[0].body == json.dumps(body).encode().replace(
        FOREIGN.encode(), b"first-project"
    )


async def test_when_all_are_spent_gemini_cli_is_told_the_soonest_return(provider, pool_proxy):
    replies = {FIRST: code_assist.exhausted("30m"), SECOND: code_assist.exhausted("2h")}
    upstream = await provider(by_credential(replies))
    proxy = await pool_proxy(ASSIST_TWO, provider=upstream, options={"pool_max_wait": 0})
    async with proxy.client() as http:
        for _ in range(2):
            answer = await http.request(**ask_assist(assist_body(FOREIGN)))
            info, retry = answer.json()["error"]["details"]
            assert answer.status_code == 429
            assert near(float(retry["retryDelay"].removesuffix("s")), 1800)
            assert info["metadata"]["quotaResetDelay"] == retry["retryDelay"]
            assert "T" in info["metadata"]["quotaResetTimeStamp"]
            assert not info["metadata"]["quotaResetTimeStamp"].startswith("2020")
            assert f"reset after {retry['retryDelay']}." in answer.json()["error"]["message"]


async def test_a_request_that_cannot_be_swapped_whole_is_not_sent(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: CONTENT}))
    proxy = await pool_proxy(ASSIST_TWO[:1], provider=upstream)
    async with proxy.client() as http:
        broken = await http.request(**ask_assist(b"[1]"))
        asked = ask_assist(assist_body(FOREIGN))
        asked["headers"]["content-encoding"] = "zstd"
        unreadable = await http.request(**asked)
    for answer in (broken, unreadable):
        assert (answer.status_code, answer.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert upstream.journal.requests == []


@pytest.mark.skipif(vendor_tool("codex") is None, reason="npm install -g @openai/codex")
async def test_a_codex_without_a_login_works_from_a_placeholder_home(
    provider, pool_proxy, tmp_path, monkeypatch
):
    """The real one: it starts, finds its account, and gets an answer from the pool's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    upstream = await provider(by_credential({FIRST: RESPONSE, SECOND: RESPONSE}))
    proxy = await pool_proxy(CODEX_TWO, provider=upstream)
    own = tmp_path / ".codex"
    own.mkdir()
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CODEX_HOME": str(placeholder_home(own)),
        "HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}",
        "SSL_CERT_FILE": str(proxy.trusted),
    }
    tool = await asyncio.create_subprocess_exec(
        *(str(vendor_tool("codex")), "exec", "--skip-git-repo-check", "Hello?"),
        env=environ,
        cwd=tmp_path,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(PATIENCE_S):
        said, _ = await tool.communicate()
    assert tool.returncode == 0, said.decode()
    assert FIRST in upstream.journal.credentials, said.decode()
    assert not list(own.iterdir())
