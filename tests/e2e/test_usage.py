"""What real SDKs were told they used is what the proxy counts."""

from __future__ import annotations

import asyncio

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.harness import CLIENT, FIRST, TIMEOUT_S, account, point_clients_at
from tests.scripts import anthropic, gemini, openai
from tests.upstream.replies import by_credential

WORDS = ["Good", " morning", " to", " you"]
PROMPT = [{"role": "user", "content": "Hello?"}]


def script(request):
    """Answer as the vendor does whose path it is."""
    if request.path.startswith("/v1/messages"):
        answer = anthropic.message_stream(WORDS)
    elif "generateContent" in request.path or "GenerateContent" in request.path:
        answer = gemini.content_stream(WORDS)
    else:
        answer = openai.chat_stream(WORDS)
    return by_credential({FIRST: answer})(request)


async def test_tokens_are_those_the_clients_were_told(provider, pool_proxy, monkeypatch):
    upstream = await provider(script)
    names = ("openai", "anthropic", "gemini")
    proxy = await pool_proxy([account("first", name) for name in names], provider=upstream)
    point_clients_at(proxy, monkeypatch)
    told = {
        ("openai/first", "gpt-5-nano"): await ask_openai(),
        ("anthropic/first", "claude-haiku-4-5"): await ask_anthropic(),
        ("gemini/first", "gemini-3.5-flash"): await asyncio.to_thread(ask_gemini),
    }
    await upstream.journal.until_answered(3)
    counted = await tokens(proxy.url)
    for (name, model), (sent, generated) in told.items():
        assert sent and generated == len(WORDS)
        assert counted[name, model, "input"] == sent
        assert counted[name, model, "output"] == generated


async def ask_openai() -> tuple[int, int]:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client:
        stream = await client.chat.completions.create(
            model="gpt-5-nano",
            messages=PROMPT,
            stream=True,
            stream_options={"include_usage": True},
        )
        usage = [chunk async for chunk in stream][-1].usage
    return usage.prompt_tokens, usage.completion_tokens


async def ask_anthropic() -> tuple[int, int]:
    from anthropic import AsyncAnthropic

    async with (
        AsyncAnthropic(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client,
        client.messages.stream(model="claude-haiku-4-5", max_tokens=64, messages=PROMPT) as stream,
    ):
        usage = (await stream.get_final_message()).usage
    return usage.input_tokens, usage.output_tokens


def ask_gemini() -> tuple[int, int]:
    from google import genai

    client = genai.Client(api_key=CLIENT)
    stream = client.models.generate_content_stream(model="gemini-3.5-flash", contents="Hello?")
    usage = [chunk.usage_metadata for chunk in stream][-1]
    return usage.prompt_token_count, usage.candidates_token_count


async def tokens(url: str) -> dict[tuple[str, str, str], float]:
    """Read the counters of tokens from the proxy's own metrics, by account, model and kind."""
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{url}/metrics")
    assert answer.status_code == 200
    return {
        (sample.labels["account"], sample.labels["model"], sample.labels["kind"]): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == "account_pool_tokens_total"
    }
