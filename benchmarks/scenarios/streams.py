"""Event streams: CPU per chunk at 200 at once, first bytes at 10, and the bytes themselves."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks import proxies
from benchmarks.bench import NO_PROXY, Bench, Line
from benchmarks.figures import Figure, Target, middle, ratio
from benchmarks.load import Sent
from benchmarks.requests import Wish, chat

NAME = "event streams"
_CHUNKS, _INTERVAL_MS = 50, 20
_MANY, _SOME, _FEW = 200, 50, 10


@dataclass(slots=True)
class _Tally:
    """What one proxy did: CPU per chunk (microseconds), first bytes (ms), and its streams."""

    many: list[float | None] = field(default_factory=list)
    some: list[float | None] = field(default_factory=list)
    instructions: list[float | None] = field(default_factory=list)
    first_byte_ms: list[float] = field(default_factory=list)
    streams: int = 0
    altered: int = 0

    def check(self, sent: Sent, names: list[str], digests: dict[str, str]) -> None:
        """Compare every stream with what the provider sent under its name."""
        self.streams += len(names)
        pairs = zip(sent.replies, names, strict=True)
        self.altered += sum(reply.digest != digests.get(name) for reply, name in pairs)


def measure(bench: Bench) -> list[Figure]:
    """Compare with an addon of five lines: bare mitmdump does not stream at all."""
    kinds = [proxies.FIVE_LINES]
    if bench.addon is not None:
        accounts = [proxies.account(label, f"sk-bench-good-{label}") for label in "abc"]
        kinds.append(proxies.pool(bench.addon, accounts))
    tallies = {name: _Tally() for name in [NO_PROXY, *(kind.name for kind in kinds)]}
    counter = itertools.count()
    with bench.running(*kinds) as running:
        paths: list[Any] = [None, *running]
        _first_bytes(bench, paths, tallies, counter)
        with bench.lines(_MANY, *running) as lines:
            for line in lines:
                line.warm_up(chat(bench.port))
            for number in range(bench.effort.stream_rounds):
                _round(bench, lines[:: -1 if number % 2 else 1], tallies, counter, _MANY)
        with bench.lines(_SOME, *running) as lines:
            for line in lines:
                line.warm_up(chat(bench.port))
            for number in range(bench.effort.stream_rounds):
                _round(bench, lines[:: -1 if number % 2 else 1], tallies, counter, _SOME)
    return _figures(kinds, tallies)


def _round(
    bench: Bench,
    lines: list[Line],
    tallies: dict[str, _Tally],
    counter: itertools.count[int],
    count: int,
) -> None:
    for line in lines:
        tally = tallies[line.kind]
        names = [f"stream-{next(counter)}" for _ in range(count)]
        sent = _stream(bench, line, tally, names, _CHUNKS)
        chunks = count * _CHUNKS
        per_chunk = sent.cpu_s and sent.cpu_s / chunks * 1e6
        (tally.many if count == _MANY else tally.some).append(per_chunk)
        if count == _SOME:
            # The more a proxy lags, the more chunks it finds in one read: comparable
            # only where none lags.
            tally.instructions.append(sent.instructions and sent.instructions / chunks)


def _first_bytes(
    bench: Bench,
    paths: list[proxies.Proxy | None],
    tallies: dict[str, _Tally],
    counter: itertools.count[int],
) -> None:
    with bench.lines(_FEW, *paths) as lines:
        for line in lines:
            line.warm_up(chat(bench.port), times=5)
        for number in range(bench.effort.wave_rounds):
            for line in lines[:: -1 if number % 2 else 1]:
                names = [f"stream-{next(counter)}" for _ in range(_FEW * bench.effort.waves)]
                tally = tallies[line.kind]
                sent = _stream(bench, line, tally, names, chunks=5)
                tally.first_byte_ms += [reply.first_byte_s * 1e3 for reply in sent.replies]


def _stream(bench: Bench, line: Line, tally: _Tally, names: list[str], chunks: int) -> Sent:
    bench.forget()
    wishes = [Wish(name=name, chunks=chunks, interval_ms=_INTERVAL_MS) for name in names]
    requests = [chat(bench.port, wish, text=wish.name) for wish in wishes]
    sent = line.send(requests, lockstep=True)
    tally.check(sent, names, bench.seen()["digests"])
    return sent


def _figures(kinds: list[proxies.Kind], tallies: dict[str, _Tally]) -> list[Figure]:
    five = tallies[proxies.FIVE_LINES.name]
    shape = f"{_CHUNKS} chunks x {_INTERVAL_MS} ms"
    figures = []
    for kind in kinds[1:]:
        ours = tallies[kind.name]
        against = f"{kind.name} / {proxies.FIVE_LINES.name}"
        figures += [
            ratio(
                f"CPU per chunk, {_MANY} x {shape}, {against}",
                NAME,
                ours.many,
                five.many,
                Target(1.05),
            ),
            ratio(f"CPU per chunk, {_SOME} x {shape}, {against}", NAME, ours.some, five.some, None),
            ratio(
                f"instructions per chunk, {_SOME} x {shape}, {against}",
                NAME,
                ours.instructions,
                five.instructions,
                None,
            ),
            Figure(
                scenario=NAME,
                name=f"added time to first byte, {_FEW} at once, median",
                value=statistics.median(ours.first_byte_ms) - statistics.median(five.first_byte_ms),
                unit="ms",
                target=Target(3.0),
                note=f"over the {proxies.FIVE_LINES.name}",
            ),
        ]
    for name, tally in tallies.items():
        note = f"{name}, of {tally.streams} streams"
        altered = float(tally.altered)
        figures.append(
            Figure(
                scenario=NAME, name="streams altered", value=altered, target=Target(0), note=note
            )
        )
    figures += _informations(tallies)
    return figures


def _informations(tallies: dict[str, _Tally]) -> list[Figure]:
    figures = []
    for name, tally in tallies.items():
        if name != NO_PROXY:
            figures.append(
                middle(f"CPU per chunk, {_MANY} streams, {name}", NAME, tally.many, "us")
            )
            figures.append(
                middle(f"CPU per chunk, {_SOME} streams, {name}", NAME, tally.some, "us")
            )
        figures.append(middle(f"time to first byte, {name}", NAME, tally.first_byte_ms, "ms"))
    return figures
