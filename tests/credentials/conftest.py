"""The fixtures of the credential tests; see `fakes.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.credentials.fakes import FakeClock, FakeGitHub, Published
from tests.patience import PATIENCE_S

from account_pool.credentials import files


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a file is read at once as well."""
    monkeypatch.setattr(files, "AT_ONCE_S", PATIENCE_S)


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
