"""`python -m benchmarks.hops`: count, print the table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.bench import QUICK, bench
from benchmarks.hops.scenarios import BOUNDS, TARGETS, measure
from benchmarks.hops.way import Way
from benchmarks.proxies import CHECKOUT


def main() -> int:
    """Count what was asked for."""
    parser = argparse.ArgumentParser("python -m benchmarks.hops", description=__doc__)
    parser.add_argument("--files", action="store_true", help="list the files of each scenario")
    parser.add_argument("--calls", action="store_true", help="list the calls of each scenario")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    with bench(CHECKOUT / "addon" / "pool.py", QUICK) as running:
        ways = measure(running)
    if options.json:
        print(json.dumps({name: figures(way) for name, way in ways.items()}, indent=1))
        return 0
    print(table(ways))
    for name, way in ways.items():
        if options.files:
            print(f"\n{name}: files by first call\n\n{files(way)}")
        if options.calls:
            print(f"\n{name}: calls\n\n{calls(way)}")
    return 0


def figures(way: Way) -> dict[str, Any]:
    """Return the figures of *way* as JSON values; its files by first call."""
    return {
        "files": way.files,
        "changes": way.changes,
        "calls": len(way.calls),
        "by_file": {file: asdict(visits) for file, visits in way.visits.items()},
    }


def table(ways: Mapping[str, Way]) -> str:
    """Return the figures as plain text; bounds and targets are of files and of changes."""
    lines = [f"{'':28}{'files':>7}{'changes':>9}{'calls':>7}{'bound':>12}{'target':>12}"]
    for name, way in ways.items():
        line = f"{name:28}{way.files:7}{way.changes:9}{len(way.calls):7}"
        for bounds in (BOUNDS, TARGETS):
            bound = bounds.get(name)
            line += f"{f'{bound.files}, {bound.changes}' if bound else '':>12}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def files(way: Way) -> str:
    """Return a line for each file, in the order in which they are entered first."""
    lines = [f"{'changes':>8}{'calls':>8}"]
    lines += [f"{v.changes:8}{v.calls:8}  {file}" for file, v in way.visits.items()]
    return "\n".join(lines)


def calls(way: Way) -> str:
    """Return a line for each call, indented by how deep it is."""
    return "\n".join(f"{'  ' * depth}{file} {function}" for depth, file, function in way.calls)


# The worker processes import this module again: they must not start a run.
if __name__ == "__main__":
    raise SystemExit(main())
