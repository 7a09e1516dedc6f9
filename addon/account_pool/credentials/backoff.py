"""How long to wait before something that failed is tried again."""

from __future__ import annotations

#: Bounds of the wait between two tries, in seconds.
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 300.0


def backoff_s(failures: int, chance: float) -> float:
    """Return the seconds to wait after *failures* (1 or more) in a row.

    Doubles from 1 s to 5 min. *chance*, 0 to 1, takes up to half of it away, so that
    accounts which failed together do not come back together; never below 1 s.
    """
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 30))
    return max(FIRST_WAIT_S, longest * (1 - chance / 2))
