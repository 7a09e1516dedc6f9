"""From the start of the process to the first 200, and the memory it holds then."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import proxies
from benchmarks.bench import Bench
from benchmarks.figures import Figure, Target, middle
from benchmarks.requests import chat

NAME = "start"


def measure(bench: Bench) -> list[Figure]:
    """Start each proxy several times in turn; the first start of each is not counted.

    It writes mitmproxy's authority and Python's bytecode, once per machine.
    """
    kinds = [proxies.BARE]
    if bench.addon is not None:
        accounts = [proxies.account(label, f"sk-bench-good-{label}") for label in "abc"]
        kinds.insert(0, proxies.pool(bench.addon, accounts))
    first_s: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    resident: dict[str, list[float | None]] = {kind.name: [] for kind in kinds}
    for number in range(bench.effort.starts + 1):
        for kind in kinds:
            answered_s, holds = _start_once(bench, kind)
            if number:
                first_s[kind.name].append(answered_s)
                resident[kind.name].append(holds)
    figures = []
    for kind in kinds:
        ours = kind is not proxies.BARE
        seconds = middle(f"first 200 after the start, {kind.name}", NAME, first_s[kind.name], "s")
        mib = middle(f"resident memory then, {kind.name}", NAME, resident[kind.name], "MiB")
        figures.append(replace(seconds, target=Target(0.8) if ours else None))
        figures.append(replace(mib, target=Target(90.0) if ours else None))
    return figures


def _start_once(bench: Bench, kind: proxies.Kind) -> tuple[float, float | None]:
    proxy = bench.start(kind)
    try:
        # mitmproxy writes its authority on its first start, before the port opens.
        proxy.wait_until_listening()
        status, seconds = proxy.first_answer(chat(bench.port), bench.port, bench.proxy_authority)
        if status != 200:
            raise RuntimeError(f"{kind.name}: the first answer was {status}")
        return seconds, proxy.resident_mib()
    finally:
        proxy.stop()
