"""The shorter ways through mitmproxy: what others see of it, and what clients get, is the same."""

from __future__ import annotations

import pytest

from account_pool.demo.scripts import by_credential, openai
from tests.e2e import other_addons
from tests.e2e.harness import FIRST, SECOND, TWO, chat

LIMITED, GOOD = openai.rate_limited(), openai.chat_stream(["Good", " morning"])


@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
@pytest.mark.parametrize("first", [GOOD, LIMITED], ids=["served", "limited"])
async def test_other_addons_see_the_same(provider, setting, first, http2: bool) -> None:
    seen = {}
    for fast in ("off", "table", "on"):
        upstream = await provider(by_credential({FIRST: first, SECOND: GOOD}))
        proxy = setting.prepare(
            TWO,
            provider=upstream,
            options={"pool_fast": fast, "flow_detail": "0"},
            extra_args=["-s", other_addons.__file__],
        )
        async with proxy, proxy.client(http2=http2) as http:
            for _ in range(5):
                answer = await http.request(**chat())
                assert answer.status_code == 200
            await http.aclose()
            await proxy.until_printed("hook: fails client_disconnected")
        seen[fast] = [line for line in proxy.output.splitlines() if line.startswith("hook: ")]
        if first is LIMITED:
            # The flow of the refused attempt is shown while the next one runs.
            seen[fast] = sorted(line for line in seen[fast] if "guest" not in line)
    assert seen["table"] == seen["off"]
    assert seen["on"] == seen["off"]
    assert any("guest" in line for line in seen["on"]) or first is LIMITED
    assert not any("child of fails" in line for line in seen["on"])
    assert "hook: after tls_established_client" not in seen["on"]
