"""What stands in for OpenAI in the demo: read by the rules that read OpenAI."""

from __future__ import annotations

import asyncio
import json
import ssl

import httpx
from tests.patience import PATIENCE_S

from account_pool.core.outcome import OutcomeClass, UpstreamResponse
from account_pool.demo.failover import (
    chat_stream,
    insufficient_quota,
    rate_limited,
    serve,
    server_context,
)
from account_pool.providers.registry import BUILT_IN

SAID = {
    "sk-fake-work-000": rate_limited(38),
    "sk-fake-old-000": insufficient_quota(),
    "sk-fake-spare-000": chat_stream(["a", " b"], 0.0),
}


async def test_refusals_are_those_of_openai_and_a_stream_has_its_words(tmp_path):
    authority, tls = await asyncio.to_thread(server_context, tmp_path)
    trust = ssl.create_default_context(cafile=str(authority))
    asked = []

    def script(credential, body):
        asked.append((credential, body["model"]))
        return SAID[credential]

    async with await serve(script, tls) as server, asyncio.timeout(PATIENCE_S):
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}/v1/chat/completions"
        async with httpx.AsyncClient(verify=trust, trust_env=False, timeout=PATIENCE_S) as client:
            answers = [
                await client.post(
                    url, json={"model": "m"}, headers={"authorization": f"Bearer {credential}"}
                )
                for credential in SAID
            ]
    assert asked == [(credential, "m") for credential in SAID]
    refusals = [
        BUILT_IN["openai"].classify(
            UpstreamResponse(status=one.status_code, headers=dict(one.headers), payload=one.json())
        )
        for one in answers[:2]
    ]
    assert [one.cls for one in refusals] == [OutcomeClass.RATE_LIMIT, OutcomeClass.QUOTA]
    assert refusals[0].cooldown_s == 38
    *events, last, _ = answers[2].text.split("\n\n")
    assert last == "data: [DONE]"
    choices = [json.loads(one.removeprefix("data: "))["choices"] for one in events]
    assert "".join(c[0]["delta"].get("content", "") for c in choices if c) == "a b"
