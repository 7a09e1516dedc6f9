"""Event streams: CPU per chunk, first bytes at 10 at once, and the bytes themselves."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks import proxies
from benchmarks.bench import NO_PROXY, Bench, Line
from benchmarks.figures import Figure, Target, middle
from benchmarks.load import Sent
from benchmarks.requests import Wish, chat
from benchmarks.rounds import Cost, compare, in_turn

NAME = "event streams"
_CPU, _FIRST_BYTE_MS = 0.50, 3.0


@dataclass(frozen=True, slots=True)
class _Shape:
    """Streams at once, chunks of each, and the pause between two of them."""

    streams: int
    chunks: int
    interval_ms: int

    def __str__(self) -> str:
        return f"chunk of {self.streams} streams x {self.chunks}"


#: The target is about the first. So many streams as in the other bring mitmproxy near its limit.
_SHAPES = (_Shape(20, 400, 10), _Shape(200, 50, 20))
_FEW = _Shape(10, 5, 20)


@dataclass(slots=True)
class _Streams:
    """The streams through one proxy: CPU per chunk by shape, first bytes, and what was altered."""

    costs: dict[_Shape, Cost] = field(default_factory=lambda: {s: Cost() for s in _SHAPES})
    first_byte_ms: list[float] = field(default_factory=list)
    count: int = 0
    altered: int = 0


def measure(bench: Bench) -> list[Figure]:
    """Compare with an addon of five lines: bare mitmdump does not stream at all."""
    kinds = [proxies.FIVE_LINES, *bench.pools()]
    streams = {name: _Streams() for name in [NO_PROXY, *(kind.name for kind in kinds)]}
    names = (f"stream-{n}" for n in itertools.count())
    with bench.running(*kinds) as running:
        with bench.lines(_FEW.streams, None, *running) as lines:
            for line in lines:
                line.warm_up(chat(bench.port), times=5)
            for line in in_turn(lines, bench.effort.wave_rounds):
                own = streams[line.kind]
                sent = _send(line, own, _FEW, names, bench.effort.waves)
                own.first_byte_ms += [reply.first_byte_s * 1e3 for reply in sent.replies]
        for shape in _SHAPES:
            with bench.lines(shape.streams, *running) as lines:
                for line in lines:
                    line.warm_up(chat(bench.port))
                for line in in_turn(lines, bench.effort.stream_rounds):
                    own = streams[line.kind]
                    sent = _send(line, own, shape, names)
                    own.costs[shape].add(sent, shape.streams * shape.chunks)
    return _figures(streams)


def _send(
    line: Line, streams: _Streams, shape: _Shape, names: Iterator[str], waves: int = 1
) -> Sent:
    bench = line.bench
    bench.forget()
    wishes = [
        Wish(name=next(names), chunks=shape.chunks, interval_ms=shape.interval_ms)
        for _ in range(shape.streams * waves)
    ]
    sent = line.send([chat(bench.port, wish, text=wish.name) for wish in wishes], lockstep=True)
    digests = bench.seen()["digests"]
    pairs = zip(sent.replies, wishes, strict=True)
    streams.count += len(wishes)
    streams.altered += sum(reply.digest != digests.get(wish.name) for reply, wish in pairs)
    return sent


def _figures(streams: dict[str, _Streams]) -> list[Figure]:
    base = proxies.FIVE_LINES.name
    figures = []
    for shape in _SHAPES:
        costs = {name: own.costs[shape] for name, own in streams.items() if name != NO_PROXY}
        targets = {proxies.POOL: Target(_CPU)} if shape is _SHAPES[0] else {}
        figures += compare(NAME, costs, base, targets, what=str(shape))
    if proxies.POOL in streams:
        ours, theirs = (streams[name].first_byte_ms for name in (proxies.POOL, base))
        figures.append(
            Figure(
                scenario=NAME,
                name=f"added time to first byte, {_FEW.streams} at once, median",
                value=statistics.median(ours) - statistics.median(theirs),
                unit="ms",
                target=Target(_FIRST_BYTE_MS),
                note=f"over the {base}",
                wall=True,
            )
        )
    for name, own in streams.items():
        altered = Figure(
            scenario=NAME,
            name=f"streams altered, {name}",
            value=float(own.altered),
            target=Target(0),
            note=f"of {own.count}",
        )
        figures += [
            altered,
            middle(f"time to first byte, {name}", NAME, own.first_byte_ms, "ms", wall=True),
        ]
    return figures
