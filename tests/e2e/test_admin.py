"""The admin API of a real mitmdump: on its own port, and at pool.mitm.it through it."""

from __future__ import annotations

import asyncio
import json
import stat
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from mitmproxy.io import FlowReader

from account_pool.admin.auth import TOKEN_FILE
from account_pool.admin.events import MAX_CLIENTS
from tests.e2e.harness import (
    CONFDIR,
    FIRST,
    SECOND,
    THIRD,
    TIMEOUT_S,
    TWO,
    chat,
    run_command,
    secret,
)
from tests.scripts import openai
from tests.upstream.replies import by_credential

NEW = {"provider": "openai", "label": "third", "token": THIRD, "priority": 2}


def direct(proxy) -> httpx.AsyncClient:
    """A client that asks the proxy's own port, as a browser at home does."""
    transport = httpx.AsyncHTTPTransport()
    return httpx.AsyncClient(transport=transport, base_url=proxy.url, timeout=TIMEOUT_S)


def admin(proxy) -> dict[str, str]:
    token = (proxy.folder / CONFDIR / TOKEN_FILE).read_text().strip()
    return {"authorization": f"Bearer {token}"}


async def raw(proxy, sent: bytes) -> bytes:
    """Send bytes that no client library would; return the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(sent)
    async with asyncio.timeout(TIMEOUT_S):
        answer = await reader.read(65536)
    writer.close()
    return answer


async def test_look_and_change(provider, pool_proxy):
    good = openai.chat_complete("Good morning")
    script = {FIRST: openai.insufficient_quota(), SECOND: good, THIRD: good}
    upstream = await provider(by_credential(script))
    proxy = await pool_proxy(TWO, provider=upstream, extra_args=["-w", "dump"])
    bodies: list[str] = []
    async with direct(proxy) as own, proxy.client() as through:
        health = await own.get("/health")
        assert health.json()["ready"]
        assert (await through.request(**chat(stream=False))).status_code == 200

        # What the failover has left is told, on both ways in.
        for client, base in ((own, ""), (through, "http://pool.mitm.it"),
                             (through, "https://pool.mitm.it"), (through, proxy.url)):  # fmt: skip
            told = await client.get(f"{base}/account-pool")
            first = told.json()["accounts"][0]
            assert (first["key"], first["state"]) == ("openai/first", "cooling")
            assert first["cooldowns"][0]["remaining_s"] > 0
            bodies.append(told.text)
        assert told.json()["summary"]["cooling_down"] == 1
        metrics = (await own.get("/metrics")).text
        assert 'account_pool_failovers_total{provider="openai"} 1.0' in metrics
        bodies.append(metrics)

        # No change without the token; one with it is written down and counts at once.
        assert (await own.post("/account-pool/add", json=NEW)).status_code == 401
        added = await own.post("/account-pool/add", json=NEW, headers=admin(proxy))
        assert added.status_code == 201
        assert added.json()["written_to"] == "accounts.yaml"
        assert THIRD in (proxy.folder / "accounts.yaml").read_text()
        for body, path in (({"label": "second"}, "disable"), ({"label": "first"}, "clear-cooldown"),
                           ({"label": "first"}, "disable")):  # fmt: skip
            done = await through.post(
                f"http://pool.mitm.it/account-pool/{path}",
                json={"provider": "openai", **body},
                headers=admin(proxy),
            )
            assert done.status_code == 200
            bodies.append(done.text)
        assert (await through.request(**chat(stream=False))).status_code == 200
        assert upstream.journal.statuses[-1] == (THIRD, 200)
        for path in ("/", "/openapi.json", "/decisions", "/sessions", "/usage"):
            shown = await own.get(path)
            assert shown.status_code == 200
            bodies.append(shown.text)
        served = {row["account"]: row["requests"] for row in shown.json()["days"]}
        assert served == {"openai/second": 1, "openai/third": 1}
        decisions = (await own.get("/decisions?account=openai/first")).json()["decisions"]
        kinds = [decision["kind"] for decision in reversed(decisions)]
        assert kinds == ["cooldown", "move", "release", "disable"]

    token = admin(proxy)["authorization"].removeprefix("Bearer ")
    for text in (*bodies, added.text, proxy.output):
        assert not [s for s in (FIRST, SECOND, THIRD, token) if s in text]
    mode = (proxy.folder / CONFDIR / TOKEN_FILE).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    await proxy.stop()
    dump = (proxy.folder / "dump").read_bytes()
    assert token.encode() not in dump
    assert THIRD.encode() not in dump
    with (proxy.folder / "dump").open("rb") as file:
        hosts = {flow.request.host for flow in FlowReader(file).stream()}
    assert hosts == {"api.openai.com"}


class Events:
    """Reads GET /events, event by event."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.name = ""

    async def next(self) -> tuple[str, Any]:
        """Return the next event: its name, and what it says."""
        async with asyncio.timeout(TIMEOUT_S):
            async for line in self._lines:
                field, _, value = line.partition(": ")
                if field == "event":
                    self.name = value
                elif field == "data":
                    return self.name, json.loads(value)
        return "end", None

    async def until(self, wanted: Callable[[str, Any], bool]) -> list[tuple[str, Any]]:
        """Return events up to the first that is *wanted*."""
        found = [await self.next()]
        while not wanted(*found[-1]):
            assert found[-1][0] != "end", found
            found.append(await self.next())
        return found


