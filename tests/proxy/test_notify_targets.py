"""How a notification reaches its targets, and that none of them delays or shows anything."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from account_pool.config.notify import Command, Ntfy, Target, Webhook, read_targets
from account_pool.credentials.http import Http
from account_pool.proxy import notify_targets
from account_pool.proxy.notify_targets import NotSent, desktop_command, environment
from tests.patience import PATIENCE_S

NOTE = {"event": "disabled", "text": "openai/one is disabled: 401 <b>&", "account": "openai/one"}


@asynccontextmanager
async def receiver(status: int = 200) -> AsyncIterator[tuple[str, list[tuple[str, Any]]]]:
    """Yield the address of a server, and the heads and JSON that it is sent."""
    received: list[tuple[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(x for x in head.lower().splitlines() if x.startswith("content-length"))
        body = await reader.readexactly(int(length.partition(":")[2]))
        received.append((head, json.loads(body)))
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", received


async def send(target: Target, timeout_s: float = PATIENCE_S, **http: Any) -> None:
    http = Http(trust=ssl.create_default_context, **http)
    await notify_targets.send(target, NOTE, http=http, own_port=8080, timeout_s=timeout_s)


async def test_a_webhook_gets_json(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody is there: neither the environment's proxy nor an upstream proxy is used.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with receiver() as (url, received):
        await send(Webhook(f"{url}/hook?key=0"), proxy="http://127.0.0.1:1")
    [(head, value)] = received
    assert value == NOTE
    assert head.startswith("POST /hook?key=0 HTTP/1.1")
    assert "user-agent: account-pool/" in head.lower()


async def test_ntfy_gets_a_message_and_a_password() -> None:
    async with receiver() as (url, received):
        address = url.replace("//", "//me:pass%20word@")
        [target] = read_targets(f"ntfy:{address}/alerts")
        assert isinstance(target, Ntfy)
        await send(target)
    [(head, value)] = received
    assert value == {
        "topic": "alerts", "title": "account-pool", "message": NOTE["text"], "priority": 4,
        "tags": ["warning"],
    }  # fmt: skip
    assert "authorization: basic bwu6cgfzcyb3b3jk" in head.lower()


@pytest.mark.parametrize(
    ("host", "name"),
    [("hooks.slack.com", "text"), ("ptb.discord.com", "content"), ("chat.googleapis.com", "text")],
)
def test_services_that_take_only_their_own_fields(host: str, name: str) -> None:
    text = f"account-pool: {NOTE['text']}"
    assert notify_targets._body_for(host, NOTE) == {name: text}
    assert notify_targets._body_for(f"{host}.example", NOTE) == NOTE


async def test_a_refusal_and_nobody_there() -> None:
    async with receiver(404) as (url, _):
        with pytest.raises(NotSent, match=r"^127\.0\.0\.1 answered with status 404$"):
            await send(Webhook(f"{url}/SECRET"))
    with pytest.raises(NotSent, match=r"cannot reach 127\.0\.0\.1") as error:
        await send(Webhook(f"{url}/SECRET"))
    assert "SECRET" not in str(error.value)


def script(text: str) -> Command:
    return Command((sys.executable, "-c", text, "SECRET"))


async def test_a_command_gets_json_and_no_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://localhost:8080")
    out = tmp_path / "out"
    code = "import os, sys; open(sys.argv[2], 'w').write(sys.stdin.read() + str(os.environ))"
    await send(Command((sys.executable, "-c", code, "$(touch x); >", str(out))))
    text = out.read_text()
    assert text.startswith(json.dumps(NOTE))
    assert "HTTPS_PROXY" not in text


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (script("raise SystemExit(3)"), r"python[\d.]* exited with status 3"),
        (Command(("/nowhere/tell", "SECRET")), "tell cannot be started"),
        # It does not read what it is given, which is more than a pipe holds.
        (script("import os; os.close(0)"), None),
    ],
)
async def test_a_command_that_fails(command: Command, why: str | None) -> None:
    if why is None:
        await send(command)
        return
    with pytest.raises(NotSent, match=why) as error:
        await send(command)
    assert "SECRET" not in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
async def test_a_command_that_hangs_is_killed_with_its_group(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"open({str(pid)!r}, 'w').write(str(child.pid)); child.wait()"
    )

    async def until_written() -> int:
        while not (pid.exists() and pid.read_text()):
            await asyncio.sleep(0)
        return int(pid.read_text())

    sending = asyncio.create_task(send(script(code)))
    async with asyncio.timeout(PATIENCE_S):
        child = await until_written()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    async with asyncio.timeout(PATIENCE_S):
        while _runs(child):
            await asyncio.sleep(0)
    with pytest.raises(NotSent, match="did not finish within 0 s"):
        await send(script("import time; time.sleep(600)"), timeout_s=0.0)


def _runs(pid: int) -> bool:
    """Say whether *pid* runs; one that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_no_text_is_code_on_a_desktop(platform: str) -> None:
    text = "--x'; \"$(touch x)\" <a href='x'>&"
    plain = desktop_command("plain", platform)
    command = desktop_command(text, platform)
    differ = [(one, two) for one, two in zip(plain, command, strict=True) if one != two]
    if platform == "win32":
        assert differ == []  # it comes on the input
    else:
        assert len(differ) == 1 and command[-1] == differ[0][1]
    if platform == "linux":
        assert command[2:4] == ("--", "account-pool")
        assert not set("<>&") & set(command[-1])


def test_variables_that_lead_through_this_proxy_are_taken_out() -> None:
    environ = {
        "HTTPS_PROXY": "http://127.0.0.1:8080", "https_proxy": "localhost:8080",
        "HTTP_PROXY": "http://127.0.0.1:3128", "ALL_PROXY": "http://corp.example:8080",
        "http_proxy": "http://[", "PATH": "/bin",
    }  # fmt: skip
    kept = environment(environ, 8080)
    assert kept.keys() == environ.keys() - {"HTTPS_PROXY", "https_proxy"}
