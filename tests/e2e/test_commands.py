"""Commands of every day at a real proxy, as a user types them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from account_pool.admin.auth import TOKEN_FILE
from tests.e2e.harness import (
    COMMAND,
    CONFDIR,
    FIRST,
    SECOND,
    TIMEOUT_S,
    TWO,
    Proxy,
    chat,
    client,
    run_command,
)
from tests.scripts import openai
from tests.upstream.replies import by_credential

GOOD = openai.chat_complete("Good morning")


@dataclass(frozen=True)
class Cli:
    """`account-pool` of the user whose proxy it is."""

    proxy: Proxy
    home: Path

    async def __call__(
        self, *words: str, code: int = 0, typed: str = "", port: bool = True
    ) -> tuple[str, str]:
        """Run one command; return what it says, and what it says beside it."""
        of_proxy = ("-p", str(self.proxy.port)) if port else ()
        exit_code, out, err = await run_command(self.home, *words, *of_proxy, typed=typed)
        assert exit_code == code, out + err
        return out, err


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


# -- one account for all that a tool sends


def by(user: str, url: str) -> str:
    return url.replace("://", f"://{user}@")


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("fast", ["on", "off"])
async def test_a_tool_is_kept_on_the_account_it_names(provider, pool_proxy, setting, fast, http2):
    """By the user name of the proxy's address, which goes no further."""
    script = {FIRST: GOOD, SECOND: [GOOD, GOOD, openai.rate_limited(3000)]}
    upstream = await provider(by_credential(script))
    proxy = await pool_proxy(TWO, provider=upstream, options={"pool_fast": fast})

    async def asked(user: str) -> tuple[int, list[str], str]:
        before = len(upstream.journal.credentials)
        async with client(setting.trusted, by(user, proxy.url), http2=http2) as tool:
            response = await tool.request(**chat(stream=False))
        said = response.json().get("error", {}).get("message", "")
        return response.status_code, upstream.journal.credentials[before:], said

    # Some clients send it inside the tunnel, too: it is said to this proxy.
    async with client(setting.trusted, by("openai%2Fsecond:x", proxy.url), http2=http2) as tool:
        for headers in ({}, {"proxy-authorization": "Basic c29tZWJvZHk6c2VjcmV0"}):
            request = chat(stream=False)
            request["headers"] |= headers
            assert (await tool.request(**request)).status_code == 200
    assert upstream.journal.credentials == [SECOND, SECOND]
    # Limited: it is told so, though the other account could serve.
    several = "anthropic%2Fme,openai%2Fsecond:x"
    assert (await asked(several))[:2] == (429, [SECOND])
    assert (await asked("somebody:secret"))[:2] == (200, [FIRST])
    for user in ("openai%2Fnobody:x", "anthropic%2Fme:x"):
        status, credentials, said = await asked(user)
        assert (status, credentials) == (403, [])
        assert "user name in the proxy's URL" in said
        assert f"openai: {said}; request refused" in proxy.output
    names = {name.lower() for one in upstream.journal.requests for name, _ in one.headers}
    assert "authorization" in names
    assert "proxy-authorization" not in names


async def test_a_shell_is_kept_on_an_account(provider, pool_proxy, cli):
    proxy = await pool_proxy(TWO, provider=await provider(by_credential({})))
    command = cli(proxy)
    out, _ = await command("env", "--shell", "bash", "--account", "openai/second")
    assert f"HTTPS_PROXY=http://openai%2Fsecond:pool@127.0.0.1:{proxy.port}" in out
    out, err = await command("env", "--shell", "bash", "--account", "openai/secnd", code=1)
    assert out == ""
    assert "did you mean openai/second?" in err


async def test_a_users_name_is_no_account_where_proxyauth_is_set(provider, pool_proxy, setting):
    upstream = await provider(by_credential({FIRST: GOOD, SECOND: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream, extra_args=["--proxyauth", "any"])
    async with client(setting.trusted, by("openai%2Fsecond:pool", proxy.url)) as tool:
        assert (await tool.request(**chat(stream=False))).status_code == 200
    assert upstream.journal.credentials == [FIRST]


async def test_an_account_is_added_while_the_proxy_runs(provider, pool_proxy, cli):
    key = "sk-proj-fake-added-000"
    upstream = await provider(by_credential({FIRST: openai.insufficient_quota(), key: GOOD}))
    proxy = await pool_proxy(TWO[:1], provider=upstream)
    file = proxy.folder / "accounts.yaml"
    out, _ = await cli(proxy)(
        "add", "new", "--json", "--accounts-file", str(file), typed=f"{key}\n", port=False
    )
    added = json.loads(out)
    assert (added["added"], added["written_to"]) == ("openai/new", str(file))
    await proxy.until_printed("openai/new")
    async with proxy.client() as tool:
        assert (await tool.request(**chat(stream=False))).status_code == 200
    assert upstream.journal.credentials == [FIRST, key]


async def test_a_proxy_that_is_well_looks_so(provider, pool_proxy, cli):
    proxy = await pool_proxy(TWO, provider=await provider(by_credential({FIRST: GOOD})))
    file = str(proxy.folder / "accounts.yaml")
    out, err = await cli(proxy)("doctor", "--json", "--accounts-file", file)
    findings = json.loads(out)["findings"]
    assert [one for one in findings if one["level"] == "bad"] == []
    texts = [one["text"] for one in findings]
    assert any(f"127.0.0.1:{proxy.port} serves accounts of" in text for text in texts)
    assert f"openai/first: {file}" in texts
    assert "sk-fake" not in out + err


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
async def test_decisions_are_followed_until_ctrl_c(provider, pool_proxy, cli):
    proxy = await pool_proxy(TWO, provider=await provider(by_credential({FIRST: GOOD})))
    command = cli(proxy)
    await command("disable", "openai/first")
    following = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("decisions", "-f", "--json", "-p", str(proxy.port)),
        env={**os.environ, "HOME": str(command.home)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert following.stdout is not None
    async with asyncio.timeout(TIMEOUT_S):
        assert json.loads(await following.stdout.readline())["kind"] == "disable"
        await command("enable", "openai/first")
        assert json.loads(await following.stdout.readline())["kind"] == "enable"
        following.send_signal(signal.SIGINT)
        assert await following.wait() == 0
