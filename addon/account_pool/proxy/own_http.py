"""Our own HTTP/1 and HTTP/2, each where it fits the mitmproxy that runs."""

from __future__ import annotations

import logging
from types import ModuleType

logger = logging.getLogger(__name__)


def quick_http1() -> ModuleType | None:
    """Return `http1`, or None where the private parts it stands on are not as it knows them."""
    try:
        from account_pool.proxy import http1  # noqa: PLC0415 - may fail

        http1.check()
    except Exception as e:
        logger.info(f"account-pool: mitmproxy's own HTTP/1 is used ({type(e).__name__})")
        return None
    return http1


def own_http2() -> ModuleType | None:
    """Return `http2`, or None where the private parts it stands on are not as it knows them."""
    try:
        from account_pool.proxy import http2  # noqa: PLC0415 - may fail

        http2.check()
    except Exception as e:
        logger.info(f"account-pool: mitmproxy's own HTTP/2 is used ({type(e).__name__})")
        return None
    return http2
