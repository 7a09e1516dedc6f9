"""Notifications from real proxies: each event once, and no address where anybody may look."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from account_pool.demo.mitmdump import addon_script
from tests.e2e.harness import CONFDIR, FIRST, SECOND, TIMEOUT_S, TWO, account, chat, free_port
from tests.patience import PATIENCE_S
from tests.scripts import openai
from tests.upstream.replies import by_credential

GOOD = openai.chat_complete("Good morning")
PATH = "/services/FAKE-SECRET"


class Hook:
    """A server that a webhook posts to."""

    def __init__(self) -> None:
        self.url = ""
        self.received: list[dict[str, Any]] = []
        self._more = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(x for x in head.splitlines() if x.startswith("content-length"))
        body = await reader.readexactly(int(length.partition(":")[2]))
        self.received.append({"path": head.split()[1], **json.loads(body)})
        self._more.set()
        writer.write(b"HTTP/1.1 204 X\r\n\r\n")
        await writer.drain()
        writer.close()

    async def until(self, count: int) -> list[tuple[str, str | None]]:
        """Wait for so many notifications; return their events and accounts."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.received) < count:
                self._more.clear()
                await self._more.wait()
        return [(one["event"], one["account"]) for one in self.received]


@asynccontextmanager
async def webhook() -> AsyncIterator[Hook]:
    hook = Hook()
    async with await asyncio.start_server(hook.serve, "127.0.0.1", 0) as server:
        hook.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{PATH}"
        yield hook


async def clear(proxy: Any, label: str) -> None:
    token = (proxy.folder / CONFDIR / "account-pool-admin-token").read_text().strip()
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
        answer = await http.post(
            f"{proxy.url}/account-pool/clear-cooldown",
            headers={"authorization": f"Bearer {token}"},
            json={"provider": "openai", "label": label},
        )
        assert answer.status_code == 200, answer.text


async def test_two_proxies_on_one_file_tell_each_event_once(provider, pool_proxy, tmp_path):
    upstream = await provider(by_credential({FIRST: openai.invalid_key(), SECOND: GOOD}))
    async with webhook() as hook:
        options = {"pool_state": tmp_path / "pool.sqlite", "pool_notify": hook.url}
        one = await pool_proxy(TWO, provider=upstream, options=options)
        other = await pool_proxy(TWO, provider=upstream, options=options)
        async with one.client() as http:
            assert (await http.request(**chat(stream=False))).status_code == 200
        assert await hook.until(1) == [("disabled", "openai/first")]
        assert hook.received[0]["text"].startswith("openai/first is disabled: 401")
        assert (hook.received[0]["path"], hook.received[0]["provider"]) == (PATH.lower(), "openai")
        await other.until_printed("openai/first: 401 auth_invalid, disabled, by another proxy")
        await clear(other, "first")
        assert await hook.until(2) == [("disabled", "openai/first"), ("back", "openai/first")]
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
            health = await http.get(f"{one.url}/health")
        assert health.json()["notify"] == [{"target": "http://127.0.0.1", "problem": None}]
        # Where the event was told is not where it could be told twice.
        third = await pool_proxy(TWO, provider=upstream, options=options)
        async with third.client() as http:
            await http.request(**chat(stream=False))
        assert len(hook.received) == 2
    for proxy in (one, other, third):
        assert "FAKE-SECRET" not in "\n".join(proxy.lines)


async def test_workers_tell_each_event_once(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: openai.invalid_key(), SECOND: GOOD}))
    async with webhook() as hook:
        proxy = await pool_proxy(
            TWO, provider=upstream, options={"pool_notify": hook.url}, workers=2
        )
        for _ in range(4):
            async with proxy.client() as http:
                assert (await http.request(**chat(stream=False))).status_code == 200
        # What begins and ends within one look is not told at all.
        assert await hook.until(1) == [("disabled", "openai/first")]
        await clear(proxy, "first")
        assert await hook.until(2) == [("disabled", "openai/first"), ("back", "openai/first")]
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
            health = await http.get(f"{proxy.url}/health")
        assert health.json()["notify"] == [{"target": "http://127.0.0.1", "problem": None}]


