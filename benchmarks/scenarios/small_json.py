"""Small JSON answers over kept-alive connections at concurrency 16."""

from __future__ import annotations

from importlib import metadata

from benchmarks import proxies, rounds
from benchmarks.bench import Bench
from benchmarks.figures import Figure, Target, middle, ratio
from benchmarks.requests import chat

NAME = "small JSON, keep-alive, 16 at once"
_CONCURRENCY = 16
#: mitmproxy 11 spends less of a request in what the pool shortens.
_CPU = 0.65 if metadata.version("mitmproxy").startswith("11.") else 0.60
_RATE = 1.7


def measure(bench: Bench) -> list[Figure]:
    """Compare CPU per request and requests per second with bare mitmdump."""
    kinds = [proxies.BARE, proxies.FIVE_LINES, *bench.pools()]
    requests = [chat(bench.port)] * bench.effort.json_requests
    with bench.running(*kinds) as running, bench.lines(_CONCURRENCY, *running) as lines:
        for line in lines:
            line.warm_up(chat(bench.port), times=10)
        costs = rounds.measure(lines, bench.effort.json_rounds, lambda line: line.send(requests))
    bare = proxies.BARE.name
    rates = [
        ratio(
            f"requests per second, {name} / {bare}",
            NAME,
            cost.rate,
            costs[bare].rate,
            Target(_RATE, at_least=True) if name == proxies.POOL else None,
            wall=True,
        )
        for name, cost in costs.items()
        if name != bare
    ]
    return [
        *rounds.compare(NAME, costs, bare, {proxies.POOL: Target(_CPU)}),
        *rates,
        *(middle(f"requests per second, {name}", NAME, c.rate, "/s") for name, c in costs.items()),
    ]
