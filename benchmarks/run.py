"""The command: run the scenarios, print the table, say whether the targets are met."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import machine
from benchmarks.bench import FULL, QUICK, Bench, bench
from benchmarks.figures import Figure, table
from benchmarks.proxies import CHECKOUT
from benchmarks.scenarios import (
    acquire,
    bodies,
    connections,
    failover,
    many_accounts,
    small_json,
    startup,
    streams,
    trip,
    workers,
)

SCENARIOS: dict[str, Callable[[Bench], list[Figure]]] = {
    "start": startup.measure,
    "json": small_json.measure,
    "streams": streams.measure,
    "bodies": bodies.measure,
    "connections": connections.measure,
    "failover": failover.measure,
    "trip": trip.measure,
    "workers": workers.measure,
    "accounts": many_accounts.measure,
    "acquire": acquire.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 1 when `--check` was given and a target is missed, else 0."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not (options.baseline or options.addon.exists()):
        parser.error(f"{options.addon} does not exist; --baseline measures without it")
    addon = None if options.baseline else options.addon.resolve()
    started = time.monotonic()
    with bench(addon, QUICK if options.quick else FULL) as running:
        figures = [f for name in options.only or SCENARIOS for f in _run(name, running)]
    print(f"{machine.describe()}; {time.monotonic() - started:.0f} s\n\n{table(figures)}")
    if any(figure.busy and figure.wall for figure in figures):
        print("\nOther work kept the machine busy: do not trust figures by the wall clock.")
    if options.json is not None:
        values = {
            "machine": machine.describe(),
            "figures": [figure.as_dict() for figure in figures],
        }
        options.json.write_text(json.dumps(values, indent=2) + "\n")
    verdicts = Counter(figure.verdict for figure in figures)
    missed = verdicts["MISSED"] + verdicts["FAILED"]
    unknown = verdicts["busy"] + verdicts["not measured"]
    print(f"\ntargets missed: {missed}; not known: {unknown}")
    return 1 if missed and options.check else 0


def _run(name: str, running: Bench) -> list[Figure]:
    print(f"{name} ...", file=sys.stderr, flush=True)
    others = machine.Others(running.pids)
    try:
        figures = SCENARIOS[name](running)
    except (RuntimeError, OSError) as error:
        # One scenario that cannot run spares the others.
        return [Figure(scenario=name, name="run", value=None, note=repr(error), failed=True)]
    cores = others.cores()
    if cores is not None and cores > machine.QUIET_CORES:
        print(f"  meanwhile, other work kept {cores:.1f} cores busy", file=sys.stderr)
        figures = [replace(figure, busy=True) for figure in figures]
    return figures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, help="run just these scenarios")
    parser.add_argument(
        "--baseline", action="store_true", help="only what the addon is compared with"
    )
    parser.add_argument(
        "--addon",
        type=Path,
        default=CHECKOUT / "addon" / "pool.py",
        metavar="FILE",
        help="the script to measure (default: addon/pool.py of this checkout)",
    )
    return parser
