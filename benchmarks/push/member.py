"""One proxy of the fleet, without its traffic: its pool, and what keeps that in the engine.

Reads accounts from stdin, a line each, and marks a cooldown of each at once. Prints a line a
cooldown: `made` or `known`, the account, and when (CLOCK_MONOTONIC, which all processes share).
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from account_pool.core.account import Account, AccountKey
from account_pool.core.credential import Credential, Secret
from account_pool.core.decisions import By, Decision, Kind
from account_pool.core.errors import NoUsableAccount
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.providers import openai
from account_pool.proxy import persistence
from account_pool.proxy.options import Settings
from account_pool.proxy.service import Service
from account_pool.store.fleet.fleet_store import FleetStore
from account_pool.store.pool_state import parse

LIMIT = Outcome(
    cls=OutcomeClass.QUOTA, scope=Scope.ACCOUNT, cooldown_s=3600.0, signal="429 code=quota"
)
GOOD = Outcome(cls=OutcomeClass.OK)
FACTS = RequestFacts(provider="openai", kind="key", model="gpt-5")
#: Accounts that serve, and never cool.
SERVING = 4


def service_of(accounts: int) -> Service:
    pool = Pool(strategy="round-robin")
    credentials = {"key": Credential(kind="key", secret=Secret("sk-fake-benchmark-000"))}
    labels = [f"serves-{n}" for n in range(SERVING)] + [f"cools-{n}" for n in range(accounts)]
    for label in labels:
        priority = 0 if label.startswith("serves") else 1
        new = Account(provider="openai", label=label, priority=priority)
        pool.accounts.add(new, credentials, now=time.monotonic())
    return Service(pool, Settings(), {"openai": openai.PROVIDER})


def listen(service: Service) -> None:
    """Print what is decided, as it is."""

    def heard(decision: Decision) -> None:
        if decision.kind is Kind.COOLDOWN and decision.account is not None:
            how = "known" if decision.by is By.PROXY else "made"
            print(how, decision.account.label, time.monotonic(), flush=True)

    service.pool.decisions.subscribe(heard)


async def serve(service: Service, a_second: float) -> None:
    """Count requests, as a proxy that is used does."""
    while a_second:
        await asyncio.sleep(random.expovariate(a_second))
        now = service.now()
        try:
            lease = service.pool.acquire(FACTS, now=now)
        except NoUsableAccount:
            continue
        service.pool.release(lease, GOOD, now=now)
        service.counters["usage"].add(("today", str(lease.key), "gpt-5"), {"requests": 1.0})


async def main(url: str, accounts: int, a_second: float) -> None:
    with TemporaryDirectory() as folder:
        service = service_of(accounts)
        kept = persistence.begin(FleetStore(parse(url), Path(folder)), service)
        kept.start()
        await kept.write()
        listen(service)
        serving = asyncio.create_task(serve(service, a_second))
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        print("ready", flush=True)
        while line := (await reader.readline()).decode().strip():
            if line == "others":
                print("others", len(kept.others), flush=True)
                continue
            key = AccountKey("openai", line)
            service.pool.health.mark_cooldown(key, LIMIT, now=service.now())
        serving.cancel()
        kept.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
