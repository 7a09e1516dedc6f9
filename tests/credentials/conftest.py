"""The fixtures of the credential tests; see `fakes.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.credentials.fakes import FakeClock, FakeGitHub, Published


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def published() -> Published:
    return Published()


@pytest.fixture
async def github() -> AsyncIterator[FakeGitHub]:
    async with FakeGitHub() as server:
        yield server
