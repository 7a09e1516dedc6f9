"""What time alone brings: idle conversations go, silences and suspends are noticed."""

from __future__ import annotations

import asyncio
import logging

from account_pool.proxy.service import Service
from account_pool.supervision import log_and_continue

logger = logging.getLogger(__name__)

#: How often, seconds.
SWEEP_S = 60.0
#: How often requests under way are looked at, and the clocks, seconds.
LOOK_S = 5.0


async def run(service: Service) -> None:
    """Sweep again and again, until cancelled."""
    sweep_at = service.now() + SWEEP_S
    while True:
        await asyncio.sleep(LOOK_S)
        service.mind_suspend()
        with log_and_continue:
            service.look()
        if service.now() >= sweep_at:
            sweep_at = service.now() + SWEEP_S
            sweep(service)


def sweep(service: Service) -> None:
    """Sweep once. Whoever fails to take note of an ending stops no other."""
    for failure in service.sessions.sweep(service.now()).failures:
        logger.error(f"account-pool: forgetting a conversation: {type(failure).__name__}")
