"""Histograms and the clock of one request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.proxy.measured import Histogram, Stopwatch, Timings
from tests.proxy.helpers import FakeClock

BOUNDS = (0.1, 1.0, 10.0)


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.1, 10.0, 99.0])))
def test_a_value_is_counted_at_the_smallest_bound_that_holds_it(values):
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
    below = [sum(value <= bound for value in values) for bound in BOUNDS]
    cumulative = [sum(histogram.counts[: n + 1]) for n in range(len(BOUNDS))]
    assert cumulative == below
    assert histogram.count == len(values)
    assert histogram.sum == pytest.approx(sum(values))


def test_our_part_leaves_out_waits_and_connections():
    clock, timings = FakeClock(), Timings()
    watch = Stopwatch(timings, clock.now)
    clock.advance(0.25 + 7.0 + 0.5)
    watch.waited(7.0)
    clock.advance(3.0 + 0.25)
    watch.elsewhere_s += 3.0
    watch.sent()
    assert (timings.overhead.sum, timings.wait.sum) == (1.0, 7.0)


def test_a_replay_is_no_overhead_but_its_answer_is_timed():
    clock, timings = FakeClock(), Timings()
    watch = Stopwatch(timings, clock.now)
    for pause in (1.0, 2.0):
        watch.sent()
        clock.advance(pause)
        watch.answered()
    clock.advance(0.5)
    watch.began()
    watch.handed_on()
    assert (timings.overhead.count, timings.overhead.sum) == (1, 0.0)
    assert (timings.head.count, timings.head.sum) == (2, 3.0)
    assert (timings.first_byte.sum, timings.held.sum) == (2.5, 0.5)
