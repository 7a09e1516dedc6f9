"""Rows about requests, through real proxies: written, asked for, there after a kill."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from account_pool.demo.mitmdump import MitmdumpFailed
from tests.e2e.harness import (
    CLIENT,
    FIRST,
    SECOND,
    TIMEOUT_S,
    TWO,
    chat,
    point_clients_at,
    run_command,
)
from tests.e2e.test_websocket import CREATE, CREATED, DELTA, LIMITED, open_socket, says
from tests.e2e.test_workers import one_each
from tests.scripts import openai
from tests.upstream.replies import by_credential

GOOD = openai.chat_complete("Good morning")


async def until(
    url: str, query: str, is_so: Callable[[list[dict[str, Any]]], bool]
) -> list[dict[str, Any]]:
    """Return the rows once they are so, the newest first: they are written a moment later."""
    async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(TIMEOUT_S):
        while True:
            rows = (await http.get(f"{url}/requests{query}")).json()["requests"]
            if is_so(rows):
                return rows
            await asyncio.sleep(0.02)


async def test_what_became_of_requests(provider, pool_proxy, monkeypatch):
    from openai import AsyncOpenAI

    upstream = await provider(by_credential({FIRST: openai.rate_limited(), SECOND: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream)
    point_clients_at(proxy, monkeypatch)
    async with AsyncOpenAI(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client:
        prompt = [{"role": "user", "content": "a prompt that nobody keeps"}]
        answer = await client.chat.completions.create(model="gpt-5-nano", messages=prompt)
    [row] = await until(proxy.url, "", lambda rows: len(rows) == 1)
    assert (row["account"], row["model"], row["endpoint"]) == (
        "openai/second", "gpt-5-nano", "/v1/chat/completions",
    )  # fmt: skip
    assert (row["tool"], row["status"], row["http_status"]) == ("openai-python", "ok", 200)
    assert (row["attempts"], row["failovers"]) == (2, 1)
    assert row["tokens"]["output"] == answer.usage.completion_tokens
    assert 0 < row["first_byte_s"] <= row["duration_s"] < TIMEOUT_S
    async with proxy.client() as http:
        series = (await http.get(f"{proxy.url}/requests/series")).json()["buckets"]
        usage = (await http.get(f"{proxy.url}/usage?group=tool")).json()
        days = (await http.get(f"{proxy.url}/usage?group=account")).json()
    assert sum(one["ok"] for one in series) == sum(one["failovers"] for one in series) == 1
    assert [(one["tool"], one["requests"]) for one in usage["groups"]] == [("openai-python", 1)]
    # Two sources, one answer.
    assert usage["groups"][0]["input_tokens"] == days["groups"][0]["input_tokens"]


async def test_what_it_cost(provider, setting, tmp_path):
    pytest.importorskip("genai_prices")
    upstream = await provider(by_credential({FIRST: GOOD}))
    prices = json.dumps([{"provider": "openai", "model": "mine", "input": 1, "output": 2}])
    options = {"pool_prices": prices, "pool_state": tmp_path / "pool.sqlite"}
    async with setting.prepare(TWO[:1], provider=upstream, options=options) as proxy:
        async with proxy.client() as http:
            for model in ("gpt-5-nano", "mine", "nobody-knows-it"):
                asked = chat(stream=False)
                asked["json"]["model"] = model
                await http.request(**asked)

        def are_priced(rows):
            return len(rows) == 3 and all(row["price"] is not None for row in rows)

        unknown, own, listed = await until(proxy.url, "", are_priced)
        tokens = own["tokens"]
        assert own["price"] == "accounts.yaml"
        assert own["cost_usd"] == pytest.approx((tokens["input"] + 2 * tokens["output"]) / 1e6)
        assert listed["price"].startswith("genai-prices ")
        assert listed["cost_usd"] > 0
        assert (unknown["price"], unknown["cost_usd"]) == ("", None)
        async with proxy.client() as http:
            usage = (await http.get(f"{proxy.url}/usage?group=account")).json()
    [group] = usage["groups"]
    assert group["cost_usd"] == pytest.approx(own["cost_usd"] + listed["cost_usd"], abs=1e-6)
    assert (group["requests"], group["unpriced_requests"]) == (3, 1)
    assert [one["model"] for one in usage["unpriced"]] == ["nobody-knows-it"]


async def test_turns_of_a_websocket(provider, pool_proxy):
    done = json.dumps(
        {
            "type": "response.completed",
            "response": {"usage": {"input_tokens": 9, "output_tokens": 4}},
        }
    )
    upstream = await provider(
        by_credential({FIRST: says(CREATED, LIMITED), SECOND: says(CREATED, DELTA, done)})
    )
    proxy = await pool_proxy(TWO, provider=upstream)
    async with open_socket(proxy) as socket:
        for _ in range(2):
            await socket.send(CREATE)
            assert [await socket.recv() for _ in range(3)] == [CREATED, DELTA, done]
        await socket.send(CREATE)
        await socket.recv()
    rows = await until(proxy.url, "", lambda rows: len(rows) == 4)
    handshake = [row for row in rows if row["http_status"] == 101]
    turns = [row for row in reversed(rows) if row["http_status"] is None]
    assert [(row["status"], row["tokens"]["input"]) for row in handshake] == [("ok", None)]
    assert [row["status"] for row in turns[:2]] == ["ok", "ok"]
    assert [row["account"] for row in turns] == ["openai/second"] * 3
    assert [(row["attempts"], row["failovers"]) for row in turns[:2]] == [(2, 1), (1, 0)]
    assert [row["tokens"]["output"] for row in turns[:2]] == [4, 4]
    assert {row["model"] for row in turns} == {json.loads(CREATE)["model"]}


async def test_a_killed_proxy_loses_the_last_moment_alone(provider, setting, tmp_path):
    upstream = await provider(by_credential({FIRST: GOOD, SECOND: GOOD}))
    options = {"pool_state": tmp_path / "pool.sqlite"}
    async with setting.prepare(TWO, provider=upstream, options=options) as proxy:
        async with proxy.client() as http:
            for _ in range(5):
                await http.request(**chat(stream=False))
        await until(proxy.url, "", lambda rows: len(rows) == 5)
        os.kill(proxy.pid, signal.SIGKILL)
        with pytest.raises(MitmdumpFailed):
            await proxy.until(lambda: False)
    async with setting.prepare(TWO, provider=upstream, options=options) as again:
        rows = await until(again.url, "", lambda rows: len(rows) == 5)
        assert [row["number"] for row in rows] == [5, 4, 3, 2, 1]
        async with again.client() as http:
            await http.request(**chat(stream=False))
        assert (await until(again.url, "", lambda rows: len(rows) == 6))[0]["number"] == 6


@pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux")
async def test_workers_and_proxies_on_one_file_write_each_once(provider, setting, tmp_path):
    upstream = await provider(by_credential({FIRST: GOOD, SECOND: GOOD}))
    options = {"pool_state": tmp_path / "pool.sqlite"}
    async with (
        setting.prepare(TWO, provider=upstream, options=options, workers=2) as workers,
        setting.prepare(TWO, provider=upstream, options=options) as other,
        one_each(workers) as clients,
    ):
        for client in clients:
            for _ in range(4):
                await client.request(**chat(stream=False))
        async with other.client() as client:
            for _ in range(3):
                await client.request(**chat(stream=False))
        sent = len(upstream.journal.credentials)
        for url in (workers.url, workers.url, workers.url, other.url):
            rows = await until(url, "?limit=1000", lambda rows: len(rows) >= sent)
            assert len(rows) == sent == 2 + 8 + 3
        usage = (await clients[0].get(f"{workers.url}/usage?group=tool")).json()["groups"]
        assert sum(one["requests"] for one in usage) == sent


async def test_the_commands(provider, pool_proxy, tmp_path):
    upstream = await provider(by_credential({FIRST: openai.rate_limited(), SECOND: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as http:
        asked = chat(stream=False)
        asked["headers"] = {**asked["headers"], "user-agent": "claude-cli/2.0"}
        await http.request(**asked)
    await until(proxy.url, "", lambda rows: len(rows) == 1)

    async def command(*words: str) -> tuple[int, str, str]:
        return await run_command(tmp_path, *words, "-p", str(proxy.port))

    code, out, _ = await command("requests")
    assert code == 0
    assert "openai/second  gpt-5-nano  claude-code  2x" in out
    code, out, _ = await command("requests", "--json", "--tool", "claude-code", "--from", "1h")
    assert json.loads(out)["status"] == "ok"
    code, out, err = await command("requests", "--status", "refused")
    said = "account-pool: no such request (rows are kept for 30 days)\n"
    assert (code, out, err) == (0, "", said)
    code, out, _ = await command("usage", "--by", "tool", "--csv")
    assert out.splitlines()[0].startswith("tool,requests,input_tokens")
    assert out.splitlines()[1].startswith("claude-code,1,")
    code, _, err = await command("requests", "--from", "whenever")
    assert (code, "write a day, an instant" in err) == (2, True)
