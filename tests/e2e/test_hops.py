"""The way of a request through the files of the package gets no longer (`benchmarks/hops`)."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from benchmarks.bench import QUICK, bench
from benchmarks.hops.__main__ import figures, files, table
from benchmarks.hops.recorder import Recorder
from benchmarks.hops.scenarios import (
    BOUNDS,
    CHUNK,
    FAILOVER,
    FIRST_FAILOVER,
    ORDINARY,
    _usual,
    measure,
)
from benchmarks.hops.way import Visits, Way
from benchmarks.proxies import CHECKOUT

from tests.proxy.fast.known import needs_asyncio, needs_known


def test_what_is_counted():
    """a calls b, which calls itself and returns; a calls b again, then its own function."""
    entries = [["a", "f"], ["b", "g"], ["b", "h"], None, None, ["b", "g"], None, ["a", "i"]]
    way = Way.of(entries)
    assert way.visits == {"a": Visits(changes=2, calls=2), "b": Visits(changes=1, calls=3)}
    assert (way.files, way.changes) == (2, 3)
    assert [depth for depth, _, _ in way.calls] == [0, 1, 2, 1, 1]


async def test_what_runs_in_the_background_is_not_recorded():
    recorder = Recorder()
    recorder._package = __file__.removesuffix("/test_hops.py")
    go_on = asyncio.Event()

    def called() -> None:
        [called_inside() for _ in range(2)]

    def called_inside() -> None: ...

    async def task() -> None:
        await go_on.wait()
        called()

    background = asyncio.create_task(task(), name="account-pool something")
    other = asyncio.create_task(task())
    await asyncio.sleep(0)
    recorder._start()
    go_on.set()
    await asyncio.gather(background, other)
    recorded = await recorder._stop()
    names = [entry and entry[1].rpartition(".")[2] for entry in recorded]
    inside = ["called_inside", None] * 2
    assert names[: names.index("called")].count("task") == 1
    assert names[names.index("called") :][:6] == ["called", *inside, None]
    assert names.count("called") == 1


@pytest.mark.parametrize(("lengths", "usual"), [("23222", 2), ("32" + "3" * 28, 3)])
def test_a_way_that_is_shorter_once_is_not_the_usual_one(lengths, usual) -> None:
    recorded = iter([Way.of([["a", "f"]] * int(length)) for length in lengths])
    assert len(_usual(lambda: next(recorded)).calls) == usual


def test_ways_that_all_differ_have_no_usual_one() -> None:
    recorded = (Way.of([["a", "f"]] * length) for length in itertools.count(1))
    with pytest.raises(RuntimeError, match="alike"):
        _usual(lambda: next(recorded))


@pytest.fixture(scope="module")
def ways() -> dict[str, Way]:
    with bench(CHECKOUT / "addon" / "pool.py", QUICK) as running:
        return measure(running)


@needs_known
@needs_asyncio
def test_no_way_gets_longer(ways):
    """Whoever makes one shorter lowers the bound."""
    for name, bound in BOUNDS.items():
        way = ways[name]
        assert way.files <= bound.files, f"{name}\n{files(way)}"
        assert way.changes <= bound.changes, f"{name}\n{files(way)}"


def test_ways_are_as_long_as_what_is_done(ways):
    """What only looks on while a failover is recorded would be seen here."""
    for larger, smaller in [(FIRST_FAILOVER, FAILOVER), (FAILOVER, ORDINARY), (ORDINARY, CHUNK)]:
        assert ways[larger].files >= ways[smaller].files
        assert ways[larger].changes >= ways[smaller].changes
        assert len(ways[larger].calls) >= len(ways[smaller].calls)
    assert ways[FAILOVER].changes > ways[ORDINARY].changes
    for way in ways.values():
        assert 0 < way.files <= way.changes <= len(way.calls)
        assert way.changes == sum(
            before[1] != after[1] for before, after in zip(way.calls, way.calls[1:], strict=False)
        ) + 1  # fmt: skip
    # All but what an ordinary response has none of: chunks, and a copy of them.
    only_chunks = {"proxy/flow_view.py"}
    assert set(ways[CHUNK].visits) - set(ways[ORDINARY].visits) <= only_chunks


def test_what_is_printed(ways):
    lines = table(ways).splitlines()
    assert len(lines) == 1 + len(ways)
    assert f"{ways[ORDINARY].changes}" in lines[1]
    figures_of = json.loads(json.dumps(figures(ways[ORDINARY])))
    assert figures_of["files"] == len(figures_of["by_file"]) == ways[ORDINARY].files
