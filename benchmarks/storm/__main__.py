"""`python -m benchmarks.storm`: run the fleet each way, print the table."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from random import Random
from typing import Protocol

from benchmarks.proxies import CHECKOUT
from benchmarks.storm.clock import Clock
from benchmarks.storm.fleet import Agent, Ask, ScriptedAccount, Tally, accounts

sys.path.insert(0, str(CHECKOUT / "addon"))

from benchmarks.storm.ways import Naive, Pooled


class Way(Protocol):
    """Spreads requests over accounts."""

    ask: Ask


Make = Callable[[Clock, Random, list[ScriptedAccount]], Way]

WAYS: dict[str, Make] = {
    "round-robin, no memory": lambda clock, chance, members: Naive(
        clock, chance, members, lambda asked: asked
    ),
    "random": lambda clock, chance, members: Naive(
        clock, chance, members, lambda _: chance.randrange(len(members))
    ),
    "next account on every 429": lambda clock, chance, members: Naive(clock, chance, members, None),
    "this pool, round-robin": lambda clock, chance, members: Pooled(
        clock, chance, members, "round-robin"
    ),
    "this pool, fill-first": lambda clock, chance, members: Pooled(
        clock, chance, members, "fill-first"
    ),
}


def run(make: Make, seed: int, agents: int, seconds: float) -> tuple[Tally, int]:
    """Let the fleet work; return what came of it, and how often accounts refused."""
    clock, chance, tally = Clock(), Random(seed), Tally()
    members = accounts(agents / 200)
    way = make(clock, Random(seed + 1), members)
    for _ in range(agents):
        Agent(clock, chance, tally, way.ask)
    clock.run(seconds)
    return tally, sum(member.refusals for member in members)


def row(name: str, tally: Tally, refusals: int) -> str:
    """Return one line of the table."""
    lost = sorted(tally.lost_s)
    cells = [
        name,
        f"{tally.served:,}",
        f"{100 * refusals / tally.served:.1f}",
        f"{tally.told}",
        f"{tally.moves / tally.conversations:.2f}",
        f"{statistics.fmean(lost):.2f}",
        f"{lost[len(lost) * 99 // 100]:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser("python -m benchmarks.storm", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30.0, help="of simulated time")
    options = parser.parse_args()
    print(
        "| way | served | refusals per 100 served | refusals clients saw "
        "| moves per conversation | s lost per request | s lost, 99 % within |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, make in WAYS.items():
        tally, refusals = run(make, options.seed, options.agents, options.minutes * 60)
        print(row(name, tally, refusals), flush=True)


if __name__ == "__main__":
    main()
