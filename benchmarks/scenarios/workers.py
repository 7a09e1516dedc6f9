"""Several workers on one port (`account-pool serve --workers`): Linux only."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from benchmarks import rounds
from benchmarks.bench import Bench
from benchmarks.figures import Figure, Target, middle, ratio
from benchmarks.requests import chat
from benchmarks.scenarios import trip

NAME = "workers"
_WORKERS, _CONCURRENCY = 2, 32
_RATE, _BURNT = 1.8, 8


def measure(bench: Bench) -> list[Figure]:
    """Compare their requests per second with those of one, and let an account trip on them."""
    if sys.platform != "linux":
        return []
    figures: list[Figure] = []
    requests = [chat(bench.port)] * bench.effort.json_requests * _WORKERS
    for one in bench.pools():
        several = replace(one, name=f"{_WORKERS} workers", workers=_WORKERS)
        with bench.running(one, several) as running, bench.lines(_CONCURRENCY, *running) as lines:
            for line in lines:
                line.warm_up(chat(bench.port), times=10)
            count = bench.effort.json_rounds
            costs = rounds.measure(lines, count, lambda line: line.send(requests))
        rate = ratio(
            f"requests per second, {several.name} / one",
            NAME,
            costs[several.name].rate,
            costs[one.name].rate,
            Target(_RATE, at_least=True),
            wall=True,
        )
        if (cores := os.cpu_count() or 1) < _WORKERS + 2:
            why = f"no verdict: {cores} cores for them, the clients and the provider"
            rate = replace(rate, target=None, note=f"{why}; {rate.note}")
        figures.append(rate)
        figures += [
            middle(f"requests per second, {n}", NAME, c.rate, "/s") for n, c in costs.items()
        ]
        figures += trip.count(bench, NAME, _BURNT, workers=_WORKERS)
    return figures
