"""Clocks that were looked at, and the gaps between."""

from __future__ import annotations

import pytest

from account_pool.proxy.service import GAP_S, Gap, Watch

HOUR = 3600.0
BEGAN = (5000.0, 1_700_000_000.0)

#: What passes between two looks, by the clock that counts a suspend and by the wall clock.
LOOKS = {
    "time passes": (5.0, 5.0, None),
    "a busy machine": (GAP_S - 1, GAP_S - 1, None),
    "no time at all": (0.0, 0.0, None),
    "a suspend": (3 * HOUR, 3 * HOUR, Gap(3 * HOUR, slept=True)),
    "just long enough": (GAP_S, GAP_S, Gap(GAP_S, slept=True)),
    "a suspend, and the clock was set back": (HOUR, -HOUR, Gap(HOUR, slept=True)),
    "a suspend, and the clock was set ahead": (HOUR, 9 * HOUR, Gap(HOUR, slept=True)),
    "a virtual machine that was paused": (1.0, 3 * HOUR, Gap(3 * HOUR, slept=False)),
    "a clock that was set ahead": (5.0, HOUR, Gap(HOUR, slept=False)),
    "a clock that was set back": (5.0, -HOUR, None),
    "a clock that was put right by a little": (5.0, 7.5, None),
    "the first clock is set, which none should be": (-HOUR, 5.0, None),
}


@pytest.mark.parametrize(("up", "wall", "gap"), LOOKS.values(), ids=LOOKS)
def test_a_gap_between_two_looks(up, wall, gap):
    watch = Watch(*BEGAN)
    assert watch.look(BEGAN[0] + up, BEGAN[1] + wall) == gap
    # Whatever it was, it is told once.
    assert watch.look(BEGAN[0] + up + 5, BEGAN[1] + wall + 5) is None


def test_looks_that_are_near_have_no_gap_however_many():
    watch = Watch(0.0, 0.0)
    assert all(watch.look(n * 5.0, n * 5.0) is None for n in range(1000))


def test_the_next_gap_is_noticed_too():
    watch = Watch(0.0, 0.0)
    gaps = [watch.look(at, at) for at in (60.0, 61.0, 200.0, 201.0)]
    assert gaps == [Gap(60.0, slept=True), None, Gap(139.0, slept=True), None]
