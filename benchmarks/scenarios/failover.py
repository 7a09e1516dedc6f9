"""What a failover adds to a request, one at a time, on kept connections."""

from __future__ import annotations

import itertools
import statistics

from benchmarks import proxies
from benchmarks.bench import NO_PROXY, Bench, Line
from benchmarks.figures import Figure, Target
from benchmarks.requests import chat

NAME = "failover, one request at a time"
#: Refuses every other request, and asks to come back in a millisecond.
_FIRST = "sk-bench-alternates-1"
#: Models: only the second account may serve the one, both the other.
_PLAIN, _BOTH = "gpt-5-mini", "gpt-5"


def measure(bench: Bench) -> list[Figure]:
    """Send plain requests and such as fail over in turn, all on one connection.

    The preferred account refuses one request, recovers while a plain one is served,
    serves the next, which ends its streak of refusals, and so on.
    """
    first = proxies.account("first", _FIRST, models=[_BOTH])
    second = proxies.account("second", "sk-bench-good", priority=1)
    kinds = [proxies.BARE]
    if bench.addon is not None:
        kinds.append(proxies.pool(bench.addon, [first, second]))
    times: dict[str, list[float]] = {}
    numbers = itertools.count()
    bench.forget()
    with bench.running(*kinds) as running, bench.lines(1, None, *running) as lines:
        for line in lines:
            line.warm_up(chat(bench.port, model=_PLAIN), times=50)
        for _ in range(bench.effort.failover_rounds):
            for line in lines:
                _round(bench, line, times, numbers)
    return _figures(bench, times)


def _round(
    bench: Bench, line: Line, times: dict[str, list[float]], numbers: itertools.count[int]
) -> None:
    models = [_BOTH, _PLAIN] * 2 * bench.effort.failovers
    # A conversation each: none is bound to the account that served another.
    requests = [chat(bench.port, model=m, text=f"question {next(numbers)}") for m in models]
    sent = line.send(requests)
    if sent.not_ok:
        raise RuntimeError(f"{line.kind}: {sent.not_ok} answers were no 200")
    taken = [reply.total_s * 1e3 for reply in sent.replies]
    if line.kind in (NO_PROXY, proxies.BARE.name):
        times.setdefault(line.kind, []).extend(taken)
    else:
        times.setdefault("failover", []).extend(taken[::4])
        times.setdefault("plain", []).extend(taken[1::2])


def _figures(bench: Bench, times: dict[str, list[float]]) -> list[Figure]:
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    figures = []
    if "failover" in medians:
        added = medians["failover"] - medians["plain"]
        figures += [
            _figure("added beyond one round trip", added - medians[NO_PROXY], Target(1.0)),
            _figure(
                "added beyond one round trip through bare mitmdump",
                added - medians[proxies.BARE.name],
            ),
            _figure("plain request, account pool", medians["plain"]),
            _figure("failing over, account pool", medians["failover"]),
            _failed_over(bench, len(times["failover"])),
        ]
    return [
        *figures,
        _figure("round trip, no proxy", medians[NO_PROXY]),
        _figure("round trip, bare mitmdump", medians[proxies.BARE.name]),
    ]


def _failed_over(bench: Bench, expected: int) -> Figure:
    """Tell whether the times above are those of failovers: one refusal for each."""
    refused = bench.seen()["credentials"].get(_FIRST, {}).get("refused", 0)
    return Figure(
        scenario=NAME,
        name="requests that failed over",
        value=float(refused),
        note=f"of {expected}",
        failed=refused != expected,
    )


def _figure(name: str, value: float, target: Target | None = None) -> Figure:
    return Figure(scenario=NAME, name=f"{name}, median", value=value, unit="ms", target=target)
