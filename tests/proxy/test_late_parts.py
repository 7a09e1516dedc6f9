"""Parts that are made once they are wanted, in a proxy that starts and in one that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from mitmproxy.options import Options

from account_pool.config.options import settings
from account_pool.core.pool import Pool
from account_pool.proxy import late_parts
from account_pool.proxy.late_parts import LateParts, Needs
from account_pool.proxy.options import Settings
from account_pool.proxy.service import Service
from tests.patience import PATIENCE_S

PRICES = '[{"provider": "openai", "model": "own", "input": 1, "output": 2}]'


@pytest.fixture
def service() -> Service:
    return Service(Pool(), Settings(), {})


@pytest.fixture
def asked() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
def parts(service: Service, asked: asyncio.Event) -> Iterator[LateParts]:
    async def ask_store(_question: object) -> None:
        asked.set()

    needs = Needs(
        http_of=lambda _options: pytest.fail("nothing is to be sent"),
        ask_store=ask_store,
        notices=lambda: None,
        login_ends=dict,
        is_vendors=lambda _provider: True,
    )
    made = LateParts(service, needs)
    yield made
    made.stop()


def use(parts: LateParts, **given: Any) -> None:
    parts.use(settings({}, given), Options())


async def test_what_nobody_wants_is_not_made(parts, service):
    use(parts)
    parts.start()
    assert (parts.notifier, parts.look_ups, parts.pricing) == (None, None, None)
    assert service.notify_targets() == [] and not service.look_ups.is_on
    assert service.prices().rules == ()


@pytest.mark.parametrize("runs", [False, True])
async def test_what_is_wanted_is_made_and_begins(parts, service, runs):
    parts.is_first = False
    if runs:
        use(parts)
        parts.start()
    use(parts, notify="ntfy:topic", look_up=True, prices=PRICES)
    if not runs:
        parts.start()
    assert [one["target"] for one in service.notify_targets()] == ["ntfy:https://ntfy.sh"]
    assert service.look_ups.is_on
    assert [rule.model for rule in service.prices().rules] == ["own"]
    assert not parts.notifier.is_first and not parts.pricing.is_first
    for part in (parts.notifier, parts.look_ups, parts.pricing):
        assert part._task is not None
    use(parts)
    assert service.notify_targets() == [] and not service.look_ups.is_on
    assert service.prices().rules == ()


@pytest.mark.parametrize("others_s", [None, 0.0])
async def test_rows_get_a_cost_ours_and_those_that_others_left(
    parts, service, asked, monkeypatch, others_s
):
    if others_s is not None:
        monkeypatch.setattr(late_parts, "OTHERS_ROWS_S", others_s)
    use(parts)
    parts.start()
    if others_s is None:
        service.rows_written()
    await asyncio.wait_for(asked.wait(), PATIENCE_S)
