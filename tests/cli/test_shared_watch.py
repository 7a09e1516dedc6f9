"""When a proxy is started again: tables of looks, and no clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.cli.shared import (
    GRACE_S,
    LONGEST_WAIT_S,
    LOOK_CLOSER_S,
    LOOK_S,
    MAX_STARTS,
    MISSES,
    STEADY_S,
    Seen,
    Step,
    Watch,
)

IDLE, BUSY = Seen(alive=True, busy=0), Seen(alive=True, busy=3)
SILENT, DEAD = Seen(alive=True), Seen(alive=False)


def steps(watch: Watch, looks: list[tuple[float, Seen]]) -> list[Step]:
    return [watch.look(seen, now) for now, seen in looks]


def test_a_proxy_that_is_well_is_left_alone():
    watch = Watch(0)
    assert set(steps(watch, [(n, IDLE) for n in range(100)])) == {Step.NOTHING}
    assert watch.look_again_in_s() == LOOK_S


def test_a_dead_one_is_started_at_once():
    watch = Watch(0)
    assert steps(watch, [(1, BUSY), (2, DEAD)]) == [Step.NOTHING, Step.START]


def test_a_dead_one_is_started_at_once_although_it_answered():
    """Another process has its port."""
    assert Watch(0).look(Seen(alive=False, busy=0), 1) is Step.START


def test_an_idle_one_that_hangs_is_replaced_after_some_misses():
    watch = Watch(0)
    looks = [(0, IDLE), *((n, SILENT) for n in range(1, MISSES + 1))]
    assert steps(watch, looks) == [Step.NOTHING] * MISSES + [Step.REPLACE]
    assert watch.look_again_in_s() == LOOK_CLOSER_S


def test_a_lost_probe_means_nothing():
    watch = Watch(0)
    looks = [(n, SILENT if n % MISSES else IDLE) for n in range(60)]
    assert set(steps(watch, looks)) == {Step.NOTHING}


def test_a_busy_one_that_hangs_has_its_grace():
    watch = Watch(0)
    watch.look(BUSY, 0)
    within = [(1 + n, SILENT) for n in range(int(GRACE_S))]
    assert set(steps(watch, within)) == {Step.NOTHING}
    assert watch.look(SILENT, 1 + GRACE_S) is Step.REPLACE


def test_the_grace_ends_when_it_answers():
    watch = Watch(0)
    steps(watch, [(0, BUSY), (1, SILENT), (50, BUSY)])
    assert watch.look(SILENT, 1 + GRACE_S) is Step.NOTHING


def test_starts_in_a_row_wait_longer_and_longer():
    watch, now, waits = Watch(0), 0.0, []
    for _ in range(MAX_STARTS):
        began = now
        while watch.look(DEAD, now) is Step.NOTHING:
            now += 0.25
        waits.append(now - began)
    assert waits[:4] == [0, 1, 2, 4]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT_S


def test_what_does_not_help_is_given_up():
    watch, now = Watch(0), 0.0
    seen = []
    for _ in range(MAX_STARTS + 1):
        now += LONGEST_WAIT_S + 1
        seen.append(watch.look(DEAD, now))
    assert seen == [Step.START] * MAX_STARTS + [Step.GIVE_UP]


def test_being_well_for_a_while_ends_the_row():
    watch, now = Watch(0), 0.0
    for _ in range(MAX_STARTS * 3):
        assert watch.look(DEAD, now) is Step.START
        watch.look(IDLE, now + 1)
        watch.look(IDLE, now + 1 + STEADY_S)
        assert watch.starts == 0
        now += STEADY_S + 2


@given(
    st.lists(
        st.tuples(
            st.floats(0, 20),
            st.sampled_from([IDLE, BUSY, SILENT, DEAD]),
        ),
        max_size=200,
    )
)
def test_never_more_starts_than_the_bound_without_a_steady_time(looks):
    watch, now, well_since, starts = Watch(0), 0.0, None, 0
    for wait, seen in looks:
        now += wait
        step = watch.look(seen, now)
        if seen.busy is not None:
            well_since = now if well_since is None else well_since
            if now - well_since >= STEADY_S:
                starts = 0
        elif step in (Step.START, Step.REPLACE):
            starts, well_since = starts + 1, None
        assert starts <= MAX_STARTS
        # A proxy that answers is never touched.
        assert seen.busy is None or step is Step.NOTHING


@pytest.mark.parametrize("busy", [0, 1])
def test_how_busy_it_was_may_be_known_before_the_first_look(busy):
    watch = Watch(0, busy=busy)
    looks = [(n, SILENT) for n in range(MISSES)]
    assert (Step.REPLACE in steps(watch, looks)) is not bool(busy)
