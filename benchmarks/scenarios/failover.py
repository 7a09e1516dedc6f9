"""What a failover adds to a request, one at a time, on kept connections.

Each request that fails over is for a model of its own: the first account has not refused
that one yet, so it is asked again, and the models that cool there become more and more.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass, field

from benchmarks import proxies
from benchmarks.bench import NO_PROXY, Bench, Line
from benchmarks.figures import Figure, Target
from benchmarks.load import Sent
from benchmarks.requests import chat
from benchmarks.rounds import Cost, in_turn

NAME = "failover, one request at a time"
_REFUSES = "sk-bench-trips-0"
#: Only the second account may serve this one.
_PLAIN = "gpt-5-mini"
_ADDED_MS = 1.0
#: CPU per failover among the last models, to that among the first: twice the spread of it
_GROWTH = 1.15


@dataclass(slots=True)
class _Taken:
    """Rounds of one kind of request on one line."""

    cost: Cost = field(default_factory=Cost)
    total_ms: list[float] = field(default_factory=list)

    def add(self, sent: Sent) -> None:
        self.cost.add(sent)
        self.total_ms += [reply.total_s * 1e3 for reply in sent.replies]


def measure(bench: Bench) -> list[Figure]:
    """Send plain requests, and through the pool as many that the first account refuses."""
    accounts = [
        proxies.account("first", _REFUSES, models=["gpt-5-model-*"]),
        proxies.account("second", "sk-bench-good", priority=1),
    ]
    kinds = [proxies.BARE, *bench.pools(accounts)]
    count = bench.effort.failovers
    plain, failing = {name: _Taken() for name in (NO_PROXY, *(k.name for k in kinds))}, _Taken()
    numbers = itertools.count()
    with bench.running(*kinds) as running, bench.lines(1, None, *running) as lines:
        for line in lines:
            line.warm_up(chat(bench.port, model=_PLAIN), times=50)
            if line.kind == proxies.POOL:
                # The first refusals compile the patterns that all others meet.
                _send(bench, line, [f"gpt-5-model-{next(numbers)}" for _ in range(20)], numbers)
        bench.forget()
        for line in in_turn(lines, bench.effort.failover_rounds):
            plain[line.kind].add(_send(bench, line, [_PLAIN] * count, numbers))
            if line.kind == proxies.POOL:
                models = [f"gpt-5-model-{next(numbers)}" for _ in range(count)]
                failing.add(_send(bench, line, models, numbers))
    figures = _added(bench, plain, failing) if failing.total_ms else []
    return figures + [
        _figure(f"plain request, {name}", statistics.median(taken.total_ms))
        for name, taken in plain.items()
    ]


def _send(bench: Bench, line: Line, models: list[str], numbers: itertools.count[int]) -> Sent:
    # A conversation each: none is bound to the account that served another.
    sent = line.send([chat(bench.port, model=m, text=f"question {next(numbers)}") for m in models])
    if sent.not_ok:
        raise RuntimeError(f"{line.kind}: {sent.not_ok} answers were no 200")
    return sent


def _added(bench: Bench, plain: dict[str, _Taken], failing: _Taken) -> list[Figure]:
    own = plain[proxies.POOL]
    added = statistics.median(failing.total_ms) - statistics.median(own.total_ms)
    round_trip = statistics.median(plain[NO_PROXY].total_ms)
    pairs = zip(failing.cost.cpu_ms, own.cost.cpu_ms, strict=True)
    cpu_ms = [a - b for a, b in pairs if a is not None and b is not None]
    third = max(len(cpu_ms) // 3, 1)
    grown = statistics.median(cpu_ms[-third:]) / statistics.median(cpu_ms[:third]) if cpu_ms else 0
    refused = bench.seen()["credentials"].get(_REFUSES, {}).get("refused", 0)
    expected = len(failing.total_ms)
    return [
        _figure("added beyond one round trip", added - round_trip, Target(_ADDED_MS)),
        _figure("added", added),
        Figure(
            scenario=NAME,
            name="CPU added, median of rounds",
            value=statistics.median(cpu_ms) if cpu_ms else None,
            unit="ms",
        ),
        Figure(
            scenario=NAME,
            name="CPU added with many cooling models / with few",
            value=grown or None,
            target=Target(_GROWTH),
            note=f"up to {expected} models, {third} rounds each",
        ),
        Figure(
            scenario=NAME,
            name="requests that failed over",
            value=float(refused),
            note=f"of {expected}",
            failed=refused != expected,
        ),
    ]


def _figure(name: str, value: float, target: Target | None = None) -> Figure:
    return Figure(
        scenario=NAME, name=f"{name}, median", value=value, unit="ms", target=target, wall=True
    )
