"""An account that is nearly spent takes no new conversation; the one that lives there stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.e2e.harness import FIRST, SECOND, THIRD, TWO, account, chat
from tests.scripts import openai
from tests.upstream.exchange import Reply
from tests.upstream.replies import by_credential

GOOD = openai.chat_complete("Good morning")


def left(requests: int, reset: str = "20h0m0s") -> Reply:
    """A good answer, after which so many of 10,000 requests are left until the reset."""
    others = (header for header in GOOD.headers if not header[0].startswith("x-ratelimit-"))
    windows = (
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-remaining-requests", f"{requests}"),
        ("x-ratelimit-reset-requests", reset),
    )
    return replace(GOOD, headers=(*others, *windows))


#: 99.5 % of a day's requests are used.
NEARLY_SPENT = left(50)


def turn(session: str) -> dict[str, Any]:
    request = chat(stream=False)
    request["headers"]["x-session-id"] = session
    return request


async def test_new_conversations_begin_elsewhere_also_after_a_restart(
    provider, pool_proxy, tmp_path
):
    upstream = await provider(by_credential({FIRST: NEARLY_SPENT, SECOND: GOOD}))
    kept = {"provider": upstream, "options": {"pool_state": tmp_path / "pool.sqlite"}}
    proxy = await pool_proxy(TWO, **kept)
    async with proxy.client() as http:
        for session in ("lives-there", "new", "lives-there"):
            assert (await http.request(**turn(session))).status_code == 200
    assert upstream.journal.credentials == [FIRST, SECOND, FIRST]
    await proxy.stop()
    proxy = await pool_proxy(TWO, **kept)
    async with proxy.client() as http:
        for session in ("another", "lives-there"):
            assert (await http.request(**turn(session))).status_code == 200
    assert upstream.journal.credentials[3:] == [SECOND, FIRST]


async def test_what_is_lost_first_is_used_first(provider, pool_proxy):
    upstream = await provider(
        by_credential({FIRST: left(9000, "20h"), SECOND: left(5000, "2h"), THIRD: left(9000, "9h")})
    )
    labels = ("first", "second", "third")
    options = {"pool_strategy": "soonest-reset"}
    proxy = await pool_proxy([account(x) for x in labels], provider=upstream, options=options)
    async with proxy.client() as http:
        for n in range(8):
            assert (await http.request(**turn(f"conversation-{n}"))).status_code == 200
    # Each is asked once as long as nothing is known of it.
    assert upstream.journal.credentials == [FIRST, SECOND, THIRD, *[SECOND] * 5]


async def test_a_reserve_is_its_owners(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: left(1400), SECOND: [left(3000), left(900)]}))
    accounts = [account(x, reserve={"requests": "15%"}) for x in ("first", "second")]
    proxy = await pool_proxy(accounts, provider=upstream, options={"pool_max_wait": 0})
    async with proxy.client() as http:
        answers = [await http.request(**turn("lives-there")) for _ in range(4)]
        shown = (await http.get(f"{proxy.url}/account-pool")).json()["accounts"]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    # The conversation moved when its account had come to its reserve, and then nobody could.
    assert upstream.journal.credentials == [FIRST, SECOND, SECOND]
    assert int(answers[-1].headers["retry-after"]) > 19 * 3600
    assert "reserve: 14% of requests left, 15% kept" in shown[0]["cooldowns"][0]["signal"]
