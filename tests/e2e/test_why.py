"""Why an account cools is told in the log, once, and by `pool.status`, whole."""

from __future__ import annotations

import re

from tests.e2e import status
from tests.e2e.harness import FIRST, SECOND, chat, free_port, in_order
from tests.scripts import openai
from tests.upstream.replies import by_credential

GOOD = openai.chat_complete("Good morning")


async def test_one_line_a_failover_and_a_record_of_its_cause(provider, pool_proxy):
    limited = openai.rate_limited(600)
    upstream = await provider(by_credential({FIRST: limited, SECOND: GOOD}))
    proxy = await pool_proxy(
        in_order("first", "second"), provider=upstream, extra_args=["-s", status.__file__]
    )
    async with proxy.client() as http:
        for _ in range(3):
            assert (await http.request(**chat(stream=False))).status_code == 200
        told = (await http.get(f"http://{status.HOST}/")).text.splitlines()
    line = await proxy.until_printed("openai/first: 429")
    cause = r"429 code=rate_limit_exceeded: [a-z ]+; retry-after: 600.*"
    cools = r"openai/first: 429 rate_limit, on cooldown for 1[01] min( \(gpt-\S+\))?"
    assert re.search(rf"{cools} -> openai/second \({cause}\)$", line.rstrip())
    _, first, second, _, _, move, cooldown, _, file = told
    assert "accounts.yaml" in file
    assert re.match(rf"openai/first +\S.* {cause}", first)
    assert re.match(r"openai/second +available +0 +3 +\d ", second)
    assert re.fullmatch(rf"\d\d:\d\d:\d\d  move      {cools} -> openai/second \({cause}\)", move)
    assert re.fullmatch(rf"\d\d:\d\d:\d\d  cooldown  {cools}, by a refusal \({cause}\)", cooldown)
    # Of ours: one line for the failover, none for the requests after it.
    assert proxy.output.count("openai/first") == 2
    assert len(re.findall("openai/first: ", proxy.output)) == 1


async def test_alerts_alone_tell_the_failover(provider, pool_proxy):
    """`termlog_verbosity=alert` leaves no line about connections."""
    upstream = await provider(by_credential({FIRST: openai.rate_limited(600), SECOND: GOOD}))
    port = free_port()
    proxy = await pool_proxy(
        in_order("first", "second"),
        provider=upstream,
        options={"termlog_verbosity": "alert"},
        extra_args=["--listen-port", str(port)],
    )
    proxy.port = port  # the line that says it is left out, too
    async with proxy.client() as http:
        assert (await http.request(**chat(stream=False))).status_code == 200
    await proxy.until_printed("openai/first: 429")
    lines = [line.split("] ", 1)[-1] for line in proxy.lines]
    assert [line.split(":")[0] for line in lines] == ["account-pool", "openai/first"]
