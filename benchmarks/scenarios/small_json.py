"""Small JSON answers over kept-alive connections at concurrency 16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import proxies
from benchmarks.bench import Bench, Line
from benchmarks.figures import Figure, Target, middle, ratio
from benchmarks.requests import chat

NAME = "small JSON, keep-alive, 16 at once"
_CONCURRENCY = 16


def measure(bench: Bench) -> list[Figure]:
    """Compare CPU per request and requests per second with bare mitmdump."""
    kinds = [proxies.BARE, proxies.FIVE_LINES]
    if bench.addon is not None:
        accounts = [proxies.account(label, f"sk-bench-good-{label}") for label in "abc"]
        kinds.append(proxies.pool(bench.addon, accounts))
    cpu: dict[str, list[float | None]] = {kind.name: [] for kind in kinds}
    rate: dict[str, list[float | None]] = {kind.name: [] for kind in kinds}
    wrong = 0
    with _warm_lines(bench, kinds) as lines:
        requests = [chat(bench.port)] * bench.effort.json_requests
        for number in range(bench.effort.json_rounds):
            # Every other round backwards: whatever drifts, drifts for all alike.
            for kind, line in list(zip(kinds, lines, strict=True))[:: -1 if number % 2 else 1]:
                sent = line.send(requests)
                wrong += sent.not_ok
                cpu[kind.name].append(sent.cpu_s and sent.cpu_s / len(requests) * 1e3)
                rate[kind.name].append(len(requests) / sent.wall_s)
    return [*_verdicts(kinds, cpu, rate, wrong), *_informations(kinds, cpu, rate)]


@contextmanager
def _warm_lines(bench: Bench, kinds: list[proxies.Kind]) -> Iterator[list[Line]]:
    with bench.running(*kinds) as running, bench.lines(_CONCURRENCY, *running) as lines:
        for line in lines:
            line.warm_up(chat(bench.port), times=10)
        yield lines


def _verdicts(
    kinds: list[proxies.Kind],
    cpu: dict[str, list[float | None]],
    rate: dict[str, list[float | None]],
    wrong: int,
) -> list[Figure]:
    bare, *others = (kind.name for kind in kinds)
    figures = []
    for name in others:
        ours = name != proxies.FIVE_LINES.name
        most, least = (Target(1.05), Target(0.95, at_least=True)) if ours else (None, None)
        figures.append(ratio(f"CPU per request, {name} / bare", NAME, cpu[name], cpu[bare], most))
        figures.append(
            ratio(f"requests per second, {name} / bare", NAME, rate[name], rate[bare], least)
        )
    wrong_figure = Figure(
        scenario=NAME, name="answers other than 200", value=float(wrong), target=Target(0)
    )
    return [*figures, wrong_figure]


def _informations(
    kinds: list[proxies.Kind],
    cpu: dict[str, list[float | None]],
    rate: dict[str, list[float | None]],
) -> list[Figure]:
    figures = [
        middle(f"CPU per request, {kind.name}", NAME, cpu[kind.name], "ms") for kind in kinds
    ]
    figures += [middle(f"requests, {kind.name}", NAME, rate[kind.name], "/s") for kind in kinds]
    return figures
