"""accounts.yaml is found from anywhere, by the proxy and by every command alike."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

import account_pool
from tests.e2e.harness import ACCOUNTS_FILE, FIRST, SECOND, THIRD, account, chat, secret
from tests.scripts import openai
from tests.upstream.replies import by_credential

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the places of Linux")

GOOD = openai.chat_complete("Good morning")
OWN = Path(".config/account-pool/accounts.yaml")


def write(path: Path, *labels: str, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"accounts": [account(label, **settings) for label in labels]}))
    return path


async def account_pool_command(folder: Path, *words: str, stdin: bytes = b"", **env: str):
    """Run the command in *folder*, the home of its user; return exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from account_pool.cli import main; main()", *words),
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": str(Path(account_pool.__file__).parents[1]),
            **env,
        },
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate(stdin)
    return process.returncode, out.decode()


@pytest.fixture
def prepare(setting):
    """Make a proxy in a home of its own; what is written there before it starts counts."""

    def made(**how):
        proxy = setting.prepare(None, **how)
        return proxy, proxy.folder

    return made


async def test_the_first_hit_wins(prepare):
    """Each file has another account; the one that counts most is taken away each time."""
    _, home = prepare()
    confdir = home / "mitmproxy"
    config = confdir / "config.yaml"
    config.write_text(f"pool_accounts: {write(home / 'config' / 'a.yaml', 'config')}\n")
    shutil.copytree(confdir, home / ".mitmproxy")
    env = {"ACCOUNT_POOL_ACCOUNTS": str(write(home / "b.yaml", "variable"))}
    write(home / ACCOUNTS_FILE, "here")
    write(home / OWN, "own")
    named = write(home / "c.yaml", "line")
    assert (await account_pool_command(home, "check", "--trust"))[0] == 0
    steps = [
        ("line", {"options": {"pool_accounts": named}}, ["--accounts-file", str(named)]),
        ("config", {}, []),
        ("variable", {}, []),
        ("here", {}, []),
        ("own", {}, []),
    ]
    for label, how, options in steps:
        if label == "variable":
            config.unlink()
            (home / ".mitmproxy" / "config.yaml").unlink()
        if label == "here":
            env = {}
        if label == "own":
            (home / ACCOUNTS_FILE).unlink()
        again, _ = prepare(folder=home, env={"HOME": str(home), **env}, **how)
        async with again:
            ready = await again.until_printed("account-pool: ready")
            assert f"openai/{label}" in ready
        code, out = await account_pool_command(home, "check", *options, **env)
        assert (code, f"openai/{label}" in out) == (0, True), out
        assert "1 account, file OK: " in out


async def test_what_was_named_and_is_not_there_is_an_error(prepare):
    proxy, home = prepare(env={"ACCOUNT_POOL_ACCOUNTS": "missing.yaml"})
    write(home / OWN, "own")
    assert await proxy.run_to_end() != 0
    assert "missing.yaml: the file does not exist; ACCOUNT_POOL_ACCOUNTS names it" in proxy.output
    for words in (["check"], ["run", "--", "true"]):
        code, out = await account_pool_command(home, *words, ACCOUNT_POOL_ACCOUNTS="missing.yaml")
        assert code == 1
        assert "ACCOUNT_POOL_ACCOUNTS names it" in out
        assert out.count("\n") == 1


