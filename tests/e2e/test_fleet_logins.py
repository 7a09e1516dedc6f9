"""Logins of proxies on one state engine, with a token endpoint that means it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from account_pool.demo.mitmdump import MitmdumpFailed
from tests.e2e import engine_calls
from tests.e2e.harness import CONFDIR, account, secret
from tests.e2e.test_oauth import (
    EXPIRED,
    FIRST,
    GOOD,
    OLD,
    SERVED,
    Logins,
    access,
    ask,
    login,
    logins,
)
from tests.patience import PATIENCE_S
from tests.store.servers import Server
from tests.upstream.replies import by_credential

pytest.importorskip("redis")

__all__ = ["logins"]

#: Worth nothing.
KEY = "0123456789abcdef" * 4
#: What was away is tried again soon, and an engine that begins need not be waited for long.
SETS = {
    "account_pool.store.fleet.engine": {"MAX_PAUSE_S": 0.5},
    "account_pool.store.fleet.tokens": {"SETTLE_S": 0.5, "SETTLE_TIMES": 0},
    "account_pool.credentials.refreshable_token": {"STORE_LOOK_S": 0.5},
}
OTHER = account("other", priority=2)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    server = Server("redis", tmp_path / "engine", ["appendonly yes", "appendfsync always"]).start()
    yield server
    server.kill()


@pytest.fixture
def kept(redis: Server, tmp_path: Path) -> dict[str, Any]:
    """What makes a proxy one of the fleet."""
    state = f"redis://127.0.0.1:{redis.port}/0?pool=test&sealing_key=env:SEALING_KEY&timeout=10"
    return {
        "options": {"pool_state": state},
        # What an engine is told of a proxy's patience is told when it begins.
        "scripts": [engine_calls.__file__],
        "env": {
            engine_calls.CALLS: str(tmp_path / "calls"),
            engine_calls.SETS: json.dumps(SETS),
            "SEALING_KEY": KEY,
        },
        "workers": 1,
    }


async def asked(logins: Logins, count: int) -> None:
    while len(logins.asked) < count:
        await asyncio.sleep(0.01)


async def test_two_proxies_refresh_once(provider, pool_proxy, logins, kept):
    upstream = await provider(by_credential({OLD: EXPIRED, access(1): GOOD}))
    accounts = [login(logins)]
    proxies = await asyncio.gather(
        *(pool_proxy(accounts, provider=upstream, **kept) for _ in range(2))
    )
    assert await asyncio.gather(*(ask(proxy, 10) for proxy in proxies)) == [[SERVED] * 10] * 2
    assert logins.asked == [FIRST]


async def test_without_a_key_no_proxy_starts(setting, logins, kept):
    state = kept["options"]["pool_state"].replace("sealing_key=env:SEALING_KEY&", "")
    proxy = setting.prepare([login(logins)], **{**kept, "options": {"pool_state": state}})
    with pytest.raises(MitmdumpFailed, match="openssl rand -base64 32"):
        async with proxy:
            pass


async def test_while_the_engine_is_away_the_token_serves_and_then_another_account(
    provider, pool_proxy, logins, kept, redis
):
    upstream = await provider(
        by_credential({OLD: [GOOD, EXPIRED], access(1): GOOD, secret("other"): GOOD})
    )
    # It is to be refreshed since it started, and good for minutes.
    accounts = [login(logins, expires_in=PATIENCE_S), OTHER]
    redis.kill()
    proxy = await pool_proxy(accounts, provider=upstream, **kept)
    await proxy.until_printed("openai/me: the state engine .* cannot be reached")
    assert await ask(proxy) == [SERVED]
    assert upstream.journal.credentials == [OLD]
    assert await ask(proxy) == [SERVED]
    assert upstream.journal.credentials == [OLD, OLD, secret("other")]
    assert logins.asked == []
    redis.start()
    await asked(logins, 1)
    await proxy.until_printed("openai/me: has an access token, refreshed in")
    assert await ask(proxy) == [SERVED]
    assert upstream.journal.credentials[-1] == access(1)


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is of POSIX")
async def test_an_answer_survives_the_engine_and_the_proxy(provider, setting, logins, kept, redis):
    upstream = await provider(by_credential({access(1): GOOD}))
    accounts = [login(logins, expires_in=60)]
    logins.held = asyncio.Event()
    doomed = setting.prepare(accounts, provider=upstream, **kept)
    with pytest.raises(MitmdumpFailed):
        async with doomed:
            await asked(logins, 1)
            redis.kill()
            logins.held.set()
            await doomed.until_printed("until then, new tokens are kept in .*account-pool.unsaved")
            # It serves here meanwhile.
            assert await ask(doomed) == [SERVED]
            os.kill(doomed.pid, signal.SIGKILL)
            await doomed.until(lambda: False)
    (file,) = (doomed.folder / CONFDIR / "account-pool.unsaved").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert secret("refresh1") not in file.read_text("utf-8")
    redis.start()
    options = {**kept["options"], "confdir": doomed.folder / CONFDIR}
    for how in ({**kept, "options": options}, kept):
        async with setting.prepare(accounts, provider=upstream, **how) as again:
            assert await ask(again) == [SERVED]
    assert logins.asked == [FIRST]
    assert not file.exists()
