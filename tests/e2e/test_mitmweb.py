"""What a person sees and does in mitmweb, and with a dump: real processes, mitmweb's own API."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from mitmproxy.io import FlowReader

from account_pool.demo.mitmdump import POOL_READY
from tests.e2e import harness
from tests.e2e.harness import FIRST, SECOND, TIMEOUT_S, TWO, chat, free_port
from tests.scripts import encoded, openai
from tests.upstream.exchange import Reply, Request
from tests.upstream.replies import by_credential

CHAT = openai.chat_stream(["Good", " morning"])
#: With a little jitter.
REFUSED = r"openai/first: 429 rate_limit, on cooldown for \d\d s \(gpt-5-nano\) -> openai/second"
SECRET = re.compile(rb"sk-fake-\w+-000")
PASSWORD = "open-sesame"
#: Names differ between versions; mitmweb looks whether cookie and header agree.
XSRF = {"_xsrf": "x", "_mitmproxy_xsrf": "x"}

Flow = dict[str, Any]


def echoing(request: Request) -> Reply:
    """Refuse the first account and print its key; serve the second, compressed."""
    if request.credential == SECOND:
        return encoded(CHAT, "gzip")
    refusal = openai.rate_limited()
    body = json.loads(refusal.body)
    body["error"]["param"] = f"key {request.credential}"
    headers = (*refusal.headers, ("x-key", request.credential))
    return encoded(replace(refusal, headers=headers, steps=(json.dumps(body).encode(),)), "gzip")


class Web:
    """mitmweb's API, as its own page uses it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def get(self, path: str, **params: str) -> httpx.Response:
        return (await self.http.get(path, params=params)).raise_for_status()

    async def post(self, path: str, **arguments: Any) -> Any:
        answer = (await self.http.post(path, json=arguments)).raise_for_status()
        return answer.json() if answer.content else None

    async def run(self, command: str, *arguments: str) -> Any:
        return (await self.post(f"/commands/{command}", arguments=arguments))["value"]

    async def flows(self) -> list[Flow]:
        return (await self.get("/flows")).json()

    async def until(self, happened: Callable[[Flow], Any]) -> Flow:
        """Return the first flow that is as wanted, once there is one."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                for flow in await self.flows():
                    if happened(flow):
                        return flow

    async def body(self, flow: Flow, message: str) -> bytes:
        return (await self.get(f"/flows/{flow['id']}/{message}/content.data")).content

    async def found(self, expression: str) -> list[str]:
        """Return the ids of the flows that a filter lets through."""
        dump = (await self.get("/flows/dump", filter=expression)).content
        return [flow.id for flow in FlowReader(io.BytesIO(dump)).stream()]

    async def everything(self) -> bytes:
        flows = await self.flows()
        bodies = [await self.body(f, m) for f in flows for m in ("request", "response")]
        dump = (await self.get("/flows/dump")).content
        return b"\n".join([json.dumps(flows).encode(), dump, *bodies])


@pytest.fixture
async def mitmweb(pool_proxy):
    """Start mitmweb: the proxy, and its API."""

    @asynccontextmanager
    async def start(upstream, **options: Any) -> AsyncIterator[tuple[harness.Proxy, Web]]:
        port = free_port()
        settings = {"web_open_browser": "false", "web_port": port, "web_password": PASSWORD}
        proxy = await pool_proxy(
            TWO, provider=upstream, options={**settings, **options}, program="mitmweb"
        )
        await proxy.until_printed("Web server listening")
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": f"Bearer {PASSWORD}", "x-xsrftoken": "x"},
            cookies=XSRF,
            timeout=TIMEOUT_S,
            trust_env=False,
        ) as http:
            yield proxy, Web(http)

    return start


def key_of(flow: Flow) -> str:
    return next(v for n, v in flow["request"]["headers"] if n.lower() == "authorization")


async def test_a_failover_is_there_to_read_and_to_replay(provider, mitmweb):
    """The proxy asks for a password: nobody has to give it for a replay."""
    upstream = await provider(echoing)
    async with mitmweb(upstream, proxyauth="me:secret") as (proxy, web):
        url = proxy.url.replace("http://", "http://me:secret@")
        async with harness.client(proxy.trusted, url, http2=True) as http:
            answer = await http.request(**chat())
        assert answer.content == CHAT.body
        served, refused = await web.flows()
        assert refused["marked"]
        assert not served["marked"]
        assert re.fullmatch(REFUSED, refused["comment"])
        assert served["comment"].startswith("openai/second <- first 429; openai/first: 429 rate_")
        assert [f["response"]["status_code"] for f in (served, refused)] == [200, 429]
        assert [key_of(f) for f in (served, refused)] == [
            "Bearer pool:openai/second",
            "Bearer pool:openai/first",
        ]
        assert await web.body(served, "response") == CHAT.body
        assert b"key ****" in await web.body(refused, "response")
        assert json.loads(await web.body(refused, "request")) == chat()["json"]
        view = await web.get(f"/flows/{served['id']}/response/content/auto.json")
        assert "morning" in view.text
        assert not SECRET.findall(await web.everything())

        for expression in ("~marked", "~meta pool.refused", "~marker no_entry", "~c 429"):
            assert await web.found(expression) == [refused["id"]], expression
        assert await web.found("~comment cooldown") == [served["id"], refused["id"]]
        assert await web.found("~meta 'pool.attempts: 2'") == [served["id"]]
        assert await web.run("pool.options.accounts") == ["openai/first", "openai/second"]
        assert "openai/first" in "\n".join(await web.run("pool.status"))

        # The refused one is replayed: its account still cools.
        await web.post(f"/flows/{refused['id']}/replay")
        again = await web.until(lambda f: f["id"] == refused["id"] and "response" in f)
        assert again["response"]["status_code"] == 200
        assert await web.body(again, "response") == CHAT.body
        assert key_of(again) == "Bearer pool:openai/second"
        assert (again["marked"], again["comment"]) == ("", "openai/second")
        assert upstream.journal.credentials == [FIRST, SECOND, SECOND]
        assert len(await web.flows()) == 2
        assert not SECRET.findall(await web.everything())
        assert "1 in flight" not in await web.run("pool.status")


async def test_requests_that_are_held_for_approval(provider, mitmweb):
    upstream = await provider(by_credential({FIRST: CHAT}))
    async with (
        mitmweb(upstream, pool_manual_approve="true") as (proxy, web),
        proxy.client() as http,
    ):
        asked = asyncio.create_task(http.request(**chat()))
        held = await web.until(lambda f: f["intercepted"])
        assert upstream.journal.requests == []
        assert "1 in flight" not in await web.run("pool.status")
        await web.post(f"/flows/{held['id']}/resume")
        assert (await asked).content == CHAT.body

        asked = asyncio.create_task(http.request(**chat("No.")))
        held = await web.until(lambda f: f["intercepted"])
        await web.post(f"/flows/{held['id']}/kill")
        with pytest.raises(httpx.RemoteProtocolError):
            await asked
        # Whoever replays has approved.
        await web.post(f"/flows/{held['id']}/replay")
        await web.until(lambda f: f["id"] == held["id"] and "response" in f)
        assert upstream.journal.credentials == [FIRST] * 2


@pytest.mark.parametrize("fast", ["off", "on"])
async def test_a_client_that_leaves_while_its_request_is_held(provider, mitmweb, fast: str):
    """Be it resumed or killed then: nobody is asked, and others are served."""
    upstream = await provider(by_credential({FIRST: CHAT}))
    async with mitmweb(upstream, pool_manual_approve="true", pool_fast=fast) as (proxy, web):
        for number, then in enumerate(("resume", "kill"), 1):
            async with proxy.client() as http:
                asked = asyncio.create_task(http.request(**chat(then)))
                held = await web.until(lambda f: f["intercepted"])
                await harness.leave(asked)
            await proxy.until(lambda n=number: proxy.output.count("client disconnect") == n)
            await web.post(f"/flows/{held['id']}/{then}")
            await web.until(lambda f, held=held: f["id"] == held["id"] and f.get("error"))
        assert upstream.journal.requests == []
        async with proxy.client() as http:
            asked = asyncio.create_task(http.request(**chat()))
            held = await web.until(lambda f: f["intercepted"])
            await web.post(f"/flows/{held['id']}/resume")
            assert (await asked).content == CHAT.body
        assert upstream.journal.credentials == [FIRST]
        assert "1 in flight" not in await web.run("pool.status")


async def test_a_dump_holds_refused_attempts_and_is_replayed(provider, setting):
    upstream = await provider(echoing)
    proxy = setting.prepare(
        TWO, provider=upstream, options={"hardump": "x.har"}, extra_args=["-w", "x.mitm"]
    )
    async with proxy:
        async with proxy.client() as http:
            await http.request(**chat())
        # One line of ours for the failover, and mitmdump's own are off.
        ours = [line for line in proxy.lines if "openai/" in line and "ready" not in line]
        assert len(ours) == 1, ours
    assert not SECRET.findall((proxy.folder / "x.mitm").read_bytes())
    assert not SECRET.findall((proxy.folder / "x.har").read_bytes())
    har = json.loads((proxy.folder / "x.har").read_text())["log"]["entries"]
    # The refused attempt is shown while its replay runs: either may be first.
    assert sorted(entry["response"]["status"] for entry in har) == [200, 429]
    served, refused = sorted(read(proxy.folder / "x.mitm"), key=lambda flow: flow.marked)
    assert refused.marked == ":no_entry:"
    assert re.fullmatch(REFUSED, refused.comment)
    assert refused.metadata["pool.flow"] == served.id
    assert served.response.content == CHAT.body

    again = setting.prepare(
        TWO,
        provider=upstream,
        extra_args=["-nC", str(proxy.folder / "x.mitm"), "-w", "y.mitm"],
        ready=POOL_READY,
    )
    assert await again.run_to_end() == 0
    # Neither twice nor with the placeholder; the new proxy does not know that first cools.
    assert upstream.journal.credentials == [FIRST, SECOND] * 2
    assert "Traceback" not in again.output
    flows = {flow.id: flow for flow in read(again.folder / "y.mitm")}
    assert flows[served.id].response.content == CHAT.body
    assert flows[served.id].comment.startswith("openai/second <- first 429; ")
    assert flows[refused.id].response.status_code == 409
    assert not SECRET.findall((again.folder / "y.mitm").read_bytes())
    assert not SECRET.findall(again.output.encode())


def read(path) -> list[Any]:
    with path.open("rb") as file:
        return list(FlowReader(file).stream())
