"""The traffic: workers that go through the plan, and everything that must hold at its end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos.clients import End, H1Client, H2Client, Seen, Target
from benchmarks.chaos.faults import Row
from benchmarks.chaos.oracle import Verdict, judge
from benchmarks.chaos.plan import CLIENT, SECRET, Ask, plan, plan_lane
from benchmarks.chaos.rig import Folder, Proxy, ScriptedProvider, accounts_file, keys

#: Clients at once: over HTTP/1.1 each has a connection, over HTTP/2 so many share one.
H1_CLIENTS, H2_CONNECTIONS, H2_STREAMS = 24, 4, 10
#: Requests of the plan for each request whose connection fails.
PER_LANE = 150


@dataclass(slots=True, kw_only=True)
class Result:
    """What a campaign found.

    Attributes:
        verdicts: by row and verdict.
        failures: everything that must not be, in words.
        leaks: those that are credentials outside answers.
    """

    seed: int
    verdicts: Counter[tuple[str, Verdict]] = field(default_factory=Counter)
    by_protocol: Counter[tuple[str, Verdict]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)

    def count(self, *verdicts: Verdict) -> int:
        return sum(n for (_, verdict), n in self.verdicts.items() if verdict in verdicts)

    def note(self, ask: Ask, verdict: Verdict) -> None:
        self.verdicts[ask.row.name, verdict] += 1
        self.by_protocol[ask.protocol, verdict] += 1


@dataclass(slots=True, kw_only=True)
class Settings:
    """What is asked of a campaign.

    Attributes:
        ceiling_s: a request that has not ended after so long hangs.
        seconds: it begins nothing new after so long; None: no end but that of its requests.
        crowd: how many times as many clients and accounts as usual.
    """

    seed: int = 1
    requests: int = 2000
    protocols: Sequence[str] = ("h1", "h2")
    rows: Sequence[Row] = ()
    ceiling_s: float = 90.0
    seconds: float | None = None
    sabotage: str = ""
    crowd: int = 1


class Campaign:
    """Requests through one proxy, each judged."""

    def __init__(self, settings: Settings, folder: Folder, result: Result) -> None:
        self.settings, self.folder, self.result = settings, folder, result
        self._until = None if settings.seconds is None else time.monotonic() + settings.seconds

    async def run(self, provider: ScriptedProvider) -> None:
        """Start a proxy, send everything, and look at what is left."""
        self.provider = provider
        accounts_file(self.folder.path / "traffic.yaml", keys(self.settings.crowd), provider.ports)
        dump = self.folder.path / "flows"
        options = ("--set", f"pool_state={self.folder.path / 'traffic.sqlite'}", "-w", str(dump))
        async with Proxy("traffic", self.folder, provider.ports, *options) as proxy:
            tidying = asyncio.create_task(proxy.tidy())
            try:
                await self._traffic(self.folder.target(proxy, provider.ports))
            finally:
                tidying.cancel()
                with suppress(asyncio.CancelledError):
                    await tidying
            await self._afterwards(proxy)
        self._search(dump)

    async def _traffic(self, target: Target) -> None:
        work = []
        clients: list[H1Client | H2Client] = []
        rows = [row for row in self.settings.rows if not row.lane]
        for protocol in self.settings.protocols:
            if not any(protocol in row.over for row in rows):
                continue
            share = self.settings.requests // len(self.settings.protocols)
            asks = self._asks(protocol, rows, share)
            of_it: list[H1Client | H2Client] = []
            crowd = self.settings.crowd
            if protocol == "h1":
                of_it += [H1Client(target) for _ in range(H1_CLIENTS * crowd)]
            else:
                of_it += [H2Client(target) for _ in range(H2_CONNECTIONS * crowd)] * H2_STREAMS
            work += [self._work(client, asks, target) for client in of_it]
            clients += of_it
        lanes = [row for row in self.settings.rows if row.lane]
        ports = self.provider.ports["lanes"]
        for number, port in enumerate(ports if lanes else ()):
            work.append(self._lane(target, number, port, lanes[number :: len(ports)]))
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
        for client in clients:
            client.close()

    def _asks(self, protocol: str, rows: Sequence[Row], count: int) -> Iterator[Ask]:
        for number in range(count):
            if self._until is not None and time.monotonic() > self._until:
                return
            yield plan(self.settings.seed, number, protocol, rows)

    async def _work(self, client: H1Client | H2Client, asks: Iterator[Ask], target: Target) -> None:
        for ask in asks:
            await self._judge(client, ask, target.ports[ask.vendor])

    async def _lane(self, target: Target, number: int, port: int, rows: Sequence[Row]) -> None:
        """Ask at a port whose next connection fails; one at a time, so that it is this one's."""
        lanes = len(self.provider.ports["lanes"])
        count = max(len(rows), self.settings.requests // PER_LANE // lanes)
        for at in range(count if rows else 0):
            row = rows[at % len(rows)]
            protocol = self.settings.protocols[at % len(self.settings.protocols)]
            await self.provider.ask("arm", lane=number, faults=[row.acts[0]])
            ask = plan_lane(self.settings.seed, 1000 * number + at, protocol, row)
            client = H1Client(target) if protocol == "h1" else H2Client(target)
            await self._judge(client, ask, port)
            client.close()
        await self.provider.ask("arm", lane=number, faults=[])

    async def _judge(self, client: H1Client | H2Client, ask: Ask, port: int) -> None:
        seen = Seen()
        try:
            async with asyncio.timeout(self.settings.ceiling_s):
                await client.ask(ask, port, seen)
        except TimeoutError:
            seen.end = End.HANG
        verdict, history = judge(ask, seen), list[str]()
        if verdict.fails:
            history = await self.provider.ask("history", nonce=ask.nonce)
        self.result.note(ask, verdict)
        if verdict.fails:
            seed = self.settings.seed
            self.result.failures.append(failure_text(ask, seen, verdict, history, seed))

    async def _afterwards(self, proxy: Proxy) -> None:
        """Nothing is in flight, and nothing was seen that must not be."""
        result = self.result
        in_flight = await proxy.at_rest(self.settings.ceiling_s)
        result.figures["leases left"] = in_flight
        if in_flight:
            result.failures.append(f"{in_flight} leases did not come back")
        for path in ("/decisions?limit=1000", "/sessions", "/usage", "/health", "/metrics"):
            await proxy.get(path)

    def _search(self, dump: Path) -> None:
        """Look for secrets in what mitmproxy saved."""
        size, rest = 0, b""
        with dump.open("rb") as file:
            while piece := file.read(1 << 24):
                size += len(piece)
                for secret in (SECRET.encode(), CLIENT.encode()):
                    if secret in rest + piece:
                        self.folder.leaks.append("a secret in the dump of flows")
                rest = piece[-len(CLIENT) :]
        self.result.figures["bytes of dumped flows searched"] = size


def failure_text(ask: Ask, seen: Seen, verdict: Verdict, history: Sequence[str], seed: int) -> str:
    """Say what went wrong with *ask*, and how to repeat it."""
    again = f"--seed {seed} --faults {ask.row.name} --protocol {ask.protocol}"
    return (
        f"{verdict.value}: {ask.row.name} over {ask.protocol} ({ask.vendor}, {ask.shape}, "
        f"{ask.leave}), {ask.nonce}: must be {ask.row.must.value}; saw {seen.status} "
        f"{seen.end.value} {bytes(seen.body[:160])!r} {seen.note}; the provider: {history}; "
        f"beside {sorted(seen.company)}; again: {again}"
    )
