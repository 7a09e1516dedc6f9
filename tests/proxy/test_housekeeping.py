"""Conversations that were idle for long are forgotten, also when no request comes."""

from __future__ import annotations

import asyncio
import contextlib

from account_pool.core.account import AccountKey
from account_pool.proxy import addon
from tests.patience import PATIENCE_S
from tests.proxy.helpers import FakeClock, service_of

KEY = AccountKey("openai", "one")


def idle_ones(*keys: str):
    clock = FakeClock()
    service = service_of("one", clock=clock)
    for key in keys:
        service.sessions.bind(key, KEY, clock.now())
    clock.advance(service.sessions.idle_s)
    return service


async def test_they_are_swept_without_a_request(monkeypatch):
    service = idle_ones("old:openai")
    monkeypatch.setattr(addon, "SWEEP_S", 0.0)
    task = asyncio.create_task(addon.housekeeping(service))
    async with asyncio.timeout(PATIENCE_S):
        while len(service.sessions):
            await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_whoever_fails_to_take_note_stops_no_other(caplog):
    service = idle_ones("one", "two")

    def fails(_key: str) -> None:
        raise OSError("sk-fake-secret")

    service.sessions.changed = fails
    addon.forget_idle(service)
    assert len(service.sessions) == 0
    assert caplog.messages == ["account-pool: forgetting a conversation: OSError"] * 2
