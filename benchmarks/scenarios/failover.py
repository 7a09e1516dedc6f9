"""What a failover adds to a request, one at a time, on kept connections.

Each request that fails over is for a model of its own: the first account has not refused
that one yet, so it is asked again, and the models that cool there become more and more.
What they cost is seen beside a proxy that has only met a few: both take turns, as the pace of
a machine changes by more from one minute to the next. Each is compared with plain requests of
its own: some things a proxy does only once it has run for a while.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks import proxies
from benchmarks.bench import NO_PROXY, Bench, Line
from benchmarks.figures import Figure, Target, middle
from benchmarks.load import Sent
from benchmarks.requests import chat
from benchmarks.rounds import Cost, in_turn

NAME = "failover, one request at a time"
_REFUSES = "sk-bench-trips-0"
#: Only the second account may serve this one.
_PLAIN = "gpt-5-mini"
_ADDED_MS = 1.0
#: CPU of a failover with many models on cooldown, to that with few.
_GROWTH = 1.15
#: Refusals compile the patterns that all later ones meet.
_REFUSED_FIRST = 20
#: Failovers per round, and rounds, while a proxy has few: up to 100 of the 128 that it remembers.
_FEW, _FEW_ROUNDS = 5, 16
#: After so long a proxy has done what its start leaves for later: prices of requests, seconds.
_SETTLED_S = 4.0


@dataclass(slots=True)
class _Taken:
    """Rounds of one kind of request on one line."""

    cost: Cost = field(default_factory=Cost)
    total_ms: list[float] = field(default_factory=list)

    def add(self, sent: Sent) -> None:
        self.cost.add(sent)
        self.total_ms += [reply.total_s * 1e3 for reply in sent.replies]


class _Load:
    """Sends the requests, and counts those that have to fail over.

    Attributes:
        failing: how many those were.
    """

    def __init__(self, port: int) -> None:
        self._port, self._texts, self.failing = port, itertools.count(), 0

    def plain(self, line: Line, count: int) -> Sent:
        return self._send(line, [_PLAIN] * count)

    def fail(self, line: Line, count: int) -> Sent:
        first, self.failing = self.failing, self.failing + count
        return self._send(line, [f"gpt-5-model-{n}" for n in range(first, self.failing)])

    def warm_up(self, line: Line) -> None:
        line.warm_up(chat(self._port, model=_PLAIN), times=50)
        if line.kind == proxies.POOL:
            self.fail(line, _REFUSED_FIRST)

    def _send(self, line: Line, models: list[str]) -> Sent:
        # A conversation each: none is bound to the account that served another.
        texts = ((model, f"question {next(self._texts)}") for model in models)
        sent = line.send([chat(self._port, model=model, text=text) for model, text in texts])
        if sent.not_ok:
            raise RuntimeError(f"{line.kind}: {sent.not_ok} answers were no 200")
        return sent


def measure(bench: Bench) -> list[Figure]:
    """Send plain requests, and through the pool as many that the first account refuses."""
    accounts = [
        proxies.account("first", _REFUSES, models=["gpt-5-model-*"]),
        proxies.account("second", "sk-bench-good", priority=1),
    ]
    kinds = [proxies.BARE, *bench.pools(accounts)]
    count = bench.effort.failovers
    plain, failing = {name: _Taken() for name in (NO_PROXY, *(k.name for k in kinds))}, _Taken()
    load, growth = _Load(bench.port), list[Figure]()
    bench.forget()
    with bench.running(*kinds) as running, bench.lines(1, None, *running) as lines:
        for line in lines:
            load.warm_up(line)
        for line in in_turn(lines, bench.effort.failover_rounds):
            plain[line.kind].add(load.plain(line, count))
            if line.kind == proxies.POOL:
                failing.add(load.fail(line, count))
        if failing.total_ms:
            growth = _growth(bench, load, lines[-1], kinds[-1])
    figures = [*_added(plain, failing), *growth, _refused(bench, load)] if growth else []
    return figures + [
        _figure(f"plain request, {name}", statistics.median(taken.total_ms))
        for name, taken in plain.items()
    ]


def _growth(bench: Bench, load: _Load, many: Line, kind: proxies.Kind) -> list[Figure]:
    """Compare *many*, on which many models are on cooldown, with proxies that have met few."""
    plain, failing = ({"many": Cost(), "few": Cost()} for _ in range(2))
    for _ in range(bench.effort.fresh_pools):
        with bench.running(kind) as fresh, bench.lines(1, *fresh) as (few,):
            load.warm_up(few)
            time.sleep(_SETTLED_S)
            for line in in_turn([few, many], _FEW_ROUNDS):
                name = "many" if line is many else "few"
                plain[name].add(load.plain(line, _FEW))
                failing[name].add(load.fail(line, _FEW))
    return [
        Figure(
            scenario=NAME,
            name=f"{what} added with many cooling models / with few",
            value=_ratio_added(plain, failing, unit),
            target=target,
        )
        for what, unit, target in (
            ("CPU", "cpu_ms", Target(_GROWTH)),
            ("instructions", "instructions_m", None),
        )
    ]


def _ratio_added(plain: Mapping[str, Cost], failing: Mapping[str, Cost], unit: str) -> float | None:
    """Return what many add to what few add, of the medians: a round alone may be mostly noise."""

    def usual(costs: Mapping[str, Cost], name: str) -> float:
        return statistics.median(value or 0.0 for value in getattr(costs[name], unit))

    many, few = (usual(failing, name) - usual(plain, name) for name in ("many", "few"))
    return many / few if few else None


def _added(plain: dict[str, _Taken], failing: _Taken) -> list[Figure]:
    own = plain[proxies.POOL]
    added = statistics.median(failing.total_ms) - statistics.median(own.total_ms)
    round_trip = statistics.median(plain[NO_PROXY].total_ms)
    pairs = zip(failing.cost.cpu_ms, own.cost.cpu_ms, strict=True)
    cpu_ms = [a - b for a, b in pairs if a is not None and b is not None]
    return [
        _figure("added beyond one round trip", added - round_trip, Target(_ADDED_MS)),
        _figure("added", added),
        middle("CPU added, median of rounds", NAME, cpu_ms, "ms"),
    ]


def _refused(bench: Bench, load: _Load) -> Figure:
    refused = bench.seen()["credentials"].get(_REFUSES, {}).get("refused", 0)
    return Figure(
        scenario=NAME,
        name="requests that failed over",
        value=float(refused),
        note=f"of {load.failing}",
        failed=refused != load.failing,
    )


def _figure(name: str, value: float, target: Target | None = None) -> Figure:
    return Figure(
        scenario=NAME, name=f"{name}, median", value=value, unit="ms", target=target, wall=True
    )
