"""Fixtures of the tests of the admin pages."""

from __future__ import annotations

import pytest

from tests.admin.helpers import FakeProxy


@pytest.fixture
def proxy(tmp_path):
    made = FakeProxy(tmp_path, "one", "two")
    yield made
    made.added.close()
