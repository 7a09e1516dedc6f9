"""An account that reaches its limit in the middle of 400 requests, 16 at once."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import proxies
from benchmarks.bench import Bench
from benchmarks.figures import Figure, Target
from benchmarks.requests import Wish, chat

NAME = "an account trips among 400 requests, 16 at once"
_REQUESTS, _CONCURRENCY, _TRIPS_AFTER = 400, 16, 100
#: Its responses say nothing of what is coming, or how many requests are left.
_TRIPPING, _COUNTING = f"sk-bench-trips-{_TRIPS_AFTER}", f"sk-bench-counts-{_TRIPS_AFTER}"
#: long enough that many requests are in flight on the account when it trips
_DELAY_MS = 30
#: 429s that it may cost
_BURNT = 6


def measure(bench: Bench) -> list[Figure]:
    """Count the 429s it gave, and the requests that were open on it at once."""
    return [
        figure
        for strategy in bench.effort.strategies
        for tripping in (_TRIPPING, _COUNTING)
        for figure in count(bench, NAME, _BURNT, strategy=strategy, tripping=tripping)
    ]


def count(
    bench: Bench,
    scenario: str,
    most: int,
    *,
    strategy: str = "round-robin",
    workers: int = 1,
    tripping: str = _TRIPPING,
) -> list[Figure]:
    """Let the account *tripping* trip; *most* is the target for its 429s."""
    accounts = [
        proxies.account("a", tripping),
        proxies.account("b", "sk-bench-good-b"),
        proxies.account("c", "sk-bench-good-c"),
    ]
    wish = Wish(delay_ms=_DELAY_MS)
    requests = [chat(bench.port, wish, text=f"question {n}") for n in range(_REQUESTS)]
    kinds = [replace(k, workers=workers) for k in bench.pools(accounts, pool_strategy=strategy)]
    if not kinds:
        return []
    with bench.running(*kinds) as running, bench.lines(_CONCURRENCY, *running) as (line,):
        bench.forget()
        sent = line.send(requests)
    seen = bench.seen()["credentials"][tripping]
    told = ", which says what is left" if tripping == _COUNTING else ""
    if not seen["refused"] and not told:
        raise RuntimeError(f"{strategy}: the account never tripped: {seen}")
    return [
        Figure(
            scenario=scenario,
            name=f"429s burnt, {strategy}{told}",
            value=float(seen["refused"]),
            target=Target(most),
            note=f"at most {seen['peak']} were in flight on it, {seen['at_trip']} when it tripped",
        ),
        Figure(
            scenario=scenario,
            name=f"answers other than 200, {strategy}{told}",
            value=float(sent.not_ok),
            target=Target(0),
        ),
    ]
