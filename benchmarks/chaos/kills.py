"""Two proxies on one state file, logins whose refresh tokens work once, and `kill -9`.

One of the two is ended again and again at a random moment, with SIGKILL or SIGTERM, and
started anew; once, the state file is deleted under both. Whoever asks the other one is
served, and no login is lost but by the gaps that `logins` tells apart.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from account_pool.demo.mitmdump import MitmdumpFailed
from benchmarks.chaos.campaign import Result, Settings, failure_text
from benchmarks.chaos.clients import End, H1Client, H2Client, Seen
from benchmarks.chaos.faults import BY_NAME
from benchmarks.chaos.logins import LIFE_S
from benchmarks.chaos.oracle import Verdict, judge
from benchmarks.chaos.plan import Ask, plan
from benchmarks.chaos.replies import OPENAI
from benchmarks.chaos.rig import TIDY_S, Folder, Proxy, ScriptedProvider, accounts_file

LOGINS, CLIENTS = 8, 10
#: Answers between two kills.
BETWEEN = (10, 80)
#: Of a hundred ends, those by SIGTERM.
KINDLY = 25
#: A deleted state file is noticed so soon, in seconds (docs/state.md): no kill before.
NOTICED_S = 7.0
#: Rows of the requests: what is tried here is the proxies.
ROWS = [BY_NAME["good"], BY_NAME["429-retry-after"]]


@dataclass(eq=False)
class Slot:
    """One of the two proxies, as it comes and goes.

    Attributes:
        ended_at: when the last one was signalled; None while it runs.
        kindly: that was a SIGTERM.
    """

    name: str
    proxy: Proxy | None = None
    ended_at: float = 0.0
    kindly: bool = False


class Kills:
    """The second half of a campaign."""

    def __init__(self, settings: Settings, kills: int, folder: Folder, result: Result) -> None:
        self.settings, self.folder, self.result, self.kills = settings, folder, result, kills
        self.chance = Random(f"{settings.seed} kills")
        self.slots = [Slot("kill0"), Slot("kill1")]
        self.answers = 0
        self.over = False
        self.outcomes: Counter[str] = Counter()
        self._answered = asyncio.Event()
        self._accounts: list[dict[str, Any]] = []

    async def run(self, provider: ScriptedProvider) -> None:
        self.provider = provider
        for number in range(LOGINS):
            self._accounts.append(await self._login(f"login{number}"))
        self._write()
        async with AsyncExitStack() as stack:
            for slot in self.slots:
                await self._start(slot)
                stack.push_async_callback(self._stop, slot)
            async with asyncio.TaskGroup() as group:
                reviving = group.create_task(self._revive())
                workers = [group.create_task(self._work(n)) for n in range(CLIENTS)]
                await self._kill_again_and_again()
                self.over = True
                await asyncio.wait(workers)
                reviving.cancel()
            await self._afterwards()
        self.result.figures |= {f"kills: {name}": n for name, n in sorted(self.outcomes.items())}

    # -- proxies

    async def _start(self, slot: Slot) -> None:
        state = self.folder.path / "kill.sqlite"
        proxy = Proxy(slot.name, self.folder, self.provider.ports, "--set", f"pool_state={state}")
        await proxy.__aenter__()
        slot.proxy = proxy

    async def _stop(self, slot: Slot) -> None:
        if slot.proxy is not None:
            await slot.proxy.stop()

    async def _kill_again_and_again(self) -> None:
        deleting = self.chance.randrange(1, self.kills) if self.kills > 2 else None
        for number in range(self.kills):
            await self._until_answered(self.chance.randint(*BETWEEN))
            if number == deleting:
                for suffix in ("", "-wal", "-shm"):
                    (self.folder.path / f"kill.sqlite{suffix}").unlink(missing_ok=True)
                self.outcomes["state file deleted"] += 1
                await asyncio.sleep(NOTICED_S)
            slot = self.chance.choice(self.slots)
            await self._end(slot, kindly=self.chance.randrange(100) < KINDLY)
            await self._start(slot)
        await self._until_answered(BETWEEN[1])

    async def _end(self, slot: Slot, *, kindly: bool) -> None:
        proxy = slot.proxy
        assert proxy is not None
        slot.kindly, slot.ended_at, slot.proxy = kindly, time.monotonic(), None
        os.kill(proxy.pid, signal.SIGTERM if kindly else signal.SIGKILL)
        if not kindly:
            await self.provider.ask("killed")
        self.outcomes["SIGTERM" if kindly else "SIGKILL"] += 1
        with suppress(MitmdumpFailed):
            await proxy.until(lambda: False, self.settings.ceiling_s)
        await proxy.stop()

    async def _until_answered(self, count: int) -> None:
        until = self.answers + count
        async with asyncio.timeout(self.settings.ceiling_s):
            while self.answers < until:
                self._answered.clear()
                await self._answered.wait()

    # -- logins

    async def _login(self, label: str) -> dict[str, Any]:
        tokens = await self.provider.ask("login", label=label)
        oauth = {
            "access_token": tokens["access"],
            "refresh_token": tokens["refresh"],
            "expires_at": time.time() + LIFE_S,
            "token_url": f"http://127.0.0.1:{self.provider.ports['tokens']}/token",
            "client_id": "chaos",
        }
        return {"provider": OPENAI, "label": label, "token": {"oauth": oauth}}

    def _write(self) -> None:
        accounts_file(self.folder.path / "kill.yaml", self._accounts, self.provider.ports)

    async def _revive(self) -> None:
        """Log in anew where a login was lost, as its owner would."""
        while True:
            await asyncio.sleep(1)
            dead = await self.provider.ask("dead")
            for at, account in enumerate(self._accounts):
                if account["label"] in dead:
                    self._accounts[at] = await self._login(account["label"])
                    self.outcomes["new logins"] += 1
            if dead:
                self._write()

    # -- clients

    async def _work(self, number: int) -> None:
        chance = Random(f"{self.settings.seed} client {number}")
        protocol = self.settings.protocols[number % len(self.settings.protocols)]
        clients: dict[Proxy, H1Client | H2Client] = {}
        asked = 0
        while not self.over:
            slot = chance.choice([slot for slot in self.slots if slot.proxy] or self.slots)
            if (proxy := slot.proxy) is None:
                await asyncio.sleep(0)
                continue
            if proxy not in clients:
                target = self.folder.target(proxy, self.provider.ports)
                clients[proxy] = H1Client(target) if protocol == "h1" else H2Client(target)
            asked += 1
            ask = plan(self.settings.seed, 10**6 * (1 + number) + asked, protocol, ROWS, (OPENAI,))
            await self._judge(clients[proxy], ask, slot, proxy)
        for client in clients.values():
            client.close()

    async def _judge(self, client: H1Client | H2Client, ask: Ask, slot: Slot, proxy: Proxy) -> None:
        sent: list[float] = []

        def note() -> None:
            sent.append(time.monotonic())

        seen = Seen()
        try:
            async with asyncio.timeout(self.settings.ceiling_s):
                await client.ask(ask, self.provider.ports[OPENAI], seen, note)
        except TimeoutError:
            seen.end = End.HANG
        verdict, history = judge(ask, seen), list[str]()
        if verdict.fails:
            history = await self.provider.ask("history", nonce=ask.nonce)
        self.answers += 1
        self._answered.set()
        if slot.proxy is not proxy and verdict in (Verdict.BAD, Verdict.COLLATERAL):
            if not (slot.kindly and history and sent and sent[0] < slot.ended_at):
                self.outcomes["requests that a kill, or a drain, took with it"] += 1
                return
            self.outcomes["in flight at a SIGTERM, and cut"] += 1
        self.result.note(ask, verdict)
        if verdict.fails:
            failure = failure_text(ask, seen, verdict, history, self.settings.seed)
            end = f"{slot.name}, {'running' if slot.proxy is proxy else 'ended'}"
            self.result.failures.append(f"two proxies ({end}): {failure}")

    async def _afterwards(self) -> None:
        for slot in self.slots:
            if slot.proxy is None:
                continue
            in_flight = await slot.proxy.at_rest(self.settings.ceiling_s)
            if in_flight:
                self.result.failures.append(f"{slot.name}: {in_flight} leases did not come back")
            for label in await self._without(slot.proxy):
                self.result.failures.append(f"{slot.name}: {label} has no credential at the end")

    async def _without(self, proxy: Proxy) -> list[str]:
        """Return which logins have no token, once all have one or time is up."""
        lacking = [""]
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.ceiling_s):
                while lacking:
                    accounts = (await proxy.get("/account-pool"))["accounts"]
                    dead = await self.provider.ask("dead")
                    lacking = [
                        account["label"]
                        for account in accounts
                        if account["state"] in ("no_credential", "disabled")
                        and account["label"] not in dead
                    ]
                    await asyncio.sleep(TIDY_S)
        return lacking
