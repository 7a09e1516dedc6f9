"""An account that reaches its limit in the middle of 400 requests, 16 at once."""

from __future__ import annotations

from benchmarks import proxies
from benchmarks.bench import Bench
from benchmarks.figures import Figure, Target
from benchmarks.requests import Wish, chat

NAME = "an account trips among 400 requests, 16 at once"
_REQUESTS, _CONCURRENCY, _TRIPS_AFTER = 400, 16, 100
_TRIPPING = f"sk-bench-trips-{_TRIPS_AFTER}"
#: long enough that many requests are in flight on the account when it trips
_DELAY_MS = 30
#: 429s that it may cost
_BURNT = 6


def measure(bench: Bench) -> list[Figure]:
    """Count the 429s it gave, and the requests that were open on it at once."""
    if bench.addon is None:
        return []
    return [figure for strategy in bench.effort.strategies for figure in _run(bench, strategy)]


def _run(bench: Bench, strategy: str) -> list[Figure]:
    assert bench.addon is not None
    accounts = [
        proxies.account("a", _TRIPPING),
        proxies.account("b", "sk-bench-good-b"),
        proxies.account("c", "sk-bench-good-c"),
    ]
    wish = Wish(delay_ms=_DELAY_MS)
    requests = [chat(bench.port, wish, text=f"question {n}") for n in range(_REQUESTS)]
    kind = proxies.pool(bench.addon, accounts, pool_strategy=strategy)
    with bench.running(kind) as running, bench.lines(_CONCURRENCY, *running) as (line,):
        bench.forget()
        sent = line.send(requests)
    seen = bench.seen()["credentials"][_TRIPPING]
    if not seen["refused"]:
        raise RuntimeError(f"{strategy}: the account never tripped: {seen}")
    return [
        Figure(
            scenario=NAME,
            name=f"429s burnt, {strategy}",
            value=float(seen["refused"]),
            target=Target(_BURNT),
            note=f"at most {seen['peak']} were in flight on it, {seen['at_trip']} when it tripped",
        ),
        Figure(
            scenario=NAME,
            name=f"answers other than 200, {strategy}",
            value=float(sent.not_ok),
            target=Target(0),
        ),
    ]
