"""Tests of what is used only where mitmproxy is as it was known."""

from __future__ import annotations

import sys

import pytest
from mitmproxy.version import VERSION
from packaging.version import Version

from account_pool.proxy.fast import direct, inline, relay, short, table

#: The newest that was read. Older ones that the project supports are known, all of them.
NEWEST = Version("12.3.1")

needs_asyncio = pytest.mark.skipif(
    not direct.knows_asyncio(),
    reason=f"not the asyncio that was read, of Python {sys.version.split()[0]}",
)
needs_known = pytest.mark.skipif(
    Version(VERSION) > NEWEST
    and not all(step.is_as_known() for step in (table, inline, direct, short, relay)),
    reason=f"no shorter ways through mitmproxy {VERSION}: it has changed there (proxy/fast)",
)
