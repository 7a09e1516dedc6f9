"""The scenarios of `benchmarks/` measure what they say; how fast it is, no test decides."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from benchmarks.bench import QUICK, Bench, bench
from benchmarks.proxies import CHECKOUT
from benchmarks.scenarios import bodies, connections, failover, streams
from benchmarks.storm import real
from benchmarks.storm.fleet import Tally

from tests.patience import PATIENCE_S

EFFORT = replace(
    QUICK,
    failover_rounds=3,
    failovers=3,
    fresh_pools=1,
    body_rounds=1,
    connection_rounds=2,
    connections=4,
    stream_rounds=1,
    wave_rounds=1,
    waves=1,
)


@pytest.fixture(scope="module")
def running() -> Iterator[Bench]:
    with bench(CHECKOUT / "addon" / "pool.py", EFFORT) as running:
        yield running


def test_every_request_that_shall_fail_over_does(running):
    figures = {figure.name: figure for figure in failover.measure(running)}
    assert figures["requests that failed over"].value == 20 + 3 * 3 + 20 + 2 * 16 * 5
    assert not any(figure.failed for figure in figures.values())


def test_streams_are_not_altered(running):
    figures = streams.measure(running)
    altered = [f.value for f in figures if f.name.startswith("streams altered")]
    assert altered == [0.0] * 3


@pytest.mark.parametrize(("scenario", "counted"), [(bodies, 6), (connections, 0)])
def test_nothing_is_refused_or_altered(running, scenario, counted):
    figures = scenario.measure(running)
    assert [f.value for f in figures if f.name == "not 200"]
    assert not any(f.value for f in figures if f.name == "not 200")
    altered = [f.value for f in figures if f.name.startswith("bodies altered")]
    assert altered == [0.0] * counted


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server here")
def test_agents_are_served_by_several_proxies_on_one_engine():
    pytest.importorskip("redis")
    how = {"kind": "redis", "seed": 1, "agents": 8, "pace": 12}

    async def worked() -> Tally:
        async with real.storm("fill-first", 2, **how) as storm:
            return (await storm.run(PATIENCE_S, enough=10))[0]

    tally = asyncio.run(worked())
    assert tally.served >= 10
    assert tally.told == 0