def shows(key: str, state: str) -> Callable[[str, Any], bool]:
    def is_shown(name: str, said: Any) -> bool:
        known = said["accounts"] if name == "accounts" else ()
        return any((one["key"], one["state"]) == (key, state) for one in known)

    return is_shown


@pytest.mark.parametrize("way", ["own port", "through http", "through https with http2"])
@pytest.mark.parametrize("workers", [1, 2])
async def test_events_are_told_as_they_happen(provider, pool_proxy, way, workers):
    if workers > 1 and sys.platform != "linux":
        pytest.skip("workers are for Linux")
    good = openai.chat_complete("Good morning")
    upstream = await provider(by_credential({FIRST: openai.insufficient_quota(), SECOND: good}))
    proxy = await pool_proxy(TWO, provider=upstream, workers=workers)
    url = {"own port": proxy.url, "through http": "http://pool.mitm.it"}.get(way)
    client = direct(proxy) if way == "own port" else proxy.client(http2="http2" in way)
    async with (
        client,
        proxy.client() as tool,
        client.stream("GET", f"{url or 'https://pool.mitm.it'}/events") as response,
    ):
        assert response.status_code == 200
        assert response.http_version == ("HTTP/2" if "http2" in way else "HTTP/1.1")
        events = Events(response)
        await events.until(shows("openai/first", "available"))
        # Whichever worker serves it.
        assert (await tool.request(**chat(stream=False))).status_code == 200
        told = await events.until(shows("openai/first", "cooling"))
        while not any(n == "decision" and said["kind"] == "move" for n, said in told):
            told.append(await events.next())
        ending = asyncio.create_task(proxy.stop())
        assert (await events.until(lambda name, _: name == "bye"))[-1][1]["reason"]
        assert await events.next() == ("end", None)
        await ending
    assert "cut off" not in proxy.output and "internal error" not in proxy.output


async def test_a_reader_of_events_that_leaves_is_forgotten(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: openai.chat_complete("Good morning")}))
    proxy = await pool_proxy(TWO, provider=upstream)
    # More than there is room for, one after the other.
    for _ in range(MAX_CLIENTS + 4):
        async with direct(proxy) as client, client.stream("GET", "/events") as response:
            await Events(response).until(lambda name, _: name == "accounts")


@pytest.mark.parametrize("mode", ["regular", "upstream:http://127.0.0.1:9"])
async def test_what_other_pages_try(pool_proxy, mode):
    proxy = await pool_proxy(TWO, extra_args=["--mode", mode])
    own = f"127.0.0.1:{proxy.port}"
    token = admin(proxy)["authorization"]
    body = json.dumps({"provider": "openai", "label": "first"})
    change = (
        f"POST /account-pool/remove HTTP/1.1\r\nHost: {own}\r\nAuthorization: {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n%s\r\n{body}"
    )
    get = "GET {} HTTP/1.1\r\nHost: {}\r\n{}\r\n"
    for sent, status in (
        (change % "Origin: http://evil.example\r\n", 403),
        (change % "Sec-Fetch-Site: same-site\r\n", 403),
        (change.replace(f"Host: {own}", f"Host: evil.example:{proxy.port}") % "", 421),
        (change.replace("application/json", "text/plain") % "", 415),
        (change.replace("POST /", f"POST http://{own}/").replace(f"Host: {own}", "Host: x") % "", 421),  # noqa: E501
        (change % "Transfer-Encoding: chunked\r\n", 400),
        (get.format("/account-pool", f"evil.example:{proxy.port}", ""), 421),
        (get.format("/account-pool", own, "Sec-Fetch-Site: cross-site\r\n"), 403),
        (get.format("/../account-pool", own, ""), 404),
        (get.format("//account-pool", own, ""), 404),
        (get.format("http://pool.mitm.it/health", "pool.mitm.it", ""), 200),
        (get.format("http://pool.mitm.it/health", "evil.example", ""), 421),
    ):  # fmt: skip
        answer = await raw(proxy, sent.encode())
        assert answer.startswith(b"HTTP/1.1 %d" % status), (sent, answer)
        assert b"access-control" not in answer.lower()
        assert secret("first").encode() not in answer
    async with proxy.client() as through:
        assert (await through.get("https://pool.mitm.it/health")).json()["size"] == 2


