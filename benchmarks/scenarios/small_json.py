"""Small JSON answers over kept-alive connections at concurrency 16."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks import proxies
from benchmarks.bench import Bench
from benchmarks.figures import Figure, Target, middle, ratio
from benchmarks.load import Sent
from benchmarks.requests import chat

NAME = "small JSON, keep-alive, 16 at once"
_CONCURRENCY = 16


@dataclass(slots=True)
class _Rounds:
    """What one proxy did in each round, per request."""

    cpu_ms: list[float | None] = field(default_factory=list)
    instructions: list[float | None] = field(default_factory=list)
    rate: list[float | None] = field(default_factory=list)
    wrong: int = 0

    def add(self, sent: Sent) -> None:
        count = len(sent.replies)
        self.cpu_ms.append(sent.cpu_s and sent.cpu_s / count * 1e3)
        self.instructions.append(sent.instructions and sent.instructions / count / 1e6)
        self.rate.append(count / sent.wall_s)
        self.wrong += sent.not_ok


def measure(bench: Bench) -> list[Figure]:
    """Compare CPU per request and requests per second with bare mitmdump."""
    kinds = [proxies.BARE, proxies.FIVE_LINES]
    if bench.addon is not None:
        accounts = [proxies.account(label, f"sk-bench-good-{label}") for label in "abc"]
        kinds.append(proxies.pool(bench.addon, accounts))
    rounds = {kind.name: _Rounds() for kind in kinds}
    requests = [chat(bench.port)] * bench.effort.json_requests
    with bench.running(*kinds) as running, bench.lines(_CONCURRENCY, *running) as lines:
        for line in lines:
            line.warm_up(chat(bench.port), times=10)
        for number in range(bench.effort.json_rounds):
            # Every other round backwards: whatever drifts, drifts for all alike.
            for line in lines[:: -1 if number % 2 else 1]:
                rounds[line.kind].add(line.send(requests))
    return [*_verdicts(rounds), *_informations(rounds)]


def _verdicts(rounds: dict[str, _Rounds]) -> list[Figure]:
    bare = rounds[proxies.BARE.name]
    figures = []
    for name, own in rounds.items():
        if own is bare:
            continue
        ours = name != proxies.FIVE_LINES.name
        most, least = (Target(1.05), Target(0.95, at_least=True)) if ours else (None, None)
        against = f"{name} / bare"
        figures += [
            ratio(f"CPU per request, {against}", NAME, own.cpu_ms, bare.cpu_ms, most),
            ratio(f"requests per second, {against}", NAME, own.rate, bare.rate, least),
            ratio(
                f"instructions per request, {against}",
                NAME,
                own.instructions,
                bare.instructions,
                None,
            ),
        ]
    wrong = float(sum(own.wrong for own in rounds.values()))
    figures.append(
        Figure(scenario=NAME, name="answers other than 200", value=wrong, target=Target(0))
    )
    return figures


def _informations(rounds: dict[str, _Rounds]) -> list[Figure]:
    return [
        figure
        for name, own in rounds.items()
        for figure in (
            middle(f"CPU per request, {name}", NAME, own.cpu_ms, "ms"),
            middle(f"requests per second, {name}", NAME, own.rate, "/s"),
        )
    ]
