"""`python -m tests.store.kills`: kill as many as asked for, and print the figures."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.store.kills import __doc__ as description
from tests.store.kills.campaign import DURABLE, IN_GAP, OURS, Campaign
from tests.store.servers import Server


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.store.kills", description=description)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--engine", choices=("redis", "valkey"), default="valkey")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = Server(options.engine, Path(folder) / "engine", DURABLE).start()
        try:
            result = Campaign(engine, Path(folder), options.seed).run(options.kills)
        finally:
            engine.kill()
    lost = f"logins lost: {result.lost[OURS]}; in the provider's gap: {result.lost[IN_GAP]}"
    said = [
        f"{result.rounds.total()} rounds, killed: {dict(result.kills)}",
        lost,
        f"a spent token sent, after a stop past a claim: {dict(result.resent)}",
    ]
    sys.stdout.write("\n".join([*said, *result.failures, ""]))
    return 1 if result.failures or result.lost[OURS] else 0


if __name__ == "__main__":
    sys.exit(main())
