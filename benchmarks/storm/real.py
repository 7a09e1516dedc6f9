"""`python -m benchmarks.storm --real`: the same agents, real proxies on a real engine, real time.

The accounts are scripted as in the simulation (`fleet`), behind a TLS server in this process,
which also runs the agents; each proxy is a mitmdump with the pool. All but the proxies is a
*pace* times as fast as simulated: at 12 a window of a minute takes five seconds. What the pool
waits for by itself (a second for the one that tries an account, 250 ms between two that move)
and what the engine needs to tell the others (some 20 ms) is not, so the faster, the more
requests meet a limit that another proxy already knows: 1 is the truth, more is sooner.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import statistics
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import ceil, inf
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import httpx

from benchmarks import certs, proxies, replies
from benchmarks.push.__main__ import engine
from benchmarks.requests import CLIENT_CREDENTIAL
from benchmarks.storm.fleet import (
    ANSWERED_S,
    MINUTE_S,
    REFUSED_S,
    SLEEP_S,
    STREAMED_S,
    Agent,
    ScriptedAccount,
    Served,
    Tally,
    Told,
    Window,
)

#: What the accounts allow in a window: `AGENTS` ask for four fifths of it in all, and for more
#: than their share of the smaller ones.
LIMITS = (60, 50, 40, 30, 20)
AGENTS = 64
STRATEGIES = ("round-robin", "fill-first")
#: How long proxies may take until each knows of all others, seconds.
PATIENCE_S = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TOKEN = re.compile(rb"\r\nauthorization: *Bearer ([^\r]*)", re.IGNORECASE)
_SERVED_BY = "x-served-by"


class Hurried:
    """Real time, a *pace* times as fast."""

    def __init__(self, pace: float) -> None:
        self.pace = pace
        self._loop = asyncio.get_running_loop()

    @property
    def now(self) -> float:
        return self._loop.time() * self.pace

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self._loop.call_later(seconds / self.pace, act)

    async def sleep(self, between: tuple[float, float], chance: Random) -> None:
        await asyncio.sleep(chance.uniform(*between) / self.pace)


class Provider:
    """Serves the scripted accounts. A response says nothing of what is left, as simulated."""

    def __init__(self, clock: Hurried, chance: Random) -> None:
        self._clock, self._chance = clock, chance
        now, apart_s = clock.now, MINUTE_S / len(LIMITS)
        self.accounts = {
            f"sk-fake-storm-{n}": ScriptedAccount(
                f"account-{n}", [Window(MINUTE_S, limit, now + n * apart_s)]
            )
            for n, limit in enumerate(LIMITS, 1)
        }

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request of a connection after the other, until it is closed."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length, token = _LENGTH.search(head), _TOKEN.search(head)
                assert length is not None and token is not None
                await reader.readexactly(int(length[1]))
                await self._answer(self.accounts[token[1].decode()], writer)
                await writer.drain()
        writer.close()

    async def _answer(self, account: ScriptedAccount, writer: asyncio.StreamWriter) -> None:
        clock, chance, asked_at = self._clock, self._chance, self._clock.now
        if (refusal := account.ask(asked_at)) is not None:
            await clock.sleep(REFUSED_S, chance)
            left_s = (asked_at + refusal[0] - clock.now) / clock.pace
            writer.write(replies.limit_answer(max(ceil(left_s * 1000), 1)))
            return
        await clock.sleep(ANSWERED_S, chance)
        first, *rest = (replies.chunk(event) for event in replies.events("storm", 4))
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
            + f"{_SERVED_BY}: {account.name}\r\n\r\n".encode()
            + first
        )
        await clock.sleep(STREAMED_S, chance)
        writer.write(b"".join(rest) + replies.chunk(b""))


class Proxied:
    """Sends requests through the proxies; a conversation stays on one of them.

    Attributes:
        over: done once *enough* were answered, or one has failed altogether, with why.
    """

    def __init__(
        self, clock: Hurried, clients: Sequence[httpx.AsyncClient], port: int, enough: float
    ) -> None:
        self._clock, self._clients, self._left = clock, clients, enough
        self._url = f"https://localhost:{port}/v1/chat/completions"
        self._tasks: set[asyncio.Task[None]] = set()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ask(self, conversation: int, served: Served, told: Told) -> None:
        if self.over.done():
            return
        task = asyncio.create_task(self._ask(conversation, served, told))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.over.done():
            self.over.set_exception(error)

    async def _ask(self, conversation: int, served: Served, told: Told) -> None:
        asked_at = self._clock.now
        question = {
            "model": "gpt-5",
            "stream": True,
            "prompt_cache_key": f"conversation-{conversation}",
            "messages": [{"role": "user", "content": f"question {conversation}"}],
        }
        client = self._clients[conversation % len(self._clients)]
        answer = await client.post(self._url, json=question)
        if answer.status_code == 200:
            served(answer.headers[_SERVED_BY], asked_at)
            self._left -= 1
            if self._left <= 0 and not self.over.done():
                self.over.set_result(None)
        else:
            pace = self._clock.pace
            told(float(answer.headers.get("retry-after", SLEEP_S[1] / pace)) * pace)

    async def stop(self) -> None:
        """Send nothing more, and wait for no answer."""
        self.over.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass(slots=True)
class Runs:
    """What came of the runs of one way, in their order.

    Attributes:
        served: requests that were answered.
        refused: refusals of the accounts per 100 of them.
        told: refusals that clients saw.
    """

    served: list[int] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    told: list[int] = field(default_factory=list)

    def add(self, tally: Tally, refusals: int) -> None:
        self.served.append(tally.served)
        self.refused.append(100 * refusals / max(tally.served, 1))
        self.told.append(tally.told)

    def row(self, name: str, one: Runs) -> str:
        """Return one line of the table; *one* is what one proxy does."""
        mean, of_one = statistics.fmean(self.refused), statistics.fmean(one.refused)
        each = ", ".join(f"{refused:.1f}" for refused in self.refused)
        relative = f"{mean / of_one:.2f}" if of_one else "-"
        served = f"{statistics.fmean(self.served):.0f}"
        cells = [name, served, f"{mean:.2f} ({each})", relative, f"{statistics.fmean(self.told):g}"]
        return f"| {' | '.join(cells)} |"


async def knowing_each_other(running: Sequence[proxies.Proxy], count: int) -> None:
    """Return when each proxy knows of *count*, itself included. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(trust_env=False) as client:
        for proxy in running:
            known = 0
            while known < count:
                await asyncio.sleep(0.1)
                answer = await client.get(f"http://127.0.0.1:{proxy.port}/proxies")
                # It may still be starting.
                known = answer.json()["summary"]["running"] if answer.is_success else 0


