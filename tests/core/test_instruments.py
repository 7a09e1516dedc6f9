"""Histograms and the clock of one request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.instruments import Histogram, Mark, Timings, reduce

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


def reduced(*marks):
    timings = Timings()
    reduce(marks, timings)
    return timings


def test_our_part_leaves_out_waits_and_connections():
    began_at = 100.0
    timings = reduced(
        (Mark.BEGAN, began_at),
        (Mark.WAITED, 7.0),
        (Mark.OPENED, 3.0),
        (Mark.SENT, began_at + 0.25 + 7.0 + 0.5 + 3.0 + 0.25),
    )
    assert (timings.overhead.sum, timings.wait.sum) == (1.0, 7.0)


def test_a_replay_is_no_overhead_but_its_answer_is_timed():
    timings = reduced(
        (Mark.BEGAN, 100.0),
        (Mark.SENT, 100.0),
        (Mark.HEAD, 101.0),
        (Mark.SENT, 101.0),
        (Mark.HEAD, 103.0),
        (Mark.FIRST_BYTE, 103.5),
        (Mark.HANDED_ON, 103.5),
    )
    assert (timings.overhead.count, timings.overhead.sum) == (1, 0.0)
    assert (timings.head.count, timings.head.sum) == (2, 3.0)
    assert (timings.first_byte.sum, timings.held.sum) == (2.5, 0.5)


def test_what_did_not_happen_is_not_counted():
    timings = reduced((Mark.BEGAN, 100.0), (Mark.WAITED, 5.0))
    assert timings.wait.count == 1
    others = (timings.overhead, timings.head, timings.first_byte, timings.held)
    assert [one.count for one in others] == [0, 0, 0, 0]
