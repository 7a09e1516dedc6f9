"""An accounts.yaml of ten thousand accounts: the start with it, and an edit of it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from benchmarks import proxies
from benchmarks.bench import Bench
from benchmarks.figures import Figure, Target
from benchmarks.requests import chat
from benchmarks.scenarios import startup

NAME = "10,000 accounts"
_ACCOUNTS = 10_000
_BLOCKED_MS = 50.0
#: longest time until an edit serves; a start takes less
_EDIT_TIMEOUT_S = 60.0
_NEW = "sk-bench-new"


def measure(bench: Bench) -> list[Figure]:
    """Start with such a file, and add an account to it while the proxy runs."""
    accounts = [proxies.account(f"a-{n:05}", f"sk-bench-good-{n}") for n in range(_ACCOUNTS)]
    figures = []
    for kind in bench.pools(accounts, pool_strategy="fill-first"):
        figures += startup.compare(bench, [proxies.BARE, kind], NAME, startup.MANY_S)
        figures += _edit(bench, kind)
    return figures


def _edit(bench: Bench, kind: proxies.Kind) -> list[Figure]:
    """Add an account that is preferred to all others, and ask until it serves."""
    new = proxies.account("new", _NEW, priority=-1)
    kind = replace(kind, observer=Path(__file__).parent.parent / "lag.py")
    with bench.running(kind) as (proxy,), bench.line(1, proxy) as line:
        line.warm_up(chat(bench.port), times=20)
        bench.forget()
        edited_at = time.monotonic()
        proxy.write_accounts([*(kind.accounts or ()), new], bench.port)
        while _NEW not in bench.seen()["credentials"]:
            if time.monotonic() > edited_at + _EDIT_TIMEOUT_S:
                raise RuntimeError("an edit of accounts.yaml was not taken over")
            # A conversation each: those that live on another account stay there.
            line.send([chat(bench.port, text=f"question {time.monotonic()}")])
            time.sleep(0.02)
        served_s = time.monotonic() - edited_at
        # What follows the first request on the new account belongs to the edit as well.
        time.sleep(0.5)
        pauses = proxy.pauses(edited_at)
    wall_ms, cpu_ms = (max((p[n] for p in pauses), default=0.0) * 1e3 for n in (0, 1))
    return [
        Figure(
            scenario=NAME,
            name="longest pause of the loop during an edit",
            value=max((min(p) for p in pauses), default=0.0) * 1e3,
            unit="ms",
            target=Target(_BLOCKED_MS),
            note=f"by the wall clock {wall_ms:.0f} ms, by CPU time {cpu_ms:.0f} ms",
        ),
        Figure(scenario=NAME, name="until an edit serves", value=served_s, unit="s", wall=True),
    ]
