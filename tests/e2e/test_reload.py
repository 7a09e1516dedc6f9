"""accounts.yaml is edited while the proxy serves."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal

import pytest

from tests.e2e import harness
from tests.e2e.harness import ACCOUNTS_FILE, FIRST, SECOND, account, chat, in_order, secret
from tests.scripts import openai
from tests.upstream.exchange import Reply
from tests.upstream.replies import EVENT_STREAM, by_credential, json_reply

GOOD = openai.chat_complete("Good morning")


async def test_an_edit_is_taken_over_and_a_broken_one_is_not(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: GOOD, SECOND: GOOD}))
    proxy = await pool_proxy([account("first")], provider=upstream)
    file = proxy.folder / ACCOUNTS_FILE
    async with proxy.client() as http:
        assert (await http.request(**chat(stream=False))).status_code == 200

        file.write_text("accounts: [{provider: opnai, label: first, token: sk-fake-typo-000}]")
        await proxy.until_printed("the accounts stay as they were")
        assert (await http.request(**chat(stream=False))).status_code == 200

        file.write_text(json.dumps({"accounts": [account("second")]}))
        await proxy.until_printed("added openai/second; removed openai/first")
        assert (await http.request(**chat(stream=False))).status_code == 200
    assert upstream.journal.credentials == [FIRST, FIRST, SECOND]
    assert "did you mean openai?" in proxy.output
    assert "sk-fake" not in proxy.output


async def test_nothing_under_way_is_lost_by_any_kind_of_reload(
    provider, pool_proxy, monkeypatch, tmp_path
):
    """The script, the file and the signal, in the middle of an answer."""
    script = tmp_path / "pool.py"
    shutil.copy(harness.addon_script(), script)
    path = {"PYTHONPATH": str(harness.addon_script().parent)}
    monkeypatch.setattr(harness, "addon_script", lambda: script)
    over = asyncio.Event()
    events = openai.chat_events(["Good", " morning"])
    slow = Reply(headers=EVENT_STREAM, steps=(*events[:2], over, *events[2:]))
    limited = openai.rate_limited(900)
    third = secret("third")
    upstream = await provider(by_credential({FIRST: limited, SECOND: slow, third: GOOD}))
    accounts = in_order("first", "second")
    proxy = await pool_proxy(accounts, provider=upstream, env=path)

    async def until_read(times: int) -> None:
        await proxy.until(lambda: proxy.output.count("accounts.yaml reloaded") == times)

    async with proxy.client() as http, http.stream(**chat()) as response:
        pieces = response.aiter_raw()
        body = await anext(pieces)
        script.write_text(script.read_text() + "# written again\n")
        await until_read(1)
        os.kill(proxy.pid, signal.SIGHUP)
        await until_read(2)
        accounts = in_order("first", "third")
        (proxy.folder / ACCOUNTS_FILE).write_text(json.dumps({"accounts": accounts}))
        await proxy.until_printed("added openai/third; removed openai/second")
        over.set()
        body += b"".join([piece async for piece in pieces])
        assert b"morning" in body and body.endswith(b"[DONE]\n\n")
        # The conversation goes on: its account is gone.
        assert (await http.request(**chat(stream=False))).status_code == 200
    assert upstream.journal.credentials == [FIRST, SECOND, third]


async def test_a_request_that_waits_does_not_go_where_the_provider_was(provider, pool_proxy):
    """The file moves the provider to another host meanwhile: the new key is not for the old one."""
    limited = openai.rate_limited(25)
    upstream = await provider(by_credential({FIRST: limited, SECOND: GOOD}))
    gateway = {"gw": {"like": "openai", "hosts": ["www.example.com"]}}
    proxy = await pool_proxy([account("first", "gw")], provider=upstream, providers=gateway)
    file = proxy.folder / ACCOUNTS_FILE
    moved = {"gw": {"like": "openai", "hosts": ["api.groq.com"]}}
    async with proxy.client() as http:
        request = chat(stream=False, base="https://www.example.com")
        waiting = asyncio.create_task(http.request(**request))
        await upstream.journal.until_answered(1)
        file.write_text(json.dumps({"accounts": [account("second", "gw")], "providers": moved}))
        assert (await waiting).status_code == 421
    assert upstream.journal.credentials == [FIRST]


@pytest.mark.parametrize(
    "refusal",
    [
        json_reply({"error": {"message": "Deactivated", "code": "account_deactivated"}}, 403),
        openai.insufficient_quota(),
        openai.invalid_key(),
    ],
    ids=["deactivated", "quota", "key"],
)
async def test_another_token_under_the_same_label_is_tried(provider, pool_proxy, refusal):
    upstream = await provider(by_credential({FIRST: refusal, SECOND: GOOD}))
    proxy = await pool_proxy([account("me", token=FIRST)], provider=upstream)
    async with proxy.client() as http:
        assert (await http.request(**chat(stream=False))).status_code >= 400
        new = [account("me", token=SECOND)]
        (proxy.folder / ACCOUNTS_FILE).write_text(json.dumps({"accounts": new}))
        await proxy.until_printed("reloaded: new credential for openai/me")
        assert (await http.request(**chat(stream=False))).status_code == 200
    assert upstream.journal.credentials == [FIRST, SECOND]
