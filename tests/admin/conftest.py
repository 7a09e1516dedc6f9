"""Fixtures of the tests of the admin pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.admin.helpers import FakeProxy


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[FakeProxy]:
    made = FakeProxy(tmp_path, "one", "two")
    yield made
    made.added.close()
