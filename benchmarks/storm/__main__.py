"""`python -m benchmarks.storm`: run the fleet each way, print the table.

With `--proxies 4` the pool is spread over so many proxies, and `--told-after` says how soon
each knows what another has learnt (docs/storms.md). With `--real` the proxies are processes
on an engine, and time is real (`real`).
"""

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

from benchmarks.storm.proxies import Proxies
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


def spread(strategy: str, count: int, told_after_s: float | None, *, permits: bool = True) -> Make:
    """Return the way of *count* proxies (`Proxies`)."""
    return lambda clock, chance, members: Proxies(
        clock, chance, members, strategy, count=count, told_after_s=told_after_s, permits=permits
    )


def told_after(text: str) -> float | None:
    """Read `--told-after`. Raises ValueError."""
    if text == "never":
        return None
    if not (seconds := float(text)) > 0:
        raise ValueError
    return seconds


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
        f"{100 * refusals / tally.served:.2f}",
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
    parser.add_argument("--agents", type=int, help="200; with --real 64")
    parser.add_argument("--minutes", type=float, default=30.0, help="of simulated time")
    parser.add_argument("--proxies", type=int, default=1, help="that share the fleet of agents")
    parser.add_argument(
        "--told-after",
        type=told_after,
        default=0.02,
        metavar="SECONDS",
        help="until a proxy knows what another has learnt, at the mean, or never",
    )
    parser.add_argument(
        "--permits",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the proxies return to accounts together, not each on its own",
    )
    real = parser.add_argument_group("with real proxies")
    real.add_argument("--real", action="store_true", help="beside one proxy, --proxies of them")
    real.add_argument("--engine", choices=("redis", "valkey"), default="redis")
    real.add_argument("--strategy", choices=("round-robin", "fill-first"), help="default: both")
    real.add_argument("--seconds", type=float, default=600.0, help="that a run takes")
    real.add_argument("--pace", type=float, default=1.0, help="times as fast as agents really are")
    real.add_argument("--apart", action="store_true", help="also as many that share nothing")
    real.add_argument("--runs", type=int, default=3, help="of one proxy and of several, at once")
    options = parser.parse_args()
    if options.real:
        from benchmarks.storm.real import main as run_real

        run_real(options)
        return
    ways = WAYS
    if options.proxies > 1:
        ways = {
            f"{options.proxies} proxies, {strategy}": spread(
                strategy, options.proxies, options.told_after, permits=options.permits
            )
            for strategy in ("round-robin", "fill-first")
        }
    print(
        "| way | served | refusals per 100 served | refusals clients saw "
        "| moves per conversation | s lost per request | s lost, 99 % within |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, make in ways.items():
        tally, refusals = run(make, options.seed, options.agents or 200, options.minutes * 60)
        print(row(name, tally, refusals), flush=True)


if __name__ == "__main__":
    main()
