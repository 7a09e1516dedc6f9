"""Whatever breaks in the pool, a request never goes upstream as the client sent it."""

from __future__ import annotations

import pytest

from tests.e2e import breaking
from tests.e2e.harness import CLIENT, FIRST, SECOND, TWO, chat
from tests.scripts import openai
from tests.upstream.replies import by_credential

GOOD = openai.chat_stream(["Good", " morning"])

BEFORE_THE_FIRST_ATTEMPT = [
    "account_pool.core.pool:Pool.acquire",
    "account_pool.core.attempts:Attempts.__init__",
]
AFTER_THE_FIRST_ATTEMPT = [
    "account_pool.proxy.service:Service.carry_out",
    "account_pool.core.pool:Pool.release",
    "account_pool.core.health:PassiveHealth.mark_cooldown",
]


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
@pytest.mark.parametrize("what", BEFORE_THE_FIRST_ATTEMPT)
async def test_before_anything_was_sent(provider, pool_proxy, setting, what, http2):
    upstream = await provider(by_credential({CLIENT: GOOD, FIRST: GOOD, SECOND: GOOD}))
    async with broken(setting, upstream, what) as proxy, proxy.client(http2=http2) as http:
        answer = await http.request(**chat())
    assert_local_error(answer, proxy)
    assert upstream.journal.requests == []


@pytest.mark.parametrize("what", AFTER_THE_FIRST_ATTEMPT)
async def test_after_a_refusal(provider, setting, what):
    upstream = await provider(
        by_credential({CLIENT: GOOD, FIRST: openai.rate_limited(), SECOND: GOOD})
    )
    async with broken(setting, upstream, what) as proxy, proxy.client() as http:
        answer = await http.request(**chat())
    assert answer.status_code in (200, 429, 500, 502, 503)
    assert CLIENT not in upstream.journal.credentials
    assert_no_secret(answer, proxy)


def broken(setting, upstream, what):
    return setting.prepare(
        TWO,
        provider=upstream,
        options={"break_what": what, "termlog_verbosity": "debug"},
        extra_args=["-s", breaking.__file__],
    )


def assert_local_error(answer, proxy) -> None:
    assert answer.status_code >= 500
    # In the words of the provider, so that clients can read it.
    assert {"message", "type"} <= set(answer.json()["error"])
    assert_no_secret(answer, proxy)


def assert_no_secret(answer, proxy) -> None:
    for text in (answer.text, repr(answer.headers), proxy.output):
        assert "sk-fake" not in text
        assert "on purpose" not in text
