"""Real proxies that ask a scripted ChatGPT what is left: once, under our name, if it is on."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import pytest

from account_pool.cli.main import run
from tests.e2e.harness import CONFDIR, TIMEOUT_S, account, secret
from tests.e2e.test_subscriptions import CODEX_TWO, IDS, RESPONSE, ask_codex
from tests.scripts import codex
from tests.upstream.exchange import Reply, Request
from tests.upstream.replies import json_reply

USAGE = "/backend-api/wham/usage"


class ChatGPT:
    """Says what is left, and serves; the first account is limited while it is said to be."""

    def __init__(self) -> None:
        self.used = {"first": 100.0, "second": 20.0}
        self.look_ups: list[Request] = []

    def __call__(self, request: Request) -> Reply:
        label = next(label for label in IDS if request.credential == secret(label))
        if request.path != USAGE:
            spent = self.used[label] >= 100
            return codex.usage_limit(36_000) if spent else RESPONSE
        self.look_ups.append(request)
        window = {
            "used_percent": self.used[label],
            "limit_window_seconds": 18_000,
            "reset_after_seconds": 16_000,
        }
        week = {**window, "used_percent": 5, "limit_window_seconds": 604_800}
        credits = {"available_count": 2}
        return json_reply(
            {
                "rate_limit": {"primary_window": window, "secondary_window": week},
                "rate_limit_reset_credits": credits,
            }
        )


async def refresh(proxy: Any) -> tuple[int, Any]:
    token = (proxy.folder / CONFDIR / "account-pool-admin-token").read_text().strip()
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
        answer = await http.post(
            f"{proxy.url}/usage/refresh", headers={"authorization": f"Bearer {token}"}, json={}
        )
    return answer.status_code, answer.json()


async def test_nobody_is_asked_by_default(provider, pool_proxy):
    chatgpt = ChatGPT()
    proxy = await pool_proxy(CODEX_TWO, provider=await provider(chatgpt))
    assert (await refresh(proxy))[0] == 409
    async with proxy.client() as http:
        assert (await http.request(**ask_codex())).status_code == 200
    assert chatgpt.look_ups == []


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.skipif(
    sys.platform != "linux", reason="workers are for Linux"))])  # fmt: skip
async def test_each_account_is_asked_once_and_a_lifted_limit_ends(provider, pool_proxy, workers):
    chatgpt = ChatGPT()
    proxy = await pool_proxy(
        [*CODEX_TWO, account("third")],
        provider=await provider(chatgpt),
        options={"pool_look_up": "true"},
        workers=workers,
    )
    async with proxy.client() as http:
        assert (await http.request(**ask_codex())).status_code == 200
        # A reset was redeemed, or an incident ended.
        chatgpt.used["first"] = 10.0
        for _ in range(2):
            status, answer = await refresh(proxy)
            assert status == 200
    accounts = {one["key"]: one for one in answer["accounts"]}
    assert accounts["codex/first"]["tightest"]["remaining"] == 0.9
    assert accounts["openai/third"]["look_up"] is None
    # A request that was just made has shown what the second has left; whoever was asked was
    # asked once, however many workers there are.
    asked = sorted(request.credential for request in chatgpt.look_ups)
    assert asked == [secret("first"), secret("second")]
    for request in chatgpt.look_ups:
        headers = {name.lower(): value for name, value in request.headers}
        assert headers["user-agent"].startswith("account-pool/")
        assert headers["chatgpt-account-id"] in IDS.values()
        assert "originator" not in headers
        assert request.host == "chatgpt.com"
    assert "codex/first: back in use" in proxy.output
    assert "by a look-up" in proxy.output


async def test_the_command_prints_what_is_left(provider, pool_proxy, capsys, monkeypatch):
    chatgpt = ChatGPT()
    proxy = await pool_proxy(
        CODEX_TWO, provider=await provider(chatgpt), options={"pool_look_up": "true"}
    )
    monkeypatch.setenv("HOME", str(proxy.folder))
    monkeypatch.setattr(
        "account_pool.cli.api.local_token",
        lambda _port: (proxy.folder / CONFDIR / "account-pool-admin-token").read_text().strip(),
    )
    words = ["usage", "--refresh", "-p", str(proxy.port)]
    assert await asyncio.to_thread(run, words) == 0
    out = capsys.readouterr().out
    assert "codex/second" in out and "5h 80%" in out and "2 resets left" in out
    assert await asyncio.to_thread(run, [*words, "--json", "--account", "codex/second"]) == 0
    out = capsys.readouterr().out  # with lines of the proxy
    value = json.loads(out[out.index("{\n") :].rpartition("\n}")[0] + "}")
    assert [one["key"] for one in value["accounts"]] == ["codex/second"]
