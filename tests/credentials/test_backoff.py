"""The wait after a failure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from account_pool.credentials.account_credential import backoff_s


def test_it_doubles_up_to_five_minutes() -> None:
    waits = [backoff_s(failures, 0.0) for failures in range(1, 12)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_it_stays_in_its_bounds(failures: int, chance: float) -> None:
    wait_s = backoff_s(failures, chance)
    assert 1 <= wait_s <= 300
    assert wait_s >= backoff_s(failures, 0.0) / 2