async def test_a_list_with_variables_in_accounts_yaml(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: openai.invalid_key(), SECOND: GOOD}))
    async with webhook() as hook:
        notify = [{"env": "HOOK"}, f"{sys.executable} -c 'raise SystemExit(7)' FAKE-SECRET"]
        accounts = json.dumps({"accounts": TWO, "pool": {"notify": notify}})
        proxy = await pool_proxy(accounts, provider=upstream, env={"HOOK": hook.url})
        async with proxy.client() as http:
            assert (await http.request(**chat(stream=False))).status_code == 200
        assert await hook.until(1) == [("disabled", "openai/first")]
        await proxy.until_printed("exited with status 7; the next one tries again")
    assert "FAKE-SECRET" not in "\n".join(proxy.lines)


async def test_mitmweb_shows_the_host_only(pool_proxy):
    port = free_port()
    hook = f"https://hooks.example.com{PATH}"
    proxy = await pool_proxy(
        TWO,
        program="mitmweb",
        options={
            "pool_notify": hook,
            "web_open_browser": "false",
            "web_port": port,
            "web_password": "open-sesame",
        },
    )
    await proxy.until_printed("Web server listening")
    xsrf = {"_xsrf": "x", "_mitmproxy_xsrf": "x"}
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S, cookies=xsrf, trust_env=False,
        headers={"x-xsrftoken": "x", "authorization": "Bearer open-sesame"},
    ) as http:  # fmt: skip

        async def shown() -> str:
            options = (await http.get("/options")).raise_for_status()
            assert "FAKE-SECRET" not in options.text
            return str(options.json()["pool_notify"]["value"])

        assert await shown() == "https://hooks.example.com"
        # What the panel sends back unchanged changes nothing; another target is hidden, too.
        for value, after in (
            ("https://hooks.example.com", "https://hooks.example.com"),
            ("ntfy:FAKE-SECRET", "ntfy:https://ntfy.sh"),
            ("", ""),
        ):
            (await http.put("/options", json={"pool_notify": value})).raise_for_status()
            assert await shown() == after
        wrong = await http.put("/options", json={"pool_notify": "http://a.example/FAKE-SECRET"})
        assert wrong.status_code == 400
        assert "FAKE-SECRET" not in wrong.text
        assert await shown() == ""
    assert "FAKE-SECRET" not in "\n".join(proxy.lines)


def test_the_dump_of_options_shows_the_host_only(tmp_path):
    hook = f"https://hooks.example.com{PATH}"
    args = ["--options", "--set", f"confdir={tmp_path}", "--set", f"pool_notify={hook}"]
    done = subprocess.run(
        [Path(sys.executable).with_name("mitmdump"), "-s", addon_script(), *args],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    # Older versions of mitmproxy do not list options of scripts.
    assert "websocket" in done.stdout
    assert "FAKE-SECRET" not in done.stdout + done.stderr


async def test_the_end_of_a_login_is_told_days_before(provider, pool_proxy):
    upstream = await provider(lambda _request: GOOD)
    ends = datetime.now(UTC) + timedelta(days=2)
    login = {
        "access_token": "fake-access-token",
        "refresh_token": "fake-refresh-token",
        "expires_at": (datetime.now(UTC) + timedelta(hours=2)).isoformat(),
        "refresh_expires_at": ends.isoformat(),
    }
    async with webhook() as hook:
        await pool_proxy(
            [*TWO, account("max", "claude-code", token={"oauth": login})],
            provider=upstream,
            options={"pool_notify": hook.url},
        )
        assert await hook.until(1) == [("login_ending", "claude-code/max")]
        told = hook.received[0]
        assert re.search(r"its login ends in (2 d|1 d 23 h)", told["text"])
        assert abs(datetime.fromisoformat(told["until"]) - ends) < timedelta(minutes=1)
