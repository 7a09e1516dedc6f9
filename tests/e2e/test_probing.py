"""A deadline that was wrong, or lifted, is found out while others serve; no client notices."""

from __future__ import annotations

from tests.e2e import hasty
from tests.e2e.harness import FIRST, SECOND, TWO, chat
from tests.scripts import openai
from tests.upstream.replies import by_credential

GOOD = openai.chat_complete("Good morning")
#: No header names a reset of its own window: it is a guess.
LIMITED = openai.insufficient_quota()


async def test_a_limit_that_was_lifted_is_found_out(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: [LIMITED, LIMITED, GOOD], SECOND: GOOD}))
    proxy = await pool_proxy(
        TWO,
        provider=upstream,
        extra_args=["-s", hasty.__file__],
        options={"pool_strategy": "fill-first"},
    )
    asked, answers = upstream.journal.credentials, []
    async with proxy.client() as http:
        # Until the probe after the refused one brings it back: both are replayed or served.
        while upstream.journal.credentials.count(FIRST) < 4:
            answers.append(await http.request(**chat(f"number {len(answers)}", stream=False)))
            asked = upstream.journal.credentials
    assert {answer.status_code for answer in answers} == {200}
    # The refused probe was replayed at once, and in between nobody asked.
    tries = [n for n, credential in enumerate(asked) if credential == FIRST]
    assert asked[tries[1] + 1] == SECOND
    assert upstream.journal.statuses[tries[2]] == (FIRST, 200)
    assert [line for line in proxy.lines if "openai/first" in line and ": probed (" in line]
