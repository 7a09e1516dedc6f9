"""Large bodies, as agents send them with a long conversation; and each of them by its hash."""

from __future__ import annotations

import hashlib
from collections import Counter

from benchmarks import proxies, rounds
from benchmarks.bench import Bench, Line
from benchmarks.figures import Figure, Target
from benchmarks.load import Sent
from benchmarks.replies import json_body, text
from benchmarks.requests import Wish, chat

NAME = "large bodies, 4 at once"
_CONCURRENCY = 4
#: (size in bytes, target of CPU per request / bare, requests of a round)
_SIZES = ((100_000, 0.75, 40), (1_000_000, 1.05, 12), (10_000_000, 1.1, 4))


def measure(bench: Bench) -> list[Figure]:
    """Compare CPU per request with bare mitmdump, and both ends of every body."""
    figures = []
    kinds = [proxies.BARE, *bench.pools()]
    with bench.running(*kinds) as running, bench.lines(_CONCURRENCY, *running) as lines:
        for line in lines:
            line.warm_up(chat(bench.port), times=10)
        for size, most, count in _SIZES:
            shown = f"{size // 1000:,} KB"
            sent = [chat(bench.port, text=text(size))] * count
            targets = {proxies.POOL: Target(most)}
            figures += _compare(lines, f"request of {shown}", sent, json_body(), targets)
            asked = [chat(bench.port, Wish(size=size))] * count
            figures += _compare(lines, f"response of {shown}", asked, json_body(size), {})
    return figures


def _compare(
    lines: list[Line],
    what: str,
    requests: list[bytes],
    answer: bytes,
    targets: dict[str, Target],
) -> list[Figure]:
    bench = lines[0].bench
    bench.forget()
    answered = hashlib.sha256(answer).hexdigest()
    altered = 0

    def send(line: Line) -> Sent:
        nonlocal altered
        sent = line.send(requests)
        altered += sum(reply.digest != answered for reply in sent.replies)
        return sent

    costs = rounds.measure(lines, bench.effort.body_rounds, send)
    asked = hashlib.sha256(requests[0].partition(b"\r\n\r\n")[2]).hexdigest()
    expected = len(requests) * bench.effort.body_rounds * len(lines)
    arrived = Counter(bench.seen()["bodies"])
    altered += abs(expected - arrived[asked]) + arrived.total() - arrived[asked]
    return [
        *rounds.compare(NAME, costs, proxies.BARE.name, targets, what=what),
        Figure(
            scenario=NAME,
            name=f"bodies altered, {what}",
            value=float(altered),
            target=Target(0),
            note=f"of {expected} both ways",
        ),
    ]
