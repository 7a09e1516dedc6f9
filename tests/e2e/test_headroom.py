"""An account that is nearly spent takes no new conversation; the one that lives there stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from account_pool.demo.scripts import by_credential, openai
from tests.e2e.harness import FIRST, SECOND, TWO, chat

GOOD = openai.chat_complete("Good morning")
#: 99.5 % of a day's requests are used.
NEARLY_SPENT = replace(
    GOOD,
    headers=(
        *(header for header in GOOD.headers if not header[0].startswith("x-ratelimit-")),
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-remaining-requests", "50"),
        ("x-ratelimit-reset-requests", "20h0m0s"),
    ),
)


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
