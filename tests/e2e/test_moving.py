"""From a file to an engine, and back: no login is lost, and no token is sent twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import CONFDIR
from tests.e2e.test_oauth import EXPIRED, FIRST, GOOD, OLD, SERVED, access, ask, login, logins
from tests.store.servers import Server, program
from tests.upstream.replies import by_credential

__all__ = ["logins"]

pytest.importorskip("redis")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Server]:
    if program("redis") is None:
        pytest.skip("needs redis-server, which is not installed")
    server = Server("redis", tmp_path / "engine").start()
    yield server
    server.kill()


async def test_a_login_goes_along(provider, pool_proxy, logins, engine, tmp_path):
    upstream = await provider(by_credential({OLD: EXPIRED, access(1): GOOD}))
    accounts = [login(logins, expires_in=-1)]
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    url = f"redis://127.0.0.1:{engine.port}/?pool=team&sealing_key=file:{key}"

    async def start(state: str, **options):
        options["pool_state"] = state
        return await pool_proxy(accounts, provider=upstream, workers=1, options=options)

    by_file = await start("")
    assert await ask(by_file) == [SERVED]
    await by_file.stop()
    # The directory of the machine, which has the file.
    confdir = {"confdir": by_file.folder / CONFDIR}
    by_engine = await start(url, **confdir)
    assert await ask(by_engine) == [SERVED]
    await by_engine.stop()
    moved = [line for line in by_engine.lines if "taken over from" in line]
    assert len(moved) == 1 and "account-pool: 1 login was taken over from" in moved[0]
    again = await start("", **confdir)
    assert await ask(again) == [SERVED], "the access token lasts"
    await again.stop()
    assert sum("are in the state engine" in line for line in again.lines) == 1
    assert logins.asked == [FIRST]
    lines = [*by_engine.lines, *again.lines]
    assert not any(token in line for line in lines for token in (FIRST, logins.newest, access(1)))
