"""What tests of steps that stand in for tasks of mitmproxy share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest


@pytest.fixture(params=["eager", "lazy"])
async def factory(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Tasks begin at once, as mitmproxy has them from Python 3.12 on, or a little later."""
    loop = asyncio.get_running_loop()
    if request.param == "eager":
        loop.set_task_factory(getattr(asyncio, "eager_task_factory", None))
    yield
    loop.set_task_factory(None)