async def test_through_the_proxy_to_its_own_port(pool_proxy):
    """So a client of another machine would look like one of this."""
    proxy = await pool_proxy(TWO)
    own = f"127.0.0.1:{proxy.port}"
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    # A spelling of this machine that mitmproxy does not know for its own.
    writer.write(f"CONNECT 127.1:{proxy.port} HTTP/1.1\r\nHost: 127.1\r\n\r\n".encode())
    async with asyncio.timeout(TIMEOUT_S):
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(f"GET /account-pool HTTP/1.1\r\nHost: {own}\r\n\r\n".encode())
        answer = await reader.read(65536)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"not_local" in answer


async def test_with_proxyauth_there_is_no_side_door(pool_proxy):
    proxy = await pool_proxy(TWO, options={"proxyauth": "user:secret", "pool_state": "state"})
    async with direct(proxy) as own:
        assert (await own.get("/health")).status_code == 200
        assert (await own.get("/account-pool")).status_code == 401
        told = await own.get("/account-pool", headers=admin(proxy))
        assert told.status_code == 200


async def test_an_addition_without_accounts_yaml_is_there_again(pool_proxy):
    """It is kept in the store, and accounts of the environment stay."""
    env = {"OPENAI_API_KEY": FIRST}
    proxy = await pool_proxy(None, env=env, options={"pool_state": "state.sqlite"})
    async with direct(proxy) as own:
        added = await own.post("/account-pool/add", json=NEW, headers=admin(proxy))
        assert added.json()["written_to"] == "store"
    folder = proxy.folder
    await proxy.stop()
    state = folder / "state.sqlite"
    again = await pool_proxy(None, env=env, options={"pool_state": state})
    async with direct(again) as own:
        keys = [a["key"] for a in (await own.get("/account-pool")).json()["accounts"]]
    assert keys == ["openai/default", "openai/third"]


async def test_the_commands_of_every_day(provider, pool_proxy, tmp_path):
    """`account-pool list`, `disable` ... at a real proxy, as a user types them."""
    script = {FIRST: openai.rate_limited(), SECOND: openai.chat_complete("Good morning")}
    proxy = await pool_proxy(TWO, provider=await provider(by_credential(script)))
    async with proxy.client() as client:
        assert (await client.request(**chat(stream=False))).status_code == 200
    home = tmp_path / "home"
    (home / ".mitmproxy").mkdir(parents=True)
    kept = home / ".mitmproxy" / TOKEN_FILE

    async def command(*words: str) -> tuple[int, str, str]:
        return await run_command(home, *words, "-p", str(proxy.port))

    assert (await command("list"))[1].splitlines() == [
        "openai/first   available, but gpt-5-nano on cooldown",
        "openai/second  available",
    ]
    code, _out, err = await command("disable", "openai/second")
    assert (code, "admin token" in err) == (1, True)

    kept.write_text(admin(proxy)["authorization"].removeprefix("Bearer "))
    assert (await command("disable", "openai/second"))[0] == 0
    assert (await command("clear", "openai/first"))[0] == 0
    assert json.loads((await command("list", "--json"))[1])["accounts"][1]["state"] == "disabled"
    enabled = json.loads((await command("enable", "openai/second", "--json"))[1])
    assert enabled["account"]["state"] == "available"
    assert (await command("next", "openai"))[1].startswith("next: openai/")
    code, _out, err = await command("disable", "openai/nobody")
    assert (code, err.count("\n")) == (1, 1)
    code, _out, err = await command("decisions", "--kind", "nonsense")
    assert (code, "kind" in err) == (2, True)

    link = (await command("dashboard", "--print"))[1].strip()
    async with direct(proxy) as own:
        path, _, login = link.removeprefix(proxy.url).partition("#code=")
        assert (await own.get(path)).status_code == 200
        redeemed = await own.post("/link/redeem", json={"code": login})
        assert {"authorization": f"Bearer {redeemed.json()['token']}"} == admin(proxy)
        assert (await own.post("/link/redeem", json={"code": login})).status_code == 401

    usage = json.loads((await command("usage", "--by", "provider", "--json"))[1])["usage"]
    assert [(one["provider"], one["requests"]) for one in usage] == [("openai", 1)]
    code, out, _err = await command("decisions", "--json")
    kinds = [json.loads(line)["kind"] for line in out.splitlines()]
    assert kinds.index("cooldown") < kinds.index("disable") < kinds.index("enable")

    assert (await command("remove", "openai/second"))[0] == 0
    assert (await command("list"))[1].split() == ["openai/first", "available"]
    assert SECOND not in (proxy.folder / "accounts.yaml").read_text()
