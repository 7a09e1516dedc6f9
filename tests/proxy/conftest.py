"""Fixtures of the tests of the proxy layer: a rig per test, checked at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from account_pool.core.account import Account
from account_pool.proxy.service import Service
from tests.proxy.helpers import FakeClock, Rig, service_of, use_ready_tls

Build = Callable[..., Rig]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rig_of(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    """Make rigs: `rig_of("one", "two", client2=True, gate_s=5)`.

    Whatever a test is about, when its client has left nothing may be left of it.
    """
    use_ready_tls(monkeypatch)
    rigs: list[Rig] = []
    of_rig = {
        "client2", "server2", "mode", "address", "tls", "sni", "peer", "options", "script",
    }  # fmt: skip

    def build(*accounts: str | Account, service: Service | None = None, **settings: Any) -> Rig:
        how = {name: settings.pop(name) for name in of_rig & settings.keys()}
        if service is None:
            service = service_of(*(accounts or ("one", "two")), clock=clock, **settings)
        rigs.append(Rig(service, clock, **how))
        return rigs[-1]

    yield build
    for rig in rigs:
        rig.held.clear()
        rig.leave()
        while rig.waiting:
            rig.complete()
        rig.assert_at_rest()