async def test_a_strangers_file_runs_nothing_until_it_was_confirmed(prepare, provider):
    """A repository brings an accounts.yaml with a command; a pull brings another one."""
    upstream = await provider(by_credential({FIRST: GOOD, SECOND: GOOD}))
    proxy, home = prepare(provider=upstream)
    ran = home / "ran"

    def command(label: str) -> dict:
        return {"command": f"sh -c 'echo {label} >> {ran}; echo {secret(label)}'"}

    write(home / OWN, "second")
    local = write(home / ACCOUNTS_FILE, "first", token=command("first"))
    async with proxy:
        assert f"{local} is skipped: it has not been confirmed" in proxy.output
        assert "ready with 1 account of ~/.config/account-pool/accounts.yaml" in proxy.output
    code, out = await account_pool_command(home, "check", "--trust")
    assert code == 0
    assert f"openai/first runs: sh -c 'echo first >> {ran}" in out
    assert not ran.exists()
    again, _ = prepare(folder=home, env={"HOME": str(home)}, provider=upstream)
    async with again, again.client() as http:
        assert (await http.request(**chat(stream=False))).status_code == 200
        write(local, "third", token=command("third"))
        await again.until_printed("was changed since it was confirmed")
        assert (await http.request(**chat(stream=False))).status_code == 200
        assert ran.read_text() == "first\n"
        assert (await account_pool_command(home, "check", "--trust"))[0] == 0
        await again.until_printed("reloaded: added openai/third")
    assert upstream.journal.credentials == [FIRST, FIRST]
    # At a start nothing serves as it was: the changed file is passed over.
    write(local, "first", token=command("fourth"))
    last, _ = prepare(folder=home, env={"HOME": str(home)})
    async with last:
        assert "was changed since you confirmed it" in last.output
        assert "of ~/.config/account-pool/accounts.yaml" in last.output
    assert "fourth" not in ran.read_text()


async def test_an_account_is_added_where_a_proxy_without_any_finds_it(prepare, provider):
    upstream = await provider(by_credential({THIRD: GOOD}))
    proxy, home = prepare(provider=upstream)
    async with proxy:
        code, out = await account_pool_command(
            home, "add", "openai", "third", stdin=f"{THIRD}\n".encode()
        )
        assert (code, out) == (0, f"added openai/third to ~/{OWN}\n")
        await proxy.until_printed("reloaded: added openai/third")
        async with proxy.client() as http:
            assert (await http.request(**chat(stream=False))).status_code == 200
            health = (await http.get(f"{proxy.url}/health")).json()
            pool = (await http.get(f"{proxy.url}/account-pool")).json()
    assert health["accounts_file"] == pool["accounts_file"] == str(home / OWN)
    assert (home / OWN).stat().st_mode & 0o777 == 0o600
    assert (home / OWN).parent.stat().st_mode & 0o777 == 0o700
    assert not (home / ACCOUNTS_FILE).exists()
    assert upstream.journal.credentials == [THIRD]


# -- serve


async def serve(home: Path, *words: str):
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from account_pool.cli import main; main()", "serve", *words),
        cwd=home,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(Path(account_pool.__file__).parents[1]),
            "PYTHONUNBUFFERED": "1",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


@pytest.mark.parametrize("sister", [[], ["--web"]])
async def test_serve_becomes_mitmdump_or_mitmweb_with_its_options(prepare, sister):
    _, home = prepare()
    write(home / OWN, "first")
    more = ["--set", "web_open_browser=false", "--set", "web_port=0"] if sister else []
    words = [*sister, "-p", "0", "--set", "confdir=mitmproxy", "--set", "pool_gate=3", *more]
    process = await serve(home, *words)
    printed = []
    async for line in process.stdout:
        printed.append(line.decode())
        if "account-pool: ready" in printed[-1]:
            break
    assert "ready with 1 account of ~/.config/account-pool/accounts.yaml" in printed[-1]
    process.send_signal(signal.SIGTERM)
    rest = (await process.stdout.read()).decode()
    assert await process.wait() == 0, rest
    listening = [line for line in printed if "proxy listening at" in line]
    assert all(":" in line and "127.0.0.1:" in line for line in listening), printed


async def test_the_exit_code_of_serve_is_mitmdumps(prepare):
    _, home = prepare()
    write(home / OWN, "first", priority="x")
    process = await serve(home, "-p", "0", "--set", "confdir=mitmproxy")
    out = (await process.stdout.read()).decode()
    assert await process.wait() == 1
    assert f"{home / OWN}:1: accounts[0].priority" in out


async def test_script_is_what_mitmdump_takes(setting):
    code, out = await account_pool_command(setting.folder, "script")
    assert code == 0
    path = out.strip()
    assert Path(path).is_absolute()
    proxy = setting.prepare([account("first")], addon=False, extra_args=["-s", path])
    async with proxy:
        await proxy.until_printed("account-pool: ready with 1 account")
