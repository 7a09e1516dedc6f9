"""Several workers on one port (`account-pool serve --workers`): Linux only."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks import rounds
from benchmarks.bench import Bench, Line
from benchmarks.cpu import children, cpu_seconds
from benchmarks.figures import Figure, Target, middle, ratio
from benchmarks.load import Sent
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
            capacity = _Capacity(requests)
            costs = rounds.measure(lines, bench.effort.json_rounds, capacity.send)
        few = (cores := os.cpu_count() or 1) < _WORKERS + 2
        target = Target(_RATE, at_least=True)
        rate = ratio(
            f"requests per second, {several.name} / one",
            NAME,
            costs[several.name].rate,
            costs[one.name].rate,
            None if few else target,
            wall=True,
        )
        if few:
            why = f"no verdict: {cores} cores for them, the clients and the provider"
            rate = replace(rate, note=f"{why}; {rate.note}")
        figures += [
            rate,
            ratio(
                f"the same on cores of their own, {several.name} / one",
                NAME,
                capacity.per_second[several.name],
                capacity.per_second[one.name],
                target,
            ),
        ]
        figures += [
            middle(f"requests per second, {n}", NAME, c.rate, "/s") for n, c in costs.items()
        ]
        figures += trip.count(bench, NAME, _BURNT, workers=_WORKERS)
    return figures


class _Capacity:
    """How many requests a second processes serve that have a core each.

    Neither the clients nor the provider are on those: the busiest process is the bound, and so
    are all together on as many cores as there are workers.

    Attributes:
        per_second: of each round, by kind; None where nothing tells it.
    """

    def __init__(self, requests: Sequence[bytes]) -> None:
        self._requests = requests
        self.per_second: dict[str, list[float | None]] = {}

    def send(self, line: Line) -> Sent:
        """Send the requests of a round."""
        before = _cpu(line)
        sent = line.send(self._requests)
        spent = [now - before.get(pid, 0.0) for pid, now in _cpu(line).items()]
        busiest = max(*spent, sum(spent) / min(_WORKERS, len(spent))) if spent else 0.0
        rate = len(self._requests) / busiest if busiest else None
        self.per_second.setdefault(line.kind, []).append(rate)
        return sent


def _cpu(line: Line) -> dict[int, float]:
    """Return the CPU time so far of each process of the proxy behind *line*."""
    assert line.pid is not None
    known = {pid: cpu_seconds(pid) for pid in (line.pid, *children(line.pid))}
    return {pid: spent for pid, spent in known.items() if spent is not None}
