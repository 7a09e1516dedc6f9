"""`python -m benchmarks.chaos`: a campaign of faults, and its verdict."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.chaos import CHECKOUT

sys.path.insert(0, str(CHECKOUT / "addon"))

from benchmarks.chaos.faults import BY_NAME
from benchmarks.chaos.plan import rows_named
from benchmarks.chaos.run import Result, Settings, run, summary

#: Requests for each end of a proxy.
PER_KILL = 1000
#: Failures that are printed in full.
SHOWN = 40


def main() -> int:
    """Run what was asked for; 1 when something was not as it must be."""
    parser = argparse.ArgumentParser("python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--protocol", choices=("h1", "h2", "both"), default="both")
    parser.add_argument("--faults", nargs="*", default=[], help="beginnings of names; default: all")
    parser.add_argument("--kills", type=int, help=f"default: one for {PER_KILL} requests")
    parser.add_argument("--seconds", type=float, help="begin no request after so many")
    parser.add_argument("--ceiling", type=float, default=90.0, help="seconds until it hangs")
    parser.add_argument("--crowd", type=int, default=1, help="times the usual clients and accounts")
    parser.add_argument("--sabotage", default="", help="crossed, silent, stubborn, forgets")
    parser.add_argument("--folder", type=Path, help="keep logs and flows there; a new one")
    parser.add_argument("--list", action="store_true", help="list the faults, and end")
    parser.add_argument("--rows", action="store_true", help="print what became of each row")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    if options.list:
        for row in BY_NAME.values():
            print(f"{row.name:24} {'+'.join(row.over):6} {row.must.value}")
        return 0
    try:
        rows = rows_named(options.faults)
    except ValueError as error:
        parser.error(str(error))
    settings = Settings(
        seed=options.seed,
        requests=options.requests,
        protocols=("h1", "h2") if options.protocol == "both" else (options.protocol,),
        rows=rows,
        ceiling_s=options.ceiling,
        seconds=options.seconds,
        sabotage=options.sabotage,
        crowd=options.crowd,
    )
    kills = options.kills
    if kills is None:
        kills = 0 if options.faults else options.requests // PER_KILL
    with ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        result = asyncio.run(run(settings, kills, folder))
    show(result, as_json=options.json, rows=options.rows)
    return 1 if result.failures else 0


def show(result: Result, *, as_json: bool, rows: bool) -> None:
    figures = summary(result)
    if as_json:
        print(json.dumps({**figures, "what failed": result.failures}, indent=1))
        return
    for failure in result.failures[:SHOWN]:
        print(f"* {failure}\n")
    if len(result.failures) > SHOWN:
        print(f"* and {len(result.failures) - SHOWN} more\n")
    for name, value in figures.items():
        text = f"{value}"
        if isinstance(value, dict):
            text = ", ".join(f"{n}: {v}" for n, v in value.items()) or "none"
        print(f"{name:34} {text}")
    if rows:
        found = {(row, verdict.value): n for (row, verdict), n in result.verdicts.items()}
        for (name, became), n in sorted(found.items()):
            print(f"{name:24} {became:34} {n}")


if __name__ == "__main__":
    raise SystemExit(main())
