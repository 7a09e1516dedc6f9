"""The command: run the scenarios, print the table, say whether the targets are met."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.bench import FULL, QUICK, Bench, bench
from benchmarks.figures import Figure, table
from benchmarks.proxies import CHECKOUT
from benchmarks.scenarios import acquire, failover, small_json, startup, streams, trip

SCENARIOS: dict[str, Callable[[Bench], list[Figure]]] = {
    "start": startup.measure,
    "json": small_json.measure,
    "streams": streams.measure,
    "failover": failover.measure,
    "trip": trip.measure,
    "acquire": acquire.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 1 when `--check` was given and a target is missed, else 0."""
    options = _parser().parse_args(arguments)
    addon: Path | None = options.addon.resolve()
    if options.baseline or not options.addon.exists():
        print("Without the addon: only what it is compared with.\n")
        addon = None
    figures: list[Figure] = []
    started = time.monotonic()
    with bench(addon, QUICK if options.quick else FULL) as running:
        for name in options.only or SCENARIOS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                figures += SCENARIOS[name](running)
            except RuntimeError as error:  # one scenario that cannot run spares the others
                note = str(error)
                figures.append(
                    Figure(scenario=name, name="run", value=None, note=note, failed=True)
                )
    print(f"{_machine()}; {time.monotonic() - started:.0f} s\n")
    print(table(figures))
    if options.json is not None:
        values = {"machine": _machine(), "figures": [figure.as_dict() for figure in figures]}
        options.json.write_text(json.dumps(values, indent=2) + "\n")
    missed = [figure for figure in figures if figure.verdict in ("MISSED", "FAILED")]
    if missed:
        print(f"\n{len(missed)} missed.")
    return 1 if missed and options.check else 0


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


def _machine() -> str:
    return (
        f"Python {platform.python_version()}, mitmproxy {metadata.version('mitmproxy')}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )
