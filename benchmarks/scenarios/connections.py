"""New connections: CONNECT, TLS on both sides, one small request, and the end."""

from __future__ import annotations

from benchmarks import proxies, rounds
from benchmarks.bench import Bench
from benchmarks.figures import Figure, Target
from benchmarks.requests import chat

NAME = "new TLS connections, 4 at once"
_CONCURRENCY = 4
_CPU = 0.85


def measure(bench: Bench) -> list[Figure]:
    """Compare CPU per connection with bare mitmdump."""
    kinds = [proxies.BARE, *bench.pools()]
    requests = [chat(bench.port)] * bench.effort.connections
    with bench.running(*kinds) as running, bench.lines(_CONCURRENCY, *running) as lines:
        for line in lines:
            line.warm_up(chat(bench.port))
            line.send(requests, fresh=True)
        costs = rounds.measure(
            lines,
            bench.effort.connection_rounds,
            lambda line: line.send(requests, fresh=True),
        )
    targets = {proxies.POOL: Target(_CPU)}
    return rounds.compare(NAME, costs, proxies.BARE.name, targets, what="connection")
