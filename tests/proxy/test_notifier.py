"""The owner is told what happens, and no target that hangs or fails keeps anybody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Any

import pytest
from mitmproxy.options import Options

from account_pool.config.notify import Desktop, FromVariable, Webhook
from account_pool.core.account import AccountKey
from account_pool.core.notifications import Event, Subject, Verdict
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.credentials.http import Http
from account_pool.proxy import notifier as notifier_module
from account_pool.proxy.notifier import MAX_WAITING, Notifier
from account_pool.proxy.notify_targets import NotSent
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
        self.hang: set[str] = set()
        self.fail: set[str] = set()
        self.arrived = asyncio.Event()
        monkeypatch.setattr(notifier_module.notify_targets, "send", self.send)

    async def send(self, target: Any, value: Mapping[str, Any], **_how: Any) -> None:
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
