"""Forgets conversations that were idle for long, whether or not requests come."""

from __future__ import annotations

import asyncio
import logging

from account_pool.proxy.service import Service

logger = logging.getLogger(__name__)

#: How often, seconds.
SWEEP_S = 60.0


async def run(service: Service) -> None:
    """Sweep again and again, until cancelled."""
    while True:
        await asyncio.sleep(SWEEP_S)
        sweep(service)


def sweep(service: Service) -> None:
    """Sweep once. Whoever fails to take note of an ending stops no other."""
    for failure in service.sessions.sweep(service.now()).failures:
        logger.error(f"account-pool: forgetting a conversation: {type(failure).__name__}")