@dataclass(frozen=True, slots=True)
class Storm:
    """Proxies that run, and all that a fleet of agents needs to work through them."""

    clock: Hurried
    provider: Provider
    port: int
    clients: Sequence[httpx.AsyncClient]
    agents: int
    seed: int

    async def run(self, seconds: float, enough: float = inf) -> tuple[Tally, int]:
        """Let the agents work for so many seconds, or until *enough* requests were answered.

        Returns what came of it, and how often accounts refused.
        """
        way, tally = Proxied(self.clock, self.clients, self.port, enough), Tally()
        chance = Random(self.seed)
        for _ in range(self.agents):
            Agent(self.clock, chance, tally, way.ask)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(way.over)
        except TimeoutError:
            pass
        finally:
            await way.stop()
        return tally, sum(account.refusals for account in self.provider.accounts.values())


@asynccontextmanager
async def storm(
    strategy: str,
    count: int,
    *,
    kind: str,
    seed: int,
    agents: int,
    pace: float,
    apart: bool = False,
) -> AsyncIterator[Storm]:
    """Start *count* proxies on an engine of a *kind*; those that are *apart* share nothing."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="account-pool-storm-")))
        url = stack.enter_context(engine(kind, "everysec", folder))
        certificates = certs.make(folder)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificates.server)
        clock = Hurried(pace)
        provider = Provider(clock, Random(seed + 1))
        server = await asyncio.start_server(provider.connected, "127.0.0.1", 0, ssl=tls)
        stack.callback(server.close)
        port = server.sockets[0].getsockname()[1]
        accounts = [proxies.account(a.name, token) for token, a in provider.accounts.items()]
        addon = proxies.CHECKOUT / "addon" / "pool.py"
        running = []
        for n in range(count):
            state = f"{url}-{n}" if apart else url
            pool = proxies.pool(addon, accounts, pool_state=state, pool_strategy=strategy)
            # One after the other: they share mitmproxy's authority, which the first makes.
            proxy = proxies.start(pool, folder, certificates.authority, port)
            stack.callback(proxy.stop)
            proxy.wait_until_listening()
            running.append(proxy)
        await knowing_each_other(running, 1 if apart else count)
        trusted = ssl.create_default_context(cafile=folder / "confdir" / "mitmproxy-ca-cert.pem")
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    proxy=f"http://127.0.0.1:{proxy.port}",
                    verify=trusted,
                    trust_env=False,
                    timeout=PATIENCE_S,
                    limits=httpx.Limits(max_connections=None),
                    headers={"authorization": f"Bearer {CLIENT_CREDENTIAL}"},
                )
            )
            for proxy in running
        ]
        yield Storm(clock, provider, port, clients, agents, seed)


async def compared(
    strategy: str, ways: Mapping[str, tuple[int, bool]], options: Namespace
) -> dict[str, Runs]:
    """Run each of the *ways* as often as *options* say, all of it at the same time.

    So what else the machine does is the same for all; and what they do themselves is little, if
    they keep the pace of agents.
    """
    done = {name: Runs() for name in ways}
    async with AsyncExitStack() as stack:
        begun = [
            (
                name,
                await stack.enter_async_context(
                    storm(
                        strategy,
                        count,
                        kind=options.engine,
                        seed=options.seed + n,
                        agents=options.agents or AGENTS,
                        pace=options.pace,
                        apart=apart,
                    )
                ),
            )
            for n in range(options.runs)
            for name, (count, apart) in ways.items()
        ]
        results = await asyncio.gather(*(one.run(options.seconds) for _, one in begun))
    for (name, _), result in zip(begun, results, strict=True):
        done[name].add(*result)
    return done


def main(options: Namespace) -> None:
    """Print the table as Markdown: one proxy, and as many as *options* say."""
    agents = options.agents or AGENTS
    print(f"{options.engine}, {options.runs} runs of {options.seconds:g} s, {agents} agents")
    print(f"at {options.pace:g} times their pace;", end=" ")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} when it began")
    print()
    print("| proxies | served | refusals per 100 served (each run) | / one | clients saw |")
    print("|---|---|---|---|---|")
    ways = {"1": (1, False), str(options.proxies): (options.proxies, False)}
    if options.apart:
        ways[f"{options.proxies} that share nothing"] = (options.proxies, True)
    for strategy in [options.strategy] if options.strategy else STRATEGIES:
        for name, runs in (done := asyncio.run(compared(strategy, ways, options))).items():
            print(runs.row(f"{name}, {strategy}", done["1"]), flush=True)
