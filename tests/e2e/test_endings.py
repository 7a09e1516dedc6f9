"""When nobody can serve: the vendors' SDKs give up, or wait, as their vendor intended.

Their own retries are on. A long wait ends them; what they raise is the vendor's own error
class, made of the vendor's own words, with the wait that holds for the whole pool.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.harness import CLIENT, FIRST, SECOND, TIMEOUT_S, in_order, point_clients_at
from tests.scripts import anthropic as anthropic_script
from tests.scripts import gemini
from tests.scripts import openai as openai_script
from tests.upstream.replies import by_credential

PROMPT = [{"role": "user", "content": "Hello?"}]
#: The first account is back before the second: the pool's wait is the shorter one.
SOONEST_S, LATEST_S = 600.0, 7200.0


@pytest.fixture
async def exhausted(provider, pool_proxy, monkeypatch):
    """Start a pool whose two accounts are refused as given."""

    async def start(name: str, first, second):
        upstream = await provider(by_credential({FIRST: first, SECOND: second}))
        proxy = await pool_proxy(in_order("first", "second", provider=name), provider=upstream)
        point_clients_at(proxy, monkeypatch)
        return upstream.journal

    return start


def assert_soonest(seconds: float) -> None:
    """A little less than named, as time has passed; a little more, as jitter is added."""
    assert SOONEST_S - TIMEOUT_S <= seconds <= SOONEST_S + 60


async def test_openai_gives_up_at_once(exhausted):
    from openai import AsyncOpenAI, RateLimitError

    journal = await exhausted(
        "openai",
        openai_script.rate_limited(SOONEST_S, organisation="org-first"),
        openai_script.rate_limited(LATEST_S, organisation="org-second"),
    )
    async with AsyncOpenAI(api_key=CLIENT, max_retries=2, timeout=TIMEOUT_S) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.chat.completions.create(model="gpt-5-nano", messages=PROMPT)
    error = caught.value
    assert error.code == "rate_limit_exceeded"
    assert_soonest(float(error.response.headers["retry-after"]))
    assert_soonest(float(error.response.headers["retry-after-ms"]) / 1000)
    # Its two retries were not made.
    assert journal.statuses == [(FIRST, 429), (SECOND, 429)]


async def test_anthropic_gives_up_at_once(exhausted):
    from anthropic import AsyncAnthropic, RateLimitError

    journal = await exhausted(
        "anthropic",
        anthropic_script.rate_limited(SOONEST_S),
        anthropic_script.rate_limited(LATEST_S),
    )
    async with AsyncAnthropic(api_key=CLIENT, max_retries=2, timeout=TIMEOUT_S) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.messages.create(model="claude-haiku-4-5", max_tokens=8, messages=PROMPT)
    error = caught.value
    assert error.body["error"]["type"] == "rate_limit_error"
    assert_soonest(float(error.response.headers["retry-after"]))
    assert journal.statuses == [(FIRST, 429), (SECOND, 429)]


async def test_google_genai_reads_the_wait_in_the_body(exhausted):
    from google import genai
    from google.genai.errors import ClientError

    journal = await exhausted("gemini", gemini.per_minute(SOONEST_S), gemini.per_minute(LATEST_S))

    def ask() -> ClientError:
        client = genai.Client(api_key=CLIENT)
        with pytest.raises(ClientError) as caught:
            client.models.generate_content(model="gemini-3.5-flash", contents="Hello?")
        return caught.value

    error = await asyncio.to_thread(ask)
    assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
    details = {detail["@type"].rpartition(".")[2]: detail for detail in _details(error)}
    assert_soonest(float(details["RetryInfo"]["retryDelay"].removesuffix("s")))
    assert "QuotaFailure" in details
    assert journal.statuses == [(FIRST, 429), (SECOND, 429)]


def _details(error):
    return error.details["error"]["details"]


async def test_a_request_that_comes_while_all_cool_gets_the_same_words(exhausted):
    """It is not sent anywhere, and still reads as the provider's own refusal."""
    from anthropic import AsyncAnthropic, RateLimitError

    journal = await exhausted(
        "anthropic",
        anthropic_script.rate_limited(SOONEST_S),
        anthropic_script.rate_limited(LATEST_S),
    )
    async with AsyncAnthropic(api_key=CLIENT, max_retries=0, timeout=TIMEOUT_S) as client:
        errors = []
        for _ in range(2):
            with pytest.raises(RateLimitError) as caught:
                await client.messages.create(
                    model="claude-haiku-4-5", max_tokens=8, messages=PROMPT
                )
            errors.append(caught.value)
    assert errors[0].body == errors[1].body
    assert_soonest(float(errors[1].response.headers["retry-after"]))
    assert len(journal.statuses) == 2
