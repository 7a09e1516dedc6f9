"""Tests of what is used only where mitmproxy is as it was known."""

from __future__ import annotations

import sys

import pytest
from mitmproxy.version import VERSION
from packaging.version import Version

from account_pool.proxy.fast import known, short

#: The newest that was read. Older ones that the project supports are known, all of them.
NEWEST = Version("12.3.1")

needs_asyncio = pytest.mark.skipif(
    not known.knows_asyncio(),
    reason=f"not the asyncio that was read, of Python {sys.version.split()[0]}",
)
needs_known = pytest.mark.skipif(
    Version(VERSION) > NEWEST
    and not (known.knows_walk() and known.knows_handler() and known.knows_reading())
    and not (short.knows_layers() and short.knows_chunks()),
    reason=f"no shorter ways through mitmproxy {VERSION}: it has changed there (proxy/fast)",
)
