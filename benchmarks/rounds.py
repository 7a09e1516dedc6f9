"""What proxies cost in rounds that they take in turn, and how that compares with one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.bench import Line
from benchmarks.figures import Figure, Target, middle, ratio
from benchmarks.load import Sent


@dataclass(slots=True)
class Cost:
    """What each round of one proxy took, per request (or whatever was counted)."""

    cpu_ms: list[float | None] = field(default_factory=list)
    instructions_m: list[float | None] = field(default_factory=list)
    rate: list[float | None] = field(default_factory=list)
    not_ok: int = 0

    def add(self, sent: Sent, count: int | None = None) -> None:
        """Take in a round of *count* things; None for the number of its requests."""
        count = count or len(sent.replies)
        self.cpu_ms.append(sent.cpu_s and sent.cpu_s / count * 1e3)
        self.instructions_m.append(sent.instructions and sent.instructions / count / 1e6)
        self.rate.append(count / sent.wall_s)
        self.not_ok += sent.not_ok


def in_turn(lines: Sequence[Line], rounds: int) -> Iterator[Line]:
    """Yield each line once a round, every other round backwards: what drifts, drifts for all."""
    for number in range(rounds):
        yield from lines[:: -1 if number % 2 else 1]


def measure(lines: Sequence[Line], rounds: int, send: Callable[[Line], Sent]) -> dict[str, Cost]:
    """Return the cost of each line, by its kind."""
    costs = {line.kind: Cost() for line in lines}
    for line in in_turn(lines, rounds):
        costs[line.kind].add(send(line))
    return costs


def compare(
    scenario: str,
    costs: Mapping[str, Cost],
    base: str,
    targets: Mapping[str, Target],
    *,
    what: str = "request",
) -> list[Figure]:
    """Return the ratios of CPU time and instructions to those of *base*, and what they were.

    Args:
        targets: for the CPU time, by kind.
        what: was counted.
    """
    figures = []
    for kind, cost in costs.items():
        if kind == base:
            continue
        against = f"{what}, {kind} / {base}"
        theirs = costs[base]
        target = targets.get(kind)
        figures += [
            ratio(f"CPU per {against}", scenario, cost.cpu_ms, theirs.cpu_ms, target),
            ratio(
                f"instructions per {against}",
                scenario,
                cost.instructions_m,
                theirs.instructions_m,
                None,
            ),
        ]
    figures += [
        middle(f"CPU per {what}, {kind}", scenario, cost.cpu_ms, "ms")
        for kind, cost in costs.items()
    ]
    wrong = float(sum(cost.not_ok for cost in costs.values()))
    zero = Target(0)
    return [*figures, Figure(scenario=scenario, name="not 200", value=wrong, target=zero)]
