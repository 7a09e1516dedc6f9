"""curl, the client that does nothing by itself."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest

from tests.e2e.harness import FIRST, SECOND, TWO, chat
from tests.scripts import openai
from tests.upstream.replies import by_credential

CURL = shutil.which("curl")
CHAT = openai.chat_stream(["Good", " morning"])

pytestmark = pytest.mark.skipif(CURL is None, reason="curl is not installed")


async def curl(proxy, *args: str, data: bytes = b"") -> bytes:
    request = chat()
    process = await asyncio.create_subprocess_exec(
        CURL,
        "--silent",
        "--show-error",
        "--fail-with-body",
        "--no-buffer",
        "--max-time",
        "30",
        *("--proxy", proxy.url),
        *("--cacert", str(proxy.trusted)),
        *("--header", f"authorization: {request['headers']['authorization']}"),
        *("--header", "content-type: application/json"),
        *("--data-binary", "@-"),
        *args,
        request["url"],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(data or json.dumps(request["json"]).encode())
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_curl_sees_the_good_answer(provider, pool_proxy, version):
    upstream = await provider(by_credential({FIRST: openai.rate_limited(), SECOND: CHAT}))
    proxy = await pool_proxy(TWO, provider=upstream)
    assert await curl(proxy, version) == CHAT.body
    assert upstream.journal.statuses == [(FIRST, 429), (SECOND, 200)]


async def test_curl_expects_100_continue_before_a_large_body(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: openai.rate_limited(), SECOND: CHAT}))
    proxy = await pool_proxy(TWO, provider=upstream)
    body = json.dumps(chat("x" * 2_000_000)["json"]).encode()
    assert await curl(proxy, "--http1.1", data=body) == CHAT.body
    assert [r.body_size for r in upstream.journal.requests] == [len(body)] * 2
