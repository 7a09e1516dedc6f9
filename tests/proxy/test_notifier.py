"""The owner is told what happens, and no target that hangs or fails keeps anybody."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
import sys
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.options import Options

from account_pool.config.notify import (
    Command,
    Desktop,
    FromVariable,
    Ntfy,
    Target,
    Webhook,
    read_targets,
)
from account_pool.core.account import AccountKey
from account_pool.core.notifications import Event, Subject, Verdict
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.credentials.http import Http
from account_pool.proxy import notifier
from account_pool.proxy import notifier as notifier_module
from account_pool.proxy.notifier import MAX_WAITING, Notifier, NotSent, desktop_command, environment
from account_pool.store.store import StoreError
from tests.patience import PATIENCE_S
from tests.proxy.helpers import FakeClock, service_of

SUSPENDED = Outcome(
    cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.ACCOUNT, replayable=True, signal="403 suspended"
)
ONE, TWO = AccountKey("openai", "one"), AccountKey("openai", "two")
HOOK = Webhook("https://hooks.example.com/SECRET")


class Targets:
    """What is sent, by target; those in *hang* wait, those in *fail* do not arrive."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[str, Mapping[str, Any]]] = []
        self.own_ports: list[int] = []
        self.hang: set[str] = set()
        self.fail: set[str] = set()
        self.arrived = asyncio.Event()
        monkeypatch.setattr(notifier_module, "send", self.send)

    async def send(self, target: Any, value: Mapping[str, Any], **how: Any) -> None:
        self.own_ports.append(how["own_port"])
        if target.shown in self.hang:
            await asyncio.Event().wait()
        if target.shown in self.fail:
            self.arrived.set()
            raise NotSent("no")
        self.sent.append((target.shown, value))
        self.arrived.set()

    async def next(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.arrived.wait()
        self.arrived.clear()
        await asyncio.sleep(0)


class BrokenLog:
    async def note(self, begun: object, ended: object) -> Mapping[Subject, Verdict]:
        raise StoreError("the disk is full")

    async def noted(self) -> Collection[Subject]:
        raise StoreError("the disk is full")


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> Targets:
    return Targets(monkeypatch)


def made(monkeypatch: pytest.MonkeyPatch | None = None) -> Notifier:
    options = Options()
    options.add_option("listen_port", int, 8080, "")
    service = service_of("one", "two", clock=FakeClock())
    notifier = Notifier(service, lambda _options: Http(trust=lambda: None))  # type: ignore[arg-type]
    notifier.use((HOOK, Desktop()), options)
    return notifier


def disable(notifier: Notifier, key: AccountKey) -> None:
    service = notifier._service
    service.pool.health.mark_failure(key, SUSPENDED, now=service.now())


async def test_a_decision_is_told_at_once_in_json(targets: Targets) -> None:
    notifier = made()
    notifier.start(lambda: None)
    await asyncio.sleep(0)
    disable(notifier, ONE)
    await targets.next()
    while len(targets.sent) < 2:
        await targets.next()
    notifier.stop()
    assert sorted(shown for shown, _ in targets.sent) == ["desktop", "https://hooks.example.com"]
    value = targets.sent[0][1]
    assert value["text"] == "openai/one is disabled: 403 suspended"
    assert value.items() >= {
        "event": "disabled", "provider": "openai", "account": "openai/one", "model": None,
        "window": None, "used": None, "until": None, "at": "2023-11-14T22:30:00Z",
    }.items()  # fmt: skip


async def test_the_port_that_commands_do_not_find_is_where_the_proxy_listens(
    targets: Targets,
) -> None:
    notifier = made()
    for port in (None, 9090):
        notifier._service.fleet.port = port
        next(iter(notifier._senders.values())).send({"event": "back"})
        await targets.next()
    notifier.stop()
    assert targets.own_ports == [8080, 9090]


async def test_a_target_that_hangs_delays_no_other_and_keeps_the_newest(targets: Targets) -> None:
    notifier = made()
    targets.hang = {"desktop"}
    hook, desktop = notifier._senders.values()
    for number in range(MAX_WAITING + 5):
        desktop.send({"event": "back", "number": number})
        await asyncio.sleep(0)
    hook.send({"event": "back", "number": 0})
    await targets.next()
    assert [shown for shown, _ in targets.sent] == ["https://hooks.example.com"]
    assert [v["number"] for v in desktop._waiting] == [*range(5, MAX_WAITING + 5)]
    notifier.stop()


async def test_a_failure_is_logged_once_and_the_next_event_tries_again(
    targets: Targets, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    notifier = made()
    targets.fail = {"https://hooks.example.com"}
    hook, _ = notifier._senders.values()
    for _ in range(3):
        hook.send({"event": "back"})
        await targets.next()
    assert notifier.targets() == [
        {"target": "https://hooks.example.com", "problem": "no"},
        {"target": "desktop", "problem": None},
    ]
    targets.fail = set()
    hook.send({"event": "back"})
    await targets.next()
    assert [record.message for record in caplog.records] == [
        "account-pool: https://hooks.example.com: the notification back did not arrive: no; "
        "the next one tries again",
        "account-pool: https://hooks.example.com: notifications arrive again",
    ]
    assert notifier.targets()[0]["problem"] is None


async def test_an_address_that_the_http_client_chokes_on_is_a_problem_of_its_target(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notifier = made()
    notifier.use((Webhook("https://xn--a/SECRET"),), notifier._options)  # type: ignore[arg-type]
    [sender] = notifier._senders.values()
    for _ in range(2):
        sender.send({"event": "back", "text": "it is back"})
    await sender._task  # type: ignore[misc]
    assert sender.problem is not None
    assert sender.problem.startswith("it cannot be sent (")
    assert not sender._waiting
    assert "SECRET" not in caplog.text


async def test_a_variable_that_is_not_set_is_a_problem_of_its_target(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier = made()
    monkeypatch.delenv("HOOK", raising=False)
    notifier.use((FromVariable("HOOK"),), notifier._options)  # type: ignore[arg-type]
    [sender] = notifier._senders.values()
    sender.send({"event": "back"})
    await sender._task  # type: ignore[misc]
    assert sender.problem == "HOOK is not set; set it where the proxy is started"
    monkeypatch.setenv("HOOK", "desktop")
    sender.send({"event": "back"})
    await targets.next()
    assert [shown for shown, _ in targets.sent] == ["desktop"]


async def test_without_the_log_the_first_worker_tells(targets: Targets) -> None:
    for is_first, told in ((True, [Event.DISABLED, Event.STATE_IN_MEMORY]), (False, [])):
        notifier = made()
        notifier.is_first = is_first
        notifier._log = BrokenLog
        notifier._service.state_problem = lambda: "the disk is full"
        disable(notifier, ONE)
        assert [t.subject.event for t in await notifier.look()] == told
        assert await notifier.look() == []


async def test_without_targets_nothing_is_looked_at(targets: Targets) -> None:
    notifier = made()
    notifier.use((), notifier._options)  # type: ignore[arg-type]
    notifier.start(lambda: None)
    assert notifier._task is None
    notifier.use((HOOK,), notifier._options)  # type: ignore[arg-type]
    assert notifier._task is not None
    notifier.stop()


# -- how a notification reaches its targets, and that none of them delays or shows anything

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
    await notifier.send(target, NOTE, http=http, own_port=8080, timeout_s=timeout_s)


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
    assert notifier._body_for(host, NOTE) == {name: text}
    assert notifier._body_for(f"{host}.example", NOTE) == NOTE


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
    assert text.startswith(f"{json.dumps(NOTE)}\n")  # a line each, where they are appended
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
