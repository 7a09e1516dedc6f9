"""Everything that runs during a measurement, and how a scenario talks to it."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import certs, load, proxies, upstream
from benchmarks.client import Route
from benchmarks.load import Close, Open, Send, Sent

#: how a line that goes straight to the provider is called
NO_PROXY = "no proxy"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured. More rounds make the median steadier, not the target softer.

    Many short rounds beat few long ones: a shared machine changes its pace within
    seconds, and the two halves of a short round see the same one.

    Attributes:
        json_rounds, json_requests: of small JSON; requests per proxy and round.
        stream_rounds: of streams of each shape.
        wave_rounds, waves: of 10 streams at once; waves per proxy and round.
        failover_rounds, failovers: failing over and plain requests, each, per round.
        fresh_pools: proxies with few models on cooldown, beside one with many.
        body_rounds: of bodies of each size.
        connection_rounds, connections: of new connections; connections per proxy and round.
        starts: counted starts of each proxy.
        lasting_requests: after which memory shall not have grown.
        strategies: with which an account trips.
        acquires: timed calls per strategy.
    """

    json_rounds: int
    json_requests: int
    stream_rounds: int
    wave_rounds: int
    waves: int
    failover_rounds: int
    failovers: int
    fresh_pools: int
    body_rounds: int
    connection_rounds: int
    connections: int
    starts: int
    lasting_requests: int
    strategies: tuple[str, ...]
    acquires: int


FULL = Effort(
    json_rounds=80,
    json_requests=100,
    stream_rounds=11,
    wave_rounds=10,
    waves=10,
    failover_rounds=15,
    failovers=40,
    fresh_pools=8,
    body_rounds=12,
    connection_rounds=20,
    connections=40,
    starts=7,
    lasting_requests=50_000,
    strategies=("fill-first", "least-busy", "round-robin"),
    acquires=2_000,
)
QUICK = Effort(
    json_rounds=25,
    json_requests=60,
    stream_rounds=3,
    wave_rounds=4,
    waves=5,
    failover_rounds=5,
    failovers=20,
    fresh_pools=2,
    body_rounds=3,
    connection_rounds=5,
    connections=20,
    starts=3,
    lasting_requests=3_000,
    strategies=("round-robin", "fill-first"),
    acquires=500,
)


@dataclass(slots=True)
class Line:
    """A set of open connections, through a proxy or straight to the provider."""

    name: str
    kind: str
    count: int
    pid: int | None
    bench: Bench

    def send(
        self, requests: Sequence[bytes], *, lockstep: bool = False, fresh: bool = False
    ) -> Sent:
        """Send *requests*, reading the proxy's CPU time around them (see `load.Send`)."""
        sent = self.bench.command(Send(self.name, requests, self.pid, lockstep, fresh))
        assert isinstance(sent, Sent)
        return sent

    def warm_up(self, request: bytes, times: int = 1) -> None:
        """Send *request* so many times through every connection.

        Raises RuntimeError when an answer is not a 200: what follows would measure nothing.
        """
        sent = self.send([request] * self.count * times, lockstep=True)
        if sent.not_ok:
            statuses = sorted({reply.status for reply in sent.replies})
            raise RuntimeError(f"{self.name}: the warm-up was answered with {statuses}")


class Bench:
    """The provider, the clients and the files of one run. Use `bench()` to get one."""

    def __init__(self, directory: Path, addon: Path | None, effort: Effort) -> None:
        self.directory = directory
        #: our addon; None when it is not to be measured
        self.addon = addon
        self.effort = effort
        self.certificates = certs.make(directory)
        self._stack = ExitStack()
        #: processes that run as long as this
        self.pids: tuple[int, ...] = ()
        self._context = ssl.create_default_context(cafile=self.certificates.authority)
        self._lines = 0
        ready = self._process(upstream.run, self.certificates)
        self.port: int = ready.recv()
        self._commands = self._process(load.run)

    def _process(self, target: Callable[..., None], *arguments: object) -> Any:
        """Run *target* in a process of its own; return our end of its pipe."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
        process.start()
        theirs.close()
        assert process.pid is not None
        self.pids += (process.pid,)

        def end() -> None:
            process.terminate()
            process.join()

        self._stack.callback(end)
        return ours

    def command(self, command: Open | Close | Send) -> Sent | None:
        """Have the clients do something. Raises RuntimeError when they cannot."""
        self._commands.send(command)
        result = self._commands.recv()
        if isinstance(result, RuntimeError):
            raise result
        assert result is None or isinstance(result, Sent)
        return result

    @property
    def proxy_authority(self) -> Path:
        """Return the file of the authority of the proxies; the first start makes it."""
        return self.directory / "confdir" / "mitmproxy-ca-cert.pem"

    def pools(
        self, accounts: Sequence[Mapping[str, Any]] | None = None, **options: str
    ) -> list[proxies.Kind]:
        """Return the kind that runs our addon, with three good accounts if none are given.

        Empty if the addon is not to be measured.
        """
        if self.addon is None:
            return []
        good = [proxies.account(label, f"sk-bench-good-{label}") for label in "abc"]
        return [proxies.pool(self.addon, good if accounts is None else accounts, **options)]

    def start(self, kind: proxies.Kind) -> proxies.Proxy:
        """Start a proxy; the caller stops it."""
        return proxies.start(kind, self.directory, self.certificates.authority, self.port)

    @contextmanager
    def running(self, *kinds: proxies.Kind) -> Iterator[list[proxies.Proxy]]:
        """Run proxies side by side."""
        with ExitStack() as stack:
            started = []
            for kind in kinds:
                proxy = self.start(kind)
                stack.callback(proxy.stop)
                # One after the other: they share mitmproxy's authority, which the first makes.
                proxy.wait_until_listening()
                started.append(proxy)
            yield started

    @contextmanager
    def line(self, count: int, proxy: proxies.Proxy | None) -> Iterator[Line]:
        """Hold *count* connections through *proxy*, or straight to the provider."""
        self._lines += 1
        kind = proxy.kind.name if proxy else NO_PROXY
        name = f"{kind} ({self._lines})"
        authority = self.certificates.authority
        if proxy is not None:
            authority = self.proxy_authority
        route = Route(self.port, proxy.port if proxy else None, str(authority))
        self.command(Open(name, route, count))
        try:
            yield Line(name, kind, count, proxy.pid if proxy else None, self)
        finally:
            self.command(Close(name))

    @contextmanager
    def lines(self, count: int, *running: proxies.Proxy | None) -> Iterator[list[Line]]:
        """Hold *count* connections through each of *running*."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.line(count, proxy)) for proxy in running]

    def seen(self) -> dict[str, Any]:
        """Return what the provider saw since `forget`, as `upstream.Ledger` has it."""
        return self._ask("GET", "/bench/stats")

    def forget(self) -> None:
        """Have the provider begin its books anew."""
        self._ask("POST", "/bench/reset")

    def next_event(self) -> None:
        """Have the provider send the next event of a stream that it holds."""
        self._ask("POST", "/bench/next")

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        connection = http.client.HTTPSConnection("localhost", self.port, context=self._context)
        try:
            connection.request(method, path)
            answer: dict[str, Any] = json.load(connection.getresponse())
        finally:
            connection.close()
        return answer

    def close(self) -> None:
        self._stack.close()


@contextmanager
def bench(addon: Path | None, effort: Effort) -> Iterator[Bench]:
    """Run the provider and the clients, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="account-pool-bench-") as directory:
        running = Bench(Path(directory), addon, effort)
        try:
            yield running
        finally:
            running.close()
