"""From the start of the process to the first 200, and the memory it holds then and later."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks import proxies
from benchmarks.bench import Bench
from benchmarks.cpu import cpu_seconds
from benchmarks.figures import Figure, Target, middle
from benchmarks.requests import chat

NAME = "start"
#: beyond bare mitmdump: with three accounts, and with ten thousand
FEW_S, MANY_S = 0.15, 1.0
_RESIDENT_MIB, _GROWTH_MIB = 90.0, 2.0
_CONCURRENCY = 16
#: requests of one conversation
_TURNS = 50


@dataclass(slots=True)
class _Starts:
    """What the starts of one proxy took until the first 200, and the memory then."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float | None] = field(default_factory=list)
    mib: list[float | None] = field(default_factory=list)


def measure(bench: Bench) -> list[Figure]:
    """Start each proxy several times in turn; the first start of each is not counted.

    It writes mitmproxy's authority and Python's bytecode, once per machine.
    """
    figures = compare(bench, [proxies.BARE, *bench.pools()], NAME, FEW_S)
    return figures + _growth(bench)


def compare(bench: Bench, kinds: list[proxies.Kind], scenario: str, most_s: float) -> list[Figure]:
    """Return what the first 200 of each of *kinds* takes, the first of which is the measure."""
    starts = {kind.name: _Starts() for kind in kinds}
    for number in range(bench.effort.starts + 1):
        for kind in kinds:
            _start_once(bench, kind, starts[kind.name] if number else _Starts())
    base = starts[kinds[0].name]
    figures = []
    for name, own in starts.items():
        if own is not base:
            wall = zip(own.wall_s, base.wall_s, strict=True)
            cpu = zip(own.cpu_s, base.cpu_s, strict=True)
            beyond = f"{name}, beyond {kinds[0].name}"
            most = Target(most_s)
            figures += [
                middle(
                    f"first 200, {beyond}",
                    scenario,
                    [a - b for a, b in wall],
                    "s",
                    target=most,
                    wall=True,
                ),
                middle(
                    f"CPU until then, {beyond}",
                    scenario,
                    [a and b and a - b for a, b in cpu],
                    "s",
                    target=most,
                ),
            ]
    for name, own in starts.items():
        limit = Target(_RESIDENT_MIB) if name == proxies.POOL and scenario == NAME else None
        figures += [
            middle(f"first 200, {name}", scenario, own.wall_s, "s", wall=True),
            middle(f"CPU until then, {name}", scenario, own.cpu_s, "s"),
            middle(f"resident memory then, {name}", scenario, own.mib, "MiB", target=limit),
        ]
    return figures


def _start_once(bench: Bench, kind: proxies.Kind, starts: _Starts) -> None:
    proxy = bench.start(kind)
    try:
        # mitmproxy writes its authority on its first start, before the port opens.
        proxy.wait_until_listening()
        status, seconds = proxy.first_answer(chat(bench.port), bench.port, bench.proxy_authority)
        if status != 200:
            raise RuntimeError(f"{kind.name}: the first answer was {status}")
        starts.wall_s.append(seconds)
        starts.cpu_s.append(cpu_seconds(proxy.pid))
        starts.mib.append(proxy.resident_mib())
    finally:
        proxy.stop()


def _growth(bench: Bench) -> list[Figure]:
    """Return how memory grows with requests, once the first tenth has filled the caches.

    That of bare mitmdump is for information: it grows by gaps between what is in use, by chance.
    """
    count, figures = bench.effort.lasting_requests, list[Figure]()
    for kind in (proxies.BARE, *bench.pools()):
        first, last = _resident(bench, kind)
        after = f"resident memory after {count:,} requests, {kind.name}"
        figures += [
            Figure(scenario=NAME, name=after, value=last, unit="MiB"),
            Figure(
                scenario=NAME,
                name=f"growth of it since the first tenth, {kind.name}",
                value=None if first is None or last is None else last - first,
                unit="MiB",
                target=Target(_GROWTH_MIB) if kind.name == proxies.POOL else None,
            ),
        ]
    return figures


def _resident(bench: Bench, kind: proxies.Kind) -> tuple[float | None, float | None]:
    """Return what a proxy holds after the first tenth of many requests, and after all, MiB."""
    count = bench.effort.lasting_requests
    held: list[float | None] = []
    with bench.running(kind) as (proxy,), bench.line(_CONCURRENCY, proxy) as line:
        for tenth in range(10):
            numbers = range(tenth * count // 10, (tenth + 1) * count // 10)
            sent = line.send([chat(bench.port, text=f"question {n // _TURNS}") for n in numbers])
            if sent.not_ok:
                raise RuntimeError(f"{kind.name}: {sent.not_ok} answers were no 200")
            held.append(proxy.resident_mib())
    return held[0], held[-1]
