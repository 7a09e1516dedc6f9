"""`account-pool run` with a real mitmdump: tools that know nothing but their environment."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

import account_pool
from account_pool.cli import processes
from account_pool.cli.processes import Places, read_record
from tests.e2e.harness import FIRST, SECOND, TIMEOUT_S, secret
from tests.scripts import openai
from tests.upstream.replies import by_credential

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

#: What `run` says on stderr.
SERVES = "account-pool: 2 accounts of ~/mine.yaml\n"
WORDS = ["Good", " morning"]
#: A tool: asks the pool once and prints the answer. Proxy and trust come from variables alone.
TOOL = """
    import os, sys, httpx
    def ask():
        base = "https://localhost:{port}/v1/chat/completions"
        asked = dict(model="gpt-5-nano", messages=[dict(role="user", content="Hello?")])
        answer = httpx.post(base, json=asked, timeout={timeout})
        if answer.status_code != 200:
            sys.exit("Error: " + answer.json()["error"]["message"])
        return answer.json()["choices"][0]["message"]["content"]
"""


class Home:
    """A user's home with accounts of a provider at localhost, and a port nobody uses."""

    def __init__(self, folder: Path, setting, port: int) -> None:
        self.folder = folder
        self.provider_port = port
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            self.places = Places(folder / ".mitmproxy", listener.getsockname()[1])
        shutil.copytree(setting.authority, self.places.confdir)
        (self.places.confdir / "config.yaml").write_text(
            f"ssl_verify_upstream_trusted_ca: {setting.certificate.authority}\n"
        )
        self.write_accounts("first", "second")

    def write_accounts(self, *labels: str, provider: str = "openai") -> None:
        accounts = [
            {"provider": provider, "label": label, "token": secret(label), "priority": n}
            for n, label in enumerate(labels)
        ]
        hosts = {"openai": {"hosts": [f"localhost:{self.provider_port}"]}}
        path = self.folder / "mine.yaml"
        path.touch(mode=0o600)
        path.write_text(json.dumps({"accounts": accounts, "providers": hosts}))

    async def run(self, tool: str, *options: str, **environ: str) -> asyncio.subprocess.Process:
        """Run *tool*, lines of Python that may call `ask`."""
        code = textwrap.dedent(
            TOOL.format(port=self.provider_port, timeout=TIMEOUT_S)
        ) + textwrap.dedent(tool)
        return await self.command("run", *options, "--", sys.executable, "-c", code, **environ)

    async def command(self, name: str, *words: str, **environ: str) -> asyncio.subprocess.Process:
        """Start a command of `account-pool` in this home, with *environ* besides."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from account_pool.cli import main; main()"),
            *(name, "-p", str(self.places.port), "--accounts-file", "mine.yaml", *words),
            cwd=self.folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "PYTHONPATH": str(Path(account_pool.__file__).parents[1]),
                **environ,
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    def is_left_alone(self) -> bool:
        """Say whether no proxy of ours is left, nor a secret in what it said."""
        assert "sk-fake" not in self.places.log.read_text()
        with closing(socket.socket()) as probe:
            free = probe.connect_ex(("127.0.0.1", self.places.port)) != 0
        return free and read_record(self.places) is None


@pytest.fixture
async def home(tmp_path, setting, provider):
    server = await provider(
        by_credential(
            {FIRST: openai.insufficient_quota(), SECOND: openai.chat_complete("".join(WORDS))}
        )
    )
    home = Home(tmp_path / "home", setting, server.port)
    home.server = server
    yield home
    if record := read_record(home.places):
        processes.end(record.pid, record.proof)


async def test_a_tool_is_served_by_the_pool_and_nothing_is_left(home):
    process = await home.run("print(ask()); sys.exit(7)", "--strategy", "fill-first")
    out, err = await process.communicate()
    assert (process.returncode, err.decode()) == (7, SERVES)
    assert out.decode() == "Good morning\n"
    # The second account, after the first was refused.
    assert home.server.journal.credentials == [FIRST, SECOND]
    assert "openai/first: 429 quota" in home.places.log.read_text()
    assert home.is_left_alone()


async def test_a_tool_is_served_by_the_account_it_was_given(home):
    process = await home.run("print(ask())", "--account", "openai/second")
    out, err = await process.communicate()
    assert (process.returncode, out.decode()) == (0, "Good morning\n"), err.decode()
    assert home.server.journal.credentials == [SECOND]
    assert home.is_left_alone()


async def test_a_tool_does_not_start_without_the_account_it_was_given(home):
    process = await home.run("print(ask())", "--account", "openai/secnd")
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert "the pool has no account openai/secnd; did you mean openai/second?" in err.decode()
    config = home.places.confdir / "config.yaml"
    config.write_text(config.read_text() + 'proxyauth: "me:sesame"\n')
    process = await home.run("print(ask())", "--account", "openai/second")
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert "--account cannot be used" in err.decode()
    assert "proxyauth" in err.decode()
    assert home.server.journal.credentials == []
    assert home.is_left_alone()


async def test_what_looks_wrong_is_told_before_the_tool_starts(home):
    """A file that others may read, one token under two labels, a variable that is not set."""
    path = home.folder / "mine.yaml"
    content = json.loads(path.read_text())
    content["accounts"][0]["token"] = secret("second")
    content["accounts"].append({"provider": "gemini", "label": "late", "token": "${FAKE_UNSET}"})
    path.write_text(json.dumps(content))
    path.chmod(0o644)
    process = await home.run("print(ask())")
    out, err = await process.communicate()
    assert (process.returncode, out.decode()) == (0, "Good morning\n")
    served, *lines = err.decode().splitlines()
    assert "3 accounts of ~/mine.yaml" in served
    assert len(lines) == 3
    assert "mine.yaml holds tokens and can be read by other users; run: chmod 600" in lines[0]
    assert "openai/second: has the same token as openai/first" in lines[1]
    assert "gemini/late: accounts.yaml: the environment variable FAKE_UNSET is not set" in lines[2]


async def test_a_killed_proxy_is_back_and_a_signal_reaches_the_tool(home):
    process = await home.run("""
        while True:
            try:
                print(ask(), flush=True)
            except httpx.TransportError:
                continue  # there is no proxy at this moment
            input()
    """)
    assert await process.stdout.readline() == b"Good morning\n"
    first = read_record(home.places)
    os.kill(first.pid, signal.SIGKILL)
    process.stdin.write(b"\n")
    assert await process.stdout.readline() == b"Good morning\n"
    assert read_record(home.places).pid != first.pid
    process.send_signal(signal.SIGTERM)
    err = await process.stderr.read()
    assert await process.wait() == 128 + signal.SIGTERM
    assert err.decode() == (
        f"{SERVES}account-pool: the proxy had to be restarted once; see account-pool logs\n"
    )
    assert home.is_left_alone()


async def test_a_tool_that_a_limit_ended_is_started_again_while_somebody_can_serve(home):
    process = await home.run(
        """
        from pathlib import Path
        runs = Path("runs")
        runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
        if len(runs.read_text()) == 1:
            sys.exit("Error: 429 You exceeded your current quota")
        print(ask())
        """,
        "--restart",
    )
    out, err = (text.decode() for text in await process.communicate())
    assert process.returncode == 0
    assert out == "Good morning\n"
    assert "starting it again, 1 of 10" in err
    assert home.is_left_alone()


async def test_a_tool_is_not_started_again_where_nobody_can_serve(home):
    home.write_accounts("first")
    process = await home.run("ask()", "--restart")
    _, err = (text.decode() for text in await process.communicate())
    assert process.returncode == 1
    assert "no account of the pool can serve now" in err
    assert home.is_left_alone()


async def test_a_mistake_in_the_accounts_is_one_line(home):
    home.write_accounts("first", provider="opnai")
    process = await home.run("print('never')")
    out, err = (text.decode() for text in await process.communicate())
    assert (process.returncode, out) == (1, "")
    assert err.count("\n") == 1
    assert "mine.yaml" in err
    assert "opnai" in err
    assert home.is_left_alone()


async def test_what_a_service_runs_serves(home):
    """The command of its definition, started with as little as systemd gives it."""
    process = await home.command("service", "install", "--print", "--", "--set", "pool_drain=1")
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    (line,) = re.findall(r"^ExecStart=(.*)$", out.decode(), re.MULTILINE)
    environ = {"HOME": str(home.folder), "PATH": "/usr/bin:/bin"}
    proxy = await asyncio.create_subprocess_exec(
        *shlex.split(line),
        env={**environ, "PYTHONPATH": str(Path(account_pool.__file__).parents[1])},
        cwd=home.folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert proxy.stdout is not None
    async with asyncio.timeout(TIMEOUT_S):
        while b"ready with 2 accounts" not in (said := await proxy.stdout.readline()):
            assert said, "it has ended"
        process = await home.run("print(ask())")
        out, err = await process.communicate()
        assert out == b"Good morning\n", err.decode()
        proxy.terminate()
        await proxy.communicate()
    assert proxy.returncode == 0
