"""Commands of every day at a real proxy, as a user types them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from account_pool.admin.auth import TOKEN_FILE
from account_pool.demo.replies import by_credential
from tests.e2e.harness import CONFDIR, FIRST, SECOND, TIMEOUT_S, TWO, Proxy, chat
from tests.scripts import openai

GOOD = openai.chat_complete("Good morning")


@dataclass(frozen=True)
class Cli:
    """`account-pool` of the user whose proxy it is."""

    proxy: Proxy
    home: Path

    async def __call__(self, *words: str, code: int = 0) -> tuple[str, str]:
        """Run one command; return what it says, and what it says beside it."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from account_pool.cli import main; main()", *words),
            *("-p", str(self.proxy.port)),
            env={**os.environ, "HOME": str(self.home)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return out.decode(), err.decode()


@pytest.fixture
def cli(tmp_path: Path):
    """Return a function that makes the commands of the user of a proxy."""

    def made(proxy: Proxy) -> Cli:
        home = tmp_path / "home"
        (home / ".mitmproxy").mkdir(parents=True)
        token = (proxy.folder / CONFDIR / TOKEN_FILE).read_text()
        (home / ".mitmproxy" / TOKEN_FILE).write_text(token)
        return Cli(proxy, home)

    return made


async def test_a_conversation_is_kept_on_one_account(provider, pool_proxy, cli):
    script = {FIRST: GOOD, SECOND: [GOOD, openai.rate_limited(3000)]}
    upstream = await provider(by_credential(script))
    proxy = await pool_proxy(TWO, provider=upstream)
    command = cli(proxy)
    asked = chat(stream=False)
    asked["headers"]["x-session-id"] = "my-conversation"
    async with proxy.client() as client:
        assert (await client.request(**asked)).status_code == 200
        (row,) = json.loads((await command("pin", "--json"))[0])["sessions"]
        assert (row["key"], row["account"], row["pinned"]) == (
            "my-conversation:openai", "openai/first", False
        )  # fmt: skip
        await command("pin", "my-conv", "openai/second")
        assert "pinned" in (await command("pin"))[0]
        assert (await client.request(**asked)).status_code == 200
        # It is limited now; the other could serve, and does not.
        assert (await client.request(**asked)).status_code == 429
        assert upstream.journal.credentials == [FIRST, SECOND, SECOND]

        _, err = await command("pin", "my-conv", "openai/secnd", code=1)
        assert "did you mean openai/second?" in err
        await command("pin", "my-conv", "--off")
        assert (await client.request(**asked)).status_code == 200
        assert upstream.journal.credentials[-1] == FIRST
